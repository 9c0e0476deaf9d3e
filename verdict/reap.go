package verdict

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// queued is a condemned connection whose turn comes at due.
type queued struct {
	conn     *conn
	due      time.Duration
	verdict  time.Duration
	heard    time.Duration
	received uint64 // bytes
	turn     int    // within its namespace, see release
	evidence Evidence
}

// frozen says whether the process of the peer is what does not answer, and has not by now:
// its kernel acknowledges all the time.
func (q *queued) frozen(now *Counters) bool {
	return q.evidence.Rule == RuleUnresponsive && now.BytesReceived == q.received
}

// condemn decides that k is half-dead. What follows depends on what we may do.
// of is how many connections share the fate, for the spread.
func (c *Core) condemn(k *conn, ev Evidence, policy Policy, of int) {
	if c.now < k.again {
		c.wake(k.again)
		return
	}
	why := ""
	switch {
	case policy == PolicyIgnore:
		return
	case policy == PolicySignal:
		why = "the policy is to signal only"
	case k.permit != MayReap:
		why = k.reason()
	}
	if why != "" && k.reap == reapQueued {
		return // for what the cluster view says, which goes on
	}
	if why != "" {
		c.spare(k, ev, why)
		return
	}
	window := c.spread(k, ev.Rule, of)
	delay := time.Duration(0)
	if window > 0 {
		delay = time.Duration(hash(uint64(k.key.NS), k.key.Cookie) % uint64(window))
	}
	k.reap = reapQueued
	k.entry = &queued{conn: k, due: c.now + delay, verdict: c.now, heard: k.heard, received: k.counters.BytesReceived, evidence: ev}
	c.queue = append(c.queue, k.entry)
}

// spread is the window over which the reaps of k and of those that share its fate are spread: by
// how many they are on this node, and by how many the server has on all.
func (c *Core) spread(k *conn, rule Rule, of int) time.Duration {
	window := time.Duration(float64(c.set.Spread) * min(1, float64(of-1)/SpreadFull))
	switch rule {
	case RuleFlow, RuleConnect, RuleSyn: // they are about single connections, or about none yet
		return window
	}
	if n := c.nodes[k.path.endpoint.key.addr]; n != nil && n.told && c.set.AcceptRate > 0 {
		all := time.Duration(float64(n.fact.Clients) / c.set.AcceptRate * float64(time.Second))
		window = max(window, min(all, acceptSpread))
	}
	return window
}

// condemnable says whether k may be condemned: nothing is under way about it but perhaps
// what the cluster view says, which other evidence may overtake.
func (k *conn) condemnable() bool {
	return k.reap == notReaping || k.reap == reapQueued && k.entry.evidence.Rule.byTopology()
}

// asking is when k was last asked, if it waits for an answer to that; 0 if not.
func (k *conn) asking() time.Duration {
	if k.asks == 0 {
		return 0
	}
	return k.askedAt
}

// reason is why k may not be reaped.
func (k *conn) reason() string {
	if k.why == "" {
		return "observed only"
	}
	return k.why
}

// spare tells that k was judged and is not reaped.
func (c *Core) spare(k *conn, ev Evidence, why string) {
	if ev.Rule.byTopology() {
		// Whether it makes progress is another question: the other rules go on.
		if k.reap == reapQueued {
			k.reap = notReaping
		}
		if k.peer.fact.said {
			return
		}
		k.setPeer().fact.said = true
	} else {
		k.reap = reapOver
	}
	k.open, k.openBy = true, ev.Rule
	c.event(Event{Type: ConnectionJudged, Path: k.path.key, Key: k.key, Text: "not reaped (" + why + "): " + ev.String(), Evidence: &ev, Took: ev.Silence})
}

// release requests the due reaps: as many as the rate
// allows and the breaker lets through.
func (c *Core) release() {
	c.reapTokens.Refill(c.now, c.set.Rate, float64(c.set.Burst))
	if len(c.queue) == 0 {
		return
	}
	// By time, but namespaces take turns, and what only connects comes last: no
	// workload may use up the rate of the others, nor those that connect that of
	// those that hang.
	slices.SortStableFunc(c.queue, func(a, b *queued) int {
		return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.conn.key.NS, b.conn.key.NS), cmp.Compare(a.conn.key.Cookie, b.conn.key.Cookie))
	})
	turns := map[NS]int{}
	for _, q := range c.queue {
		ns := q.conn.key.NS
		q.turn = turns[ns]
		turns[ns]++
		if q.evidence.Rule == RuleSyn {
			q.turn += len(c.queue)
		}
	}
	slices.SortStableFunc(c.queue, func(a, b *queued) int { return cmp.Compare(a.turn, b.turn) })
	c.oneKind = recent(c.oneKind, c.now)
	keep := c.queue[:0]
	for _, q := range c.queue {
		k := q.conn
		switch {
		case k.entry != q || k.reap != reapQueued || k.state == Closing || k.heard != q.heard && !q.evidence.Rule.live() && !q.frozen(&k.counters):
			// Gone, or closed or heard since the verdict, or condemned once more.
			if k.entry == q && k.reap == reapQueued {
				k.reap = notReaping
			}
			continue
		case k.permit != MayReap:
			// Taken back while it waited for its turn.
			c.spare(k, q.evidence, k.reason())
			continue
		case c.withdrawn(q):
			// Another policy since: it is judged anew under that.
			k.reap = notReaping
			continue
		case q.due > c.now:
			c.wake(q.due)
		case c.doubtful(k.path.space):
			// The silence will be measured anew when the doubt is over.
			k.reap = notReaping
			continue
		case c.fencePending(k.path):
			c.wake(k.path.fenceAt + fenceWait)
		case !c.reapTokens.Has(1):
			c.wake(c.now + c.reapTokens.Wait(1, c.set.Rate))
		case !c.breakerAllows(q.evidence.Kinds):
			q.due = c.now + time.Second
			c.wake(q.due)
		default:
			c.reapTokens.Take()
			if q.evidence.Kinds.Count() < 2 {
				c.oneKind = append(c.oneKind, oneKindReap{c.now, len(c.conns)})
			}
			k.reap = reapRequested
			c.out.Reap = append(c.out.Reap, Reap{Key: k.key, Local: k.local, Remote: k.remote, Counters: k.counters, AckAt: k.ackAt, Asked: k.asking(), Live: q.evidence.Rule.live(), Verdict: q.verdict, Evidence: q.evidence})
			continue
		}
		keep = append(keep, q)
	}
	clear(c.queue[len(keep):])
	c.queue = keep
}

// withdrawn says whether the policy that q was condemned by does not hold any more. What
// follows from the cluster view is judged in every step, see judgeStale.
func (c *Core) withdrawn(q *queued) bool {
	switch rule := q.evidence.Rule; rule {
	case RuleUnresponsive:
		return c.policy(rule, q.conn.remote) != PolicyReap
	case RuleDown, RuleSyn: // RuleFlow and RuleConnect have none
		return c.policy(RuleDown, q.conn.remote) != PolicyReap
	}
	return false
}

// oneKindReap is a reap on one kind of evidence, and how many connections were
// tracked then.
type oneKindReap struct {
	at      time.Duration
	tracked int
}

// recent drops the reaps before the breaker's window.
func recent(reaps []oneKindReap, now time.Duration) []oneKindReap {
	i := 0
	for i < len(reaps) && now-reaps[i].at >= breakerWindow {
		i++
	}
	return slices.Delete(reaps, 0, i)
}

// breakerAllows says whether one more connection may be reaped on evidence of
// these kinds (safety promise 4).
func (c *Core) breakerAllows(k Kinds) bool {
	if k.Count() >= 2 {
		return true
	}
	// The share is of the most that were tracked at once in that minute. What was
	// reaped must not be added to what is tracked: a connection that was asked
	// for is still among those, and one that came back is the same client's.
	tracked := len(c.conns)
	for _, r := range c.oneKind {
		tracked = max(tracked, r.tracked)
	}
	if tracked <= BreakerFloor || float64(len(c.oneKind)+1) <= c.set.MaxShare*float64(tracked) {
		return true
	}
	if c.now-c.breakerTold >= breakerWindow {
		c.breakerTold = c.now
		c.event(Event{Type: GuardBreaker, Text: fmt.Sprintf(
			"held back: %s alone has reaped %d of %d tracked connections within a minute, and may reap no more than %.0f %%",
			k, len(c.oneKind), tracked, 100*c.set.MaxShare)})
	}
	return false
}

func (c *Core) observeReaped(r *ReapResult) {
	k := c.conns[r.Key]
	if k == nil {
		return
	}
	if r.Postponed {
		if k.reap == reapRequested {
			k.reap, k.again = notReaping, c.now+postponed
		}
		return
	}
	if k.reap == reapRequested && k.entry.evidence.Rule.byTopology() && r.Outcome != ReapDone && r.Outcome != ReapGone {
		c.observeLeft(k, r.Outcome)
		return
	}
	switch r.Outcome {
	case ReapDone:
		k.open = false // the reap has ended it
		if k.entry != nil {
			c.noteRepeat(k, max(0, min(r.At, c.now)))
		}
		c.watchFor(k, max(0, min(r.At, c.now)))
		c.forget(r.Key)
	case ReapGone:
		c.forget(r.Key)
	case ReapSpared:
		k.reap, k.again = notReaping, c.now+reapRetry
		if r.Heard && k.path.down && k.path.evidence.Rule == RuleDown {
			// It is a witness against the verdict about all of them.
			k.path.heard = max(k.path.heard, c.now)
			c.up(k.path, "one of its connections was found to make progress at the last look: the others are spared as well")
		}
	case ReapDryRun:
		k.reap = reapOver
	default:
		k.open = true // as one whose reap has failed
		k.reap, k.again = notReaping, c.now+reapRetry
		if k.failures++; k.failures >= maxFailures {
			k.reap = reapOver
		}
	}
}

// observeLeft evaluates that a reap by what the cluster view says has left k alive. One
// is enough for a fact, unless it failed.
func (c *Core) observeLeft(k *conn, o ReapOutcome) {
	k.reap = notReaping
	f := &k.setPeer().fact
	f.over = true
	if o == ReapSpared || o == ReapDryRun {
		return
	}
	k.open, k.openBy = true, k.entry.evidence.Rule // as one whose reap has failed
	f.failures++
	f.over, f.again = f.failures >= maxFailures, c.now+reapRetry
}

// clientKey names a client: a workload in a namespace (the same whatever process it
// runs), a process where that is not known, or all of the namespace.
type clientKey struct {
	ns  NS
	who string
}

// missingClient is a client that was reaped and has not been seen with a working
// connection since.
type missingClient struct {
	path  PathKey
	since time.Duration
	conns int
	back  *conn // its new connection
}

// watchFor waits for the client of k to come back.
func (c *Core) watchFor(k *conn, at time.Duration) {
	key := clientKey{k.key.NS, k.who()}
	a := c.clients[key]
	if a == nil {
		a = &missingClient{path: k.path.key, since: at}
		c.clients[key] = a
	}
	a.conns++
	c.wake(a.since + backWithin)
}

// missingClients looks for clients that are back, and reports those that stay away.
func (c *Core) missingClients() {
	if len(c.clients) == 0 {
		return
	}
	for _, k := range c.conns {
		if k.state != Established || k.counters.BytesReceived == 0 {
			continue
		}
		for _, key := range [2]clientKey{{k.key.NS, k.who()}, {k.key.NS, ""}} {
			// Of several new connections the first is told of.
			if a := c.clients[key]; a != nil && k.first > a.since && (a.back == nil || k.key.Cookie < a.back.key.Cookie) {
				a.back = k
			}
		}
	}
	for key, a := range c.clients {
		if k := a.back; k != nil {
			delete(c.clients, key)
			took := max(0, k.heard-a.since)
			c.event(Event{Type: ConnectionRecovered, Path: k.path.key, Key: k.key, Took: took,
				Text: fmt.Sprintf("the client %sis back %v after %d of its connections to %v were reaped", named(key.who), ms(took), a.conns, a.path.Endpoint)})
			continue
		}
		if c.now-a.since < backWithin {
			c.wake(a.since + backWithin)
			continue
		}
		delete(c.clients, key)
		c.event(Event{Type: ClientNotBack, Path: a.path, Took: c.now - a.since,
			Text: fmt.Sprintf("the client %shas no working connection to any watched endpoint %v after %d of its connections were reaped (it may have ended)", named(key.who), ms(c.now-a.since), a.conns)})
	}
}

func named(who string) string {
	if who == "" {
		return ""
	}
	return who + " "
}
