package verdict

import (
	"net/netip"
	"time"
)

// Fence is an endpoint to which new connections from a namespace should be refused at
// once, or led to Successor where that is known: what is reaped there would else be back
// at the dead address, and hang in its connect.
type Fence struct {
	Path      PathKey        `json:"path"`
	Successor netip.AddrPort `json:"successor,omitzero"`
	// Since is when the reason for it was found.
	Since    time.Duration `json:"since"`
	Evidence Evidence      `json:"evidence"`
}

// FenceStanding is what became of a fence that was asked for.
type FenceStanding string

// The standings. Refused also means: it cannot or may not be set there.
const (
	FenceStands  FenceStanding = "standing"
	FenceRefused FenceStanding = "refused"
	FenceGone    FenceStanding = "gone"
)

// FenceState tells what became of a fence. It holds until the next one about the path.
type FenceState struct {
	Path  PathKey       `json:"path"`
	State FenceStanding `json:"state"`
}

func (c *Core) observeFence(f *FenceState) {
	e := c.endpoints[f.Path.endpoint()]
	if e == nil {
		return
	}
	if p := e.paths[f.Path.NS]; p != nil {
		p.fence = f.State
	}
}

// fences says which fences should stand now.
func (c *Core) fences() {
	if !c.set.Fence && !c.fencing {
		return
	}
	c.fencing = c.set.Fence
	for _, e := range c.ranked {
		for _, p := range e.ranked {
			f, wanted := c.fenceFor(p)
			if !wanted || !c.set.Fence {
				p.fenceAt, p.fence = 0, "" // the next one is another one
				continue
			}
			if p.fenceAt == 0 {
				p.fenceAt = max(1, c.now)
			}
			c.out.Fence = append(c.out.Fence, f)
		}
	}
}

// fenceFor is the fence for p, if there is a reason for one and the policy is to reap.
func (c *Core) fenceFor(p *path) (f Fence, wanted bool) {
	// A fence is about an address, in all of the namespace: it would refuse connections
	// through other interfaces as well.
	if c.doubtful(p.space) || p.key.Interface != 0 {
		return f, false
	}
	f.Path = p.key
	n := c.nodes[p.key.Endpoint]
	if n != nil && n.told {
		f.Successor = n.fact.Successor
	}
	if p.down && c.policy(RuleDown, p.key.Endpoint) == PolicyReap {
		f.Since, f.Evidence = p.downAt, p.evidence
		return f, true
	}
	if n == nil || !n.told {
		return f, false
	}
	var rule Rule
	switch n.fact.State {
	case StateRemoved:
		rule = RuleRemoved
	case StateDemoted:
		rule = RuleDemoted
	case StateFailed:
		rule = RuleFailed
	}
	if rule == "" || c.policy(rule, p.key.Endpoint) != PolicyReap || !c.fenceHelps(p, n, rule) {
		return f, false
	}
	s := stale{rule: rule, since: n.since, kinds: Topology, node: n}
	if rule == RuleFailed && c.probeFailed(p, n.since) {
		s.kinds |= ProbeSay
	}
	f.Since, f.Evidence = n.since, c.nodeEvidence(&s)
	return f, true
}

// fenceHelps says whether what the view says of n is a reason to fence p.
func (c *Core) fenceHelps(p *path, n *node, rule Rule) bool {
	switch rule {
	case RuleDemoted:
		// Without one writers would be refused, and have nowhere to go.
		return n.fact.Successor.IsValid()
	case RuleFailed:
		if c.works(n) {
			return false
		}
		if due := n.since + c.set.MinSilence; c.now < due {
			c.wake(due)
			return false
		}
		return p.fenceAt != 0 || c.seenAll(p)
	}
	return true
}

// fencePending says whether reaps on p wait for its fence.
func (c *Core) fencePending(p *path) bool {
	return c.set.Fence && p.fenceAt != 0 && p.fence != FenceStands && p.fence != FenceRefused && c.now < p.fenceAt+fenceWait
}
