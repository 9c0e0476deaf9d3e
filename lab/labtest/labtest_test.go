package labtest

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// leakEnv makes the test binary one whose only test leaks, in the way that the
// variable names.
const leakEnv = "REDISGUARD_LABTEST_LEAKS"

func TestMain(m *testing.M) { Main(m) }

// kept is where leaked things stay, so that no finalizer closes them.
var kept any

// leaks are ways to leak, and what the end of the test binary must say about each.
var leaks = map[string]struct {
	leak func()
	says []string
}{
	"nothing": {func() { sys.Close(leakySocket()) }, nil},
	"socket": {func() { leakySocket() },
		[]string{"descriptors are left: 1", "socket:[", "labtest.leakySocket\n", "labtest_test.go:", "labtest.TestLeaking"}},
	"file": {func() { kept, _ = os.Open("/proc/self/stat") },
		[]string{"descriptors are left: 1", "/stat, made by os, net or the tests, not through internal/sys"}},
	"listener": {func() { kept, _ = net.Listen("unix", "@redisguard-labtest") },
		[]string{"descriptors are left: 1", "socket:[", "not through internal/sys"}},
	// The number is that of a socket whose file has been closed since.
	"another under the number": {func() {
		fd := leakySocket()
		os.NewFile(uintptr(fd), "socket").Close()
		f, _ := os.Open("/proc/self/stat")
		if int(f.Fd()) != fd {
			panic("another number")
		}
		kept = f
	}, []string{"descriptors are left: 1", "/stat, made by os, net or the tests"}},
	"epoll": {func() { sys.EpollCreate(unix.EPOLL_CLOEXEC) },
		[]string{"descriptors are left: 1", "anon_inode:[eventpoll], made by\n\tgithub.com/redisguard/redisguard/internal/sys.EpollCreate\n"}},
	"goroutine": {func() { go func() { select {} }() },
		[]string{"goroutines are left", "labtest.init"}},
}

func leakySocket() int {
	fd, err := sys.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return fd
}

func TestLeaking(t *testing.T) {
	if how := os.Getenv(leakEnv); how != "" {
		leaks[how].leak()
	}
}

func TestMainTellsLeaks(t *testing.T) {
	for how, want := range leaks {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestLeaking$")
			cmd.Env = append(os.Environ(), leakEnv+"="+how)
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != min(len(want.says), 1) {
				t.Errorf("it exited with %d: %v", code, err)
			}
			for _, s := range want.says {
				if !strings.Contains(string(out), s) {
					t.Errorf("it does not say %q", s)
				}
			}
			if t.Failed() {
				t.Logf("it said:\n%s", out)
			}
		})
	}
}
