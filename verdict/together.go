package verdict

import (
	"fmt"
	"net/netip"
	"time"
)

// All servers of a deployment fall silent at once: then it is the network between us and them
// that fails, or all of them, and neither is mended by a reap, since there is nobody to connect to.
// When the network is back the connections are, too. The gateway may answer all the while, so no
// other doubt says this; and stalls and probes are no two kinds of evidence here, as both go the
// same way.

const (
	// togetherHosts is how many hosts are silent at least. Two of three primaries that die are
	// no partition: the third is heard. Servers that are all of them on fewer hosts, or of which
	// a namespace has connections to fewer, may well die at once.
	togetherHosts = 3
	// togetherSlack is after which time an answer was sent while the silence lasted. What was
	// heard before may have been on its way already.
	togetherSlack = 100 * time.Millisecond
	// togetherWait is how long a verdict waits for the others, which are idle, to be asked and to
	// answer: askGap, and a retransmission timeout at its least.
	togetherWait = askGap + 250*time.Millisecond
	// togetherAtMost is how long a verdict is held back for that. By then the kernel's own
	// limits, tuned or armed, have ended what waits: tcp_retries2 = 5 takes 13 s, armed keepalive
	// 25 s (docs/tuning.md).
	togetherAtMost = 30 * time.Second
	// togetherAgain is how long after its beginning there may be such a doubt once more. Who is
	// heard now and then, and cannot be asked, would end it and have it begin anew for ever.
	togetherAgain = 2 * time.Minute
)

// together says whether the servers of the deployment that p leads to are all silent in p's
// namespace, nothing at all having been heard there since the silence of p began. It then sets
// a doubt, which ends as soon as anything is.
func (c *Core) together(p *path, start time.Duration) bool {
	s := p.space
	n := c.nodes[p.endpoint.key.addr]
	if s.paths < togetherHosts || n == nil || !n.told || n.fact.Target == "" || p.key.Interface != 0 {
		return false
	}
	switch since := c.now - s.togetherSince; {
	case s.togetherSince == 0:
	case since >= togetherAgain:
		s.togetherSince = 0
	case since >= togetherAtMost:
		return false
	}
	hosts, open := map[netip.Addr]bool{p.endpoint.key.addr.Addr(): true}, map[netip.Addr]bool{}
	for _, e := range c.ranked {
		q := e.paths[p.key.NS]
		if q == nil || q == p || e.key.via.iface != 0 {
			continue
		}
		if q.heard > start+togetherSlack {
			return false // of another deployment, perhaps: our network works
		}
		o := c.nodes[e.key.addr]
		switch {
		case o == nil || !o.told || o.fact.Target != n.fact.Target:
		case q.silentNow(c.now):
			hosts[e.key.addr.Addr()] = true
		case q.mayAsk > 0 && q.heard > start-2*idleGap:
			open[e.key.addr.Addr()] = true
		}
	}
	if len(hosts) < togetherHosts {
		until := start + c.set.DownAfter + togetherWait
		c.wake(until)
		return len(hosts)+len(open) >= togetherHosts && c.now < until
	}
	if s.togetherSince == 0 {
		s.togetherSince = c.now
	}
	s.setDoubt(doubtTogether, true, c.now, s.togetherSince+togetherAtMost,
		fmt.Sprintf("%d servers of %s, of which none is heard: our own network, or all of them", len(hosts), n.fact.Target))
	return true
}

// silentNow says whether established connections of p wait for an answer for longer than usual.
func (p *path) silentNow(now time.Duration) bool {
	for _, k := range p.list {
		if p.waiting > 0 && k.waiting && k.testifies() && k.reap != reapOver && k.late(now) {
			return true
		}
	}
	return false
}

// notTogether ends that doubt: something was heard in s at a time since it began.
func (s *space) notTogether(at time.Duration) {
	if at > s.togetherSince {
		delete(s.doubts, doubtTogether)
	}
}

// unsure says whether there is a doubt about s or the host but this one, which says nothing of
// other namespaces, and ends when somebody who is asked answers.
func (c *Core) unsure(s *space) bool {
	host := c.spaces[c.set.HostNS]
	return s.otherDoubts() || host != nil && host != s && host.otherDoubts()
}

func (s *space) otherDoubts() bool {
	_, together := s.doubts[doubtTogether]
	return len(s.doubts) > 1 || len(s.doubts) == 1 && !together
}
