package tasks

import "testing"

func TestGroup(t *testing.T) {
	g, end, n := New(2), make(chan struct{}), make(chan int, 3)
	for i := range 3 {
		if ran := g.Run(func() { <-end; n <- i }); ran != (i < 2) {
			t.Errorf("task %d runs: %v", i, ran)
		}
	}
	close(end)
	g.Wait()
	if len(n) != 2 {
		t.Errorf("%d were done", len(n))
	}
	if !g.Run(func() {}) {
		t.Error("there is no room though all have ended")
	}
	g.Wait()
}
