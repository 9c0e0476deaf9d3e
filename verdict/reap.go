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
	segsIn   uint32
	turn     int // within its namespace, see release
	evidence Evidence
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
	if why != "" {
		c.spare(k, ev, why)
		return
	}
	window := time.Duration(float64(c.set.Spread) * min(1, float64(of-1)/SpreadFull))
	delay := time.Duration(0)
	if window > 0 {
		delay = time.Duration(hash(uint64(k.key.NS), k.key.Cookie) % uint64(window))
	}
	k.reap = reapQueued
	c.queue = append(c.queue, &queued{conn: k, due: c.now + delay, verdict: c.now, segsIn: k.segsIn, evidence: ev})
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
	k.reap, k.open = reapOver, true
	c.event(Event{Type: ConnectionJudged, Path: k.path.key, Key: k.key, Text: "not reaped (" + why + "): " + ev.String(), Evidence: &ev, Took: ev.Silence})
}

// release lets go of the condemned whose time has come: as many as the rate
// allows and the breaker lets through.
func (c *Core) release() {
	c.tokens = min(float64(c.set.Burst), c.tokens+(c.now-c.tokensAt).Seconds()*c.set.Rate)
	c.tokensAt = c.now
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
		case k.reap != reapQueued || k.segsIn != q.segsIn:
			// Gone, or heard since the verdict.
			if k.reap == reapQueued {
				k.reap = notReaping
			}
			continue
		case k.permit != MayReap:
			// Taken back while it waited for its turn.
			c.spare(k, q.evidence, k.reason())
			continue
		case q.due > c.now:
			c.wake(q.due)
		case c.doubtful(k.path.space):
			// The silence will be measured anew when the doubt is over.
			k.reap = notReaping
			continue
		case c.tokens < 1:
			c.wake(c.now + time.Duration(float64(time.Second)*(1-c.tokens)/c.set.Rate))
		case !c.breakerAllows(q.evidence.Kinds):
			q.due = c.now + time.Second
			c.wake(q.due)
		default:
			c.tokens--
			if q.evidence.Kinds.Count() < 2 {
				c.oneKind = append(c.oneKind, lonely{c.now, len(c.conns)})
			}
			k.reap = reapAsked
			c.out.Reap = append(c.out.Reap, Reap{Key: k.key, Local: k.local, Remote: k.remote, SegsIn: q.segsIn, Verdict: q.verdict, Evidence: q.evidence})
			continue
		}
		keep = append(keep, q)
	}
	clear(c.queue[len(keep):])
	c.queue = keep
}

// lonely is a reap on one kind of evidence, and how many connections were
// tracked then.
type lonely struct {
	at      time.Duration
	tracked int
}

// recent drops the reaps before the breaker's window.
func recent(reaps []lonely, now time.Duration) []lonely {
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

func (c *Core) takeReaped(r *ReapResult) {
	k := c.conns[r.Key]
	if k == nil {
		return
	}
	switch r.Outcome {
	case ReapDone:
		k.open = false // the reap has ended it
		c.watchFor(k, max(0, min(r.At, c.now)))
		c.forget(r.Key)
	case ReapGone:
		c.forget(r.Key)
	case ReapSpared:
		k.reap = notReaping
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

// clientKey names a client: a process in a namespace, or all of the namespace
// where the process is not known.
type clientKey struct {
	ns    NS
	owner string
}

// absence is a client that was reaped and has not been seen with a working
// connection since.
type absence struct {
	path  PathKey
	since time.Duration
	conns int
	back  *conn // its new connection
}

// watchFor waits for the client of k to come back.
func (c *Core) watchFor(k *conn, at time.Duration) {
	key := clientKey{k.key.NS, k.owner}
	a := c.clients[key]
	if a == nil {
		a = &absence{path: k.path.key, since: at}
		c.clients[key] = a
	}
	a.conns++
	c.wake(a.since + backWithin)
}

// absences looks for clients that are back, and reports those that stay away.
func (c *Core) absences() {
	if len(c.clients) == 0 {
		return
	}
	for _, k := range c.conns {
		if k.state != Established || k.bytesIn == 0 {
			continue
		}
		for _, key := range [2]clientKey{{k.key.NS, k.owner}, {k.key.NS, ""}} {
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
				Text: fmt.Sprintf("the client %sis back %v after %d of its connections to %v were reaped", named(key.owner), ms(took), a.conns, a.path.Endpoint)})
			continue
		}
		if c.now-a.since < backWithin {
			c.wake(a.since + backWithin)
			continue
		}
		delete(c.clients, key)
		c.event(Event{Type: ClientNotBack, Path: a.path, Took: c.now - a.since,
			Text: fmt.Sprintf("the client %shas no working connection to any watched endpoint %v after %d of its connections were reaped (it may have ended)", named(key.owner), ms(c.now-a.since), a.conns)})
	}
}

func named(owner string) string {
	if owner == "" {
		return ""
	}
	return owner + " "
}
