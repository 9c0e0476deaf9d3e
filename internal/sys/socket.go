package sys

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// SocketCookie returns the kernel's cookie of a socket (SO_COOKIE, Linux 4.12):
// the same number that inet_diag shows, never used twice in one boot.
func SocketCookie(fd int) (uint64, error) {
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
}

// NetNSCookie returns the cookie of the network namespace that the calling
// thread is in (SO_NETNS_COOKIE, Linux 5.14), which unlike the namespace's inode
// number is never used twice in one boot. ok is false where the kernel has none.
func NetNSCookie() (cookie uint64, ok bool, err error) {
	fd, err := Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false, fmt.Errorf("cannot open a socket to read the namespace cookie: %w", err)
	}
	defer Close(fd)
	cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cannot read the namespace cookie: %w", err)
	}
	return cookie, true, nil
}

// ErrOtherSocket says that a descriptor no longer is the socket it was taken
// for: its process closed it and the number was used again.
var ErrOtherSocket = errors.New("the descriptor is another socket by now")

// WithForeignSocket calls fn with a duplicate of a socket of another process: its
// descriptor fd of process pid, only if its cookie is the given one. While the
// duplicate is open the application's close sends no FIN, so fn must not block, and
// the duplicate is closed as soon as it returns.
//
// It needs Linux 5.6 and CAP_SYS_PTRACE. The error is what fn returned, or wraps
// unix.ESRCH where the process has ended, unix.EBADF where it has closed the
// descriptor, ErrOtherSocket where that is something else by now, and unix.EPERM
// where we may not (no CAP_SYS_PTRACE, Yama's scope 3, a seccomp filter).
func WithForeignSocket(pid, fd int, cookie uint64, fn func(fd int) error) error {
	pidfd, err := PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("cannot open pidfd of process %d: %w", pid, err)
	}
	defer Close(pidfd)
	dup, err := PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return fmt.Errorf("cannot duplicate descriptor %d of process %d: %w", fd, pid, err)
	}
	defer Close(dup)
	have, err := SocketCookie(dup)
	if err != nil {
		return fmt.Errorf("cannot read cookie of descriptor %d of process %d: %w", fd, pid, errors.Join(err, ErrOtherSocket))
	}
	if have != cookie {
		return fmt.Errorf("cannot use descriptor %d of process %d: %w", fd, pid, ErrOtherSocket)
	}
	return fn(dup)
}

// HasCapability says whether this process has a capability (unix.CAP_...) in
// effect, in its own user namespace.
func HasCapability(capability int) (bool, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false, fmt.Errorf("cannot read own capabilities: %w", err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0, nil
}

// ThreadCPU is the CPU time that the calling thread has used. Only differences
// taken on one locked thread mean anything.
func ThreadCPU() time.Duration { return clock(unix.CLOCK_THREAD_CPUTIME_ID) }

// ProcessCPU is the CPU time that this process has used.
func ProcessCPU() time.Duration { return clock(unix.CLOCK_PROCESS_CPUTIME_ID) }

// Monotonic is CLOCK_MONOTONIC, which no clock step moves.
func Monotonic() time.Duration { return clock(unix.CLOCK_MONOTONIC) }

// Boottime is CLOCK_BOOTTIME: the time since boot, suspension included.
func Boottime() time.Duration { return clock(unix.CLOCK_BOOTTIME) }

func clock(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		// Cannot fail for the clocks above, which every Linux has.
		return 0
	}
	return time.Duration(ts.Nano())
}
