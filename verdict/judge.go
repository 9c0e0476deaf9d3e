package verdict

import (
	"slices"
	"time"
)

// judge applies the rules to one endpoint.
func (c *Core) judge(e *endpoint) {
	e.loss.decay(c.now)
	e.tokens.Refill(c.now, c.set.ProbesPerSecond, probeBurst)
	e.forgetProbes(c.now, c.set.DownAfter)
	e.sum(c.now, c.window(e))
	for i := len(e.ranked) - 1; i >= 0; i-- { // backwards, since paths are dropped
		p := e.ranked[i]
		c.judgePath(p)
		if len(p.conns) == 0 && (!p.down && p.fenceAt == 0 || c.now-p.empty >= rememberDown) {
			if p.down {
				c.event(Event{Type: EndpointUp, Path: p.key, Text: "nobody connects to it any more: forgotten", Took: c.now - p.evidence.Since})
			}
			c.dropPath(p)
		}
	}
	if len(e.paths) == 0 {
		return
	}
	c.judgeFrozen(e)
	c.requestProbe(e)
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
	e.silentPaths = 0
	for _, p := range e.ranked {
		if p.waiting > 0 && slices.ContainsFunc(p.list, func(k *conn) bool { return k.testifies() && k.reap != reapOver && k.unheard(now) }) {
			e.silentPaths++
		}
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
	waiting      int           // established connections with something unanswered for longer than is usual
	unanswered   int           // their transmissions
	asks         int           // those of them that we have asked for
	connecting   int           // connects in the same state
	connectStart time.Duration // first of their requests
	start        time.Duration // first of the transmissions, or of the requests if there are none
	lastTx       time.Duration // last transmission that has had time to be answered
	newestTx     time.Duration // last of all
	probes       int           // unanswered probes
	own          int           // those of them from this namespace
	probeStart   time.Duration // first of them
	probeLast    time.Duration // last of them
	detail       string
}

// survey collects what the connections of p wait for.
func (c *Core) survey(p *path, s *silence) {
	if p.waiting == 0 {
		return
	}
	window := c.window(p.endpoint)
	for _, k := range p.list {
		// One that was judged and may not be reaped tells nothing new, and is
		// no reason to go on probing until the kernel gives up on it.
		if !k.waiting || k.reap == reapOver || !k.late(c.now) {
			continue
		}
		if !k.testifies() {
			s.connecting++
			if s.connectStart == 0 || k.waitFrom < s.connectStart {
				s.connectStart = k.waitFrom
			}
			s.newestTx = max(s.newestTx, k.lastTx)
			continue
		}
		s.waiting++
		s.unanswered += k.unanswered
		s.asks += k.asks
		if s.start == 0 || k.waitFrom < s.start {
			s.start = k.waitFrom
		}
		s.newestTx = max(s.newestTx, k.lastTx)
		if c.now-k.lastTx >= max(window, 2*k.rtt) {
			s.lastTx = max(s.lastTx, k.lastTx)
		}
	}
	if s.waiting == 0 {
		s.start = s.connectStart
	}
}

// testifies says whether what k waits for says something about established connections:
// one that its peer has not accepted yet says as much as a connect.
func (k *conn) testifies() bool { return k.state == Established && k.proven() }

// late says whether k has waited longer than an answer usually takes.
// Its own kernel repeats nothing before that; a question and data that went out right after
// it are no repetition.
func (k *conn) late(now time.Duration) bool {
	return k.unanswered-k.asks >= 2 || now-k.waitFrom >= k.patience()
}

// patience is how long an answer usually takes at most: to what was asked, and has not
// been acknowledged before, a retransmission timeout.
func (k *conn) patience() time.Duration {
	usual := max(lateAnswer, 4*k.rtt)
	if k.asks > 0 && k.asks == k.unanswered {
		usual = max(usual, min(k.rto, answerMax))
	}
	return usual
}

// unheard says whether something that k sent or was asked is unanswered for longer than
// an answer takes: its own evidence, without which it is never taken along.
func (k *conn) unheard(now time.Duration) bool {
	return k.waiting && now-k.waitFrom >= max(k.patience(), min(k.rto, answerMax))
}

// addProbes adds the probes since the silence began. Where none was made from here, those
// of other namespaces count, if they are of two at least and nothing that was heard
// elsewhere contradicts them: there are too many namespaces on a node to probe from each,
// and one of them may have a fault, or a policy, of its own.
func (c *Core) addProbes(p *path, s *silence) {
	e := p.endpoint
	floor := max(p.heard, c.clearSince(p.space))
	own := false
	for i := range e.probes {
		pr := &e.probes[i]
		if p.baseline && pr.Path.NS == p.key.NS && pr.Started >= max(floor, s.start) && pr.Outcome != CouldNotTell {
			own = true
		}
	}
	contradicts := e.heardElsewhere(p) > max(floor, s.start)
	// The last probe that got through, if any, is where the silence begins.
	for i := range e.probes {
		pr := &e.probes[i]
		mine := pr.Path.NS == p.key.NS
		if pr.Outcome != Alive && pr.Outcome != Unresponsive {
			continue
		}
		if !mine && pr.Started > max(floor, s.start) {
			contradicts = true
		}
		if mine || !own {
			floor = max(floor, pr.Started)
		}
	}
	window := c.window(e)
	others := NS(0) // one of the other namespaces
	several := false
	for i := range e.probes {
		pr := &e.probes[i]
		q := e.paths[pr.Path.NS]
		mine := q == p
		if !pr.unanswered(c.now, window) || pr.Started < floor || q == nil || !q.baseline || !mine && (contradicts || own) {
			continue
		}
		if mine {
			s.own++
		} else {
			several = several || others != 0 && others != q.key.NS
			others = q.key.NS
		}
		s.probes++
		if s.probeStart == 0 {
			s.probeStart = pr.Started
		}
		s.probeLast = max(s.probeLast, pr.Started)
		s.detail = pr.words(c.now)
	}
	if s.own == 0 && !several {
		s.probes, s.probeStart, s.probeLast, s.detail = 0, 0, 0, ""
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

// judgePath applies the rules about one path.
func (c *Core) judgePath(p *path) {
	if p.down {
		if p.heard > p.downAt || p.rise >= riseProbes {
			c.up(p, "answers again")
		} else {
			c.out.Suspects = append(c.out.Suspects, p.key)
			c.reapPath(p)
			return
		}
	}
	s := c.silenceOf(p)
	c.judgeAccepting(p)
	if s.waiting == 0 && s.connecting == 0 && s.probes == 0 {
		if p.suspect != 0 && (p.heard > p.suspect || p.outcome == Alive && p.probed > p.suspect || c.now-p.suspect > suspectFor) {
			c.event(Event{Type: EndpointUp, Path: p.key, Text: "answers again, was only suspect", Took: c.now - p.suspect})
			p.suspect = 0
		}
		return
	}
	c.out.Suspects = append(c.out.Suspects, p.key)
	if s.waiting > 0 {
		p.space.troubled = c.now
	}
	c.requestNextHop(p)
	c.reportStalled(p)
	if s.own > 0 && p.suspect == 0 && (s.waiting > 0 || c.now-s.probeStart >= c.set.DownAfter/2) && p.heard < s.probeStart {
		p.suspect = c.now
		c.event(Event{Type: EndpointSuspect, Path: p.key, Text: "a probe is unanswered: " + s.detail})
	}
	if c.doubtful(p.space) {
		return
	}
	c.flowRule(p)
	c.connectRule(p)
	c.downRule(p, s)
}

// reportStalled reports connections that wait for an answer.
func (c *Core) reportStalled(p *path) {
	for _, k := range p.list {
		if !k.waiting || k.told || k.state != Established || k.unanswered < 2 || k.holeTold {
			continue
		}
		text := "data is unacknowledged and retransmitting"
		switch {
		case k.asks == k.unanswered:
			text = "its peer does not answer when asked"
		case k.probing:
			text = "its peer does not answer its probes"
		}
		k.told, k.open, k.openBy = true, true, ""
		c.event(Event{Type: ConnectionStalled, Path: p.key, Key: k.key, Text: text, Took: c.now - k.waitFrom})
	}
}

// flowRule finds connections whose own flow is broken while the endpoint is fine.
func (c *Core) flowRule(p *path) {
	e := p.endpoint
	if p.waiting == 0 || p.lastFailed(c.now, c.window(e)) {
		return // what is silent may be the path
	}
	for _, k := range p.list {
		if !k.waiting || !k.testifies() || !k.condemnable() {
			continue
		}
		quiet := c.now - max(k.waitFrom, k.heard, c.clearSince(p.space))
		if k.runs < 2 || k.aliveAfter == 0 || quiet < c.set.MinSilence {
			continue
		}
		if k.asks < k.unanswered && k.askable(c.now) && (k.asks == 0 || c.now-k.askedAt < k.answerTime()) {
			// What it has sent may be lost for its size or content: an empty segment tells.
			c.wake(max(k.askedAt+k.answerTime(), c.now+20*time.Millisecond))
			continue
		}
		asked := k.asks > 0 && k.askable(c.now)
		if k.accepted && (quiet < c.set.DownAfter || asked && k.asks < 2) {
			// Something answers connection requests; that may be on this side of what
			// is but pausing.
			c.wake(max(k.waitFrom+c.set.DownAfter, c.now+20*time.Millisecond))
			continue
		}
		n, runs := k.sentSince(c.clearSince(p.space)), k.runs
		if k.holeSince != 0 {
			// What it sends is known to be lost for its size or content: that its asks
			// are unanswered now is all that counts.
			n = min(n, k.asks)
			runs = min(runs, n)
		}
		loss := max(e.loss.p(), k.flow.p())
		burst := max(e.loss.b(), minFlowBurst, loss)
		l := likelihood(loss, burst, n, runs)
		bar := e.loss.surely()
		if loss >= lossyFrom {
			bar = surelyLossy
		}
		if asked && !c.set.Blind && k.sampled < k.askedAt+k.answerTime() {
			// Its answer may be there, and not have been seen.
			if at := k.askedAt + k.answerTime(); c.now < at {
				c.wake(at)
			} else {
				c.out.Look = append(c.out.Look, p.key)
			}
			continue
		}
		if p.broken != 0 && c.now-p.broken < brokenFor && bar == surelyClean {
			bar = surelySibling
		}
		if l > bar || !c.nextHopKnown(p, k.waitFrom) || !c.seen(p, k) {
			continue
		}
		ev := Evidence{
			Rule: RuleFlow, Kinds: Stall, Since: k.waitFrom, Silence: quiet, Waiting: 1, Asks: k.asks, Siblings: k.siblings,
			Unanswered: n, ProbesAlive: e.aliveSince(k.waitFrom), Loss: loss, Burst: burst, Likelihood: l, NextHop: p.hop.Detail,
		}
		if ev.ProbesAlive > 0 {
			ev.Kinds |= ProbeSay
		}
		if c.condemnOnce(k, ev) {
			p.broken, e.broken = c.now, c.now
		}
	}
}

// lastFailed says whether the last probe from p that tells anything was unanswered.
func (p *path) lastFailed(now, window time.Duration) (failed bool) {
	at := time.Duration(0)
	for i := range p.endpoint.probes {
		pr := &p.endpoint.probes[i]
		if pr.Path != p.key || pr.Started < at {
			continue
		}
		if bad := pr.unanswered(now, window); bad || pr.Outcome == Alive || pr.Connected != 0 {
			at, failed = pr.Started, bad
		}
	}
	return failed
}

// answerTime is how long the answer to an ask may take.
func (k *conn) answerTime() time.Duration { return max(2*ackGrain, 2*k.rtt) }

// aliveSince counts the probes that were started since t and alive.
func (e *endpoint) aliveSince(t time.Duration) (n int) {
	for i := range e.probes {
		if e.probes[i].Outcome == Alive && e.probes[i].Started >= t {
			n++
		}
	}
	return n
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
		if !k.blocked && !c.seen(p, k) {
			return false
		}
	}
	return true
}

func (c *Core) up(p *path, why string) {
	p.down = false
	p.suspect = 0
	c.event(Event{Type: EndpointUp, Path: p.key, Text: why, Took: c.now - p.evidence.Since})
	for _, k := range p.list {
		if k.reap == reapQueued && !k.entry.evidence.Rule.live() {
			k.reap = notReaping
		}
	}
}

// reapPath condemns the connections of a path that is down: each on something of its own
// that is unanswered, and never for what others have shown alone.
func (c *Core) reapPath(p *path) {
	policy := c.policy(RuleDown, p.key.Endpoint)
	for _, k := range p.list {
		if !k.condemnable() || k.blocked {
			continue
		}
		ev := p.evidence
		switch {
		case k.testifies():
			if k.heard > ev.Since || k.first > p.downAt {
				// Heard since, or made since: then it is not part of the
				// silence. What is heard brings the endpoint up soon.
				continue
			}
			if !k.unheard(c.now) {
				if k.waiting || k.askable(c.now) || c.now-p.downAt < askPatience {
					continue
				}
				if k.reap == reapQueued {
					continue // for what the cluster view says, which goes on
				}
				if policy == PolicyReap && k.permit == MayReap {
					c.spare(k, ev, "it is idle, and could not be asked: "+k.whyNotAsked())
					continue
				} // else there is another reason to leave it
			}
		case ev.Kinds == ProbeSay && c.peopled(p.endpoint):
			// The server may just not accept new connections, for which none is ended.
			continue
		case k.state == SynSent || k.state == Established && k.waiting:
			// One that was made since is given the time of one more SYN.
			age := c.now - k.first
			if k.first > p.downAt && (age < rtoMin*5 || p.endpoint.lastUnanswered(c.now, c.window(p.endpoint)) < k.first) {
				c.wake(k.first + rtoMin*5)
				continue
			}
			if k.first > p.downAt {
				// What it rests on is what the endpoint was found down by, if that was of both kinds:
				// its own request is of the kind of probes, and makes no second one.
				kinds := ProbeSay
				if ev.Kinds.Count() > 1 {
					kinds = ev.Kinds
				}
				ev = Evidence{Rule: RuleSyn, Kinds: kinds, Since: k.first, Silence: age, Waiting: 1, Unanswered: k.unanswered, ProbesUnanswered: 1, ProbeDetail: ev.ProbeDetail}
			}
		default:
			continue
		}
		c.condemn(k, ev, policy, len(p.conns))
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
		if c.policy(RuleUnresponsive, e.key.addr) != PolicyReap || c.doubtful(p.space) {
			continue
		}
		for _, k := range p.conns {
			if k.state == Established && k.hadReply && k.condemnable() && k.first < e.frozenSince {
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
