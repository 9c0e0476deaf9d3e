// Package armer sets keepalive on other processes' connections, and has their kernels ask
// whether the peer is there: [Planner] decides on whom keepalive is set and how, package
// verdict who is asked. [Loop] does both, on goroutines that are abandoned where a process
// does not let its socket be reached; one loop for each, as an ask must not wait for
// thousands of options.
package armer

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/abandon"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

const (
	// slice connections are armed at a time, pause apart, some 8,000 a second: their
	// keepalive timers start when they are armed, and thousands that went on in step
	// would overflow the kernel's queues (net.core.netdev_max_backlog, 1,000) each
	// time.
	slice = 120
	pause = 10 * time.Millisecond
	// patience is for how long a process may keep its socket from us. Options are
	// read and set under the socket's lock, which an application holds while it sends:
	// for ever, if what it sends from is a file on a server that is gone.
	patience = 500 * time.Millisecond
	// askPatience is for how long an ask may be kept, and askRoom how many lists of them
	// may wait.
	askPatience = 200 * time.Millisecond
	askRoom     = 16
	// maxBlocked is how many processes may do so at a time, and maxBlockedPerSpace how
	// many of one namespace; beyond, none is armed there.
	maxBlocked         = 64
	maxBlockedPerSpace = 3
)

// ErrStale says that what was decided is not what would be decided now.
var ErrStale = errors.New("the config or the mode has changed meanwhile")

// Job is a connection that is to be armed, or asked.
type Job struct {
	conn   *Conn // whose planner waits for it
	Ask    bool
	Key    verdict.ConnKey
	NS     netns.Namespace
	ID     tcpstate.ID
	Socket keepalive.Socket
	Want   keepalive.Options
	Memory keepalive.Memory
	Config *config.Config // by which it was decided
	Dry    bool           // only read
}

func (c *Conn) job(conf *config.Config, want keepalive.Options, dry bool) *Job {
	return &Job{conn: c, Key: c.Key, NS: *c.NS, ID: c.TCP.ID, Socket: c.Socket(), Want: want, Memory: c.memory, Config: conf, Dry: dry}
}

// AskJob has c asked. Its holder must be known.
func (c *Conn) AskJob(conf *config.Config) *Job {
	return &Job{Ask: true, Key: c.Key, NS: *c.NS, ID: c.TCP.ID, Socket: c.Socket(), Config: conf}
}

// MayAsk says whether c can be asked as it stands, and why not. refusal is why it may not
// be touched now, modes included.
func (c *Conn) MayAsk(refusal policy.Refusal) (may bool, why string) {
	switch {
	case refusal.Refused():
		return false, "asking belongs to arm, and: " + refusal.Why
	case c.Holder.Owner == nil:
		return false, "its process is not known"
	case c.TCP.MPTCP:
		return false, "it is an MPTCP subflow"
	}
	return true, ""
}

// Result is what became of a job. At is when a connection was asked.
type Result struct {
	Job           *Job
	Before, After keepalive.Options
	At            time.Duration
	Err           error
}

// Asked puts what became of an ask into the words of the core.
func (r *Result) Asked() verdict.Asked {
	a := verdict.Asked{Key: r.Job.Key, At: r.At}
	if r.Err != nil && !errors.Is(r.Err, ErrStale) {
		a.Unable = r.Err.Error()
	}
	return a
}

// Config of a Loop. All must be set.
type Config struct {
	Policy func() *policy.Policy
	Log    *slog.Logger
	// Deliver hands results on.
	Deliver func(context.Context, []Result)
}

// Loop is the armer. Make one with New.
type Loop struct {
	Config
	patience time.Duration
	jobs     chan []*Job
	blocked  map[int]verdict.NS // processes that keep one of our goroutines
	free     chan int           // those that have let it go
}

// New returns an armer that has not started.
func New(c Config) *Loop {
	return &Loop{Config: c, patience: patience, jobs: make(chan []*Job, 1), blocked: map[int]verdict.NS{}, free: make(chan int, maxBlocked)}
}

// NewAsker returns a loop for asking that has not started.
func NewAsker(c Config) *Loop {
	a := New(c)
	a.patience, a.jobs = askPatience, make(chan []*Job, askRoom)
	return a
}

// Do takes jobs. It returns false while others are under way.
func (a *Loop) Do(jobs []*Job) bool {
	select {
	case a.jobs <- jobs:
		return true
	default:
		return false
	}
}

// Run sets options until ctx ends.
func (a *Loop) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case jobs := <-a.jobs:
			a.do(ctx, jobs)
		}
	}
}

// do does the jobs, on goroutines that are given up when one of them does not end, and
// tells of those that are done whenever that happens.
func (a *Loop) do(ctx context.Context, jobs []*Job) {
	for len(jobs) > 0 && ctx.Err() == nil {
		select {
		case pid := <-a.free:
			delete(a.blocked, pid)
			continue
		default:
		}
		var results []Result
		for len(jobs) > 0 && a.blocks(jobs[0]) {
			results = append(results, Result{Job: jobs[0], Err: ErrBlocked})
			jobs = jobs[1:]
		}
		n := 0
		for n < len(jobs) && !a.blocks(jobs[n]) {
			n++
		}
		done, some := a.try(ctx, jobs[:n])
		a.Deliver(ctx, append(results, some...))
		jobs = jobs[done:]
	}
}

// blocks says that a job would wait for a socket's lock, as far as that is known.
func (a *Loop) blocks(j *Job) bool {
	if _, ok := a.blocked[j.Socket.PID]; ok || len(a.blocked) >= maxBlocked {
		return true
	}
	n := 0
	for _, ns := range a.blocked {
		if ns == j.Key.NS {
			n++
		}
	}
	return n >= maxBlockedPerSpace
}

// try does jobs up to one that does not return. Its thread may wait for ever; none
// waits for it, and it sets nothing any more.
func (a *Loop) try(ctx context.Context, jobs []*Job) (done int, results []Result) {
	its := make([]Result, len(jobs)) // its own, from where it is given up
	var r *abandon.Run
	var thread *netns.Thread
	r = abandon.New(len(jobs), func(i int) {
		its[i] = a.one(jobs[i], &thread, r.Abandoned)
		if i%slice == slice-1 {
			time.Sleep(pause)
		}
	})
	go func() {
		r.Do()
		if thread != nil {
			thread.Close()
		}
	}()
	at := r.Await(ctx, a.patience)
	if at == len(jobs) || ctx.Err() != nil {
		return at, its[:at]
	}
	j := jobs[at]
	a.blocked[j.Socket.PID] = j.Key.NS
	a.Log.Warn("a process does not let its socket be reached, and is not armed", "pid", j.Socket.PID)
	go func() {
		<-r.Ended()
		a.free <- j.Socket.PID
		a.Deliver(ctx, its[at:at+1]) // whatever came of it in the end
	}()
	return at + 1, append(its[:at:at], Result{Job: j, Err: ErrBlocked})
}

// one does a job, unless what it was decided by has changed, or it is not waited for
// any more. thread is for visits, made when one is needed.
func (a *Loop) one(j *Job, thread **netns.Thread, abandoned func() bool) Result {
	stale := func() bool {
		p := a.Policy()
		mode, _ := p.ModeAt(policy.Arm, j.Socket.Remote)
		return p.Config != j.Config || mode == config.Off || !j.Dry && mode != config.Enforce || abandoned()
	}
	r := Result{Job: j}
	left := false
	try := func(socket keepalive.Socket) {
		if j.Ask {
			if r.Err = keepalive.Ask(socket); r.Err == nil {
				r.At = sys.Monotonic()
			}
			return
		}
		if j.Dry {
			r.Before, r.Err = keepalive.Read(socket)
			r.After = r.Before
			return
		}
		r.Before, r.After, r.Err = keepalive.Set(socket, func(have keepalive.Options) keepalive.Options {
			if left = stale(); left { // reading may have taken long
				return have
			}
			return j.Memory.Plan(have, j.Want)
		})
	}
	if stale() {
		r.Err = ErrStale
		return r
	}
	if try(j.Socket); errors.Is(r.Err, keepalive.ErrPeer) && isConnected(j, thread) {
		// A load balancer in the kernel (Cilium's) has the socket say another peer
		// than it has.
		socket := j.Socket
		socket.Remote = netip.AddrPort{}
		try(socket)
	}
	if left {
		r.Err = ErrStale
	}
	return r
}

// isConnected asks the kernel's table whether the socket with the job's cookie is still
// the connection that is meant.
func isConnected(j *Job, thread **netns.Thread) bool {
	k, err := j.inspect(thread, (*tcpstate.Socket).Peek)
	return err == nil && k.State == tcpstate.Established
}

// inspect looks at the connection of the job in its namespace, on a thread that is made
// when there is none.
func (j *Job) inspect(thread **netns.Thread, get func(*tcpstate.Socket, []tcpstate.ID, []tcpstate.Result) error) (*tcpstate.Connection, error) {
	if *thread == nil {
		t, err := netns.NewThread()
		if err != nil {
			return nil, err
		}
		*thread = t
	}
	var socket tcpstate.Socket
	var out [1]tcpstate.Result
	if err := socket.In(*thread, j.NS, func() error { return get(&socket, []tcpstate.ID{j.ID}, out[:]) }); err != nil {
		return nil, err
	}
	return &out[0].Connection, out[0].Err
}
