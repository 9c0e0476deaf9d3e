package verdict

import (
	"cmp"
	"net/netip"
	"time"
)

// The rules of this file follow from the facts of the cluster view, and from the processes
// that were seen behind an address. Three of them are about connections that may make progress: to a
// node that is not the right one any more. See Rule.live.
var topologyRules = [...]Rule{RuleRemoved, RuleReplaced, RuleDemoted, RuleFailed}

// byTopology says whether r is a rule of this file.
func (r Rule) byTopology() bool { return r == RuleFailed || r.live() }

// live says whether r ends connections that make progress, where the policy is to reap.
// A failed node does not belong here: one that we hear has not failed for us.
func (r Rule) live() bool { return r == RuleRemoved || r == RuleReplaced || r == RuleDemoted }

// factVerdict is what was concluded about a connection from one fact, so that nothing
// follows from it twice.
type factVerdict struct {
	rule     Rule // empty: there is none
	since    time.Duration
	said     bool // ConnectionJudged was reported
	over     bool // there is nothing more to do
	failures int  // of reaps, and when the next one may be tried
	again    time.Duration
}

// stale is why a connection should not go on.
type stale struct {
	rule   Rule
	since  time.Duration
	kinds  Kinds
	policy Policy
	node   *node
}

// policy is what to do about the connections to addr by rule: that of the first of addrs
// for which the view names one, else that of the settings.
func (c *Core) policy(rule Rule, addrs ...netip.AddrPort) Policy {
	for _, addr := range addrs {
		if n := c.nodes[addr]; n != nil && n.told {
			p := n.fact.Policies
			if own := pick(rule, p.OnDown, p.OnUnresponsive, p.OnFailed, p.OnRemoved, p.OnDemoted, p.OnReplaced); own != "" {
				return own
			}
		}
	}
	s := &c.set
	p := pick(rule, s.OnDown, s.OnUnresponsive, s.OnFailed, s.OnRemoved, s.OnDemoted, s.OnReplaced)
	if rule.byTopology() {
		p = cmp.Or(p, PolicySignal)
	}
	return p
}

func pick(rule Rule, down, unresponsive, failed, removed, demoted, replaced Policy) Policy {
	switch rule {
	case RuleUnresponsive:
		return unresponsive
	case RuleFailed:
		return failed
	case RuleRemoved:
		return removed
	case RuleDemoted:
		return demoted
	case RuleReplaced:
		return replaced
	}
	return down
}

// judgeTopology applies these rules to the nodes about which there is something to say.
func (c *Core) judgeTopology() {
	keep := c.review[:0]
	for _, n := range c.review {
		if c.now < n.settled {
			keep = append(keep, n)
			continue
		}
		of := 0
		c.about(n, func(*conn) { of++ })
		stays := n.told && (n.fact.State == StateFailed || n.fact.State == StateRemoved || n.fact.State == StateDemoted)
		pending := n.fact.State == StateFailed
		c.about(n, func(k *conn) {
			applies, more := c.judgeStale(k, of)
			stays, pending = stays || applies, pending || more
		})
		if !pending {
			n.settled = c.now + settledFor
		}
		if stays {
			keep = append(keep, n)
		} else {
			n.listed = false
		}
	}
	clear(c.review[len(keep):])
	c.review = keep
}

// judgeStale judges k by what the view says of the node that it leads to. It says whether
// there is anything, and whether something is still to be done about it.
func (c *Core) judgeStale(k *conn, of int) (applies, pending bool) {
	s := c.staleness(k)
	if s.rule == "" || s.rule != k.peer.fact.rule || s.since != k.peer.fact.since {
		c.retract(k)
	}
	if s.rule == "" {
		return false, false
	}
	f := &k.setPeer().fact
	f.rule, f.since = s.rule, s.since
	byTopology := k.reap == reapQueued && k.entry.evidence.Rule.byTopology()
	if byTopology && s.policy != PolicyReap {
		k.reap, byTopology = notReaping, false
	}
	why := ""
	switch {
	case s.policy != PolicyReap:
		why = "the policy is to signal only"
	case k.permit != MayReap:
		why = k.reason()
	case s.rule == RuleRemoved && k.notBefore > s.node.toldAt:
		// A client that connects to it now would do so again: a reap does not help.
		why = "it was opened after that"
	case s.rule == RuleFailed && !k.waiting && !c.tested(k, s.since) && !k.askable(c.now):
		why = "nobody has asked it: " + k.whyNotAsked()
	}
	switch {
	case k.state != Established || k.blocked || c.doubtful(k.path.space):
	case f.over || why != "" && f.said:
	case byTopology || k.reap == reapQueued || k.reap == reapRequested:
	case s.rule == RuleFailed && why == "" && !c.tested(k, s.since):
		c.wake(c.now + lateAnswer) // it is being asked
	case s.rule == RuleFailed && !c.seen(k.path, k):
	case c.now < f.again:
		c.wake(f.again)
	case why != "":
		c.spare(k, c.staleEvidence(k, &s), why)
	default:
		c.condemn(k, c.staleEvidence(k, &s), PolicyReap, of)
	}
	return true, !f.over && (why == "" || !f.said)
}

// retract undoes what followed from a fact that does not hold any more.
func (c *Core) retract(k *conn) {
	if k.peer.fact.rule == "" {
		return
	}
	if k.reap == reapQueued && k.entry.evidence.Rule.byTopology() {
		k.reap = notReaping
	}
	if k.openBy.byTopology() {
		c.close(k, ConnectionHeard, "what was said about its node does not hold any more")
	}
	k.setPeer().fact = factVerdict{}
}

// staleness is the first rule that applies to k, one with the policy to reap before one
// with the policy to signal.
func (c *Core) staleness(k *conn) (found stale) {
	if len(c.nodes) == 0 {
		return found
	}
	for i, addr := range [2]netip.AddrPort{k.behind(), k.remote} {
		n := c.nodes[addr]
		if n == nil || i == 1 && addr == k.behind() {
			continue
		}
		for _, rule := range topologyRules {
			since, kinds := c.applies(rule, n, k, i == 0)
			if kinds == 0 {
				continue
			}
			policy := c.policy(rule, addr, k.remote)
			if policy == PolicyReap && found.policy != PolicyReap || policy == PolicySignal && found.rule == "" {
				found = stale{rule, since, kinds, policy, n}
			}
		}
	}
	return found
}

// applies says since when and on which kinds of evidence rule applies to k, on none if it
// does not. own says that n is what k leads to, not only the virtual address before it.
func (c *Core) applies(rule Rule, n *node, k *conn, own bool) (since time.Duration, kinds Kinds) {
	state := NodeState("")
	if n.told {
		state = n.fact.State
	}
	switch rule {
	case RuleRemoved:
		if state == StateRemoved {
			return n.since, Topology
		}
	case RuleReplaced:
		if own && n.single(k) && k.peer.run != "" && n.run.value != "" && n.run.value != k.peer.run && !n.run.several && k.peer.runAt < n.run.since {
			return n.run.since, n.run.by
		}
	case RuleDemoted:
		// A connection that was opened to a replica wants one.
		switch {
		case !own || k.peer.role != RolePrimary || k.reader:
		case state != StateDemoted && !n.single(k):
		case n.role.value == string(RoleReplica) && k.peer.roleAt < n.role.since:
			since, kinds = n.role.since, n.role.by
			if state == StateDemoted {
				since, kinds = n.since, kinds|Topology
			}
		}
	case RuleFailed:
		if state != StateFailed || k.heard > n.since || k.state != Established || c.works(n) {
			break
		}
		if !c.tested(k, n.since) {
			c.wantAsk(k, &c.askTokens)
		}
		quiet := max(n.since, c.clearSince(k.path.space))
		if c.now-quiet < c.set.MinSilence {
			c.wake(quiet + c.set.MinSilence)
			break
		}
		kinds = Topology
		if c.probeFailed(k.path, n.since) {
			kinds |= ProbeSay
		}
		return n.since, kinds
	}
	return since, kinds
}

// tested says whether something was sent to k's peer after t that is not answered though it had
// its time: by k, or by a probe from where it is. That nothing was heard of one that is idle,
// and that nobody has asked, is no evidence.
func (c *Core) tested(k *conn, t time.Duration) bool {
	return k.waiting && k.late(c.now) && k.sentSince(t) > 0 || c.probeFailed(k.path, t)
}

// works says whether n was heard since the view called it failed, by whatever leads to it
// and from wherever: it may have failed for others, but not for this node.
func (c *Core) works(n *node) bool {
	if n.asked == c.steps {
		return n.works
	}
	n.asked, n.works = c.steps, false
	c.about(n, func(k *conn) { n.works = n.works || k.heard > n.since })
	if e := c.endpoints[endpointKey{addr: n.addr}]; e != nil {
		for _, p := range e.ranked {
			n.works = n.works || p.heard > n.since || p.outcome == Alive && p.probed > n.since
		}
	}
	return n.works
}

// probeFailed says whether a probe from p since t is unanswered, and it was one from where
// others have succeeded.
func (c *Core) probeFailed(p *path, t time.Duration) bool {
	window := c.window(p.endpoint)
	for i := range p.endpoint.probes {
		if pr := &p.endpoint.probes[i]; pr.Path == p.key && p.baseline && pr.Started >= t && pr.unanswered(c.now, window) {
			return true
		}
	}
	return false
}

// nodeEvidence is what is to be said about the node.
func (c *Core) nodeEvidence(s *stale) Evidence {
	n := s.node
	ev := Evidence{Rule: s.rule, Kinds: s.kinds, Since: s.since, Silence: c.now - s.since}
	if n.told {
		ev.Target, ev.Successor, ev.View = n.fact.Target, n.fact.Successor, n.fact.Source
		if n.fact.Detail != "" {
			if ev.View != "" {
				ev.View += ": "
			}
			ev.View += n.fact.Detail
		}
	}
	return ev
}

// staleEvidence is what is to be said about k.
func (c *Core) staleEvidence(k *conn, s *stale) Evidence {
	ev := c.nodeEvidence(s)
	switch s.rule {
	case RuleReplaced:
		ev.Was, ev.Is = k.peer.run, s.node.run.value
	case RuleDemoted:
		ev.Was, ev.Is = string(k.peer.role), string(RoleReplica)
	case RuleFailed:
		ev.Silence = c.now - max(s.since, c.clearSince(k.path.space))
		if k.waiting {
			ev.Waiting, ev.Unanswered = 1, k.unanswered
		}
	}
	return ev
}
