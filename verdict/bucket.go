package verdict

import "time"

// Bucket is a token bucket. Its rate and burst are arguments, since they are settings
// that may change while tokens are left. The zero value is full at its first Refill.
type Bucket struct {
	tokens float64
	at     time.Duration // of the last Refill
	begun  bool
}

// Refill adds what has come in since the last time, rate tokens a second, up to burst.
// A burst that is lower than what is left takes the difference away.
func (b *Bucket) Refill(now time.Duration, rate, burst float64) {
	if b.begun {
		b.tokens = min(burst, b.tokens+(now-b.at).Seconds()*rate)
	} else {
		b.tokens, b.begun = burst, true
	}
	b.at = now
}

// Has says whether there are n tokens.
func (b *Bucket) Has(n float64) bool { return b.tokens >= n }

// Take takes one token, if there is one.
func (b *Bucket) Take() bool {
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// Wait is how long it takes until there are n tokens, at most an hour: with a rate of 0
// that would be for ever.
func (b *Bucket) Wait(n, rate float64) time.Duration {
	short := n - b.tokens
	if short <= 0 {
		return 0
	}
	if short >= rate*time.Hour.Seconds() {
		return time.Hour
	}
	return time.Duration(short / rate * float64(time.Second))
}
