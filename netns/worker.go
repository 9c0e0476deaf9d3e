package netns

import (
	"context"
	"time"

	"github.com/redisguard/redisguard/internal/abandon"
)

// Worker makes visits for a caller that must not wait for them for ever: what is done in
// a namespace may wait for the lock of a socket that its application never lets go. A
// worker that does not return is abandoned together with its thread, and the next visits
// are made by another. The zero value is ready; it is for one goroutine at a time, and
// must be closed.
type Worker struct{ now *hand }

// hand is the goroutine that makes the visits, on a thread of its own.
type hand struct {
	runs   chan *abandon.Run
	thread *Thread
	err    error // there is no thread
}

func newHand() *hand {
	h := &hand{runs: make(chan *abandon.Run)}
	go func() {
		if h.thread, h.err = NewThread(); h.err == nil {
			defer h.thread.Close()
		}
		for r := range h.runs {
			if !r.Do() {
				return // abandoned: another has taken its place
			}
		}
	}()
	return h
}

// Make calls visit for 0 to n-1 in that order, with a thread that may visit namespaces,
// and returns how many of the calls have returned. If one takes longer than patience (up
// to half as long again) it is abandoned: then done is its index, none after it is made,
// and free is closed when it returns after all. Until then whatever it was given to write
// to belongs to it. An error says that there is no thread, and that nothing was called.
func (w *Worker) Make(n int, visit func(t *Thread, i int), patience time.Duration) (done int, free <-chan struct{}, err error) {
	if n == 0 {
		return 0, nil, nil
	}
	if w.now == nil {
		w.now = newHand()
	}
	h := w.now
	r := abandon.New(n, func(i int) {
		if h.err == nil {
			visit(h.thread, i)
		}
	})
	h.runs <- r
	if done = r.Await(context.Background(), patience); done < n {
		w.now = nil
		return done, r.Ended(), nil
	}
	if h.err != nil || h.thread.stranded { // the next one may find a better thread
		w.Close()
	}
	return done, nil, h.err
}

// Close ends the goroutine.
func (w *Worker) Close() {
	if w.now != nil {
		close(w.now.runs)
		w.now = nil
	}
}
