package proc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/patient"
)

const (
	// patience is for how long a process may keep us from its files. The kernel
	// takes microseconds.
	patience = time.Second
	// maxHeld is how many of our threads processes may hold at a time.
	maxHeld = 16
)

// Held knows the processes that hold threads of ours. Whoever asks for the
// namespace, the program, the descriptors or (Linux 6.18) the stat of a process
// waits, and cannot be killed, while that process is in execve: for ever, if one of
// the descriptors that execve closes is of a file system whose server does not
// answer. So such questions are asked on a goroutine that is given up, and its
// process is not asked again until the kernel has let the thread go. Two goroutines
// that ask at the same time can be held by the same process.
//
// The zero value is ready. It is safe for concurrent use.
type Held struct {
	once   sync.Once
	places chan struct{} // one for each goroutine that asks, as long as it lives

	mu   sync.Mutex
	pids []int // one for each that was given up
}

var (
	// errHeld: a process does not let us look. It is a denial.
	errHeld = fmt.Errorf("it does not let us look, held up in execve perhaps: %w", unix.EACCES)
	// errTooManyHeld: nobody is asked.
	errTooManyHeld = errors.New("too many processes are held up in execve")
)

// ask calls about for the indices of pids, in order, until one of the processes
// holds the goroutine on which that is done, or held one before. done is how many
// calls have returned; what the next one writes belongs to it for ever. Calls get a
// descriptor of /proc, and alive to be called by those that may take long. An error
// means that nobody was asked.
func (f FS) ask(ctx context.Context, pids []int, about func(dir, i int, alive func())) (done int, err error) {
	h := f.Held
	if h == nil {
		h = &Held{}
	}
	n := h.free(pids)
	if n == 0 {
		return 0, nil
	}
	if err := h.enter(ctx); err != nil {
		return 0, err
	}
	dir, err := f.openProc()
	if err != nil {
		h.leave()
		return 0, err
	}
	var run *patient.Run
	run = patient.New(n, func(i int) { about(dir, i, run.Alive) })
	end := func() {
		unix.Close(dir)
		h.leave()
	}
	go run.Do()
	// The calls know of ctx: the run ends soon after it, or is held.
	done = run.Await(context.Background(), patience)
	if done == n {
		end()
		return n, nil
	}
	pid := pids[done]
	h.mu.Lock()
	h.pids = append(h.pids, pid)
	h.mu.Unlock()
	go func() {
		<-run.Ended()
		h.mu.Lock()
		h.pids = slices.Delete(h.pids, slices.Index(h.pids, pid), slices.Index(h.pids, pid)+1)
		h.mu.Unlock()
		end()
	}()
	return done, nil
}

// askOne calls about for one process. If that returns an error, what about writes
// must not be read.
func (f FS) askOne(pid int, about func(dir int)) error {
	done, err := f.ask(context.Background(), []int{pid}, func(dir, _ int, _ func()) { about(dir) })
	if err == nil && done == 0 {
		err = errHeld
	}
	return err
}

// free is how many of pids come before the first that holds us.
func (h *Held) free(pids []int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pids) == 0 {
		return len(pids)
	}
	if i := slices.IndexFunc(pids, func(pid int) bool { return slices.Contains(h.pids, pid) }); i >= 0 {
		return i
	}
	return len(pids)
}

// enter waits for a place. Those who are not held leave theirs soon.
func (h *Held) enter(ctx context.Context) error {
	h.once.Do(func() { h.places = make(chan struct{}, maxHeld) })
	select {
	case h.places <- struct{}{}:
		return nil
	default:
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case h.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return errTooManyHeld
	}
}

func (h *Held) leave() { <-h.places }
