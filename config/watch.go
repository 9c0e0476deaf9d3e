package config

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// How Watch looks. inotify says at once that something happened; the poll is
// there for what inotify cannot see (network file systems, a link in the middle
// of the path that is turned elsewhere), and is quick only while inotify cannot
// look at all, because the directory or the means are missing.
const (
	slowPoll = 2 * time.Second
	fastPoll = 250 * time.Millisecond
	// settle is how long a file must keep still before it is believed: somebody
	// may write it in place, and its first half may be a valid config.
	settle    = 50 * time.Millisecond
	maxSettle = 10 // times settle; then it is read as it is
)

// Watch follows the config file at path until ctx ends, and returns then. It
// calls changed for the file as it is found at the start, and again each time
// that the outcome changes: with a new valid Config and nil, or with the zero
// Config and the reason why the file cannot be used (a file that is missing is
// such a reason). The same text is not reported twice in a row. Calls come one
// after the other, from Watch's own goroutine; a slow one delays the next.
//
// Files that are replaced by a rename, and a ConfigMap's mounted directory with
// its turning ..data link, are followed; so is a directory that goes away and
// comes back.
func Watch(ctx context.Context, path string, changed func(Config, error)) {
	n := newNotifier()
	defer n.close()

	var known []byte   // text last reported
	var trouble string // reading error last reported
	first := true
	for {
		// Watches before the look: what changes after it is then noticed.
		complete := n.cover(path)
		data, err := readSettled(ctx, path)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			if first || err.Error() != trouble {
				changed(Config{}, err)
			}
			known, trouble, first = nil, err.Error(), false
		case first || trouble != "" || !bytes.Equal(data, known):
			known, trouble, first = data, "", false
			changed(Parse(path, data))
		}

		pause := slowPoll
		if !complete {
			pause = fastPoll
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-n.happened:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// readSettled reads the file until two reads, settle apart, agree. At once when
// there is nothing to read.
func readSettled(ctx context.Context, path string) ([]byte, error) {
	last, err := read(path)
	for range maxSettle {
		if err != nil {
			// Editors move the old file away before they write the new one.
			if !sleep(ctx, settle) {
				return nil, ctx.Err()
			}
			return read(path)
		}
		if !sleep(ctx, settle) {
			return nil, ctx.Err()
		}
		var again []byte
		again, err = read(path)
		if err == nil && bytes.Equal(again, last) {
			break
		}
		last = again
	}
	return last, err
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// A notifier says that something happened in the directories of a file. What
// it was is not looked at: the caller reads the file anyway.
type notifier struct {
	file     *os.File       // the inotify descriptor; nil where there is none
	watches  map[string]int // directory to watch descriptor
	happened chan struct{}  // holds at most one; never closed
	reader   sync.WaitGroup
}

func newNotifier() *notifier {
	n := &notifier{watches: map[string]int{}, happened: make(chan struct{}, 1)}
	fd, err := sys.InotifyInit(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return n // too many users of inotify: polling does
	}
	n.file = os.NewFile(uintptr(fd), "inotify")
	n.reader.Go(func() {
		buf := make([]byte, 16<<10)
		for {
			if _, err := n.file.Read(buf); err != nil {
				return // closed
			}
			select {
			case n.happened <- struct{}{}:
			default:
			}
		}
	})
	return n
}

func (n *notifier) close() {
	if n.file == nil {
		return
	}
	n.file.Close()
	n.reader.Wait()
}

// cover watches the directory of path and, if path is a link, the one it leads
// to. It is asked again before every look, since a directory may have been
// replaced by another of its name; for an unchanged one that costs a system
// call and yields the same watch. It reports whether all could be watched.
func (n *notifier) cover(path string) bool {
	if n.file == nil {
		return false
	}
	dirs := []string{filepath.Dir(path)}
	if real, err := filepath.EvalSymlinks(path); err == nil && filepath.Dir(real) != dirs[0] {
		dirs = append(dirs, filepath.Dir(real))
	}
	// Not IN_MODIFY: a writer in the middle of its work is no news.
	const mask = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ATTRIB | unix.IN_ONLYDIR
	complete := true
	now := make(map[string]int, len(dirs))
	conn, err := n.file.SyscallConn()
	if err != nil {
		return false
	}
	err = conn.Control(func(fd uintptr) {
		for _, dir := range dirs {
			if wd, err := unix.InotifyAddWatch(int(fd), dir, mask); err == nil {
				now[dir] = wd
			} else {
				complete = false
			}
		}
		for _, wd := range n.watches {
			if !contains(now, wd) {
				// Fails where the directory is gone and its watch with it.
				_, _ = unix.InotifyRmWatch(int(fd), uint32(wd))
			}
		}
	})
	n.watches = now
	return complete && err == nil
}

func contains(watches map[string]int, wd int) bool {
	for _, w := range watches {
		if w == wd {
			return true
		}
	}
	return false
}
