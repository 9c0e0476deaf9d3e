package verdict

import "time"

func (e *endpoint) refill(now time.Duration, perSecond float64) {
	e.tokens = min(probeBurst, e.tokens+(now-e.tokAt).Seconds()*perSecond)
	e.tokAt = now
}

// forgetProbes drops probes that no rule looks at any more.
func (e *endpoint) forgetProbes(now, downAfter time.Duration) {
	keep := 2*downAfter + 5*time.Second // a probe may take a while to end
	n := 0
	for _, p := range e.probes {
		if now-p.Started < keep {
			e.probes[n] = p
			n++
		}
	}
	e.probes = e.probes[:n]
}

// takeProbe brings the start or the end of a probe to account.
func (c *Core) takeProbe(pr *Probe) {
	e := c.endpoints[pr.Path.Endpoint]
	if e == nil {
		return
	}
	known := false
	for i := range e.probes {
		if e.probes[i].ID == pr.ID {
			e.probes[i], known = *pr, true
		}
	}
	if !known {
		e.probes = append(e.probes, *pr)
	}
	p := e.paths[pr.Path.NS]
	if p != nil {
		p.probed = max(p.probed, pr.Started)
		if pr.Outcome != Pending {
			p.outcome = pr.Outcome
		}
	}
	switch pr.Outcome {
	case Alive:
		for _, q := range e.paths {
			// What works from elsewhere says nothing about a path that was
			// found broken by itself.
			if q == p || q.pooled {
				q.rise++
			}
		}
		if took := pr.Ended - pr.Started; e.rtt == 0 {
			e.rtt = took
		} else {
			e.rtt += (took - e.rtt) / 8 // as TCP smooths its RTT (RFC 6298)
		}
		if p != nil {
			p.baseline = true
			// Connection request and PING; what was lost before it was a loss only.
			e.loss.answered(2+p.lost, p.lost)
			p.lost = 0
		}
		if e.frozenSince != 0 && pr.Started > e.frozenSince {
			c.thaw(e)
		}
		for _, q := range e.paths {
			if q != p && (q.outcome == Dead || q.outcome == Refused) {
				continue // from there it is known not to work
			}
			for _, k := range q.conns {
				if k.waiting && k.aliveAfter == 0 && pr.Started >= k.lastTx {
					// The first one: what is sent after it was sent after an
					// answer, whenever we come to see it.
					k.aliveAfter = pr.Ended
				}
			}
		}
	case Unresponsive:
		e.fell(p)
		if e.frozenSince == 0 {
			e.frozenSince = pr.Started
		}
	case Dead, Refused:
		e.fell(p)
		if p != nil && pr.Outcome == Dead {
			p.lost++
		}
	}
}

// fell ends a row of successes.
func (e *endpoint) fell(p *path) {
	for _, q := range e.paths {
		if q == p || q.pooled {
			q.rise = 0
		}
	}
}

// askProbe asks for at most one probe of e, from the path that needs one most.
func (c *Core) askProbe(e *endpoint) {
	var want *path
	reserve := false // may use the last token
	by := e.downBy()
	for _, p := range e.ranked {
		need, urgent := c.needsProbe(p, by)
		if !need {
			continue
		}
		// First the urgent ones, then whoever has not probed for longest.
		if want == nil || urgent && !reserve || urgent == reserve && p.probed < want.probed {
			want, reserve = p, urgent
		}
	}
	if want == nil {
		return
	}
	pending := 0
	for i := range e.probes {
		if e.probes[i].Outcome == Pending {
			pending++
		}
	}
	if pending > maxPending || pending == maxPending && !reserve {
		return
	}
	if next := e.asked + probeGap; c.now < next {
		c.wake(next)
		return
	}
	if e.tokens < 1 || e.tokens < 2 && !reserve {
		short := 1 - e.tokens
		if !reserve {
			short++
		}
		c.wake(c.now + time.Duration(short/c.set.ProbesPerSecond*float64(time.Second)))
		return
	}
	e.tokens--
	e.asked = c.now
	want.probed = c.now
	c.out.Probe = append(c.out.Probe, want.key)
}

// needsProbe says whether a probe from p would tell something now, and whether a
// verdict waits for it. by is the path that shows the endpoint down, if any.
func (c *Core) needsProbe(p, by *path) (need, urgent bool) {
	e := p.endpoint
	if p.down {
		// Is it back? Slower and slower, and not all nodes of a fleet at once.
		jitter := 0.75 + float64(hash(uint64(c.set.HostNS), uint64(p.key.NS), uint64(e.addr.Port()))%512)/1024
		if at := e.asked + time.Duration(float64(e.gap)*jitter); c.now < at {
			c.wake(at)
			return false, false
		}
		e.gap = min(2*e.gap, downProbeMax)
		return true, false
	}
	if by != nil && p.baseline && p.probed < by.evidence.Since {
		return true, true // the second witness, see poolDown
	}
	s := c.silenceOf(p)
	if s.waiting > 0 || s.probes > 0 {
		if !p.baseline && !p.established() {
			// Nobody has ever connected from here: a failure would prove
			// nothing, and somebody may be scanning.
			return false, false
		}
		start := s.start
		if s.waiting == 0 {
			start = max(start, s.probeStart)
		}
		// The witness at the end of DownAfter.
		at := start + c.set.DownAfter - c.window(e)
		switch {
		case p.probed < at && c.now >= at:
			return true, true
		case c.now < at:
			c.wake(at)
		}
		// One after each transmission, to see whether only this flow is silent;
		// not while one is under way that may still be answered.
		if s.newestTx > 0 && p.probed <= s.newestTx || s.newestTx == 0 && c.now-p.probed >= c.set.DownAfter/4 {
			return true, false
		}
		// And now and then while it lasts; on a lossy path that may be long.
		pause := max(suspectProbe, min((c.now-start)/8, suspectProbeMax))
		if c.now-p.probed >= pause {
			return true, false
		}
		c.wake(p.probed + pause)
		return false, false
	}
	return c.quiet(p), false
}

// quiet says whether data was sent and acknowledged on p, but nothing received on
// the whole endpoint since: a blocking command, or a frozen server.
func (c *Core) quiet(p *path) bool {
	e := p.endpoint
	since := time.Duration(0)
	if p.asleep > 0 {
		for _, k := range p.conns {
			if k.asleep != 0 && (since == 0 || k.asleep < since) {
				since = k.asleep
			}
		}
	}
	if since == 0 || e.received > since {
		e.gap = 0
		return false
	}
	if c.now-since < quietAfter {
		c.wake(since + quietAfter)
		return false
	}
	gap := max(e.gap, quietAfter/2)
	if e.frozenSince != 0 {
		gap = quietAfter / 2 // the verdict is near
	}
	if at := e.asked + gap; c.now < at {
		c.wake(at)
		return false
	}
	e.gap = min(2*gap, quietMax)
	return true
}

// baselines asks for the rare probes of healthy paths: without one that has
// succeeded, a later failure says nothing. At most one a second and node, and
// three paths of an endpoint.
func (c *Core) baselines() {
	if c.now < c.nextBaseline {
		c.wake(c.nextBaseline)
		return
	}
	const places = 3
	var want *path
	for _, e := range c.endpoints {
		have := 0
		for _, p := range e.paths {
			if p.baseline && c.now-p.probed < c.set.Baseline {
				have++
			}
		}
		if have >= min(places, len(e.paths)) || c.now < e.asked+probeGap || e.tokens < 2 {
			continue
		}
		for _, p := range e.paths {
			if p.down || p.suspect != 0 || p.probed != 0 && c.now-p.probed < min(c.set.Baseline, time.Minute) || !p.established() {
				continue
			}
			if want == nil || p.probed < want.probed || p.probed == want.probed && less(p.key, want.key) {
				want = p
			}
		}
	}
	if want == nil {
		return
	}
	want.endpoint.tokens--
	want.endpoint.asked = c.now
	want.probed = c.now
	c.nextBaseline = c.now + time.Second
	c.out.Probe = append(c.out.Probe, want.key)
}

func less(a, b PathKey) bool {
	if x := a.Endpoint.Compare(b.Endpoint); x != 0 {
		return x < 0
	}
	return a.NS < b.NS
}

func (p *path) established() bool {
	for _, k := range p.conns {
		if k.state == Established {
			return true
		}
	}
	return false
}

// askNextHop asks for a look at the way out, of the namespace and of the host,
// while p is suspect.
func (c *Core) askNextHop(p *path) {
	c.hopTokens = min(nextHopBurst, c.hopTokens+(c.now-c.hopTokensAt).Seconds()*nextHopRate)
	c.hopTokensAt = c.now
	if (p.hopAsked == 0 || c.now-p.hopAsked >= c.hopTurn()) && c.hopTokens >= 1 {
		c.hopTokens--
		p.hopAsked = c.now
		c.out.NextHop = append(c.out.NextHop, p.key)
	}
	if age := c.now - c.hostAsked; p.key.NS != c.set.HostNS && (c.hostAsked == 0 || age >= nextHopFresh || age >= nextHopWait && c.hostAsked < c.silenceOf(p).start) {
		c.hostAsked = c.now
		c.out.NextHop = append(c.out.NextHop, PathKey{c.set.HostNS, p.key.Endpoint})
	}
	c.othersTokens = min(othersBurst, c.othersTokens+(c.now-c.othersTokensAt).Seconds()/othersPause.Seconds())
	c.othersTokensAt = c.now
	s, asked := c.silenceOf(p), p.space.othersAsked
	if s.waiting == 0 || c.othersTokens < 1 || asked != 0 && asked >= s.start && c.now-asked < othersPause {
		return
	}
	if at := s.start + min(othersAfter, c.set.DownAfter/2); c.now < at {
		c.wake(at)
		return
	}
	c.othersTokens--
	p.space.othersAsked = c.now
	c.out.Others = append(c.out.Others, OthersWanted{Path: p.key, Since: s.start + othersSlack})
}

// hopTurn is how often a path's next hop is looked at: with many suspects each has
// its turn less often.
func (c *Core) hopTurn() time.Duration {
	return max(nextHopWait, time.Duration(float64(c.suspects)/nextHopRate*float64(time.Second)))
}

// nextHopKnown says whether the way out was looked at during the silence, or
// whether there has been no answer about it for long enough to go on without.
func (c *Core) nextHopKnown(p *path, since time.Duration) bool {
	at := p.hop.At
	if p.key.NS != c.set.HostNS {
		// A silent gateway takes longer to find out than one that answers: the
		// namespace's own, which is this node, always does.
		at = min(at, c.space(c.set.HostNS).looked)
	}
	if at >= since && c.now-at <= nextHopFresh+nextHopWait {
		return true
	}
	hostKnown := p.key.NS == c.set.HostNS || c.space(c.set.HostNS).looked >= since
	if hostKnown && c.now-since >= c.set.MinSilence+3*nextHopWait && !c.doubtAnywhere() {
		// No answer, or no turn among too many: nobody else's way out is in
		// doubt either.
		return true
	}
	c.wake(c.now + 50*time.Millisecond)
	return false
}
