package verdict

import "time"

// The rule that an endpoint is down for a namespace.

// downRule finds that nothing answers any more: established connections, which take part
// in the silence or were asked in it, and fresh ones.
func (c *Core) downRule(p *path, s *silence) {
	e := p.endpoint
	window := c.window(e)
	if s.waiting == 0 {
		c.connectingDownRule(p, s)
		return
	}
	// What was sent before the silence began (before the last probe that got through,
	// before the end of a doubt) is no part of it.
	n, waiting, asks := 0, 0, 0
	seen := time.Duration(endOfTime) // when the first of them was first seen
	for _, k := range p.list {
		if k.waiting && k.testifies() && k.reap != reapOver && k.late(c.now) {
			seen = min(seen, k.first)
			if m := k.sentSince(s.start); m > 0 {
				n += m
				waiting++
				asks += min(m, k.asks)
			}
		}
	}
	needs, bar, kinds := c.set.DownAfter, e.loss.surely(), Stall|ProbeSay
	elsewhere := 0
	if s.probes == 0 {
		elsewhere, kinds = e.downElsewhere(p, s.start), Stall // others' probes are no kind of its own
	}
	if s.probes == 0 && elsewhere < downWitnesses {
		if p.baseline && p.outcome != CouldNotTell || p.probed < s.start {
			c.wake(s.start + needs - window)
			return
		}
		// From here no fresh connection was ever seen to work: a filter may let pass
		// what the application does and not what we do. Its own silence decides, and
		// takes longer.
		needs, bar, kinds = 2*needs, bar+surelyAlone, Stall
	}
	due := s.start + needs
	if enough := max(due, seen+c.set.DownAfter); c.now < enough && n > 0 {
		c.wake(enough)
		return
	}
	// The silence is as long as its last witness says: a transmission near the end of it
	// that has had its time to be answered. And established connections must have had
	// some of theirs well after it began.
	if max(s.lastTx, s.probeLast) < due-window || s.lastTx < s.start+c.set.DownAfter/4 {
		return
	}
	loss, burst := e.loss.p(), e.loss.b()
	l := likelihood(loss, burst, n+s.own, 1)
	if n == 0 || l > bar || !c.nextHopKnown(p, s.start) || !c.seenAll(p) {
		return
	}
	if c.together(p, s.start) {
		return
	}
	c.down(p, Evidence{
		Rule: RuleDown, Kinds: kinds, Since: s.start, Silence: c.now - s.start, Waiting: waiting, Unanswered: n, Asks: asks,
		ProbesUnanswered: s.probes, DownElsewhere: elsewhere, ProbeDetail: s.detail, Loss: loss, Burst: burst, Likelihood: l, NextHop: p.hop.Detail,
	})
}

// downElsewhere counts the other namespaces in which e was found down by both kinds of
// evidence and nothing was heard since, 0 if anything was heard in any since t. Where p has
// transmissions of its own that are unanswered they say what fresh connections would, and
// need not be as recent as t (the end of a doubt): from where most clients were freed, and from
// where none was ever seen to work, few are made. They are evidence of others all the same: the
// breaker counts one kind, so that some namespaces of one tenant do not lift it for all.
func (e *endpoint) downElsewhere(p *path, t time.Duration) (n int) {
	if e.heardElsewhere(p) > t {
		return 0
	}
	for _, q := range e.ranked {
		if q != p && q.down && q.heard <= q.downAt && q.rise == 0 && q.evidence.Kinds == Stall|ProbeSay {
			n++
		}
	}
	return n
}

func (c *Core) down(p *path, ev Evidence) {
	e := p.endpoint
	p.down, p.downAt, p.evidence, p.refuses = true, c.now, ev, false
	p.rise, e.gap = 0, probeGap*5
	c.event(Event{Type: EndpointDown, Path: p.key, Text: ev.String(), Evidence: &ev})
	c.reapPath(p)
}
