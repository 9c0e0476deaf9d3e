package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip(8), CNI plugins and redisguard look for named network
// namespaces.
const netnsDir = "/run/netns"

// identity tells one network namespace from every other one. The inode number
// is used again after a namespace is gone, the cookie never is while the
// machine runs.
type identity struct {
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Cookie uint64 `json:"cookie"`
}

// namespace is a network namespace made by this lab. All access goes through
// the descriptor, so that replacing the name cannot lead us elsewhere.
type namespace struct {
	name string
	path string
	id   identity
	fd   *os.File
}

// newNamespace makes a network namespace and gives it a name under netnsDir.
// announce is called with the identity after the namespace exists and before
// its name does: a crash in between leaves nothing, as an unnamed namespace
// ends with its thread.
func newNamespace(name string, announce func(identity) error) (*namespace, error) {
	if err := shareNetnsDir(); err != nil {
		return nil, err
	}
	n := &namespace{name: name, path: filepath.Join(netnsDir, name)}
	err := onOwnThread(func() error {
		return n.make(announce)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make network namespace %s: %w", name, err)
	}
	return n, nil
}

// make runs on a locked thread and leaves it in the namespace it came from.
func (n *namespace) make(announce func(identity) error) (err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	defer func() { err = errors.Join(err, goHome(home)) }()

	n.fd, err = os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			n.fd.Close()
		}
	}()
	if n.id, err = identify(n.fd); err != nil {
		return err
	}
	if err := announce(n.id); err != nil {
		return err
	}
	// O_EXCL: a name that exists belongs to another lab.
	f, err := os.OpenFile(n.path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", n.path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind mount: %w", err), os.Remove(n.path))
	}
	return nil
}

// do runs fn on a locked thread inside the namespace. A socket that fn opens
// stays in the namespace; goroutines that fn starts are not in it.
func (n *namespace) do(fn func() error) error {
	return onOwnThread(func() (err error) {
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("cannot enter network namespace %s: %w", n.name, err)
		}
		defer home.Close()
		if err := setns(n.fd); err != nil {
			return fmt.Errorf("cannot enter network namespace %s: %w", n.name, err)
		}
		defer func() { err = errors.Join(err, goHome(home)) }()
		return fn()
	})
}

// remove takes the name away and lets go of the namespace. The kernel frees it
// when the last process and socket in it are gone.
func (n *namespace) remove() error {
	n.fd.Close()
	return removeName(n.path, n.id)
}

// errForeign says that a name stands for something this lab did not make.
var errForeign = errors.New("it is not of this lab's making")

// removeName unmounts and deletes a name under netnsDir, provided that it stands
// for one of the namespaces ids, or for nothing: an empty file is what a crash
// between creating the file and mounting on it leaves. Otherwise the error is
// errForeign.
func removeName(path string, ids ...identity) error {
	mounted, err := checkName(path, ids)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && mounted {
		err = unix.Unmount(path, unix.MNT_DETACH)
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove network namespace %s: %w", path, err)
	}
	return nil
}

// checkName reports whether a namespace is mounted on path.
func checkName(path string, ids []identity) (mounted bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return false, err
	}
	if fs.Type != unix.NSFS_MAGIC {
		st, err := f.Stat()
		if err == nil && (!st.Mode().IsRegular() || st.Size() > 0) {
			err = errForeign
		}
		return false, err
	}
	id, err := identify(f)
	if err == nil && !slices.Contains(ids, id) {
		err = errForeign
	}
	return true, err
}

// identify reads the identity of the open namespace. The cookie is a property of a
// socket, so one is opened inside for a moment.
func identify(ns *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return identity{}, err
	}
	id := identity{Dev: st.Dev, Ino: st.Ino}
	err := onOwnThread(func() (err error) {
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer home.Close()
		if err := setns(ns); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, goHome(home)) }()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		id.Cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return id, err
}

func setns(ns *os.File) error {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// errStray says that a thread could not leave a lab namespace. onOwnThread then
// keeps the thread locked, and the runtime ends it with its goroutine.
var errStray = errors.New("cannot return to the network namespace the thread came from")

func goHome(home *os.File) error {
	if err := setns(home); err != nil {
		return fmt.Errorf("%w: %w", errStray, err)
	}
	return nil
}

// onOwnThread runs fn on a locked thread that is not the process's main thread:
// /proc/<pid>/ns/net speaks of the main thread, and other code in this process
// (redisguard under test) must not see it wander.
func onOwnThread(fn func() error) error {
	// What stands if fn ends its goroutine, as testing.T.FailNow does.
	err := errors.New("the function ended its goroutine and did not return")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the main thread, the next one cannot get it.
			err = onOwnThread(fn)
			runtime.UnlockOSThread()
			return
		}
		if err = fn(); !errors.Is(err, errStray) {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return err
}

// shareNetnsDir makes netnsDir as ip(8) does: a shared mount, so that a name
// made here is seen, and its removal too, in every mount namespace. A name that
// stays mounted somewhere would keep the namespace alive.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("cannot make %s: %w", netnsDir, err)
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("cannot make %s a shared mount: %w", netnsDir, err)
	}
	return nil
}
