package verdict

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// lone makes a world with one endpoint and n connections of one client to it.
func lone(t testing.TB, set Settings, seed uint64, n int, every time.Duration, kind behaviour) (*world, *simEndpoint) {
	w := newWorld(set, seed, func(err error) { t.Fatal(err) })
	ep := &simEndpoint{name: "A", addr: netip.MustParseAddrPort("10.9.0.1:6379"), rtt: time.Millisecond / 2}
	w.eps = []*simEndpoint{ep}
	cl := &simClient{name: "c", ns: 10, ep: ep, kind: kind, every: every, permit: MayReap, stays: true, back: 70 * time.Millisecond, timeout: 10 * time.Second}
	for range n {
		w.connect(cl)
	}
	return w, ep
}

// TestNoFalseReap sends a million requests over paths that lose one packet in ten
// in each direction, and another million over one on which everything is lost for
// one per cent of the time, in the profile that is the quickest to judge.
func TestNoFalseReap(t *testing.T) {
	for name, fault := range map[string]func(*world, *simEndpoint){
		"loss 10 %":       func(_ *world, ep *simEndpoint) { ep.loss = 0.1 },
		"bursts 30-80 ms": func(w *world, _ *simEndpoint) { w.burstShare = 0.01; w.burstLoop() },
		"bursts 200-500 ms": func(w *world, _ *simEndpoint) {
			w.burstShare, w.burstMin, w.burstMax = 0.01, 200*time.Millisecond, 500*time.Millisecond
			w.burstLoop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, ep := lone(t, profiles("fast"), 7, 200, 10*time.Millisecond, busy)
			fault(w, ep)
			for w.requests < 1_000_000 {
				w.run(10*time.Second, nil)
			}
			stalled := 0
			for _, e := range w.events {
				if e.Type == ConnectionStalled {
					stalled++
				}
			}
			t.Logf("%d requests in %v, %d steps, %d stalls seen, %d probes", w.requests, w.clock-100*time.Second, w.steps, stalled, w.probesRequested)
			for _, r := range w.reaps {
				t.Errorf("%s was reaped at %v: %s", r.name, r.at, r.reap.Evidence)
			}
		})
	}
}

// TestFewConnectionsNoFalseReap is the same with a single connection per
// endpoint, where there are no siblings to tell of losses, over many short lives.
func TestFewConnectionsNoFalseReap(t *testing.T) {
	for _, profile := range []string{"fast", "balanced"} {
		w, ep := lone(t, profiles(profile), 11, 1, 10*time.Millisecond, busy)
		ep.loss = 0.1
		w.run(10*time.Minute, nil)
		for _, r := range w.reaps {
			t.Errorf("%s: %s was reaped at %v: %s", profile, r.name, r.at, r.reap.Evidence)
		}
	}
}

// TestSuddenLoss has a path turn bad of which nothing bad was known: the history
// says clean while every fifth packet is lost. In the first second nobody can know
// better, so a connection without siblings may be unlucky; with siblings whose
// losses are made good none may be reaped.
func TestSuddenLoss(t *testing.T) {
	const seeds = 20
	for _, c := range []struct {
		loss  float64
		kind  behaviour
		conns int
		most  int // reaps in all runs
	}{
		{0.1, busy, 1, 1},
		{0.1, busy, 4, 0},
		{0.1, busy, 20, 0},
		{0.1, pipelined, 4, 0},
		{0.2, busy, 20, 0},
	} {
		reaped, requests := 0, 0
		for seed := range uint64(seeds) {
			w, ep := lone(t, profiles("fast"), seed, c.conns, 20*time.Millisecond, c.kind)
			w.run(30*time.Second, nil)
			before := w.requests
			ep.loss = c.loss
			w.run(30*time.Second, nil)
			requests += w.requests - before
			for _, r := range w.reaps {
				if reaped++; reaped > c.most {
					t.Errorf("loss %v, seed %d: %s was reaped: %s", c.loss, seed, r.name, r.reap.Evidence)
				}
			}
		}
		t.Logf("loss %2.0f %%, %-9s %2d connections: %6d requests, %d false reaps in %d runs", 100*c.loss, c.kind, c.conns, requests, reaped, seeds)
	}
}

// detection is what is measured from the fault to the reap.
type detection struct {
	name     string
	profile  string
	cut      bool // the flow only, not the endpoint
	p50, p99 time.Duration
}

// TestDetection measures how long it takes from a fault to the reap, at 200
// random phases of the tick, the writes and the fault.
func TestDetection(t *testing.T) {
	const phases = 200
	for _, d := range []detection{
		{"endpoint vanishes", "fast", false, 950 * time.Millisecond, 1500 * time.Millisecond},
		{"endpoint vanishes", "balanced", false, 2250 * time.Millisecond, 2800 * time.Millisecond},
		{"one flow cut", "fast", true, 750 * time.Millisecond, 0},
		{"one flow cut", "balanced", true, 750 * time.Millisecond, 0},
	} {
		var took []time.Duration
		rng := rand.New(rand.NewPCG(3, 4))
		for i := range phases {
			w, ep := lone(t, profiles(d.profile), uint64(i), 4, 20*time.Millisecond, busy)
			w.run(30*time.Second+time.Duration(rng.Int64N(int64(time.Second))), nil)
			start := w.clock
			victim := w.conns[0]
			if d.cut {
				victim.cut = true
			} else {
				ep.vanished = true
			}
			w.run(30*time.Second, func() bool {
				return slices.ContainsFunc(w.reaps, func(r simReap) bool { return r.conn == victim && r.out == ReapDone })
			})
			if len(w.reaps) == 0 {
				t.Fatalf("%s, %s, phase %d: never reaped", d.name, d.profile, i)
			}
			for _, r := range w.reaps {
				if d.cut && r.conn != victim {
					t.Errorf("%s: %s was reaped too: %s", d.name, r.name, r.reap.Evidence)
				}
			}
			took = append(took, w.clock-start)
		}
		slices.Sort(took)
		p50, p99 := took[phases/2], took[phases*99/100]
		t.Logf("%-18s %-9s p50 %5d ms  p99 %5d ms  max %5d ms", d.name, d.profile, p50.Milliseconds(), p99.Milliseconds(), took[phases-1].Milliseconds())
		if p50 > d.p50 || d.p99 != 0 && p99 > d.p99 {
			t.Errorf("%s, %s: p50 %v, p99 %v; at most %v and %v", d.name, d.profile, p50, p99, d.p50, d.p99)
		}
	}
}

// TestFlowDetectionByTraffic logs how the time to find a broken flow depends on
// how much was seen on the path before: a path is taken for clean only when
// enough has arrived on it.
func TestFlowDetectionByTraffic(t *testing.T) {
	for _, every := range []time.Duration{20 * time.Millisecond, time.Second} {
		for _, n := range []int{1, 40} {
			var took []time.Duration
			for i := range 20 {
				w, _ := lone(t, profiles("balanced"), uint64(i), n, every, busy)
				w.run(60*time.Second, nil)
				start := w.clock
				w.conns[n-1].cut = true // of many, one that is looked at once a second
				w.run(60*time.Second, func() bool { return len(w.reaped(start)) > 0 })
				took = append(took, w.clock-start)
			}
			slices.Sort(took)
			t.Logf("%3d connections, a request every %6v: p50 %6d ms, max %6d ms (a request may come %v after the cut)", n, every, took[10].Milliseconds(), took[19].Milliseconds(), every)
		}
	}
}

// quietCore is a core that tracks 2,000 connections in 200 namespaces to 10
// endpoints, and the samples of a quiet tick.
func quietCore(tb testing.TB) (*Core, *Input) {
	set := profiles("balanced")
	set.Fence = true
	c := New(set)
	in := &Input{Now: 100 * time.Second}
	for i := range 2000 {
		in.Appeared = append(in.Appeared, Appeared{
			Key: ConnKey{NS(2 + i%200), uint64(i + 1)}, Permit: MayReap, Owner: fmt.Sprint("p", i%200),
			Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i % 200 / 20)}), 6379),
		})
	}
	c.Step(in)
	if c.Tracked() != 2000 || len(c.endpoints) != 10 {
		tb.Fatal(c.Tracked(), len(c.endpoints))
	}
	keys := make([]ConnKey, 0, 2000)
	for _, a := range in.Appeared {
		keys = append(keys, a.Key)
	}
	in.Clear()
	for i := range keys {
		in.Samples = append(in.Samples, Sample{Key: keys[i], State: Established, RTT: time.Millisecond, Counters: Counters{BytesReceived: 7}})
	}
	return c, in
}

// quietTick lets 200 ms pass in which every connection was answered, and the cluster view
// says the same as before.
func quietTick(c *Core, in *Input) {
	in.Now += 200 * time.Millisecond
	in.Endpoints = in.Endpoints[:0]
	for i := range 10 {
		role, state := RolePrimary, StateOK
		if i == 0 {
			role, state = RoleReplica, StateFailed // for others
		}
		in.Endpoints = append(in.Endpoints, EndpointFact{
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), 6379), At: in.Now,
			Target: "orders", State: state, Since: 100 * time.Second, Role: role, RunID: "a", Policies: Policies{OnDown: PolicyReap},
		})
	}
	for i := range in.Samples {
		s := &in.Samples[i]
		s.SegsIn++
		s.DataSegsOut++
		s.BytesReceived += 7
		s.LastDataSent = 3 * time.Millisecond
		s.LastDataRecv, s.LastAckRecv = 2*time.Millisecond, 2*time.Millisecond
	}
	// Rare baseline probes are asked for; here they all work.
	in.Probes = in.Probes[:0]
	for _, p := range c.Step(in).Probe {
		in.Probes = append(in.Probes, Probe{ID: uint64(in.Now), Path: p.Path, Started: in.Now, Ended: in.Now + time.Millisecond, Outcome: Alive})
	}
}

// TestQuietStepAllocatesNothing: the steady state of a node costs no garbage.
func TestQuietStepAllocatesNothing(t *testing.T) {
	c, in := quietCore(t)
	for range 1000 {
		quietTick(c, in) // until all baselines are known
	}
	if n := testing.AllocsPerRun(100, func() { quietTick(c, in) }); n > 0 {
		t.Errorf("%v allocations a step", n)
	}
}

// BenchmarkStep is one quiet step: all of 2,000 connections looked at, or only
// the 200 representatives.
func BenchmarkStep(b *testing.B) {
	for _, samples := range []int{2000, 600, 0} {
		b.Run(fmt.Sprintf("%d_samples", samples), func(b *testing.B) {
			c, in := quietCore(b)
			for range 300 {
				quietTick(c, in)
			}
			in.Samples = in.Samples[:samples]
			b.ReportAllocs()
			for b.Loop() {
				quietTick(c, in)
			}
		})
	}
}
