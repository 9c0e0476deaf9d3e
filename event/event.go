// Package event carries what redisguard has judged and done to whoever wants to
// know: the log, the audit file, and subscribers.
//
// A [Hub] numbers events, keeps the last ones, and hands each to every
// subscriber. Publishing never waits: a subscriber that does not keep up loses
// events, is told how many, and nobody else notices.
package event

import (
	"net/netip"
	"sync"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// Event is one fact. Zero fields do not apply.
type Event struct {
	// Seq numbers the events of one run of the daemon, from 1 and without gaps.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	// Type is one of the verdict's types, or one of the daemon's own below.
	Type verdict.EventType `json:"type"`
	// Text says it in words.
	Text     string         `json:"text"`
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
	// Namespace is the network namespace as people call it.
	Namespace  string            `json:"namespace,omitempty"`
	Connection *Connection       `json:"connection,omitempty"`
	Evidence   *verdict.Evidence `json:"evidence,omitempty"`
	// TookMs is how long it was: reap to client back, suspicion to up.
	TookMs int64 `json:"took_ms,omitempty"`
	// Outcome is what became of an act.
	Outcome string `json:"outcome,omitempty"`
}

// The daemon's own types, beside those of package verdict.
const (
	ModeChanged   verdict.EventType = "mode.changed"
	ConfigRefused verdict.EventType = "config.refused"
)

// Connection names a connection and whose it is.
type Connection struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	Cookie uint64         `json:"cookie"`
	UID    uint32         `json:"uid"`
	PID    int            `json:"pid,omitempty"`
	// Comm is the process's own word for itself, escaped.
	Comm         string `json:"comm,omitempty"`
	Unit         string `json:"unit,omitempty"`
	PodUID       string `json:"pod_uid,omitempty"`
	PodName      string `json:"pod_name,omitempty"`
	PodNamespace string `json:"pod_namespace,omitempty"`
	ContainerID  string `json:"container_id,omitempty"`
}

// Hub spreads events. The zero value keeps none; make one with NewHub.
type Hub struct {
	mu   sync.Mutex
	seq  uint64
	ring []Event // the last ones, ring[seq % len] being the next to be overwritten
	subs map[*Subscription]struct{}
}

// NewHub returns a hub that keeps the last n events, at least one.
func NewHub(n int) *Hub {
	return &Hub{ring: make([]Event, max(1, n)), subs: map[*Subscription]struct{}{}}
}

// Publish numbers e and spreads it. It returns the number.
func (h *Hub) Publish(e Event) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	e.Seq = h.seq
	h.ring[h.seq%uint64(len(h.ring))] = e
	for s := range h.subs {
		select {
		case s.events <- e:
		default:
			s.dropped++
		}
	}
	return e.Seq
}

// Last returns up to n of the latest events, oldest first.
func (h *Hub) Last(n int) []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	count := min(h.seq, uint64(len(h.ring)), uint64(max(0, n)))
	list := make([]Event, 0, count)
	for seq := h.seq - count + 1; seq <= h.seq; seq++ {
		list = append(list, h.ring[seq%uint64(len(h.ring))])
	}
	return list
}

// Subscription receives events until it is closed.
type Subscription struct {
	hub     *Hub
	events  chan Event
	dropped uint64 // under hub.mu
}

// Subscribe returns a subscription with room for the given number of events that
// were not received yet.
func (h *Hub) Subscribe(room int) *Subscription {
	s := &Subscription{hub: h, events: make(chan Event, max(1, room))}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subs[s] = struct{}{}
	return s
}

// Events is where the events come from. It is never closed.
func (s *Subscription) Events() <-chan Event { return s.events }

// Dropped is how many events were lost because the room was full.
func (s *Subscription) Dropped() uint64 {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	return s.dropped
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
}
