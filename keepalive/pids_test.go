package keepalive

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
)

// pidsEnv has TestNoOtherProcessIsSet do its work, as process 1 of a pid namespace
// of its own, in which it may say which pid comes next.
const pidsEnv = "REDISGUARD_TEST_PIDS"

// Pids change hands as fast as they can, while options are set on sockets by what
// they once were called: no other ever gets them.
func TestNoOtherProcessIsSet(t *testing.T) {
	if os.Getenv(pidsEnv) != "" {
		reusePids(t)
		return
	}
	t.Parallel()
	self, err := os.Executable()
	labtest.Must(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestNoOtherProcessIsSet$", "-test.v")
	cmd.Env = append(os.Environ(), pidsEnv+"=1")
	// All that is in the namespace ends with its process 1.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	t.Logf("inside:\n%s", out)
	labtest.Must(t, err)
}

// generation is a process that holds a connection. All have the same pid, one after
// the other, and each its connection at the same number.
type generation struct {
	Socket
	// idle is set on its connection, by its name, and on no other's.
	idle  time.Duration
	fresh Options // before anything is set
	// fd is a duplicate of the connection: it shows what was set up to the end of
	// the process, and after it.
	fd   int
	peer *net.TCPConn
}

// setter sets options, without a pause, on whom it is pointed at.
type setter struct {
	target             atomic.Pointer[generation]
	tries              atomic.Int64
	set, refused, gone atomic.Int64
}

func (s *setter) run(t *testing.T, stop *atomic.Bool) {
	for ; !stop.Load(); s.tries.Add(1) {
		runtime.Gosched() // there may be more of us than CPUs
		g := s.target.Load()
		if g == nil {
			continue
		}
		_, _, err := Set(g.Socket, func(have Options) Options {
			o := Plan(have, want)
			o.Idle = g.idle
			return o
		})
		switch {
		case err == nil:
			s.set.Add(1)
		case errors.Is(err, ErrOther):
			s.refused.Add(1)
		case errors.Is(err, ErrGone):
			s.gone.Add(1)
		default:
			t.Error(err)
			stop.Store(true)
		}
	}
}

// tried returns when each setter has tried once more, from beginning to end.
func tried(stop *atomic.Bool, setters ...*setter) {
	for _, s := range setters {
		// One try may be under way already.
		for n := s.tries.Load() + 2; s.tries.Load() < n && !stop.Load(); {
			runtime.Gosched()
		}
	}
}

// reusePids lets one process follow the other at the same pid. One setter goes on to
// name the first of them, the other names the one that lives, and so, at each
// change, the one that did.
func reusePids(t *testing.T) {
	lastPid, err := os.OpenFile("/proc/sys/kernel/ns_last_pid", os.O_WRONLY, 0)
	labtest.Must(t, err)
	defer lastPid.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	labtest.Must(t, err)
	defer null.Close()
	sleep, err := exec.LookPath("sleep")
	labtest.Must(t, err)
	l := listen(t)

	// start makes the next generation, if it can at the given pid.
	start := func(g *generation, pid int) {
		t.Helper()
		_, err := lastPid.WriteAt([]byte(strconv.Itoa(pid-1)), 0)
		labtest.Must(t, err)
		// ForkExec and nothing else: a thread of ours that began now would take
		// the pid.
		g.PID, err = syscall.ForkExec(sleep, []string{"sleep", "60"}, &syscall.ProcAttr{
			Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(g.fd)},
		})
		labtest.Must(t, err)
		g.FD = 3
	}
	end := func(g *generation) {
		t.Helper()
		labtest.Must(t, unix.Kill(g.PID, unix.SIGKILL))
		_, err := unix.Wait4(g.PID, nil, 0, nil)
		labtest.Must(t, err)
	}
	connect := func(i int) *generation {
		t.Helper()
		s, peer := dial(t, l)
		// Nothing is left of it afterwards, not even TIME_WAIT.
		labtest.Must(t, peer.SetLinger(0))
		fresh, err := read(s.FD)
		labtest.Must(t, err)
		// At most 32767 s; whoever has the same is long gone.
		return &generation{Socket: s, fd: s.FD, peer: peer, idle: time.Duration(10+i%30_000) * time.Second, fresh: fresh}
	}
	options := func(g *generation) Options {
		t.Helper()
		o, err := read(g.fd)
		labtest.Must(t, err)
		return o
	}

	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	var first, living setter
	for _, s := range []*setter{&first, &living} {
		wg.Go(func() { s.run(t, &stop) })
	}
	reused := 0
	g := connect(0)
	start(g, 1000)
	first.target.Store(g)
	for i, until := 1, time.Now().Add(10*time.Second); time.Now().Before(until) && !stop.Load(); i++ {
		living.target.Store(g)
		tried(&stop, &first, &living) // while it lives
		next := connect(i)
		end(g)
		start(next, g.PID)
		tried(&stop, &first, &living) // while another one does
		if stop.Load() {
			break
		}
		if o := options(g); !o.Keepalive || o.Idle != g.idle {
			t.Fatalf("process %d of this pid has %+v, was given an idle time of %v", i, o, g.idle)
		}
		if o := options(next); o != next.fresh {
			t.Fatalf("process %d of this pid has %+v, and nobody has named it", i+1, o)
		}
		if next.PID == g.PID {
			reused++
		} else {
			first.target.Store(next) // a thread of ours was faster: on with another pid
		}
		g.peer.Close()
		labtest.Must(t, unix.Close(g.fd))
		g = next
	}
	end(g)
	stop.Store(true)
	wg.Wait()
	g.peer.Close()
	labtest.Must(t, unix.Close(g.fd))
	t.Logf("the pid was used again %d times; named by the first: set %d, refused %d, gone %d; by the one before: set %d, refused %d, gone %d", reused,
		first.set.Load(), first.refused.Load(), first.gone.Load(), living.set.Load(), living.refused.Load(), living.gone.Load())
	for _, s := range []*setter{&first, &living} {
		if s.set.Load() < 1 || s.refused.Load() < 200 {
			t.Errorf("set %d times, refused %d times: too few to say anything", s.set.Load(), s.refused.Load())
		}
	}
	if reused < 200 {
		t.Errorf("the pid was used again %d times only", reused)
	}
}
