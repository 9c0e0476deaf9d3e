package supervisor

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
)

// message is something that the watcher is told or asked, done on its goroutine between
// two rounds. An error ends the daemon.
type message func(*watcher) error

// post hands the watcher a message. It waits for room, and counts that.
func (s *Supervisor) post(ctx context.Context, m message) {
	select {
	case s.inbox <- m:
		return
	default:
	}
	s.figures.InboxWaits.Add(1)
	select {
	case s.inbox <- m:
	case <-ctx.Done():
	}
}

// request has fn done by the watcher, and waits for it. If ctx ends before it was begun, it
// is not done; if it was begun, its end is waited for.
func (s *Supervisor) request(ctx context.Context, fn message) error {
	done := make(chan struct{})
	var decided atomic.Bool // that it is done, or that it is not
	select {
	case s.inbox <- func(w *watcher) error {
		if decided.Swap(true) {
			return nil
		}
		// After a request the next view must show its effect.
		s.view.Store(nil)
		defer close(done)
		return fn(w)
	}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		if !decided.Swap(true) {
			return ctx.Err()
		}
		<-done
		return nil
	}
}

// publish passes on an event that needs nothing of the watcher's tables.
func (s *Supervisor) publish(e event.Event) { s.journal.Publish(e) }

// Publish publishes an event of others about the daemon itself, after what was published
// before it was told.
func (s *Supervisor) Publish(ctx context.Context, e event.Event) {
	if err := s.request(ctx, func(*watcher) error { s.publish(e); return nil }); err != nil {
		// The guard has not begun, or has ended.
		e.Time = time.Now().UTC()
		s.opt.Hub.Publish(e)
	}
}

// maxProbes bounds the probes under way at once, maxLooks the looks at next hops and
// unrelated connections. They do not share their places: in an outage probes last long,
// and the looks say whether it is one.
const (
	maxProbes = 64
	maxLooks  = 16
)

// monotonic is the clock of all observations.
func monotonic() time.Duration { return sys.Monotonic() }
