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
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/supervisor"
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
func (g *guard) arms(n int, state view.ArmState, canaries int) (list []view.Connection) {
	g.t.Helper()
	eventually(g.t, 10*time.Second, string(state), func() bool {
		ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Second)
		defer cancel()
		node, err := g.View(ctx)
		must(g.t, err)
		list = nil
		have := 0
		for _, c := range node.Connections {
			if c.Arm.State == state {
				list = append(list, c)
				if c.Arm.Canary {
					have++
				}
			}
		}
		return len(list) == n && have == canaries
	})
	return list
}

// blocked is a client that waits in a BLPOP.
func (w *world) blocked() *lab.Client {
	w.t.Helper()
	c, err := w.client.Client(w.ctx, lab.ClientConfig{Addr: w.redis.Addr(), Kind: lab.Blpop})
	must(w.t, err)
	// It is not answered, and so not ready, before there is something to pop.
	_, err = c.WaitEvent(w.ctx, func(e lab.Event) bool { return e.Kind == lab.Connected })
	must(w.t, err)
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
	eventually(t, 10*time.Second, "both are armed, one as a canary", func() bool {
		plans, _, err := supervisor.PlanArming(w.ctx, supervisor.Options{Config: arming()})
		must(t, err)
		ends := map[time.Duration]int{}
		for _, p := range plans {
			if p.NS.Name == w.client.NSName {
				ends[p.Now.Ends()]++
			}
		}
		return ends[24*time.Second] == 1 && ends[25*time.Second] == 1
	})
	must(t, d.process.Signal(unix.SIGKILL))
	must(t, w.server.Vanish())
	lost := time.Now()
	for _, c := range []*lab.Client{sub, blocked} {
		e := w.failure(c, lost)
		t.Logf("%s after %v", e.Errno, e.Time().Sub(lost))
		if e.Errno != "ETIMEDOUT" || e.Time().Sub(lost) > 27*time.Second {
			t.Errorf("%s after %v, want ETIMEDOUT within 27 s", e.Errno, e.Time().Sub(lost))
		}
	}
}

// With the guard alive, one canary speaks for all who are idle.
func TestTheCanaryFindsADeadEndpoint(t *testing.T) {
	w := newWorld(t)
	c := arming()
	c.Profile = config.Balanced
	g := startGuard(t, c, false)
	subs := w.run(w.client, lab.Subscriber, w.redis.Addr(), 5)
	blocked := w.blocked()
	g.ready(6)
	g.arms(6, view.ArmDone, 1)
	pass(3 * time.Second) // in which the canary has asked, and was answered
	if r := g.reaped(); len(r) > 0 {
		t.Fatalf("reaped while all is well: %s", r[0].Text)
	}
	must(t, w.server.Vanish())
	lost := time.Now()
	for _, c := range []*lab.Client{subs, blocked} {
		e := w.failure(c, lost)
		t.Logf("%s after %v", e.Errno, e.Time().Sub(lost))
		if e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 8*time.Second {
			t.Errorf("%s after %v, want ECONNABORTED within 8 s", e.Errno, e.Time().Sub(lost))
		}
	}
	down := g.wait(time.Second, "endpoint.down", ofType(verdict.EndpointDown))
	t.Logf("%s", down.Text)
}

// Where somebody speaks there is no canary; when the one there is goes, another
// takes its place; and one that is not needed any more gets the ordinary options.
func TestCanariesComeAndGo(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, arming(), false)
	first := w.run(w.client, lab.Subscriber, w.redis.Addr(), 1)
	g.ready(1)
	one := g.arms(1, view.ArmDone, 1)[0]
	if !strings.Contains(one.Arm.Meaning, "2s") {
		t.Errorf("the canary is %q", one.Arm.Meaning)
	}
	w.run(w.client, lab.Subscriber, w.redis.Addr(), 1)
	for _, c := range g.arms(2, view.ArmDone, 1) {
		if c.Arm.Canary != (c.Key == one.Key) {
			t.Errorf("%v is a canary: %v", c.TCP.Local, c.Arm.Canary)
		}
	}
	_, err := first.Stop()
	must(t, err)
	gone := time.Now()
	g.arms(1, view.ArmDone, 1)
	if took := time.Since(gone); took > 3*time.Second {
		t.Errorf("another canary only after %v", took)
	}
	w.run(w.client, lab.Writer, w.redis.Addr(), 1)
	for _, c := range g.arms(2, view.ArmDone, 0) {
		if !strings.Contains(c.Arm.Meaning, "25s") {
			t.Errorf("%v is %q, want the ordinary options", c.TCP.Local, c.Arm.Meaning)
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
	must(t, err)
	must(t, spared.Ready(w.ctx))
	g.ready(3)
	g.arms(2, view.ArmPlanned, 0)
	if n := w.timers()[tcpstate.TimerKeepalive]; n != 0 {
		t.Errorf("%d connections have keepalive though arming only observes", n)
	}
	c.Arm.Mode = config.Enforce
	g.Reconfigure(c)
	g.arms(2, view.ArmDone, 1)
	ex := g.arms(1, view.ArmExempt, 0)
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
	must(t, err)
	must(t, spared.Ready(w.ctx))
	plan := func() (n map[view.ArmState]int, canaries int) {
		t.Helper()
		plans, _, err := supervisor.PlanArming(w.ctx, supervisor.Options{Config: c})
		must(t, err)
		n = map[view.ArmState]int{}
		for _, p := range plans {
			if p.NS.Name != w.client.NSName {
				continue
			}
			n[p.State]++
			if p.Canary {
				canaries++
				if p.Then.Ends() != 24*time.Second {
					t.Errorf("the canary would have %v", p.Then)
				}
			} else if p.State == view.ArmPlanned && (p.Now.Keepalive || p.Then.Ends() != 25*time.Second) {
				t.Errorf("from %v to %v", p.Now, p.Then)
			}
		}
		return n, canaries
	}
	var n map[view.ArmState]int
	var canaries int
	eventually(t, 10*time.Second, "a canary would be picked, since nobody speaks", func() bool {
		n, canaries = plan()
		return canaries == 1
	})
	if n[view.ArmPlanned] != 2 || n[view.ArmExempt] != 1 {
		t.Errorf("planned: %v", n)
	}
	if timers := w.timers(); timers[tcpstate.TimerKeepalive] != 0 {
		t.Errorf("timers after planning: %v", timers)
	}
	g := startGuard(t, c, false)
	g.arms(2, view.ArmDone, 1)
	if n, canaries = plan(); n[view.ArmDone] != 2 || canaries != 1 {
		t.Errorf("beside a daemon: %v, %d canaries", n, canaries)
	}
	if f := g.Figures().Arms; f[supervisor.ArmSet] < 2 || f[supervisor.ArmGone]+f[supervisor.ArmError]+f[supervisor.ArmNotPermitted] != 0 {
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
