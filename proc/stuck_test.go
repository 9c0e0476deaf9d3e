package proc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
)

// A process that is stuck in execve keeps nobody from seeing all others, costs one
// thread for each that asked at the same time and not one for each question, and is
// seen again when it is let go.
func TestHeldUp(t *testing.T) {
	const soon = 4 * time.Second // patience and half of it again, on a busy machine
	healthy := startHelper(t, true, "sockets 3")
	stuck := startHanging(t)
	fs := FS{Stuck: &Stuck{}}
	want := map[netns.Key][]uint64{healthy.ns: healthy.inodes, stuck.ns: stuck.inodes}
	known, fresh := NewAttributor(fs), NewAttributor(fs)
	if got, stats := known.Resolve(t.Context(), want); len(got) != 4 || stats.Err != nil {
		t.Fatalf("before: %+v", stats)
	}
	baseline, _ := fs.walk(t.Context(), func(int, netns.Key) {})

	stuck.tell("hang", "stuck")
	timed := func(what string, limit time.Duration, do func()) {
		t.Helper()
		start := time.Now()
		if do(); time.Since(start) > limit {
			t.Errorf("%s took %v", what, time.Since(start))
		}
	}
	// One that knows it asks it first; one that does not, and a walk, meet it in
	// passing. All at once, then one after the other.
	walk := func() {
		seen := map[int]bool{}
		w, err := fs.walk(t.Context(), func(pid int, _ netns.Key) { seen[pid] = true })
		if err != nil || w.stuck != 1 || w.denied != baseline.denied+1 || !seen[healthy.pid] || !seen[os.Getpid()] || seen[stuck.pid] {
			t.Errorf("walk: %+v, %v, before %+v", w, err, baseline)
		}
	}
	resolve := func(a *Attributor) {
		got, stats := a.Resolve(t.Context(), want)
		if len(got) != 3 || got[healthy.inodes[0]].Process.PID != healthy.pid || stats.Denied < baseline.denied+1 || stats.Err != nil {
			t.Errorf("%d found, %+v", len(got), stats)
		}
	}
	timed("all at once", 2*soon, func() {
		var all sync.WaitGroup
		all.Go(walk)
		all.Go(func() { resolve(known) })
		all.Go(func() { resolve(fresh) })
		all.Wait()
	})
	holding := len(fs.Stuck.pids)
	if holding < 1 || holding > 3 {
		t.Errorf("%d threads are stuck", holding)
	}
	threads := countThreads(t)
	timed("all again, ten times", soon, func() {
		for range 10 {
			walk()
			resolve(known)
			resolve(fresh)
			if _, err := fs.NetNS(stuck.pid); !denied(err) {
				t.Errorf("namespace: %v", err)
			}
			if _, err := fs.Exe(stuck.pid); !denied(err) {
				t.Errorf("program: %v", err)
			}
			if _, err := fs.Process(stuck.pid); !denied(err) {
				t.Errorf("process: %v", err)
			}
		}
	})
	if n := len(fs.Stuck.pids); n != holding {
		t.Errorf("%d threads are stuck, %d before", n, holding)
	}
	if n := countThreads(t); n > threads+2 { // the runtime starts some of its own
		t.Errorf("%d threads, %d before", n, threads)
	}
	if err := fs.WalkNetNS(t.Context(), func(int, netns.Key) {}); !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "1 stuck") {
		t.Errorf("the walk does not tell: %v", err)
	}
	timed("without a memory", soon, func() {
		if _, err := (FS{}).NetNS(stuck.pid); !denied(err) {
			t.Errorf("without a memory: %v", err)
		}
	})

	stuck.tell("release", "released")
	labtest.Eventually(t, "that the kernel lets go", func() bool { return fs.Stuck.free([]int{stuck.pid}) == 1 })
	for _, a := range []*Attributor{known, fresh} {
		got, stats := a.Resolve(t.Context(), want)
		if o := got[stuck.inodes[0]]; len(got) != 4 || o.Process.PID != stuck.pid || o.Process.Comm != "sleep" || stats.Denied > baseline.denied {
			t.Errorf("after: %+v, %+v", o, stats)
		}
	}
	if w, err := fs.walk(t.Context(), func(int, netns.Key) {}); err != nil || w.stuck != 0 {
		t.Errorf("after: %+v, %v", w, err)
	}
}

func TestTooManyHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := FS{Stuck: &Stuck{}}
		for range maxStuck {
			if err := fs.Stuck.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := fs.NetNS(os.Getpid()); !errors.Is(err, errTooManyStuck) {
			t.Errorf("nobody should be asked: %v", err)
		}
		if err := fs.WalkNetNS(t.Context(), nil); !errors.Is(err, errTooManyStuck) {
			t.Errorf("nobody should be asked: %v", err)
		}
		fs.Stuck.leave()
		if err := fs.Stuck.enter(t.Context()); err != nil {
			t.Errorf("there is a place: %v", err)
		}
	})
}

func countThreads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}

// hanging is a process with one socket that can be made to hang in execve.
type hanging struct {
	child
	tell func(word, answer string)
}

// startHanging starts a file server that does not answer, in a mount namespace of its
// own, and below it the process that will wait for it. Both end with the test.
func startHanging(t *testing.T) hanging {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=fuse "+t.TempDir())
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("file server: %v", err)
		}
	})
	lines := bufio.NewReader(out)
	var h hanging
	h.inodes = make([]uint64, 1)
	if _, err := fmt.Fscanln(lines, &h.pid, &h.inodes[0], &h.ns.Dev, &h.ns.Inode); err != nil {
		t.Fatal(err)
	}
	h.tell = func(word, answer string) {
		t.Helper()
		if _, err := io.WriteString(in, word[:1]); err != nil {
			t.Fatal(err)
		}
		if line, err := lines.ReadString('\n'); err != nil || line != answer+"\n" {
			t.Fatalf("%q answered %q, %v", word, line, err)
		}
	}
	return h
}

// hang is the process that hangs: it has a socket, and a file of dir that execve will
// close. It waits for a byte first.
func hang(dir string) error {
	if _, err := unix.Open(filepath.Join(dir, "file"), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("cannot open the file: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	var socket, ns unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &socket), unix.Stat("/proc/self/ns/net", &ns)); err != nil {
		return err
	}
	fmt.Println(os.Getpid(), socket.Ino, ns.Dev, ns.Ino)
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	return unix.Exec("/bin/sleep", []string{"sleep", "300"}, nil)
}

// serveFUSE serves a directory with one file at dir (linux/fuse.h), and does not
// answer to the file's being closed until it is told to.
func serveFUSE(dir string) error {
	const lookup, getattr, open, release, flush, initialize = 1, 3, 14, 18, 25, 26
	const forget, interrupt, batchForget = 2, 36, 42
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open /dev/fuse: %w", err)
	}
	if err := unix.Mount("redisguard-test", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev)); err != nil {
		return fmt.Errorf("cannot mount: %w", err)
	}
	le := binary.NativeEndian
	reply := func(unique uint64, errno unix.Errno, body []byte) {
		b := le.AppendUint32(nil, uint32(16+len(body)))
		b = le.AppendUint32(b, uint32(-int32(errno)))
		b = le.AppendUint64(b, unique)
		_, _ = unix.Write(dev, append(b, body...))
	}
	attributes := func(node uint64) []byte {
		b := make([]byte, 88)
		le.PutUint64(b, node)
		le.PutUint32(b[60:], unix.S_IFREG|0o644)
		if node == 1 {
			le.PutUint32(b[60:], unix.S_IFDIR|0o755)
		}
		le.PutUint32(b[64:], 1) // links
		return b
	}
	flushes := make(chan uint64, 1)
	go func() {
		for buf := make([]byte, 64<<10); ; {
			n, err := unix.Read(dev, buf)
			if err == unix.EINTR || err == unix.ENOENT || err == unix.EAGAIN {
				continue
			}
			if err != nil || n < 40 {
				return
			}
			unique, node := le.Uint64(buf[8:]), le.Uint64(buf[16:])
			switch le.Uint32(buf[4:]) {
			case initialize:
				b := make([]byte, 64)
				le.PutUint32(b, 7)
				le.PutUint32(b[4:], 31)
				le.PutUint32(b[20:], 4096) // largest write
				reply(unique, 0, b)
			case lookup:
				b := make([]byte, 40)
				le.PutUint64(b, 2)
				le.PutUint64(b[16:], 60) // seconds that it is valid for
				le.PutUint64(b[24:], 60)
				reply(unique, 0, slices.Concat(b, attributes(2)))
			case getattr:
				b := make([]byte, 16)
				le.PutUint64(b, 60)
				reply(unique, 0, slices.Concat(b, attributes(node)))
			case open:
				reply(unique, 0, make([]byte, 16))
			case flush:
				flushes <- unique
			case forget, batchForget, interrupt: // want no answer
			case release:
				reply(unique, 0, nil)
			default:
				reply(unique, unix.ENOSYS, nil)
			}
		}
	}()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=hang "+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// execve runs on the child's side of Start too, with our descriptors in it: they
	// are none of the file's.
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	// The child reads the first byte, and closes the file when it has.
	unique := <-flushes
	fmt.Println("stuck")
	word := make([]byte, 1)
	n, _ := os.Stdin.Read(word)
	reply(unique, 0, nil) // without that nobody could even kill it
	if n == 0 {
		return nil
	}
	exe := fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)
	for own, _ := os.Readlink("/proc/self/exe"); ; time.Sleep(time.Millisecond) {
		if link, err := os.Readlink(exe); err != nil || link != own {
			break
		}
	}
	fmt.Println("released")
	_, _ = os.Stdin.Read(word)
	return nil
}
