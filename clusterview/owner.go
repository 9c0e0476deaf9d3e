package clusterview

import (
	"slices"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// mergeOwners says who owns each slot, and which new owners have confirmed it. A new owner is
// believed from a majority of the voters that can be reached if it says so itself, else from a
// majority of all; and never one of a lower epoch than the owner before, which would be the
// past.
func (c *clusterState) mergeOwners(prev *Topology, p *panel) (owners map[string][]reply.SlotRange, confirmed map[string]bool) {
	owners, confirmed = map[string][]reply.SlotRange{}, map[string]bool{}
	if !slices.ContainsFunc(p.views, func(v *report) bool { return !v.outvoted && !v.sameSlots(prev) }) {
		for i := range prev.Nodes {
			owners[prev.Nodes[i].ID] = prev.Nodes[i].Slots
		}
		return owners, confirmed
	}
	votes := vote[string]{}
	cuts := cuts(prev, p)
	for i, first := range cuts[:len(cuts)-1] {
		clear(votes)
		for _, v := range p.views {
			if v.outvoted {
				continue
			}
			if n := v.owner(first); n != nil {
				votes[n.ID]++
			} else {
				votes[""]++
			}
		}
		was := prev.Owner(uint16(first))
		id := c.newOwner(first, was, votes, p, confirmed)
		if was != nil && id != was.ID {
			c.outvote(first, id, p)
		}
		if id != "" {
			owners[id] = extend(owners[id], reply.SlotRange{First: uint16(first), Last: uint16(cuts[i+1] - 1)})
		}
	}
	return owners, confirmed
}

// outvote notes whose views have another owner than the new one. They are from before the change,
// and no votes against it: the new owner is a voter now in the place of the one before, so they
// might be the majority. Until they answer again their nodes count, as to slots and roles, as not
// heard.
func (c *clusterState) outvote(slot int, id string, p *panel) {
	for me, r := range c.reports {
		if n := r.owner(slot); n == nil && id != "" || n != nil && n.ID != id {
			if p.outvoted == nil {
				p.outvoted = map[string]bool{}
			}
			p.outvoted[me] = true
		}
	}
}

// cuts are the slots at which an owner may change, by anybody, and the end: between two of them
// all slots fare alike.
func cuts(prev *Topology, p *panel) []int {
	all := []int{0, reply.Slots}
	add := func(ranges []reply.SlotRange) {
		for _, r := range ranges {
			all = append(all, int(r.First), int(r.Last)+1)
		}
	}
	for i := range prev.Nodes {
		add(prev.Nodes[i].Slots)
	}
	for _, v := range p.views {
		for i := range v.nodes.Nodes {
			add(v.nodes.Nodes[i].Slots)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// newOwner is the owner of one slot, by the votes.
func (c *clusterState) newOwner(slot int, was *Node, votes vote[string], p *panel, confirmed map[string]bool) string {
	id, n, ok := votes.winner(p)
	if was == nil {
		if !ok {
			return ""
		}
		return id
	}
	own := c.reports[id]
	says := own != nil && !own.outvoted && own.owner(slot) != nil && own.owner(slot).ID == id
	if !ok || id == was.ID || !says && !p.mostOfAll(n) || id != "" && c.claim(id, p) < was.Epoch {
		return was.ID
	}
	confirmed[id] = true
	return id
}

// claim is the highest config epoch that a view says of a node as a primary.
func (c *clusterState) claim(id string, p *panel) (epoch uint64) {
	for _, v := range p.views {
		if n := v.by[id]; n != nil && n.Flags.Has(reply.Primary) {
			epoch = max(epoch, n.Epoch)
		}
	}
	return epoch
}
