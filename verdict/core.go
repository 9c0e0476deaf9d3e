package verdict

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"
)

// Core is the state of all judging. Make one with New; it is for one goroutine
// at a time.
type Core struct {
	set            Settings
	now            time.Duration
	conns          map[ConnKey]*conn
	endpoints      map[netip.AddrPort]*endpoint
	ranked         []*endpoint // the same by address, so that their order is not chance
	spaces         map[NS]*space
	queue          []*queued // due reaps, by time
	clients        map[clientKey]*absence
	oneKind        []lonely // reaps on one kind of evidence within breakerWindow
	tokens         float64
	tokensAt       time.Duration
	breakerTold    time.Duration
	nextBaseline   time.Duration
	steps          uint64
	suspects       int // paths, in the last step
	hopTokens      float64
	hopTokensAt    time.Duration
	hostAsked      time.Duration // when the host's next hop was last asked for; 0 is never
	othersTokens   float64
	othersTokensAt time.Duration
	out            Output
}

// New returns a core that knows nothing yet.
func New(s Settings) *Core {
	return &Core{
		set:          s,
		conns:        map[ConnKey]*conn{},
		endpoints:    map[netip.AddrPort]*endpoint{},
		spaces:       map[NS]*space{},
		clients:      map[clientKey]*absence{},
		tokens:       float64(s.Burst),
		breakerTold:  -breakerWindow,
		hopTokens:    nextHopBurst,
		othersTokens: othersBurst,
	}
}

// configure changes the settings; what is known stays.
func (c *Core) configure(s Settings) {
	if s != c.set {
		for _, k := range c.conns {
			if k.reap == reapOver {
				k.reap = notReaping // judged again under the new settings
			}
		}
	}
	c.set = s
	c.tokens = min(c.tokens, float64(s.Burst))
}

// Tracked is the number of connections that the core knows.
func (c *Core) Tracked() int { return len(c.conns) }

// Step takes in what was observed, and returns what follows. The output is valid
// until the next call.
func (c *Core) Step(in *Input) *Output {
	if in.Anew {
		*c = *New(c.set)
	}
	if in.Settings != nil {
		c.configure(*in.Settings)
	}
	c.now = min(max(c.now, in.Now), endOfTime)
	c.out = Output{
		Events: c.out.Events[:0], Reap: c.out.Reap[:0], Probe: c.out.Probe[:0],
		NextHop: c.out.NextHop[:0], Others: c.out.Others[:0], Suspects: c.out.Suspects[:0], Look: c.out.Look[:0],
	}
	c.steps++
	c.takeLate(in.Late)
	for i := range in.Appeared {
		c.takeAppeared(&in.Appeared[i])
	}
	for i := range in.Samples {
		c.takeSample(&in.Samples[i])
	}
	for _, k := range in.Gone {
		c.forget(k)
	}
	for i := range in.Held {
		c.takeHeld(&in.Held[i])
	}
	for i := range in.Probes {
		c.takeProbe(&in.Probes[i])
	}
	for i := range in.NextHops {
		c.takeNextHop(&in.NextHops[i])
	}
	for i := range in.Others {
		c.takeOthers(&in.Others[i])
	}
	for i := range in.Reaped {
		c.takeReaped(&in.Reaped[i])
	}
	c.settleDoubts()
	for i := len(c.ranked) - 1; i >= 0; i-- {
		c.judge(c.ranked[i]) // which may drop it, so backwards
	}
	c.baselines()
	c.release()
	c.absences()
	c.order()
	c.suspects = len(c.out.Suspects)
	if c.out.Wake != 0 {
		// A step over many suspects costs more than one of them gains by a
		// millisecond.
		c.out.Wake = max(c.out.Wake, c.now+min(wakeMax, time.Millisecond+time.Duration(c.suspects)*wakePerSuspect))
	}
	return &c.out
}

// order makes the output independent of the order of Go's maps, so that the same
// observations give the same output.
func (c *Core) order() {
	byPath := func(a, b PathKey) int {
		return cmp.Or(a.Endpoint.Compare(b.Endpoint), cmp.Compare(a.NS, b.NS))
	}
	slices.SortFunc(c.out.Probe, byPath)
	slices.SortFunc(c.out.NextHop, byPath)
	c.out.NextHop = slices.Compact(c.out.NextHop)
	slices.SortFunc(c.out.Suspects, byPath)
	slices.SortFunc(c.out.Look, byPath)
	c.out.Look = slices.Compact(c.out.Look)
	slices.SortStableFunc(c.out.Events, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.At, b.At), byPath(a.Path, b.Path), cmp.Compare(a.Key.Cookie, b.Key.Cookie), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Text, b.Text))
	})
}

// conn is what is known about one connection.
type conn struct {
	key           ConnKey
	path          *path
	local, remote netip.AddrPort
	permit        Permit
	why           string
	owner         string
	first         time.Duration // when it appeared
	state         State
	rtt           time.Duration
	heard         time.Duration // when its peer was last heard
	segsIn        uint32
	bytesIn       uint64
	sampled       time.Duration // when it was last looked at; 0 is never
	held          bool          // it cannot be looked at

	// While something it sent is unanswered:
	waiting    bool
	waitFrom   time.Duration    // the first unanswered transmission, at the latest
	lastTx     time.Duration    // the last one
	base       uint32           // retransmissions when it was last heard
	baseOut    uint32           // segments out when it was last heard
	counted    uint32           // retransmissions that the loss of the path knows of
	unanswered int              // transmissions
	sent       [8]time.Duration // when the last of them were made, a ring; 0 is none
	runs       int              // stretches of them between which a probe got through
	aliveAfter time.Duration    // end of the first probe that began after lastTx and was alive; 0 is none
	told       bool             // ConnectionStalled was reported

	open     bool          // it was reported as stalled or half-dead, and not that this is over
	asleep   time.Duration // sent data that was acknowledged but not replied to since then; 0 is none
	reap     reapState
	failures int
	again    time.Duration // not to be reaped before, since it failed
}

type reapState uint8

const (
	notReaping reapState = iota
	reapQueued
	reapAsked
	reapOver // judged without permit, spared for good, or done
)

// path is the connections of one namespace to one endpoint.
type path struct {
	key      PathKey
	endpoint *endpoint
	space    *space
	conns    map[uint64]*conn
	waiting  int
	asleep   int           // connections that are asleep
	heard    time.Duration // when anything was last heard on it
	baseline bool          // a probe from here succeeded once
	probed   time.Duration // start of the last probe from here; 0 is never
	lost     float64       // probes from here that got no answer since one was alive
	outcome  Outcome       // of the last probe from here that ended
	hop      NextHop       // last look; zero At is none
	hopAsked time.Duration
	silence  silence // of step surveyed, see silenceOf
	surveyed uint64
	suspect  time.Duration // since when it is suspect; 0 is not
	down     bool
	pooled   bool // down because another path is
	rise     int  // probes alive in a row while down
	downAt   time.Duration
	empty    time.Duration // since when a path that is down has had no connection
	evidence Evidence
}

// endpoint is one ip:port with its paths.
type endpoint struct {
	addr   netip.AddrPort
	paths  map[NS]*path
	ranked []*path // the same by namespace
	loss   loss
	probes []Probe // recent ones, oldest first
	// Of the present step, see sum.
	silentProbes         bool
	heardBy              *path
	heardMost, heardNext time.Duration
	rtt                  time.Duration // usual time of an alive probe
	tokens               float64       // for probes
	tokAt                time.Duration
	asked                time.Duration // when the last probe was asked for
	gap                  time.Duration // pause between probes while down, or while quiet

	frozenSince time.Duration // first probe that got no reply; 0 is none
	frozenTold  bool
	received    time.Duration // when data was last received on any connection
}

// space is what is known about one namespace.
type space struct {
	ns          NS
	doubts      map[string]doubt
	clear       time.Duration // when the last doubt ended
	told        bool
	paths       int
	looked      time.Duration // at the host's way out, in the host's space
	othersSince time.Duration // since when other connections have stalled too; 0 is not
	othersAsked time.Duration // when Others was last asked for; 0 is never
}

type doubt struct {
	since, expires time.Duration
	about          PathKey // whose way out, where it is about that
	detail         string
}

func (c *Core) space(ns NS) *space {
	s := c.spaces[ns]
	if s == nil {
		s = &space{ns: ns, doubts: map[string]doubt{}}
		c.spaces[ns] = s
	}
	return s
}

func (c *Core) endpoint(addr netip.AddrPort) *endpoint {
	e := c.endpoints[addr]
	if e == nil {
		e = &endpoint{addr: addr, paths: map[NS]*path{}, tokens: probeBurst, tokAt: c.now, asked: -probeGap}
		e.loss.at, e.loss.newAt = c.now, c.now
		c.endpoints[addr] = e
		i, _ := slices.BinarySearchFunc(c.ranked, addr, (*endpoint).compare)
		c.ranked = slices.Insert(c.ranked, i, e)
	}
	return e
}

func (e *endpoint) compare(addr netip.AddrPort) int { return e.addr.Compare(addr) }

func (p *path) compare(ns NS) int { return cmp.Compare(p.key.NS, ns) }

func (c *Core) takeAppeared(a *Appeared) {
	k := c.conns[a.Key]
	if k == nil {
		e := c.endpoint(a.Remote)
		p := e.paths[a.Key.NS]
		if p == nil {
			p = &path{key: PathKey{a.Key.NS, a.Remote}, endpoint: e, space: c.space(a.Key.NS), conns: map[uint64]*conn{}}
			p.space.paths++
			e.paths[a.Key.NS] = p
			i, _ := slices.BinarySearchFunc(e.ranked, a.Key.NS, (*path).compare)
			e.ranked = slices.Insert(e.ranked, i, p)
		}
		k = &conn{key: a.Key, path: p, local: a.Local, remote: a.Remote, first: c.now, state: SynSent}
		c.conns[a.Key] = k
		p.conns[a.Key.Cookie] = k
	}
	if a.Permit != k.permit && k.reap == reapOver {
		k.reap = notReaping // judged again under the new permit
	}
	k.permit, k.why, k.owner = a.Permit, a.Why, a.Owner
}

// takeHeld leaves a connection out, or takes it in again: what was seen of it is old.
func (c *Core) takeHeld(h *Held) {
	k := c.conns[h.Key]
	if k == nil {
		return
	}
	k.held = h.On
	if k.held {
		k.setWaiting(false)
		k.setAsleep(0)
		if k.reap == reapQueued {
			k.reap = notReaping
		}
	}
}

// forget drops a connection, and what existed only for it.
func (c *Core) forget(key ConnKey) {
	k := c.conns[key]
	if k == nil {
		return
	}
	c.close(k, ConnectionGone, "it has ended")
	k.setWaiting(false)
	k.setAsleep(0)
	k.reap = reapOver // a queued reap finds this and is dropped
	delete(c.conns, key)
	p := k.path
	delete(p.conns, key.Cookie)
	if len(p.conns) > 0 {
		return
	}
	if p.down {
		// The reaped clients will be back, and should find the endpoint known
		// to be down.
		p.empty = c.now
		return
	}
	c.dropPath(p)
}

// dropPath forgets a path that has no connection, and what existed only for it.
func (c *Core) dropPath(p *path) {
	e := p.endpoint
	if p.suspect != 0 && !p.down || e.frozenTold && !p.down {
		// It must not stay what it was called for ever.
		c.event(Event{Type: EndpointUp, Path: p.key, Text: "nobody connects to it any more: forgotten"})
	}
	delete(e.paths, p.key.NS)
	e.ranked = slices.DeleteFunc(e.ranked, func(q *path) bool { return q == p })
	if p.space.paths--; p.space.paths == 0 && p.key.NS != c.set.HostNS {
		if p.space.told {
			c.event(Event{Type: GuardDoubtOver, Path: PathKey{NS: p.key.NS}, Text: "nothing is watched here any more"})
		}
		delete(c.spaces, p.key.NS)
	}
	if len(e.paths) == 0 {
		delete(c.endpoints, e.addr)
		c.ranked = slices.DeleteFunc(c.ranked, func(x *endpoint) bool { return x == e })
	}
}

// close ends what was reported about k.
func (c *Core) close(k *conn, t EventType, text string) {
	if k.open {
		k.open = false
		c.event(Event{Type: t, Path: k.path.key, Key: k.key, Text: text})
	}
}

func (k *conn) setWaiting(w bool) {
	if w == k.waiting {
		return
	}
	k.waiting = w
	if w {
		k.path.waiting++
		return
	}
	k.path.waiting--
	k.unanswered, k.runs, k.aliveAfter, k.told = 0, 0, 0, false
	clear(k.sent[:])
}

func (k *conn) setAsleep(since time.Duration) {
	if was := k.asleep != 0; was != (since != 0) {
		if was {
			k.path.asleep--
		} else {
			k.path.asleep++
		}
	}
	k.asleep = since
}

// takeSample brings one look at a connection to account.
func (c *Core) takeSample(s *Sample) {
	k := c.conns[s.Key]
	if k == nil {
		return
	}
	now := max(1, c.now)
	k.state, k.rtt = s.State, s.RTT
	lastTx := now - s.LastDataSent
	if s.State == SynSent {
		// Nothing was ever heard; the SYN itself is what waits.
		if !k.waiting {
			k.waitFrom, k.base = max(1, k.first), 0
			k.runs = 1
			k.lastTx = k.first
			k.setWaiting(true)
		}
		if n := 1 + int(s.TotalRetrans); n > k.unanswered {
			c.transmitted(k, n-k.unanswered, max(lastTx, k.waitFrom))
		}
		k.sampled = now
		return
	}
	newlyHeard := k.sampled == 0 || s.SegsIn != k.segsIn || s.BytesReceived != k.bytesIn
	if newlyHeard {
		c.heard(k, s)
	}
	unanswered := 0
	switch {
	case s.State != Established:
	case s.Timer == ZeroWindowTimer || s.Timer == KeepaliveTimer && s.Unacked == 0:
		unanswered = int(s.Retrans) // the kernel's count of unanswered probes
	case s.Unacked > 0:
		unanswered = 1 + int(s.TotalRetrans-k.base)
	}
	switch {
	case unanswered == 0:
		if k.state == Closing {
			c.close(k, ConnectionGone, "it is being closed")
		}
		k.setWaiting(false)
	case !k.waiting:
		k.setWaiting(true)
		k.runs = 1
		// The first of them went out before the repetitions did, which the
		// kernel keeps rtoMin apart (a loss probe may come sooner).
		k.lastTx = lastTx
		if s.Timer != RetransmitTimer {
			k.lastTx = now // probes leave no time behind: the latest is assumed
		}
		k.waitFrom = max(1, k.heard, k.lastTx-time.Duration(max(0, unanswered-2))*rtoMin)
		k.note(unanswered-1, k.waitFrom)
		k.note(1, k.lastTx)
	case unanswered > k.unanswered:
		if s.Timer != RetransmitTimer {
			lastTx = now
		}
		c.transmitted(k, unanswered-k.unanswered, lastTx)
	}
	// A reply that does not come, while TCP is fine.
	if s.Unacked == 0 && s.LastDataSent < s.LastDataRecv && s.State == Established {
		if k.asleep == 0 {
			k.setAsleep(max(1, lastTx))
		}
	} else {
		k.setAsleep(0)
	}
	k.sampled = now
}

// transmitted records n more unanswered transmissions, the last at lastTx.
func (c *Core) transmitted(k *conn, n int, lastTx time.Duration) {
	if k.aliveAfter != 0 && lastTx >= k.aliveAfter {
		// Something got through in between: a burst would have ended there.
		k.runs++
		k.aliveAfter = 0
	}
	k.note(n-1, k.lastTx) // at the earliest
	k.lastTx = max(k.lastTx, lastTx)
	k.note(1, k.lastTx)
	if k.aliveAfter == 0 {
		k.aliveAfter = c.firstAlive(k.path, max(k.lastTx, c.clearSince(k.path.space)))
	}
}

// firstAlive is when the first probe ended that began at t or later and was alive,
// and that says something about p; 0 is none. A transmission may be seen long after
// it was made, and after such a probe.
func (c *Core) firstAlive(p *path, t time.Duration) (first time.Duration) {
	for i := range p.endpoint.probes {
		pr := &p.endpoint.probes[i]
		if pr.Outcome != Alive || pr.Started < t || pr.Path.NS != p.key.NS && (p.outcome == Dead || p.outcome == Refused) {
			continue
		}
		if first == 0 || pr.Ended < first {
			first = pr.Ended
		}
	}
	return first
}

// note counts n transmissions made at t.
func (k *conn) note(n int, t time.Duration) {
	for i := range min(n, len(k.sent)) {
		k.sent[(k.unanswered+i)%len(k.sent)] = max(t, 1)
	}
	k.unanswered += max(n, 0)
}

// sentSince counts the unanswered transmissions since t, as far as remembered.
func (k *conn) sentSince(t time.Duration) (n int) {
	for _, at := range k.sent {
		if at != 0 && at >= t {
			n++
		}
	}
	return n
}

// heard records that segments of the peer have arrived.
func (c *Core) heard(k *conn, s *Sample) {
	at := min(c.now, max(k.heard, c.now-min(s.LastAckRecv, s.LastDataRecv)))
	l := &k.path.endpoint.loss
	// It may have been heard since the last look and be stalled again: of the
	// present timeouts those count that something was sent at and that fit into
	// the time since. A loss probe may have come before them.
	again, made := uint32(0), s.TotalRetrans // made good, as far as we know
	if s.Timer == RetransmitTimer && s.Unacked > 0 && c.now-at >= rtoMin {
		again = min(uint32(s.Retrans), s.TotalRetrans-k.counted, timeouts(c.now-at))
		made -= again
		made -= min(1, made-k.counted)
	}
	if k.sampled != 0 {
		if k.waiting {
			l.stallEnded(k.unanswered - 1)
		}
		l.answered(float64(s.DataSegsOut-k.baseOut), float64(made-k.counted))
	}
	if s.BytesReceived > k.bytesIn {
		k.path.endpoint.received = max(k.path.endpoint.received, c.now-s.LastDataRecv)
	}
	c.close(k, ConnectionHeard, "its peer is heard again")
	k.setWaiting(false)
	k.heard, k.base, k.counted, k.baseOut = at, s.TotalRetrans-again, made, s.DataSegsOut
	k.segsIn, k.bytesIn = s.SegsIn, s.BytesReceived
	k.failures, k.again = 0, 0
	k.path.heard = max(k.path.heard, at)
	c.wayHeard(k.path, at)
	if k.reap == reapOver || k.reap == reapQueued {
		// Whatever was thought of it, it lives. A reap that was asked for is
		// taken back by the last look, since SegsIn has changed.
		k.reap = notReaping
	}
}

// timeouts is how many retransmission timeouts fit into d, each twice as long as
// the one before.
func timeouts(d time.Duration) (n uint32) {
	for t := rtoMin; t <= d && n < 32; t += t + rtoMin {
		n++
	}
	return n
}

// hash spreads things evenly and the same way in every run.
func hash(parts ...uint64) uint64 {
	h := fnv.New64a()
	var b [8]byte
	for _, p := range parts {
		for i := range b {
			b[i] = byte(p >> (8 * i))
		}
		h.Write(b[:])
	}
	return h.Sum64()
}

func (c *Core) event(e Event) {
	e.At = c.now
	c.out.Events = append(c.out.Events, e)
}

// wake asks for a step at t at the latest.
func (c *Core) wake(t time.Duration) {
	t = max(t, c.now+time.Millisecond)
	if c.out.Wake == 0 || t < c.out.Wake {
		c.out.Wake = t
	}
}
