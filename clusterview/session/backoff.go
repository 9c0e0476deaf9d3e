package session

import "time"

const (
	// firstBackoff and lastBackoff are how long a refused password rests, after the first
	// time and at most. Redis locks nobody out, but writes each failure into ACL LOG, and
	// services in front of it may lock out.
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
)

// Backoff says when a password that was refused may be tried again: 1 s after the first
// time, then twice as long each time, 5 min at most. The zero value is ready. It is not safe
// for use by several goroutines.
type Backoff struct {
	refused Password
	wait    time.Duration
	until   time.Time
}

// Refused takes down that p was refused.
func (b *Backoff) Refused(p Password, now time.Time) {
	if !p.Equal(b.refused) {
		b.wait = 0
	}
	b.refused = p
	b.wait = min(max(2*b.wait, firstBackoff), lastBackoff)
	b.until = now.Add(b.wait)
}

// Accepted forgets what was refused.
func (b *Backoff) Accepted() { *b = Backoff{} }

// Wait is for how long p must not be tried yet, 0 if it may be: another one than was refused
// may be at once.
func (b *Backoff) Wait(p Password, now time.Time) time.Duration {
	if b.wait == 0 || !p.Equal(b.refused) {
		return 0
	}
	return max(0, b.until.Sub(now))
}
