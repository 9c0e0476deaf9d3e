package verdict

import (
	"cmp"
	"slices"
	"time"
)

// Asking: the kernel of an established connection sends one empty segment at once, which
// the peer's kernel answers and its process never notices (facts.md, "Asking a connection
// on demand"; package keepalive has the call). The answer proves that this flow works
// both ways; that there is none counts as a transmission that is unanswered. So a silence
// is never concluded from where nobody was asked.

const (
	// emptyGap is how often a Linux peer answers an empty segment on a socket at most
	// (net.ipv4.tcp_invalid_ratelimit), and askGap the least time between two asks.
	emptyGap = 500 * time.Millisecond
	askGap   = emptyGap + 20*time.Millisecond
	// idleGap is how often an idle path is asked about while all is well, and each idle
	// connection while something is not.
	idleGap = time.Second
	// idleRate bounds what is asked of a node a second while all is well, and idleBurst
	// at once. One is some 7 us (pidfd_getfd, setsockopt, and a look).
	idleRate, idleBurst = 100, 100
	// askRate bounds what is asked of a node a second on suspicion, and askBurst at once:
	// 250 namespaces with four connections each are asked within half a second.
	askRate, askBurst = 2000, 300
	// askOutstanding is how much is asked in a namespace within askWindow: what goes out
	// while the neighbour is unresolved waits in a queue of some 250 packets there, which
	// drops the rest without a word (facts.md: 1,244 of 1,500).
	askOutstanding = 100
	askWindow      = 200 * time.Millisecond
	// askTurn is how many of the connections that wait for an answer are asked in a
	// namespace before the turn of the others.
	askTurn = 8
	// maxInspected bounds the idle connections that are looked through in a step for those
	// to be asked while all is well, askTurnInspected those of one path: with 100,000 of
	// them, of which most are busy or may not be asked, that would be most of the work.
	maxInspected     = 2000
	askTurnInspected = 200
	// askPatience is how long what became of an ask is waited for, before it may be
	// asked for once more.
	askPatience = time.Second
	// unableFor is how long a connection is left alone that could not be asked.
	unableFor = 30 * time.Second
	// holeAfter is for how long data is unacknowledged while asks are answered, before
	// that is told: retransmissions of a passing loss get through before.
	holeAfter = 2 * time.Second
	// holeGap is how often it is asked after that.
	holeGap = 5 * time.Second
)

// proven says that the peer is known to have accepted the connection: it acknowledged
// more than the SYN, or sent something. A server with a full accept queue leaves its
// clients established while it is not, and answers nothing; and one that answers with SYN
// cookies would reset what is asked of it.
func (k *conn) proven() bool { return k.counters.BytesReceived > 0 || k.counters.BytesAcked > 1 }

// askable says whether k can testify by being asked.
func (k *conn) askable(now time.Duration) bool {
	return k.mayAsk && k.state == Established && k.proven() && !k.blocked && now >= k.askAgain
}

// whyNotAsked is why k cannot be asked, for people.
func (k *conn) whyNotAsked() string {
	switch {
	case k.unable != "":
		return k.unable
	case k.notAsked != "":
		return k.notAsked
	case !k.proven():
		return "its peer has not answered on it yet"
	}
	return "not yet"
}

// observeAsked evaluates what became of an ask.
func (c *Core) observeAsked(a *Asked) {
	k := c.conns[a.Key]
	if k == nil {
		return
	}
	k.askWanted = 0
	if a.Unable != "" {
		k.unable, k.askAgain = a.Unable, c.now+unableFor
		return
	}
	if a.At == 0 {
		return // not yet, for want of a turn
	}
	k.unable = ""
	at := min(c.now, max(1, a.At))
	if k.state != Established || k.blocked || at < k.askedAt {
		return
	}
	k.askedAt = at
	if k.sampled > at && k.ackAt+ackGrain >= at {
		return // a look that came in before this has shown the answer
	}
	if !k.another(at) {
		return // the peer may well leave it unanswered
	}
	k.asks++
	if k.waiting {
		c.transmitted(k, 1, at)
		return
	}
	c.waits(k, at)
	k.note(1, at)
}

// wantAsk has k asked, if that may be now.
func (c *Core) wantAsk(k *conn, tokens *Bucket) bool {
	if !k.askable(c.now) || k.askedAt != 0 && c.now-k.askedAt < askGap || k.askWanted != 0 && c.now-k.askWanted < askPatience {
		return false
	}
	if !k.path.space.mayAskNow(c.now) || !tokens.Take() {
		return false
	}
	s := k.path.space
	s.asked = append(s.asked, c.now)
	k.askWanted, k.path.asked = c.now, c.now
	c.out.Ask = append(c.out.Ask, k.key)
	return true
}

// mayAskNow says whether there is room for one more ask in the queue of a neighbour.
func (s *space) mayAskNow(now time.Duration) bool {
	i := 0
	for i < len(s.asked) && now-s.asked[i] >= askWindow {
		i++
	}
	s.asked = slices.Delete(s.asked, 0, i)
	return len(s.asked) < askOutstanding
}

// ask asks connections: those first that have something unanswered, then one of each path
// to an endpoint that is suspect, then the others of these paths, then idle paths, each
// once a second, and what else there is room for. Where there is not enough for all,
// namespaces take turns: one with thousands of dead connections, or of idle paths, must not
// keep the others from theirs.
func (c *Core) ask() {
	c.askTokens.Refill(c.now, askRate, askBurst)
	c.idleTokens.Refill(c.now, idleRate, idleBurst)
	all := c.asking[:0]
	for _, e := range c.ranked {
		for _, p := range e.ranked {
			if p.mayAsk > 0 && !c.unsure(p.space) {
				all = append(all, p)
			}
		}
	}
	c.asking = all
	if len(all) == 0 {
		return
	}
	// Each step begins with another path.
	begin := int(c.steps % uint64(len(all)))
	for _, some := range [2]int{askTurn, askBurst} {
		for i := range all {
			if p := all[(begin+i)%len(all)]; p.waiting > 0 {
				c.askWaiting(p, some)
			}
		}
	}
	for _, some := range [2]int{1, askBurst} {
		for i := range all {
			if p := all[(begin+i)%len(all)]; p.endpoint.hot(c) {
				c.askIdle(p, some, len(p.list), &c.askTokens)
			}
		}
	}
	for _, p := range c.dueIdle(all) {
		if !c.idleTokens.Has(1) {
			break
		}
		if _, asked := c.askIdle(p, 1, askTurnInspected, &c.idleTokens); asked > 0 {
			p.space.idleAt = c.now
		}
	}
	// What is left goes to the connections of idle paths in turn, so that a broken flow
	// among living ones is found as well.
	for left, n := maxInspected, len(all); left > 0 && n > 0 && c.idleTokens.Has(idleBurst/2); n-- {
		c.idleTurn = (c.idleTurn + 1) % len(all)
		inspected, _ := c.askIdle(all[c.idleTurn], 2, min(left, askTurnInspected), &c.idleTokens)
		left -= inspected
	}
}

// dueIdle are the paths of all on which nothing was heard and nobody asked for a second. If
// not all of them can be asked now, they come in the order of turns: of each namespace the
// one first that has waited longest, and the namespaces in the order in which one of their
// paths was last asked.
func (c *Core) dueIdle(all []*path) []*path {
	due := c.due[:0]
	for _, p := range all {
		if c.now-max(p.heard, p.asked) >= p.space.idleGap(c.now) {
			due = append(due, p)
		}
	}
	c.due = due
	if c.idleTokens.Has(float64(len(due))) {
		return due
	}
	slices.SortStableFunc(due, func(a, b *path) int { return cmp.Compare(a.asked, b.asked) })
	for _, p := range due {
		s := p.space
		if s.rankStep != c.steps {
			s.rankStep, s.rank = c.steps, 0
		}
		p.rank = s.rank
		s.rank++
	}
	slices.SortStableFunc(due, func(a, b *path) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.space.idleAt, b.space.idleAt))
	})
	return due
}

// askWaiting asks those of p that wait for an answer for longer than usual, until most were
// asked in its namespace in this step.
func (c *Core) askWaiting(p *path, most int) {
	s := p.space
	if s.askStep != c.steps {
		s.askStep, s.askedNow = c.steps, 0
	}
	for _, k := range p.list {
		if s.askedNow >= most {
			return
		}
		if !k.waiting || k.state != Established || k.reap == reapOver || k.reap == reapRequested || !k.late(c.now) {
			continue
		}
		if k.holeTold && k.asks == 0 && c.now-k.askedAt < holeGap {
			continue
		}
		if c.wantAsk(k, &c.askTokens) {
			s.askedNow++
		} else if k.askedAt != 0 {
			if at := k.askedAt + askGap; at > c.now {
				c.wake(at)
			}
		}
	}
}

// idleGap is how often an idle path of s is asked about. While one server there is silent, the
// others are asked as often as they answer: whether one of them is heard decides, see together.
func (s *space) idleGap(now time.Duration) time.Duration {
	if s.troubled != 0 && now-s.troubled < idleGap {
		return askGap
	}
	return idleGap
}

// askIdle asks at most n of p, in turn, that wait for nothing and were not heard for a
// while, and looks through at most so many for them. It returns how many it has looked at
// and asked.
func (c *Core) askIdle(p *path, n, most int, tokens *Bucket) (inspected, asked int) {
	for inspected < min(most, len(p.list)) && asked < n && tokens.Has(1) {
		inspected++
		p.turn = (p.turn + 1) % len(p.list)
		k := p.list[p.turn]
		if k.waiting || k.reap == reapOver || c.now-max(k.heard, k.askedAt) < p.space.idleGap(c.now) {
			continue
		}
		if c.wantAsk(k, tokens) {
			asked++
		}
	}
	return inspected, asked
}

// hot says whether there is reason to ask all idle connections to e: something is
// unanswered, and on a lossy path more than once; or a flow was found broken, which may
// have siblings.
func (e *endpoint) hot(c *Core) bool {
	if e.hotStep == c.steps {
		return e.isHot
	}
	e.hotStep, e.isHot = c.steps, e.broken != 0 && c.now-e.broken < brokenFor
	least := 1
	if e.loss.surely() != surelyClean {
		least = 2
	}
	for _, p := range e.ranked {
		if e.isHot {
			break
		}
		e.isHot = p.down || p.deadRow >= least && c.now-p.deadSince < 4*c.set.DownAfter
		if p.waiting > 0 && !e.isHot {
			for _, k := range p.list {
				if k.waiting && k.reap != reapOver && k.unanswered >= least && k.late(c.now) {
					e.isHot = true
					break
				}
			}
		}
	}
	return e.isHot
}

// brokenFor is for how long a flow that was found broken makes its siblings suspect.
const brokenFor = 30 * time.Second
