package attribution

import (
	"testing"
	"time"

	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/verdict"
)

// Whoever has not been looked for among all processes waits for the next pass that asks
// all; while [exclude] names anything the others are asked for again and again.
func TestShared(t *testing.T) {
	var s shared
	sub := func(n uint64) *Subject { return &Subject{Key: verdict.ConnKey{NS: 1, Cookie: n}} }
	answer := func(x *Subject, complete bool) Answer {
		return Answer{Key: x.Key, subject: x, Holder: policy.Holder{Asked: true, Owner: &proc.Owner{Complete: complete}}}
	}
	if _, ok := s.next(); ok || len(s.due(nil, 0)) != 0 {
		t.Error("something is due before anything was asked")
	}
	a, b, nobody := sub(1), sub(2), sub(3)
	s.note([]Answer{answer(a, false), answer(b, true), {Key: nobody.Key, subject: nobody}}, false, time.Second)
	if at, ok := s.next(); !ok || at != 0 {
		t.Errorf("one is open: %v %v", at, ok)
	}
	if list := s.due([]*Subject{a}, time.Second); len(list) != 1 || list[0] != a {
		t.Errorf("%d are asked for, want the open one once", len(list))
	}
	s.note([]Answer{answer(a, true)}, false, time.Second)
	if _, ok := s.next(); ok {
		t.Error("nobody is excluded, and all are known")
	}
	// Somebody is excluded now: asked again, later.
	s.note([]Answer{answer(a, true), answer(b, true)}, true, time.Second)
	if at, ok := s.next(); !ok || at != time.Second+refreshEvery {
		t.Errorf("next at %v, %v", at, ok)
	}
	if list := s.due(nil, 2*time.Second); len(list) != 0 {
		t.Errorf("%d are asked for at once", len(list))
	}
	if list := s.due(nil, time.Second+refreshEvery); len(list) != 2 {
		t.Errorf("%d are asked for again, want both", len(list))
	}
	// One that is gone is not answered, and so not asked for again.
	s.note([]Answer{answer(b, true)}, true, time.Minute)
	if list := s.due(nil, time.Hour); len(list) != 1 || list[0] != b {
		t.Errorf("%d are asked for in the end", len(list))
	}
	list := make([]Answer, maxShared+10)
	for i := range list {
		list[i] = answer(sub(uint64(i+100)), false)
	}
	s.note(list, true, time.Hour)
	if n := len(s.open) + len(s.known); n > maxShared {
		t.Errorf("%d are remembered", n)
	}
}
