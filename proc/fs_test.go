package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
)

func TestProcessSelf(t *testing.T) {
	p, err := FS{}.Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := FS{}.NetNS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != os.Getpid() || p.Comm != strings.TrimSuffix(string(comm), "\n") || p.StartTime == 0 ||
		p.UID != uint32(os.Geteuid()) || !strings.HasPrefix(p.Cgroup, "/") || p.NetNS != ns || ns == (netns.Key{}) {
		t.Errorf("not us: %+v, namespace %v", p, ns)
	}
	exe, err := FS{}.Exe(os.Getpid())
	if want, _ := os.Executable(); err != nil || exe != want {
		t.Errorf("program %q, %v", exe, err)
	}
}

func TestProcessOfOtherUser(t *testing.T) {
	cmd := exec.Command("sleep", "300")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p, err := FS{}.Process(cmd.Process.Pid)
	if err != nil || p.UID != 12345 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestProcessGoneAndZombie(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	labtest.Eventually(t, "the zombie", func() bool {
		_, err := FS{}.NetNS(pid)
		return Gone(err)
	})
	// A zombie still has a name, but nothing to hold a socket with.
	p, err := FS{}.Process(pid)
	if err != nil || p.NetNS != (netns.Key{}) || p.Comm != "true" {
		t.Errorf("zombie: %+v, %v", p, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := (FS{}).Process(pid); !Gone(err) {
		t.Errorf("a process that ended: %v", err)
	}
	if _, err := (FS{}).Exe(pid); !Gone(err) {
		t.Errorf("program of a process that ended: %v", err)
	}
	if Gone(nil) || Gone(unix.EACCES) {
		t.Error("what is no absence is taken for one")
	}
}

// A name with everything in it that could mislead a reader of stat.
func TestProcessEvilName(t *testing.T) {
	evil := filepath.Join(t.TempDir(), "a) R 1 (\n\x1b[2")
	if err := os.Symlink("/bin/sleep", evil); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(evil, "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p, err := FS{}.Process(cmd.Process.Pid)
	if err != nil || p.Comm != filepath.Base(evil) || p.StartTime == 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if got := Safe(p.Comm); got != `a) R 1 (\n\x1b[2` {
		t.Errorf("Safe: %s", got)
	}
}

func TestSafe(t *testing.T) {
	for s, want := range map[string]string{
		"":                       "",
		"redis-server *:6379":    "redis-server *:6379",
		`a"b\c`:                  `a"b\\c`,
		"\x1b]0;x\a":             `\x1b]0;x\a`,
		"gr\u00fc\u00df":         "gr\u00fc\u00df",
		"\u202egnp":              `\u202egnp`,
		"\xff":                   `\xff`,
		strings.Repeat("x", 300): strings.Repeat("x", 256) + "...",
	} {
		if got := Safe(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func TestParseStat(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 424242 20 21"
	for text, want := range map[string]string{
		"7 (sleep)" + tail:         "sleep",
		"7 ()" + tail:              "",
		"7 (a) b (c)" + tail:       "a) b (c",
		"7 (x) S 1 2 3 (y)" + tail: "x) S 1 2 3 (y",
	} {
		comm, start, err := parseStat([]byte(text))
		if err != nil || comm != want || start != 424242 {
			t.Errorf("%q: %q %d %v", text, comm, start, err)
		}
	}
	for _, text := range []string{"", "7 (a", "7 )a(", "7 (a) S 1", "7 (a)" + strings.Replace(tail, "424242", "-1", 1)} {
		if _, _, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestParseUID(t *testing.T) {
	if uid, err := parseUID([]byte("Name:\tUid:\nUid:\t1\t4294967295\t3\t4\nGid:\t5\n")); err != nil || uid != 1<<32-1 {
		t.Errorf("%d, %v", uid, err)
	}
	for _, text := range []string{"", "Uid:\n", "Uid:\t1\n", "Uid:\t1\tx\t1\t1\n", "Uid:\t1\t4294967296\n"} {
		if _, err := parseUID([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 13 1 2"))
	f.Add([]byte("1 (a) (b)"))
	f.Fuzz(func(t *testing.T, data []byte) {
		comm, _, err := parseStat(data)
		if err != nil && comm != "" || len(comm) > len(data) {
			t.Fatalf("%q with %v", comm, err)
		}
	})
}

func FuzzParseUID(f *testing.F) {
	f.Add([]byte("Name:\tx\nUid:\t0\t0\t0\t0\n"))
	f.Fuzz(func(t *testing.T, data []byte) { _, _ = parseUID(data) })
}

func FuzzParseDirents(f *testing.F) {
	f.Add(dirent("1"), false)
	f.Add(append(dirent("."), dirent("65535")...), true)
	f.Fuzz(func(t *testing.T, data []byte, stop bool) {
		n := 0
		if parseDirents(data, func(number int) bool {
			if number < 0 {
				t.Fatal("negative")
			}
			n++
			return !stop
		}) == (stop && n > 0) || stop && n > 1 {
			t.Fatalf("%d calls, stop %v", n, stop)
		}
	})
}

// dirent is one record of getdents64 for a name.
func dirent(name string) []byte {
	length := (19 + len(name) + 1 + 7) / 8 * 8
	b := make([]byte, length)
	b[16], b[17] = byte(length), byte(length>>8)
	copy(b[19:], name)
	return b
}

func TestParseDirents(t *testing.T) {
	var data []byte
	for _, name := range []string{".", "..", "self", "1", "4194304", "007", "12x", "99999999999", "4294967296"} {
		data = append(data, dirent(name)...)
	}
	var got []int
	parseDirents(data, func(n int) bool { got = append(got, n); return true })
	if !slices.Equal(got, []int{1, 4194304, 7}) {
		t.Errorf("%v", got)
	}
}

func TestWalkNetNS(t *testing.T) {
	own := startHelper(t, true, "sockets 1")
	sleepers := startSleepers(t, 20)
	mine, err := FS{}.NetNS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]netns.Key{}
	last := 0
	err = FS{}.WalkNetNS(t.Context(), func(pid int, ns netns.Key) {
		if pid <= last {
			t.Errorf("%d after %d", pid, last)
		}
		last, seen[pid] = pid, ns
	})
	// Where the tests run in a container, process 1 may be closed even to root.
	if err != nil && !errors.Is(err, unix.EACCES) {
		t.Fatal(err)
	}
	if seen[own.pid] != own.ns || own.ns == mine || seen[os.Getpid()] != mine {
		t.Errorf("namespaces are mixed up: child %v %v, own %v %v", seen[own.pid], own.ns, seen[os.Getpid()], mine)
	}
	for _, pid := range sleepers {
		if seen[pid] != mine {
			t.Errorf("sleeper %d: %v", pid, seen[pid])
		}
	}
}

func TestWalkNetNSEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := FS{}.WalkNetNS(ctx, func(int, netns.Key) { n++; cancel() })
	if n != 1 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d calls, %v", n, err)
	}
	err = FS{Proc: filepath.Join(t.TempDir(), "none")}.WalkNetNS(t.Context(), func(int, netns.Key) {})
	if !Gone(err) {
		t.Errorf("no /proc: %v", err)
	}
}

// Processes that end between the listing and the look are no failure.
func TestWalkNetNSVanishing(t *testing.T) {
	root := t.TempDir()
	for _, pid := range []string{"1", "2", "3"} {
		if err := os.MkdirAll(filepath.Join(root, pid, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "2", "ns", "net"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var pids []int
	if err := (FS{Proc: root}).WalkNetNS(t.Context(), func(pid int, _ netns.Key) { pids = append(pids, pid) }); err != nil || !slices.Equal(pids, []int{2}) {
		t.Errorf("%v, %v", pids, err)
	}
}

func BenchmarkWalkNetNS(b *testing.B) {
	startSleepers(b, 300)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if err := (FS{}).WalkNetNS(b.Context(), func(int, netns.Key) { n++ }); err != nil && !errors.Is(err, unix.EACCES) {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/float64(b.N), "processes/op")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/process")
}

func TestParseInner(t *testing.T) {
	for text, want := range map[string]int{"Name:\tx\nNSpid:\t4711\t17\t1\n": 1, "NSpid:\t4711\n": 4711, "NSpid:\n": 0, "": 0, "NSpid:\tx\n": 0, "Pid:\t1\n": 0} {
		if got := parseInner([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func FuzzParseInner(f *testing.F) {
	f.Add([]byte("NSpid:\t4711\t1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := parseInner(b); n < 0 {
			t.Errorf("%q: %d", b, n)
		}
	})
}
