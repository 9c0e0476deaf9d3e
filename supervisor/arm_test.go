package supervisor_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/daemon"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// arming is base with the job that is tested here.
func arming() config.Config {
	c := base()
	c.Arm.Mode = config.Enforce
	return c
}

// arms waits until n connections are in a state, and returns them.
func (g *guard) arms(n int, state view.ArmState) (list []view.Connection) {
	g.t.Helper()
	labtest.Within(g.t, 10*time.Second, string(state), func() bool {
		ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Second)
		defer cancel()
		node, err := g.View(ctx)
		labtest.Must(g.t, err)
		list = nil
		for _, c := range node.Connections {
			if c.Arm.State == state {
				list = append(list, c)
			}
		}
		return len(list) == n
	})
	return list
}

// blocked is a client that waits in a BLPOP.
func (w *world) blocked() *lab.Client {
	w.t.Helper()
	c, err := w.client.Client(w.ctx, lab.ClientConfig{Addr: w.redis.Addr(), Kind: lab.Blpop})
	labtest.Must(w.t, err)
	// It is not answered, and so not ready, before there is something to pop.
	_, err = c.WaitEvent(w.ctx, func(e lab.Event) bool { return e.Kind == lab.Connected })
	labtest.Must(w.t, err)
	return c
}

// timers lists the timers of the clients' connections, as the kernel has them.
func (w *world) timers() map[tcpstate.Timer]int {
	n := map[tcpstate.Timer]int{}
	for _, c := range w.connections(w.client) {
		n[c.Timer]++
	}
	return n
}

// A subscriber hears nothing, and notices nothing of a server that vanishes. Armed,
// it gets its error from the kernel even when the guard is gone right after.
func TestAnArmedSubscriberOutlivesTheGuard(t *testing.T) {
	w := newWorld(t)
	d := startDaemon(t, daemonConfig{lines: []string{`tune.mode = "off"`, `arm.mode = "enforce"`}})
	sub := w.run(w.client, lab.Subscriber, w.redis.Addr(), 1)
	blocked := w.blocked()
	labtest.Within(t, 10*time.Second, "both are armed", func() bool {
		plans, _, err := (&daemon.Standalone{Config: arming()}).PlanArming(w.ctx)
		labtest.Must(t, err)
		ends := map[time.Duration]int{}
		for _, p := range plans {
			if p.NS.Name == w.client.NSName {
				ends[p.Now.Ends()]++
			}
		}
		return ends[25*time.Second] == 2
	})
	labtest.Must(t, d.process.Signal(unix.SIGKILL))
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	for _, c := range []*lab.Client{sub, blocked} {
		e := w.failure(c, lost)
		t.Logf("%s after %v", e.Errno, e.Time().Sub(lost))
		if e.Errno != "ETIMEDOUT" || e.Time().Sub(lost) > 27*time.Second {
			t.Errorf("%s after %v, want ETIMEDOUT within 27 s", e.Errno, e.Time().Sub(lost))
		}
	}
}

// With the guard alive, idle connections are asked, and Redis notices nothing of it.
func TestAskingFindsADeadEndpoint(t *testing.T) {
	w := newWorld(t)
	c := arming()
	c.Profile = config.Balanced
	g := startGuard(t, c, false)
	subs := w.run(w.client, lab.Subscriber, w.redis.Addr(), 5)
	blocked := w.blocked()
	g.ready(6)
	g.arms(6, view.ArmDone)
	labtest.Within(t, 10*time.Second, "all were asked", func() bool { return g.Figures().Asks >= 6 })
	if r := g.reaped(); len(r) > 0 {
		t.Fatalf("reaped while all is well: %s", r[0].Text)
	}
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	for _, c := range []*lab.Client{subs, blocked} {
		e := w.failure(c, lost)
		t.Logf("%s after %v", e.Errno, e.Time().Sub(lost))
		if e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 5*time.Second {
			t.Errorf("%s after %v, want ECONNABORTED within 5 s", e.Errno, e.Time().Sub(lost))
		}
	}
	down := g.wait(time.Second, "endpoint.down", ofType(verdict.EndpointDown))
	if down.Evidence.Asks == 0 || down.Evidence.Kinds != verdict.Stall|verdict.ProbeSay {
		t.Errorf("%s", down.Text)
	}
}

// Where arming is off nobody is asked, and an idle connection is only signalled.
func TestWhoMayNotBeAsked(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	subs := w.run(w.client, lab.Subscriber, w.redis.Addr(), 2)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 1)
	g.ready(3)
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	w.failure(busy, lost)
	for _, local := range []int{0, 1} {
		e := g.wait(10*time.Second, "word of an idle one", func(e event.Event) bool {
			return e.Type == verdict.ConnectionJudged && e.Connection != nil && e.Connection.Local == subs.Local(local)
		})
		if !strings.Contains(e.Text, "could not be asked: asking belongs to arm, and: mode is off") {
			t.Errorf("%s", e.Text)
		}
	}
	if n := g.Figures().Asks; n != 0 {
		t.Errorf("%d were asked", n)
	}
	for _, e := range g.reaped() {
		if e.Connection.Local == subs.Local(0) || e.Connection.Local == subs.Local(1) {
			t.Errorf("%s", e.Text)
		}
	}
}

// Observing changes nothing, exempt ones are not touched, and values that are
// stricter already are left.
func TestWhoIsNotArmed(t *testing.T) {
	w := newWorld(t)
	c := arming()
	c.Arm.Mode = config.Observe
	c.Exclude.Commands = []string{"spare-me"}
	g := startGuard(t, c, false)
	w.run(w.client, lab.Subscriber, w.redis.Addr(), 2)
	spared, err := w.client.Client(w.ctx, lab.ClientConfig{Addr: w.redis.Addr(), Kind: lab.Subscriber, Comm: "spare-me"})
	labtest.Must(t, err)
	labtest.Must(t, spared.Ready(w.ctx))
	g.ready(3)
	g.arms(2, view.ArmPlanned)
	if n := w.timers()[tcpstate.TimerKeepalive]; n != 0 {
		t.Errorf("%d connections have keepalive though arming only observes", n)
	}
	c.Arm.Mode = config.Enforce
	g.Reconfigure(c)
	g.arms(2, view.ArmDone)
	ex := g.arms(1, view.ArmExempt)
	if ex[0].TCP.Local != spared.Local(0) {
		t.Errorf("exempt is %v, want %v", ex[0].TCP.Local, spared.Local(0))
	}
	armed := map[netip.AddrPort]tcpstate.Timer{}
	for _, k := range w.connections(w.client) {
		armed[k.Local] = k.Timer
	}
	if armed[spared.Local(0)] == tcpstate.TimerKeepalive || len(armed) != 3 {
		t.Errorf("timers: %v", armed)
	}
}

// What arming would do can be asked without a daemon: nothing is set, and what a
// daemon has set is recognised.
func TestPlanArming(t *testing.T) {
	w := newWorld(t)
	c := arming()
	c.Exclude.Commands = []string{"spare-me"}
	w.run(w.client, lab.Subscriber, w.redis.Addr(), 2)
	spared, err := w.client.Client(w.ctx, lab.ClientConfig{Addr: w.redis.Addr(), Kind: lab.Subscriber, Comm: "spare-me"})
	labtest.Must(t, err)
	labtest.Must(t, spared.Ready(w.ctx))
	plan := func() map[view.ArmState]int {
		t.Helper()
		plans, _, err := (&daemon.Standalone{Config: c}).PlanArming(w.ctx)
		labtest.Must(t, err)
		n := map[view.ArmState]int{}
		for _, p := range plans {
			if p.NS.Name != w.client.NSName {
				continue
			}
			n[p.State]++
			if p.State == view.ArmPlanned && (p.Now.Keepalive || p.Then.Ends() != 25*time.Second) {
				t.Errorf("from %v to %v", p.Now, p.Then)
			}
		}
		return n
	}
	n := plan()
	if n[view.ArmPlanned] != 2 || n[view.ArmExempt] != 1 {
		t.Errorf("planned: %v", n)
	}
	if timers := w.timers(); timers[tcpstate.TimerKeepalive] != 0 {
		t.Errorf("timers after planning: %v", timers)
	}
	g := startGuard(t, c, false)
	g.arms(2, view.ArmDone)
	if n = plan(); n[view.ArmDone] != 2 {
		t.Errorf("beside a daemon: %v", n)
	}
	if f := g.Figures().Arms; f[figures.ArmSet] < 2 || f[figures.ArmGone]+f[figures.ArmError]+f[figures.ArmNotPermitted] != 0 {
		t.Errorf("counted: %v", f)
	}
}

// Where a right is missing arming says so once, as a finding, and the rest goes on.
func TestArmingWithoutPtrace(t *testing.T) {
	w := newWorld(t)
	w.run(w.client, lab.Subscriber, w.redis.Addr(), 2)
	d := startDaemon(t, daemonConfig{lines: []string{`tune.mode = "off"`, `arm.mode = "enforce"`}, drop: []int{unix.CAP_SYS_PTRACE}})
	l := d.wait(10*time.Second, "arm.failed", func(l *logLine) bool { return l.is(event.ArmFailed) })
	if !strings.Contains(l.field("text"), "2 connections cannot be armed: CAP_SYS_PTRACE is missing") || !l.loud() {
		t.Errorf("it says %s", l.raw)
	}
	d.probed(w.redis.Addr().String())
	if n := w.timers()[tcpstate.TimerKeepalive]; n != 0 {
		t.Errorf("%d connections were armed all the same", n)
	}
	if l := d.log(func(l *logLine) bool { return l.is(event.ArmFailed) || l.is(event.ArmResumed) }); len(l) != 1 {
		t.Errorf("it says so %d times", len(l))
	}
	d.terminate()
}
