package supervisor_test

import (
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// by is who asks in these tests.
var by = event.Peer{Comm: "test", PID: 1, UID: 0}

// outcomes counts what became of a reap by hand.
func (g *guard) outcomes(r view.Reap) map[verdict.ReapOutcome]int {
	g.t.Helper()
	r.Peer = by
	list, err := g.Reap(g.t.Context(), r)
	labtest.Must(g.t, err)
	n := map[verdict.ReapOutcome]int{}
	for _, x := range list {
		n[x.Outcome]++
	}
	return n
}

// Who asks for all connections to an endpoint gets the silent ones ended, however
// many busy ones there are, and no more at once than the config allows.
func TestReapsByHandSpareAndAreBounded(t *testing.T) {
	w := newWorld(t)
	c := base()
	c.Reap.Burst, c.Reap.Rate = 2, 0.01
	g := startGuard(t, c, false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 5)
	idle := w.run(w.client, lab.Subscriber, w.redis.Addr(), 3)
	g.ready(8)
	all := view.Reap{Endpoint: w.redis.Addr()}
	dry := all
	dry.DryRun = true
	labtest.Within(t, 10*time.Second, "the three are silent", func() bool { return g.outcomes(dry)[verdict.ReapDryRun] == 3 })
	n := g.outcomes(all)
	if n[verdict.ReapDone] != 2 || n[verdict.ReapSpared] != 5 || n[view.Refused] != 1 || len(n) != 3 {
		t.Errorf("outcomes %v, want 2 reaped, 5 spared, 1 refused", n)
	}
	e := w.failure(idle, time.Now().Add(-time.Second))
	if e.Errno != "ECONNABORTED" {
		t.Errorf("the client got %s", e.Errno)
	}
	if x := busy.Totals().Errors; len(x) > 0 {
		t.Errorf("busy connections had errors: %v", x)
	}
	r := g.wait(time.Second, "the record", ofType(verdict.ConnectionReaped))
	if r.Peer == nil || *r.Peer != by {
		t.Errorf("the record does not say who asked: %+v", r)
	}
}

// Nobody can ask for the end of what is exempt, not by force either; and what was
// excluded a moment ago is exempt already.
func TestReapsByHandKeepThePromises(t *testing.T) {
	w := newWorld(t)
	c := base()
	g := startGuard(t, c, false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 2)
	g.ready(2)
	force := view.Reap{Endpoint: w.redis.Addr(), Force: true}
	c.Exclude.Commands = []string{"lab-writer"}
	g.Reconfigure(c)
	if n := g.outcomes(force); n[view.Refused] != 2 || len(n) != 1 {
		t.Errorf("excluded: outcomes %v, want 2 refused", n)
	}
	c.Exclude.Commands = []string{}
	c.Reap.Mode = config.Observe
	g.Reconfigure(c)
	if n := g.outcomes(force); n[view.Refused] != 2 || len(n) != 1 {
		t.Errorf("observing: outcomes %v, want 2 refused", n)
	}
	if x := busy.Totals().Errors; len(x) > 0 {
		t.Errorf("the client had errors: %v", x)
	}
	c.Reap.Mode = config.Enforce
	g.Reconfigure(c)
	if n := g.outcomes(force); n[verdict.ReapDone] != 2 || len(n) != 1 {
		t.Errorf("by force: outcomes %v, want 2 reaped", n)
	}
	w.failure(busy, time.Now().Add(-time.Second))
}

// A process that connects, leaves the connection to a child and ends, as daemons do,
// is gone by the time its connect is read. Its connection is not.
func TestAConnectionOutlivesItsProcess(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	w.run(w.client, lab.Writer, w.redis.Addr(), 1)
	g.ready(1)
	for range 3 {
		p, err := w.client.Start(w.ctx, exec.Command("bash", "-c",
			fmt.Sprintf("exec 3<>/dev/tcp/%s/%d; sleep 30 >/dev/null 2>&1 </dev/null & exit", w.redis.Addr().Addr(), port)))
		labtest.Must(t, err)
		labtest.Must(t, p.Wait())
	}
	labtest.Within(t, 15*time.Second, "the children's connections are known", func() bool { return g.Figures().Tracked >= 4 })
}
