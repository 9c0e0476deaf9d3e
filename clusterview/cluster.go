package clusterview

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// maxVoters is from how many primaries' views a large cluster is merged. All are taken where
// there are no more. With 31 a quarter of liars among hundreds of primaries has a majority once
// in 500 draws, each daemon draws for itself, and the views of 2,000 nodes each take some 20 MB.
const maxVoters = 31

// removeAfter is for how long a majority must not have named a node before it is removed.
// CLUSTER FORGET reaches node after node, and a node that joins is known to one first.
const removeAfter = 5 * time.Second

// report is what one node said of the cluster.
type report struct {
	from   netip.AddrPort // where it was asked
	tls    bool
	me     string // its node id
	asked  time.Duration
	nodes  reply.Nodes
	by     map[string]*reply.Node
	slots  []reply.ServedSlots // nil if not told
	info   reply.ClusterInfo
	told   bool     // info was told
	owners []uint16 // by slot, an index into nodes plus one; see owner
	// migrations are those going on, if they were asked for and listed; see move.
	migrations []reply.Migration
	listed     bool
	// outvoted says that it lost against a new owner of slots; see outvote.
	outvoted bool
}

// index fills what is looked up; false if the node does not say which one it is.
func (r *report) index() bool {
	r.by = make(map[string]*reply.Node, len(r.nodes.Nodes))
	for i := range r.nodes.Nodes {
		n := &r.nodes.Nodes[i]
		r.by[n.ID] = n
		if n.Flags.Has(reply.Myself) {
			r.me = n.ID
		}
	}
	return r.me != ""
}

// owner is whom the report takes for the owner of a slot, nil if it knows none.
func (r *report) owner(slot int) *reply.Node {
	if r.owners == nil {
		r.owners = make([]uint16, reply.Slots)
		for i := range r.nodes.Nodes {
			for _, s := range r.nodes.Nodes[i].Slots {
				for slot := int(s.First); slot <= int(s.Last); slot++ {
					r.owners[slot] = uint16(i + 1)
				}
			}
		}
	}
	if i := r.owners[slot]; i != 0 {
		return &r.nodes.Nodes[i-1]
	}
	return nil
}

// sameSlots says whether the report has the slots where t has them, which is nearly always so.
func (r *report) sameSlots(t *Topology) bool {
	for i := range t.Nodes {
		if n := &t.Nodes[i]; len(n.Slots) > 0 && r.by[n.ID] == nil {
			return false
		}
	}
	for i := range r.nodes.Nodes {
		line := &r.nodes.Nodes[i]
		if n := t.Node(line.ID); n == nil && len(line.Slots) > 0 || n != nil && !slices.Equal(line.Slots, n.Slots) {
			return false
		}
	}
	return true
}

// clusterState is the memory between merges.
type clusterState struct {
	reports map[string]*report       // by node id
	told    map[toldBy]*report       // the last of each way; see byWay
	absent  map[string]time.Duration // since when a majority has not named a node
	foreign map[netip.AddrPort]bool  // answers as another cluster
	draw    func(id string) uint64   // the order in which primaries are drawn as voters
}

// voters are the primaries whose views count, by the last topology: those that have slots.
// One that cannot be reached gives its place to another, if there are more.
func (c *clusterState) voters(prev *Topology, silent func(id string) bool) (all []string) {
	for i := range prev.Nodes {
		if n := &prev.Nodes[i]; len(n.Slots) > 0 {
			all = append(all, n.ID)
		}
	}
	if len(all) <= maxVoters {
		return all
	}
	order := make(map[string]uint64, len(all))
	for _, id := range all {
		order[id] = c.draw(id) >> 1
		if silent(id) {
			order[id] |= 1 << 63 // behind all others
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Compare(order[a], order[b]) })
	return all[:maxVoters]
}

// panel is the views to merge.
type panel struct {
	views      []*report
	voters     []string // that are not silent, also those who have not answered yet
	reached    int      // how many these are
	electorate int
	outvoted   map[string]bool // whose views are, by this merge
}

// most reports whether n is a majority of the voters that can be reached.
func (p *panel) most(n int) bool { return 2*n > p.reached }

// mostOfAll reports whether n is a majority of all voters.
func (p *panel) mostOfAll(n int) bool { return 2*n > p.electorate }

// panel chooses the views: those of the voters, or at the start those of whoever answered.
func (c *clusterState) panel(prev *Topology, silent func(id string) bool) (p panel) {
	if prev == nil || !prev.Known {
		p.views = c.kin()
		p.reached, p.electorate = len(p.views), len(p.views)
		for _, r := range p.views {
			p.voters = append(p.voters, r.me)
		}
		return p
	}
	for _, id := range c.voters(prev, silent) {
		p.electorate++
		if silent(id) {
			continue
		}
		p.reached++
		p.voters = append(p.voters, id)
		if r := c.reports[id]; r != nil {
			p.views = append(p.views, r)
		}
	}
	return p
}

// kin is the largest group of reports that know of each other's nodes, for the start.
func (c *clusterState) kin() []*report {
	var best []*report
	ids := slices.Sorted(maps.Keys(c.reports))
	for _, id := range ids {
		var group []*report
		for _, other := range ids {
			if r := c.reports[other]; r.by[id] != nil || c.reports[id].by[other] != nil {
				group = append(group, r)
			}
		}
		if len(group) > len(best) {
			best = group
		}
	}
	return best
}

// vote counts what views say, each one thing.
type vote[T comparable] map[T]int

// winner is what a majority says.
func (v vote[T]) winner(p *panel) (best T, n int, ok bool) {
	for x, count := range v {
		if count > n {
			best, n = x, count
		}
	}
	return best, n, p.most(n)
}

// merge makes a topology from the views. What a majority of the voters that can be reached says
// holds; where there is none, what held before. prev may be nil.
func (c *clusterState) merge(now time.Duration, prev *Topology, m merging) *Topology {
	p := c.panel(prev, m.silent)
	next := &Topology{Type: Cluster, Voters: len(p.views), Asked: p.reached, Electorate: p.electorate}
	first := prev == nil || !prev.Known
	if first {
		prev = &Topology{Type: Cluster}
	}
	if len(p.views) == 0 {
		kept := *prev // nobody says anything: what held holds
		kept.Asked, kept.Voters, kept.Electorate, kept.Problems = p.reached, 0, p.electorate, nil
		return &kept
	}
	next.Former = slices.Clone(prev.Former)
	owners, confirmed := c.mergeOwners(prev, &p)
	for _, id := range c.union(prev, &p, next) {
		if n, ok := c.mergeNode(now, id, prev, &p, m, next); ok {
			next.Nodes = append(next.Nodes, n)
		}
	}
	c.mergeAddresses(prev, &p, m, next)
	next.finish(owners)
	c.succession(now, prev, next, confirmed)
	c.mergeState(prev, &p, next)
	for id := range p.outvoted {
		c.reports[id].outvoted = true
	}
	if next.Known = !first || c.enough(next, m.silent); first {
		for i := range next.Nodes {
			next.Nodes[i].Since = now
		}
	}
	if n := len(c.foreign); n > 0 {
		addr := slices.SortedFunc(maps.Keys(c.foreign), netip.AddrPort.Compare)[0]
		next.problem(ProblemForeign, fmt.Sprintf("%v answers as another cluster: it has no node id in common with the rest", addr), n)
	}
	return next
}

// merging is what a merge takes from the view.
type merging struct {
	silent  func(id string) bool      // none of a node's addresses answers us
	answers func(netip.AddrPort) bool // a server that is asked, and has answered last time
	run     func(id string) (run string, loading bool)
	accept  func(netip.AddrPort) (netip.AddrPort, bool) // translated, and whether it is allowed
	names   func(name string) []netip.Addr
}

// enough says whether the first topology may be believed: all primaries that it names and that
// can be reached have been heard.
func (c *clusterState) enough(t *Topology, silent func(id string) bool) bool {
	if len(c.reports) == 0 {
		return false
	}
	return !slices.ContainsFunc(c.voters(t, silent), func(id string) bool { return !silent(id) && c.reports[id] == nil })
}

// union is the ids of all nodes, those that are known first.
func (c *clusterState) union(prev *Topology, p *panel, next *Topology) (ids []string) {
	seen := map[string]bool{}
	for i := range prev.Nodes {
		ids, seen[prev.Nodes[i].ID] = append(ids, prev.Nodes[i].ID), true
	}
	dropped := 0
	for _, v := range p.views {
		dropped = max(dropped, v.nodes.Dropped)
		for i := range v.nodes.Nodes {
			id := v.nodes.Nodes[i].ID
			switch {
			case seen[id]:
			case len(ids) < reply.MaxNodes:
				ids, seen[id] = append(ids, id), true
			default:
				seen[id] = true
				dropped++
			}
		}
	}
	next.problem(ProblemTooMany, fmt.Sprintf("more than %d nodes", reply.MaxNodes), dropped)
	return ids
}

// mergeNode makes one node; false if it is none, or none any more.
func (c *clusterState) mergeNode(now time.Duration, id string, prev *Topology, p *panel, m merging, next *Topology) (Node, bool) {
	was := prev.Node(id)
	var named, absent, fail, pfail, others int
	roles, primaries, names, shards := vote[reply.Role]{}, vote[string]{}, vote[string]{}, vote[string]{}
	var epochs []uint64
	for _, v := range p.views {
		line := v.by[id]
		if v.me != id {
			others++
		}
		if line == nil {
			if v.nodes.Dropped == 0 {
				absent++
			}
			continue
		}
		if line.Flags.Has(reply.Handshake) {
			continue // its id is not certain yet
		}
		named++
		if !v.outvoted {
			switch {
			case line.Flags.Has(reply.Replica):
				roles[reply.RoleReplica]++
			case line.Flags.Has(reply.Primary):
				roles[reply.RolePrimary]++
			}
			primaries[line.PrimaryID]++
		}
		names[line.Name]++
		shards[line.Shard]++
		if line.Flags.Has(reply.Primary) {
			epochs = append(epochs, line.Epoch) // a replica's is its primary's
		}
		if v.me != id && line.Flags.Has(reply.Fail) {
			fail++
		}
		if v.me != id && line.Flags&(reply.Fail|reply.PFail) != 0 {
			pfail++
		}
	}
	if was == nil && !p.most(named) {
		return Node{}, false
	}
	if was != nil && p.most(absent) && p.mostOfAll(absent) {
		if since, ok := c.absent[id]; !ok {
			c.absent[id] = now
		} else if now-since >= removeAfter {
			delete(c.absent, id)
			next.leave(now, was, was.Endpoints, StateRemoved, was.Successor, fmt.Sprintf("%d of %d primaries know it no more", absent, p.electorate))
			return Node{}, false
		}
	} else {
		delete(c.absent, id)
	}

	n := Node{ID: id, Since: now, State: StateOK}
	if was != nil {
		n = *was
		n.Endpoints, n.Slots, n.Moves, n.Opinions = nil, nil, nil, 0
	}
	// As with slots: another role is believed if the node says so itself, or from a majority of
	// all.
	if role, votes, ok := roles.winner(p); ok && (was == nil || role != n.Role && (p.mostOfAll(votes) || c.saysOf(id) == role)) {
		n.Role = role
	}
	if primary, _, ok := primaries.winner(p); ok {
		n.Primary = primary
	}
	if n.Role == reply.RolePrimary {
		n.Primary = ""
	}
	if name, _, ok := names.winner(p); ok {
		n.Name = name
	}
	if shard, _, ok := shards.winner(p); ok {
		n.Shard = shard
	}
	// The highest epoch that a majority says at least: one that lies cannot raise it.
	slices.Sort(epochs)
	slices.Reverse(epochs)
	if k := p.reached / 2; k < len(epochs) {
		n.Epoch = epochs[k]
	}
	next.Epoch = max(next.Epoch, n.Epoch)
	n.RunID, n.Loading = m.run(id)
	// Since Valkey 8 replicas have the marks of their primary as well.
	if own := c.reports[id]; own != nil && own.by[id] != nil && n.Role != reply.RoleReplica {
		n.Moves = own.by[id].Moves
	}

	// Its own view of itself does not count: a node that was cut off says that all is well.
	judges := p.reached
	if slices.ContainsFunc(p.views, func(v *report) bool { return v.me == id }) {
		judges--
	}
	failed, detail := false, ""
	switch {
	case 2*fail > judges:
		failed, detail = true, fmt.Sprintf("%d of %d primaries that can be reached say fail", fail, judges)
	case 2*pfail > judges && m.silent(id):
		failed, detail = true, fmt.Sprintf("%d of %d primaries that can be reached cannot reach it, nor can we", pfail, judges)
	case 2*pfail > judges && n.State == StateFailed:
		failed, detail = true, n.Detail // still not well
	}
	n.Opinions = pfail
	switch {
	case failed && n.State != StateFailed:
		n.State, n.Since = StateFailed, now
	case !failed && n.State == StateFailed:
		n.State, n.Since = StateOK, now
	}
	n.Detail = detail
	return n, true
}

// saysOf is the role that a node gives itself, empty if unknown.
func (c *clusterState) saysOf(id string) reply.Role {
	r := c.reports[id]
	switch {
	case r == nil || r.outvoted || r.by[id] == nil:
		return ""
	case r.by[id].Flags.Has(reply.Replica):
		return reply.RoleReplica
	}
	return reply.RolePrimary
}

// succession names who took over from a primary, and marks the one that lost its slots to it.
// One that only gave slots away has no successor, and has not been demoted.
func (c *clusterState) succession(now time.Duration, prev, next *Topology, confirmed map[string]bool) {
	for i := range next.Nodes {
		n := &next.Nodes[i]
		was := prev.Node(n.ID)
		if was == nil {
			continue
		}
		if heir := heir(prev, next, was); heir != nil && confirmed[heir.ID] {
			n.Successor = heir.ID
		}
		took := next.Node(n.Successor)
		// It is its own successor again if it has taken slots back, which needs a higher epoch.
		if took == nil || len(n.Slots) > 0 && n.Epoch > took.Epoch {
			n.Successor, took = "", nil
		}
		if len(n.Slots) > 0 && n.State == StateDemoted && n.Role == reply.RolePrimary && took == nil {
			n.State, n.Since, n.Detail = StateOK, now, ""
		}
		switch {
		case n.State == StateFailed || n.State == StateDemoted && n.Role == reply.RoleReplica:
		case n.Role == reply.RoleReplica && was.Role == reply.RolePrimary && (len(was.Slots) > 0 || n.Successor != ""), n.Successor != "" && len(n.Slots) == 0 && n.State != StateDemoted:
			if took == nil && n.Primary != "" && next.Node(n.Primary) != nil {
				n.Successor = n.Primary
				took = next.Node(n.Primary)
			}
			n.State, n.Since = StateDemoted, now
			if took != nil {
				n.Detail = fmt.Sprintf("%s owns its slots with config epoch %d", short(took.ID), took.Epoch)
			}
		}
		if n.State == StateDemoted && n.Detail == "" {
			n.Detail = was.Detail
		}
	}
}

// heir is the node that has taken over from was: it was its replica, is a primary now, and
// has slots of it with a higher epoch. Slots that are migrated go to nodes that were primaries
// before. Nil if there is none. That a slot or two are still disputed does not matter.
func heir(prev, next *Topology, was *Node) *Node {
	if len(was.Slots) == 0 {
		return nil
	}
	for i := range prev.Nodes {
		before := &prev.Nodes[i]
		if before.Role != reply.RoleReplica || before.Primary != was.ID {
			continue
		}
		if n := next.Node(before.ID); n != nil && n.Epoch > was.Epoch && overlap(n.Slots, was.Slots) {
			return n
		}
	}
	return nil
}

// overlap says whether a slot is in both.
func overlap(a, b []reply.SlotRange) bool {
	return slices.ContainsFunc(a, func(x reply.SlotRange) bool {
		return slices.ContainsFunc(b, func(y reply.SlotRange) bool { return x.First <= y.Last && y.First <= x.Last })
	})
}

// mergeState says whether the cluster serves. Whoever says CLUSTERDOWN while most others do
// not is on the minority's side.
func (c *clusterState) mergeState(prev *Topology, p *panel, next *Topology) {
	ok, down := 0, 0
	for _, v := range p.views {
		if v.told && v.info.OK {
			ok++
		} else if v.told {
			down++
		}
	}
	next.State, next.Why = prev.State, prev.Why
	switch {
	case p.most(ok):
		next.State, next.Why = Up, ""
	case p.most(down):
		next.State, next.Why = Down, fmt.Sprintf("%d of %d primaries that can be reached, of %d in all, say cluster_state:fail", down, p.reached, p.electorate)
	}
}

// leave remembers addresses that are a node's no more.
func (t *Topology) leave(now time.Duration, n *Node, gone []Endpoint, state NodeState, successor, detail string) {
	for _, e := range gone {
		t.Former = slices.DeleteFunc(t.Former, func(f Former) bool { return f.Addr == e.Addr })
		t.Former = append(t.Former, Former{Endpoint: e, Node: n.ID, State: state, Since: now, Successor: successor, Detail: detail})
	}
	if n := len(t.Former) - MaxFormer; n > 0 {
		t.Former = slices.Delete(t.Former, 0, n)
	}
}

// short is enough of an id to tell nodes apart, as in Redis' own log.
func short(id string) string {
	if len(id) == 40 && !strings.Contains(id, ":") {
		return id[:8]
	}
	return id
}
