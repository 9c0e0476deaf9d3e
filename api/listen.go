package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// ErrInUse says that a living daemon serves the socket.
var ErrInUse = errors.New("another redisguard serves this socket")

// site is where a socket is to be, and for whom.
type site struct {
	path    string
	lock    string      // the file whose lock says that a daemon serves it
	mode    fs.FileMode // of the socket
	dirMode fs.FileMode // of its directory, if it has to be made
	group   int         // negative: leave it
}

func place(path string, admin bool, group int) site {
	switch {
	case !admin:
		// Every user may connect; what a peer may see is decided per peer.
		return site{path: path, lock: path + ".lock", mode: 0o666, dirMode: 0o755, group: -1}
	case group >= 0:
		return site{path: path, lock: path + ".lock", mode: 0o660, dirMode: 0o750, group: group}
	default:
		return site{path: path, lock: path + ".lock", mode: 0o600, dirMode: 0o700, group: -1}
	}
}

// bind listens at a path. A socket that a dead daemon has left is replaced, a
// living one's is not; ours says whether one may be that of a daemon. Mode and group
// are right from the first instant at which a peer can connect: the socket is made
// under another name and moved.
func bind(at site, ours func(*net.UnixConn) bool) (*net.UnixListener, func(), error) {
	l, release, err := tryBind(at, ours)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot listen at %s: %w", at.path, err)
	}
	return l, release, nil
}

func tryBind(at site, ours func(*net.UnixConn) bool) (*net.UnixListener, func(), error) {
	dir := filepath.Dir(at.path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return nil, nil, err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, nil, err
		}
		if at.group >= 0 {
			if err := os.Chown(dir, -1, at.group); err != nil {
				return nil, nil, err
			}
		}
		if err := os.Chmod(dir, at.dirMode); err != nil {
			return nil, nil, err
		}
	}
	// The lock tells the living from the dead beyond doubt, and keeps two that
	// start at once apart. Its file stays: to remove it would open a race.
	lock, err := os.OpenFile(at.lock, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	ok := false
	defer func() {
		if !ok {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, ErrInUse
		}
		return nil, nil, err
	}
	switch st, err := os.Lstat(at.path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, nil, fmt.Errorf("there is something that is no socket (%v)", st.Mode().Type())
	default:
		// A program that takes no locks may serve it.
		if c, err := net.DialTimeout("unix", at.path, time.Second); err == nil {
			living := ours(c.(*net.UnixConn))
			c.Close()
			if living {
				return nil, nil, ErrInUse
			}
		}
	}
	temporary := fmt.Sprintf("%s.%d", at.path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// The kernel gives the file the mode of the unbound socket.
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	nl, err := config.Listen(context.Background(), "unix", temporary)
	if err != nil {
		return nil, nil, err
	}
	l := nl.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	defer func() {
		if !ok {
			l.Close()
			os.Remove(temporary)
		}
	}()
	if at.group >= 0 {
		if err := os.Chown(temporary, -1, at.group); err != nil {
			return nil, nil, err
		}
	}
	if err := os.Chmod(temporary, at.mode); err != nil {
		return nil, nil, err
	}
	mine, err := os.Lstat(temporary)
	if err != nil {
		return nil, nil, err
	}
	if err := os.Rename(temporary, at.path); err != nil {
		return nil, nil, err
	}
	ok = true
	return l, func() {
		// Only what is still ours, and while the lock is.
		if st, err := os.Lstat(at.path); err == nil && os.SameFile(st, mine) {
			os.Remove(at.path)
		}
		lock.Close()
	}, nil
}

// activated are the sockets that the service manager has passed on, by name.
func activated() (map[string]*net.UnixListener, error) {
	found := map[string]*net.UnixListener{}
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("cannot use socket %s of the service manager: %w", f.Name(), err)
		}
		u, ok := l.(*net.UnixListener)
		if !ok {
			l.Close()
			return nil, fmt.Errorf("cannot use socket %s of the service manager: it is no Unix stream socket", f.Name())
		}
		u.SetUnlinkOnClose(false) // it is the service manager's
		found[f.Name()] = u
	}
	return found, nil
}

func readOnly(err error) bool { return errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOTDIR) }
