package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
)

func TestResolve(t *testing.T) {
	a := startHelper(t, true, "sockets 3")
	b := startHelper(t, true, "sockets 2")
	startSleepers(t, 20)
	at := NewAttributor(FS{})
	want := map[netns.Key][]uint64{a.ns: a.inodes, b.ns: append([]uint64{0}, b.inodes...)}
	for _, round := range []string{"first", "remembered"} {
		got, stats := at.Resolve(t.Context(), want)
		if stats.Err != nil || len(got) != 5 || stats.Wanted != 5 || stats.Found != 5 {
			t.Fatalf("%s: %v, %+v", round, got, stats)
		}
		for _, c := range []child{a, b} {
			for _, ino := range c.inodes {
				o := got[ino]
				link, err := os.Readlink("/proc/" + strconv.Itoa(c.pid) + "/fd/" + strconv.Itoa(o.FD))
				if err != nil || link != "socket:["+strconv.FormatUint(ino, 10)+"]" {
					t.Errorf("%s: descriptor %d is %s, %v", round, o.FD, link, err)
				}
				if o.Process.PID != c.pid || o.Process.NetNS != c.ns || o.Holders != 1 || o.Process.StartTime == 0 || o.Process.Comm == "" {
					t.Errorf("%s: %+v", round, o)
				}
			}
		}
		// Only the two are asked: their namespaces are their own, and then they are
		// known.
		if stats.Scanned != 2 || (stats.Processes == 0) != (round == "remembered") {
			t.Errorf("%s: %+v", round, stats)
		}
	}
}

// A socket made in another namespace by one thread: the holder's own namespace
// says nothing about it.
func TestResolveForeignSocket(t *testing.T) {
	c := startHelper(t, false, "foreign")
	at := NewAttributor(FS{})
	want := map[netns.Key][]uint64{c.ns: c.inodes}
	got, stats := at.Resolve(t.Context(), want)
	o := got[c.inodes[0]]
	if o.Process.PID != c.pid || o.Process.NetNS == c.ns {
		t.Fatalf("%+v, %+v", got, stats)
	}
	if got, stats = at.Resolve(t.Context(), want); len(got) != 1 || stats.Scanned != 1 {
		t.Errorf("not remembered: %+v", stats)
	}
}

func TestResolveSharedSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, g := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	defer f.Close()
	defer g.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		t.Fatal(err)
	}
	ns, err := FS{}.NetNS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Three children that inherit it, the last one twice.
	for _, files := range [][]*os.File{{f}, {f}, {f, f}} {
		cmd := exec.Command("sleep", "300")
		cmd.ExtraFiles = files
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
	}
	at := NewAttributor(FS{})
	// An inode that nobody has makes it ask everyone, so that Holders is complete.
	want := map[netns.Key][]uint64{ns: {st.Ino, 1 << 40}}
	got, stats := at.Resolve(t.Context(), want)
	if o := got[st.Ino]; o.Holders != 4 || o.Process.Comm != "sleep" || len(got) != 1 || stats.Found != 1 || stats.Wanted != 2 {
		t.Errorf("%+v, %+v", got, stats)
	}
}

// All holders are found, wherever they live, one of each kind; a duplicate of ours makes us
// none; and it is said when not all could be found.
func TestResolveAllHolders(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, g := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	defer f.Close()
	defer g.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		t.Fatal(err)
	}
	ns, err := FS{}.NetNS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	hold := func(uid, flags uint32) int {
		cmd := exec.Command("sleep", "300")
		cmd.ExtraFiles, cmd.Dir = []*os.File{f}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: uintptr(flags), Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // says that it was killed
		})
		return cmd.Process.Pid
	}
	oldest := hold(65534, 0)
	for range 39 { // workers, all of a kind
		hold(65534, 0)
	}
	strange := hold(65533, unix.CLONE_NEWNET)
	at := NewAttributor(FS{})
	want := map[netns.Key][]uint64{ns: {st.Ino}}
	for _, round := range []string{"first", "remembered"} {
		got, stats := at.ResolveAll(t.Context(), want)
		o := got[st.Ino]
		all := append([]*Owner{&o}, o.Others...)
		if stats.Err != nil || !o.Complete || o.Holders != 41 || len(all) != 2 {
			t.Fatalf("%s: %d holders, %d kinds, %+v, %+v", round, o.Holders, len(all), o, stats)
		}
		if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", oldest, o.FD)); o.Process.PID == strange || link != fmt.Sprintf("socket:[%d]", st.Ino) {
			t.Errorf("%s: process %d with descriptor %d (%s) stands for all, want an old one such as %d", round, o.Process.PID, o.FD, link, oldest)
		}
		if !slices.ContainsFunc(all, func(x *Owner) bool {
			return x.Process.PID == strange && x.Process.NetNS != ns && x.Process.UID == 65533
		}) {
			t.Errorf("%s: the one in another namespace is missing: %+v", round, all)
		}
	}
	// Without asking all, one is enough, and nobody says that there are no others.
	if got, _ := at.Resolve(t.Context(), want); got[st.Ino].Complete || got[st.Ino].Process.PID == 0 {
		t.Errorf("%+v", got[st.Ino])
	}
	// Out of time in the middle.
	ctx := &dying{Context: t.Context(), left: 3}
	if got, stats := at.ResolveAll(ctx, want); stats.Err == nil || got[st.Ino].Complete {
		t.Errorf("out of time: %+v, %+v", got[st.Ino], stats)
	}
	// More kinds than are kept.
	for uid := range uint32(maxOthers + 1) {
		hold(60000+uid, 0)
	}
	got, _ := NewAttributor(FS{}).ResolveAll(t.Context(), want)
	if o := got[st.Ino]; o.Complete || len(o.Others) != maxOthers {
		t.Errorf("%d others, complete %v", len(o.Others), o.Complete)
	}
}

// dying is a context that ends after it was asked a few times.
type dying struct {
	context.Context
	left int32
}

func (d *dying) Err() error {
	if atomic.AddInt32(&d.left, -1) < 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// What only we have is ours.
func TestResolveAllOfOurOwn(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	ns, err := FS{}.NetNS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	got, stats := NewAttributor(FS{}).ResolveAll(t.Context(), map[netns.Key][]uint64{ns: {uint64(st.Ino)}})
	if o := got[st.Ino]; o.Process.PID != os.Getpid() || stats.Err != nil {
		t.Errorf("%+v, %+v", got, stats)
	}
}

func TestResolveAmbiguous(t *testing.T) {
	c := startHelper(t, true, "sockets 1")
	got, stats := NewAttributor(FS{}).Resolve(t.Context(), map[netns.Key][]uint64{c.ns: c.inodes, {Dev: 1, Inode: 2}: c.inodes})
	if len(got) != 0 || stats.Ambiguous != 1 || stats.Wanted != 1 {
		t.Errorf("%+v, %+v", got, stats)
	}
}

func TestResolveEnds(t *testing.T) {
	c := startHelper(t, true, "sockets 1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, stats := NewAttributor(FS{}).Resolve(ctx, map[netns.Key][]uint64{c.ns: c.inodes})
	if len(got) != 0 || !errors.Is(stats.Err, context.Canceled) {
		t.Errorf("%+v, %+v", got, stats)
	}
	none, stats := NewAttributor(FS{Proc: filepath.Join(t.TempDir(), "none")}).Resolve(t.Context(), map[netns.Key][]uint64{c.ns: c.inodes})
	if len(none) != 0 || !Gone(stats.Err) {
		t.Errorf("no /proc: %+v", stats)
	}
	none, stats = NewAttributor(FS{}).Resolve(t.Context(), nil)
	if len(none) != 0 || stats != (Stats{}) {
		t.Errorf("nothing asked: %+v", stats)
	}
}

// The pids it remembers end, and others may get their numbers.
func TestResolveForgetsTheDead(t *testing.T) {
	at := NewAttributor(FS{})
	var dead child
	t.Run("life", func(t *testing.T) {
		dead = startHelper(t, true, "sockets 1")
		if got, stats := at.Resolve(t.Context(), map[netns.Key][]uint64{dead.ns: dead.inodes}); len(got) != 1 {
			t.Fatalf("%+v", stats)
		}
	})
	got, stats := at.Resolve(t.Context(), map[netns.Key][]uint64{dead.ns: dead.inodes})
	if len(got) != 0 || stats.Gone == 0 || len(at.hints) != 0 {
		t.Errorf("%+v, %+v, %v", got, stats, at.hints)
	}
}

// fixture makes a /proc of one process in a pod and the kubelet's directory.
func fixture(t *testing.T) FS {
	t.Helper()
	root := t.TempDir()
	fs := FS{Proc: filepath.Join(root, "proc"), PodLogs: filepath.Join(root, "pods")}
	pid := filepath.Join(fs.Proc, "77")
	for name, text := range map[string]string{
		"stat":   "77 (java) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 20\n",
		"status": "Name:\tjava\nUid:\t0\t1000\t0\t0\n",
		"cgroup": "0::/kubepods/burstable/pod" + uid1 + "/" + id1 + "\n",
		"ns/net": "",
	} {
		file := filepath.Join(pid, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(pid, "fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for fd, target := range map[string]string{"0": "/dev/null", "3": "socket:[4711]", "4": "socket:[x]", "5": "socket:[4711]", "6": "pipe:[4711]", "x": "socket:[4711]"} {
		if err := os.Symlink(target, filepath.Join(pid, "fd", fd)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(fs.PodLogs, "shop_cart-0_"+uid1), 0o755); err != nil {
		t.Fatal(err)
	}
	return fs
}

func TestResolvePod(t *testing.T) {
	fs := fixture(t)
	ns, err := fs.NetNS(77)
	if err != nil {
		t.Fatal(err)
	}
	got, stats := NewAttributor(fs).Resolve(t.Context(), map[netns.Key][]uint64{ns: {4711}})
	want := Owner{
		Process:      Process{PID: 77, StartTime: 99, Comm: "java", UID: 1000, Cgroup: "/kubepods/burstable/pod" + uid1 + "/" + id1, NetNS: ns},
		Workload:     Workload{Kind: KindPod, PodUID: uid1, ContainerID: id1},
		PodNamespace: "shop", PodName: "cart-0", FD: got[4711].FD, Holders: 1,
	}
	if !reflect.DeepEqual(got[4711], want) || want.FD != 3 && want.FD != 5 {
		t.Errorf("got  %+v\nwant %+v\n%+v", got[4711], want, stats)
	}
}

// Without the right to look: a process of another user and none of the
// capabilities. The answers are counted, not taken for absence.
func TestResolveDenied(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test wants root: it gives its rights away")
	}
	c := startHelper(t, true, "sockets 1")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnprivileged$", "-test.v")
	cmd.Env = append(os.Environ(), "REDISGUARD_PROC_DENIED="+strconv.FormatUint(c.ns.Dev, 10)+" "+strconv.FormatUint(c.ns.Inode, 10)+" "+strconv.FormatUint(c.inodes[0], 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "asked without rights") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestUnprivileged is the other half of TestResolveDenied.
func TestUnprivileged(t *testing.T) {
	spec := strings.Fields(os.Getenv("REDISGUARD_PROC_DENIED"))
	if len(spec) != 3 {
		return // not asked
	}
	var n [3]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(spec[i], 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	got, stats := NewAttributor(FS{}).Resolve(t.Context(), map[netns.Key][]uint64{{Dev: n[0], Inode: n[1]}: {n[2]}})
	if len(got) != 0 || stats.Denied == 0 || stats.Err != nil {
		t.Errorf("%+v, %+v", got, stats)
	}
	if err := (FS{}).WalkNetNS(t.Context(), func(int, netns.Key) {}); !errors.Is(err, unix.EACCES) {
		t.Errorf("the walk does not say that it was denied: %v", err)
	}
	t.Log("asked without rights")
}

// without runs fn on a thread that has given up capabilities.
func without(t testing.TB, drop []int, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&hdr, &data[0])
		for _, c := range drop {
			data[c/32].Effective &^= 1 << (c % 32)
		}
		if err == nil {
			err = unix.Capset(&hdr, &data[0])
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// descriptors counts our own that the runtime does not keep.
func descriptors() int {
	list, err := sys.OpenDescriptors()
	if err != nil {
		panic(err)
	}
	n := 0
	for _, d := range list {
		if !strings.HasPrefix(d.What, "anon_inode:") {
			n++
		}
	}
	return n
}

// reading is what opens other users' files.
var reading = []int{unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE}

// Without the right to read every file there is another way to another user's
// sockets, by the right to trace processes; without that one there is none. Rights are
// a thread's, so it is read here and not through Resolve, which asks on another.
func TestReadWithoutReadSearch(t *testing.T) {
	c := startHelperAs(t, true, 65534, "fds 20 30")
	var h holding
	without(t, reading, func() {
		if _, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.pid)); !errors.Is(err, unix.EACCES) {
			t.Errorf("the right is not missing: %v", err)
		}
		before := descriptors()
		h = readHere(t, c)
		if after := descriptors(); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
	if h.err != nil || len(h.hits) != len(c.inodes) || h.process == nil || h.process.PID != c.pid || h.process.UID != 65534 {
		t.Errorf("%+v", h)
	}
	for _, hit := range h.hits {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.pid, hit.fd))
		if err != nil || link != fmt.Sprintf("socket:[%d]", hit.inode) {
			t.Errorf("descriptor %d is %s (%v), not socket %d", hit.fd, link, err, hit.inode)
		}
	}
	without(t, append(reading, unix.CAP_SYS_PTRACE), func() {
		if h := readHere(t, c); len(h.hits) != 0 || !denied(h.err) {
			t.Errorf("found without any right: %+v", h)
		}
	})
}

// readHere reads the descriptors of c on the calling thread.
func readHere(t testing.TB, c child) holding {
	t.Helper()
	s := &search{wanted: map[uint64]netns.Key{}, pending: len(c.inodes)}
	for _, ino := range c.inodes {
		s.wanted[ino] = c.ns
	}
	dir, err := FS{}.openProc()
	if err != nil {
		t.Error(err)
		return holding{}
	}
	defer unix.Close(dir)
	r := newReader(FS{})
	r.start(s)
	return r.read(t.Context(), dir, c.pid, func() {})
}

func TestParseFDInfo(t *testing.T) {
	for info, want := range map[string][2]uint64{
		"pos:\t0\nflags:\t02004002\nmnt_id:\t9\nino:\t123\n":                      {9, 123},
		"pos:\t0\nflags:\t02004002\nmnt_id:\t9\nino:\t123\nino:\t7\nmnt_id:\t1\n": {9, 123},
		"pos:\t0\nflags:\t02\nmnt_id:\t9\n":                                       {9, 0}, // before Linux 5.14
		"pos:\t0\nflags:\t02\nmnt_id:\t9\nino:\t12":                               {9, 0}, // cut off
		"ino:\t-1\n": {0, 0},
		"":           {0, 0},
	} {
		if mount, ino := parseFDInfo([]byte(info)); mount != want[0] || ino != want[1] {
			t.Errorf("%q: %d, %d", info, mount, ino)
		}
	}
}

func FuzzParseFDInfo(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t02004002\nmnt_id:\t9\nino:\t123\n"))
	f.Add([]byte("ino:\t18446744073709551616\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ino := parseFDInfo(b); ino != 0 && !bytes.Contains(b, []byte("ino:")) {
			t.Errorf("%q has inode %d", b, ino)
		}
	})
}

func TestResolveKeepsNoDescriptor(t *testing.T) {
	c := startHelper(t, true, "sockets 50")
	at := NewAttributor(FS{})
	before := descriptors()
	for range 20 {
		if got, stats := at.Resolve(t.Context(), map[netns.Key][]uint64{c.ns: append(c.inodes, 1<<40)}); len(got) != 50 {
			t.Fatalf("%+v", stats)
		}
	}
	if after := descriptors(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// 100,000 descriptors in all, of which 6,000 sockets are asked for and one is
// nobody's: the whole pass.
func TestResolveMany(t *testing.T) {
	want := map[netns.Key][]uint64{}
	sockets := 0
	for range 6 {
		c := startHelper(t, true, "fds 1000 15700")
		want[c.ns] = c.inodes
		sockets += len(c.inodes)
	}
	ns, err := FS{}.NetNS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	want[ns] = []uint64{1 << 40}
	at := NewAttributor(FS{})
	for range 3 {
		start := time.Now()
		got, stats := at.Resolve(t.Context(), want)
		took := time.Since(start)
		if len(got) != sockets || stats.FDs < 100_000 {
			t.Fatalf("%d of %d, %+v", len(got), sockets, stats)
		}
		t.Logf("%v for %d descriptors of %d processes: %d sockets found", took.Round(time.Millisecond), stats.FDs, stats.Scanned, stats.Found)
		if took > 5*time.Second { // generous: the machine may be busy
			t.Errorf("too slow: %v", took)
		}
	}
}

func BenchmarkResolveKnown(b *testing.B) {
	c := startHelper(b, true, "sockets 20")
	at := NewAttributor(FS{})
	want := map[netns.Key][]uint64{c.ns: c.inodes}
	b.ReportAllocs()
	for b.Loop() {
		if got, stats := at.Resolve(b.Context(), want); len(got) != 20 {
			b.Fatalf("%+v", stats)
		}
	}
}

// The way without CAP_DAC_READ_SEARCH.
func BenchmarkReadByInfo(b *testing.B) {
	c := startHelperAs(b, true, 65534, "sockets 20")
	without(b, reading, func() {
		b.ReportAllocs()
		for b.Loop() {
			if h := readHere(b, c); len(h.hits) != 20 {
				b.Errorf("%+v", h)
				return
			}
		}
	})
}

func TestParseSocketLink(t *testing.T) {
	for link, want := range map[string]uint64{"socket:[1]": 1, "socket:[4294967295]": 1<<32 - 1, "socket:[0]": 0} {
		if got, ok := parseSocketLink([]byte(link)); !ok || got != want {
			t.Errorf("%s: %d %v", link, got, ok)
		}
	}
	for _, link := range []string{"", "socket:[", "socket:[]", "socket:[1", "socket:[-1]", "socket:[1]x", "pipe:[1]", "socket:[99999999999999999999]", "socket:[18446744073709551616]"} {
		if got, ok := parseSocketLink([]byte(link)); ok {
			t.Errorf("%s: taken for %d", link, got)
		}
	}
}

func FuzzParseSocketLink(f *testing.F) {
	f.Add([]byte("socket:[123]"))
	f.Add([]byte("socket:[18446744073709551615]"))
	f.Fuzz(func(t *testing.T, link []byte) {
		n, ok := parseSocketLink(link)
		if !ok {
			return
		}
		digits := strings.TrimLeft(string(link[len("socket:["):len(link)-1]), "0")
		if digits == "" {
			digits = "0"
		}
		if strconv.FormatUint(n, 10) != digits {
			t.Fatalf("%q is %d", link, n)
		}
	})
}

// A duplicate that we hold for a moment does not make a socket ours.
func TestResolveAnothersBeforeOurOwn(t *testing.T) {
	c := startHelper(t, false, "sockets 1") // in our own namespace, where we are asked, too
	at := NewAttributor(FS{})
	before, _ := at.Resolve(t.Context(), map[netns.Key][]uint64{c.ns: c.inodes})
	pidfd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, before[c.inodes[0]].FD, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	for range 20 {
		got, _ := NewAttributor(FS{}).Resolve(t.Context(), map[netns.Key][]uint64{c.ns: c.inodes})
		if o := got[c.inodes[0]]; o.Process.PID != c.pid {
			t.Fatalf("its owner is %d, not %d", o.Process.PID, c.pid)
		}
		all, _ := NewAttributor(FS{}).ResolveAll(t.Context(), map[netns.Key][]uint64{c.ns: c.inodes})
		if o := all[c.inodes[0]]; o.Process.PID != c.pid || len(o.Others) != 0 || !o.Complete {
			t.Fatalf("its owners are %+v", o)
		}
	}
}
