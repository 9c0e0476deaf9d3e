package abandon

import (
	"context"
	"testing"
	"time"
)

func TestAllAreMade(t *testing.T) {
	made := make([]bool, 100)
	r := New(len(made), func(i int) { made[i] = true })
	whole := make(chan bool, 1)
	go func() { whole <- r.Do() }()
	if n := r.Await(t.Context(), time.Minute); n != len(made) || !<-whole {
		t.Errorf("%d made", n)
	}
	for i, ok := range made {
		if !ok {
			t.Errorf("call %d was not made", i)
		}
	}
}

// Progress is what counts, not how long all take together.
func TestSlowIsNotStuck(t *testing.T) {
	const patience = 100 * time.Millisecond
	r := New(20, func(int) { time.Sleep(patience / 5) })
	go r.Do()
	if n := r.Await(t.Context(), patience); n != 20 {
		t.Errorf("%d made", n)
	}
}

// One long call that shows signs of life is not stuck either.
func TestAlive(t *testing.T) {
	const patience = 100 * time.Millisecond
	var r *Run
	r = New(1, func(int) {
		for range 20 {
			time.Sleep(patience / 5)
			r.Alive()
		}
	})
	go r.Do()
	if n := r.Await(t.Context(), patience); n != 1 {
		t.Errorf("%d made", n)
	}
}

func TestAbandoned(t *testing.T) {
	stuck := make(chan struct{})
	called := make(chan int, 10)
	r := New(5, func(i int) {
		called <- i
		if i == 2 {
			<-stuck
		}
	})
	whole := make(chan bool, 1)
	go func() { whole <- r.Do() }()
	if n := r.Await(t.Context(), 10*time.Millisecond); n != 2 {
		t.Errorf("%d made, want 2", n)
	}
	select {
	case <-r.Ended():
		t.Error("it has ended though one call has not returned")
	default:
	}
	close(stuck)
	<-r.Ended()
	if <-whole || len(called) != 3 {
		t.Errorf("%d calls were made after it was given up", len(called))
	}
}

func TestTheEnd(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	ctx, cancel := context.WithCancel(t.Context())
	r := New(1, func(int) { <-stuck })
	go r.Do()
	cancel()
	if n := r.Await(ctx, time.Hour); n != 0 {
		t.Errorf("%d made", n)
	}
}
