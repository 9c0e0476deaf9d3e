// Package statefile reads, replaces and locks the files that the daemon keeps for its
// successor. They lie in a directory of the daemon's own, but what is found there is
// checked all the same: a root daemon must neither follow a link that somebody has laid
// nor hang on a FIFO nor believe a file that somebody else could write.
package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUntrusted says that a file is not one that can be believed: a link, no regular
// file, somebody else's, writable by others, or too large.
var ErrUntrusted = errors.New("it cannot be trusted")

// Read returns the content of the file at path, of at most limit bytes. The error wraps
// fs.ErrNotExist if there is none, and ErrUntrusted if it is there and cannot be
// believed.
func Read(path string, limit int64) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not hang the daemon.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%w: it is a symbolic link", ErrUntrusted)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular() || st.Mode().Perm()&0o022 != 0 || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()):
		return nil, fmt.Errorf("%w: it is not a file of ours alone", ErrUntrusted)
	case st.Size() > limit:
		return nil, fmt.Errorf("%w: %d bytes are too many", ErrUntrusted, st.Size())
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit { // it has grown since
		err = fmt.Errorf("%w: more than %d bytes are too many", ErrUntrusted, limit)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Replace writes b to the file at path, for its owner alone, and makes its directory if
// that is missing. A reader of the file finds the old content or the new, never a
// part. With durable it waits for the disk, so that this holds over a crash of the
// machine as well: not for loops that must not wait.
func Replace(path string, b []byte, durable bool) error {
	if err := makeDir(path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// O_EXCL follows no link that may have been laid there.
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	if err == nil && durable {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	if !durable {
		return nil
	}
	return dir.Sync()
}

func makeDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of state files: %w", err)
	}
	return nil
}

// ErrLocked says that another process has the lock.
var ErrLocked = errors.New("another redisguard has it")

// lockPoll is the pause between two tries: flock(2) has no timeout of its own.
const lockPoll = 5 * time.Millisecond

// Lock takes the lock of the file at path, which is made if it is missing, and keeps it
// until the returned closer is closed or the process ends. It waits up to within for
// another process, and then fails with ErrLocked. The file stays: to remove it would
// let two processes hold locks of two files of the same name.
func Lock(path string, within time.Duration) (io.Closer, error) {
	if err := makeDir(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock file: %w", err)
	}
	for deadline := time.Now().Add(within); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			err = ErrLocked
		}
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
}

// BootID names the running boot. What a file says of namespaces, cookies and the
// monotonic clock holds within one boot only.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot tell this boot from others: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
