package event

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// ErrGone says that events which were asked for are no longer kept, or never were:
// what follows from them can only be had as a whole, by Snapshot.
var ErrGone = errors.New("the events after this cursor are no longer there")

// Hub numbers, keeps and spreads events. Make one with NewHub.
type Hub struct {
	epoch string

	// mu is held for well under a microsecond at a time: by Publish to append,
	// by readers to copy pointers out. No encoding, write or wait happens under it.
	mu    sync.Mutex
	seq   uint64
	ring  []*Record // the last ones; number n is at n % len
	state State
	shot  []*Finding // a copy of the open findings of this shape, shared by all snapshots
	shape uint64
	count map[verdict.EventType]uint64
	pokes []poke // replaced as a whole, so that Publish can call them unlocked
}

// poke is a function to call when there is news.
type poke struct {
	id *byte
	fn func()
}

// NewHub returns a hub that keeps the last n events, at least one. Its epoch is
// like no other's.
func NewHub(n int) *Hub {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see its documentation
	// The letter in front keeps a cursor from being taken for anything else that
	// has a number before a dash.
	h := &Hub{epoch: "e" + hex.EncodeToString(b[:]), ring: make([]*Record, max(1, n)), state: newState(), count: map[verdict.EventType]uint64{}}
	for _, t := range Types() {
		h.count[t] = 0
	}
	return h
}

// Epoch names this run.
func (h *Hub) Epoch() string { return h.epoch }

// Publish numbers e and spreads it. It returns the number.
func (h *Hub) Publish(e Event) uint64 {
	r := &Record{Event: e}
	h.mu.Lock()
	h.seq++
	r.Seq = h.seq
	h.ring[h.seq%uint64(len(h.ring))] = r
	h.state.Apply(r)
	h.count[e.Type]++
	pokes := h.pokes
	h.mu.Unlock()
	for _, p := range pokes {
		p.fn()
	}
	return r.Seq
}

// Counts is how many events of each type there were.
func (h *Hub) Counts() map[verdict.EventType]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.count)
}

// Head is the number of the latest event, 0 before the first.
func (h *Hub) Head() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seq
}

// Cursor is the place after the latest event.
func (h *Hub) Cursor() Cursor { return Cursor{h.epoch, h.Head()} }

// Read appends to list the events that follow after, oldest first and at most n.
// It returns ErrGone if they are not all kept any more, and if after is of the
// future.
func (h *Hub) Read(after uint64, n int, list []*Record) ([]*Record, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if after > h.seq || h.seq-after > uint64(len(h.ring)) {
		return list, ErrGone
	}
	for seq := after + 1; seq <= min(h.seq, after+uint64(n)); seq++ {
		list = append(list, h.ring[seq%uint64(len(h.ring))])
	}
	return list, nil
}

// Last returns up to n of the latest events, oldest first.
func (h *Hub) Last(n int) []*Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	count := min(h.seq, uint64(len(h.ring)), uint64(max(0, n)))
	list := make([]*Record, 0, count)
	for seq := h.seq - count + 1; seq <= h.seq; seq++ {
		list = append(list, h.ring[seq%uint64(len(h.ring))])
	}
	return list
}

// Snapshot is the state after the event with number Seq. It is immutable.
type Snapshot struct {
	Seq uint64
	// Mode is nil before the first ModeChanged.
	Mode *Mode
	// Open are the open findings, in no order, shared with other snapshots; Ended
	// the last ones that were, in the order in which they ended.
	Open, Ended []*Finding
	// Unkept counts findings that were not kept since there were too many.
	Unkept uint64
}

// Snapshot returns the state and its place in the events, exactly: an event is
// either in it or after it.
func (h *Hub) Snapshot(ended bool) Snapshot {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Expire(now)
	for h.shot == nil || h.shape != h.state.shape {
		// Memory is made unlocked: that may take long, and a publisher waits.
		n := len(h.state.open)
		h.mu.Unlock()
		room := make([]*Finding, 0, n+n/8+16)
		h.mu.Lock()
		if n = len(h.state.open); n <= cap(room) {
			h.shot, h.shape = append(room, h.state.open...)[:n:n], h.state.shape
		}
	}
	s := Snapshot{Seq: h.seq, Mode: h.state.mode, Open: h.shot, Unkept: h.state.unkept}
	if ended {
		s.Ended = h.state.endedList()
	}
	return s
}

// Notify has fn called after each event that is published from now on, until stop
// is called. It is called by the publisher, and must neither block nor publish.
func (h *Hub) Notify(fn func()) (stop func()) {
	id := new(byte)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pokes = append(slices.Clone(h.pokes), poke{id, fn})
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.pokes = slices.DeleteFunc(slices.Clone(h.pokes), func(p poke) bool { return p.id == id })
	}
}

// Subscription is a place in the events of a hub that moves with each Next.
type Subscription struct {
	hub   *Hub
	after uint64
	batch []*Record // read and not handed out
	news  chan struct{}
	stop  func()
}

// Subscribe returns a subscription that begins with the next event. It is for one
// goroutine at a time, and must be closed.
func (h *Hub) Subscribe() *Subscription {
	s := &Subscription{hub: h, news: make(chan struct{}, 1)}
	s.stop = h.Notify(func() {
		select {
		case s.news <- struct{}{}:
		default:
		}
	})
	s.after = h.Head()
	return s
}

// Next waits for the next event. It returns ErrGone if events were lost because
// the ring has gone round, once: the subscription goes on with the latest.
func (s *Subscription) Next(ctx context.Context) (*Record, error) {
	for {
		if len(s.batch) > 0 {
			r := s.batch[0]
			s.batch = s.batch[1:]
			return r, nil
		}
		var err error
		if s.batch, err = s.hub.Read(s.after, 256, nil); err != nil {
			s.after = s.hub.Head()
			return nil, err
		}
		if n := len(s.batch); n > 0 {
			s.after = s.batch[n-1].Seq
			continue
		}
		select {
		case <-s.news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Close ends the subscription.
func (s *Subscription) Close() { s.stop() }
