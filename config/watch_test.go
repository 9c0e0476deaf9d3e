package config

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/redisguard/redisguard/lab/labtest"
)

type outcome struct {
	config Config
	err    error
}

// watch runs Watch until the test ends, which must leave nothing behind.
func watch(t *testing.T, path string) <-chan outcome {
	t.Helper()
	before := goleak.IgnoreCurrent()
	descriptors := openDescriptors(t)
	ctx, cancel := context.WithCancel(context.Background())
	outcomes, done := make(chan outcome, 100), make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, path, func(c Config, err error) { outcomes <- outcome{c, err} })
	}()
	t.Cleanup(func() {
		cancel()
		start := time.Now()
		<-done
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("Watch took %v to end", took)
		}
		goleak.VerifyNone(t, before)
		if now := openDescriptors(t); now != descriptors {
			t.Errorf("%d descriptors before, %d after", descriptors, now)
		}
	})
	return outcomes
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		// The runtime's own (epoll, eventfd) come at first use and stay.
		if l, _ := os.Readlink("/proc/self/fd/" + e.Name()); l == "anon_inode:inotify" || strings.HasPrefix(l, "/tmp") {
			n++
		}
	}
	return n
}

// next waits for the next outcome and checks it: a port, or words of the error.
func next(t *testing.T, outcomes <-chan outcome, port uint16, problem string) {
	t.Helper()
	start := time.Now()
	select {
	case o := <-outcomes:
		switch {
		case problem == "" && o.err != nil:
			t.Fatalf("unexpected: %v", o.err)
		case problem == "" && o.config.Watch.Ports[0] != port:
			t.Fatalf("got port %d, want %d", o.config.Watch.Ports[0], port)
		case problem != "" && (o.err == nil || !strings.Contains(o.err.Error(), problem)):
			t.Fatalf("got %v, want an error with %q", o.err, problem)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("noticed after %v", took)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the change was not noticed")
	}
}

// quiet proves that nothing more is reported: every pending change is seen
// before the marker that quiet writes itself.
func quiet(t *testing.T, outcomes <-chan outcome, path string) {
	t.Helper()
	write(t, path, ports("4242"))
	next(t, outcomes, 4242, "")
	if len(outcomes) > 0 {
		t.Errorf("reported too much: %v", <-outcomes)
	}
}

func ports(p string) string { return "[watch]\nports = [" + p + "]\n" }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWatchChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	write(t, path, ports("1"))
	outcomes := watch(t, path)
	next(t, outcomes, 1, "")

	write(t, path, ports("2")) // in place
	next(t, outcomes, 2, "")

	write(t, path+".new", ports("3")) // by rename
	labtest.Must(t, os.Rename(path+".new", path))
	next(t, outcomes, 3, "")

	write(t, path, ports("0"))
	next(t, outcomes, 0, "c.toml:2: watch.ports: 0 is no port")

	write(t, path, ports("3")) // the text before the mistake
	next(t, outcomes, 3, "")

	write(t, path, ports("3")) // the same text
	write(t, path+".other", "")
	quiet(t, outcomes, path)

	labtest.Must(t, os.Remove(path))
	next(t, outcomes, 0, "no such file")
	write(t, path, ports("4242"))
	next(t, outcomes, 4242, "")
}

// Of a file that is written slowly the first half must not be read as the whole.
func TestWatchHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	write(t, path, ports("1"))
	outcomes := watch(t, path)
	next(t, outcomes, 1, "")
	f, err := os.Create(path) // empty now, which is a valid config
	labtest.Must(t, err)
	_, err = f.WriteString("[watch]\n")
	labtest.Must(t, err)
	_, err = f.WriteString("ports = [5]\n")
	labtest.Must(t, err)
	labtest.Must(t, f.Close())
	next(t, outcomes, 5, "")
	quiet(t, outcomes, path)
}

func TestWatchConfigMap(t *testing.T) {
	// As the kubelet does it: path -> ..data/path, ..data -> a directory with a
	// new name each time, turned over by a rename.
	dir := t.TempDir()
	turn := func(version, text string) {
		t.Helper()
		labtest.Must(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		write(t, filepath.Join(dir, version, "c.toml"), text)
		labtest.Must(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		labtest.Must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	turn("..v1", ports("1"))
	path := filepath.Join(dir, "c.toml")
	labtest.Must(t, os.Symlink("..data/c.toml", path))
	outcomes := watch(t, path)
	next(t, outcomes, 1, "")
	for i, p := range []string{"2", "3"} {
		turn("..v"+p, ports(p))
		labtest.Must(t, os.RemoveAll(filepath.Join(dir, "..v"+string(rune('1'+i)))))
		next(t, outcomes, uint16(i+2), "")
	}
}

func TestWatchLinkToElsewhere(t *testing.T) {
	real := filepath.Join(t.TempDir(), "real.toml")
	write(t, real, ports("1"))
	path := filepath.Join(t.TempDir(), "c.toml")
	labtest.Must(t, os.Symlink(real, path))
	outcomes := watch(t, path)
	next(t, outcomes, 1, "")
	write(t, real, ports("2"))
	next(t, outcomes, 2, "")
}

func TestWatchDirectoryGoesAndReturns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	path := filepath.Join(dir, "c.toml")
	outcomes := watch(t, path)
	next(t, outcomes, 0, "no such file") // not there yet

	for range 2 {
		labtest.Must(t, os.Mkdir(dir, 0o700))
		write(t, path, ports("1"))
		next(t, outcomes, 1, "")
		write(t, path, ports("2"))
		next(t, outcomes, 2, "")
		labtest.Must(t, os.RemoveAll(dir))
		next(t, outcomes, 0, "no such file")
	}

	labtest.Must(t, os.Mkdir(dir, 0o700))
	write(t, path, ports("1"))
	next(t, outcomes, 1, "")
	labtest.Must(t, os.Rename(dir, dir+".old")) // moved away under the watch
	next(t, outcomes, 0, "no such file")
	labtest.Must(t, os.Mkdir(dir, 0o700))
	write(t, path, ports("3"))
	next(t, outcomes, 3, "")
}

// Without inotify (its instances are limited for each user) polling is left.
func TestWatchWithoutInotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	write(t, path, ports("1"))
	// Held only while Watch starts: other tests on this machine want some too.
	taken := exhaustInotify(t)
	release := sync.OnceFunc(func() {
		for _, fd := range taken {
			closeDescriptor(fd)
		}
	})
	t.Cleanup(release)
	descriptors := openDescriptors(t) - len(taken)
	ctx, cancel := context.WithCancel(context.Background())
	outcomes, done := make(chan outcome, 100), make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, path, func(c Config, err error) { outcomes <- outcome{c, err} })
	}()
	defer func() {
		cancel()
		<-done
	}()
	next(t, outcomes, 1, "")
	release()
	if now := openDescriptors(t); now != descriptors {
		t.Fatalf("there was inotify after all: %d descriptors, then %d", descriptors, now)
	}
	write(t, path, ports("2"))
	next(t, outcomes, 2, "")
}

// The end must not wait for a settling file either.
func TestWatchEndsWhileSettling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	write(t, path, ports("1"))
	watch(t, path)
}
