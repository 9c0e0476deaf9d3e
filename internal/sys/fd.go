package sys

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The functions of this file make descriptors and close them, as those of the same
// names in package unix do. Everything outside goes through them (a test of
// internal/arch sees to it), so that a test binary can say where a descriptor was made
// that is still open at its end. In the daemon that costs the load of one flag.

// Open is open(2).
func Open(path string, flags int, perm uint32) (fd int, err error) {
	return made(unix.Open(path, flags, perm))
}

// Openat is openat(2).
func Openat(dir int, path string, flags int, perm uint32) (fd int, err error) {
	return made(unix.Openat(dir, path, flags, perm))
}

// Socket is socket(2).
func Socket(domain, typ, proto int) (fd int, err error) {
	return made(unix.Socket(domain, typ, proto))
}

// Dup duplicates a descriptor, with FD_CLOEXEC, to the lowest free number from 3 on.
func Dup(fd int) (int, error) {
	return made(unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3))
}

// PidfdOpen is pidfd_open(2), Linux 5.3.
func PidfdOpen(pid, flags int) (fd int, err error) { return made(unix.PidfdOpen(pid, flags)) }

// PidfdGetfd is pidfd_getfd(2), Linux 5.6.
func PidfdGetfd(pidfd, target, flags int) (fd int, err error) {
	return made(unix.PidfdGetfd(pidfd, target, flags))
}

// PeerPidfd is a pidfd of the process that connected a Unix socket (SO_PEERPIDFD, Linux
// 6.5; before it unix.ENOPROTOOPT).
func PeerPidfd(socket int) (fd int, err error) {
	return made(unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD))
}

// SocketNetNS is a descriptor of the network namespace of a socket (SIOCGSKNS, Linux
// 4.9). It needs CAP_NET_ADMIN there.
func SocketNetNS(socket int) (fd int, err error) {
	return made(unix.IoctlRetInt(socket, unix.SIOCGSKNS))
}

// EpollCreate is epoll_create1(2).
func EpollCreate(flags int) (fd int, err error) { return made(unix.EpollCreate1(flags)) }

// Eventfd is eventfd(2).
func Eventfd(value uint, flags int) (fd int, err error) { return made(unix.Eventfd(value, flags)) }

// InotifyInit is inotify_init1(2).
func InotifyInit(flags int) (fd int, err error) { return made(unix.InotifyInit1(flags)) }

// Close is close(2).
func Close(fd int) error {
	if tracing.Load() {
		// Before the number is free: another thread may be given it at once.
		origins.Lock()
		delete(origins.of, fd)
		origins.Unlock()
	}
	return unix.Close(fd)
}

var (
	tracing atomic.Bool
	origins struct {
		sync.Mutex
		of map[int]origin
	}
)

// origin is where a descriptor was made. Its device and inode tell whether the
// number still is what was made: an os.File that is closed does not say so here.
type origin struct {
	dev, ino uint64
	pcs      [12]uintptr // innermost first, 0 at the end
}

// TraceDescriptors has the makers of descriptors remembered from now on. It is for
// test binaries: each descriptor costs a microsecond or two from then on.
func TraceDescriptors() {
	origins.Lock()
	defer origins.Unlock()
	if origins.of == nil {
		origins.of = map[int]origin{}
	}
	tracing.Store(true)
}

// made takes down who made fd, if a test asked for it.
func made(fd int, err error) (int, error) {
	if err == nil && tracing.Load() {
		remember(fd)
	}
	return fd, err
}

func remember(fd int) {
	var o origin
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	o.dev, o.ino = st.Dev, st.Ino
	runtime.Callers(3, o.pcs[:]) // from the caller of made on
	origins.Lock()
	defer origins.Unlock()
	origins.of[fd] = o
}

// Descriptor is an open descriptor of this process.
type Descriptor struct {
	FD int
	// What is "socket:[1234]", "/proc/1/fd" and the like.
	What string
	// Stack is the one that made it, innermost call first, with a line feed after
	// each line; "" if it was not made here, or is not traced.
	Stack string
}

// OpenDescriptors lists the descriptors of this process, but for the one that it
// needs itself.
func OpenDescriptors() ([]Descriptor, error) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("cannot list descriptors: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("cannot list descriptors: %w", err)
	}
	var list []Descriptor
	for _, name := range names {
		var fd int
		if _, err := fmt.Sscan(name, &fd); err != nil || fd == int(dir.Fd()) {
			continue
		}
		what, err := os.Readlink("/proc/self/fd/" + name)
		if err != nil {
			continue // closed since
		}
		list = append(list, Descriptor{FD: fd, What: what, Stack: stack(fd)})
	}
	return list, nil
}

// stack is the stack that made fd.
func stack(fd int) string {
	origins.Lock()
	o, ok := origins.of[fd]
	origins.Unlock()
	var st unix.Stat_t
	if !ok || unix.Fstat(fd, &st) != nil || st.Dev != o.dev || st.Ino != o.ino {
		return ""
	}
	n := 0
	for n < len(o.pcs) && o.pcs[n] != 0 {
		n++
	}
	var text string
	for frames := runtime.CallersFrames(o.pcs[:n]); ; {
		f, more := frames.Next()
		text += fmt.Sprintf("%s\n\t%s:%d\n", f.Function, f.File, f.Line)
		if !more {
			return text
		}
	}
}
