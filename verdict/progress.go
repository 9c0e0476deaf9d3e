package verdict

import "time"

// Counters are those of a socket's life by which progress is told from mere hearing.
type Counters struct {
	SegsIn        uint32 `json:"segs_in"`
	DataSegsIn    uint32 `json:"data_segs_in,omitempty"`
	Delivered     uint32 `json:"delivered,omitempty"`
	BytesReceived uint64 `json:"bytes_received"`
	BytesAcked    uint64 `json:"bytes_acked,omitempty"`
}

// ackGrain is the grain of last_ack_recv: the kernel counts it in jiffies, of 10 ms at
// most (HZ=100).
const ackGrain = 10 * time.Millisecond

// moved says whether new bytes came in or new ones were acknowledged between before and
// c: progress, whatever else there was.
func (c *Counters) moved(before *Counters) bool {
	return c.BytesReceived != before.BytesReceived || c.BytesAcked != before.BytesAcked || c.Delivered != before.Delivered
}

// pure counts the segments without data. Where the kernel does not tell those with data
// apart (before Linux 4.6), it counts all.
func (c *Counters) pure() uint32 { return c.SegsIn - c.DataSegsIn }

// answered says whether a segment without data came in, and an acknowledgement that is
// younger than the question: ackBefore and ackNow are when the last one had come then and
// comes now, asked is when something was last asked, 0 if nothing is.
//
// Neither of the two alone will do. A peer to which nothing gets through repeats its last
// reply for minutes, which refreshes last_ack_recv; and its own keepalive probes are
// counted as segments, but move no last_ack_recv. A peer that repeats data sends no
// keepalive probes.
func (c *Counters) answered(before *Counters, ackBefore, ackNow, asked time.Duration) bool {
	return c.pure() != before.pure() && ackNow > ackBefore+ackGrain && ackNow+ackGrain >= asked
}

// Heard says whether the connection has made progress since the verdict, by a look at
// now, lastAckRecv after the last acknowledgement came in. Where the process is what does
// not answer, acknowledgements are none.
func (r *Reap) Heard(c Counters, now, lastAckRecv time.Duration) bool {
	if r.Evidence.Rule == RuleUnresponsive {
		return c.BytesReceived != r.BytesReceived
	}
	return c.moved(&r.Counters) || c.answered(&r.Counters, r.AckAt, now-lastAckRecv, r.Asked)
}
