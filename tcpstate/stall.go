package tcpstate

import "time"

// minRTO is TCP_RTO_MIN, the kernel's own floor of the retransmission timeout.
const minRTO = 200 * time.Millisecond

// Stalled reports whether the kernel speaks to the peer in vain: it retransmits
// data or a SYN, or its window or keepalive probes stay without answer. A closed
// window whose probes are answered is not stalled, however long it lasts, and
// nor is data that has been on its way for less than one retransmission timeout.
//
// unanswered counts the timeouts, or the probes, since the peer last confirmed
// something. since is for how long, at least: it is worked out from the timeouts
// that have passed, as the kernel keeps no such date; for probes it is all the
// time since the peer was last heard, and for a connection without TCP_INFO 0.
//
// This is one look at one connection, good for a display. What it means is judged
// by package verdict, which compares looks and connections.
func (c *Connection) Stalled() (since time.Duration, unanswered int, ok bool) {
	heard, known := c.Heard()
	switch {
	case c.Retrans == 0:
		return 0, 0, false
	case c.State == SynSent:
		return c.retransmitting(), int(c.Retrans), true
	case c.Timer == TimerRetransmit:
		if c.HasInfo && c.Info.Unacked == 0 {
			return 0, 0, false
		}
		since = c.retransmitting()
		if known {
			since = min(since, heard)
		}
		return since, int(c.Retrans), true
	case c.Timer == TimerZeroWindow && c.Retrans < 2:
		// The one probe may be on its way: they go out several times a second.
		return 0, 0, false
	case c.Timer == TimerZeroWindow, c.Timer == TimerKeepalive:
		return heard, int(c.Retrans), true
	}
	return 0, 0, false
}

// Heard is the time since anything came from the peer: an acknowledgement or
// data. ok is false without TCP_INFO and before the peer's first answer, when
// the kernel's fields mean nothing.
func (c *Connection) Heard() (ago time.Duration, ok bool) {
	if !c.HasInfo || c.State == SynSent {
		return 0, false
	}
	return min(c.Info.LastAckRecv, c.Info.LastDataRecv), true
}

// retransmitting is how long the kernel has been retransmitting: the timeouts
// that have passed, of which Backoff were each twice as long as the one before
// and the others (a SYN's first ones, since Linux 6.5) as long as the first, and
// what has passed of the one that is running. Tail loss probes come on top.
func (c *Connection) retransmitting() time.Duration {
	if !c.HasInfo {
		return 0
	}
	rto, doubled := c.Info.RTO, int(c.Info.Backoff)
	// At the top of the backoff the shift gives less than any first timeout was.
	first := min(max(rto>>min(doubled, 62), minRTO), rto)
	total := time.Duration(max(int(c.Retrans)-doubled, 0)) * first
	timeout := first
	for range doubled {
		total += timeout
		timeout = min(2*timeout, rto)
	}
	return total + max(rto-c.Expires, 0)
}
