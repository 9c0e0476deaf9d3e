package supervisor

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/patient"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
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
	armPatience = 500 * time.Millisecond
	// maxArmHeld is how many processes may do so at a time, and maxArmHeldPerSpace how
	// many of one namespace; beyond, nobody is armed there.
	maxArmHeld         = 64
	maxArmHeldPerSpace = 3
)

// errStale: what was decided is not what would be decided now.
var errStale = errors.New("the config or the mode has changed meanwhile")

// armer sets options until ctx ends.
func (s *Supervisor) armer(ctx context.Context) error {
	a := newArmer(s)
	for {
		select {
		case <-ctx.Done():
			return nil
		case jobs := <-s.arms:
			a.do(ctx, jobs)
		}
	}
}

type armer struct {
	s    *Supervisor
	held map[int]verdict.NS // processes that keep one of our goroutines
	free chan int           // those that have let it go
	tell func(context.Context, []armResult)
}

func newArmer(s *Supervisor) *armer {
	return &armer{s: s, held: map[int]verdict.NS{}, free: make(chan int, maxArmHeld), tell: s.tellArmed}
}

// tellArmed hands results to the watcher.
func (s *Supervisor) tellArmed(ctx context.Context, results []armResult) {
	select {
	case s.armResults <- results:
	case <-ctx.Done():
	}
}

// do does the jobs, on goroutines that are given up when one of them does not end, and
// tells of those that are done whenever that happens.
func (a *armer) do(ctx context.Context, jobs []*armJob) {
	for len(jobs) > 0 && ctx.Err() == nil {
		select {
		case pid := <-a.free:
			delete(a.held, pid)
			continue
		default:
		}
		var results []armResult
		for len(jobs) > 0 && a.holds(jobs[0]) {
			results = append(results, armResult{job: jobs[0], err: errHeld})
			jobs = jobs[1:]
		}
		n := 0
		for n < len(jobs) && !a.holds(jobs[n]) {
			n++
		}
		done, some := a.try(ctx, jobs[:n])
		a.tell(ctx, append(results, some...))
		jobs = jobs[done:]
	}
}

// holds says that a job would be held up, as far as that is known.
func (a *armer) holds(j *armJob) bool {
	if _, ok := a.held[j.socket.PID]; ok || len(a.held) >= maxArmHeld {
		return true
	}
	n := 0
	for _, ns := range a.held {
		if ns == j.key.NS {
			n++
		}
	}
	return n >= maxArmHeldPerSpace
}

// try does jobs up to one that does not return. Its thread may wait for ever; nobody
// waits for it, and it sets nothing any more.
func (a *armer) try(ctx context.Context, jobs []*armJob) (done int, results []armResult) {
	its := make([]armResult, len(jobs)) // its own, from where it is given up
	var r *patient.Run
	var thread *netns.Thread
	r = patient.New(len(jobs), func(i int) {
		its[i] = a.s.armOne(jobs[i], &thread, r.GivenUp)
		if i%armSlice == armSlice-1 {
			time.Sleep(armPause)
		}
	})
	go func() {
		r.Do()
		if thread != nil {
			thread.Close()
		}
	}()
	at := r.Await(ctx, armPatience)
	if at == len(jobs) || ctx.Err() != nil {
		return at, its[:at]
	}
	j := jobs[at]
	a.held[j.socket.PID] = j.key.NS
	a.s.log.Warn("a process does not let its socket be reached, and is not armed", "pid", j.socket.PID)
	go func() {
		<-r.Ended()
		a.free <- j.socket.PID
		a.tell(ctx, its[at:at+1]) // whatever came of it in the end
	}()
	return at + 1, append(its[:at:at], armResult{job: j, err: errHeld})
}

// armOne does a job, unless what it was decided by has changed, or nobody waits for it
// any more. thread is for visits, made when one is needed.
func (s *Supervisor) armOne(j *armJob, thread **netns.Thread, givenUp func() bool) armResult {
	stale := func() bool {
		mode := s.ArmMode()
		return s.config() != j.conf || mode == config.Off || !j.dry && mode != config.Enforce || givenUp()
	}
	r := armResult{job: j}
	left := false
	try := func(socket keepalive.Socket) {
		if j.dry {
			r.before, r.err = keepalive.Read(socket)
			r.after = r.before
			return
		}
		r.before, r.after, r.err = keepalive.Set(socket, func(have keepalive.Options) keepalive.Options {
			if left = stale(); left { // reading may have taken long
				return have
			}
			return j.plan(have)
		})
	}
	if stale() {
		r.err = errStale
		return r
	}
	if try(j.socket); errors.Is(r.err, keepalive.ErrPeer) && s.isConnected(j, thread) {
		// A load balancer in the kernel (Cilium's) has the socket say another peer
		// than it has.
		socket := j.socket
		socket.Remote = netip.AddrPort{}
		try(socket)
	}
	if left {
		r.err = errStale
	}
	return r
}

// isConnected asks the kernel's table whether the socket with the job's cookie is still
// the connection that is meant.
func (s *Supervisor) isConnected(j *armJob, thread **netns.Thread) bool {
	k, err := j.look(thread, (*tcpstate.Socket).Peek)
	return err == nil && k.State == tcpstate.Established
}

// look looks at the connection of the job in its namespace, on a thread that is made
// when there is none.
func (j *armJob) look(thread **netns.Thread, get func(*tcpstate.Socket, []tcpstate.ID, []tcpstate.Result) error) (*tcpstate.Connection, error) {
	if *thread == nil {
		t, err := netns.NewThread()
		if err != nil {
			return nil, err
		}
		*thread = t
	}
	var socket tcpstate.Socket
	var out [1]tcpstate.Result
	if err := (*thread).Visit(j.ns, func() error {
		if err := socket.Open(); err != nil {
			return err
		}
		defer socket.Close()
		return get(&socket, []tcpstate.ID{j.id}, out[:])
	}); err != nil {
		return nil, err
	}
	return &out[0].Connection, out[0].Err
}
