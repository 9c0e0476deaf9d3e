package supervisor

import (
	"cmp"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/supervisor/armer"
	"github.com/redisguard/redisguard/supervisor/attribution"
	"github.com/redisguard/redisguard/supervisor/discovery"
	"github.com/redisguard/redisguard/supervisor/journal"
	"github.com/redisguard/redisguard/supervisor/targets"
	"github.com/redisguard/redisguard/supervisor/tuner"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

const (
	// maxPerSpace bounds the connections watched in one namespace, so that no workload
	// can use up what is there for all.
	maxPerSpace = 20_000
	// askAgain is how often the holders of connections are looked for again that could
	// not be found, and maxAskAgain how many at a time; maps are walked in another order
	// each time, so each one's turn comes.
	askAgain    = 15 * time.Second
	maxAskAgain = 1000
	// reportEvery is how often the tuner is told of all namespaces, reportGap the least
	// pause between two such reports when something has changed.
	reportEvery = 15 * time.Second
	reportGap   = 500 * time.Millisecond
)

// table is what the watcher knows of the node.
type table struct {
	spaces map[netns.ID]*space
	byKey  map[verdict.NS]*space
	conns  map[verdict.ConnKey]*tracked
}

func newTable() table {
	return table{spaces: map[netns.ID]*space{}, byKey: map[verdict.NS]*space{}, conns: map[verdict.ConnKey]*tracked{}}
}

// tracked is a connection.
type tracked struct {
	key       verdict.ConnKey
	space     *space
	conn      tcpstate.Connection // as last seen
	holder    policy.Holder
	arm       armer.Conn     // when it was last looked at is there
	round     uint64         // in which it was last looked at
	forgotten bool           // it is not in the table any more
	alone     bool           // to be looked at alone, see blockedAt
	block     *block         // it cannot be looked at
	refusal   policy.Refusal // why it may not be reaped
	asked     time.Duration  // when it was last asked; 0 once it has answered
	opened    policy.Answer  // whether it was opened here
	told      bool           // the kernel told of its connect
	from      time.Duration  // when that began, 0 if unknown
}

// space is a network namespace.
type space struct {
	ns        netns.Namespace
	key       verdict.NS
	conns     map[uint64]*tracked
	occupants policy.Occupants // who lives in it, but for what its connections say
	turn      []*tracked       // to be looked at in this round
	looked    time.Duration    // when all in it were last looked at
	suspect   uint64           // the round in which one of its paths was suspect
	lost      bool             // its way in is broken; the discoverer looks for another
	blocked   int              // how many of its connections cannot be looked at
	closed    bool             // too many: it is not looked at
	careful   bool             // some are to be looked at alone
	full      bool             // it was said that it has too many connections

	unrelated atomic.Bool // a look at unrelated connections is under way
}

// updateSpaces brings the list of namespaces, the host's first, up to date.
func (w *watcher) updateSpaces(list []netns.Namespace) {
	if w.off {
		return
	}
	seen := make(map[netns.ID]bool, len(list))
	for i, ns := range list {
		seen[ns.ID] = true
		sp := w.spaces[ns.ID]
		if sp == nil {
			w.reportSoon = true
			sp = &space{key: verdict.NS(ns.ID.Number()), conns: map[uint64]*tracked{}, looked: monotonic() - rand.N(allWithin)}
			w.spaces[ns.ID] = sp
			w.byKey[sp.key] = sp
		}
		sp.ns, sp.lost = ns, false
		if i == 0 && sp.key != w.hostNS {
			w.hostNS = sp.key
			w.set.HostNS = w.hostNS
			w.in.Settings = &w.set
			w.rec.Begin(w.set)
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

// add takes in connections that were found.
func (w *watcher) add(f *discovery.Found) {
	sp := w.spaces[f.NS]
	if w.off || sp == nil { // it is gone meanwhile
		return
	}
	var ask []*attribution.Subject
	for i := range f.Connections {
		k := &f.Connections[i]
		if f.Opened == policy.No {
			w.forget(sp.conns[k.Cookie])
			continue
		}
		if t := sp.conns[k.Cookie]; t != nil && t.opened != f.Opened {
			t.opened, t.told, t.from = f.Opened, f.Told, f.Began(i)
			w.introduce(t)
		}
		if sp.conns[k.Cookie] != nil || !w.policy.Interest.Wants(k.Local, k.Remote, k.Mark) { // found under an older config
			continue
		}
		if len(sp.conns) >= maxPerSpace {
			if !sp.full {
				sp.full = true
				w.s.log.Warn("a namespace has more connections to watched ports than are watched", "namespace", sp.ns, "watched", maxPerSpace)
			}
			break
		}
		t := &tracked{key: verdict.ConnKey{NS: sp.key, Cookie: k.Cookie}, space: sp, conn: *k, opened: f.Opened, told: f.Told, from: f.Began(i)}
		t.arm = armer.Conn{Key: t.key, NS: &sp.ns, TCP: &t.conn, Seen: monotonic(), Holder: &t.holder}
		sp.conns[k.Cookie] = t
		w.conns[t.key] = t
		w.introduce(t)
		w.recall(sp, k)
		if sp.closed {
			w.leaveOut(sp, t)
		}
		w.fresh = append(w.fresh, t)
		ask = append(ask, t.subject())
	}
	if len(ask) > 0 && !w.s.attribution.Request(ask) {
		// The attributor is far behind: they are only observed until requestHolders asks.
		w.s.figures.TasksSkipped.Add(1)
		w.unasked = true
	}
}

func (t *tracked) subject() *attribution.Subject {
	return &attribution.Subject{Key: t.key, NS: t.space.ns, ID: t.conn.ID, Inode: t.conn.Inode, UID: t.conn.UID}
}

// requestHolders asks for the holders that the attributor had no room to be asked for, or, once
// more, for those that could not be found: a namespace may have been without a way in, a pod
// without its name.
func (w *watcher) requestHolders(unasked bool) {
	var ask []*attribution.Subject
	for _, t := range w.conns {
		h := &t.holder
		open := !h.Asked || h.Owner != nil && !h.Owner.Complete
		missing := t.arm.Lost() || h.Owner == nil || h.Owner.Workload.PodUID != "" && h.Owner.PodName == ""
		if t.conn.Inode != 0 && (open || missing && !unasked) {
			if ask = append(ask, t.subject()); len(ask) == maxAskAgain && !unasked {
				break
			}
		}
	}
	if len(ask) == 0 || w.s.attribution.Request(ask) { // or, if it is busy, the next time
		w.unasked = false
	}
}

// attributed takes in whose connections are, and who lives in namespaces.
func (w *watcher) attributed(a *attribution.Answers) {
	for id, o := range a.Occupants {
		sp := w.spaces[id]
		if sp == nil || sp.occupants.Equal(&o) {
			continue
		}
		sp.occupants = o
		for _, t := range sp.conns {
			if t.holder.Asked && t.holder.Unknown() != "" { // what listens decides about those
				w.introduce(t)
			}
		}
	}
	for i := range a.Holders {
		t := w.conns[a.Holders[i].Key]
		if t == nil {
			continue
		}
		t.arm.Found()
		if t.holder.Equal(&a.Holders[i].Holder) {
			continue
		}
		t.holder, w.reportSoon = a.Holders[i].Holder, true
		w.introduce(t)
	}
}

// introduce tells the core of a connection, or what has changed about it.
func (w *watcher) introduce(t *tracked) {
	who := policy.Subject{Occupants: &t.space.occupants, Connection: &t.conn, Holder: &t.holder}
	if t.told || t.conn.HasInfo { // else its counters may still tell that it was accepted
		who.Opened = t.opened
	}
	watched, _ := w.policy.Interest.Of(t.conn.Remote)
	t.arm.Refusal = w.policy.May(policy.Arm, who)
	t.refusal = w.policy.Permit(policy.Reap, who, &watched)
	permit := verdict.MayReap
	if t.refusal.Refused() {
		permit = verdict.ObserveOnly
	}
	mayAsk, notAsked := t.arm.MayAsk(w.policy.Permit(policy.Arm, who, &watched))
	w.in.Appeared = append(w.in.Appeared, verdict.Appeared{
		MayAsk: mayAsk, NotAsked: notAsked, Workload: t.holder.Client(), Reader: w.policy.Reads(watched.Target, &t.holder),
		Key: t.key, Opened: t.from, Local: t.conn.Local, Remote: t.conn.Remote, Interface: t.conn.Interface, Permit: permit, Why: t.refusal.Why, OnlyMode: t.refusal.Exempt.OnlyMode(), Owner: t.holder.Word(),
	})
}

// countLocal tells how many connections lead to each target: as long as none does, nobody asks
// its nodes.
func (w *watcher) countLocal() {
	if len(w.policy.Config.Targets) == 0 {
		return
	}
	all := targets.Count(w.policy.Interest)
	for _, sp := range w.spaces {
		for _, t := range sp.conns {
			all.Add(t.conn.Remote, sp.ns)
		}
	}
	w.s.targets.SetLocal(all.Locals)
}

// recall hands over what an earlier run of the daemon has found out about a path.
func (w *watcher) recall(sp *space, k *tcpstate.Connection) {
	path := verdict.PathKey{NS: sp.key, Endpoint: k.Remote, Interface: k.Interface}
	if sp.ns.ID.Cookie == 0 || w.recalled[path] {
		return
	}
	w.recalled[path] = true
	if p, ok := w.baselines.Recall(path, monotonic(), w.set.Baseline); ok {
		w.in.Probes = append(w.in.Probes, p)
	}
}

// drop takes a connection out of the table.
func (w *watcher) drop(t *tracked) {
	t.forgotten = true
	delete(w.conns, t.key)
	delete(t.space.conns, t.key.Cookie)
	w.left[t.key] = t
}

// forget drops a connection that the core does not know to be gone.
func (w *watcher) forget(t *tracked) {
	if t == nil {
		return
	}
	w.drop(t)
	w.in.Gone = append(w.in.Gone, t.key)
}

// report tells the tuner who lives where, when there is something new and every now and
// then.
func (w *watcher) report(now time.Duration) {
	if age := now - w.reported; age < reportGap || !w.reportSoon && age < reportEvery && w.reported != 0 {
		return
	}
	if len(w.spaces) == 0 {
		return // not listed yet
	}
	w.reportSoon, w.reported = false, now
	if w.policy.Most(policy.Tune) == config.Off {
		return
	}
	list := make([]tuner.Report, 0, len(w.spaces))
	for _, sp := range w.spaces {
		x := tuner.Report{NS: sp.ns, Host: sp.key == w.hostNS}
		x.Mode, _ = w.policy.Mode(policy.Tune)
		for _, t := range sp.conns {
			if t.conn.Inode != 0 && t.opened == policy.Yes { // an orphan has no owner
				x.Occupants.AddConnection(w.policy, &t.holder, t.conn.UID)
				m, _ := w.policy.ModeAt(policy.Tune, t.conn.Remote)
				x.Mode = max(x.Mode, m)
			}
		}
		list = append(list, x)
	}
	w.s.tuner.Report(list)
}

// on says whether the connection is of a path of its namespace.
func (t *tracked) on(p *verdict.PathKey) bool {
	return t.conn.Remote == p.Endpoint && t.conn.Interface == p.Interface
}

// send completes an event about a connection or a namespace with names, and publishes it.
func (w *watcher) send(e event.Event, key verdict.ConnKey) {
	e.NS, e.Cookie = key.NS, key.Cookie
	if sp := w.byKey[key.NS]; sp != nil {
		e.Namespace = sp.ns.String()
	}
	if t := cmp.Or(w.conns[key], w.left[key]); t != nil {
		e.Connection, e.Interface = journal.Describe(&t.conn, t.holder.Owner), t.conn.Interface
		if e.Namespace == "" { // it has gone together with the connection
			e.Namespace = t.space.ns.String()
		}
	}
	w.s.publish(e)
}
