// Package netns finds, identifies and enters network namespaces, and never pins
// one.
//
// A namespace is identified by device and inode of its nsfs file and, where the
// kernel has it (Linux 5.14), by its SO_NETNS_COOKIE: inode numbers are used
// again, cookies are not. Nothing here keeps a descriptor of a namespace beyond
// a call: one open descriptor, or one open socket inside, would keep a deleted
// pod's namespace and the host side of its veth alive.
//
// Entering moves the calling OS thread. [Thread] owns such a thread and makes
// sure that it is back at home after every visit, or never used again.
package netns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/abandon"
	"github.com/redisguard/redisguard/internal/sys"
)

// Key is the device and inode of a namespace's nsfs file, which is what stat(2) of
// /proc/<pid>/ns/net says. It names a namespace while that lives: inode numbers are
// used again.
type Key struct{ Dev, Inode uint64 }

// String gives the inode as `ip netns identify` and /proc show it.
func (k Key) String() string { return "net:[" + strconv.FormatUint(k.Inode, 10) + "]" }

// ID is an identity of which no more than the key is known.
func (k Key) ID() ID { return ID{Dev: k.Dev, Inode: k.Inode} }

// ID identifies a network namespace within one boot.
type ID struct {
	// Dev and Inode are those of the nsfs file.
	Dev, Inode uint64
	// Cookie is SO_NETNS_COOKIE, 0 where the kernel has none.
	Cookie uint64
}

// Key is the identity without the cookie.
func (id ID) Key() Key { return Key{id.Dev, id.Inode} }

// Number names the namespace in one number: by its cookie, or by its inode where the
// kernel has no cookies. Cookies start at 1 and stay far below the range of the inode
// numbers of nsfs, which the kernel allocates from 0xF0000000 on (PROC_DYNAMIC_FIRST
// in fs/proc).
func (id ID) Number() uint64 {
	if id.Cookie != 0 {
		return id.Cookie
	}
	return id.Inode
}

func (id ID) String() string { return id.Key().String() }

// IsZero reports whether id names no namespace.
func (id ID) IsZero() bool { return id == ID{} }

// Namespace is one network namespace and a way in.
type Namespace struct {
	ID ID
	// Name is the name under a directory of bind mounts such as /run/netns,
	// "host" for the host's namespace, or empty.
	Name string
	// Path leads to the nsfs file: below a bind mount directory, or of PID.
	Path string
	// PID is a process in the namespace, 0 if none is known.
	PID int
}

// String names the namespace for people.
func (n Namespace) String() string {
	switch {
	case n.Name != "":
		return n.Name
	case n.PID != 0:
		return n.ID.String() + " (pid " + strconv.Itoa(n.PID) + ")"
	}
	return n.ID.String()
}

// LogValue makes a namespace one word in structured logs.
func (n Namespace) LogValue() slog.Value { return slog.StringValue(n.String()) }

// ErrGone says that a namespace's way in leads nowhere, or to another namespace,
// by now.
var ErrGone = errors.New("the network namespace is gone")

// ErrStranded says that a thread could not be brought back to its own namespace.
var ErrStranded = errors.New("the thread could not return to its own network namespace")

// Thread is an OS thread that may visit network namespaces. It belongs to the
// goroutine that made it with NewThread, and must be closed by it.
type Thread struct {
	home     int // descriptor of its own namespace
	homeKey  Key
	stranded bool
}

// NewThread locks the calling goroutine to its OS thread and remembers the
// namespace that the thread is in.
//
// Never call it on the main goroutine: the runtime cannot end the main thread,
// and /proc/self/ns/net would show its last namespace for ever.
func NewThread() (*Thread, error) {
	runtime.LockOSThread()
	fd, err := sys.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("cannot open own network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		sys.Close(fd)
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("cannot identify own network namespace: %w", err)
	}
	return &Thread{home: fd, homeKey: Key{st.Dev, st.Ino}}, nil
}

// Close lets go of the thread. A stranded one stays locked, so that the runtime
// ends it together with its goroutine.
func (t *Thread) Close() {
	if t.home < 0 {
		return
	}
	sys.Close(t.home)
	t.home = -1
	if !t.stranded {
		runtime.UnlockOSThread()
	}
}

// Visit enters ns, calls fn, and returns. It gives ErrGone when the way in leads
// to no namespace or to another one than ns.ID says. If the thread cannot return
// the error is ErrStranded, whatever fn said, every later visit fails with it,
// and the goroutine should end.
//
// fn must close every descriptor it opens before it returns.
func (t *Thread) Visit(ns Namespace, fn func() error) error {
	if t.stranded {
		return ErrStranded
	}
	if ns.ID.Key() == t.homeKey {
		return fn() // here already, and without CAP_SYS_ADMIN
	}
	if err := t.enter(ns); err != nil {
		return err
	}
	restored := false
	defer func() {
		// When fn panicked: a thread in a foreign namespace must not serve
		// anybody else.
		if !restored {
			t.stranded = unix.Setns(t.home, unix.CLONE_NEWNET) != nil
		}
	}()
	err := fn()
	restored = true
	if uerr := unix.Setns(t.home, unix.CLONE_NEWNET); uerr != nil {
		t.stranded = true
		return fmt.Errorf("%w: %w", ErrStranded, uerr)
	}
	return err
}

func (t *Thread) enter(ns Namespace) error {
	fd, err := open(ns.Path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOTDIR) {
			return ErrGone
		}
		return fmt.Errorf("cannot open network namespace %s: %w", ns, err)
	}
	defer sys.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("cannot identify network namespace %s: %w", ns, err)
	}
	if (Key{st.Dev, st.Ino}) != ns.ID.Key() {
		return ErrGone
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		// EINVAL: not a network namespace, so the path is something else by now.
		if errors.Is(err, unix.EINVAL) {
			return ErrGone
		}
		return fmt.Errorf("cannot enter network namespace %s (needs CAP_SYS_ADMIN): %w", ns, err)
	}
	return nil
}

// patience is for how long a process may keep us from its namespace: less than any caller
// that visits it is waited for.
const patience = 100 * time.Millisecond

// open opens a way in. One that leads through a process is opened by a goroutine that can
// be abandoned: while that process is stuck in execve, so is every thread that asks for its
// namespaces, and cannot be killed (see proc.Stuck). Then another way in is to be found.
func open(path string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC
	if !strings.HasSuffix(path, "/ns/net") {
		return sys.Open(path, flags, 0)
	}
	fd, err := -1, error(nil)
	call := abandon.New(1, func(int) { fd, err = sys.Open(path, flags, 0) })
	go call.Do()
	if call.Await(context.Background(), patience) == 1 {
		return fd, err
	}
	go func() {
		<-call.Ended()
		if err == nil {
			sys.Close(fd)
		}
	}()
	return -1, ErrGone
}

// Do runs fn in ns on a thread of its own, and waits for it. It is for single
// visits; a loop keeps a Thread.
func Do(ns Namespace, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		t, err := NewThread()
		if err != nil {
			done <- err
			return
		}
		defer t.Close()
		done <- t.Visit(ns, fn)
	}()
	return <-done
}

// cookie visits ns to read its cookie, 0 where the kernel has none.
func (t *Thread) cookie(ns Namespace) (uint64, error) {
	var c uint64
	err := t.Visit(ns, func() (err error) {
		c, _, err = sys.NetNSCookie()
		return err
	})
	return c, err
}
