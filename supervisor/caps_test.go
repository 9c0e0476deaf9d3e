package supervisor_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
)

// With less than it wants, the program observes what it can, says what is missing
// and how to get it, and neither ends nor floods the log.
func TestMissingCapabilities(t *testing.T) {
	w := newWorld(t)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	for _, test := range []struct {
		name   string
		drop   []int
		in     *lab.Host // nil: where all namespaces can be seen
		blind  bool      // that it sees nothing of the clients is in order
		reaps  bool
		missed []string
	}{
		{name: "no CAP_NET_ADMIN", drop: []int{unix.CAP_NET_ADMIN}, missed: []string{"CAP_NET_ADMIN"}},
		{name: "no CAP_SYS_PTRACE", drop: []int{unix.CAP_SYS_PTRACE}, reaps: true, missed: []string{"CAP_SYS_PTRACE"}},
		{name: "no CAP_SYS_ADMIN", drop: []int{unix.CAP_SYS_ADMIN}, blind: true, missed: []string{"CAP_SYS_ADMIN"}},
		{name: "no CAP_SYS_ADMIN, beside the clients", drop: []int{unix.CAP_SYS_ADMIN}, in: w.client, reaps: true, missed: []string{"CAP_SYS_ADMIN"}},
		{name: "none, beside the clients", drop: []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE}, in: w.client,
			missed: []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, daemonConfig{drop: test.drop, in: test.in})
			for _, name := range test.missed {
				l := d.wait(5*time.Second, "word about "+name, func(l *logLine) bool { return l.field("missing") == name })
				if !l.loud() || !strings.Contains(l.field("remedy"), name) {
					t.Errorf("it says %s", l.raw)
				}
			}
			if test.blind {
				d.wait(5*time.Second, "word about namespaces", func(l *logLine) bool {
					return l.loud() && strings.Contains(l.field("msg"), "namespaces cannot be seen") && l.field("remedy") != ""
				})
				other, err := w.client.Start(w.ctx, exec.Command("sleep", "60"))
				labtest.Must(t, err)
				pass(3 * time.Second) // in which it sees one more process, and does not complain again
				labtest.Must(t, other.Kill())
				d.healthy(3)
				d.terminate()
				return
			}
			d.probed(w.redis.Addr().String())
			labtest.Must(t, w.server.Vanish())
			lost := time.Now()
			d.wait(4*time.Second, "endpoint.down", func(l *logLine) bool { return l.is(verdict.EndpointDown) })
			if test.reaps {
				if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
					t.Errorf("the client got %s after %v", e.Errno, e.Time().Sub(lost))
				}
			} else {
				d.wait(4*time.Second, "connection.judged", func(l *logLine) bool {
					return l.is(verdict.ConnectionJudged) && strings.Contains(l.field("text"), "not reaped (CAP_NET_ADMIN is missing)")
				})
				pass(time.Second) // in which it does not try
				if l := d.log(func(l *logLine) bool { return l.is(verdict.ConnectionReaped) }); len(l) > 0 {
					t.Errorf("it tries what it cannot: %s", l[0].raw)
				}
			}
			d.healthy(12)
			labtest.Must(t, w.server.Return())
			back := time.Now()
			d.wait(10*time.Second, "endpoint.up", func(l *logLine) bool { return l.is(verdict.EndpointUp) && l.at.After(back) })
			d.terminate()
			for i := range 3 {
				_, err := busy.WaitEvent(w.ctx, func(e lab.Event) bool { return e.Kind == lab.OK && e.Conn == i && e.T > back.UnixNano() })
				labtest.Must(t, err)
			}
		})
	}
}

func TestTheEndIsQuickInTheMiddleOfAnOutage(t *testing.T) {
	w := newWorld(t)
	w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	d := startDaemon(t, daemonConfig{lines: []string{`probe.timeout = "1500ms"`}})
	d.probed(w.redis.Addr().String())
	labtest.Must(t, w.server.Vanish())
	// Clients connect in vain, and probes wait for an answer.
	d.wait(4*time.Second, "endpoint.down", func(l *logLine) bool { return l.is(verdict.EndpointDown) })
	d.terminate()
	if l := d.log(func(l *logLine) bool { return strings.Contains(l.field("msg"), "has ended") }); len(l) != 1 {
		t.Error("its last word is missing")
	}
}
