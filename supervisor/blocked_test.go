package supervisor_test

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// An application may hold the lock of its socket for as long as it likes. Nobody else
// has to wait for that: not those in the same namespace, and not our end.
func TestASocketThatIsBlocked(t *testing.T) {
	w := newWorld(t)
	subs := w.run(w.client, lab.Subscriber, w.redis.Addr(), 3)
	conn, err := w.client.Dial(w.ctx, "tcp4", w.redis.Addr().String())
	labtest.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	var release func() error
	t.Cleanup(func() { // after the guard has ended
		if release != nil {
			labtest.Must(t, release())
		}
	})
	c := arming()
	c.Profile = config.Balanced
	g := startGuard(t, c, false)
	g.ready(4)
	raw, err := conn.(syscall.Conn).SyscallConn()
	labtest.Must(t, err)
	labtest.Must(t, raw.Control(func(fd uintptr) { release, err = lab.HoldLock(int(fd)) }))
	labtest.Must(t, err)
	labtest.Within(t, 10*time.Second, "it is known that it is blocked", func() bool {
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
		defer cancel()
		n, err := g.View(ctx)
		labtest.Must(t, err)
		for _, k := range n.Connections {
			if strings.Contains(k.WhyNot, "does not let the socket be reached") {
				return true
			}
		}
		return false
	})
	// Whoever wants it ended is told why not, and nothing breaks.
	list, err := g.Reap(w.ctx, view.Reap{Endpoint: w.redis.Addr(), DryRun: true})
	labtest.Must(t, err)
	for _, r := range list {
		if blocked := r.Local == conn.LocalAddr().(*net.TCPAddr).AddrPort(); blocked && r.Outcome != view.Refused && r.Outcome != verdict.ReapFailed || !blocked && r.Outcome != verdict.ReapSpared && r.Outcome != verdict.ReapDryRun {
			t.Errorf("asked to reap %v: %s (%s)", r.Local, r.Outcome, r.Why)
		}
	}
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if e := w.failure(subs, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 8*time.Second {
		t.Errorf("a subscriber beside it got %s after %v", e.Errno, e.Time().Sub(lost))
	}
}
