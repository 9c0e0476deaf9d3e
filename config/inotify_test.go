package config

import (
	"testing"

	"golang.org/x/sys/unix"
)

// exhaustInotify takes every inotify instance this user may have.
func exhaustInotify(t *testing.T) []int {
	t.Helper()
	var taken []int
	for range 100_000 {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return taken
		}
		taken = append(taken, fd)
	}
	t.Error("there is no end to inotify instances here")
	return taken
}

func closeDescriptor(fd int) { _ = unix.Close(fd) }
