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
	set             Settings
	now             time.Duration
	conns           map[ConnKey]*conn
	endpoints       map[endpointKey]*endpoint
	ranked          []*endpoint // the same by address, so that their order is not chance
	spaces          map[NS]*space
	queue           []*queued // due reaps, by time
	clients         map[clientKey]*missingClient
	oneKind         []oneKindReap // reaps on one kind of evidence within breakerWindow
	reapTokens      Bucket
	breakerTold     time.Duration
	nextBaseline    time.Duration
	steps           uint64
	suspects        int                      // paths, in the last step
	hopTokens       Bucket                   // for looks at next hops
	hostRequested   time.Duration            // when the host's next hop was last asked for; 0 is never
	unrelatedTokens Bucket                   // for looks at unrelated connections
	askTokens       Bucket                   // for asking on suspicion
	idleTokens      Bucket                   // for asking idle connections
	asking, due     []*path                  // of this step, see ask
	idleTurn        int                      // in asking
	repeats         map[repeatKey]*repeat    // clients of which a connection was reaped
	hops            []*path                  // whose next hop is to be looked at, of this step
	nodes           map[netip.AddrPort]*node // by the address of what stands there
	review          []*node                  // about which there is something to say
	fencing         bool                     // fences were computed in the last step
	out             Output
}

// New returns a core that knows nothing yet.
func New(s Settings) *Core {
	return &Core{
		set:         s,
		conns:       map[ConnKey]*conn{},
		endpoints:   map[endpointKey]*endpoint{},
		spaces:      map[NS]*space{},
		clients:     map[clientKey]*missingClient{},
		repeats:     map[repeatKey]*repeat{},
		nodes:       map[netip.AddrPort]*node{},
		breakerTold: -breakerWindow,
	}
}

// configure changes the settings; what is known stays.
func (c *Core) configure(s Settings) {
	if s != c.set {
		for _, k := range c.conns {
			if k.reap == reapOver {
				k.reap = notReaping // judged again under the new settings
			}
			k.reconsider()
		}
		for _, n := range c.nodes {
			c.reviewNode(n)
		}
	}
	c.set = s
}

// Tracked is the number of connections that the core knows.
func (c *Core) Tracked() int { return len(c.conns) }

// Step takes in what was observed, and returns what follows. The output is valid
// until the next call.
func (c *Core) Step(in *Input) *Output {
	if in.Reset {
		*c = *New(c.set)
	}
	if in.Settings != nil {
		c.configure(*in.Settings)
	}
	c.now = min(max(c.now, in.Now), endOfTime)
	c.out = Output{
		Events: c.out.Events[:0], Reap: c.out.Reap[:0], Probe: c.out.Probe[:0],
		Ask: c.out.Ask[:0], NextHop: c.out.NextHop[:0], Unrelated: c.out.Unrelated[:0], Suspects: c.out.Suspects[:0], Look: c.out.Look[:0], Fence: c.out.Fence[:0],
	}
	c.steps++
	c.observeLate(in.Late)
	for i := range in.Endpoints {
		c.observeFact(&in.Endpoints[i])
	}
	for i := range in.Appeared {
		c.observeAppeared(&in.Appeared[i])
	}
	for i := range in.Asked { // before the looks, which may show the answer
		c.observeAsked(&in.Asked[i])
	}
	for i := range in.Samples {
		c.observeSample(&in.Samples[i])
	}
	for _, k := range in.Gone {
		c.forget(k)
	}
	for i := range in.Blocked {
		c.observeBlocked(&in.Blocked[i])
	}
	for i := range in.Probes {
		c.observeProbe(&in.Probes[i])
	}
	for i := range in.NextHops {
		c.observeNextHop(&in.NextHops[i])
	}
	for i := range in.Unrelated {
		c.observeUnrelated(&in.Unrelated[i])
	}
	for i := range in.Fenced {
		c.observeFence(&in.Fenced[i])
	}
	for i := range in.Reaped {
		c.observeReaped(&in.Reaped[i])
	}
	c.settleDoubts()
	c.hops = c.hops[:0]
	for i := len(c.ranked) - 1; i >= 0; i-- {
		c.judge(c.ranked[i]) // which may drop it, so backwards
	}
	c.judgeTopology()
	c.fences()
	c.nextHops()
	c.baselines()
	c.ask()
	c.release()
	c.missingClients()
	c.forgetRepeats()
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
	slices.SortFunc(c.out.Probe, func(a, b ProbeWanted) int { return a.Path.Compare(b.Path) })
	slices.SortFunc(c.out.NextHop, PathKey.Compare)
	c.out.NextHop = slices.Compact(c.out.NextHop)
	slices.SortFunc(c.out.Suspects, PathKey.Compare)
	slices.SortFunc(c.out.Ask, func(a, b ConnKey) int { return cmp.Or(cmp.Compare(a.NS, b.NS), cmp.Compare(a.Cookie, b.Cookie)) })
	slices.SortFunc(c.out.Look, PathKey.Compare)
	c.out.Look = slices.Compact(c.out.Look)
	slices.SortStableFunc(c.out.Events, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.At, b.At), a.Path.Compare(b.Path), cmp.Compare(a.Key.Cookie, b.Key.Cookie), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Text, b.Text))
	})
}

// conn is what is known about one connection.
type conn struct {
	key           ConnKey
	path          *path
	local, remote netip.AddrPort
	permit        Permit
	why           string
	mayAsk        bool
	reader        bool
	notAsked      string // why not
	owner         string
	workload      string
	at            int           // in path.list
	first         time.Duration // when it appeared
	state         State
	rtt, rto      time.Duration
	heard         time.Duration // when it last made progress
	counters      Counters
	ackAt         time.Duration // when the last acknowledgement came in
	sampled       time.Duration // when it was last looked at; 0 is never
	notBefore     time.Duration // it was opened then or later; 0 is unknown
	establishedBy time.Duration // it was first seen established
	peer          *peer         // read only, see setPeer

	blocked bool // its socket lock is held: it cannot be looked at

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
	probing    bool             // its own kernel probes: keepalive, or a closed window
	repeatTold bool             // see condemnOnce
	asks       int              // those of the unanswered transmissions that we have asked for
	askedAt    time.Duration    // the last one
	own        int              // those that the kernel counts
	lastEmpty  time.Duration    // when an empty segment last went out that counts, see another
	answeredAt time.Duration    // when one was last answered
	flow       flowLoss         // of its own transmissions
	accepted   bool             // by a probe that was only connected, a stretch in runs ended
	siblings   bool             // others on the path were answered after a transmission

	askWanted time.Duration // when it was last to be asked, 0 if it is known what came of it
	askAgain  time.Duration // not before, as it could not be asked
	unable    string        // why it could not be asked
	holeSince time.Duration // asking it was answered while data stays unacknowledged; 0 is not
	holeTold  bool
	hadReply  bool // data was ever received on it: its peer is known to reply

	openBy        Rule          // of the event that reported it; empty is none
	entry         *queued       // its reap; valid while it is queued or requested
	open          bool          // it was reported as stalled or half-dead, and not that this is over
	awaitingReply time.Duration // sent data that was acknowledged but not replied to since then; 0 is none
	reap          reapState
	failures      int
	again         time.Duration // not to be reaped before, since it failed
}

type reapState uint8

const (
	notReaping reapState = iota
	reapQueued
	reapRequested
	reapOver // judged without permit, spared for good, or done
)

// path is the connections of one namespace to one endpoint.
type path struct {
	key           PathKey
	endpoint      *endpoint
	space         *space
	conns         map[uint64]*conn
	list          []*conn // the same, in an order that asking goes through
	turn          int     // in list
	probeTurn     int     // in list, of whose source a probe has
	lastSource    netip.Addr
	mayAsk        int           // how many of them may be asked
	rank          int           // in its namespace, see dueIdle
	asked         time.Duration // when one was last asked
	waiting       int
	awaitingReply int           // connections that await a reply
	heard         time.Duration // when anything was last heard on it
	baseline      bool          // a probe from here succeeded once
	deadSince     time.Duration // start of the first of deadRow probes in a row that had no answer
	deadRow       int
	deadBeside    int           // of them, during which an established connection was answered
	besideAt      time.Duration // end of the last of those
	refuses       bool          // EndpointRefuses was reported
	broken        time.Duration // when a flow on it was last found broken; 0 is never
	probed        time.Duration // start of the last probe from here; 0 is never
	lost          float64       // probes from here that got no answer since one was alive
	outcome       Outcome       // of the last probe from here that ended
	hop           NextHop       // last look; zero At is none
	hopRequested  time.Duration
	silence       silence // of step surveyed, see silenceOf
	surveyed      uint64
	suspect       time.Duration // since when it is suspect; 0 is not
	down          bool
	rise          int // probes alive in a row while down
	downAt        time.Duration
	empty         time.Duration // since when a path that is down has had no connection
	evidence      Evidence
	fenceAt       time.Duration // since when a fence is wanted; 0 is not
	fence         FenceStanding // what became of it
}

// endpoint is one ip:port with its paths.
type endpoint struct {
	key    endpointKey
	paths  map[NS]*path
	ranked []*path // the same by namespace
	loss   loss
	probes []Probe // recent ones, oldest first
	// Of the present step, see sum.
	silentProbes         bool
	heardBy              *path
	heardMost, heardNext time.Duration
	rtt                  time.Duration // usual time of an alive probe
	tokens               Bucket        // for probes
	probeRequested       time.Duration // when the last probe was asked for
	gap                  time.Duration // pause between probes while down, or while quiet

	frozenSince time.Duration // first probe that got no reply; 0 is none
	frozenTold  bool
	received    time.Duration // when data was last received on any connection

	broken      time.Duration // when a flow to it was last found broken; 0 is never
	hotStep     uint64        // see hot
	isHot       bool
	silentPaths int           // of the present step: on which established connections are unanswered
	hopSeen     time.Duration // when a next hop toward it was last looked at, from any namespace
}

// space is what is known about one namespace.
type space struct {
	ns                 NS
	doubts             map[string]doubt
	clear              time.Duration // when the last doubt ended
	told               bool
	paths              int
	looked             time.Duration // when its way out was last looked at
	hopRequested       time.Duration // when that was last asked for
	baselineAt         time.Duration // when a baseline was last asked for from here
	askStep            uint64        // see askWaiting
	askedNow           int
	rankStep           uint64 // see dueIdle
	rank               int
	idleAt             time.Duration   // when one of its idle paths was last asked
	asked              []time.Duration // when connections were asked lately, see mayAskNow
	unrelatedSince     time.Duration   // since when other connections have stalled too; 0 is not
	unrelatedRequested time.Duration   // when Unrelated was last asked for; 0 is never
	togetherSince      time.Duration   // when the servers of a deployment were found all silent; 0 is not
	troubled           time.Duration   // when a silence on one of its paths was last judged
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

func (c *Core) endpoint(key endpointKey) *endpoint {
	e := c.endpoints[key]
	if e == nil {
		e = &endpoint{key: key, paths: map[NS]*path{}, probeRequested: -probeGap}
		e.loss.at, e.loss.newAt = c.now, c.now
		c.endpoints[key] = e
		i, _ := slices.BinarySearchFunc(c.ranked, key, (*endpoint).compare)
		c.ranked = slices.Insert(c.ranked, i, e)
	}
	return e
}

func (e *endpoint) compare(key endpointKey) int { return e.key.compare(key) }

func (p *path) compare(ns NS) int { return cmp.Compare(p.key.NS, ns) }

func (c *Core) observeAppeared(a *Appeared) {
	k := c.conns[a.Key]
	if k == nil {
		key := PathKey{a.Key.NS, a.Remote, a.Interface}
		e := c.endpoint(key.endpoint())
		p := e.paths[a.Key.NS]
		if p == nil {
			p = &path{key: key, endpoint: e, space: c.space(a.Key.NS), conns: map[uint64]*conn{}}
			p.space.paths++
			e.paths[a.Key.NS] = p
			i, _ := slices.BinarySearchFunc(e.ranked, a.Key.NS, (*path).compare)
			e.ranked = slices.Insert(e.ranked, i, p)
		}
		k = &conn{key: a.Key, path: p, local: a.Local, remote: a.Remote, first: c.now, state: SynSent, peer: &unknownPeer, at: len(p.list)}
		c.conns[a.Key] = k
		p.conns[a.Key.Cookie] = k
		p.list = append(p.list, k)
		p.lastSource = a.Local.Addr()
	}
	if a.Permit != k.permit {
		if k.reap == reapOver {
			k.reap = notReaping // judged again under the new permit
		}
		k.reconsider()
	}
	if a.MayAsk != k.mayAsk {
		if k.path.mayAsk--; a.MayAsk {
			k.path.mayAsk += 2
		}
	}
	k.permit, k.why, k.owner, k.workload, k.mayAsk, k.notAsked, k.reader = a.Permit, a.Why, a.Owner, a.Workload, a.MayAsk, a.NotAsked, a.Reader
	if k.path.key.Interface == 0 { // else nothing is concluded from who is at the address elsewhere
		c.observeIdentity(k, a)
	}
}

// observeBlocked excludes a connection that cannot be looked at, or includes it again.
// What was concluded from earlier looks is dropped, as they are old by then.
func (c *Core) observeBlocked(b *Blocked) {
	k := c.conns[b.Key]
	if k == nil {
		return
	}
	k.blocked = b.On
	if k.blocked {
		k.setWaiting(false)
		k.setAwaitingReply(0)
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
	k.setAwaitingReply(0)
	k.reap = reapOver // a queued reap finds this and is dropped
	delete(c.conns, key)
	p := k.path
	delete(p.conns, key.Cookie)
	if k.mayAsk {
		p.mayAsk--
	}
	last := len(p.list) - 1
	p.list[k.at] = p.list[last]
	p.list[k.at].at = k.at
	p.list[last] = nil
	p.list = p.list[:last]
	c.leaveBackend(k)
	if len(p.conns) > 0 {
		return
	}
	if p.down || p.fenceAt != 0 {
		// The reaped clients will be back, and should find the endpoint known
		// to be down, or find its fence.
		p.empty = c.now
		return
	}
	c.dropPath(p)
}

// dropPath forgets a path that has no connection, and what existed only for it.
func (c *Core) dropPath(p *path) {
	e := p.endpoint
	if p.refuses {
		c.event(Event{Type: EndpointAccepts, Path: p.key, Text: "nobody connects to it any more: forgotten"})
	}
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
		delete(c.endpoints, e.key)
		c.ranked = slices.DeleteFunc(c.ranked, func(x *endpoint) bool { return x == e })
		c.tidyNode(e.key.addr)
	}
}

// close ends what was reported about k.
func (c *Core) close(k *conn, t EventType, text string) {
	if k.open {
		k.open, k.openBy = false, ""
		if k.peer.fact.said {
			k.setPeer().fact.said = false
		}
		c.event(Event{Type: t, Path: k.path.key, Key: k.key, Text: text})
	}
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
