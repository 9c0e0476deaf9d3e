// Package abandon makes calls that may never return, and abandons those that do not.
//
// Some calls into the kernel cannot be interrupted and wait for what another process
// does: a look at a socket whose application holds the lock while it sends from a file
// on a server that is gone, an entry of /proc of a process that is stuck in exec. They
// are made on another goroutine, which is given up when one of them does not return.
// Its thread stays behind until the kernel lets it go.
package abandon

import (
	"context"
	"sync/atomic"
	"time"
)

// Run is a list of calls that are made in their order, on one goroutine.
type Run struct {
	n     int
	call  func(i int)
	at    atomic.Int64 // the call under way, n if all are made, -1-i if given up at i
	signs atomic.Int64 // of life, beside at
	ended chan struct{}
}

// New is a run of the calls 0 to n-1. What a call writes may be read by the caller that awaits
// the run once it counts as done, and by none but the call before: what belongs to
// one that was given up stays its own until it has returned, see Ended.
func New(n int, call func(i int)) *Run {
	return &Run{n: n, call: call, ended: make(chan struct{})}
}

// Do makes the calls. It returns whether all were made, which is false if it was given
// up: then its goroutine is not awaited any more and should end.
func (r *Run) Do() bool {
	defer close(r.ended)
	for i := range int64(r.n) {
		r.call(int(i))
		if !r.at.CompareAndSwap(i, i+1) {
			return false
		}
	}
	return true
}

// Alive is for calls that may take long without being stuck: Await waits from
// the last Alive on.
func (r *Run) Alive() { r.signs.Add(1) }

// Abandoned says that the call under way is not awaited any more: whatever it was about
// to do should not be done, as its result would be lost.
func (r *Run) Abandoned() bool { return r.at.Load() < 0 }

// Await waits until all calls are made, ctx ends, or one takes longer than patience
// (up to half as long again), and returns how many are made. If there are fewer than
// there should be the run was given up, and is so from now on; the call of that number
// is the one that did not return, and none after it is made.
func (r *Run) Await(ctx context.Context, patience time.Duration) (done int) {
	look := time.NewTicker(patience / 2)
	defer look.Stop()
	before, quiet := int64(-1), 0
	for {
		select {
		case <-r.ended:
			return r.n
		case <-ctx.Done():
			return r.giveUp()
		case <-look.C:
		}
		now := r.at.Load() + r.signs.Load()
		if now != before {
			before, quiet = now, 0
			continue
		}
		if quiet++; quiet == 2 {
			return r.giveUp()
		}
	}
}

// giveUp returns how many calls are made: all, if the last has returned just now.
func (r *Run) giveUp() int {
	for {
		now := r.at.Load()
		if now >= int64(r.n) || r.at.CompareAndSwap(now, -1-now) {
			return int(now)
		}
	}
}

// Ended is closed when the goroutine that makes the calls has returned from the last.
func (r *Run) Ended() <-chan struct{} { return r.ended }
