package supervisor_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
)

func TestMain(m *testing.M) {
	lab.MaybeChild()
	maybeDrop()
	code := labtest.Run(m)
	os.RemoveAll(program.dir)
	os.Exit(code)
}

func TestSilentLossOfTheServer(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, arming(), false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	idle := w.run(w.client, lab.Subscriber, w.redis.Addr(), 2)
	g.ready(5)
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	for _, c := range []*lab.Client{busy, idle} {
		e := w.failure(c, lost)
		took := e.Time().Sub(lost)
		t.Logf("%s after %v", e.Errno, took)
		if e.Errno != "ECONNABORTED" || took > 3*time.Second {
			t.Errorf("got %s after %v, want ECONNABORTED soon after 700ms", e.Errno, took)
		}
		if took < 600*time.Millisecond {
			t.Errorf("reaped after %v, earlier than down_after allows", took)
		}
	}
	down := g.wait(time.Second, "endpoint.down", ofType(verdict.EndpointDown))
	if down.Endpoint != w.redis.Addr() || down.Evidence == nil || down.Evidence.Kinds != verdict.Stall|verdict.ProbeSay {
		t.Errorf("the finding says %+v", down)
	}
	r := g.wait(time.Second, "connection.reaped", ofType(verdict.ConnectionReaped))
	if r.Connection == nil || r.Connection.PID == 0 || !strings.HasPrefix(r.Connection.Comm, "lab-") || !strings.Contains(r.Text, "nothing heard") || r.Namespace != "rgsv-c" {
		t.Errorf("the audit record says %+v, connection %+v", r, r.Connection)
	}
	labtest.Must(t, w.server.Return())
	g.wait(10*time.Second, "endpoint.up", ofType(verdict.EndpointUp))
	for _, c := range []*lab.Client{busy, idle} {
		w.back(c, w.failure(c, lost))
	}
	g.wait(5*time.Second, "connection.recovered", ofType(verdict.ConnectionRecovered))
}

func TestOnlyOneFlowIsBroken(t *testing.T) {
	w := newWorld(t)
	c := base()
	c.Profile = config.Calm // has no part in this
	g := startGuard(t, c, false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	g.ready(3)
	pass(time.Second) // some clean traffic, as there always is
	_, err := w.DropFlow(busy.Local(1), w.redis.Addr())
	labtest.Must(t, err)
	cut := time.Now()
	e := w.failure(busy, cut)
	t.Logf("%s on connection %d after %v", e.Errno, e.Conn, e.Time().Sub(cut))
	if e.Conn != 1 || e.Errno != "ECONNABORTED" || e.Time().Sub(cut) > 3*time.Second {
		t.Errorf("got %+v", e)
	}
	if back := w.back(busy, e); back.Time().Sub(e.Time()) > time.Second {
		t.Errorf("back only after %v", back.Time().Sub(e.Time()))
	}
	if r := g.reaped(); len(r) != 1 || r[0].Evidence.Rule != verdict.RuleFlow {
		t.Errorf("reaped %+v, want the one", r)
	}
}

// With so many connections most are looked at rarely: the one whose flow breaks is
// found because the kernel tells that it retransmits, or, where it does not tell, at
// the next look that allWithin gets.
func TestOneFlowOfManyIsBroken(t *testing.T) {
	for _, tracepoints := range []config.Tracepoints{config.TracepointsAuto, config.TracepointsOff} {
		t.Run(tracepoints.String(), func(t *testing.T) {
			w := newWorld(t)
			c := base()
			c.Watch.Tracepoints = tracepoints
			g := startGuard(t, c, false)
			busy, err := w.client.Client(w.ctx, lab.ClientConfig{Addr: w.redis.Addr(), Conns: 600, Interval: time.Second, ReportEvery: time.Second})
			labtest.Must(t, err)
			labtest.Must(t, busy.Ready(w.ctx))
			g.ready(600)
			_, err = w.DropFlow(busy.Local(300), w.redis.Addr())
			labtest.Must(t, err)
			cut := time.Now()
			e := w.failure(busy, cut) // it writes within a second, and is looked at within three
			t.Logf("%s on connection %d after %v", e.Errno, e.Conn, e.Time().Sub(cut))
			if e.Conn != 300 || e.Errno != "ECONNABORTED" || e.Time().Sub(cut) > 8*time.Second {
				t.Errorf("got %+v after %v", e, e.Time().Sub(cut))
			}
			g.wait(time.Second, "the record of it", ofType(verdict.ConnectionReaped))
			if r := g.reaped(); len(r) != 1 || r[0].Evidence.Rule != verdict.RuleFlow {
				t.Errorf("reaped %+v, want the one", r)
			}
		})
	}
}

// Health checks start a process that connects, asks and ends. Each would cost a
// dump of every namespace that has opened something, were it taken for a connection
// whose owner cannot be told.
func TestShortLivedProcessesCostNoDumps(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	w.run(w.client, lab.Writer, w.redis.Addr(), 1)
	g.ready(1)
	before, told := g.Figures().Dumps, g.Figures().ConnectEvents
	const checks = 40
	for range checks {
		p, err := w.client.Start(w.ctx, exec.Command("redis-cli", "-h", w.redis.Addr().Addr().String(), "-p", fmt.Sprint(port), "PING"))
		labtest.Must(t, err)
		labtest.Must(t, p.Wait())
	}
	labtest.Within(t, 5*time.Second, "the kernel tells of them", func() bool { return g.Figures().ConnectEvents-told >= 2*checks })
	if n := g.Figures().Dumps - before; n > checks/4 { // a process may live on past the look at its beginning
		t.Errorf("%d dumps for %d health checks", n, checks)
	}
}

// Java's and Node's clients often have AF_INET6 sockets with v4 addresses.
func TestDualStackClientsAreSeenToo(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	busy, err := w.client.Client(w.ctx, lab.ClientConfig{Addr: w.redis.Addr(), Mapped: true, Interval: 20 * time.Millisecond})
	labtest.Must(t, err)
	labtest.Must(t, busy.Ready(w.ctx))
	g.ready(1)
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
		t.Errorf("got %s after %v", e.Errno, e.Time().Sub(lost))
	}
}

// A managed Redis fails over: the virtual address leads to another server, and
// the old connections lead nowhere.
func TestVirtualAddressMoves(t *testing.T) {
	w := newWorld(t)
	b, err := w.Server("b")
	labtest.Must(t, err)
	second, err := b.Redis(w.ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	vip, err := w.VIP("vip", netip.MustParseAddr("10.77.9.1"), port)
	labtest.Must(t, err)
	labtest.Must(t, vip.PointTo(w.server, port))
	g := startGuard(t, base(), false)
	busy := w.run(w.client, lab.Writer, vip.Addr, 3)
	g.ready(3)
	labtest.Must(t, w.server.Vanish())
	labtest.Must(t, vip.PointTo(b, port))
	moved := time.Now()
	e := w.failure(busy, moved)
	back := w.back(busy, e)
	t.Logf("%s after %v, back after %v", e.Errno, e.Time().Sub(moved), back.Time().Sub(moved))
	if back.Time().Sub(moved) > 4*time.Second {
		t.Errorf("back after %v", back.Time().Sub(moved))
	}
	if got, err := second.Do(w.ctx, "DBSIZE"); err != nil || fmt.Sprint(got) == "0" {
		t.Errorf("the new server has %v keys (%v)", got, err)
	}
}

func TestAShortPauseHarmsNobody(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	w.run(w.client, lab.Idle, w.redis.Addr(), 1)
	g.ready(4)
	for range 5 {
		labtest.Must(t, w.server.Vanish())
		pass(500 * time.Millisecond)
		labtest.Must(t, w.server.Return())
		w.answered(busy, time.Now().Add(time.Second))
	}
	if r := g.reaped(); len(r) > 0 {
		t.Errorf("reaped: %s", r[0].Text)
	}
	if n := busy.Totals().Errors; len(n) > 0 {
		t.Errorf("the client had errors: %v", n)
	}
}

func TestAFrozenServerIsOnlyTold(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	g.ready(3)
	labtest.Must(t, w.redis.Freeze())
	frozen := time.Now()
	down := g.wait(10*time.Second, "endpoint.down", ofType(verdict.EndpointDown))
	if down.Evidence.Rule != verdict.RuleUnresponsive {
		t.Errorf("down by rule %s: %s", down.Evidence.Rule, down.Text)
	}
	pass(5*time.Second - time.Since(frozen))
	labtest.Must(t, w.redis.Thaw())
	g.wait(5*time.Second, "endpoint.up", ofType(verdict.EndpointUp))
	w.answered(busy, time.Now())
	if r, n := g.reaped(), busy.Totals().Errors; len(r) > 0 || len(n) > 0 {
		t.Errorf("reaped %d, errors %v", len(r), n)
	}
}

// The node's own network goes dark: whatever is silent then proves nothing.
func TestTheNodeGoesDark(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	g.ready(3)
	labtest.Must(t, w.client.Vanish())
	dark := time.Now()
	doubt := g.wait(5*time.Second, "guard.doubt", ofType(verdict.GuardDoubt))
	if !strings.Contains(doubt.Text, "gateway silent") {
		t.Errorf("the finding says %q", doubt.Text)
	}
	pass(20*time.Second - time.Since(dark))
	if r := g.reaped(); len(r) > 0 {
		t.Errorf("reaped %d in the dark: %s", len(r), r[0].Text)
	}
	labtest.Must(t, w.client.Return())
	light := time.Now()
	t.Logf("back %v after the light", w.answered(busy, light).Time().Sub(light))
	g.wait(10*time.Second, "guard.doubt_over", ofType(verdict.GuardDoubtOver))
}
