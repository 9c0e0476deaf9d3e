package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// starter starts child processes from one thread that lives as long as the lab.
// The kernel sends a child's Pdeathsig when the *thread* that started it ends,
// which for an ordinary goroutine's thread may be any time; for this one it
// means that the lab, or this process by whatever cause, is gone.
type starter struct {
	jobs chan func()
	done chan struct{}
}

func newStarter() *starter {
	s := &starter{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		// The thread is never unlocked, so that it ends with this function.
		_ = onOwnThread(func() error {
			for job := range s.jobs {
				job()
			}
			return errStray
		})
	}()
	return s
}

// start runs cmd.Start inside the namespace. Not to be called after close.
func (s *starter) start(n *namespace, cmd *exec.Cmd) error {
	result := make(chan error)
	s.jobs <- func() { result <- startInside(n, cmd) }
	return <-result
}

func startInside(n *namespace, cmd *exec.Cmd) (err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := setns(n.fd); err != nil {
		return err
	}
	// Staying would keep the namespace alive after its removal.
	defer func() { err = errors.Join(err, goHome(home)) }()
	return cmd.Start()
}

// close ends the thread, and by Pdeathsig whatever child is left.
func (s *starter) close() {
	close(s.jobs)
	<-s.done
}

// Process is a child process in a host's namespace.
type Process struct {
	host *Host
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and its output is read
	err  error         // of cmd.Wait; to be read after done
}

// Start starts cmd in the host's namespace. The process lives until it ends by
// itself, Kill, the host's removal or the lab's Close, and the kernel kills it
// if this process dies; ctx only guards the start. cmd must not be used by the
// caller any more, except for reading what it set there.
func (h *Host) Start(ctx context.Context, cmd *exec.Cmd) (*Process, error) {
	l := h.lab
	fail := func(err error) (*Process, error) {
		return nil, fmt.Errorf("cannot start %s on host %s: %w", cmd.Path, h.Name, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Pdeathsig = unix.SIGKILL
	cmd.SysProcAttr = &attr
	if cmd.WaitDelay == 0 {
		// A grandchild that holds the output open must not hold up Close.
		cmd.WaitDelay = time.Second
	}

	// Held until the process is in the set: Close must not miss it.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.processes == nil {
		return fail(errors.New("the lab is closed"))
	}
	if err := l.starter.start(h.ns, cmd); err != nil {
		return fail(err)
	}
	p := &Process{host: h, cmd: cmd, done: make(chan struct{})}
	l.processes[p] = struct{}{}
	l.workers.Go(func() {
		p.err = cmd.Wait()
		l.mu.Lock()
		delete(l.processes, p)
		l.mu.Unlock()
		close(p.done)
	})
	st, err := readStat(p.Pid())
	if err == nil {
		err = l.journal.add(entry{Process: &processEntry{Pid: p.Pid(), Start: st.start}})
	}
	// It may have ended already, even between opening its stat and reading it (ESRCH).
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		p.kill()
		return fail(err)
	}
	return p, nil
}

// killProcesses ends the processes of a host and waits for them.
func (l *Lab) killProcesses(h *Host) {
	var killed []*Process
	l.mu.Lock()
	for p := range l.processes {
		if p.host == h {
			p.kill()
			killed = append(killed, p)
		}
	}
	l.mu.Unlock()
	for _, p := range killed {
		<-p.done
	}
}

// Pid is the process id in the lab's own pid namespace.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Host is where the process runs.
func (p *Process) Host() *Host { return p.host }

// Done is closed when the process has ended and all its output has been read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns what exec.Cmd.Wait did. It
// may be called any number of times.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Kill ends the process with SIGKILL, frozen or not, and waits for it. Killing
// one that has ended is not an error.
func (p *Process) Kill() error {
	p.kill()
	<-p.done
	return nil
}

// kill does not wait. The signal of os.Process goes through a pidfd where the
// kernel has it, and in any case not to a process already waited for.
func (p *Process) kill() { _ = p.cmd.Process.Kill() }

// Freeze stops the process with SIGSTOP and returns once it stands still: its
// kernel side goes on acknowledging, the process does not answer.
func (p *Process) Freeze() error {
	if err := p.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		return fmt.Errorf("cannot freeze process %d: %w", p.Pid(), err)
	}
	for {
		// WNOWAIT leaves the report in place, for exec.Cmd.Wait and for a
		// second Freeze.
		err := unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot wait for process %d to stand still: %w", p.Pid(), err)
		}
		return nil
	}
}

// Thaw lets a frozen process go on.
func (p *Process) Thaw() error {
	if err := p.cmd.Process.Signal(unix.SIGCONT); err != nil {
		return fmt.Errorf("cannot thaw process %d: %w", p.Pid(), err)
	}
	return nil
}

// Dial connects from inside the host's namespace. addr is a literal ip:port.
// Keepalive is off, as in a client that sets nothing.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		// A name would be resolved by the machine, not by the lab, and dialled
		// from other threads.
		return nil, fmt.Errorf("cannot dial from host %s: %w", h.Name, err)
	}
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = (&net.Dialer{KeepAlive: -1}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen listens inside the host's namespace on a literal ip:port. The sockets
// are plain TCP: by default Go makes listeners MPTCP.
func (h *Host) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("cannot listen on host %s: %w", h.Name, err)
	}
	var ln net.Listener
	err := h.Do(func() (err error) {
		lc := net.ListenConfig{KeepAlive: -1}
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(ctx, network, addr)
		return err
	})
	return ln, err
}
