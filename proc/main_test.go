package proc

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
)

// The test binary is its own helper: with helperEnv set it makes sockets, says
// what it has, and stays until its standard input ends.
const helperEnv = "REDISGUARD_PROC_HELPER"

func TestMain(m *testing.M) {
	if spec := os.Getenv(helperEnv); spec != "" {
		if err := helper(strings.Fields(spec)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	labtest.Main(m)
}

// helper prints one line: "inode..." and, after a "|", the network namespace the
// first socket is of.
//
//	sockets N      N sockets
//	fds N M        N sockets and M further descriptors of them
//	foreign        one socket of a namespace that only one thread was in
//
// Two more are told by startHanging what to do:
//
//	fuse DIR       a file server at DIR that does not answer
//	hang DIR       what hangs because of it
func helper(args []string) error {
	switch args[0] {
	case "fuse":
		return serveFUSE(args[1])
	case "hang":
		return hang(args[1])
	}
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	sockets, more := 1, 0
	if args[0] != "foreign" {
		sockets = number(1)
	}
	if args[0] == "fds" {
		more = number(2)
	}
	made := make(chan error)
	var fds []int
	var inodes []string
	var ns unix.Stat_t
	var work func()
	work = func() {
		// This thread ends with the goroutine when it is foreign. It must not be
		// the main one, which speaks for the process.
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			go work()
			select {} // keeps the main thread until the end
		}
		if args[0] == "foreign" {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				made <- err
				return
			}
		} else {
			defer runtime.UnlockOSThread()
		}
		for range sockets {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				made <- err
				return
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				made <- err
				return
			}
			fds = append(fds, fd)
			inodes = append(inodes, strconv.FormatUint(st.Ino, 10))
		}
		made <- unix.Stat("/proc/thread-self/ns/net", &ns)
	}
	go work()
	if err := <-made; err != nil {
		return err
	}
	for i := range more {
		if _, err := unix.Dup(fds[i%len(fds)]); err != nil {
			return err
		}
	}
	fmt.Printf("%s | %d %d\n", strings.Join(inodes, " "), ns.Dev, ns.Ino)
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}

// child is a running helper.
type child struct {
	pid    int
	inodes []uint64
	ns     netns.Key
}

// startHelper starts a helper, in a new network namespace if own is set, and
// ends it with the test.
func startHelper(t testing.TB, own bool, spec string) child {
	t.Helper()
	return startHelperAs(t, own, 0, spec)
}

func startHelperAs(t testing.TB, own bool, uid uint32, spec string) child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+spec)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if own {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		cmd.Dir = "/"
	}
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
			t.Errorf("helper %q: %v", spec, err)
		}
	})
	line, err := bufio.NewReaderSize(out, 1<<20).ReadString('\n')
	if err != nil {
		t.Fatalf("helper %q said nothing: %v", spec, err)
	}
	c := child{pid: cmd.Process.Pid}
	left, right, _ := strings.Cut(line, "|")
	for _, f := range strings.Fields(left) {
		ino, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		c.inodes = append(c.inodes, ino)
	}
	if _, err := fmt.Sscan(right, &c.ns.Dev, &c.ns.Inode); err != nil {
		t.Fatal(err)
	}
	return c
}

// startSleepers starts n processes that do nothing.
func startSleepers(t testing.TB, n int) []int {
	t.Helper()
	var pids []int
	for range n {
		cmd := exec.Command("sleep", "300")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, cmd.Process.Pid)
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // says that it was killed
		})
	}
	return pids
}
