package clusterview

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// maxSentinels is how many Sentinels of a target are listened to. Three to seven are usual.
const maxSentinels = 15

// told is what one Sentinel says about the master name.
type told struct {
	asked    time.Duration
	primary  reply.Instance
	replicas []reply.Instance
	others   []reply.Instance // Sentinels
	tilt     bool
}

// sentinelState is the memory between merges.
type sentinelState struct {
	told   map[netip.AddrPort]*told // by Sentinel
	absent map[string]time.Duration // since when a majority has not named a node
	hints  map[netip.AddrPort]hint  // by who was named as the primary in a message
	well   map[string]time.Duration // since when a failed node is down no more, for the Sentinels; see back
}

// hint is what a message said: it makes us ask. Alone it proves nothing.
type hint struct {
	at    time.Duration
	epoch uint64
	by    string
}

// maxHints is how many addresses are kept that messages have named as the primary.
const maxHints = 16

func (s *sentinelState) hint(now time.Duration, addr netip.AddrPort, epoch uint64, by string) {
	if len(s.hints) >= maxHints && s.hints[addr] == (hint{}) {
		oldest := addr
		for a, h := range s.hints {
			if oldest == addr || h.at < s.hints[oldest].at {
				oldest = a
			}
		}
		delete(s.hints, oldest)
	}
	s.hints[addr] = hint{now, max(epoch, s.hints[addr].epoch), by}
}

// believed are the Sentinels that can be reached and do not distrust themselves. One that was
// never reached is a ghost of an earlier installation, and does not count at all.
func (s *sentinelState) believed(silent func(netip.AddrPort) bool) (in []*told, reached, electorate, tilt int) {
	for _, addr := range slices.SortedFunc(maps.Keys(s.told), netip.AddrPort.Compare) {
		t := s.told[addr]
		electorate++
		if silent(addr) {
			continue
		}
		reached++
		if t.tilt {
			tilt++
			continue
		}
		in = append(in, t)
	}
	return in, reached, electorate, tilt
}

// candidate is whom the Sentinels take for the primary: whom a majority names, or the one of
// the highest config epoch if it was a replica of the one before. ok is false if they do not
// agree.
func (s *sentinelState) candidate(now time.Duration, in []*told, prev *Topology, m nodeMerging) (addr netip.AddrPort, epoch uint64, by string, ok bool) {
	votes := map[netip.AddrPort]int{}
	epochs := map[netip.AddrPort]uint64{}
	for _, t := range in {
		a, allowed := m.accept(t.primary.Address)
		if !allowed {
			continue
		}
		votes[a]++
		epochs[a] = max(epochs[a], t.primary.Epoch)
	}
	for a, n := range votes {
		if 2*n > len(in) {
			addr, by, ok = a, fmt.Sprintf("%d of %d sentinels", n, len(in)), true
		}
	}
	highest := epochs[addr]
	for a, e := range epochs {
		if a == addr || e <= highest || e <= prev.Epoch {
			continue
		}
		// The switch reaches one Sentinel after another; the newest says it first.
		if n := prev.Node(a.String()); n != nil && m.role(a) == reply.RolePrimary && (!ok || m.role(addr) != reply.RolePrimary) {
			highest, addr, by, ok = e, a, fmt.Sprintf("the highest config epoch, %d", e), true
		}
	}
	if a, why := s.promoted(now, addr, prev, m); why != "" && highest == epochs[addr] {
		return a, prev.Epoch, why, true
	}
	return addr, epochs[addr], by, ok
}

// promoted is whom a message has just named, if that is a known replica which says that it is
// a primary while the one whom the Sentinels still name does not: the leader of a failover
// changes its own answer only when all replicas follow the new primary, seconds later.
func (s *sentinelState) promoted(now time.Duration, named netip.AddrPort, prev *Topology, m nodeMerging) (addr netip.AddrPort, by string) {
	for _, a := range slices.SortedFunc(maps.Keys(s.hints), netip.AddrPort.Compare) {
		h, n := s.hints[a], prev.Node(a.String())
		was := prev.Primary()
		if a == named || n == nil || was == nil || now-h.at > hintFor || m.role(a) != reply.RolePrimary || m.about(a).asked < h.at {
			continue
		}
		if m.role(named) != reply.RolePrimary && (was.first() == a || m.role(was.first()) != reply.RolePrimary) {
			return a, "a message (" + h.by + ")"
		}
	}
	return addr, ""
}

// nodeMerging is what a merge of nodes without ids takes from the view.
type nodeMerging struct {
	accept func(reply.Address) (netip.AddrPort, bool)
	silent func(netip.AddrPort) bool
	// role is what a node that can be reached says of itself, empty if unknown.
	role  func(netip.AddrPort) reply.Role
	about func(netip.AddrPort) *contact // nil if it was never asked
	tls   bool
}

// merge makes a topology from what the Sentinels say, and from what each node says of itself.
func (s *sentinelState) merge(now time.Duration, prev *Topology, m nodeMerging) *Topology {
	in, reached, electorate, tilt := s.believed(m.silent)
	if prev == nil {
		prev = &Topology{Type: Sentinel}
	}
	next := &Topology{Type: Sentinel, Known: prev.Known, State: prev.State, Why: prev.Why, Epoch: prev.Epoch, Voters: len(in), Asked: reached, Electorate: electorate,
		Former: slices.Clone(prev.Former), Sentinels: slices.SortedFunc(maps.Keys(s.told), netip.AddrPort.Compare)}
	next.problem(ProblemTilt, "a Sentinel is in TILT: its clock jumped, or it was frozen", tilt)
	addr, epoch, by, ok := s.candidate(now, in, prev, m)
	primary := ""
	if p := prev.Primary(); p != nil {
		primary = p.ID
	}
	// Its own word comes before primary.changed.
	if ok && addr.String() != primary && m.role(addr) == reply.RolePrimary && (epoch >= prev.Epoch || primary == "") {
		primary, next.Epoch = addr.String(), epoch
	} else if ok && addr.String() == primary {
		next.Epoch = max(next.Epoch, epoch)
	}
	s.members(now, prev, next, in, primary, m)
	decide(now, prev, next, primary, by, m)
	s.failures(now, prev, next, in, m)
	next.finish(nil)
	next.Known = prev.Known || primary != "" && 2*len(in) > electorate
	return next
}

// members are the primary, those whom a majority of the Sentinels names as replicas, and the
// one that was the primary.
func (s *sentinelState) members(now time.Duration, prev, next *Topology, in []*told, primary string, m nodeMerging) {
	named := map[netip.AddrPort]int{}
	outside := map[netip.AddrPort]bool{}
	for _, t := range in {
		for a := range t.each(m, outside) {
			named[a]++
		}
	}
	next.outside(outside)
	dropped := 0
	for _, a := range slices.SortedFunc(maps.Keys(named), netip.AddrPort.Compare) {
		id := a.String()
		if was := prev.Node(id); was == nil && 2*named[a] <= len(in) && id != primary {
			continue
		}
		if len(next.Nodes) == reply.MaxNodes {
			dropped++
			continue
		}
		next.Nodes = append(next.Nodes, member(now, prev, a, m))
	}
	next.problem(ProblemTooMany, fmt.Sprintf("more than %d nodes", reply.MaxNodes), dropped)
	for i := range prev.Nodes {
		was := &prev.Nodes[i]
		if a := was.first(); named[a] > 0 || len(next.Nodes) == reply.MaxNodes {
			delete(s.absent, was.ID)
			continue
		}
		since, gone := s.absent[was.ID]
		switch {
		case len(in) == 0 || 2*len(in) <= next.Electorate || was.ID == primary:
			delete(s.absent, was.ID)
		case !gone:
			s.absent[was.ID] = now
		case now-since >= removeAfter:
			delete(s.absent, was.ID)
			next.leave(now, was, was.Endpoints, StateRemoved, primary, "no sentinel that can be reached knows it")
			continue
		}
		next.Nodes = append(next.Nodes, member(now, prev, was.first(), m))
	}
}

// each is the primary and the replicas of one Sentinel, each once: one that names a node
// twice has one voice. What is not allowed is noted in outside, unless that is nil.
func (t *told) each(m nodeMerging, outside map[netip.AddrPort]bool) map[netip.AddrPort]reply.SentinelFlags {
	all := map[netip.AddrPort]reply.SentinelFlags{}
	for _, x := range append([]reply.Instance{t.primary}, t.replicas...) {
		if a, ok := m.accept(x.Address); ok {
			all[a] |= x.Flags
		} else if a.IsValid() && outside != nil {
			outside[a] = true
		}
	}
	return all
}

// member is the node at addr with what it says of itself.
func member(now time.Duration, prev *Topology, addr netip.AddrPort, m nodeMerging) Node {
	n := Node{ID: addr.String(), State: StateOK, Since: now, Endpoints: []Endpoint{{addr, m.tls}}}
	if was := prev.Node(n.ID); was != nil {
		n = *was
	}
	n.Primary = ""
	if k := m.about(addr); k != nil {
		if n.Virtual, n.Named = k.virtual, k.named && !k.behind.many; n.Virtual {
			if n.State != StateFailed || !n.Named {
				n.State, n.Detail = StateOK, k.behind.detail
			}
			if k.behind.stale != "" {
				n.State, n.Since = k.behind.stale, k.behind.since
			}
		}
		if k.info != nil {
			n.RunID, n.Loading = k.info.RunID, k.info.Loading
		}
		if role := m.role(addr); role != "" {
			n.Role = role
		}
		if k.role != nil && k.role.Role == reply.RoleReplica {
			if a, ok := m.accept(k.role.Primary); ok {
				n.Primary = a.String()
			}
		}
	}
	return n
}

// splitAfter is for how long two nodes must have said that they are primaries, before that is
// called a split brain under Sentinel: in SENTINEL FAILOVER they do for a second, and one that comes
// back is made a replica within 10 s.
const splitAfter = 10 * time.Second

// decide gives the nodes their roles under one primary, and says who was demoted.
func decide(now time.Duration, prev, next *Topology, primary, by string, m nodeMerging) {
	was := prev.Primary()
	for i := range next.Nodes {
		n := &next.Nodes[i]
		own := m.role(n.first())
		switch {
		case n.ID == primary:
			if n.Role = reply.RolePrimary; n.State == StateDemoted {
				n.State, n.Since = StateOK, now
			}
			if n.Successor = ""; n.State == StateOK {
				n.Detail = ""
			}
			continue
		case primary == "":
			continue
		}
		if k := m.about(n.first()); own == reply.RolePrimary && n.State == StateDemoted && k.asked > n.Since {
			next.problem(ProblemWritable, fmt.Sprintf("%v says that it is a primary, and takes writes, beside %s", n.first(), primary), 1)
		} else if p := find(next, primary); own == reply.RolePrimary && n.State == StateOK && p != nil && m.role(p.first()) == own &&
			min(k.asked, m.about(p.first()).asked) > max(k.primary, m.about(p.first()).primary)+splitAfter {
			next.problem(ProblemSplit, fmt.Sprintf("%v says that it is a primary, as %s does", n.first(), primary), 2)
		}
		wasPrimary := was != nil && was.ID == n.ID
		before := prev.Node(n.ID)
		if wasPrimary || own == reply.RoleReplica && before != nil && before.Role == reply.RolePrimary {
			if n.State != StateDemoted {
				n.State, n.Since = StateDemoted, now
			}
			n.Detail = fmt.Sprintf("%s is the primary, by its own word", primary)
			if by != "" {
				n.Detail = fmt.Sprintf("%s is the primary, by %s and by its own word", primary, by)
			}
		}
		if n.State == StateDemoted {
			n.Successor = primary
		}
		if n.Role = reply.RoleReplica; n.Primary == "" {
			n.Primary = primary
		}
	}
}

// backAfter is how long Sentinels must not have called a node down that had failed, and does not
// answer us. At a switch of the primary they forget what they knew of it, and need
// down-after-milliseconds, by default 30 s, to find again that it is down.
const backAfter = time.Minute

// back says whether a node that had failed is well again, which the Sentinels do not deny.
func (s *sentinelState) back(now time.Duration, id string, silent bool) bool {
	since, known := s.well[id]
	if !known {
		s.well[id], since = now, now
	}
	return !silent || now-since >= backAfter
}

// failures evaluates what the Sentinels think of the nodes: down by a quorum, or down for a
// majority and for us.
func (s *sentinelState) failures(now time.Duration, prev, next *Topology, in []*told, m nodeMerging) {
	sdown, odown := map[netip.AddrPort]int{}, map[netip.AddrPort]int{}
	for _, t := range in {
		for a, flags := range t.each(m, nil) {
			if flags.Has(reply.SDown) {
				sdown[a]++
			}
			if flags.Has(reply.ODown) {
				odown[a]++
			}
		}
	}
	maps.DeleteFunc(s.well, func(id string, _ time.Duration) bool { return find(next, id) == nil })
	for i := range next.Nodes {
		n := &next.Nodes[i]
		a := n.first()
		n.Opinions = sdown[a]
		failed := 2*odown[a] > len(in) || 2*sdown[a] > len(in) && m.silent(a)
		switch {
		case failed && n.State == StateOK:
			n.State, n.Since = StateFailed, now
			n.Detail = fmt.Sprintf("down for %d of %d sentinels", sdown[a], len(in))
		case !failed && n.State == StateFailed && len(in) > 0 && s.back(now, n.ID, m.silent(a)):
			n.State, n.Since, n.Detail = StateOK, now, ""
		}
		if failed || n.State != StateFailed {
			delete(s.well, n.ID)
		}
		if n.Role == reply.RolePrimary && len(in) > 0 {
			next.State, next.Why = Up, ""
			if n.State == StateFailed {
				next.State, next.Why = Down, fmt.Sprintf("the primary %v is down for %d of %d sentinels, and there is no other yet", a, sdown[a], len(in))
			}
		}
	}
}
