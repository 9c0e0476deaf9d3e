package verdict

import (
	"net/netip"
	"testing"
	"time"
)

// pathWorld is a node with connections from several namespaces to one endpoint, of
// which some namespaces are cut off from it by themselves (a policy, a fault of the
// pod's own network), so that link, gateway and everybody else are fine.
type pathWorld struct {
	core   *Core
	in     *Input
	now    time.Duration
	conns  []*pathConn
	cut    map[NS]bool
	cutAt  time.Duration
	probes []Probe
	nextID uint64
	reaped map[NS]int
	downs  map[NS]int
	// rare are namespaces whose connections are looked at only when they are new
	// or a verdict asks for it.
	rare map[NS]bool
}

type pathConn struct {
	key       ConnKey
	busy      bool
	fed       bool // its server sends something at every tick
	known     bool // it was looked at
	segs, out uint32
	retrans   uint32
	sent      time.Duration
	received  time.Duration
	unacked   uint32
}

var pathEndpoint = netip.MustParseAddrPort("10.0.0.5:6379")

func newPathWorld(busy, idle []NS) *pathWorld {
	set := profiles("balanced")
	set.HostNS = 1
	w := &pathWorld{core: New(set), in: &Input{}, now: time.Second, cut: map[NS]bool{}, reaped: map[NS]int{}, downs: map[NS]int{}, rare: map[NS]bool{}}
	add := func(ns NS, busy bool) {
		k := &pathConn{key: ConnKey{ns, uint64(len(w.conns) + 1)}, busy: busy, segs: 10, sent: w.now, received: w.now}
		w.conns = append(w.conns, k)
		w.in.Appeared = append(w.in.Appeared, Appeared{Key: k.key, Local: netip.MustParseAddrPort("10.1.0.1:1000"), Remote: pathEndpoint, Permit: MayReap, MayAsk: true})
	}
	for _, ns := range busy {
		add(ns, true)
	}
	for _, ns := range idle {
		add(ns, false)
	}
	return w
}

// run lets time pass in ticks of 100 ms.
func (w *pathWorld) run(d time.Duration) {
	const tick = 100 * time.Millisecond
	for end := w.now + d; w.now < end; w.now += tick {
		for _, k := range w.conns {
			w.traffic(k)
		}
		pending := w.probes[:0]
		for _, p := range w.probes {
			switch dead := w.cut[p.Path.NS] && p.Started >= w.cutAt; {
			case !dead:
				p.Outcome, p.Ended = Alive, p.Started+time.Millisecond
			case w.now-p.Started >= time.Second:
				p.Outcome, p.Ended = Dead, w.now
			default:
				pending = append(pending, p)
				continue
			}
			w.in.Probes = append(w.in.Probes, p)
		}
		w.probes = pending
		w.in.Now = w.now
		out := w.core.Step(w.in)
		w.in.Clear()
		for _, e := range out.Events {
			if e.Type == EndpointDown {
				w.downs[e.Path.NS]++
			}
		}
		for _, r := range out.Reap {
			w.reaped[r.Key.NS]++
			w.in.Reaped = append(w.in.Reaped, ReapResult{Key: r.Key, At: w.now, Outcome: ReapDone})
		}
		for _, key := range out.Ask {
			w.in.Asked = append(w.in.Asked, Asked{Key: key, At: w.now})
			for _, k := range w.conns {
				if k.key != key {
					continue
				}
				if !w.cut[key.NS] {
					k.segs++
					k.received = w.now
				}
				w.look(k)
			}
		}
		for _, p := range out.Probe {
			w.nextID++
			pr := Probe{ID: w.nextID, Path: p.Path, Started: w.now}
			w.in.Probes = append(w.in.Probes, pr)
			w.probes = append(w.probes, pr)
		}
		for _, p := range out.NextHop {
			w.in.NextHops = append(w.in.NextHops, NextHop{Path: p, At: w.now, Gateway: Reachable})
		}
		for _, p := range out.Look {
			for _, k := range w.conns {
				if k.key.NS == p.NS {
					w.look(k)
				}
			}
		}
		for _, o := range out.Unrelated {
			w.in.Unrelated = append(w.in.Unrelated, Unrelated{NS: o.Path.NS, At: w.now, Heard: 1})
		}
	}
}

// traffic is what one connection does in a tick.
func (w *pathWorld) traffic(k *pathConn) {
	switch {
	case k.fed && !w.cut[k.key.NS]:
		k.segs++
		k.received = w.now
	case k.busy && !w.cut[k.key.NS]:
		k.segs++
		k.out++
		k.received, k.sent, k.unacked, k.retrans = w.now, w.now-time.Millisecond, 0, 0
	case k.busy && k.unacked == 0:
		k.unacked, k.sent = 1, w.now
		k.out++
	case k.busy:
		n := uint32(0)
		for at := 200 * time.Millisecond; at <= w.now-w.cutAt; at *= 2 {
			n++
		}
		if n > k.retrans {
			k.retrans, k.sent = n, w.now
			k.out++
		}
	}
	if !w.rare[k.key.NS] || !k.known {
		w.look(k)
	}
}

// look samples a connection.
func (w *pathWorld) look(k *pathConn) {
	k.known = true
	s := Sample{Key: k.key, State: Established, DataSegsOut: k.out, TotalRetrans: k.retrans, Unacked: k.unacked, RTT: time.Millisecond,
		LastDataSent: w.now - k.sent, LastDataRecv: w.now - k.received, LastAckRecv: w.now - k.received,
		Counters: Counters{SegsIn: k.segs, BytesReceived: uint64(k.segs) * 5}}
	if k.unacked > 0 {
		s.Timer, s.Retrans = RetransmitTimer, uint8(k.retrans)
	}
	w.in.Samples = append(w.in.Samples, s)
}

func (w *pathWorld) sever(list ...NS) {
	w.cutAt = w.now
	for _, ns := range list {
		w.cut[ns] = true
	}
}

// A pod that is cut off by itself is reaped; what it has seen must not harm the
// idle connections of others, of which one is answered all the time.
func TestOnePathDownHarmsNobodyElse(t *testing.T) {
	for name, busy := range map[string][]NS{"another is busy": {10, 20}, "all others are idle": {10}} {
		w := newPathWorld(busy, []NS{30, 30, 40})
		w.run(20 * time.Second)
		w.sever(10)
		w.run(20 * time.Second)
		if w.reaped[10] != 1 {
			t.Errorf("%s: the pod that is cut off: %d reaped, want its one", name, w.reaped[10])
		}
		if w.reaped[20]+w.reaped[30]+w.reaped[40] != 0 {
			t.Errorf("%s: others' connections were reaped: %v", name, w.reaped)
		}
		if w.downs[10] != 1 {
			t.Errorf("%s: called down %d times, want once: what works from elsewhere does not bring this path up", name, w.downs[10])
		}
	}
}

// When the endpoint itself is gone a second namespace's probe says so too, and the
// idle connections of all are reaped.
func TestAllPathsDownTakesTheIdleAlong(t *testing.T) {
	w := newPathWorld([]NS{10}, []NS{30, 30, 40})
	w.run(20 * time.Second)
	w.sever(10, 20, 30, 40)
	w.run(10 * time.Second)
	if w.reaped[10] != 1 || w.reaped[30] != 2 || w.reaped[40] != 1 {
		t.Errorf("reaped %v, want all", w.reaped)
	}
}

// Two namespaces that are cut off are witnesses enough for each other, and none for a third,
// whose subscribers are fine and looked at every few seconds only.
func TestOthersSilenceProvesNothing(t *testing.T) {
	w := newPathWorld([]NS{10, 20}, []NS{30, 30})
	w.rare[30] = true
	w.conns[3].fed = true
	w.run(20 * time.Second)
	w.sever(10, 20)
	w.run(20 * time.Second)
	if w.reaped[10]+w.reaped[20] != 2 {
		t.Errorf("those that are cut off: %v reaped, want their two", w.reaped)
	}
	if w.reaped[30] != 0 || w.downs[30] != 0 {
		t.Errorf("connections whose sibling was heard: %d reaped, called down %d times", w.reaped[30], w.downs[30])
	}
}

// A namespace with a thousand condemned connections does not keep another's one
// waiting.
func TestNamespacesTakeTurnsInTheQueue(t *testing.T) {
	set := profiles("balanced")
	set.Spread = 0
	c := New(set)
	in := &Input{Now: time.Second}
	add := func(ns NS, n int) {
		for i := range n {
			in.Appeared = append(in.Appeared, Appeared{Key: ConnKey{ns, uint64(ns)<<20 + uint64(i)}, Remote: pathEndpoint, Permit: MayReap})
		}
	}
	add(1, 1000)
	add(2, 1)
	c.Step(in)
	in.Clear()
	for _, k := range c.conns {
		c.condemn(k, Evidence{Rule: RuleDown, Kinds: Stall | ProbeSay}, PolicyReap, 1001)
	}
	in.Now = time.Second + time.Millisecond
	out := c.Step(in)
	if len(out.Reap) < set.Burst || len(out.Reap) > set.Burst+10 {
		t.Fatalf("%d reaps at once, want about the burst of %d", len(out.Reap), set.Burst)
	}
	for _, r := range out.Reap {
		if r.Key.NS == 2 {
			return
		}
	}
	t.Error("the namespace with one connection was not among the first")
}
