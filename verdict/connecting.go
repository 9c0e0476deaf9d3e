package verdict

import (
	"slices"
)

// Rules about new connections: what fresh ones and connects testify, without established ones.

// connectRule finds connects that hang while others work: their requests get lost, in a
// stale conntrack entry or on one of several ways, and their successor will get through.
func (c *Core) connectRule(p *path) {
	e := p.endpoint
	for _, k := range p.list {
		if k.state != SynSent || !k.waiting || !k.condemnable() || k.unanswered < connectTries {
			continue
		}
		since := max(k.waitFrom, c.clearSince(p.space))
		if c.now-since < connectSilence || c.now-k.lastTx < c.window(e) {
			continue
		}
		alive, dead := 0, 0
		for i := range e.probes {
			if pr := &e.probes[i]; pr.Path == p.key && pr.Started >= since {
				switch pr.Outcome {
				case Alive:
					alive++
				case Dead, Refused:
					dead++
				}
			}
		}
		loss, burst := e.loss.p(), max(e.loss.b(), minFlowBurst)
		l := likelihood(loss, burst, k.unanswered, k.runs)
		if alive < 2 || dead > 0 || l > surelyConnect || !c.seen(p, k) {
			continue
		}
		c.condemnOnce(k, Evidence{
			Rule: RuleConnect, Kinds: ProbeSay, Since: k.waitFrom, Silence: c.now - since, Waiting: 1,
			Unanswered: k.unanswered, ProbesAlive: alive, Loss: loss, Burst: burst, Likelihood: l, NextHop: p.hop.Detail,
		})
	}
}

// judgeAccepting finds that new connections fail while established ones live: the accept
// queue of a busy server is full, or a table or a limit on the way. It harms who connects,
// and nobody else.
func (c *Core) judgeAccepting(p *path) {
	failing := p.deadBeside >= 2 && c.now-p.deadSince >= c.set.DownAfter
	switch {
	case failing && !p.refuses:
		p.refuses, p.suspect = true, 0
		text := "the endpoint does not answer new connections while established ones are acknowledged: " +
			"its accept queue may be full (a busy or frozen server), or a connection table, a SYN limit or a filter on the way; no connection is ended for it"
		if !p.baseline {
			text = "no fresh connection of redisguard was ever answered from here, while established ones of the application are acknowledged: " +
				"a filter may let pass what the application does and not what redisguard does (its source address, a rule by user, an egress policy); " +
				"whether the endpoint is down is judged by the application's connections alone, and takes twice as long"
		}
		c.event(Event{Type: EndpointRefuses, Path: p.key, Took: c.now - p.deadSince, Text: text})
	case p.refuses && p.deadRow == 0:
		p.refuses = false
		c.event(Event{Type: EndpointAccepts, Path: p.key, Text: "new connections are answered again"})
	}
}

// connectingDownRule finds that fresh connections get no answer where no established one
// can testify, because there is none, or it is idle and may not be asked. That ends
// connects; what is established is only signalled.
func (c *Core) connectingDownRule(p *path, s *silence) {
	if s.own < 3 || p.heard >= s.probeStart {
		return
	}
	needs := c.set.DownAfter
	for _, k := range p.list {
		if k.askable(c.now) && k.reap != reapOver {
			return // it will be asked
		}
		if k.testifies() {
			needs = idleDownAfter * c.set.DownAfter // it may still be spoken to
		}
	}
	window := c.window(p.endpoint)
	start := max(s.start, s.probeStart)
	due := start + needs
	if c.now < due {
		c.wake(due)
		return
	}
	if s.probeLast < due-window || p.endpoint.heardElsewhere(p) > start {
		return
	}
	loss, burst := p.endpoint.loss.p(), p.endpoint.loss.b()
	l := likelihood(loss, burst, s.own, 1)
	if l > p.endpoint.loss.surely()+ln10 || !c.nextHopKnown(p, start) || !c.seenAll(p) {
		return
	}
	c.down(p, Evidence{
		Rule: RuleDown, Kinds: ProbeSay, Since: start, Silence: c.now - start, ProbesUnanswered: s.own, ProbeDetail: s.detail,
		Loss: loss, Burst: burst, Likelihood: l, NextHop: p.hop.Detail,
	})
}

// peopled says whether any established connection to e may well be alive.
func (c *Core) peopled(e *endpoint) bool {
	return slices.ContainsFunc(e.ranked, func(p *path) bool {
		return slices.ContainsFunc(p.list, func(k *conn) bool { return k.testifies() && !k.unheard(c.now) })
	})
}
