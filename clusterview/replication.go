package clusterview

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// mergeReplication makes a topology from what each node says of itself: there is nobody else
// to ask. nodes are the addresses of the config, and those that nodes name.
func mergeReplication(now time.Duration, kind Type, prev *Topology, nodes []netip.AddrPort, m nodeMerging) *Topology {
	if prev == nil {
		prev = &Topology{Type: kind}
	}
	next := &Topology{Type: kind, Known: prev.Known, State: prev.State, Why: prev.Why, Former: slices.Clone(prev.Former)}
	for _, a := range nodes {
		next.Nodes = append(next.Nodes, member(now, prev, a, m))
		next.Electorate++
		if m.role(a) != "" {
			next.Voters++
		}
	}
	next.Asked = next.Voters
	primary := idOf(prev.Primary())
	primaries, pending := next.claims(now, prev, m)
	switch {
	case pending:
		// What one of them says is older than the other's claim: it is asked again first.
	case len(primaries) == 1:
		primary = primaries[0].String()
		next.State, next.Why = Up, ""
		decideOwn(now, prev, next, primary, m)
	case len(primaries) == 0:
		if next.Voters > 0 || prev.Known {
			next.State, next.Why = Down, "no node says that it is a primary"
		}
		// A primary that became a replica is demoted by its own word, though nobody took over yet.
		if n := find(next, primary); n != nil && m.role(n.first()) == reply.RoleReplica {
			n.demote(now, "it says that it is a replica")
			primary = ""
		}
	default:
		// Which of them is right cannot be told from here. Nothing follows but the signal.
		next.problem(ProblemSplit, fmt.Sprintf("%v say all that they are primaries", primaries), len(primaries))
		next.State, next.Why = Up, "more than one primary"
		for i := range next.Nodes {
			if n := &next.Nodes[i]; n.State == StateDemoted && !n.Virtual && m.role(n.first()) == reply.RolePrimary {
				n.State, n.Since, n.Successor, n.Detail = StateOK, now, "", ""
			}
		}
	}
	next.silence(now, m)
	next.finish(nil)
	next.oneShard(primary)
	next.Known = prev.Known || primary != ""
	return next
}

// claims are the nodes that say that they are primaries, each process once: an address of its
// own before one that may be virtual, and one that other nodes name before one that nobody does.
// pending says that it is too early to tell: there are several, one
// of which was not asked since another began to say so; or none, and one was never asked.
func (t *Topology) claims(now time.Duration, prev *Topology, m nodeMerging) (all []netip.AddrPort, pending bool) {
	var claimants []*Node
	replicas := map[string]time.Duration{} // processes that say that they are, and when they did
	for i := range t.Nodes {
		if n := &t.Nodes[i]; n.RunID != "" && m.role(n.first()) == reply.RoleReplica {
			replicas[n.RunID] = max(replicas[n.RunID], m.about(n.first()).asked)
		}
	}
	unasked := false
	for i := range t.Nodes {
		n := &t.Nodes[i]
		a := n.first()
		k := m.about(a)
		switch {
		case !n.Virtual && (k == nil || k.asked == 0 && k.failed == 0):
			unasked = true
		case k != nil && m.role(a) == reply.RolePrimary && !(n.Virtual && k.behind.many) && k.asked > replicas[n.RunID]:
			claimants = append(claimants, n)
		}
	}
	rank := func(n *Node) int {
		switch {
		case !n.Virtual && n.ID == idOf(prev.Primary()):
			return 0
		case !n.Virtual:
			return 1
		case n.Named:
			return 2
		}
		return 3
	}
	slices.SortStableFunc(claimants, func(x, y *Node) int { return rank(x) - rank(y) })
	var latest time.Duration
	runs := map[string]bool{}
	for _, n := range claimants {
		// Who has no right to INFO cannot tell whether an address leads to a process that was
		// counted already.
		if len(all) > 0 && (n.RunID != "" && runs[n.RunID] || n.Virtual && (n.RunID == "" || runs[""])) {
			continue
		}
		runs[n.RunID] = true
		all = append(all, n.first())
		latest = max(latest, m.about(n.first()).primary)
	}
	if len(all) == 0 {
		// The old primary may have been asked just before the new one.
		was := m.about(prev.Primary().first())
		for i := range t.Nodes {
			k := m.about(t.Nodes[i].first())
			pending = pending || was != nil && k != nil && k.failed == 0 && k.asked < was.turned && now-was.turned < hastyFor
		}
		return nil, unasked || pending
	}
	for _, a := range all {
		pending = pending || len(all) > 1 && m.about(a).asked < latest
	}
	return all, pending
}

// demote marks a node that was the primary.
func (n *Node) demote(now time.Duration, detail string) {
	if n.Role = reply.RoleReplica; n.State != StateDemoted {
		n.State, n.Since, n.Detail = StateDemoted, now, detail
	}
}

// decideOwn is decide where nobody but the nodes themselves can tell: a primary that is only
// silent has failed, perhaps, but was not demoted.
func decideOwn(now time.Duration, prev, next *Topology, primary string, m nodeMerging) {
	for i := range next.Nodes {
		n := &next.Nodes[i]
		before := prev.Node(n.ID)
		if n.Virtual {
			// Judged by who is met there.
			if n.Successor = ""; (n.State == StateDemoted || n.State == StateFailed) && n.ID != primary {
				n.Successor = primary
			}
			continue
		}
		// Its role may have been heard while it was not clear yet who took over.
		was := before != nil && (before.Role == reply.RolePrimary || n.ID == idOf(prev.Primary()))
		switch own := m.role(n.first()); {
		case n.ID == primary:
			if n.Role = reply.RolePrimary; n.State == StateDemoted {
				n.State, n.Since = StateOK, now
			}
			if n.Successor = ""; n.State == StateOK {
				n.Detail = ""
			}
		case own == reply.RoleReplica:
			if was {
				n.demote(now, fmt.Sprintf("it says that it is a replica, and %s that it is the primary", primary))
			}
			if n.Role = reply.RoleReplica; n.State == StateDemoted {
				n.Successor = primary
			}
		case was:
			n.Successor = primary
		}
	}
}

// silence evaluates that a node does not answer us while its replicas, most of them, have lost
// it as well. Our own silence alone is for the decision core, which asks the connections.
func (t *Topology) silence(now time.Duration, m nodeMerging) {
	for i := range t.Nodes {
		n := &t.Nodes[i]
		lost, of := 0, 0
		for j := range t.Nodes {
			if k := m.about(t.Nodes[j].first()); t.Nodes[j].Primary == n.ID && k != nil && k.role != nil && !m.silent(t.Nodes[j].first()) {
				if of++; k.role.State != "connected" {
					lost++
				}
			}
		}
		n.Opinions = lost
		failed := n.own() && 2*lost > of && m.silent(n.first())
		switch {
		case failed && n.State == StateOK:
			n.State, n.Since, n.Detail = StateFailed, now, fmt.Sprintf("%d of its %d replicas have lost it, and it does not answer", lost, of)
		case !failed && n.State == StateFailed && !m.silent(n.first()):
			n.State, n.Since, n.Detail = StateOK, now, ""
		}
	}
}

// oneShard puts all nodes into one shard, as there are no slots that would divide them.
func (t *Topology) oneShard(primary string) {
	s := Shard{}
	for i := range t.Nodes {
		if n := &t.Nodes[i]; n.ID == primary {
			s.Primary = primary
		} else if n.own() && n.Role == reply.RoleReplica {
			s.Replicas = append(s.Replicas, n.ID)
		}
	}
	t.Shards = []Shard{s}
}

// find is Node for a topology that is not sorted yet.
func find(t *Topology, id string) *Node {
	for i := range t.Nodes {
		if t.Nodes[i].ID == id {
			return &t.Nodes[i]
		}
	}
	return nil
}
