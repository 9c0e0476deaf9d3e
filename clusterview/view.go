package clusterview

import (
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// Config is what a View is told of its target.
type Config struct {
	Name string
	Type Type // empty is Auto
	// MasterName is what the Sentinels call the target. Empty, it is the one name that they watch.
	MasterName string
	// Allow says whether an address may be dialled, and be an endpoint of the target. Nil allows
	// nothing.
	Allow func(netip.AddrPort) bool
	// Translate is the address map for NAT: from what nodes say to what is dialled, before Allow
	// is asked. Nil leaves addresses as they are.
	Translate func(netip.AddrPort) netip.AddrPort
	TLS       bool // the target is asked over TLS
	// Interval is how often each server is asked while all is quiet; 0 is 10 s. A large fleet
	// asks less often.
	Interval time.Duration
	// FleetSize is how many daemons there are; 0 is estimated from connected_clients.
	FleetSize int
	// Random is for jitter; each daemon has another one. It must not be nil.
	Random *rand.Rand
}

// maxSeeds is how many seeds are kept, and maxNames how many names are looked up.
const maxSeeds, maxNames = 64, reply.MaxNodes

// contact is a server that is asked, and what it said last.
type contact struct {
	addr netip.AddrPort
	// virtual says that it is an address of the config, which may be a service's, a load
	// balancer's, a virtual IP: it is judged by who is met there. named says that another node has
	// it as its primary's or replica's, so it stands for one node, whichever that is.
	virtual bool
	named   bool
	asked   time.Duration // when the question was sent to which it answered last
	failed  time.Duration // since when it has not answered; 0: it did, or was not asked
	mode    reply.Mode
	info    *reply.Info
	role    *reply.RoleReply
	primary time.Duration // since when it has said that it is a primary; 0: it does not
	turned  time.Duration // when it said for the first time that it is one no more; 0: never
	// node is the id of the node that answers here, in a Redis Cluster, since nodeSince.
	node, before string
	nodeSince    time.Duration
	refused      map[Command]time.Duration // not to be asked until then; see refuse
	problems     []Problem                 // of its last answer
	behind       behind
	digest       uint64 // of its last report
	migrations   migrations
}

// View is what is known of one target. It is for one goroutine at a time.
type View struct {
	cfg      Config
	kind     Type
	schedule *schedule
	contacts map[netip.AddrPort]*contact
	seeds    []netip.AddrPort
	outside  int // seeds that are not allowed
	names    map[string][]netip.Addr
	cluster  clusterState
	sentinel sentinelState
	top      *Topology
	changes  []Change
	lost     int // changes beyond maxChanges
}

// New returns a View that knows nothing yet.
func New(cfg Config) *View {
	if cfg.Type == "" {
		cfg.Type = Auto
	}
	draw := fmt.Sprint(cfg.Random.Uint64())
	return &View{
		cfg: cfg, kind: cfg.Type, schedule: newSchedule(cfg.Random, cfg.Interval, cfg.FleetSize),
		contacts: map[netip.AddrPort]*contact{}, names: map[string][]netip.Addr{},
		cluster: clusterState{reports: map[string]*report{}, told: map[toldBy]*report{}, absent: map[string]time.Duration{}, foreign: map[netip.AddrPort]bool{},
			draw: func(id string) uint64 {
				h := fnv.New64a()
				io.WriteString(h, draw+id)
				return h.Sum64()
			}},
		sentinel: sentinelState{told: map[netip.AddrPort]*told{}, absent: map[string]time.Duration{}, well: map[string]time.Duration{}, hints: map[netip.AddrPort]hint{}},
		top:      &Topology{Target: cfg.Name, Type: cfg.Type},
	}
}

// Topology is what is known now. It is never nil, and never changed.
func (v *View) Topology() *Topology { return v.top }

// Changes returns what has changed since the last call, and how many were lost because nobody
// fetched them.
func (v *View) Changes() (changes []Change, lost int) {
	changes, lost = v.changes, v.lost
	v.changes, v.lost = nil, 0
	return changes, lost
}

// SetSeeds gives the addresses of the config. What nodes have named besides is kept.
func (v *View) SetSeeds(now time.Duration, seeds []netip.AddrPort) {
	v.seeds, v.outside = nil, 0
	for _, a := range seeds {
		if a = unmap(a); !v.allowed(a) || len(v.seeds) == maxSeeds {
			v.outside++
			continue
		}
		v.seeds = append(v.seeds, a)
	}
	v.update(now)
}

// SetResolved gives the addresses of all names in Topology.Names that have any. What was given
// before is forgotten, or names that come and go would fill the room. It is one call for all
// since each merges all views anew.
func (v *View) SetResolved(now time.Duration, addrs map[string][]netip.Addr) {
	clear(v.names)
	for _, n := range slices.Sorted(maps.Keys(addrs)) {
		if list := addrs[n]; len(list) > 0 && len(v.names) < maxNames {
			v.names[n] = slices.Clone(list[:min(len(list), MaxEndpoints)])
		}
	}
	v.update(now)
}

// SetLocal tells how many connections of this node lead to the target. Without one, and unless
// Wake was called, nothing is asked.
func (v *View) SetLocal(now time.Duration, connections int) { v.schedule.setLocal(now, connections) }

// Wake tells that somebody asks about the target, or waits for it.
func (v *View) Wake(now time.Duration) { v.schedule.wake(now) }

// Suspect tells of evidence that something has happened: a stall, a reset, an answer that did
// not come, a change in DNS. addr is whom it is about; zero is all.
func (v *View) Suspect(now time.Duration, addr netip.AddrPort, why string) {
	v.schedule.hint(now, unmap(addr), why)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (v *View) allowed(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && v.cfg.Allow != nil && v.cfg.Allow(a)
}

// accept translates an address that was told, and says whether it is allowed.
func (v *View) accept(a netip.AddrPort) (netip.AddrPort, bool) {
	if v.cfg.Translate != nil && a.IsValid() {
		a = unmap(v.cfg.Translate(a))
	}
	return a, v.allowed(a)
}

// acceptTold is accept for what Sentinels and replicas say. A name is looked up.
func (v *View) acceptTold(a reply.Address) (netip.AddrPort, bool) {
	if a.Told == reply.Given && a.Name != "" {
		for _, ip := range v.names[a.Name] {
			if addr, ok := v.accept(netip.AddrPortFrom(ip, a.Port)); ok {
				return addr, true
			}
		}
		return netip.AddrPort{}, false
	}
	addr := a.AddrPort(netip.Addr{})
	if !addr.IsValid() {
		return addr, false
	}
	return v.accept(addr)
}

// silent says that a server does not answer us.
func (v *View) silent(a netip.AddrPort) bool { k := v.contacts[a]; return k != nil && k.failed != 0 }

// answers says that a server is asked and has answered the last time.
func (v *View) answers(a netip.AddrPort) bool { k := v.contacts[a]; return k != nil && k.failed == 0 }

// nodeSilent is silent for a node of a Redis Cluster: none of its addresses that we have asked
// answers, and it was asked.
func (v *View) nodeSilent(id string) bool {
	n := v.top.Node(id)
	if n == nil {
		return false
	}
	tried := false
	for _, e := range n.Endpoints {
		if k := v.contacts[e.Addr]; k != nil {
			other := k.node != "" && k.node != id // answers there
			if k.failed == 0 && k.asked > 0 && !other {
				return false
			}
			tried = tried || k.failed != 0 || other
		}
	}
	return tried
}

// roleOf is what a server that answers says of itself.
func (v *View) roleOf(a netip.AddrPort) reply.Role {
	k := v.contacts[a]
	switch {
	case k == nil || k.failed != 0:
		return ""
	case k.role != nil:
		return k.role.Role
	case k.info != nil:
		return k.info.Role
	}
	return ""
}

func (v *View) runOf(id string) (run string, loading bool) {
	n := v.top.Node(id)
	if n == nil {
		return "", false
	}
	run, loading = n.RunID, n.Loading
	for _, e := range n.Endpoints {
		if k := v.contacts[e.Addr]; k != nil && k.node == id && k.info != nil && k.failed == 0 {
			run, loading = k.info.RunID, k.info.Loading
		}
	}
	return run, loading
}

// update merges everything anew, notes what has changed, and says who is to be asked.
func (v *View) update(now time.Duration) {
	next := v.merge(now)
	next.Target = v.cfg.Name
	next.Known = next.Known && (v.top.Known || v.tried())
	next.settleAddresses(now, v.top)
	v.tellProblems(next)
	for _, c := range diff(now, v.top, next) {
		if len(v.changes) == maxChanges {
			v.lost++
			continue
		}
		v.changes = append(v.changes, c)
		v.schedule.hasty = max(v.schedule.hasty, now+hastyFor)
	}
	v.top = next
	v.setUnclear(now)
	v.setContacts(now)
}

// tried says that each seed was asked once. Before that it is too early for a first view: the
// seed that answers first may be the one that is cut off.
func (v *View) tried() bool {
	return !slices.ContainsFunc(v.seeds, func(a netip.AddrPort) bool {
		t := v.schedule.by[a]
		return t == nil || t.asked == 0 || t.pending
	})
}

func (v *View) merge(now time.Duration) *Topology {
	nodes := nodeMerging{accept: v.acceptTold, silent: v.silent, role: v.roleOf, about: func(a netip.AddrPort) *contact { return v.contacts[a] }, tls: v.cfg.TLS}
	switch v.kind {
	case Cluster:
		return v.cluster.merge(now, v.top, merging{silent: v.nodeSilent, answers: v.answers, run: v.runOf, accept: v.accept, names: func(n string) []netip.Addr { return v.names[n] }})
	case Sentinel:
		return v.sentinel.merge(now, v.top, nodes)
	case Replication, Standalone:
		members, outside := v.members(now)
		next := mergeReplication(now, v.kind, v.top, members, nodes)
		next.outside(outside)
		return next
	}
	return &Topology{Type: Auto}
}

// members are the nodes of a target without Sentinel: the seeds, and whom they name. What a
// named one names is followed as well, so that a new primary that only its replica knows is
// found; allow and the bound hold. One that is silent for long, and that nobody names while a
// primary answers, is none any more: there would be ever more of them where each new replica has
// a new address. outside are those that allow does not let in.
func (v *View) members(now time.Duration) (members []netip.AddrPort, outside map[netip.AddrPort]bool) {
	all := map[netip.AddrPort]bool{}
	outside = map[netip.AddrPort]bool{}
	for _, a := range v.seeds {
		all[a] = true
	}
	answers := false
	for a := range v.contacts {
		answers = answers || v.roleOf(a) == reply.RolePrimary
	}
	for a, k := range v.contacts {
		if k.role == nil {
			continue
		}
		if k.failed != 0 {
			if !answers || now-k.failed < leaveAfter {
				all[a] = true
			}
			continue
		}
		all[a] = true
		for _, named := range append(slices.Clone(k.role.Replicas), k.role.Primary) {
			a, ok := v.acceptTold(named)
			switch {
			case ok && len(all) < maxMembers:
				all[a] = true
			case !ok && a.IsValid() && len(outside) < maxMembers:
				outside[a] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), netip.AddrPort.Compare), outside
}

// leaveAfter is how long a node without Cluster and Sentinel must have been silent, and named by
// nobody, until it is none of the target's any more. A host boots in less.
const leaveAfter = 10 * time.Minute

// maxMembers is how many nodes a target without a Cluster may have. Each replica costs its
// primary a stream of all writes; more than some dozens are not run.
const maxMembers = 256

// setUnclear notes since when it is not clear who is the primary.
func (v *View) setUnclear(now time.Duration) {
	unclear := v.top.Known && v.top.State == Down || v.top.has(ProblemSplit) != nil || v.top.has(ProblemWritable) != nil
	for i := range v.top.Nodes {
		n := &v.top.Nodes[i]
		unclear = unclear || n.Role == reply.RolePrimary && (n.State == StateFailed && n.Successor == "" || n.Opinions > 0 && n.State == StateOK)
	}
	switch {
	case !unclear:
		v.schedule.unclear = 0
	case v.schedule.unclear == 0:
		v.schedule.unclear = max(now, 1)
	}
}

// tellProblems adds what is known beside the merged views.
func (v *View) tellProblems(t *Topology) {
	t.problem(ProblemOutside, "a seed is not in allow, or there are too many", v.outside)
	for _, a := range slices.SortedFunc(maps.Keys(v.contacts), netip.AddrPort.Compare) {
		k := v.contacts[a]
		for _, p := range k.problems {
			t.problem(p.Kind, p.Detail, p.Count)
		}
		for _, c := range slices.Sorted(maps.Keys(k.refused)) {
			if c.optional() {
				continue
			}
			t.problem(ProblemRefused, fmt.Sprintf("%v refuses %s", a, c), 1)
		}
		if k.behind.many {
			t.problem(ProblemMany, fmt.Sprintf("several processes alternate behind %v: nothing is stale for that", a), 1)
		}
	}
}

// setContacts says whom to ask: the seeds, one address of each node, and the Sentinels.
func (v *View) setContacts(now time.Duration) {
	all := map[netip.AddrPort]pace{}
	for _, a := range v.seeds {
		// Where nodes are known by themselves, a seed of a Redis Cluster is another way to one of them.
		all[a] = pace{calm: 1, hot: v.kind != Cluster || !v.top.Known}
	}
	voters := map[string]bool{}
	if v.kind == Cluster {
		for _, id := range v.cluster.voters(v.top, v.nodeSilent) {
			voters[id] = true
		}
	}
	for i := range v.top.Nodes {
		n := &v.top.Nodes[i]
		p := pace{hot: true}
		if v.kind == Cluster {
			// Two nodes are asked in each interval, and some ten in a second of haste.
			p.calm, p.haste = float64(len(v.top.Nodes))/2, float64(len(voters))/6
			primary := v.top.Node(n.Primary)
			p.hot = voters[n.ID] || primary != nil && (primary.State == StateFailed || primary.Opinions > 0 || v.nodeSilent(primary.ID))
		}
		if a := v.dial(n); a.IsValid() {
			all[a] = p
		}
	}
	if v.kind == Sentinel {
		for a := range v.others(now) {
			all[a] = pace{hot: true}
		}
	}
	addrs := slices.SortedFunc(maps.Keys(all), netip.AddrPort.Compare)
	v.schedule.set(now, addrs, func(a netip.AddrPort) pace { return all[a] })
	for a := range v.contacts {
		if _, ok := all[a]; !ok {
			delete(v.contacts, a)
			delete(v.sentinel.told, a)
			delete(v.cluster.foreign, a)
		}
	}
	for _, a := range addrs {
		if v.contacts[a] == nil {
			v.contacts[a] = &contact{addr: a}
		}
		v.contacts[a].virtual = v.kind != Cluster && v.kind != Sentinel && slices.Contains(v.seeds, a)
	}
}

// dial is the address at which a node is asked.
func (v *View) dial(n *Node) netip.AddrPort {
	for _, e := range n.Endpoints {
		if e.TLS == v.cfg.TLS {
			return e.Addr
		}
	}
	return n.first()
}
