package clusterview

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// Type is how a deployment is built.
type Type string

// The types. With Auto it follows from what the seeds say; until then it is Auto.
const (
	Auto        Type = "auto"
	Cluster     Type = "cluster"
	Sentinel    Type = "sentinel"
	Replication Type = "replication"
	Standalone  Type = "standalone"
)

// State is how a target is; empty is unknown.
type State string

// The states.
const (
	Up   State = "up"
	Down State = "down" // as a whole: a cluster that answers CLUSTERDOWN, no primary
)

// NodeState is how a node is, or an address that was one's; empty is unknown. These are the
// words of the decision core.
type NodeState string

// The states.
const (
	StateOK       NodeState = "ok"
	StateFailed   NodeState = "failed"
	StateDemoted  NodeState = "demoted"
	StateRemoved  NodeState = "removed"  // of a Former address
	StateReplaced NodeState = "replaced" // of an address where another node is now
)

// Bounds of a Topology, beside reply.MaxNodes.
const (
	// MaxEndpoints is how many addresses a node may have: plain and TLS, IPv4 and IPv6,
	// announced and internal, are eight.
	MaxEndpoints = 8
	// MaxFormer is how many addresses that were a node's are remembered, the newest first.
	MaxFormer = 1000
	// keepFormer is for how long: connections to a node that is gone end or are ended well
	// before.
	keepFormer = time.Hour
)

// Endpoint is an address of a node.
type Endpoint struct {
	Addr netip.AddrPort
	TLS  bool
}

// Node is a Redis node.
type Node struct {
	// ID is the node id in a Redis Cluster. Elsewhere nodes have none, and it is the address.
	ID        string
	Name      string // the announced host name, empty if none
	RunID     string // of the process that answered last, empty if none did
	Role      reply.Role
	Endpoints []Endpoint // sorted
	Primary   string     // of a replica: the ID of its primary, empty if unknown
	Shard     string     // the shard id if the server has told one
	Slots     []reply.SlotRange
	Moves     []reply.Move // slots on their way, as the node itself says
	Epoch     uint64       // config epoch
	State     NodeState
	Since     time.Duration // of State
	// Opinions is how many primaries cannot reach it; they have not agreed that it failed.
	Opinions int
	Loading  bool
	// Virtual says that several processes may answer at the address: State is then about those
	// that did before, see lineage.go.
	Virtual bool
	// Named says that such an address is another node's primary's or replica's, so it stands for
	// one node.
	Named bool
	// Successor is the ID of the node that took over from it, confirmed by that node itself or by
	// a majority of all. Empty otherwise.
	Successor string
	Detail    string // what State rests on, for the evidence
}

// Former is an address that was a node's.
type Former struct {
	Endpoint
	Node      string
	State     NodeState // StateRemoved or StateReplaced
	Since     time.Duration
	Successor string // the ID of the node that is to be dialled instead, empty if none
	Detail    string
}

// Shard is a primary with its replicas. There is one in all types but Cluster.
type Shard struct {
	Primary  string // an ID; empty if there is none
	Replicas []string
	Slots    []reply.SlotRange
}

// Problem is what is wrong with a target or with what it says, for whoever runs it.
type Problem struct {
	Kind   string // one of the Problem constants
	Detail string
	Count  int // how often, or how many
}

// The kinds of problems.
const (
	ProblemOutside  = "address.outside"    // not in allow: never dialled, never an endpoint
	ProblemTooMany  = "too_many"           // beyond a bound: dropped
	ProblemForeign  = "foreign_cluster"    // answers, but as another cluster
	ProblemRefused  = "command.refused"    // rights, a password, or a command that is not known
	ProblemNonsense = "reply.nonsense"     // a reply that cannot be read
	ProblemWritable = "old_primary.writes" // came back as a primary, next to the new one
	ProblemSplit    = "split_brain"        // two primaries
	ProblemTilt     = "sentinel.tilt"      // a Sentinel that distrusts itself
	ProblemMany     = "address.many"       // several processes alternate behind one address
	ProblemType     = "type.mismatch"      // the config says another type than the servers
)

// Topology is what is known of a target. It is never changed: a new one takes its place.
type Topology struct {
	Target string
	Type   Type
	// Known says that enough was heard to judge by: nothing follows from it before.
	Known bool
	State State
	Why   string // of State
	Epoch uint64 // the highest config epoch that is agreed upon
	// Voters is from how many nodes' views it was merged, or of Sentinels; Asked how many could
	// be reached, and Electorate how many there are.
	Voters, Asked, Electorate int
	Nodes                     []Node // sorted by ID
	Shards                    []Shard
	Sentinels                 []netip.AddrPort
	Former                    []Former
	Names                     []string // host names to resolve, sorted
	Covered                   int      // slots whose owner has not failed
	Problems                  []Problem

	owners []uint16 // of a Cluster: for each slot the index into Nodes plus one; 0 is nobody
}

// Node returns the node with an ID, nil if there is none.
func (t *Topology) Node(id string) *Node {
	if t == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(t.Nodes, id, func(n Node, id string) int { return strings.Compare(n.ID, id) })
	if !ok {
		return nil
	}
	return &t.Nodes[i]
}

// At returns the node that has an address, nil if none has.
func (t *Topology) At(addr netip.AddrPort) *Node {
	if t == nil {
		return nil
	}
	for i := range t.Nodes {
		if t.Nodes[i].has(addr) {
			return &t.Nodes[i]
		}
	}
	return nil
}

// Owner returns the node that owns a slot, nil if none does.
func (t *Topology) Owner(slot uint16) *Node {
	if t == nil || int(slot) >= len(t.owners) || t.owners[slot] == 0 {
		return nil
	}
	return &t.Nodes[t.owners[slot]-1]
}

// Primary is the one primary of a target that is no Cluster, nil if there is none or two.
func (t *Topology) Primary() *Node {
	if t == nil || t.Type == Cluster || len(t.Shards) != 1 {
		return nil
	}
	return t.Node(t.Shards[0].Primary)
}

// own says that the address is a node's, whichever that is now.
func (n *Node) own() bool { return !n.Virtual || n.Named }

func (n *Node) has(addr netip.AddrPort) bool {
	return slices.ContainsFunc(n.Endpoints, func(e Endpoint) bool { return e.Addr == addr })
}

// first is the endpoint to name where one is wanted.
func (n *Node) first() netip.AddrPort {
	if n == nil || len(n.Endpoints) == 0 {
		return netip.AddrPort{}
	}
	return n.Endpoints[0].Addr
}

// finish sorts, and fills what follows from the nodes and, in a Redis Cluster, from who owns
// which slots.
func (t *Topology) finish(owned map[string][]reply.SlotRange) {
	slices.SortFunc(t.Nodes, func(a, b Node) int { return strings.Compare(a.ID, b.ID) })
	index := map[string]uint16{}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		index[n.ID] = uint16(i + 1)
		slices.SortFunc(n.Endpoints, compareEndpoints)
		n.Endpoints = slices.Compact(n.Endpoints)
	}
	shards := map[string]*Shard{}
	for i := range t.Nodes {
		if n := &t.Nodes[i]; n.Role == reply.RolePrimary {
			shards[n.ID] = &Shard{Primary: n.ID}
		}
	}
	if owned != nil {
		t.owners = make([]uint16, reply.Slots)
	}
	for id, ranges := range owned {
		i := index[id]
		if i == 0 {
			continue
		}
		t.Nodes[i-1].Slots = ranges
		for _, r := range ranges {
			for slot := int(r.First); slot <= int(r.Last); slot++ {
				t.owners[slot] = i
			}
			if t.Nodes[i-1].State != StateFailed {
				t.Covered += int(r.Last) - int(r.First) + 1
			}
		}
	}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		if s := shards[n.ID]; s != nil {
			s.Slots = n.Slots
		} else if s := shards[n.Primary]; s != nil && n.Role == reply.RoleReplica {
			s.Replicas = append(s.Replicas, n.ID)
		}
	}
	for _, s := range shards {
		t.Shards = append(t.Shards, *s)
	}
	slices.SortFunc(t.Shards, func(a, b Shard) int { return strings.Compare(a.Primary, b.Primary) })
	slices.Sort(t.Names)
	t.Names = slices.Compact(t.Names)
}

func compareEndpoints(a, b Endpoint) int {
	if c := a.Addr.Compare(b.Addr); c != 0 || a.TLS == b.TLS {
		return c
	}
	return cmp.Compare(fmt.Sprint(a.TLS), fmt.Sprint(b.TLS))
}

// extend adds a range to others that end before it.
func extend(r []reply.SlotRange, more reply.SlotRange) []reply.SlotRange {
	if n := len(r); n > 0 && int(r[n-1].Last)+1 == int(more.First) {
		r[n-1].Last = more.Last
		return r
	}
	return append(r, more)
}

// problem adds n of a kind; the first detail stays.
func (t *Topology) problem(kind, detail string, n int) {
	if n == 0 {
		return
	}
	for i := range t.Problems {
		if t.Problems[i].Kind == kind {
			t.Problems[i].Count += n
			return
		}
	}
	t.Problems = append(t.Problems, Problem{kind, detail, n})
}
