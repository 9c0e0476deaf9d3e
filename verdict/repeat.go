package verdict

import (
	"fmt"
	"time"
)

// What a reap brought about is evidence for the next: if the connection that a client opens
// instead dies in the same way, ending connections does not help (the path loses large
// segments, or something on it drops what they carry), and each further one would only
// take away what the kernel itself may still achieve.

const (
	// repeatFirst is how long a client is left alone whose successor has died in the same
	// way; each further time doubles it, up to repeatMost.
	repeatFirst = 10 * time.Second
	repeatMost  = 10 * time.Minute
	// repeatGood is how long a successor must have made progress to be no sign of the old
	// trouble: what is lost for its size or content is lost soon. A pool opens and closes
	// connections all the time, and one of those is soon taken for a successor.
	repeatGood = 15 * time.Second
	// repeatSegments is how many segments must have been acknowledged on it, for the same.
	repeatSegments = 200
)

// repeatKey is a client of an endpoint: a workload, where it is known, else a process,
// else a namespace.
type repeatKey struct {
	path PathKey
	who  string
}

// repeat is what became of the reaps of a client's connections by the rules flow and
// connecting.
type repeat struct {
	first time.Duration // of this episode
	until time.Duration // successors are left alone
	times int           // successors that were condemned
}

func (k *conn) repeatKey() repeatKey { return repeatKey{k.path.key, k.who()} }

// who is the client of k in its namespace.
func (k *conn) who() string {
	if k.workload != "" {
		return k.workload
	}
	return k.owner
}

// condemnOnce condemns k, unless it is the successor of a connection that was ended for
// the same reason, for which there is a pause that grows. It says whether it did.
func (c *Core) condemnOnce(k *conn, ev Evidence) bool {
	r := c.repeats[k.repeatKey()]
	if r != nil && k.first > r.first && k.heard-k.first < repeatGood && k.counters.Delivered < repeatSegments {
		if c.now < r.until {
			c.wake(r.until)
			if !k.repeatTold {
				k.repeatTold = true
				k.open, k.openBy = true, ev.Rule
				c.event(Event{Type: ConnectionJudged, Path: k.path.key, Key: k.key, Evidence: &ev, Took: ev.Silence, Text: fmt.Sprintf(
					"not reaped (an earlier connection of this client died in the same way %v ago: ending connections does not help this client; the next is not ended before %v from now): %s",
					ms(c.now-r.first), ms(r.until-c.now), ev)})
			}
			return false
		}
	} else if r != nil && k.first > r.first {
		delete(c.repeats, k.repeatKey()) // that trouble is over
	}
	c.condemn(k, ev, PolicyReap, 1)
	return k.reap == reapQueued
}

// noteRepeat notes that k was ended at at by one of these rules.
func (c *Core) noteRepeat(k *conn, at time.Duration) {
	if rule := k.entry.evidence.Rule; rule != RuleFlow && rule != RuleConnect {
		return
	}
	r := c.repeats[k.repeatKey()]
	switch {
	case r == nil:
		c.repeats[k.repeatKey()] = &repeat{first: at, until: at + repeatFirst}
	case k.first > r.first:
		r.times++
		r.first, r.until = at, at+min(repeatFirst<<min(r.times, 10), repeatMost)
	}
}

// forgetRepeats drops those that nothing came of any more.
func (c *Core) forgetRepeats() {
	if c.steps%64 != 0 {
		return
	}
	for key, r := range c.repeats {
		if c.now-r.until > max(2*(r.until-r.first), time.Minute) {
			delete(c.repeats, key)
		}
	}
}
