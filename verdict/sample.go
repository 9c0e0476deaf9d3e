package verdict

import "time"

func (k *conn) setWaiting(w bool) {
	if w == k.waiting {
		return
	}
	k.waiting = w
	if w {
		k.path.waiting++
		return
	}
	k.path.waiting--
	k.unanswered, k.runs, k.aliveAfter, k.told = 0, 0, 0, false
	k.asks, k.own, k.siblings, k.accepted, k.repeatTold = 0, 0, false, false, false
	clear(k.sent[:])
}

func (k *conn) setAwaitingReply(since time.Duration) {
	if was := k.awaitingReply != 0; was != (since != 0) {
		if was {
			k.path.awaitingReply--
		} else {
			k.path.awaitingReply++
		}
	}
	k.awaitingReply = since
}

// observeSample evaluates one look at a connection.
func (c *Core) observeSample(s *Sample) {
	k := c.conns[s.Key]
	if k == nil {
		return
	}
	now := max(1, c.now)
	at := now // of the look
	if s.At > 0 {
		at = min(now, max(s.At, k.sampled))
	}
	k.state, k.rtt, k.rto = s.State, s.RTT, s.RTO
	lastTx := at - s.LastDataSent
	if s.State == SynSent {
		k.notBefore = now
		// Nothing was ever heard; the SYN itself is what waits.
		if !k.waiting {
			// One that is found because it repeats its request began a timeout ago at least
			// (TCP_TIMEOUT_INIT, or what a BPF program sets in its place).
			k.waitFrom, k.base = max(1, k.first), 0
			if s.TotalRetrans > 0 {
				k.waitFrom = max(1, min(k.first, at-min(s.RTO, synTimeout)))
			}
			k.runs = 1
			k.lastTx = k.waitFrom
			k.setWaiting(true)
		}
		if n := 1 + int(s.TotalRetrans); n > k.unanswered {
			// The kernel does not tell when: after the last look, at the earliest.
			c.transmitted(k, n-k.unanswered, max(k.sampled, k.waitFrom))
		}
		k.sampled = now
		return
	}
	first := k.establishedBy == 0
	if first {
		k.establishedBy = now
	}
	ackAt := at - s.LastAckRecv
	moved := first || s.moved(&k.counters)
	answered := s.answered(&k.counters, k.ackAt, ackAt, k.askedAt) || k.answeredBefore(s, ackAt)
	if moved || answered {
		if answered {
			k.answeredAt = ackAt
		}
		c.heard(k, s, at, moved)
	} else {
		// Segments without data that prove nothing must not be counted once more.
		k.counters = s.Counters
	}
	k.ackAt = ackAt
	own, empty := 0, false // unanswered by what the kernel counts, empty segments or not
	switch {
	case s.State != Established:
	case s.Timer == ZeroWindowTimer || s.Timer == KeepaliveTimer && s.Unacked == 0:
		own, empty = int(s.Retrans), true
	case s.Unacked > 0:
		own = 1 + int(s.TotalRetrans-k.base)
	}
	k.probing = own > 0 && empty
	switch {
	case own == 0 && (k.asks == 0 || s.State != Established):
		if k.state == Closing {
			c.close(k, ConnectionGone, "it is being closed")
		}
		k.setWaiting(false)
	case own <= k.own:
	case empty:
		// They leave no time behind: the latest is assumed.
		if !k.waiting {
			c.waits(k, at)
			if s.Timer == KeepaliveTimer {
				k.note(own-1, at) // which are a second apart at least
			}
			k.note(1, at)
			k.lastEmpty = at
		} else if k.another(at) {
			c.transmitted(k, 1, at)
		}
	case !k.waiting:
		// The first of them went out before the repetitions did, which the
		// kernel keeps rtoMin apart (a loss probe may come sooner).
		c.waits(k, lastTx)
		k.waitFrom = max(1, k.heard, lastTx-time.Duration(max(0, own-2))*rtoMin)
		k.note(own-1, k.waitFrom)
		k.note(1, lastTx)
	default:
		c.transmitted(k, own-k.own, lastTx)
	}
	k.own = own
	// A reply that does not come, while TCP is fine.
	if s.Unacked == 0 && s.LastDataSent < s.LastDataRecv && s.State == Established {
		if k.awaitingReply == 0 {
			k.setAwaitingReply(max(1, lastTx))
		}
	} else {
		k.setAwaitingReply(0)
	}
	k.sampled = now
}

// answeredBefore says whether what k waits for is nothing but an ask, right before which
// something else was answered, at ackAt: a keepalive probe of its own kernel, of which nobody
// tells. The peer may well leave the ask unanswered (see another), so it proves nothing, and
// the answer that came does.
func (k *conn) answeredBefore(s *Sample, ackAt time.Duration) bool {
	return k.waiting && k.asks == 1 && k.unanswered == 1 && ackAt < k.waitFrom && k.waitFrom-ackAt < emptyGap &&
		s.answered(&k.counters, k.ackAt, ackAt, 0)
}

// waits has k wait for an answer to a transmission at t from now on.
func (c *Core) waits(k *conn, t time.Duration) {
	k.setWaiting(true)
	k.runs, k.waitFrom, k.lastTx = 1, max(1, t), t
	c.gotThrough(k, t)
}

// another says whether an empty segment that goes out at t is another question: a Linux
// peer answers one in emptyGap and socket.
func (k *conn) another(t time.Duration) bool {
	if t-max(k.lastEmpty, k.answeredAt) < emptyGap {
		return false
	}
	k.lastEmpty = t
	return true
}

// transmitted records n more unanswered transmissions, the last at lastTx.
func (c *Core) transmitted(k *conn, n int, lastTx time.Duration) {
	if k.aliveAfter != 0 && lastTx >= k.aliveAfter {
		// Something got through in between: a burst would have ended there.
		k.runs++
		k.aliveAfter = 0
	}
	k.note(n-1, k.lastTx) // at the earliest
	k.lastTx = max(k.lastTx, lastTx)
	k.note(1, k.lastTx)
	if k.aliveAfter == 0 {
		c.gotThrough(k, k.lastTx)
	}
}

// gotThrough notes the first probe to have ended that began at t or later and got through
// on k's path, if there is one. A transmission may be seen long after it was made, and
// after such a probe.
func (c *Core) gotThrough(k *conn, t time.Duration) {
	p := k.path
	t = max(t, c.clearSince(p.space))
	k.aliveAfter = 0
	accepted := false
	for i := range p.endpoint.probes {
		pr := &p.endpoint.probes[i]
		if pr.Started >= t && pr.gotThrough(p, t) && (k.aliveAfter == 0 || pr.Ended < k.aliveAfter) {
			k.aliveAfter, accepted = pr.Ended, pr.Outcome == Unresponsive
		}
	}
	k.accepted = k.accepted || accepted
}

// gotThrough says whether the probe shows that p works, after t. One from another namespace
// shows that the endpoint does; p may have a fault of its own, unless something was heard on
// it since. That a connection request is answered may be the work of something on the way,
// but of something on the way of p.
func (pr *Probe) gotThrough(p *path, t time.Duration) bool {
	switch {
	case pr.Path.NS != p.key.NS:
		return pr.Outcome == Alive && p.outcome != Dead && p.outcome != Refused && p.heard > t
	case pr.Outcome == Unresponsive:
		return pr.Connected != 0
	}
	return pr.Outcome == Alive
}

// note counts n transmissions made at t.
func (k *conn) note(n int, t time.Duration) {
	for i := range min(n, len(k.sent)) {
		k.sent[(k.unanswered+i)%len(k.sent)] = max(t, 1)
	}
	k.unanswered += max(n, 0)
}

// sentSince counts the unanswered transmissions since t, as far as remembered.
func (k *conn) sentSince(t time.Duration) (n int) {
	for _, at := range k.sent {
		if at != 0 && at >= t {
			n++
		}
	}
	return n
}

// heard records that k has made progress, by a look at at. moved says that bytes did;
// else an empty segment was answered.
func (c *Core) heard(k *conn, s *Sample, at time.Duration, moved bool) {
	since := min(c.now, max(k.heard, at-min(s.LastAckRecv, s.LastDataRecv)))
	// What is pushed to it (published, for instance) comes one way: it is no answer.
	acked := k.sampled != 0 && (!moved || s.BytesAcked != k.counters.BytesAcked || s.Delivered != k.counters.Delivered)
	l := &k.path.endpoint.loss
	// It may have been heard since the last look and be stalled again: of the
	// present timeouts those count that something was sent at and that fit into
	// the time since. A loss probe may have come before them.
	again, made := uint32(0), s.TotalRetrans // made good, as far as we know
	if s.Timer == RetransmitTimer && s.Unacked > 0 && c.now-since >= rtoMin {
		again = min(uint32(s.Retrans), s.TotalRetrans-k.counted, timeouts(c.now-since))
		made -= again
		made -= min(1, made-k.counted)
	}
	if k.sampled != 0 && moved {
		if k.waiting {
			l.stallEnded(k.unanswered - 1)
		}
		l.answered(float64(s.DataSegsOut-k.baseOut), float64(made-k.counted))
		k.flow.answered(float32(s.DataSegsOut-k.baseOut), float32(made-k.counted))
	}
	if k.asks > 0 {
		// Those before the one that was answered were lost, one way or the other.
		l.answered(float64(k.asks), float64(k.asks-1))
		k.flow.answered(float32(k.asks), float32(k.asks-1))
	}
	if s.BytesReceived > k.counters.BytesReceived {
		k.path.endpoint.received = max(k.path.endpoint.received, at-s.LastDataRecv)
	}
	k.hadReply = k.hadReply || s.BytesReceived > 0
	c.observeHole(k, s, moved)
	if !k.openBy.live() && !k.holeTold {
		c.close(k, ConnectionHeard, "its peer is heard again")
	}
	k.setWaiting(false)
	k.heard, k.base, k.counted, k.baseOut = since, s.TotalRetrans-again, made, s.DataSegsOut
	k.counters = s.Counters
	k.failures, k.again = 0, 0
	k.path.heard = max(k.path.heard, since)
	c.wayHeard(k.path, since)
	k.path.space.notTogether(since)
	if acked {
		c.siblingHeard(k, since)
	}
	if k.reap == reapOver || k.reap == reapQueued && !k.entry.evidence.Rule.live() && !k.entry.frozen(&s.Counters) {
		// Whatever was thought of it, it lives. A reap that was requested is
		// taken back by the last look.
		k.reap = notReaping
	}
}

// siblingHeard has what the others on k's path wait for count as lost while the path
// works: what k heard at at answers something that was sent after their transmissions.
// That is for idle ones, which send little, and where no probe can tell: a busy path tells
// so often that it works that each of a few losses in a row would count in full, before
// it is known how lossy it has become.
func (c *Core) siblingHeard(k *conn, at time.Duration) {
	if k.path.waiting == 0 {
		return
	}
	sent := at - max(4*k.rtt, 2*ackGrain)
	for _, o := range k.path.list {
		if o != k && o.waiting && o.aliveAfter == 0 && o.lastTx < sent && o.state == Established && (o.asks == o.unanswered || !o.path.baseline) {
			o.aliveAfter, o.siblings = at, true
		}
	}
}

// observeHole notes that empty segments of k are answered while what it has sent stays
// unacknowledged: large segments are lost on the way, or those with this content.
func (c *Core) observeHole(k *conn, s *Sample, moved bool) {
	switch {
	case moved || s.Unacked == 0:
		if k.holeTold {
			c.close(k, ConnectionHeard, "its data is acknowledged again")
		}
		k.holeSince, k.holeTold = 0, false
	case k.asks == 0:
	case k.holeSince == 0:
		k.holeSince = max(1, k.waitFrom)
	case !k.holeTold && c.now-k.holeSince >= holeAfter:
		k.holeTold, k.open, k.openBy = true, true, ""
		c.event(Event{Type: ConnectionStalled, Path: k.path.key, Key: k.key, Took: c.now - k.holeSince,
			Text: "empty segments are answered while what it has sent stays unacknowledged: full-sized segments are lost on the way (path MTU), or something on the way drops this content; ending the connection would not help"})
	}
}

// timeouts is how many retransmission timeouts fit into d, each twice as long as
// the one before.
func timeouts(d time.Duration) (n uint32) {
	for t := rtoMin; t <= d && n < 32; t += t + rtoMin {
		n++
	}
	return n
}
