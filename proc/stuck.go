package proc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/abandon"
	"github.com/redisguard/redisguard/internal/sys"
)

const (
	// patience is for how long a process may keep us from its files. The kernel
	// takes microseconds.
	patience = time.Second
	// maxStuck is how many of our threads processes may hold at a time.
	maxStuck = 16
)

// Stuck knows the processes that hold threads of ours. A thread that asks for the
// namespace, the program, the descriptors or (Linux 6.18) the stat of a process
// waits, and cannot be killed, while that process is in execve: for ever, if one of
// the descriptors that execve closes is of a file system whose server does not
// answer. So such questions are asked on a goroutine that is given up, and its
// process is not asked again until the kernel has let the thread go. Two goroutines
// that ask at the same time can be kept by the same process.
//
// The zero value is ready. It is safe for concurrent use.
type Stuck struct {
	once   sync.Once
	places chan struct{} // one for each goroutine that asks, as long as it lives

	mu   sync.Mutex
	pids []int // one for each that was given up
}

var (
	// errStuck: a process does not let us look. It is a denial.
	errStuck = fmt.Errorf("it does not let us look, stuck in execve perhaps: %w", unix.EACCES)
	// errTooManyStuck: no process is asked.
	errTooManyStuck = errors.New("too many processes are stuck in execve")
)

// query calls about for the indices of pids, in order, until one of the processes
// holds the goroutine on which that is done, or held one before. done is how many
// calls have returned; what the next one writes belongs to it for ever. Calls get a
// descriptor of /proc, and alive to be called by those that may take long. An error
// means that no process was asked.
func (f FS) query(ctx context.Context, pids []int, about func(dir, i int, alive func())) (done int, err error) {
	h := f.Stuck
	if h == nil {
		h = &Stuck{}
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
	var run *abandon.Run
	run = abandon.New(n, func(i int) { about(dir, i, run.Alive) })
	end := func() {
		sys.Close(dir)
		h.leave()
	}
	go run.Do()
	// The calls know of ctx: the run ends soon after it, or is stuck.
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

// queryOne calls about for one process. If that returns an error, what about writes
// must not be read.
func (f FS) queryOne(pid int, about func(dir int)) error {
	done, err := f.query(context.Background(), []int{pid}, func(dir, _ int, _ func()) { about(dir) })
	if err == nil && done == 0 {
		err = errStuck
	}
	return err
}

// free is how many of pids come before the first that holds us.
func (h *Stuck) free(pids []int) int {
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

// enter waits for a place. Those who are not stuck leave theirs soon.
func (h *Stuck) enter(ctx context.Context) error {
	h.once.Do(func() { h.places = make(chan struct{}, maxStuck) })
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
		return errTooManyStuck
	}
}

func (h *Stuck) leave() { <-h.places }
