package verdict

import "time"

// judge applies the rules to one endpoint.
func (c *Core) judge(e *endpoint) {
	e.loss.decay(c.now)
	e.refill(c.now, c.set.ProbesPerSecond)
	e.forgetProbes(c.now, c.set.DownAfter)
	e.sum(c.now, c.window(e))
	for i := len(e.ranked) - 1; i >= 0; i-- { // backwards, since paths are dropped
		p := e.ranked[i]
		c.judgePath(p)
		if len(p.conns) == 0 && (!p.down || c.now-p.empty >= rememberDown) {
			if p.down {
				c.event(Event{Type: EndpointUp, Path: p.key, Text: "nobody connects to it any more: forgotten", Took: c.now - p.evidence.Since})
			}
			c.dropPath(p)
		}
	}
	if len(e.paths) == 0 {
		return
	}
	c.poolDown(e)
	c.judgeFrozen(e)
	c.askProbe(e)
}

// window is how long an answer is waited for before a transmission to e counts
// as unanswered.
func (c *Core) window(e *endpoint) time.Duration {
	w := min(max(4*e.rtt, answerMin), answerMax)
	return min(w, c.set.DownAfter/2)
}

// sum notes what every path of e needs to know, so that a step over hundreds of
// them does not look at all of them for each.
func (e *endpoint) sum(now, window time.Duration) {
	e.silentProbes = false
	for i := range e.probes {
		e.silentProbes = e.silentProbes || e.probes[i].unanswered(now, window)
	}
	e.heardBy, e.heardMost, e.heardNext = nil, 0, 0
	for _, p := range e.ranked {
		switch {
		case e.heardBy == nil || p.heard > e.heardMost:
			e.heardBy, e.heardMost, e.heardNext = p, p.heard, e.heardMost
		case p.heard > e.heardNext:
			e.heardNext = p.heard
		}
	}
}

// heardElsewhere is when anything was last heard on a path of e other than p.
func (e *endpoint) heardElsewhere(p *path) time.Duration {
	if e.heardBy == p {
		return e.heardNext
	}
	return e.heardMost
}

// silenceOf is what is unanswered on p in this step.
func (c *Core) silenceOf(p *path) *silence {
	if p.surveyed == c.steps {
		return &p.silence
	}
	p.surveyed = c.steps
	p.silence = silence{}
	if p.waiting > 0 || p.endpoint.silentProbes {
		c.survey(p, &p.silence)
		c.addProbes(p, &p.silence)
	}
	return &p.silence
}

// silence is what is unanswered on a path.
type silence struct {
	waiting     int           // connections with something unanswered for longer than is usual
	unanswered  int           // their transmissions
	start       time.Duration // first of them
	lastTx      time.Duration // last of them that has had time to be answered
	newestTx    time.Duration // last of them
	probes      int           // unanswered probes
	probeStart  time.Duration // first of them
	probeLast   time.Duration // last of them
	detail      string
	contradicts bool
}

// survey collects what the connections of p wait for.
func (c *Core) survey(p *path, s *silence) {
	window := c.window(p.endpoint)
	if p.waiting > 0 {
		for _, k := range p.conns {
			// One that was judged and may not be reaped tells nothing new, and is
			// no reason to go on probing until the kernel gives up on it.
			if !k.waiting || k.reap == reapOver || !k.late(c.now) {
				continue
			}
			s.waiting++
			s.unanswered += k.unanswered
			if s.start == 0 || k.waitFrom < s.start {
				s.start = k.waitFrom
			}
			s.newestTx = max(s.newestTx, k.lastTx)
			if c.now-k.lastTx >= max(window, 2*k.rtt) {
				s.lastTx = max(s.lastTx, k.lastTx)
			}
		}
	}
}

// late says whether k has waited longer than an answer usually takes.
func (k *conn) late(now time.Duration) bool {
	return k.unanswered >= 2 || now-k.waitFrom >= max(lateAnswer, 4*k.rtt)
}

// addProbes adds the probes since the silence began. Other namespaces' probes
// count as well as long as nothing that was heard elsewhere contradicts them:
// there are too many namespaces on a node to probe from each.
func (c *Core) addProbes(p *path, s *silence) {
	e := p.endpoint
	floor := max(p.heard, c.clearSince(p.space))
	own := false
	for i := range e.probes {
		pr := &e.probes[i]
		if pr.Path.NS == p.key.NS && pr.Started >= max(floor, s.start) && pr.Outcome != CouldNotTell {
			own = true
		}
	}
	s.contradicts = e.heardElsewhere(p) > max(floor, s.start)
	// The last probe that got through, if any, is where the silence begins.
	for i := range e.probes {
		pr := &e.probes[i]
		mine := pr.Path.NS == p.key.NS
		if pr.Outcome != Alive && pr.Outcome != Unresponsive {
			continue
		}
		if !mine && pr.Started > max(floor, s.start) {
			s.contradicts = true
		}
		if mine || !own {
			floor = max(floor, pr.Started)
		}
	}
	window := c.window(e)
	for i := range e.probes {
		pr := &e.probes[i]
		q := e.paths[pr.Path.NS]
		mine := q == p
		if !pr.unanswered(c.now, window) || pr.Started < floor || q == nil || !q.baseline || s.contradicts && !mine {
			continue
		}
		s.probes++
		if s.probeStart == 0 {
			s.probeStart = pr.Started
		}
		s.probeLast = max(s.probeLast, pr.Started)
		s.detail = pr.words(c.now)
	}
	s.start = max(s.start, floor)
}

// unanswered says whether the probe is evidence of silence.
func (p *Probe) unanswered(now, window time.Duration) bool {
	return p.Outcome == Dead || p.Outcome == Refused || p.Outcome == Pending && p.Connected == 0 && now-p.Started >= window
}

// words says what the probe has found out up to now.
func (p *Probe) words(now time.Duration) string {
	if p.Outcome == Pending {
		return "no answer for " + ms(now-p.Started).String()
	}
	if p.Detail != "" {
		return p.Outcome.String() + " (" + p.Detail + ")"
	}
	return p.Outcome.String()
}

// judgePath applies the flow and the down rule.
func (c *Core) judgePath(p *path) {
	if p.down {
		if p.heard > p.downAt || p.rise >= riseProbes {
			c.up(p)
		} else {
			c.out.Suspects = append(c.out.Suspects, p.key)
			c.reapPath(p)
			return
		}
	}
	s := c.silenceOf(p)
	if s.waiting == 0 && s.probes == 0 {
		if p.suspect != 0 {
			c.event(Event{Type: EndpointUp, Path: p.key, Text: "answers again, was only suspect", Took: c.now - p.suspect})
			p.suspect = 0
		}
		return
	}
	c.out.Suspects = append(c.out.Suspects, p.key)
	c.askNextHop(p)
	c.tellStalled(p)
	if s.probes > 0 && p.suspect == 0 {
		p.suspect = c.now
		c.event(Event{Type: EndpointSuspect, Path: p.key, Text: "a probe is unanswered: " + s.detail})
	}
	if c.doubtful(p.space) {
		return
	}
	c.flowRule(p)
	c.downRule(p, s)
}

// tellStalled reports connections that retransmit without an answer.
func (c *Core) tellStalled(p *path) {
	for _, k := range p.conns {
		if k.waiting && !k.told && k.state == Established && k.unanswered >= 2 {
			k.told, k.open = true, true
			c.event(Event{Type: ConnectionStalled, Path: p.key, Key: k.key, Text: "data is unacknowledged and retransmitting", Took: c.now - k.waitFrom})
		}
	}
}

// flowRule finds connections whose own flow is broken while the endpoint is fine.
func (c *Core) flowRule(p *path) {
	e := p.endpoint
	loss, burst := e.loss.p(), max(e.loss.b(), minFlowBurst)
	for _, k := range p.conns {
		if !k.waiting || k.state != Established || k.reap != notReaping {
			continue
		}
		quiet := c.now - max(k.waitFrom, k.heard, c.clearSince(p.space))
		if k.runs < 2 || k.aliveAfter == 0 || quiet < c.set.MinSilence {
			continue
		}
		n := k.sentSince(c.clearSince(p.space))
		l := likelihood(loss, burst, n, k.runs)
		if l > e.loss.surely() || !c.nextHopKnown(p, k.waitFrom) || !c.seen(p, k) {
			continue
		}
		c.condemn(k, Evidence{
			Rule: RuleFlow, Kinds: Stall | ProbeSay, Since: k.waitFrom, Silence: quiet, Waiting: 1,
			Unanswered: n, ProbesAlive: e.aliveSince(k.waitFrom), Loss: loss, Burst: burst, Likelihood: l, NextHop: p.hop.Detail,
		}, PolicyReap, 1)
	}
}

// aliveSince counts the probes that were started since t and alive.
func (e *endpoint) aliveSince(t time.Duration) (n int) {
	for i := range e.probes {
		if e.probes[i].Outcome == Alive && e.probes[i].Started >= t {
			n++
		}
	}
	return n
}

// downRule finds that nothing answers any more.
func (c *Core) downRule(p *path, s *silence) {
	e := p.endpoint
	kinds := Stall | ProbeSay
	needProbes := 1
	start := s.start
	if s.waiting == 0 {
		// Idle connections only: what probes say is all there is.
		kinds, needProbes = ProbeSay, 3
		start = max(start, s.probeStart)
	} else {
		// What was sent before the silence began (before the last probe that got
		// through, before the end of a doubt) is no part of it.
		s.unanswered = 0
		for _, k := range p.conns {
			if k.waiting && k.reap != reapOver && k.late(c.now) {
				s.unanswered += k.sentSince(start)
			}
		}
		if s.unanswered+s.probes < 2 {
			return
		}
	}
	window := c.window(e)
	due := start + c.set.DownAfter
	if s.probes < needProbes {
		c.wake(due - window)
		return
	}
	if c.now < due {
		c.wake(due)
		return
	}
	// The silence is as long as its last witness says: a transmission near the
	// end of it that has had its time to be answered.
	if max(s.lastTx, s.probeLast) < due-window {
		return
	}
	n := s.unanswered + s.probes
	loss, burst := e.loss.p(), e.loss.b()
	l := likelihood(loss, burst, n, 1)
	if l > e.loss.surely() || !c.nextHopKnown(p, start) || !c.seenAll(p) {
		return
	}
	c.down(p, Evidence{
		Rule: RuleDown, Kinds: kinds, Since: start, Silence: c.now - start, Waiting: s.waiting, Unanswered: n,
		ProbesUnanswered: s.probes, ProbeDetail: s.detail, Loss: loss, Burst: burst, Likelihood: l, NextHop: p.hop.Detail,
	})
}

// seen says whether k was looked at a moment ago, and asks for a look at its path
// if it was not: quiet connections are looked at every few seconds only, and may
// have been heard since.
func (c *Core) seen(p *path, k *conn) bool {
	if c.now-k.sampled <= lookFresh || c.set.Blind && k.sampled != 0 {
		return true
	}
	c.out.Look = append(c.out.Look, p.key)
	return false
}

// seenAll says so of all connections of p: what is concluded from the silence of
// some must not be refuted by another.
func (c *Core) seenAll(p *path) bool {
	for _, k := range p.conns {
		if !k.held && !c.seen(p, k) {
			return false
		}
	}
	return true
}

func (c *Core) down(p *path, ev Evidence) {
	e := p.endpoint
	p.down, p.downAt, p.evidence = true, c.now, ev
	p.rise, e.gap = 0, probeGap*5
	c.event(Event{Type: EndpointDown, Path: p.key, Text: ev.String(), Evidence: &ev})
	c.reapPath(p)
}

func (c *Core) up(p *path) {
	p.down, p.pooled = false, false
	p.suspect = 0
	c.event(Event{Type: EndpointUp, Path: p.key, Text: "answers again", Took: c.now - p.evidence.Since})
	for _, k := range p.conns {
		if k.reap == reapQueued {
			k.reap = notReaping
		}
	}
}

// poolDown extends what one path has shown to those on which nothing can show,
// because their connections are all idle or no probe was made from there. One
// path alone proves only that it is broken itself (a policy, a fault of that
// pod's network, or a pod that plays the endpoint): a probe from a second
// namespace must be unanswered too, and nothing of the endpoint may have been
// heard anywhere since.
func (c *Core) poolDown(e *endpoint) {
	by := e.downBy()
	if by == nil || !c.secondWitness(e, by) {
		return
	}
	for _, q := range e.ranked {
		if q.down || q.heard > by.evidence.Since || c.doubtful(q.space) || q.outcome == Alive && q.probed > by.evidence.Since {
			continue
		}
		if c.clearSince(q.space) > by.evidence.Since || !c.seenAll(q) {
			continue
		}
		c.down(q, by.evidence)
		q.pooled = true
	}
}

// downBy is the path that was found down first on two kinds of evidence of its
// own, nil if there is none.
func (e *endpoint) downBy() (by *path) {
	for _, p := range e.ranked {
		if p.down && !p.pooled && p.evidence.Kinds.Count() > 1 && (by == nil || p.downAt < by.downAt) {
			by = p
		}
	}
	return by
}

// secondWitness says whether another namespace than that of by finds the endpoint
// silent as well, and none finds it alive.
func (c *Core) secondWitness(e *endpoint, by *path) bool {
	since, found := by.evidence.Since, false
	if e.heardElsewhere(by) > since || by.heard > since {
		return false
	}
	window := c.window(e)
	for i := range e.probes {
		pr := &e.probes[i]
		if pr.Started < since {
			continue
		}
		if pr.Outcome == Alive || pr.Outcome == Unresponsive {
			return false
		}
		q := e.paths[pr.Path.NS]
		if q != nil && q != by && q.baseline && pr.unanswered(c.now, window) {
			found = true
		}
	}
	return found
}

// reapPath condemns all connections of a path that is down.
func (c *Core) reapPath(p *path) {
	for _, k := range p.conns {
		if k.reap != notReaping || k.held {
			continue
		}
		ev := p.evidence
		switch k.state {
		case Established:
			if k.heard > ev.Since || k.first > p.downAt {
				// Heard since, or made since: then it is not part of the
				// silence. What is heard brings the endpoint up soon.
				continue
			}
		case SynSent:
			// One that was made since is given the time of one more SYN.
			age := c.now - k.first
			if k.first > p.downAt && (age < rtoMin*5 || p.endpoint.lastUnanswered(c.now, c.window(p.endpoint)) < k.first) {
				c.wake(k.first + rtoMin*5)
				continue
			}
			if k.first > p.downAt {
				ev = Evidence{Rule: RuleSyn, Kinds: ev.Kinds | Stall, Since: k.first, Silence: age, Waiting: 1, Unanswered: k.unanswered, ProbesUnanswered: 1, ProbeDetail: ev.ProbeDetail}
			}
		default:
			continue
		}
		c.condemn(k, ev, c.set.OnDown, len(p.conns))
	}
}

// lastUnanswered is when the last unanswered probe was started.
func (e *endpoint) lastUnanswered(now, window time.Duration) (at time.Duration) {
	for i := range e.probes {
		if e.probes[i].unanswered(now, window) {
			at = max(at, e.probes[i].Started)
		}
	}
	return at
}

// judgeFrozen finds endpoints whose kernel answers while the process does not.
func (c *Core) judgeFrozen(e *endpoint) {
	if e.frozenSince == 0 {
		return
	}
	if e.received > e.frozenSince {
		c.thaw(e)
		return
	}
	probes, detail := 0, ""
	for i := range e.probes {
		if e.probes[i].Outcome == Unresponsive && e.probes[i].Started >= e.frozenSince {
			probes++
			detail = e.probes[i].Detail
		}
	}
	if c.now-e.frozenSince < c.set.DownAfter || probes < 2 {
		return
	}
	if !e.frozenTold {
		seen := true
		for _, p := range e.ranked {
			seen = c.seenAll(p) && seen
		}
		if !seen {
			return
		}
	}
	ev := Evidence{Rule: RuleUnresponsive, Kinds: ProbeSay, Since: e.frozenSince, Silence: c.now - e.frozenSince, ProbesUnanswered: probes, ProbeDetail: detail}
	for _, p := range e.ranked {
		if !e.frozenTold {
			c.event(Event{Type: EndpointDown, Path: p.key, Text: ev.String(), Evidence: &ev})
		}
		if c.set.OnUnresponsive != PolicyReap || c.doubtful(p.space) {
			continue
		}
		for _, k := range p.conns {
			if k.state == Established && k.reap == notReaping && k.first < e.frozenSince {
				c.condemn(k, ev, PolicyReap, len(p.conns))
			}
		}
	}
	e.frozenTold = true
}

func (c *Core) thaw(e *endpoint) {
	if e.frozenTold {
		for _, p := range e.ranked {
			c.event(Event{Type: EndpointUp, Path: p.key, Text: "replies again", Took: c.now - e.frozenSince})
		}
	}
	e.frozenSince, e.frozenTold, e.gap = 0, false, 0
}
