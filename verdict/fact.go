package verdict

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Role is what a Redis process does, in Redis' own words; empty is unknown.
type Role string

// The roles.
const (
	RolePrimary  Role = "primary"
	RoleReplica  Role = "replica"
	RoleSentinel Role = "sentinel"
)

// NodeState is how a cluster view sees an endpoint; empty is unknown.
type NodeState string

// The states. StateReplaced says that another process has taken over the address: which
// connections that is about follows from the RunIDs alone.
const (
	StateOK       NodeState = "ok"
	StateFailed   NodeState = "failed"
	StateRemoved  NodeState = "removed"
	StateDemoted  NodeState = "demoted"
	StateReplaced NodeState = "replaced"
)

// Policies are those of one endpoint. An empty one is that of Settings.
type Policies struct {
	OnDown         Policy `json:"on_down,omitempty"`
	OnUnresponsive Policy `json:"on_unresponsive,omitempty"`
	OnFailed       Policy `json:"on_failed,omitempty"`
	OnRemoved      Policy `json:"on_removed,omitempty"`
	OnDemoted      Policy `json:"on_demoted,omitempty"`
	OnReplaced     Policy `json:"on_replaced,omitempty"`
}

// EndpointFact is what a cluster view (Redis Cluster, Sentinel, replication, standalone)
// says about one endpoint. It is level-triggered: it holds until another one about the
// same endpoint replaces it, or withdraws it (Forget). It is about the connections to
// the endpoint and those that a virtual address leads to it, but not about those that
// are bound to an interface, behind which another server may have the address.
type EndpointFact struct {
	Endpoint netip.AddrPort `json:"endpoint"`
	Forget   bool           `json:"forget,omitempty"`
	// Target names the deployment that the endpoint belongs to, and Policies are its.
	Target   string   `json:"target,omitempty"`
	Policies Policies `json:"policies,omitzero"`
	// State holds since Since; 0 is since the fact came in.
	State NodeState     `json:"state,omitempty"`
	Since time.Duration `json:"since,omitempty"`
	// Role and RunID are what stood behind the address at At, empty if unknown. Repeat
	// the fact with a new At whenever the node was asked again: a connection that was
	// opened between two answers of the same process is known to lead to that one, if the
	// endpoint is Single. With At = 0 it is not concluded which process a connection leads to.
	Role  Role          `json:"role,omitempty"`
	RunID string        `json:"run_id,omitempty"`
	At    time.Duration `json:"at,omitempty"`
	// Single says that the endpoint is a node's own address: one process at a time answers
	// there. Without it nothing is concluded about connections from who else was met at
	// the address, as it may be a load balancer's.
	Single bool `json:"single,omitempty"`
	// Backend is where a virtual address led the view to, zero if the endpoint is none.
	Backend netip.AddrPort `json:"backend,omitzero"`
	// Clients is how many the server had when it was asked last, 0 if that is not known: on all
	// nodes together.
	Clients int `json:"clients,omitempty"`
	// Successor takes over from the endpoint; zero as long as that is not confirmed.
	Successor netip.AddrPort `json:"successor,omitzero"`
	// Source names the origin of the fact, a Sentinel for instance, and Detail quotes
	// it. Both are for the evidence.
	Source string `json:"source,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// node is a Redis node by its address: the fact about it, and the processes that were seen
// there. It exists as long as there is a fact, or a connection leads there and a process
// was seen.
type node struct {
	addr   netip.AddrPort
	told   bool // fact is in force
	fact   EndpointFact
	since  time.Duration // of fact.State
	toldAt time.Duration // when that came in
	run    sighting
	role   sighting
	via    map[ConnKey]*conn // connections that a virtual address leads here
	listed bool              // in Core.review
	// settled is until when it is left alone there, as nothing is to be done about it.
	settled time.Duration
	works   bool // see Core.works; of step asked
	asked   uint64
}

// sighting is the RunID or the role of the process behind an address, as seen over time.
type sighting struct {
	value     string
	since     time.Duration // when it had first been seen
	confirmed time.Duration // start of the newest look that still saw it; 0 is none
	at        time.Duration // of the newest sighting
	by        Kinds         // Topology: the view has seen it; ProbeSay: a probe of ours
	former    [4]string     // the latest values before
	several   bool          // a former value is back: several processes share the address
}

// see evaluates that value was seen in the time from from to to, and says whether it is
// a new one. Sightings older than the newest one change nothing, as they may come in late.
func (s *sighting) see(value string, from, to time.Duration, by Kinds) bool {
	if value == "" || to < s.at {
		return false
	}
	if value == s.value {
		s.confirmed, s.at, s.by = max(s.confirmed, from), to, s.by|by
		return false
	}
	copy(s.former[1:], s.former[:3])
	s.former[0] = s.value
	s.several = s.several || slices.Contains(s.former[:], value)
	s.value, s.since, s.confirmed, s.at, s.by = value, to, from, to, by
	return true
}

// covers says whether a connection opened between from and to leads to value.
func (s *sighting) covers(from, to time.Duration) bool {
	return s.value != "" && from != 0 && s.since <= from && to <= s.confirmed && !s.several
}

// node returns the node at addr, a new one if there is none. A new one that turns out not to
// be needed is for tidyNode.
func (c *Core) node(addr netip.AddrPort) *node {
	n := c.nodes[addr]
	if n == nil {
		n = &node{addr: addr}
		c.nodes[addr] = n
	}
	return n
}

// reviewNode has the connections about n judged from the next opportunity on.
func (c *Core) reviewNode(n *node) {
	n.settled = 0
	if !n.listed {
		n.listed = true
		c.review = append(c.review, n)
	}
}

// tidyNode drops what is known of addr if nothing needs it any more.
func (c *Core) tidyNode(addr netip.AddrPort) {
	if n := c.nodes[addr]; n != nil && !n.told && len(n.via) == 0 && c.endpoints[endpointKey{addr: addr}] == nil {
		delete(c.nodes, addr)
	}
}

// observeFact evaluates what the cluster view says about an endpoint.
func (c *Core) observeFact(f *EndpointFact) {
	if f.Forget {
		if n := c.nodes[f.Endpoint]; n != nil && n.told {
			had := n.fact.Policies
			c.withdrawIdentity(n.behind())
			n.told, n.fact, n.since, n.toldAt = false, EndpointFact{}, 0, 0
			c.changedPolicies(n, had)
			c.reviewNode(n)
			c.tidyNode(f.Endpoint)
		}
		return
	}
	n := c.node(f.Endpoint)
	if n.told && f.Backend != n.fact.Backend {
		c.withdrawIdentity(n.behind())
	}
	had, first := n.fact, !n.told
	n.fact = *f
	if n.fact.Role == "" && f.State == StateDemoted {
		n.fact.Role = RoleReplica // ends the time of the primary, see identify
	}
	since := min(max(f.Since, 0), c.now)
	if !n.told || had.State != f.State || had.Since != f.Since {
		n.toldAt = c.now
		n.since = cmp.Or(since, c.now)
	}
	n.told = true
	if had.State == StateDemoted && f.State != StateDemoted && f.Role == "" {
		n.role.withdraw()
	}
	if had.Policies != f.Policies {
		c.changedPolicies(n, had.Policies)
	}
	from, to := min(max(f.At, 0), c.now), c.now
	if from != 0 {
		to = from
	}
	c.identify(n.behind(), f.RunID, n.fact.Role, from, to, Topology)
	had.Clients = n.fact.Clients // nothing follows from that alone
	if had.At = n.fact.At; first || had != n.fact {
		c.reviewNode(n)
	}
}

// withdrawIdentity forgets the process at addr if only the view has seen it.
func (c *Core) withdrawIdentity(addr netip.AddrPort) {
	if n := c.nodes[addr]; n != nil {
		n.run.withdraw()
		n.role.withdraw()
		c.reviewNode(n)
	}
}

// withdraw takes back what only the view has seen.
func (s *sighting) withdraw() {
	if s.by &^= Topology; s.by == 0 {
		*s = sighting{}
	}
}

// behind is the address that the identity in the fact is about.
func (n *node) behind() netip.AddrPort {
	if n.fact.Backend.IsValid() {
		return n.fact.Backend
	}
	return n.addr
}

// changedPolicies has the connections to n judged again where they were not to be reaped.
func (c *Core) changedPolicies(n *node, had Policies) {
	if had == n.fact.Policies {
		return
	}
	c.about(n, func(k *conn) {
		k.reconsider()
		if k.reap == reapOver {
			k.reap = notReaping
		}
	})
}

// identify evaluates that run and role were seen at addr in the time from..to.
func (c *Core) identify(addr netip.AddrPort, run string, role Role, from, to time.Duration, by Kinds) {
	if run == "" && role == "" {
		return
	}
	n := c.node(addr)
	wasRun, wasRole := n.run, n.role
	if n.run.see(run, from, to, by) {
		c.aboutOwn(n, func(k *conn) {
			if from, to := k.opened(); k.peer.run == "" && n.single(k) && wasRun.covers(from, to) {
				p := k.setPeer()
				p.run, p.runAt = wasRun.value, to
			}
		})
		c.reviewNode(n)
	}
	if n.role.see(string(role), from, to, by) {
		c.aboutOwn(n, func(k *conn) {
			if from, to := k.opened(); k.peer.role == "" && n.single(k) && wasRole.covers(from, to) {
				p := k.setPeer()
				p.role, p.roleAt = Role(wasRole.value), to
			}
		})
		c.reviewNode(n)
	}
	c.tidyNode(addr) // unless a connection leads there, or there is a fact
}

// about calls do with every connection to n, directly or by way of a virtual address.
func (c *Core) about(n *node, do func(*conn)) {
	if e := c.endpoints[endpointKey{addr: n.addr}]; e != nil {
		for _, p := range e.ranked {
			for _, k := range p.conns {
				do(k)
			}
		}
	}
	for _, k := range n.via {
		do(k)
	}
}

// aboutOwn leaves out those for which n is a virtual address that led them elsewhere.
func (c *Core) aboutOwn(n *node, do func(*conn)) {
	c.about(n, func(k *conn) {
		if k.behind() == n.addr {
			do(k)
		}
	})
}

// peer is what is known about what a connection leads to.
type peer struct {
	backend       netip.AddrPort // where a virtual address leads; zero is remote itself
	run           string         // the RunID of the process that answers; empty is unknown
	role          Role           // of that process when the connection was opened
	runAt, roleAt time.Duration  // when that was so, at the latest
	fact          factVerdict
}

// unknownPeer is that of all connections of which nothing is known, which are most on a
// node without a cluster view: a third of the memory of each is saved. It is never written to.
var unknownPeer peer

// setPeer returns what is known about k's peer for a change.
func (k *conn) setPeer() *peer {
	if k.peer == &unknownPeer {
		k.peer = new(peer)
	}
	return k.peer
}

// reconsider has k judged again by what the view says.
func (k *conn) reconsider() {
	if k.peer.fact.over {
		k.setPeer().fact.over = false
	}
}

// behind is the address of what k leads to.
func (k *conn) behind() netip.AddrPort {
	if k.peer.backend.IsValid() {
		return k.peer.backend
	}
	return k.remote
}

// opened is the time in which k was opened; from is 0 if the beginning is not known.
func (k *conn) opened() (from, to time.Duration) {
	to = k.establishedBy
	if to == 0 {
		to = max(1, k.first)
	}
	return k.notBefore, to
}

// observeIdentity evaluates the backend and the process of a connection. What is not known
// now may have been known before.
func (c *Core) observeIdentity(k *conn, a *Appeared) {
	if a.Opened > 0 && k.notBefore == 0 {
		k.notBefore = min(a.Opened, c.now)
	}
	at := max(1, k.first)
	if k.notBefore != 0 {
		at = k.notBefore
	}
	if a.RunID != "" {
		if k.peer.run != "" && k.peer.run != a.RunID {
			c.retract(k) // what was concluded from the one before
		}
		p := k.setPeer()
		p.run, p.runAt = a.RunID, at
	}
	if a.Role != "" {
		p := k.setPeer()
		p.role, p.roleAt = a.Role, at
	}
	if a.Backend.IsValid() && a.Backend != k.peer.backend {
		c.leaveBackend(k)
		if k.setPeer().backend = a.Backend; a.Backend != k.remote {
			n := c.node(a.Backend)
			if n.via == nil {
				n.via = map[ConnKey]*conn{}
			}
			n.via[k.key] = k
		}
	}
	for _, addr := range [2]netip.AddrPort{k.remote, k.behind()} {
		if n := c.nodes[addr]; n != nil {
			c.reviewNode(n)
		}
	}
}

// observeProbed evaluates the identity of the process that answered a probe.
func (c *Core) observeProbed(pr *Probe) {
	if pr.Path.Interface != 0 {
		return // who has answered is not known to be who is at that address elsewhere
	}
	addr := pr.Path.Endpoint
	if pr.Backend.IsValid() {
		addr = pr.Backend
	}
	to := min(max(pr.Ended, 0), c.now)
	c.identify(addr, pr.RunID, pr.Role, min(max(pr.Started, 0), to), to, ProbeSay)
}

// single says whether no more than one process at a time answers k at n. At the address of
// a load balancer a probe may have met another process than the connection has.
func (n *node) single(k *conn) bool {
	return k.peer.backend == n.addr || n.told && n.fact.Single
}

// leaveBackend ends that k is known as a connection to its backend.
func (c *Core) leaveBackend(k *conn) {
	if !k.peer.backend.IsValid() {
		return
	}
	if n := c.nodes[k.peer.backend]; n != nil {
		delete(n.via, k.key)
		c.tidyNode(k.peer.backend)
	}
}
