// Package keepalive reads, sets and verifies the TCP options by which the kernel
// itself finds out that a peer is gone, on sockets of other processes.
//
// An idle connection notices nothing of a peer that vanished, until keepalive asks.
// The kernel asks only where the application turned it on, and then by default
// after two hours (net.ipv4.tcp_keepalive_time). Set on the socket, it asks as soon
// as we say, and goes on doing so when we are gone. Ask has one question sent now,
// whatever the options of the socket are.
//
// A socket is reached through pidfd_getfd (Linux 5.6, CAP_SYS_PTRACE), and its
// cookie is compared before anything is set, so neither a pid nor a descriptor that
// was used again can be hit.
package keepalive

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// Options are the options of a socket. The kernel counts Idle and Interval in
// seconds, the other times in milliseconds.
type Options struct {
	// Keepalive is SO_KEEPALIVE: without it the next three mean nothing.
	Keepalive bool
	// Idle is TCP_KEEPIDLE: how long nothing was received before the first probe,
	// 1 s to 32767 s. Interval is TCP_KEEPINTVL, the time between two probes, of
	// the same range; Count is TCP_KEEPCNT, how many in a row must be unanswered
	// for the kernel to end the connection, 1 to 127 (MAX_TCP_KEEP* in
	// include/net/tcp.h).
	Idle, Interval time.Duration
	Count          int
	// UserTimeout is TCP_USER_TIMEOUT: how long data may be unacknowledged, or a
	// window closed. 0 is unset. Where it is set, the kernel ignores Count and
	// tcp_retries2: it ends an idle connection at the first unanswered probe after
	// that time (tcp_keepalive_timer in net/ipv4/tcp_timer.c), and the connection
	// to a *living* peer that keeps its window closed for so long (Redis in a long
	// script while a client pipelines).
	UserTimeout time.Duration
	// RTOMax is TCP_RTO_MAX_MS (Linux 6.15), the longest pause between two
	// retransmissions, 1 s to 120 s, which is the kernel's own. 0 is a kernel that
	// does not have it.
	RTOMax time.Duration
}

const (
	// tcpRTOMaxMs is TCP_RTO_MAX_MS of include/uapi/linux/tcp.h.
	tcpRTOMaxMs = 44
	// rtoMaxDefault is TCP_RTO_MAX of include/net/tcp.h.
	rtoMaxDefault = 120 * time.Second
)

// String says what the options mean: after how long a silent peer is noticed.
func (o Options) String() string {
	var parts []string
	if o.Keepalive {
		parts = append(parts, fmt.Sprintf("keepalive %v + %d x %v: an idle connection ends after %v", o.Idle, o.probes(), o.Interval, o.Ends()))
	} else {
		parts = append(parts, "no keepalive: an idle connection never ends")
	}
	if o.UserTimeout > 0 {
		parts = append(parts, fmt.Sprintf("user timeout %v", o.UserTimeout))
	}
	if o.RTOMax > 0 && o.RTOMax < rtoMaxDefault {
		parts = append(parts, fmt.Sprintf("retransmissions at most %v apart", o.RTOMax))
	}
	return strings.Join(parts, ", ")
}

// Ends is after how long an idle connection with these options is ended whose peer
// is gone, 0 for never.
func (o Options) Ends() time.Duration {
	if !o.Keepalive {
		return 0
	}
	return o.Idle + time.Duration(o.probes())*o.Interval
}

// probes is how many unanswered probes end an idle connection.
func (o Options) probes() int {
	if o.UserTimeout == 0 {
		return o.Count
	}
	// One at least, and as many as it takes to reach the user timeout.
	return max(1, int((o.UserTimeout-o.Idle+o.Interval-1)/max(1, o.Interval)))
}

// Plan is what a socket with the options have is to get, so that it notices a
// silent peer at least as soon as want says. Keepalive that the application turned
// on itself, and that notices as soon, is left; the three values are judged and set
// together, since a mixture (the application's idle time and our count) would be
// stricter than either. Options that want does not set (UserTimeout and RTOMax of 0)
// are left as well.
func Plan(have, want Options) Options {
	plan := have
	if want.UserTimeout > 0 && (have.UserTimeout == 0 || have.UserTimeout > want.UserTimeout) {
		plan.UserTimeout = want.UserTimeout
	}
	if want.RTOMax > 0 && have.RTOMax > want.RTOMax { // 0: the kernel has none
		plan.RTOMax = want.RTOMax
	}
	if want.Keepalive && !plan.Fragile(want) && (!have.Keepalive || have.Ends() > want.Ends()) {
		plan.SetTimes(want)
	}
	return plan
}

// Fragile says that keepalive of these times would make a connection end at the
// first unanswered probes, since its user timeout is shorter than they take.
func (o Options) Fragile(times Options) bool {
	return o.UserTimeout > 0 && o.UserTimeout < times.Idle+time.Duration(times.Count)*times.Interval
}

// SetTimes takes over SO_KEEPALIVE and its three values.
func (o *Options) SetTimes(from Options) {
	o.Keepalive, o.Idle, o.Interval, o.Count = from.Keepalive, from.Idle, from.Interval, from.Count
}

// SameTimes says whether both have keepalive on, with the same values, or off.
func (o Options) SameTimes(as Options) bool {
	if !o.Keepalive || !as.Keepalive {
		return o.Keepalive == as.Keepalive
	}
	return o.Idle == as.Idle && o.Interval == as.Interval && o.Count == as.Count
}

// Socket names a connected TCP socket of another process. A socket keeps its cookie
// when its application disconnects it and connects it elsewhere, or listens on it:
// hence Remote. Where that is left out, no peer is compared.
type Socket struct {
	PID, FD int
	Cookie  uint64
	Remote  netip.AddrPort
}

// The errors after which a caller goes another way.
var (
	// ErrGone: the process has ended, or has closed the descriptor.
	ErrGone = errors.New("the socket is gone")
	// ErrOther: the descriptor is another socket by now, or has another peer.
	ErrOther = sys.ErrOtherSocket
	// ErrPeer is an ErrOther: the socket says that it has another peer, or none. It may
	// say so because of a load balancer in the kernel, which answers getpeername with
	// the address of a service (BPF_CGROUP_INET4_GETPEERNAME), while sock_diag has that
	// of the backend. A caller that knows better leaves Remote out.
	ErrPeer = fmt.Errorf("%w: it has another peer", sys.ErrOtherSocket)
	// ErrNotPermitted: CAP_SYS_PTRACE is missing, or Yama's scope is 3, or a
	// seccomp filter is in the way.
	ErrNotPermitted = errors.New("not permitted")
	// ErrNotSupported: the kernel has no pidfd_getfd, or what is asked for not for such a
	// socket (MPTCP).
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrNotTaken: the kernel said yes and kept another value.
	ErrNotTaken = errors.New("the kernel did not take the options")
)

// Obstacle says, as far as it can be told, what stands in the way of an
// ErrNotPermitted or ErrNotSupported, for people.
func Obstacle() string {
	if may, err := sys.HasCapability(unix.CAP_SYS_PTRACE); err == nil && !may {
		return "CAP_SYS_PTRACE is missing"
	}
	if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(scope)) == "3" {
		return "kernel.yama.ptrace_scope is 3, and nobody may take other processes' descriptors"
	}
	return "pidfd_getfd is forbidden by a seccomp filter or a security module, or the kernel is older than 5.6"
}

// Read returns the options of a socket.
func Read(s Socket) (o Options, err error) {
	err = s.with(func(fd int) (err error) {
		o, err = read(fd)
		return err
	})
	return o, err
}

// Set gives a socket what plan makes of the options that it has, and reads them back.
// It returns what there was and what there is.
func Set(s Socket, plan func(have Options) Options) (before, after Options, err error) {
	err = s.with(func(fd int) (err error) {
		if before, err = read(fd); err != nil {
			return err
		}
		want := plan(before)
		after = before
		if want == before {
			return nil
		}
		if err = write(fd, before, want); err != nil {
			return err
		}
		if after, err = read(fd); err == nil && after != want {
			err = fmt.Errorf("%w: asked for %v, has %v", ErrNotTaken, want, after)
		}
		return err
	})
	return before, after, err
}

// Shutdown shuts down both directions of a connection, also of one that is not there
// yet: the way to end it where the kernel lacks SOCK_DESTROY. The application then
// reads end of file instead of ECONNABORTED.
func Shutdown(s Socket) error {
	return s.duplicate(func(fd int) error {
		if err := s.connected(fd); err != nil {
			if info, ierr := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); ierr != nil || info.State != synSent {
				return err
			}
		}
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
			return fmt.Errorf("cannot shut down descriptor %d of process %d: %w", s.FD, s.PID, err)
		}
		return nil
	})
}

// synSent is TCP_SYN_SENT of include/net/tcp_states.h, in which a socket has no peer
// yet for getpeername.
const synSent = 2

// with runs fn on a duplicate of the socket, if it is the connection that is meant.
func (s Socket) with(fn func(fd int) error) error {
	return s.duplicate(func(fd int) error {
		if err := s.connected(fd); err != nil {
			return err
		}
		return fn(fd)
	})
}

// duplicate runs fn on a duplicate of the socket, see sys.WithForeignSocket.
func (s Socket) duplicate(fn func(fd int) error) error {
	err := sys.WithForeignSocket(s.PID, s.FD, s.Cookie, fn)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EBADF):
		return fmt.Errorf("%w: %w", ErrGone, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}

// connected says why the socket is not the connection that is meant.
func (s Socket) connected(fd int) error {
	if !s.Remote.IsValid() {
		return nil
	}
	name, err := unix.Getpeername(fd)
	if err != nil {
		return fmt.Errorf("%w, or none: %w", ErrPeer, err)
	}
	var peer netip.AddrPort
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		peer = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		peer = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	if want := netip.AddrPortFrom(s.Remote.Addr().Unmap().WithZone(""), s.Remote.Port()); peer != want {
		return fmt.Errorf("%w: %v, not %v", ErrPeer, peer, want)
	}
	return nil
}

func read(fd int) (o Options, err error) {
	get := func(level, opt int) int {
		if err != nil {
			return 0
		}
		var v int
		if v, err = unix.GetsockoptInt(fd, level, opt); err != nil {
			err = fmt.Errorf("cannot read option %d of level %d: %w", opt, level, err)
		}
		return v
	}
	if get(unix.SOL_SOCKET, unix.SO_PROTOCOL) != unix.IPPROTO_TCP && err == nil {
		return o, fmt.Errorf("%w: no TCP socket", ErrOther)
	}
	o.Keepalive = get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0
	o.Idle = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)) * time.Second
	o.Interval = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)) * time.Second
	o.Count = get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
	o.UserTimeout = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)) * time.Millisecond
	if err != nil {
		return o, err
	}
	ms, rerr := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, tcpRTOMaxMs)
	switch {
	case rerr == nil:
		o.RTOMax = time.Duration(ms) * time.Millisecond
	case !errors.Is(rerr, unix.ENOPROTOOPT): // Linux before 6.15
		return o, fmt.Errorf("cannot read TCP_RTO_MAX_MS: %w", rerr)
	}
	return o, nil
}

// write sets what differs, and the times together, also those that are there
// already: they may be those of the namespace, which a socket without values of its
// own follows. SO_KEEPALIVE comes last: it starts the timer, by the values that are
// there.
func write(fd int, have, want Options) error {
	set := func(differs bool, name string, level, opt, v int) error {
		if !differs {
			return nil
		}
		if err := unix.SetsockoptInt(fd, level, opt, v); err != nil {
			return fmt.Errorf("cannot set %s to %d: %w", name, v, err)
		}
		return nil
	}
	on := 0
	if want.Keepalive {
		on = 1
	}
	times := want.Keepalive && !have.SameTimes(want)
	return errors.Join(
		set(times, "TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(want.Idle/time.Second)),
		set(times, "TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(want.Interval/time.Second)),
		set(times, "TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, want.Count),
		set(have.UserTimeout != want.UserTimeout, "TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(want.UserTimeout/time.Millisecond)),
		set(have.RTOMax != want.RTOMax, "TCP_RTO_MAX_MS", unix.IPPROTO_TCP, tcpRTOMaxMs, int(want.RTOMax/time.Millisecond)),
		set(have.Keepalive != want.Keepalive, "SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, on),
	)
}
