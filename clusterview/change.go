package clusterview

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// Kind is what has changed; the words are those of the events.
type Kind string

// The kinds.
const (
	ClusterDown     Kind = "cluster.down"
	ClusterUp       Kind = "cluster.up"
	PrimaryChanged  Kind = "primary.changed" // a failover: another node is the primary of a shard
	SlotsChanged    Kind = "slots.changed"   // slots have another owner, without a failover
	ReplicaAdded    Kind = "replica.added"
	ReplicaRemoved  Kind = "replica.removed"
	ReplicaFailed   Kind = "replica.failed"
	ReplicaUp       Kind = "replica.up"
	PrimaryFailed   Kind = "primary.failed"
	PrimaryUp       Kind = "primary.up"
	NodeDemoted     Kind = "node.demoted"   // it was a primary; another one may be known or not
	NodeRestarted   Kind = "node.restarted" // another process of the same node
	NodeMoved       Kind = "node.moved"     // the same node at another address
	NodeReplaced    Kind = "node.replaced"  // another node at the same address
	AddressAdded    Kind = "address.added"
	AddressRemoved  Kind = "address.removed"
	SplitBrain      Kind = "split_brain.began"
	SplitBrainEnded Kind = "split_brain.ended"
)

// maxChanges is how many are kept until they are fetched, and how many ranges of slots one
// names.
const maxChanges = 4096

// Change is a difference between two topologies, with what it rests on.
type Change struct {
	At       time.Duration
	Kind     Kind
	Node     string // an ID, of whom it is about; with PrimaryChanged of the new primary
	Old, New string // IDs, addresses, run ids or states
	Endpoint netip.AddrPort
	Slots    []reply.SlotRange
	Evidence string
}

// String is one line for logs and scripts.
func (c Change) String() string {
	s := string(c.Kind)
	if c.Node != "" {
		s += " node=" + short(c.Node)
	}
	if c.Old != "" || c.New != "" {
		s += fmt.Sprintf(" %s->%s", short(c.Old), short(c.New))
	}
	if len(c.Slots) > 0 {
		s += " slots=" + slotText(c.Slots)
	}
	return s
}

// slotText is at most some ranges of slots in Redis' own form.
func slotText(r []reply.SlotRange) string {
	var parts []string
	for _, x := range r[:min(len(r), 16)] {
		if x.First == x.Last {
			parts = append(parts, fmt.Sprint(x.First))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", x.First, x.Last))
		}
	}
	if len(r) > 16 {
		parts = append(parts, "...")
	}
	return strings.Join(parts, ",")
}

// diff lists what has changed. From a topology that was not known nothing has.
func diff(now time.Duration, prev, next *Topology) []Change {
	if prev == nil || !prev.Known || !next.Known {
		return nil
	}
	var all []Change
	add := func(c Change) {
		c.At = now
		all = append(all, c)
	}
	evidence := fmt.Sprintf("views of %d of %d nodes that are asked", next.Voters, next.Electorate)
	if prev.State != next.State && next.State == Down {
		add(Change{Kind: ClusterDown, Old: string(prev.State), New: string(next.State), Evidence: next.Why})
	}
	diffSlots(prev, next, evidence, add)
	if p, n := prev.Primary(), next.Primary(); next.Type != Cluster && n != nil && (p == nil || p.ID != n.ID && !p.leadsTo(n)) {
		c := Change{Kind: PrimaryChanged, Node: n.ID, New: n.ID, Endpoint: n.first(), Evidence: evidence}
		if old := next.lastPrimary(prev, n.ID); old != "" {
			if c.Old = old; next.Node(old) != nil && next.Node(old).Detail != "" {
				c.Evidence = next.Node(old).Detail
			}
		}
		add(c)
	}
	diffNodes(prev, next, evidence, add)
	if had, has := prev.has(ProblemSplit), next.has(ProblemSplit); has != nil && had == nil {
		add(Change{Kind: SplitBrain, Evidence: has.Detail})
	} else if has == nil && had != nil {
		add(Change{Kind: SplitBrainEnded, Evidence: evidence})
	}
	if prev.State != next.State && next.State == Up && prev.State == Down {
		add(Change{Kind: ClusterUp, Old: string(prev.State), New: string(next.State), Evidence: evidence})
	}
	return all
}

// leadsTo says that n is the node behind the virtual address p, which was not known before.
func (p *Node) leadsTo(n *Node) bool {
	return p.Virtual && !n.Virtual && (!p.Named || p.RunID == n.RunID)
}

// lastPrimary is who was the primary before now: of prev, or if there was none the one that
// was demoted last.
func (t *Topology) lastPrimary(prev *Topology, now string) string {
	if p := prev.Primary(); p != nil {
		return p.ID
	}
	var last *Node
	for i := range t.Nodes {
		if n := &t.Nodes[i]; n.ID != now && n.State == StateDemoted && (last == nil || n.Since > last.Since) {
			last = n
		}
	}
	if last == nil {
		return ""
	}
	return last.ID
}

func (t *Topology) has(problem string) *Problem {
	i := slices.IndexFunc(t.Problems, func(p Problem) bool { return p.Kind == problem })
	if i < 0 {
		return nil
	}
	return &t.Problems[i]
}

// diffSlots groups slots by their old and new owner, and tells failovers, see heir, from other
// changes.
func diffSlots(prev, next *Topology, evidence string, add func(Change)) {
	same := func(a, b Node) bool { return a.ID == b.ID && slices.Equal(a.Slots, b.Slots) }
	if slices.EqualFunc(prev.Nodes, next.Nodes, same) {
		return
	}
	type move struct{ old, new string }
	moved := map[move][]reply.SlotRange{}
	var order []move
	for slot := range reply.Slots {
		m := move{idOf(prev.Owner(uint16(slot))), idOf(next.Owner(uint16(slot)))}
		if m.old == m.new {
			continue
		}
		if moved[m] == nil {
			order = append(order, m)
		}
		moved[m] = extend(moved[m], reply.SlotRange{First: uint16(slot), Last: uint16(slot)})
	}
	for _, m := range order {
		c := Change{Kind: SlotsChanged, Node: m.new, Old: m.old, New: m.new, Slots: moved[m], Evidence: evidence}
		if was := prev.Node(m.old); was != nil {
			if h := heir(prev, next, was); h != nil && h.ID == m.new {
				c.Kind = PrimaryChanged
				c.Evidence = fmt.Sprintf("its replica before has its slots, config epoch %d after %d, %s", h.Epoch, was.Epoch, evidence)
			}
		}
		c.Endpoint = next.Node(m.new).first()
		add(c)
	}
}

func idOf(n *Node) string {
	if n == nil {
		return ""
	}
	return n.ID
}

// diffNodes compares nodes and their addresses.
func diffNodes(prev, next *Topology, evidence string, add func(Change)) {
	for i := range next.Nodes {
		n := &next.Nodes[i]
		was := prev.Node(n.ID)
		if was == nil {
			if n.Role == reply.RoleReplica {
				add(Change{Kind: ReplicaAdded, Node: n.ID, New: n.Primary, Endpoint: n.first(), Evidence: evidence})
			}
			for _, e := range n.Endpoints {
				add(Change{Kind: AddressAdded, Node: n.ID, New: e.Addr.String(), Endpoint: e.Addr, Evidence: evidence})
			}
			continue
		}
		switch {
		case was.State == n.State:
		case n.State == StateDemoted:
			add(Change{Kind: NodeDemoted, Node: n.ID, Old: string(was.State), New: string(n.State), Endpoint: n.first(), Evidence: n.Detail})
		case n.State == StateReplaced: // of a virtual address
			add(Change{Kind: NodeReplaced, Node: n.ID, Old: was.RunID, New: n.RunID, Endpoint: n.first(), Evidence: n.Detail})
		case n.State == StateFailed || was.State == StateFailed:
			kind := map[bool]Kind{true: PrimaryFailed, false: PrimaryUp}[n.State == StateFailed]
			if n.Role == reply.RoleReplica {
				kind = map[bool]Kind{true: ReplicaFailed, false: ReplicaUp}[n.State == StateFailed]
			}
			add(Change{Kind: kind, Node: n.ID, Old: string(was.State), New: string(n.State), Endpoint: n.first(), Evidence: n.Detail})
		}
		if !n.Virtual && was.RunID != "" && n.RunID != "" && was.RunID != n.RunID {
			add(Change{Kind: NodeRestarted, Node: n.ID, Old: was.RunID, New: n.RunID, Endpoint: n.first(), Evidence: "another run_id"})
		}
		var added, removed []Endpoint
		for _, e := range n.Endpoints {
			if !was.has(e.Addr) {
				added = append(added, e)
			}
		}
		for _, e := range was.Endpoints {
			if !n.has(e.Addr) {
				removed = append(removed, e)
			}
		}
		if len(added) > 0 && len(removed) > 0 {
			add(Change{Kind: NodeMoved, Node: n.ID, Old: removed[0].Addr.String(), New: added[0].Addr.String(), Endpoint: added[0].Addr, Evidence: evidence})
		}
		for _, e := range added {
			add(Change{Kind: AddressAdded, Node: n.ID, New: e.Addr.String(), Endpoint: e.Addr, Evidence: evidence})
		}
		for _, e := range removed {
			add(Change{Kind: AddressRemoved, Node: n.ID, Old: e.Addr.String(), Endpoint: e.Addr, Evidence: evidence})
		}
	}
	for i := range prev.Nodes {
		was := &prev.Nodes[i]
		if next.Node(was.ID) != nil {
			continue
		}
		if was.Role == reply.RoleReplica {
			add(Change{Kind: ReplicaRemoved, Node: was.ID, Old: was.Primary, Endpoint: was.first(), Evidence: evidence})
		}
		for _, e := range was.Endpoints {
			add(Change{Kind: AddressRemoved, Node: was.ID, Old: e.Addr.String(), Endpoint: e.Addr, Evidence: evidence})
		}
	}
	for _, f := range next.Former {
		if f.State == StateReplaced && !slices.ContainsFunc(prev.Former, func(o Former) bool { return o.Addr == f.Addr && o.State == f.State && o.Since == f.Since }) {
			add(Change{Kind: NodeReplaced, Node: idOf(next.At(f.Addr)), Old: f.Node, New: idOf(next.At(f.Addr)), Endpoint: f.Addr, Evidence: f.Detail})
		}
	}
}
