package netns

import (
	"errors"
	"testing"
	"time"
)

func TestWorker(t *testing.T) {
	dir := t.TempDir()
	makeNS(t, dir, "one")
	list := find(t, &Finder{MountDirs: []string{dir}})
	one, ok := byName(list, "one")
	if !ok {
		t.Fatalf("found %v", list)
	}
	var w Worker
	defer w.Close()
	if done, free, err := w.Make(0, nil, time.Minute); done != 0 || free != nil || err != nil {
		t.Errorf("%d of no visits, %v", done, err)
	}
	places := []Namespace{one, list[0], {ID: one.ID, Path: "/nonexistent/net"}}
	var at [3]Key
	var errs [3]error
	visit := func(th *Thread, i int) {
		errs[i] = th.Visit(places[i], func() (err error) {
			at[i], err = nsfsKey("/proc/thread-self/ns/net")
			return err
		})
	}
	if done, free, err := w.Make(3, visit, time.Minute); done != 3 || free != nil || err != nil {
		t.Fatalf("%d done, %v", done, err)
	}
	if at[0] != one.ID.Key() || at[1] != list[0].ID.Key() || errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], ErrGone) {
		t.Errorf("at %v, errors %v", at, errs)
	}

	// One that does not return is abandoned; what comes after it is not done, and the
	// next visits are made by somebody else, from home as well.
	stuck, after := make(chan struct{}), false
	done, free, err := w.Make(3, func(th *Thread, i int) {
		_ = th.Visit(one, func() error {
			switch i {
			case 1:
				<-stuck
			case 2:
				after = true
			}
			return nil
		})
	}, 20*time.Millisecond)
	if done != 1 || free == nil || err != nil {
		t.Fatalf("%d done before the one that is stuck, %v", done, err)
	}
	at, errs = [3]Key{}, [3]error{}
	if done, f, err := w.Make(2, visit, time.Minute); done != 2 || f != nil || err != nil || at[0] != one.ID.Key() || at[1] != list[0].ID.Key() {
		t.Errorf("after that: %d done, at %v, %v", done, at, err)
	}
	select {
	case <-free:
		t.Error("it is free though it has not returned")
	default:
	}
	close(stuck)
	<-free
	if after {
		t.Error("an abandoned worker has gone on")
	}
}
