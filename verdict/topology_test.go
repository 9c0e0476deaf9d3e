package verdict

import (
	"net/netip"
	"testing"
	"time"
)

var (
	virtual = netip.MustParseAddrPort("10.96.0.1:6379")
	nodeX   = netip.MustParseAddrPort("10.9.0.1:6379")
	nodeY   = netip.MustParseAddrPort("10.9.0.2:6379")
)

// factBench steps a core by hand. Every connection is heard at every step unless quiet.
type factBench struct {
	t     *testing.T
	a     *auditor
	now   time.Duration
	in    Input
	conns map[uint64]Sample
	quiet bool
	asked []ConnKey // in the last step
}

func newFactBench(t *testing.T, change func(*Settings)) *factBench {
	set := profiles("balanced")
	set.Spread = 0
	set.OnFailed, set.OnRemoved, set.OnDemoted, set.OnReplaced = PolicyReap, PolicyReap, PolicyReap, PolicyReap
	if change != nil {
		change(&set)
	}
	return &factBench{t: t, a: newAuditor(set), now: 10 * time.Second, conns: map[uint64]Sample{}}
}

// connect introduces a connection that was opened now.
func (b *factBench) connect(cookie uint64, a Appeared) {
	a.Key, a.Permit = ConnKey{1, cookie}, MayReap
	if a.Opened == 0 {
		a.Opened = b.now
	}
	b.in.Appeared = append(b.in.Appeared, a)
	b.conns[cookie] = Sample{Key: a.Key, State: Established, Counters: Counters{SegsIn: 5, BytesReceived: 7}}
}

// step lets 100 ms pass and returns the cookies of what is to be reaped, and how many
// events of a type there were.
func (b *factBench) step() (reaps []Reap, events map[EventType]int) {
	b.t.Helper()
	b.now += 100 * time.Millisecond
	b.in.Now = b.now
	for cookie, s := range b.conns {
		if !b.quiet {
			s.SegsIn++
		}
		b.conns[cookie] = s
		b.in.Samples = append(b.in.Samples, s)
	}
	out, err := b.a.step(&b.in)
	if err != nil {
		b.t.Fatal(err)
	}
	b.in.Clear()
	b.asked = append(b.asked[:0], out.Ask...)
	events = map[EventType]int{}
	for _, e := range out.Events {
		events[e.Type]++
	}
	return append(reaps, out.Reap...), events
}

func (b *factBench) say(f EndpointFact) { b.in.Endpoints = append(b.in.Endpoints, f) }

func (b *factBench) done(r Reap, o ReapOutcome) {
	b.in.Reaped = append(b.in.Reaped, ReapResult{Key: r.Key, At: b.now, Outcome: o})
	if o == ReapDone {
		delete(b.conns, r.Key.Cookie)
	}
}

// A virtual address leads to several nodes. What is said about one of them is about the
// connections that lead to that one.
func TestFactsReachThroughVirtualAddresses(t *testing.T) {
	b := newFactBench(t, nil)
	b.connect(1, Appeared{Remote: virtual, Backend: nodeX, RunID: "x", Role: RolePrimary})
	b.connect(2, Appeared{Remote: virtual, Backend: nodeY, RunID: "y", Role: RolePrimary})
	b.step()
	// A probe of the virtual address that meets the other node says nothing about this one.
	b.in.Probes = append(b.in.Probes, Probe{ID: 1, Path: PathKey{NS: 1, Endpoint: virtual}, Started: b.now, Ended: b.now + 1, Outcome: Alive, Backend: nodeY, RunID: "y"})
	if r, _ := b.step(); len(r) > 0 {
		t.Fatalf("reaped %+v", r)
	}
	b.say(EndpointFact{Endpoint: nodeX, State: StateDemoted, Since: b.now})
	r, _ := b.step()
	if len(r) != 1 || r[0].Key.Cookie != 1 || !r[0].Live || r[0].Evidence.Rule != RuleDemoted {
		t.Fatalf("reaped %+v, want the connection to %v", r, nodeX)
	}
	b.done(r[0], ReapDone)
	b.in.Probes = append(b.in.Probes, Probe{ID: 2, Path: PathKey{NS: 1, Endpoint: virtual}, Started: b.now, Ended: b.now + 1, Outcome: Alive, Backend: nodeY, RunID: "z"})
	if r, _ = b.step(); len(r) != 1 || r[0].Key.Cookie != 2 || r[0].Evidence.Kinds != ProbeSay {
		t.Errorf("another process at %v: reaped %+v", nodeY, r)
	}
}

// When a RunID comes back that had been seen there before, several processes share the
// address, and who is connected to whom is not known.
func TestSeveralProcessesBehindAnAddress(t *testing.T) {
	b := newFactBench(t, func(s *Settings) { s.OnReplaced = PolicySignal })
	b.connect(1, Appeared{Remote: nodeX, RunID: "a"})
	b.step()
	told, over := 0, 0
	for _, run := range []string{"a", "b", "a", "b", "c", "d"} {
		b.say(EndpointFact{Endpoint: nodeX, State: StateOK, RunID: run, At: b.now, Single: true})
		_, events := b.step()
		told += events[ConnectionJudged]
		over += events[ConnectionHeard]
	}
	if told != 1 || over != 1 {
		t.Errorf("judged %d times and taken back %d times, want once", told, over)
	}
}

// One that closes while it waits for its turn is not asked for any more.
func TestClosedBeforeItsTurn(t *testing.T) {
	b := newFactBench(t, func(s *Settings) { s.Spread = 5 * time.Second })
	for cookie := range uint64(20) {
		b.connect(cookie+1, Appeared{Remote: nodeX})
	}
	b.step()
	b.say(EndpointFact{Endpoint: nodeX, State: StateRemoved})
	b.step()
	for cookie, s := range b.conns {
		s.State = Closing
		b.conns[cookie] = s
	}
	for range 100 {
		if r, _ := b.step(); len(r) > 0 {
			t.Fatalf("reaped %+v", r)
		}
	}
}

// What is said about an address is not about connections that are bound to an interface,
// behind which another server may have it; nor does who answers there count elsewhere.
func TestFactsDoNotReachThroughInterfaces(t *testing.T) {
	b := newFactBench(t, func(s *Settings) { s.Fence = true })
	b.connect(1, Appeared{Remote: nodeX, Interface: 7, RunID: "x", Role: RolePrimary})
	b.step()
	b.say(EndpointFact{Endpoint: nodeX, State: StateRemoved})
	if r, _ := b.step(); len(r) > 0 {
		t.Errorf("reaped %+v", r)
	}
	if f := b.a.core.out.Fence; len(f) > 0 {
		t.Errorf("fences %+v", f)
	}
	b.say(EndpointFact{Endpoint: nodeX, Forget: true})
	b.connect(2, Appeared{Remote: nodeX, RunID: "y"})
	b.say(EndpointFact{Endpoint: nodeX, RunID: "y", At: b.now, Single: true})
	b.step()
	b.in.Probes = append(b.in.Probes, Probe{ID: 1, Path: PathKey{NS: 1, Endpoint: nodeX, Interface: 7}, Started: b.now, Ended: b.now + 1, Outcome: Alive, RunID: "z"})
	if r, _ := b.step(); len(r) > 0 {
		t.Errorf("another process behind an interface: reaped %+v", r)
	}
}

// A sighting that comes in late changes nothing.
func TestLateSightings(t *testing.T) {
	b := newFactBench(t, nil)
	b.connect(1, Appeared{Remote: nodeX, RunID: "b"})
	b.say(EndpointFact{Endpoint: nodeX, RunID: "b", At: b.now})
	b.step()
	b.in.Probes = append(b.in.Probes, Probe{ID: 1, Path: PathKey{NS: 1, Endpoint: nodeX}, Started: 1, Ended: 2, Outcome: Alive, RunID: "a"})
	if r, _ := b.step(); len(r) > 0 {
		t.Errorf("reaped %+v", r)
	}
}

// Facts about endpoints that nobody here connects to are one entry each, until they are
// withdrawn.
func TestFactsWithoutConnections(t *testing.T) {
	b := newFactBench(t, func(s *Settings) { s.Fence = true })
	for range 3 {
		for i := range 1000 {
			b.say(EndpointFact{Endpoint: netip.AddrPortFrom(nodeX.Addr(), uint16(i)), State: StateRemoved, RunID: "a", Role: RolePrimary, At: b.now, Backend: nodeY})
		}
		b.step()
	}
	if c := b.a.core; len(c.nodes) != 1000 || len(c.endpoints)+len(c.out.Fence) != 0 {
		t.Errorf("%d nodes, %d endpoints, %d fences", len(c.nodes), len(c.endpoints), len(c.out.Fence))
	}
	for i := range 1000 {
		b.say(EndpointFact{Endpoint: netip.AddrPortFrom(nodeX.Addr(), uint16(i)), Forget: true})
	}
	b.step()
	if c := b.a.core; len(c.nodes)+len(c.review) != 0 {
		t.Errorf("%d nodes are left behind, %d to be reviewed", len(c.nodes), len(c.review))
	}
}

// A reap that spares the connection is tried once for a fact, and one that fails three
// times, a second apart, however much it is heard in between.
func TestTopologyReapsAreNotRepeated(t *testing.T) {
	for outcome, want := range map[ReapOutcome]int{ReapSpared: 1, ReapDryRun: 1, ReapFailed: maxFailures} {
		b := newFactBench(t, nil)
		b.connect(1, Appeared{Remote: nodeX})
		b.step()
		b.say(EndpointFact{Endpoint: nodeX, State: StateRemoved})
		n := 0
		for range 60 {
			r, _ := b.step()
			for _, x := range r {
				b.done(x, outcome)
			}
			n += len(r)
		}
		if n != want {
			t.Errorf("%s: %d reaps, want %d", outcome, n, want)
		}
		b.say(EndpointFact{Endpoint: nodeX, State: StateRemoved, Since: b.now})
		if r, _ := b.step(); len(r) != 1 {
			t.Errorf("%s: %d reaps for another fact", outcome, len(r))
		}
	}
}

// What the view says is held back by the breaker; when other evidence comes to it, the
// reap goes ahead with that.
func TestOtherEvidenceOvertakesTopology(t *testing.T) {
	b := newFactBench(t, func(s *Settings) { s.MaxShare = 0 })
	for i := range uint64(30) {
		b.connect(i, Appeared{Remote: nodeX})
	}
	b.step()
	b.say(EndpointFact{Endpoint: nodeX, State: StateRemoved})
	if r, events := b.step(); len(r) != 0 || events[GuardBreaker] != 1 {
		t.Fatalf("%d reaps, %v", len(r), events)
	}
	c := b.a.core
	k := c.conns[ConnKey{1, 3}]
	b.quiet = true
	b.a.known[k.key].askedAt = 1
	c.condemn(k, Evidence{Rule: RuleFlow, Kinds: Stall | ProbeSay, Silence: time.Minute}, PolicySignal, 1)
	if r, _ := b.step(); len(r) != 0 || k.reap != reapQueued {
		t.Fatal("a policy to signal has taken the queued reap away")
	}
	c.condemn(k, Evidence{Rule: RuleFlow, Kinds: Stall | ProbeSay, Silence: time.Minute}, PolicyReap, 1)
	if r, _ := b.step(); len(r) != 1 || r[0].Key != k.key || r[0].Live || r[0].Evidence.Rule != RuleFlow {
		t.Errorf("reaps: %+v", r)
	}
}

// Connections that are heard all the time still get their moment in the spread.
func TestLiveReapsAreSpread(t *testing.T) {
	b := newFactBench(t, func(s *Settings) { s.Spread = 10 * time.Second })
	for i := range uint64(50) {
		b.connect(i, Appeared{Remote: nodeX})
	}
	b.step()
	b.say(EndpointFact{Endpoint: nodeX, State: StateRemoved})
	var n [6]int
	for i := range n {
		r, _ := b.step()
		for _, x := range r {
			b.done(x, ReapDone)
		}
		n[i] = len(r)
	}
	if n[0] > 25 || n[0]+n[1]+n[2]+n[3]+n[4]+n[5] != 25 { // half of them is what the breaker lets through
		t.Errorf("%v reaps in steps of 100 ms", n)
	}
}

// A reap that was not tried, as what may be done had just changed, is neither done nor given
// up: the verdict stands, and is carried out a little later.
func TestPostponedReap(t *testing.T) {
	b := newFactBench(t, nil)
	b.connect(1, Appeared{Remote: nodeX, Role: RolePrimary})
	b.step()
	b.say(EndpointFact{Endpoint: nodeX, State: StateDemoted, Since: b.now})
	r, _ := b.step()
	if len(r) != 1 {
		t.Fatalf("reaped %+v, want the connection to the demoted node", r)
	}
	b.in.Reaped = append(b.in.Reaped, ReapResult{Key: r[0].Key, At: b.now, Postponed: true})
	if r, _ = b.step(); len(r) != 0 {
		t.Errorf("at once, again: %+v", r)
	}
	for range 4 {
		if r, _ = b.step(); len(r) > 0 {
			return
		}
	}
	t.Error("the connection was spared for good")
}

// TestFailedIsAsked: that the view calls a node failed ends no idle connection that was not
// asked, or that answers; one that leaves the question unanswered is ended.
func TestFailedIsAsked(t *testing.T) {
	for _, tt := range []struct {
		name            string
		mayAsk, answers bool
		reaps           int
	}{{"must not be asked", false, true, 0}, {"answers", true, true, 0}, {"is silent", true, false, 1}} {
		b := newFactBench(t, nil)
		b.connect(1, Appeared{Remote: nodeX, MayAsk: tt.mayAsk, NotAsked: "arm.mode is off"})
		b.step()
		b.quiet = true
		b.say(EndpointFact{Endpoint: nodeX, State: StateFailed, Since: b.now, Single: true})
		reaps, judged := 0, 0
		for range 30 {
			r, events := b.step()
			for _, key := range b.asked {
				b.in.Asked = append(b.in.Asked, Asked{Key: key, At: b.now})
				if tt.answers {
					s := b.conns[key.Cookie]
					s.SegsIn++
					s.LastAckRecv = 0
					b.conns[key.Cookie] = s
				}
			}
			judged += events[ConnectionJudged]
			if reaps += len(r); len(r) > 0 {
				break
			}
		}
		if reaps != tt.reaps || !tt.mayAsk && judged != 1 {
			t.Errorf("one that %s: %d reaps, judged %d times", tt.name, reaps, judged)
		}
	}
}
