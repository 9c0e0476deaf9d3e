package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The reasons for doubt.
const (
	doubtLink      = "link down"
	doubtGateway   = "gateway silent"
	doubtUnrelated = "other connections stall too"
	doubtLate      = "own loop late"
	doubtTogether  = "all servers silent at once"
)

// doubtFor is how long a doubt lasts that is neither renewed nor contradicted.
const doubtFor = 3 * time.Second

func (s *space) setDoubt(reason string, holds bool, now, expires time.Duration, detail string) {
	d, had := s.doubts[reason]
	switch {
	case !holds:
		delete(s.doubts, reason)
		return
	case !had:
		d.since = now
	}
	d.expires, d.detail = expires, detail
	s.doubts[reason] = d
}

func (c *Core) observeLate(late time.Duration) {
	if late <= lateStep {
		return
	}
	for _, s := range c.spaces {
		s.setDoubt(doubtLate, true, c.now, c.now+lateGrace, fmt.Sprintf("a step came %v late", ms(late)))
	}
}

func (c *Core) observeNextHop(n *NextHop) {
	s := c.watchedSpace(n.Path.NS)
	if s == nil {
		return
	}
	// It is looked at again within that time, while there are suspects.
	const lasts = doubtFor
	s.setDoubt(doubtLink, n.LinkDown, c.now, c.now+lasts, n.Detail)
	if n.Gateway != NeighbourUnknown {
		s.setDoubt(doubtGateway, n.Gateway == Silent, c.now, c.now+lasts, n.Detail)
	}
	for _, reason := range []string{doubtLink, doubtGateway} {
		if d, ok := s.doubts[reason]; ok {
			d.about = n.Path
			s.doubts[reason] = d
		}
	}
	s.looked = max(s.looked, n.At)
	if e := c.endpoints[n.Path.endpoint()]; e != nil {
		if !n.LinkDown && n.Gateway != Silent {
			e.hopSeen = max(e.hopSeen, n.At)
		}
		if p := e.paths[n.Path.NS]; p != nil {
			p.hop = *n
		}
	}
}

func (c *Core) observeUnrelated(o *Unrelated) {
	s := c.watchedSpace(o.NS)
	if s == nil {
		return
	}
	stalls := o.Heard == 0 && o.Stalled > 0
	switch {
	case !stalls:
		s.unrelatedSince = 0
	case s.unrelatedSince == 0:
		s.unrelatedSince = c.now
	case c.now-s.unrelatedSince > unrelatedAtMost*c.set.DownAfter:
		// Far more time was given. What else this namespace talked to may have
		// died together with the endpoint.
		stalls = false
	}
	s.setDoubt(doubtUnrelated, stalls, c.now, c.now+unrelatedPause+doubtFor,
		fmt.Sprintf("%d connections elsewhere wait for an answer and none was heard for %v", o.Stalled, ms(o.Window)))
}

// wayHeard ends doubts about the way out toward the endpoint of p when something
// has come in over it at a time since they were last confirmed. Those about the
// host's are not about the way to some endpoint.
func (c *Core) wayHeard(p *path, at time.Duration) {
	if len(p.space.doubts) == 0 || at <= p.hop.At || p.key.NS == c.set.HostNS {
		return
	}
	for _, reason := range []string{doubtLink, doubtGateway} {
		if p.space.doubts[reason].about == p.key {
			delete(p.space.doubts, reason)
		}
	}
}

// watchedSpace is nil for a namespace whose last connection has gone while it was
// looked at. The host's is watched without any.
func (c *Core) watchedSpace(ns NS) *space {
	if ns == c.set.HostNS {
		return c.space(ns)
	}
	return c.spaces[ns]
}

// doubtful says whether reaping in s is held back now.
func (c *Core) doubtful(s *space) bool {
	return len(s.doubts) > 0 || c.unsure(s)
}

// clearSince is when the last doubt about s ended: what was silent before that
// proves nothing.
func (c *Core) clearSince(s *space) time.Duration {
	t := s.clear
	if host := c.spaces[c.set.HostNS]; host != nil {
		t = max(t, host.clear)
	}
	return t
}

// settleDoubts ends doubts that were not renewed, and reports beginnings and ends.
func (c *Core) settleDoubts() {
	for _, s := range c.spaces {
		for reason, d := range s.doubts {
			if c.now >= d.expires {
				delete(s.doubts, reason)
			} else {
				c.wake(d.expires)
			}
		}
		switch {
		case len(s.doubts) > 0 && !s.told:
			s.told = true
			c.event(Event{Type: GuardDoubt, Path: PathKey{NS: s.ns}, Text: "reaping is held back: " + s.doubtText()})
		case len(s.doubts) == 0 && s.told:
			s.told = false
			s.clear = c.now
			c.resetSilences(s)
			c.event(Event{Type: GuardDoubtOver, Path: PathKey{NS: s.ns}, Text: "reaping goes on, every silence is measured anew from now"})
		}
	}
}

// resetSilences forgets what was concluded from silences during a doubt about s.
func (c *Core) resetSilences(s *space) {
	for _, e := range c.ranked {
		for _, p := range e.ranked {
			if p.space != s && s.ns != c.set.HostNS {
				continue
			}
			for _, k := range p.conns {
				k.runs, k.aliveAfter = min(k.runs, 1), 0
			}
		}
	}
}

func (s *space) doubtText() string {
	var parts []string
	for reason, d := range s.doubts {
		if d.detail != "" {
			reason += " (" + d.detail + ")"
		}
		parts = append(parts, reason)
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}
