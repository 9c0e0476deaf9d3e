package verdict

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

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

// observeProbe evaluates the start or the end of a probe.
func (c *Core) observeProbe(pr *Probe) {
	e := c.endpoints[pr.Path.endpoint()]
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
		c.observeProbed(pr)
		if took := pr.Ended - pr.Started; e.rtt == 0 {
			e.rtt = took
		} else {
			e.rtt += (took - e.rtt) / 8 // as TCP smooths its RTT (RFC 6298)
		}
		if p != nil {
			p.baseline = true
			p.rise++ // what works from elsewhere says nothing about this path
			p.deadRow, p.deadBeside, p.deadSince = 0, 0, 0
			// Connection request and PING; what was lost before it was a loss only.
			e.loss.answered(2+p.lost, p.lost)
			p.lost = 0
		}
		if e.frozenSince != 0 && pr.Started > e.frozenSince {
			c.thaw(e)
		}
		for _, q := range e.paths {
			c.probeGotThrough(pr, q)
		}
	case Unresponsive:
		if p == nil {
			break
		}
		p.rise = 0
		c.probeGotThrough(pr, p)
		// That its kernel accepts connections is known now.
		p.deadRow, p.deadBeside, p.deadSince = 0, 0, 0
		if !p.baseline {
			// It may be something that never answers a PING: it wants TLS, or a
			// PROXY header.
			break
		}
		if e.frozenSince == 0 {
			e.frozenSince = pr.Started
		}
	case Dead, Refused:
		if p == nil {
			break
		}
		p.rise = 0
		if pr.Outcome == Dead {
			p.lost++
		}
		if p.deadRow++; p.deadRow == 1 {
			p.deadSince = pr.Started
		}
		if p.heard > pr.Started && pr.Started >= p.besideAt { // one after the other: a pause of the path may end during several
			p.deadBeside++
			p.besideAt = c.now
		}
	}
}

// probeGotThrough notes a probe that got through for the connections of p: what they send
// after it is sent after an answer, whenever we come to see it.
func (c *Core) probeGotThrough(pr *Probe, p *path) {
	if p.waiting == 0 {
		return
	}
	for _, k := range p.list {
		if k.waiting && k.aliveAfter == 0 && pr.Started >= k.lastTx && pr.gotThrough(p, k.lastTx) {
			k.aliveAfter = pr.Ended
			k.accepted = k.accepted || pr.Outcome == Unresponsive
		}
	}
}

// requestProbe asks for at most one probe of e, from the path that needs one most.
func (c *Core) requestProbe(e *endpoint) {
	var want *path
	wantKnown, reserve := false, false // the latter may use the last token
	for _, p := range e.ranked {
		need, urgent := c.needsProbe(p)
		if !need {
			continue
		}
		// First those from where probes have succeeded before and none was made in this
		// silence: what they find counts for all. Then the urgent ones, then the one
		// whose last probe is the oldest.
		known := p.baseline && p.probed < c.silenceOf(p).start
		if want == nil || known && !wantKnown || known == wantKnown && (urgent && !reserve || urgent == reserve && p.probed < want.probed) {
			want, wantKnown, reserve = p, known, urgent
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
	if next := e.probeRequested + probeGap; c.now < next {
		c.wake(next)
		return
	}
	least := 2.0 // the last one is kept for a verdict that waits for it
	if reserve {
		least = 1
	}
	if !e.tokens.Has(least) {
		c.wake(c.now + e.tokens.Wait(least, c.set.ProbesPerSecond))
		return
	}
	e.tokens.Take()
	e.probeRequested = c.now
	want.probed = c.now
	c.out.Probe = append(c.out.Probe, ProbeWanted{want.key, want.source()})
}

// needsProbe says whether a probe from p would tell something now, and whether a
// verdict waits for it.
func (c *Core) needsProbe(p *path) (need, urgent bool) {
	e := p.endpoint
	if p.down {
		// Is it back? Slower and slower, and not all nodes of a fleet at once.
		jitter := 0.75 + float64(hash(uint64(c.set.HostNS), uint64(p.key.NS), uint64(e.key.addr.Port()))%512)/1024
		if at := e.probeRequested + time.Duration(float64(e.gap)*jitter); c.now < at {
			c.wake(at)
			return false, false
		}
		e.gap = min(2*e.gap, downProbeMax)
		return true, false
	}
	s := c.silenceOf(p)
	if s.waiting > 0 || s.connecting > 0 || s.probes > 0 {
		if !p.baseline && !p.established() {
			// No connection from here was ever established: a failure would prove
			// nothing, and the client may be a scanner.
			return false, false
		}
		start := s.start
		if s.waiting == 0 {
			start = max(start, s.probeStart)
		}
		// A connect that hangs alone: its requests are no reason to probe for ever.
		if s.waiting == 0 && s.probes == 0 && p.outcome == Alive && p.probed > start && c.now-s.connectStart > connectFor {
			return false, false
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
	if p.deadRow > 0 && p.established() {
		// Established connections are fine, and new ones were not at last, or never.
		pause := max(suspectProbe, min((c.now-p.deadSince)/8, suspectProbeMax))
		if !p.baseline {
			pause = min(time.Duration(p.deadRow)*suspectProbeMax/2, max(c.set.Baseline, suspectProbeMax))
		}
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
	if p.awaitingReply > 0 {
		for _, k := range p.conns {
			if k.awaitingReply != 0 && (since == 0 || k.awaitingReply < since) {
				since = k.awaitingReply
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
	if at := e.probeRequested + gap; c.now < at {
		c.wake(at)
		return false
	}
	e.gap = min(2*gap, quietMax)
	return true
}

// baselines asks for the rare probes of healthy paths: without one that has succeeded, a
// later failure says less. Endpoints that have none come first, and namespaces take turns:
// one with thousands of endpoints of its own must not keep the others from theirs.
func (c *Core) baselines() {
	if c.now < c.nextBaseline {
		c.wake(c.nextBaseline)
		return
	}
	const places = 3
	var want *path
	wantHave := 0
	for _, e := range c.ranked {
		have := 0
		for _, p := range e.ranked {
			if p.baseline && c.now-p.probed < c.set.Baseline {
				have++
			}
		}
		if have >= min(places, len(e.paths)) || c.now < e.probeRequested+probeGap || !e.tokens.Has(2) {
			continue
		}
		for _, p := range e.ranked {
			if p.down || p.suspect != 0 || p.probed != 0 && c.now-p.probed < min(c.set.Baseline, time.Minute) || !p.established() {
				continue
			}
			if want == nil || cmp.Or(cmp.Compare(min(have, 1), min(wantHave, 1)), cmp.Compare(p.space.baselineAt, want.space.baselineAt),
				cmp.Compare(have, wantHave), cmp.Compare(p.probed, want.probed)) < 0 {
				want, wantHave = p, have
			}
		}
	}
	if want == nil {
		return
	}
	want.endpoint.tokens.Take()
	want.endpoint.probeRequested = c.now
	want.probed, want.space.baselineAt = c.now, c.now
	c.nextBaseline = c.now + baselineGap
	c.out.Probe = append(c.out.Probe, ProbeWanted{want.key, want.source()})
}

// source is the local address from which a probe of p is to come: that of a connection that
// waits for an answer, if one does, else of each in turn, and of the last one where all are
// gone.
func (p *path) source() netip.Addr {
	if len(p.list) == 0 {
		return p.lastSource
	}
	p.probeTurn++
	k := p.list[p.probeTurn%len(p.list)]
	for i := 0; p.waiting > 0 && !k.waiting && i < len(p.list); i++ {
		k = p.list[(p.probeTurn+i)%len(p.list)]
	}
	return k.local.Addr()
}

func (p *path) established() bool {
	for _, k := range p.conns {
		if k.state == Established {
			return true
		}
	}
	return false
}

// requestNextHop has the way out looked at, of the namespace and of the host, while p is
// suspect.
func (c *Core) requestNextHop(p *path) {
	s := c.silenceOf(p)
	if c.now-p.space.hopRequested >= nextHopWait || p.space.hopRequested == 0 {
		c.hops = append(c.hops, p)
	}
	if age := c.now - c.hostRequested; p.key.NS != c.set.HostNS && (c.hostRequested == 0 || age >= nextHopFresh || age >= nextHopWait && c.hostRequested < s.start) {
		c.hostRequested = c.now
		c.out.NextHop = append(c.out.NextHop, PathKey{NS: c.set.HostNS, Endpoint: p.key.Endpoint})
	}
	c.unrelatedTokens.Refill(c.now, 1/unrelatedPause.Seconds(), unrelatedBurst)
	requested := p.space.unrelatedRequested
	if s.waiting == 0 || !c.unrelatedTokens.Has(1) || requested != 0 && requested >= s.start && c.now-requested < unrelatedPause {
		return
	}
	if at := s.start + min(unrelatedAfter, c.set.DownAfter/2); c.now < at {
		c.wake(at)
		return
	}
	c.unrelatedTokens.Take()
	p.space.unrelatedRequested = c.now
	c.out.Unrelated = append(c.out.Unrelated, UnrelatedWanted{Path: p.key, Since: s.start + unrelatedSlack})
}

// nextHops asks for the looks at next hops that are due, one for each namespace, in turn:
// its path that has waited longest for one.
func (c *Core) nextHops() {
	c.hopTokens.Refill(c.now, nextHopRate, nextHopBurst)
	slices.SortStableFunc(c.hops, func(a, b *path) int {
		return cmp.Or(cmp.Compare(a.space.hopRequested, b.space.hopRequested), cmp.Compare(a.hopRequested, b.hopRequested))
	})
	for _, p := range c.hops {
		if p.space.hopRequested == c.now && p.key.NS != c.set.HostNS {
			continue
		}
		if !c.hopTokens.Take() {
			return
		}
		p.hopRequested, p.space.hopRequested = c.now, c.now
		c.out.NextHop = append(c.out.NextHop, p.key)
	}
}

// nextHopKnown says whether the way out was looked at during the silence, or whether
// there has been no answer about it for long enough to go on without. A pod's own way out
// is this node, and the same for all its endpoints.
func (c *Core) nextHopKnown(p *path, since time.Duration) bool {
	fresh := func(at time.Duration) bool { return at >= since && c.now-at <= nextHopFresh+nextHopWait }
	own, host := p.hop.At, p.key.NS == c.set.HostNS
	if !host {
		own = max(own, p.space.looked)
		// A silent gateway takes longer to find out than one that answers.
		host = c.space(c.set.HostNS).looked >= since
	}
	if host && (fresh(own) || p.endpoint.silentPaths >= sharedFate && fresh(p.endpoint.hopSeen)) {
		return true
	}
	if host && c.now-since >= c.set.MinSilence+3*nextHopWait {
		return true // no answer, or no turn among too many
	}
	c.wake(c.now + 50*time.Millisecond)
	return false
}
