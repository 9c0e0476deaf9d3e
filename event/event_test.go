package event

import (
	"sync"
	"testing"
)

func TestHubKeepsOrderAndTheLast(t *testing.T) {
	h := NewHub(4)
	if got := h.Last(10); len(got) != 0 {
		t.Errorf("an empty hub has %v", got)
	}
	for range 10 {
		h.Publish(Event{Type: ModeChanged})
	}
	got := h.Last(10)
	if len(got) != 4 || got[0].Seq != 7 || got[3].Seq != 10 {
		t.Errorf("got %v, want 7 to 10", got)
	}
	if got := h.Last(2); len(got) != 2 || got[1].Seq != 10 {
		t.Errorf("got %v, want 9 and 10", got)
	}
}

func TestASlowSubscriberLosesAndIsTold(t *testing.T) {
	h := NewHub(1)
	slow, quick := h.Subscribe(2), h.Subscribe(100)
	defer slow.Close()
	defer quick.Close()
	for range 10 {
		h.Publish(Event{})
	}
	if got := slow.Dropped(); got != 8 {
		t.Errorf("dropped %d, want 8", got)
	}
	if first := <-slow.Events(); first.Seq != 1 {
		t.Errorf("first is %d, want 1", first.Seq)
	}
	if len(quick.Events()) != 10 || quick.Dropped() != 0 {
		t.Errorf("the other subscriber has %d events and lost %d", len(quick.Events()), quick.Dropped())
	}
	slow.Close()
	h.Publish(Event{})
	if slow.Dropped() != 8 {
		t.Error("a closed subscription still counts")
	}
}

func TestNumbersHaveNoGaps(t *testing.T) {
	h := NewHub(1)
	s := h.Subscribe(1000)
	defer s.Close()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100 {
				h.Publish(Event{})
			}
		})
	}
	wg.Wait()
	for want := uint64(1); want <= 1000; want++ {
		if e := <-s.Events(); e.Seq != want {
			t.Fatalf("event %d came where %d was due", e.Seq, want)
		}
	}
}
