package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/patient"
	"github.com/redisguard/redisguard/keepalive"
)

const (
	// armSlice connections are armed at a time, armPause apart, some 8,000 a second: their
	// keepalive timers start when they are armed, and thousands that went on in step
	// would overflow the kernel's queues (net.core.netdev_max_backlog, 1,000) each
	// time.
	armSlice = 120
	armPause = 10 * time.Millisecond
	// armPatience is for how long a process may keep its socket from us. Options are
	// read and set under the socket's lock, which an application holds while it sends:
	// for ever, if what it sends from is a file on a server that is gone.
	armPatience = time.Second
	// maxHeld is how many may do so at a time; beyond, nobody is armed.
	maxHeld = 16
)

// errStale: what was decided is not what would be decided now.
var errStale = errors.New("the config or the mode has changed meanwhile")

// armer sets options until ctx ends.
func (s *Supervisor) armer(ctx context.Context) error {
	a := armer{s: s, held: map[int]bool{}, free: make(chan int, maxHeld)}
	for {
		var jobs []*armJob
		select {
		case <-ctx.Done():
			return nil
		case jobs = <-s.arms:
		}
		results := a.do(ctx, jobs)
		select {
		case s.armResults <- results:
		case <-ctx.Done():
			return nil
		}
	}
}

type armer struct {
	s    *Supervisor
	held map[int]bool // processes that keep one of our goroutines
	free chan int     // those that have let it go
}

// do does the jobs, on a goroutine that is given up when one of them does not end.
func (a *armer) do(ctx context.Context, jobs []*armJob) (results []armResult) {
	for len(jobs) > 0 && ctx.Err() == nil {
		select {
		case pid := <-a.free:
			delete(a.held, pid)
			continue
		default:
		}
		if a.held[jobs[0].socket.PID] || len(a.held) >= maxHeld {
			results = append(results, armResult{job: jobs[0], err: fmt.Errorf("%w: process %d", errHeld, jobs[0].socket.PID)})
			jobs = jobs[1:]
			continue
		}
		n := 1 // as far as nobody is held
		for n < len(jobs) && !a.held[jobs[n].socket.PID] {
			n++
		}
		batch, some := jobs[:n], make([]armResult, n) // theirs, should they be given up
		r := patient.New(n, func(i int) {
			some[i] = a.s.armOne(batch[i])
			if i%armSlice == armSlice-1 {
				time.Sleep(armPause)
			}
		})
		go r.Do()
		done := r.Await(ctx, armPatience)
		results = append(results, some[:done]...)
		jobs = jobs[done:]
		if done == n || ctx.Err() != nil {
			continue
		}
		pid := jobs[0].socket.PID
		a.held[pid] = true
		a.s.log.Warn("a process does not let its socket be reached, and is not armed", "pid", pid)
		go func() {
			<-r.Ended()
			a.free <- pid
		}()
	}
	return results
}

// armOne does a job, unless what it was decided by has changed.
func (s *Supervisor) armOne(j *armJob) armResult {
	r := armResult{job: j}
	mode := s.ArmMode()
	switch {
	case s.config() != j.conf, mode == config.Off, !j.dry && mode != config.Enforce:
		r.err = errStale
	case j.dry:
		r.before, r.err = keepalive.Read(j.socket)
		r.after = r.before
	default:
		r.before, r.after, r.err = keepalive.Set(j.socket, j.plan)
	}
	return r
}
