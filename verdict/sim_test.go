package verdict

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// The simulator: a node with namespaces, clients and their TCP connections, Redis
// endpoints, faults, and a supervisor around the core. Time is virtual, chance
// comes from a seed, so every run can be had again.
//
// The TCP timers are those measured (tcpstate/blackhole_test.go, facts.md): data
// goes out at 0, again at +209 ms (tail loss probe), +416, +834 and then at twice
// the distance each time. A flow whose path is healed is heard at its next
// transmission, not before.

const (
	jiffy      = 4 * time.Millisecond // the kernel's times have this grain (HZ=250)
	tailProbe  = 209 * time.Millisecond
	firstRTO   = 207 * time.Millisecond // from the loss probe on
	maxRTO     = 120 * time.Second
	watchTick  = 200 * time.Millisecond
	suspectGap = 100 * time.Millisecond
	hopWait    = 300 * time.Millisecond // how long package probe waits for a neighbour
	// representatives of a path are looked at every tick, the others once a second.
	representatives = 3
)

// behaviour is what an application does on its connection.
type behaviour string

const (
	busy       behaviour = "busy"       // request, reply, pause
	pipelined  behaviour = "pipelined"  // requests without waiting for replies
	idle       behaviour = "idle"       // nothing, a pooled connection
	subscriber behaviour = "subscriber" // listens to what is published
	blocking   behaviour = "blocking"   // a BLPOP: acknowledged, no reply for a long time
)

type simEndpoint struct {
	name     string
	addr     netip.AddrPort
	iface    uint32 // that its connections are bound to
	rtt      time.Duration
	vanished bool
	frozen   bool
	refusing bool
	onLink   bool
	loss     float64 // each way
	lossUp   float64 // toward it, beside that
	oneWay   bool    // nothing gets to it, while it is heard
	synLost  bool    // connection requests get lost
	full     bool    // its accept queue is full
	hole     bool    // full-sized segments get lost
	noProbe  bool    // a filter drops what we send, but not what applications do
	mute     bool    // it never answers a PING
	sidecar  bool    // something on the way answers connection requests, and nothing else gets through
	run      string  // the process that answers new connections; empty: it does not say
	role     Role
}

type simSpace struct {
	ns            NS
	linkDown      bool
	gatewaySilent bool
	noGateway     bool
	dropped       bool          // what it sends is dropped beyond its gateway
	unrelated     int           // connections that have nothing to do with Redis
	unrelatedDead time.Duration // since when those stall; 0 is not
}

func (s *simSpace) blocked() bool { return s != nil && (s.linkDown || s.gatewaySilent || s.dropped) }

// simClient is a process with connections.
type simClient struct {
	name    string
	ns      NS
	ep      *simEndpoint
	kind    behaviour
	every   time.Duration
	permit  Permit
	why     string
	keep    time.Duration // keepalive interval; 0 is off
	stays   bool          // does not come back after an error
	cut     bool          // the flow of its first connection is dropped
	large   bool          // what it sends fills segments
	noAsk   bool          // it may not be asked
	back    time.Duration // how long it takes to connect again
	timeout time.Duration // of connect
	made    int
}

type simConn struct {
	blocked bool // its process does not let it be looked at
	key     ConnKey
	name    string
	client  *simClient
	ep      *simEndpoint
	state   State
	told    bool // known to the core
	closed  bool
	cut     bool    // its flow is dropped silently, others' are not
	zero    bool    // the peer's window is closed
	oneWay  bool    // nothing gets to the peer, which is heard
	loss    float64 // of round trips on its own way, one of several
	pending bool    // the peer has not accepted it yet

	gen      int // bumped to make pending timers void
	inFlight int
	tries    int // transmissions of what is in flight
	wantsRep bool
	probes   uint8 // unanswered keepalive or zero-window probes
	opened   time.Duration

	run  string // the process at the other end
	role Role   // of it when it was opened

	dataSent, dataRecv, ackRecv time.Duration
	segsOut, retrans            uint32
	n                           Counters
	lookUntil                   time.Duration // it was asked
	answered                    time.Duration // when its peer last answered an empty segment
}

type simEvent struct {
	at  time.Duration
	seq int
	do  func()
}

type world struct {
	*auditor
	rng     *rand.Rand
	heap    []simEvent
	seq     int
	clock   time.Duration
	phase   time.Duration // of the ticks
	eps     []*simEndpoint
	spaces  []*simSpace
	clients []*simClient
	conns   []*simConn // living ones, oldest first
	in      Input
	fail    func(error)

	cookie, probeID uint64
	tickNo          int
	suspects        map[PathKey]bool
	stepAt          time.Duration // when a step is due; 0 is none
	hot             map[NS]time.Duration
	probeTimeout    time.Duration
	late            time.Duration
	pausedUntil     time.Duration // our own loop stands still until then
	// bursts: everything is lost for burstMin to burstMax, burstShare of the time
	burstShare         float64
	burstMin, burstMax time.Duration
	inBurst            bool
	// opens tells the core when a connection was opened
	opens bool
	// The cluster view says facts, asks every node each second (a poll), and what comes
	// of the fences that the core wants is standing, refused or never told.
	facts    map[netip.AddrPort]EndpointFact
	polling  bool
	fencing  string
	fences   map[PathKey]FenceStanding // those that are wanted
	lastWant []Fence

	// what has happened
	marked          time.Duration // the last fault
	reaps           []simReap
	events          []Event
	requests        int
	steps           int
	probesRequested int // probes
	asksRequested   int
	asked           int
}

type simReap struct {
	at   time.Duration
	name string
	conn *simConn
	reap Reap
	out  ReapOutcome
	// alive says that the connection would still have worked: a false verdict.
	alive bool
}

func newWorld(set Settings, seed uint64, fail func(error)) *world {
	w := &world{
		auditor: newAuditor(set), rng: rand.New(rand.NewPCG(seed, 0x5264)), fail: fail,
		suspects: map[PathKey]bool{}, hot: map[NS]time.Duration{}, probeTimeout: 300 * time.Millisecond,
		facts: map[netip.AddrPort]EndpointFact{}, fences: map[PathKey]FenceStanding{}, opens: true,
		burstMin: 30 * time.Millisecond, burstMax: 80 * time.Millisecond, cookie: 100,
	}
	// A node has been up for a while when the guard starts.
	w.clock = 100 * time.Second
	w.phase = time.Duration(w.rng.Int64N(int64(watchTick)))
	w.at(w.clock+w.phase, w.tick)
	return w
}

// --- time

func (w *world) at(t time.Duration, do func()) {
	w.seq++
	w.heap = append(w.heap, simEvent{t, w.seq, do})
	i := len(w.heap) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !w.before(i, p) {
			break
		}
		w.heap[i], w.heap[p] = w.heap[p], w.heap[i]
		i = p
	}
}

func (w *world) before(i, j int) bool {
	a, b := &w.heap[i], &w.heap[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (w *world) after(d time.Duration, do func()) { w.at(w.clock+d, do) }

func (w *world) pop() simEvent {
	top := w.heap[0]
	n := len(w.heap) - 1
	w.heap[0] = w.heap[n]
	w.heap[n] = simEvent{}
	w.heap = w.heap[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && w.before(c+1, c) {
			c++
		}
		if !w.before(c, i) {
			break
		}
		w.heap[i], w.heap[c] = w.heap[c], w.heap[i]
		i = c
	}
	return top
}

// run lets d pass, or less if until says so.
func (w *world) run(d time.Duration, until func() bool) {
	end := w.clock + d
	for w.heap[0].at <= end {
		e := w.pop()
		w.clock = e.at
		e.do()
		if until != nil && until() {
			return
		}
	}
	w.clock = end
}

// --- the network

func (w *world) space(ns NS) *simSpace {
	for _, s := range w.spaces {
		if s.ns == ns {
			return s
		}
	}
	s := &simSpace{ns: ns}
	w.spaces = append(w.spaces, s)
	return s
}

// reach says whether packets get from ns to ep and back at all.
func (w *world) reach(ns NS, ep *simEndpoint) bool {
	return !ep.vanished && !w.space(ns).blocked() && !w.space(w.set.HostNS).blocked()
}

// trip says whether a round trip that starts now comes back.
func (w *world) trip(ns NS, ep *simEndpoint) bool {
	if !w.reach(ns, ep) || w.inBurst {
		return false
	}
	return ep.loss+ep.lossUp == 0 || w.rng.Float64() < (1-ep.loss)*(1-ep.loss)*(1-ep.lossUp)
}

// connects says whether a connection request that is sent now is answered.
func (w *world) connects(ns NS, ep *simEndpoint) bool {
	return !ep.synLost && !ep.oneWay && !ep.full && w.trip(ns, ep)
}

// returns says whether a segment of c that is sent now is answered.
func (w *world) returns(c *simConn) bool {
	if c.ep.sidecar || c.loss > 0 && w.rng.Float64() < c.loss {
		return false
	}
	return !c.cut && !c.oneWay && !c.ep.oneWay && !c.pending && w.trip(c.key.NS, c.ep)
}

// tooLarge says that what c sends gets lost for its size. Its first request is small.
func (c *simConn) tooLarge() bool { return c.ep.hole && c.client.large && c.n.BytesReceived > 0 }

// repeatLoop has a peer that nothing gets through to repeat its last reply.
func (w *world) repeatLoop(c *simConn, pause time.Duration) {
	if c.closed || !c.oneWay && !c.ep.oneWay {
		return
	}
	if w.reach(c.key.NS, c.ep) && !c.cut && c.n.BytesReceived > 0 {
		c.n.SegsIn++
		c.n.DataSegsIn++
		c.ackRecv = w.clock
	}
	w.after(pause, func() { w.repeatLoop(c, min(2*pause, maxRTO)) })
}

// emptySegment is the answer to an empty segment, at most one in half a second.
func (w *world) emptySegment(c *simConn, then func()) {
	if w.returns(c) && c.ep.refusing {
		w.after(c.ep.rtt, func() { w.gone(c) }) // nobody knows the connection there
		return
	}
	if !w.returns(c) || c.answered != 0 && w.clock-c.answered < 500*time.Millisecond {
		return
	}
	c.answered = w.clock
	w.after(c.ep.rtt, func() {
		if !c.closed {
			c.n.SegsIn++
			c.ackRecv = w.clock
			then()
		}
	})
}

// ask sends an empty probe.
func (w *world) ask(key ConnKey) {
	for _, c := range w.conns {
		if c.key == key && c.state == Established {
			w.asked++
			c.lookUntil = w.clock + time.Second
			w.in.Asked = append(w.in.Asked, Asked{Key: key, At: w.clock})
			if c.client.noAsk {
				w.fail(fmt.Errorf("at %v: %s was asked, and may not be", w.clock, c.name))
			}
			w.emptySegment(c, func() {})
			return
		}
	}
	w.in.Asked = append(w.in.Asked, Asked{Key: key, Unable: "it is gone"})
}

// burstLoop switches bursts on and off.
func (w *world) burstLoop() {
	if w.burstShare == 0 {
		w.inBurst = false
		return
	}
	length := w.burstMin + time.Duration(w.rng.Int64N(int64(w.burstMax-w.burstMin)+1))
	mean := float64(w.burstMin+w.burstMax) / 2 * (1 - w.burstShare) / w.burstShare
	w.inBurst = !w.inBurst
	if w.inBurst {
		w.after(length, w.burstLoop)
	} else {
		w.after(time.Duration(mean*(0.5+w.rng.Float64())), w.burstLoop)
	}
}

// --- a TCP connection

func (w *world) connect(cl *simClient) *simConn {
	cl.made++
	w.cookie++
	c := &simConn{
		key: ConnKey{cl.ns, w.cookie}, name: fmt.Sprintf("%s.%d", cl.name, cl.made), client: cl, ep: cl.ep, state: SynSent,
		opened: w.clock, ackRecv: w.clock, dataRecv: w.clock, dataSent: w.clock,
	}
	c.cut = cl.cut && cl.made == 1
	w.conns = append(w.conns, c)
	w.syn(c, 0)
	if cl.timeout > 0 {
		w.after(cl.timeout, func() {
			if c.state == SynSent && !c.closed {
				w.gone(c)
			}
		})
	}
	return c
}

// syn transmits the connection request: at 0, 1, 2, 3, 4, 5, 7, 11 s and so on
// (tcp_syn_linear_timeouts).
func (w *world) syn(c *simConn, n int) {
	if c.closed || c.state != SynSent {
		return
	}
	if n > 0 {
		c.retrans++
	}
	if w.fences[c.ep.path(c.key.NS)] == FenceStands {
		w.after(time.Millisecond, func() { w.gone(c) })
		return
	}
	if c.ep.full && !c.ep.synLost && w.trip(c.key.NS, c.ep) && w.rng.IntN(3) == 0 {
		c.pending = true // its side takes the answer for an acceptance
		w.after(c.ep.rtt, func() { w.established(c) })
		return
	}
	if !c.cut && w.connects(c.key.NS, c.ep) {
		if c.ep.refusing {
			w.after(c.ep.rtt, func() { w.gone(c) })
			return
		}
		w.after(c.ep.rtt, func() { w.established(c) })
		return
	}
	pause := time.Second
	for i := 4; i < n; i++ {
		pause *= 2
	}
	w.after(pause, func() { w.syn(c, n+1) })
}

func (w *world) established(c *simConn) {
	if c.closed || c.state != SynSent {
		return
	}
	c.state = Established
	c.retrans = 0
	c.run, c.role = c.ep.run, c.ep.role
	c.n.SegsIn, c.n.BytesAcked, c.ackRecv = 1, 1, w.clock
	w.write(c) // every client says hello
	if c.client.kind == busy || c.client.kind == pipelined {
		w.after(time.Duration(w.rng.Int64N(int64(c.client.every))), func() { w.writeLoop(c) })
	}
	if c.client.kind == blocking {
		w.after(50*time.Millisecond, func() { w.write(c) })
	}
	if c.client.kind == subscriber {
		w.after(c.client.every, func() { w.publishLoop(c) })
	}
	if c.client.keep > 0 {
		w.after(c.client.keep, func() { w.keepalive(c) })
	}
}

func (w *world) writeLoop(c *simConn) {
	if c.closed {
		return
	}
	if c.client.kind == pipelined || c.inFlight == 0 && !c.wantsRep {
		w.write(c)
	}
	w.after(c.client.every, func() { w.writeLoop(c) })
}

// write is the application's send.
func (w *world) write(c *simConn) {
	w.requests++
	switch {
	case c.zero:
		if c.inFlight == 0 && c.probes == 0 {
			w.windowProbe(c, tailProbe)
		}
	case c.inFlight == 0:
		c.inFlight, c.tries, c.wantsRep = 1, 0, true
		w.transmit(c)
	case c.tries == 1 && c.inFlight < 10:
		// The window lets more out until the first timeout.
		c.inFlight++
		c.segsOut++
		c.dataSent = w.clock
		if w.returns(c) && !c.ep.refusing && !c.tooLarge() {
			g := c.gen
			w.after(c.ep.rtt, func() { w.acked(c, g) })
		}
	}
}

// transmit sends what is in flight, for the first time or again.
func (w *world) transmit(c *simConn) {
	c.tries++
	c.segsOut++
	if c.tries > 1 {
		c.retrans++
	}
	c.dataSent = w.clock
	g := c.gen
	if w.returns(c) && !c.tooLarge() {
		if c.ep.refusing {
			w.after(c.ep.rtt, func() { w.gone(c) })
			return
		}
		w.after(c.ep.rtt, func() { w.acked(c, g) })
	}
	pause := max(tailProbe, 2*c.ep.rtt)
	if c.tries > 1 {
		pause = max(firstRTO, 2*c.ep.rtt)
		for i := 2; i < c.tries; i++ {
			pause = min(2*pause, maxRTO)
		}
	}
	w.after(pause, func() {
		if c.gen == g && !c.closed {
			w.transmit(c)
		}
	})
}

// acked is the arrival of an acknowledgement, and of the reply unless the
// process is frozen or blocks.
func (w *world) acked(c *simConn, g int) {
	if c.closed || c.gen != g {
		return
	}
	c.gen++
	c.n.Delivered += uint32(c.inFlight)
	c.n.BytesAcked += uint64(c.inFlight)
	c.inFlight, c.tries = 0, 0
	c.n.SegsIn++
	c.ackRecv = w.clock
	if c.ep.frozen || c.client.kind == blocking && c.n.BytesReceived > 0 {
		return
	}
	w.replied(c)
}

func (w *world) replied(c *simConn) {
	c.wantsRep = false
	c.n.DataSegsIn++
	c.n.BytesReceived += 7
	c.dataRecv = w.clock
}

func (w *world) publishLoop(c *simConn) {
	if c.closed {
		return
	}
	if !c.cut && w.trip(c.key.NS, c.ep) && !c.ep.frozen {
		c.n.SegsIn++
		c.n.DataSegsIn++
		c.n.BytesReceived += 20
		c.dataRecv, c.ackRecv = w.clock, w.clock
	}
	w.after(c.client.every, func() { w.publishLoop(c) })
}

// keepalive probes a peer of which nothing was heard for as long, as the kernel does
// (tcp_keepalive_timer): the answer to an ask puts the next probe off.
func (w *world) keepalive(c *simConn) {
	if c.closed {
		return
	}
	if idle := w.clock - max(c.ackRecv, c.dataRecv); c.probes == 0 && idle < c.client.keep {
		w.after(c.client.keep-idle, func() { w.keepalive(c) })
		return
	}
	if c.inFlight == 0 {
		c.probes++
		w.emptySegment(c, func() { c.probes = 0 })
	}
	w.after(c.client.keep, func() { w.keepalive(c) })
}

// windowProbe asks a peer with a closed window whether it is open again.
func (w *world) windowProbe(c *simConn, pause time.Duration) {
	if c.closed || !c.zero {
		return
	}
	c.probes++
	w.emptySegment(c, func() { c.probes = 0 })
	w.after(pause, func() { w.windowProbe(c, min(2*pause, maxRTO)) })
}

// gone ends a connection otherwise than by a reap.
func (w *world) gone(c *simConn) {
	if c.closed {
		return
	}
	w.end(c)
	if c.told {
		w.in.Gone = append(w.in.Gone, c.key)
	}
}

func (w *world) end(c *simConn) {
	c.closed = true
	i := slices.Index(w.conns, c)
	w.conns = slices.Delete(w.conns, i, i+1)
	if !c.client.stays {
		w.after(c.client.back, func() { w.connect(c.client) })
	}
}

// works says whether c would still be answered: a reap of it is a false one.
func (w *world) works(c *simConn) bool {
	return !c.cut && !c.oneWay && !c.ep.oneWay && !c.ep.sidecar && w.reach(c.key.NS, c.ep) && !c.ep.refusing && !c.ep.frozen && !c.tooLarge()
}

func jiffies(t time.Duration) time.Duration { return t / jiffy * jiffy }

func (w *world) since(t time.Duration) time.Duration { return jiffies(w.clock) - jiffies(t) }

func (w *world) sample(c *simConn) Sample {
	s := Sample{
		Key: c.key, State: c.state, RTT: c.ep.rtt, RTO: rtoMin + 2*c.ep.rtt, Counters: c.n, DataSegsOut: c.segsOut, TotalRetrans: c.retrans,
		LastDataSent: w.since(c.dataSent), LastDataRecv: w.since(c.dataRecv), LastAckRecv: w.since(c.ackRecv),
	}
	switch {
	case c.state == SynSent:
		s.RTO = time.Second
		s.RTT = 0
		s.Timer, s.LastDataSent, s.Unacked = RetransmitTimer, jiffies(w.clock), 1 // a SYN is no data
	case c.inFlight > 0:
		s.Timer, s.Unacked = RetransmitTimer, uint32(c.inFlight)
		s.Retrans = uint8(min(255, max(0, c.tries-2)))
	case c.zero && c.probes > 0:
		s.Timer, s.Retrans = ZeroWindowTimer, c.probes
	case c.client.keep > 0:
		s.Timer, s.Retrans = KeepaliveTimer, c.probes
	}
	return s
}

// --- the supervisor

func (w *world) tick() {
	if w.clock < w.pausedUntil {
		if w.pausedUntil < 1<<62 {
			w.at(w.pausedUntil, w.tick)
		}
		return
	}
	w.tickNo++
	full := w.tickNo%2 == 0
	perPath := map[PathKey]int{}
	for _, c := range w.conns {
		if !c.told {
			// Discovery looks once a second, more often where something was reaped.
			if w.tickNo%10 == 0 || w.hot[c.key.NS] > w.clock || w.tickNo < 3 {
				w.introduce(c)
				w.look(c)
			}
			continue
		}
		p := c.ep.path(c.key.NS)
		perPath[p]++
		if w.suspects[p] || c.lookUntil > w.clock || full && (perPath[p] <= representatives || c.key.Cookie%5 == uint64(w.tickNo/2%5)) {
			w.look(c)
		}
	}
	w.in.Late = w.late
	w.late = 0
	w.step()
	w.after(suspectGap, w.tick)
}

// look hands over a look at a connection, if it can be looked at.
func (w *world) look(c *simConn) {
	if !c.blocked {
		w.in.Samples = append(w.in.Samples, w.sample(c))
	}
}

func (w *world) introduce(c *simConn) {
	c.told = true
	opened := time.Duration(0)
	if w.opens {
		opened = c.opened
	}
	w.in.Appeared = append(w.in.Appeared, Appeared{
		Key: c.key, Opened: opened, Local: netip.AddrPortFrom(simSource(c.key.NS), uint16(20000+c.key.Cookie%40000)),
		Remote: c.ep.addr, Interface: c.ep.iface, Permit: c.client.permit, Why: c.client.why, Owner: c.client.name,
		MayAsk: !c.client.noAsk, NotAsked: map[bool]string{true: "arm.mode is off"}[c.client.noAsk],
	})
}

// soon has a step made at t unless one comes before.
func (w *world) soon(t time.Duration, look bool) {
	if w.stepAt != 0 && w.stepAt <= t {
		return
	}
	w.stepAt = t
	w.at(t, func() {
		if w.stepAt != t {
			return
		}
		if t < w.pausedUntil {
			w.stepAt = 0
			return
		}
		if look {
			for _, c := range w.conns {
				if c.told && w.suspects[c.ep.path(c.key.NS)] {
					w.look(c)
				}
			}
		}
		w.step()
	})
}

func (w *world) step() {
	w.stepAt = 0
	w.steps++
	w.in.Now = w.clock
	out, err := w.auditor.step(&w.in)
	w.in.Clear()
	if err != nil {
		w.fail(fmt.Errorf("at %v: %w", w.clock, err))
		return
	}
	clear(w.suspects)
	for _, p := range out.Suspects {
		w.suspects[p] = true
	}
	w.events = append(w.events, out.Events...)
	w.asksRequested += len(out.Ask)
	for _, k := range out.Ask {
		w.ask(k)
	}
	for _, p := range out.Probe {
		if p.Source != simSource(p.Path.NS) {
			panic(fmt.Sprintf("a probe of %v from %v, where no connection is from", p.Path, p.Source))
		}
		w.probe(p.Path)
	}
	for _, p := range out.NextHop {
		w.nextHop(p)
	}
	for _, o := range out.Unrelated {
		w.lookAtUnrelated(o)
	}
	if len(out.Look) > 0 {
		for _, c := range w.conns {
			if c.told && slices.Contains(out.Look, c.ep.path(c.key.NS)) {
				w.look(c)
			}
		}
		w.soon(w.clock, false)
	}
	w.setFences(out.Fence)
	for _, r := range out.Reap {
		if w.lastLook(r) {
			continue
		}
		// It makes progress, so the others of its batch are not ended either.
		for _, o := range out.Reap {
			if o.Key != r.Key && o.Evidence.Rule == RuleDown && o.Key.NS == r.Key.NS && o.Remote == r.Remote {
				w.in.Reaped = append(w.in.Reaped, ReapResult{Key: o.Key, At: w.clock, Postponed: true})
			}
		}
		break
	}
	if out.Wake != 0 {
		w.soon(out.Wake, true)
	}
}

// endpoint is where a path leads, or what it would be without its interface.
func (w *world) endpoint(p PathKey) (found *simEndpoint) {
	for _, e := range w.eps {
		if e.addr == p.Endpoint && (found == nil || e.iface == p.Interface) {
			found = e
		}
	}
	return found
}

// path is that from a namespace to the endpoint.
func (e *simEndpoint) path(ns NS) PathKey { return PathKey{ns, e.addr, e.iface} }

// simSource is the address of a namespace.
func simSource(ns NS) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(ns >> 8), byte(ns)}) }

// probe connects and says PING.
func (w *world) probe(p PathKey) {
	w.probesRequested++
	w.probeID++
	ep := w.endpoint(p)
	pr := Probe{ID: w.probeID, Path: p, Started: w.clock, Outcome: Pending}
	w.in.Probes = append(w.in.Probes, pr)
	finish := func(after time.Duration, o Outcome, detail string) {
		w.after(after, func() {
			pr.Ended, pr.Outcome, pr.Detail = w.clock, o, detail
			if o == Alive {
				pr.RunID, pr.Role = ep.run, ep.role
			}
			w.in.Probes = append(w.in.Probes, pr)
			w.soon(w.clock, false)
		})
	}
	took := 2 * ep.rtt // connect, PING
	if ep.noProbe || !w.connects(p.NS, ep) {
		finish(w.probeTimeout, Dead, "no answer to the connection request")
		return
	}
	if ep.refusing {
		finish(ep.rtt, Refused, "connection refused")
		return
	}
	w.after(ep.rtt, func() {
		if pr.Outcome == Pending {
			pr.Connected = ep.rtt
			w.in.Probes = append(w.in.Probes, pr)
		}
	})
	switch {
	case ep.frozen || ep.mute || ep.sidecar:
		finish(w.probeTimeout, Unresponsive, "no reply to PING")
	case w.trip(p.NS, ep):
		finish(took, Alive, "PONG")
	case w.trip(p.NS, ep) && took+tailProbe < w.probeTimeout:
		finish(took+tailProbe, Alive, "PONG")
	default:
		finish(w.probeTimeout, Unresponsive, "no reply to PING")
	}
}

func (w *world) nextHop(p PathKey) {
	s, ep := w.space(p.NS), w.endpoint(p)
	n := NextHop{Path: p, LinkDown: s.linkDown, Gateway: Reachable, Detail: "gateway reachable"}
	wait := time.Millisecond
	switch {
	case s.linkDown:
		n.Gateway, n.Detail = NeighbourUnknown, "no carrier"
	case s.noGateway:
		n.Gateway, n.Detail = NotOnLink, "no gateway"
	case s.gatewaySilent:
		n.Gateway, n.Detail, wait = Silent, "gateway silent", hopWait
	}
	if ep.onLink {
		n.Endpoint = Reachable
		if !w.reach(p.NS, ep) {
			n.Endpoint, n.Detail, wait = Silent, n.Detail+", endpoint's neighbour entry failed", hopWait
		}
	}
	w.after(wait, func() {
		n.At = w.clock
		w.in.NextHops = append(w.in.NextHops, n)
		w.soon(w.clock, false)
	})
}

// lookAtUnrelated tells how connections to other things fare: they talk all the time.
func (w *world) lookAtUnrelated(q UnrelatedWanted) {
	s := w.space(q.Path.NS)
	dead := s.unrelatedDead
	o := Unrelated{NS: q.Path.NS, Window: w.clock - q.Since}
	if dead != 0 && dead <= q.Since {
		o.Stalled = s.unrelated
	} else {
		o.Heard = s.unrelated
	}
	w.after(time.Millisecond, func() {
		o.At = w.clock
		w.in.Unrelated = append(w.in.Unrelated, o)
		w.soon(w.clock, false)
	})
}

// lastLook looks once more and reaps, unless progress says otherwise: false.
func (w *world) lastLook(r Reap) bool {
	res := ReapResult{Key: r.Key, At: w.clock, Outcome: ReapGone}
	rec := simReap{at: w.clock, reap: r}
	for _, c := range w.conns {
		if c.key != r.Key {
			continue
		}
		rec.name, rec.conn, rec.alive = c.name, c, w.works(c)
		res.Outcome = ReapDone
		if r.Live {
			w.checkStale(c, r)
		}
		if !r.Live && r.Heard(c.n, w.clock, w.since(c.ackRecv)) {
			res.Outcome, res.Heard = ReapSpared, true
			break
		}
		w.hot[c.key.NS] = w.clock + 5*time.Second
		w.end(c)
		break
	}
	rec.out = res.Outcome
	w.reaps = append(w.reaps, rec)
	w.in.Reaped = append(w.in.Reaped, res)
	w.soon(w.clock, false)
	return !res.Heard
}

// checkStale fails where a connection that makes progress is reaped for who it is
// connected to, and that is not so.
func (w *world) checkStale(c *simConn, r Reap) {
	switch r.Evidence.Rule {
	case RuleReplaced:
		if c.run == c.ep.run {
			w.fail(fmt.Errorf("at %v: %s leads to the process %s that is there: %s", w.clock, c.name, c.run, r.Evidence))
		}
	case RuleDemoted:
		if c.role != RolePrimary {
			w.fail(fmt.Errorf("at %v: %s was opened to a %q: %s", w.clock, c.name, c.role, r.Evidence))
		}
	}
}

// say has the cluster view say f from now on, who stands there included.
func (w *world) say(ep *simEndpoint, f EndpointFact) {
	f.Endpoint = ep.addr
	w.facts[ep.addr] = f
	w.poll(ep)
	if !w.polling {
		w.polling = true
		w.after(time.Second, w.pollLoop)
	}
}

func (w *world) withdraw(ep *simEndpoint) {
	if _, ok := w.facts[ep.addr]; ok {
		delete(w.facts, ep.addr)
		w.in.Endpoints = append(w.in.Endpoints, EndpointFact{Endpoint: ep.addr, Forget: true})
		w.soon(w.clock, false)
	}
}

// poll asks the node who it is, and says all of the fact again.
func (w *world) poll(ep *simEndpoint) {
	f, ok := w.facts[ep.addr]
	if !ok {
		return
	}
	if !ep.vanished && !ep.frozen {
		f.At, f.RunID, f.Role = w.clock, ep.run, ep.role
	}
	w.facts[ep.addr] = f
	w.in.Endpoints = append(w.in.Endpoints, f)
	w.soon(w.clock, false)
}

func (w *world) pollLoop() {
	for _, ep := range w.eps {
		w.poll(ep)
	}
	w.after(time.Second, w.pollLoop)
}

// setFences sets and lifts fences as the core wants them.
func (w *world) setFences(want []Fence) {
	w.lastWant = append(w.lastWant[:0], want...)
	wanted := map[PathKey]bool{}
	for _, f := range want {
		wanted[f.Path] = true
		if _, ok := w.fences[f.Path]; ok {
			continue
		}
		w.fences[f.Path] = ""
		state := FenceStands
		switch w.fencing {
		case "never":
			continue
		case "refused":
			state = FenceRefused
		}
		w.after(5*time.Millisecond, func() {
			if _, ok := w.fences[f.Path]; ok {
				w.fences[f.Path] = state
				w.in.Fenced = append(w.in.Fenced, FenceState{f.Path, state})
				w.soon(w.clock, false)
			}
		})
	}
	for p := range w.fences {
		if !wanted[p] {
			delete(w.fences, p)
			w.in.Fenced = append(w.in.Fenced, FenceState{p, FenceGone})
		}
	}
}

// reaped lists what was really reaped since t.
func (w *world) reaped(t time.Duration) (list []simReap) {
	for _, r := range w.reaps {
		if r.at >= t && r.out == ReapDone {
			list = append(list, r)
		}
	}
	return list
}
