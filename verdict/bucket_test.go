package verdict

import (
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	var b Bucket
	take := func() (n int) {
		for b.Take() {
			n++
		}
		return n
	}
	if b.Take() {
		t.Error("a token before the first Refill")
	}
	now := 100 * time.Hour
	b.Refill(now, 2, 5)
	if n := take(); n != 5 {
		t.Errorf("%d tokens at first, want the burst of 5", n)
	}
	if w := b.Wait(1, 2); w != 500*time.Millisecond {
		t.Errorf("one token takes %v at 2 a second", w)
	}
	now += 499 * time.Millisecond
	if b.Refill(now, 2, 5); b.Has(1) {
		t.Error("a token too soon")
	}
	now += time.Millisecond
	if b.Refill(now, 2, 5); !b.Has(1) || b.Has(1.01) || b.Wait(1, 2) != 0 || b.Wait(2, 2) != 500*time.Millisecond {
		t.Errorf("after half a second: %+v", b)
	}
	now += time.Hour
	if b.Refill(now, 2, 5); take() != 5 {
		t.Error("more or less than the burst was saved up")
	}
	b.Refill(now+time.Hour, 2, 5)
	if b.Refill(now+time.Hour, 2, 3); take() != 3 {
		t.Error("a lower burst does not cap what is left")
	}
	if w := b.Wait(1, 0); w != time.Hour {
		t.Errorf("a rate of 0 takes %v", w)
	}
}
