package supervisor

import (
	"testing"

	"github.com/redisguard/redisguard/verdict"
)

// told is what the core was told since the last time.
func told(w *watcher) map[uint64]bool {
	m := map[uint64]bool{}
	for _, h := range w.in.Held {
		m[h.Key.Cookie] = h.On
	}
	w.in.Reset()
	return m
}

// Of those that were looked at together it is found out which one it was; one accident
// is none; and what holds us up again and again is counted once.
func TestWhoHoldsUsUp(t *testing.T) {
	w := armWorld(5)
	sp := w.conns[verdict.ConnKey{NS: 1, Cookie: 1}].space
	var all []*tracked
	for cookie := range uint64(5) {
		all = append(all, sp.conns[cookie+1])
	}
	free := make(chan struct{})
	w.heldUp(sp, all, free)
	if m := told(w); len(m) != 0 || !sp.careful || !all[4].alone || all[0].hold != nil {
		t.Errorf("after the first time: %v", m)
	}
	for range 2 {
		w.heldUp(sp, all[:1], free)
	}
	if m := told(w); len(m) != 1 || !m[1] || sp.held != 1 || len(w.held) != 1 {
		t.Errorf("it was found: %v, %d held", m, sp.held)
	}
	if state, why := all[0].armable(); state == "" || why == "" {
		t.Error("it would be armed")
	}
	w.round++
	for _, c := range all {
		w.take(c)
	}
	if len(sp.turn) != 4 {
		t.Errorf("%d are looked at, want the 4 others", len(sp.turn))
	}
	sp.turn, w.turn = nil, nil

	// With three of them the namespace is left out.
	w.heldUp(sp, all[1:2], free)
	w.heldUp(sp, all[2:3], free)
	if m := told(w); len(m) != 5 || !m[5] || !sp.closed {
		t.Errorf("three are held: %v", m)
	}
	w.round++
	if w.take(all[4]); len(sp.turn) != 0 {
		t.Error("a namespace with three of them is looked at")
	}

	// Nothing happens before they let go, and then it takes a while.
	now := monotonic()
	w.letGo(now + heldMost)
	if sp.held != 3 || len(told(w)) != 0 {
		t.Errorf("%d are held though none has let go", sp.held)
	}
	close(free)
	w.letGo(now + heldMost)
	w.letGo(now + 3*heldMost)
	if m := told(w); len(m) != 5 || m[1] || m[5] || sp.held != 0 || sp.closed || len(w.held) != 0 || all[0].hold != nil {
		t.Errorf("they have let go: %v, %d held", m, sp.held)
	}
}
