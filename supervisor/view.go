package supervisor

import (
	"context"
	"time"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// viewFor is how long a copy of the watcher's tables serves everybody who asks:
// however many do, the watcher makes no more than two a second.
const viewFor = 500 * time.Millisecond

// onWatcher runs fn on the watcher's goroutine, between two rounds, and waits.
// If ctx ends first, fn may still run.
func (s *Supervisor) onWatcher(ctx context.Context, fn func(*watcher) error) error {
	done := make(chan struct{})
	select {
	case s.asks <- func(w *watcher) error {
		// Whoever has asked for something wants to see what came of it.
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
		return ctx.Err()
	}
}

// View returns what is known of the node, at most half a second old.
func (s *Supervisor) View(ctx context.Context) (*view.Node, error) {
	if n := s.view.Load(); n != nil && time.Since(n.At) < viewFor {
		return n, nil
	}
	// One asks, and the others wait for what it gets.
	select {
	case s.viewing <- struct{}{}:
		defer func() { <-s.viewing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n := s.view.Load(); n != nil && time.Since(n.At) < viewFor {
		return n, nil
	}
	got := make(chan *view.Node, 1)
	if err := s.onWatcher(ctx, func(w *watcher) error {
		// Kept here, so that none is kept that is older than what was asked for since.
		n := w.view()
		s.view.Store(n)
		got <- n
		return nil
	}); err != nil {
		return nil, err
	}
	return <-got, nil
}

// view copies the tables. It takes some 0.1 us a connection.
func (w *watcher) view() *view.Node {
	now, clock := monotonic(), time.Now()
	var tunes map[netns.ID]*view.Tune
	if m := w.s.tuning.Load(); m != nil {
		tunes = *m
	}
	n := &view.Node{
		At: clock, Off: w.off,
		Spaces: make([]view.Space, 0, len(w.spaces)), Connections: make([]view.Connection, 0, len(w.conns)),
	}
	for _, sp := range w.spaces {
		at := len(n.Spaces)
		n.Spaces = append(n.Spaces, view.Space{
			NS: sp.key, Name: sp.ns.String(), Host: sp.key == w.hostNS, Key: proc.NSKey{Dev: sp.ns.ID.Dev, Ino: sp.ns.ID.Inode},
			Tune: tunes[sp.ns.ID],
		})
		for _, t := range sp.conns {
			why := t.why
			if t.permit != verdict.MayReap && why == "" {
				why = "observed only"
			}
			if t.hold != nil {
				why = errHeld.Error()
			}
			n.Connections = append(n.Connections, view.Connection{
				Key: t.key, Space: at, TCP: t.conn, Seen: clock.Add(t.seen - now), Owner: t.own.owner, WhyNot: why, Exempt: string(t.exempt), Arm: t.arm.view(),
			})
		}
	}
	return n
}

// Capabilities is what this kernel allows.
func (s *Supervisor) Capabilities() tcpstate.Capabilities { return s.caps }
