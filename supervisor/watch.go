package supervisor

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// result is what an errand brings back.
type result struct {
	probe  *verdict.Probe
	hop    *verdict.NextHop
	others *verdict.Others
}

const (
	// suspectTick is the pause between looks while anything is suspect, and
	// suspectTickEach what every suspect path adds to it, up to the usual tick:
	// a single broken flow is found fastest, a thousand cost no more than one.
	suspectTick     = 100 * time.Millisecond
	suspectTickEach = time.Millisecond
	// everyone is within how long each connection is looked at, and
	// everyoneHeard where the kernel tells of retransmissions, so that the look is
	// left for what makes none: replies, keepalive, ends; and for what it does not
	// tell, see tcpstate.Retransmits.
	everyone      = time.Second
	everyoneHeard = 3 * time.Second
	// perTick is how many connections are looked at at every tick in quiet
	// times, all of them if there are no more. 500 looks are some 0.8 ms.
	perTick = 500
	// maxPerSpace bounds the connections watched in one namespace, so that no
	// workload can use up what is there for all.
	maxPerSpace = 20_000
	// askAgain is how often the owners of connections are looked for again that
	// could not be found.
	askAgain = 15 * time.Second
	// suspectsPerTick bounds the looks at suspect paths per tick, where there
	// are more connections than perTick; suspectsPerPath those at one path. The
	// paths take turns.
	suspectsPerTick = 100
	suspectsPerPath = 4
	// suspectsPerTickHeard is as much where the kernel tells of retransmissions:
	// then those who go on being silent are looked at for it.
	suspectsPerTickHeard = 20
	// stepEach and stepsApart keep steps apart while many paths are suspect, each
	// of which they look at: results of errands wait so long for the next one.
	stepEach   = 800 * time.Microsecond
	stepsApart = 100 * time.Millisecond
)

// tracked is a connection in the watcher's table.
type tracked struct {
	key       verdict.ConnKey
	space     *space
	conn      tcpstate.Connection // as last seen
	own       ownership
	arm       armed
	round     uint64        // in which it was last looked at
	seen      time.Duration // when it was last looked at
	forgotten bool          // it is not in the table any more
	alone     bool          // to be looked at with nobody else, see heldUp
	hold      *hold         // not to be looked at
	// permit as the core was told.
	permit verdict.Permit
	exempt Exemption
	why    string
	// untouchable is why no job may touch it, if so; see touchable.
	untouchable    Exemption
	untouchableWhy string
}

// space is a namespace in the watcher's table.
type space struct {
	ns      netns.Namespace
	key     verdict.NS
	conns   map[uint64]*tracked
	turn    []*tracked    // to be looked at in this round
	looked  time.Duration // when everyone in it was last looked at
	suspect uint64        // the round in which one of its paths was suspect
	lost    bool          // its way in is broken; the discoverer looks for another
	held    int           // how many of its connections cannot be looked at
	closed  bool          // too many: it is not looked at
	careful bool          // some are to be looked at alone

	othersAway atomic.Bool // see others
	full       bool        // it was said that it has too many connections
}

// watcher is the state of the watching loop.
type watcher struct {
	s        *Supervisor
	thread   *netns.Thread
	core     *verdict.Core
	set      verdict.Settings
	rec      *recorder
	in       verdict.Input
	spaces   map[netns.ID]*space
	byKey    map[verdict.NS]*space
	hostNS   verdict.NS
	conns    map[verdict.ConnKey]*tracked
	suspects []verdict.PathKey
	wake     time.Duration
	stepped  time.Duration // when the last step was made
	round    uint64        // of looks
	probeID  uint64
	nextAsk  time.Duration
	reps     []*tracked // representatives, see there
	repsAt   time.Duration
	retrans  retransmits
	memory   *memory
	recalled map[verdict.PathKey]bool // paths whose predecessor's probe was handed over
	off      bool
	switched bool        // the off switch was there when we last looked
	told     event.Mode  // as published last
	askedBy  *event.Peer // who asks for what is being done; nil is nobody
	asked    allowance
	news     news // for the tuner
	nextArm  time.Duration
	armed    time.Duration // when it was last looked whom to arm
	picker   picker
	canaries []*tracked                               // as picked last
	canaryAt time.Duration                            // when they were last looked at
	toldArm  bool                                     // that some cannot be
	deniedAt time.Duration                            // when some could not be
	mayTrace bool                                     // we have CAP_SYS_PTRACE
	options  map[keepalive.Options]*keepalive.Options // see share
	left     map[verdict.ConnKey]*tracked             // gone since the last step, which may speak of them
	fresh    []*tracked                               // not looked at yet

	travellers travellers
	held       []*tracked // that cannot be looked at

	// Kept for their memory.
	ids     []tcpstate.ID
	results []tcpstate.Result
	turn    []*space // with connections to be looked at
	looks   []look
	stops   []stop
}

// nsKey names a namespace for the core. Cookies start at 1 and stay far below
// the range of the inode numbers of nsfs, which the kernel allocates from
// 0xF0000000 on (PROC_DYNAMIC_FIRST in fs/proc).
func nsKey(id netns.ID) verdict.NS {
	if id.Cookie != 0 {
		return verdict.NS(id.Cookie)
	}
	return verdict.NS(id.Inode)
}

// watch looks, judges and acts until ctx ends.
func (s *Supervisor) watch(ctx context.Context) error {
	thread, err := netns.NewThread()
	if err != nil {
		return err
	}
	defer thread.Close()
	w := &watcher{
		s: s, thread: thread, spaces: map[netns.ID]*space{}, byKey: map[verdict.NS]*space{}, conns: map[verdict.ConnKey]*tracked{},
	}
	c := s.config()
	dir := s.opt.StateDir
	if dir == "" {
		dir = StateDir
	}
	if w.memory, err = openMemory(dir); err != nil {
		s.log.Warn("starting without what earlier probes have found", "error", err)
	}
	w.recalled = map[verdict.PathKey]bool{}
	w.set = settings(c, 0)
	w.core = verdict.New(w.set)
	w.rec = openRecorder(c.Record, s.log)
	defer w.rec.close()
	defer w.travellers.end()
	defer w.retrans.close()
	w.left = map[verdict.ConnKey]*tracked{}
	w.switched = s.disabled()
	if w.mayTrace, err = sys.HasCapability(unix.CAP_SYS_PTRACE); err != nil {
		s.log.Debug("cannot tell whether other processes' sockets can be reached", "error", err)
		w.mayTrace = true
	}
	w.announce("redisguard has started with mode " + s.ceiling(c).String())
	return w.loop(ctx)
}

func (w *watcher) loop(ctx context.Context) error {
	s := w.s
	timer := time.NewTimer(0)
	defer timer.Stop()
	var nextTick, nextAlive time.Duration
	for {
		ticked := false
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
			w.reconfigure()
		case list := <-s.spaces:
			w.takeSpaces(list)
		case f := <-s.found:
			w.takeFound(ctx, f)
		case answers := <-s.answered:
			w.takeAnswers(answers)
		case r := <-s.results:
			w.takeResult(r)
		case r := <-s.armResults:
			w.takeArmed(r)
		case do := <-s.asks:
			if err := do(w); err != nil {
				return err
			}
		case <-timer.C:
			ticked = true
		}
		w.drain(ctx)
		now := monotonic()
		c := s.config()
		if ticked && now >= nextAlive {
			nextAlive = now + time.Second
			if s.opt.Alive != nil {
				s.opt.Alive()
			}
			w.letGo(now)
			if now >= w.nextAsk {
				w.nextAsk = now + askAgain
				w.askUnknown()
			}
			if err := w.memory.save(now, c.Probe.Baseline); err != nil {
				s.log.Debug("cannot keep what probes have found for the next start", "error", err)
			}
		}
		w.checkSwitch()
		if w.off {
			s.figures.succeeded(Watcher)
			timer.Reset(500 * time.Millisecond)
			nextTick = 0
			continue
		}
		w.tellTuner(now)
		w.arm(now)
		tick := c.Watch.Tick
		if n := len(w.suspects); n > 0 {
			tick = min(tick, suspectTick+time.Duration(n)*suspectTickEach)
		}
		if ticked && now >= nextTick {
			late := time.Duration(0)
			if nextTick != 0 {
				late = now - nextTick
			}
			// Late by more than the time between two ticks is worth knowing.
			if late > tick {
				w.in.Late = late
				s.stats.late.Add(1)
			}
			if err := w.lookAround(); err != nil {
				return err
			}
			s.figures.round(late)
			nextTick = now + tick
		}
		if gap := min(stepsApart, time.Duration(len(w.suspects))*stepEach); !ticked && now < w.stepped+gap {
			timer.Reset(max(0, min(w.stepped+gap, nextTick)-now))
			continue
		}
		if err := w.step(ctx); err != nil {
			return err
		}
		if n := len(w.suspects); n > 0 {
			nextTick = min(nextTick, now+suspectTick+time.Duration(n)*suspectTickEach)
		}
		next := nextTick
		if w.wake != 0 {
			next = min(next, w.wake)
		}
		timer.Reset(max(0, next-monotonic()))
	}
}

// drain takes in what else has come, so that one step serves it all.
func (w *watcher) drain(ctx context.Context) {
	s := w.s
	for {
		select {
		case list := <-s.spaces:
			w.takeSpaces(list)
		case f := <-s.found:
			w.takeFound(ctx, f)
		case answers := <-s.answered:
			w.takeAnswers(answers)
		case r := <-s.results:
			w.takeResult(r)
		case r := <-s.armResults:
			w.takeArmed(r)
		default:
			return
		}
	}
}

// step hands over what was observed and does what follows. Actions have results,
// which are handed over at once, since a verdict may hang on them.
func (w *watcher) step(ctx context.Context) error {
	for range 3 {
		w.in.Now = monotonic()
		w.stepped = w.in.Now
		w.rec.write(&w.in)
		out := w.core.Step(&w.in)
		w.s.stats.steps.Add(1)
		w.in.Reset()
		w.suspects = append(w.suspects[:0], out.Suspects...)
		w.wake = out.Wake
		for i := range out.Events {
			w.publish(&out.Events[i])
		}
		clear(w.left)
		if err := w.reap(out.Reap); err != nil {
			return err
		}
		if err := w.lookAtPaths(out.Look); err != nil {
			return err
		}
		for _, p := range out.NextHop {
			w.nextHop(ctx, p)
		}
		for _, o := range out.Others {
			w.others(ctx, o)
		}
		for _, p := range out.Probe {
			w.probe(ctx, p)
		}
		if len(w.in.Reaped) == 0 && len(w.in.Probes) == 0 && len(w.in.Samples) == 0 {
			break
		}
	}
	w.s.stats.tracked.Store(int64(len(w.conns)))
	return nil
}

// settings are the core's numbers from the config.
func settings(c *config.Config, host verdict.NS) verdict.Settings {
	return verdict.Settings{
		HostNS: host, DownAfter: c.EffectiveDownAfter(), MinSilence: c.Reap.MinSilence, Rate: c.Reap.Rate, Burst: c.Reap.Burst,
		MaxShare: c.Reap.MaxShare, Spread: c.Reap.Spread, ProbesPerSecond: c.Probe.PerSecond, Baseline: c.Probe.Baseline,
		OnDown: verdict.Policy(c.Policy.OnDown.String()), OnUnresponsive: verdict.Policy(c.Policy.OnUnresponsive.String()),
	}
}

// Settings are the core's numbers from the config, for a replay.
func Settings(c *config.Config, host verdict.NS) verdict.Settings { return settings(c, host) }

func (w *watcher) reconfigure() {
	c := w.s.config()
	w.set = settings(c, w.hostNS)
	w.in.Settings = &w.set
	w.news.soon = true
	for _, t := range w.conns {
		if !slices.Contains(c.Watch.Ports, t.conn.Remote.Port()) || !wanted(c, &t.conn) {
			w.forget(t)
			continue
		}
		w.tell(t)
	}
	for _, sp := range w.spaces {
		w.s.lookSoon(sp.ns.ID) // there may be other ports now
	}
	w.checkSwitch()
	w.tellMode("the mode is now " + w.mode().Effective)
}

// switchOff forgets everything, or begins anew.
func (w *watcher) switchOff(off bool) {
	w.off = off
	w.spaces, w.byKey, w.conns = map[netns.ID]*space{}, map[verdict.NS]*space{}, map[verdict.ConnKey]*tracked{}
	w.in.Reset()
	w.in.Anew = true
	w.recalled = map[verdict.PathKey]bool{} // the core is to be told once more
	w.suspects, w.wake, w.reps, w.canaries, w.picker = nil, 0, nil, nil, picker{}
	w.toldArm = false // the finding ends with the rest
	w.fresh, w.held = nil, nil
	w.s.stats.tracked.Store(0)
	w.news = news{}
	text := "redisguard is on"
	if off {
		text = "redisguard is off: nothing is watched and nothing touched"
	} else {
		// It goes on looking while we still believe to be off: once more.
		select {
		case w.s.restart <- struct{}{}:
		default:
		}
	}
	w.announce(text)
}

// takeSpaces brings the list of namespaces up to date.
func (w *watcher) takeSpaces(list spaceList) {
	if w.off {
		return
	}
	seen := make(map[netns.ID]bool, len(list))
	for i, ns := range list {
		seen[ns.ID] = true
		sp := w.spaces[ns.ID]
		if sp == nil {
			w.news.soon = true
			sp = &space{key: nsKey(ns.ID), conns: map[uint64]*tracked{}, looked: monotonic() - rand.N(everyone)}
			w.spaces[ns.ID] = sp
			w.byKey[sp.key] = sp
		}
		sp.ns, sp.lost = ns, false
		if i == 0 && sp.key != w.hostNS {
			w.hostNS = sp.key // the list has the host's first
			w.set.HostNS = w.hostNS
			w.in.Settings = &w.set
			w.rec.begin(w.set)
		}
	}
	for id, sp := range w.spaces {
		if seen[id] {
			continue
		}
		for _, t := range sp.conns {
			w.forget(t)
		}
		delete(w.spaces, id)
		delete(w.byKey, sp.key)
		for p := range w.recalled {
			if p.NS == sp.key {
				delete(w.recalled, p)
			}
		}
	}
}

// takeFound adds connections that were not known.
func (w *watcher) takeFound(ctx context.Context, f found) {
	if w.off {
		return
	}
	sp := w.spaces[f.ns]
	if sp == nil {
		// The list that names it was sent before, on another channel.
		select {
		case list := <-w.s.spaces:
			w.takeSpaces(list)
		default:
		}
		if sp = w.spaces[f.ns]; sp == nil {
			return // gone meanwhile
		}
	}
	c := w.s.config()
	var ask []*subject
	for i := range f.conns {
		k := &f.conns[i]
		if t := sp.conns[k.Cookie]; t != nil {
			continue
		}
		if !slices.Contains(c.Watch.Ports, k.Remote.Port()) || !wanted(c, k) {
			continue // dumped under an older config
		}
		if len(sp.conns) >= maxPerSpace {
			if !sp.full {
				sp.full = true
				w.s.log.Warn("a namespace has more connections to watched ports than are watched", "namespace", sp.ns, "watched", maxPerSpace)
			}
			break
		}
		t := &tracked{key: verdict.ConnKey{NS: sp.key, Cookie: k.Cookie}, space: sp, conn: *k, seen: monotonic()}
		sp.conns[k.Cookie] = t
		w.conns[t.key] = t
		w.tell(t)
		w.recall(sp, k.Remote)
		if sp.closed {
			w.leaveOut(sp, t)
		}
		w.fresh = append(w.fresh, t)
		ask = append(ask, subjectOf(t))
	}
	if len(ask) == 0 {
		return
	}
	select {
	case w.s.ask <- ask:
	default:
		// The attributor is far behind. Unasked is observed only; the next full
		// look cannot repair that, so wait for it on an errand.
		if !w.s.errands.run(ctx, func(ctx context.Context) {
			select {
			case w.s.ask <- ask:
			case <-ctx.Done():
			}
		}) {
			for _, sub := range ask {
				w.forget(w.conns[sub.key]) // found again by the next look
			}
			w.s.stats.skippedErrands.Add(1)
		}
	}
}

func subjectOf(t *tracked) *subject {
	return &subject{key: t.key, ns: t.space.ns, id: t.conn.ID, inode: t.conn.Inode, uid: t.conn.UID}
}

// askUnknown asks once more whose the connections are that nobody could tell: a
// namespace may have been without a way in, a pod without its name.
func (w *watcher) askUnknown() {
	var ask []*subject
	for _, t := range w.conns {
		o := &t.own
		if t.conn.Inode != 0 && (!o.asked || t.arm.lost || o.owner == nil || o.owner.Workload.PodUID != "" && o.owner.PodName == "") {
			if ask = append(ask, subjectOf(t)); len(ask) == maxAskAgain {
				break
			}
		}
	}
	if len(ask) == 0 {
		return
	}
	select {
	case w.s.ask <- ask:
	default: // busy: the next time
	}
}

// maxAskAgain bounds a second question; maps are walked in another order each
// time, so everybody's turn comes.
const maxAskAgain = 1000

// recall hands over what an earlier run of the daemon has found out about a path.
func (w *watcher) recall(sp *space, endpoint netip.AddrPort) {
	path := verdict.PathKey{NS: sp.key, Endpoint: endpoint}
	if sp.ns.ID.Cookie == 0 || w.recalled[path] {
		return
	}
	w.recalled[path] = true
	if p, ok := w.memory.recall(path, monotonic(), w.set.Baseline); ok {
		w.in.Probes = append(w.in.Probes, p)
	}
}

// tell introduces a connection to the core, or what has changed about it.
func (w *watcher) tell(t *tracked) {
	c := w.s.config()
	t.untouchable, t.untouchableWhy = w.s.touchable(c, &t.conn, &t.own)
	t.permit, t.exempt, t.why = w.s.permit(c, &t.conn, &t.own)
	w.in.Appeared = append(w.in.Appeared, verdict.Appeared{
		Key: t.key, Local: t.conn.Local, Remote: t.conn.Remote, Permit: t.permit, Why: t.why, Owner: ownerWord(t.own.owner),
	})
}

func (w *watcher) takeAnswers(answers []answer) {
	for i := range answers {
		if t := w.conns[answers[i].key]; t != nil {
			t.own = answers[i].own
			t.arm.lost = false
			w.news.soon = true
			w.tell(t)
		}
	}
}

func (w *watcher) takeResult(r result) {
	switch {
	case r.probe != nil:
		if sp := w.byKey[r.probe.Path.NS]; sp != nil && sp.ns.ID.Cookie != 0 {
			w.memory.note(r.probe)
			w.recalled[r.probe.Path] = true
		}
		w.in.Probes = append(w.in.Probes, *r.probe)
	case r.hop != nil:
		w.in.NextHops = append(w.in.NextHops, *r.hop)
	case r.others != nil:
		w.in.Others = append(w.in.Others, *r.others)
	}
}

// drop takes a connection out of the table.
func (w *watcher) drop(t *tracked) {
	t.forgotten = true
	delete(w.conns, t.key)
	delete(t.space.conns, t.key.Cookie)
	w.left[t.key] = t
	if t.arm.canary { // another is to take its place
		w.nextArm = min(w.nextArm, w.armed+armSoon)
	}
}

// forget drops a connection that the core does not know to be gone.
func (w *watcher) forget(t *tracked) {
	if t == nil {
		return
	}
	w.drop(t)
	w.in.Gone = append(w.in.Gone, t.key)
}

// lookAround takes a sample of every connection whose turn it is: all if they are
// few, else some of each endpoint at every tick, those of suspect paths too, those
// that retransmit, and everyone now and then.
func (w *watcher) lookAround() error {
	w.round++
	now := monotonic()
	every := everyone
	if w.retrans.hear(w) {
		every = everyoneHeard
	}
	for _, t := range w.fresh {
		w.take(t)
	}
	w.fresh = w.fresh[:0]
	all := len(w.conns) <= perTick
	if !all {
		chosen := now-w.repsAt >= everyone
		if chosen {
			w.representatives()
			w.repsAt = now
		}
		// Where a silence tells of itself they need not be looked at to see one.
		if chosen || every == everyone || len(w.suspects) > 0 {
			for _, t := range w.reps {
				w.take(t)
			}
		}
		most := suspectsPerTick
		if every == everyoneHeard {
			most = suspectsPerTickHeard
		}
		w.takeSuspects(most)
		if now-w.canaryAt >= canaryLook {
			w.canaryAt = now
			for _, t := range w.canaries {
				w.take(t)
			}
		}
	}
	for _, sp := range w.spaces {
		pause := every
		if sp.suspect == w.round {
			pause = everyone
		}
		if all || now-sp.looked >= pause {
			// Chance keeps the namespaces from falling into step with each other.
			sp.looked = now - rand.N(pause/8)
			for _, t := range sp.conns {
				w.take(t)
			}
		}
	}
	return w.lookAtTurn()
}

// take has a connection looked at in this round.
func (w *watcher) take(t *tracked) {
	if t.round == w.round || t.forgotten || t.hold != nil || t.space.closed {
		return
	}
	t.round = w.round
	sp := t.space
	if len(sp.turn) == 0 {
		w.turn = append(w.turn, sp)
	}
	sp.turn = append(sp.turn, t)
}

// look is a look at some connections of a namespace.
type look struct {
	sp      *space
	conns   []*tracked
	ids     []tcpstate.ID
	results []tcpstate.Result
}

// lookAtTurn looks at what was taken, namespace by namespace.
func (w *watcher) lookAtTurn() error {
	n := 0
	for _, sp := range w.turn {
		n += len(sp.turn)
	}
	w.ids, w.results = slices.Grow(w.ids[:0], n), slices.Grow(w.results[:0], n)[:n]
	w.looks, w.stops = w.looks[:0], w.stops[:0]
	for _, sp := range w.turn {
		if sp.lost {
			continue
		}
		if sp.careful { // those that are to be looked at alone come first
			sp.careful = false
			for _, t := range sp.conns {
				sp.careful = sp.careful || t.alone
			}
			slices.SortFunc(sp.turn, func(a, b *tracked) int {
				switch {
				case a.alone == b.alone:
					return 0
				case a.alone:
					return -1
				}
				return 1
			})
		}
		for conns := sp.turn; len(conns) > 0; {
			m := len(conns)
			if conns[0].alone {
				m = 1
			}
			at := len(w.ids)
			for _, t := range conns[:m] {
				w.ids = append(w.ids, t.conn.ID)
			}
			l := look{sp: sp, conns: conns[:m], ids: w.ids[at:], results: w.results[at : at+m]}
			w.looks = append(w.looks, l)
			w.stops = append(w.stops, stop{ns: sp.ns, do: func(s *tcpstate.Socket) error { return s.Get(l.ids, l.results) }})
			conns = conns[m:]
		}
	}
	err := w.lookAt(w.looks, w.stops)
	for _, sp := range w.turn {
		sp.turn = sp.turn[:0]
	}
	w.turn = w.turn[:0]
	return err
}

// lookAt makes the looks, up to one that holds it up: what comes after that is for the
// next round, so that nobody waits for more than one of them.
func (w *watcher) lookAt(looks []look, stops []stop) error {
	done, free := w.travellers.away(stops)
	for i := range done {
		if err := w.takeLook(&looks[i], stops[i].err); err != nil {
			return err
		}
	}
	if free == nil {
		return nil
	}
	// These are the other goroutine's now.
	w.ids, w.results, w.stops = nil, nil, nil
	w.heldUp(looks[done].sp, looks[done].conns, free)
	for _, l := range looks[done+1:] {
		w.fresh = append(w.fresh, l.conns...)
	}
	return nil
}

// lookAtPaths looks at all connections of the paths that a verdict waits for.
func (w *watcher) lookAtPaths(paths []verdict.PathKey) error {
	if len(paths) == 0 {
		return nil
	}
	w.round++
	for _, p := range paths {
		if sp := w.byKey[p.NS]; sp != nil {
			for _, t := range sp.conns {
				if t.conn.Remote == p.Endpoint {
					w.take(t)
				}
			}
		}
	}
	return w.lookAtTurn()
}

// representatives picks a few connections of each endpoint, those that received
// most, since those show a silence first.
func (w *watcher) representatives() {
	const perEndpoint = 4
	best := map[netip.AddrPort][perEndpoint]*tracked{}
	for _, t := range w.conns {
		b := best[t.conn.Remote]
		for i := range b {
			if b[i] == nil || t.conn.Info.BytesReceived > b[i].conn.Info.BytesReceived {
				copy(b[i+1:], b[i:])
				b[i] = t
				best[t.conn.Remote] = b
				break
			}
		}
	}
	w.reps = w.reps[:0]
	for _, b := range best {
		for _, t := range b {
			if t != nil {
				w.reps = append(w.reps, t)
			}
		}
	}
}

// takeSuspects takes at most about so many connections of suspect paths, which
// take turns, and marks their namespaces.
func (w *watcher) takeSuspects(most int) {
	for _, p := range w.suspects {
		if sp := w.byKey[p.NS]; sp != nil {
			sp.suspect = w.round
		}
	}
	left := most
	for i := range w.suspects {
		p := w.suspects[(int(w.round)*most/suspectsPerPath+i)%len(w.suspects)]
		sp := w.byKey[p.NS]
		if sp == nil {
			continue
		}
		n := 0
		for _, silent := range []bool{true, false} { // those first that wait for something
			for _, t := range sp.conns {
				if n < suspectsPerPath && t.conn.Remote == p.Endpoint && silent == (t.conn.Info.Unacked > 0) {
					w.take(t)
					n++
				}
			}
		}
		if left -= n; left <= 0 {
			return
		}
	}
}

// takeLook takes in what a look has shown.
func (w *watcher) takeLook(l *look, err error) error {
	sp := l.sp
	w.s.stats.gets.Add(int64(len(l.ids)))
	switch {
	case errors.Is(err, netns.ErrStranded):
		return err
	case errors.Is(err, netns.ErrGone):
		sp.lost = true
		w.s.askRefresh()
		return nil
	case err != nil:
		w.s.log.Debug("cannot look at connections", "namespace", sp.ns, "error", err)
		return nil
	}
	now := monotonic()
	for i, t := range l.conns {
		r := &l.results[i]
		t.alone = false
		switch {
		case errors.Is(r.Err, tcpstate.ErrGone):
			w.forget(t)
		case r.Err != nil:
			w.s.log.Debug("cannot look at a connection", "namespace", sp.ns, "local", t.conn.Local, "remote", t.conn.Remote, "error", r.Err)
		default:
			orphaned := r.Inode == 0 && t.conn.Inode != 0
			t.conn, t.seen = r.Connection, now
			if orphaned {
				w.tell(t)
			}
			w.in.Samples = append(w.in.Samples, sample(t.key, &t.conn))
		}
	}
	return nil
}

// sample turns a look at a connection into the core's words.
func sample(key verdict.ConnKey, k *tcpstate.Connection) verdict.Sample {
	s := verdict.Sample{
		Key: key, Retrans: k.Retrans, Unacked: k.Info.Unacked, RTT: k.Info.RTT,
		LastDataSent: k.Info.LastDataSent, LastDataRecv: k.Info.LastDataRecv, LastAckRecv: k.Info.LastAckRecv,
		SegsIn: k.Info.SegsIn, DataSegsOut: k.Info.DataSegsOut, TotalRetrans: k.Info.TotalRetrans, BytesReceived: k.Info.BytesReceived,
	}
	switch k.State {
	case tcpstate.Established:
		s.State = verdict.Established
	case tcpstate.SynSent:
		s.State = verdict.SynSent
	}
	switch k.Timer {
	case tcpstate.TimerRetransmit:
		s.Timer = verdict.RetransmitTimer
	case tcpstate.TimerKeepalive:
		s.Timer = verdict.KeepaliveTimer
	case tcpstate.TimerZeroWindow:
		s.Timer = verdict.ZeroWindowTimer
	}
	return s
}
