package sysctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/netns"
)

func same(t *testing.T, what string, want, got Values) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: %s", what, d)
	}
}

func TestTuneAndRestore(t *testing.T) {
	dir := t.TempDir()
	one, two := makeNS(t, dir, "one"), makeNS(t, dir, "two")
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json")}
	choose(t, two, Retries2, 8) // by somebody
	originals := map[string]Values{"one": values(t, one), "two": values(t, two)}
	for _, k := range Keys() {
		if got, ok := originals["one"][k]; ok && got != k.Def().Default {
			t.Errorf("%s of a new namespace is %d, we know %d", k, got, k.Def().Default)
		}
	}
	errs, plans := tune(t, s, profile, Policy{}, one, two)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if plans[1][0].Action != Foreign {
		t.Errorf("the value that somebody chose: %+v", plans[1][0])
	}
	got := values(t, one)
	for k, v := range profile {
		if got[k] != v {
			t.Errorf("%s is %d", k, got[k])
		}
	}
	if v := values(t, two); v[Retries2] != 8 || v[SynRetries] != 3 {
		t.Errorf("beside a foreign value: %v", v)
	}
	// A namespace that is not ours does not change with it.
	if v := values(t, makeNS(t, dir, "three")); v[Retries2] != 15 {
		t.Errorf("a new namespace has %v", v)
	}

	choose(t, one, KeepaliveTime, 60) // by somebody, after us
	would := restore(t, s, list(found(t, dir)), true)
	if v := values(t, one); v[Retries2] != 5 || len(would) != 2 {
		t.Errorf("a dry run restores: %v, %+v", v, would)
	}
	done := restore(t, s, list(found(t, dir)), false)
	for _, r := range done {
		if r.Outcome != Restored || r.Err != nil {
			t.Errorf("%+v", r)
		}
	}
	originals["one"][KeepaliveTime] = 60 // theirs now
	same(t, "one", originals["one"], values(t, one))
	same(t, "two", originals["two"], values(t, two))
	if st, err := s.Load(); err != nil || len(st.Records) != 0 {
		t.Errorf("left in the state: %+v, %v", st, err)
	}
}

func TestTheConfigChanges(t *testing.T) {
	ns := makeNS(t, t.TempDir(), "pod")
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json")}
	original := values(t, ns)
	for _, want := range []Values{profile, {Retries2: 6, SynRetries: 4, FinTimeout: 20}, {Retries2: 7}} {
		errs, _ := tune(t, s, want, Policy{}, ns)
		if errs[0] != nil {
			t.Fatal(errs[0])
		}
		expect := Values{}
		for k, v := range original {
			expect[k] = v
		}
		for k, v := range want {
			expect[k] = v
		}
		same(t, fmt.Sprint(want), expect, values(t, ns))
	}
	restore(t, s, []netns.Namespace{ns}, false)
	same(t, "restored", original, values(t, ns))
}

func TestDriftIsReportedRepairedAndGivenUp(t *testing.T) {
	ns := makeNS(t, t.TempDir(), "pod")
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json")}
	original := values(t, ns)
	tune(t, s, profile, Policy{}, ns)
	choose(t, ns, Retries2, 9)
	if _, plans := tune(t, s, profile, Policy{}, ns); plans[0][0].Action != Drifted || values(t, ns)[Retries2] != 9 {
		t.Errorf("report: %+v", plans[0][0])
	}
	for i := range MaxConflicts {
		if _, plans := tune(t, s, profile, Policy{Repair: true}, ns); !plans[0][0].Conflict || values(t, ns)[Retries2] != 5 {
			t.Errorf("repair %d: %+v", i, plans[0][0])
		}
		choose(t, ns, Retries2, 9)
	}
	if _, plans := tune(t, s, profile, Policy{Repair: true}, ns); !plans[0][0].GivenUp || values(t, ns)[Retries2] != 9 {
		t.Errorf("given up: %+v", plans[0][0])
	}
	restore(t, s, []netns.Namespace{ns}, false)
	original[Retries2] = 9
	same(t, "restored", original, values(t, ns))
}

func TestAllOfANamespaceOrNothing(t *testing.T) {
	ns := makeNS(t, t.TempDir(), "pod")
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json")}
	original := values(t, ns)
	bad := func(last int) []error {
		var errs []error
		onThread(t, func(th *netns.Thread) (err error) {
			items := Plan(original, nil, Values{Retries2: 5, KeepaliveTime: 15, SynRetries: last}, Policy{})
			errs, err = s.Apply(th, FS{}, []Job{{NS: ns, Items: items}})
			return err
		})
		return errs
	}
	// The kernel takes 1 to 127.
	if errs := bad(0); errs[0] == nil {
		t.Error("no error")
	}
	same(t, "after a write that failed", original, values(t, ns))
	choose(t, ns, KeepaliveTime, 60)
	if errs := bad(3); !errors.Is(errs[0], ErrChanged) {
		t.Errorf("changed since the plan: %v", errs[0])
	}
	original[KeepaliveTime] = 60
	same(t, "after a change", original, values(t, ns))
	if st, err := s.Load(); err != nil || len(st.Records) != 0 {
		t.Errorf("left in the state: %+v, %v", st, err)
	}
}

func TestANamespaceThatIsDeletedOrReplaced(t *testing.T) {
	dir := t.TempDir()
	ns := makeNS(t, dir, "pod")
	other := makeNS(t, dir, "other")
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json")}
	tune(t, s, profile, Policy{}, ns)
	// Somebody was given its inode: same file, other cookie.
	state, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	predecessor := state.Records[0]
	predecessor.ID = netns.ID{Dev: other.ID.Dev, Inode: other.ID.Inode, Cookie: other.ID.Cookie + 1_000_000}
	state.set(predecessor)
	if err := s.save(state); err != nil {
		t.Fatal(err)
	}
	choose(t, other, Retries2, 5) // which looks like ours
	if state.Of(other.ID) != nil {
		t.Error("the successor is taken for its predecessor")
	}
	onThread(t, func(th *netns.Thread) error {
		old := other
		old.ID = predecessor.ID
		if err := In(th, old, func() error { t.Error("entered"); return nil }); !errors.Is(err, netns.ErrGone) {
			t.Errorf("the way to the predecessor: %v", err)
		}
		return nil
	})
	if err := unix.Unmount(ns.Path, 0); err != nil {
		t.Fatal(err)
	}
	if errs, err := applyTo(t, s, ns); err != nil || !errors.Is(errs[0], netns.ErrGone) {
		t.Errorf("deleted: %v, %v", errs, err)
	}
	// Where some namespaces cannot be seen, nobody is gone.
	onThread(t, func(th *netns.Thread) error {
		out, err := s.Restore(th, FS{}, nil, false, nil, false)
		for _, r := range out {
			if r.Outcome != Unknown {
				t.Errorf("%+v", r)
			}
		}
		return err
	})
	for _, r := range restore(t, s, []netns.Namespace{other}, false) {
		if r.Outcome != Gone {
			t.Errorf("%+v", r)
		}
	}
	if v := values(t, other); v[Retries2] != 5 {
		t.Errorf("the successor was restored: %v", v)
	}
	if st, err := s.Load(); err != nil || len(st.Records) != 0 {
		t.Errorf("left in the state: %+v, %v", st, err)
	}
}

func applyTo(t *testing.T, s Store, ns netns.Namespace) (errs []error, err error) {
	onThread(t, func(th *netns.Thread) error {
		errs, err = s.Apply(th, FS{}, []Job{{NS: ns, Items: Plan(Values{Retries2: 15}, nil, profile, Policy{})}})
		return nil
	})
	return errs, err
}

func TestARelocatedRoot(t *testing.T) {
	// As in a container: the files of the thread's namespace at another place.
	root := filepath.Join(t.TempDir(), "sys", "net")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/sys/net", root, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	ns := makeNS(t, t.TempDir(), "pod")
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json")}
	onThread(t, func(th *netns.Thread) error {
		f := FS{Root: root}
		have, err := f.ReadIn(th, ns)
		if err != nil {
			return err
		}
		errs, err := s.Apply(th, f, []Job{{NS: ns, Items: Plan(have, nil, profile, Policy{})}})
		return errors.Join(err, errs[0])
	})
	if v := values(t, ns); v[Retries2] != 5 {
		t.Errorf("%v", v)
	}
	if v := (FS{Root: "/nonexistent"}).Writable(); v == nil {
		t.Error("a root that is not there is writable")
	}
}

// applyEnv has the test binary tune the namespaces in a directory.
const applyEnv = "RGT_APPLY"

func maybeApply() {
	dir, ok := os.LookupEnv(applyEnv)
	if !ok {
		return
	}
	err := func() error {
		th, err := netns.NewThread()
		if err != nil {
			return err
		}
		all, err := (&netns.Finder{MountDirs: []string{dir}}).Find(context.Background(), th)
		if err != nil {
			return err
		}
		s := Store{Path: os.Args[1]}
		n, _ := strconv.Atoi(os.Args[2])
		fmt.Println("ready")
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			return err
		}
		// Again and again under another config, so that a kill may meet any state.
		for ; ; n++ {
			state, err := s.Load()
			if err != nil {
				return err
			}
			want := Values{Retries2: 5 + n%3, KeepaliveTime: 15 + n%2, KeepaliveIntvl: 5, KeepaliveProbes: 3, SynRetries: 3 + n%2}
			var jobs []Job
			for _, ns := range all[1:] { // but the host's
				have, err := FS{}.ReadIn(th, ns)
				if err != nil {
					return err
				}
				items := Plan(have, state.Of(ns.ID), want, Policy{})
				jobs = append(jobs, Job{NS: ns, Items: items})
			}
			if errs, err := s.Apply(th, FS{}, jobs); err != nil || errors.Join(errs...) != nil {
				return errors.Join(append(errs, err)...)
			}
			fmt.Println("round")
		}
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestKilledAtAnyMoment(t *testing.T) {
	dir := t.TempDir()
	original := map[string]Values{}
	for i := range 12 {
		name := "pod" + strconv.Itoa(i)
		ns := makeNS(t, dir, name)
		if i%3 == 0 {
			choose(t, ns, KeepaliveProbes, 7) // somebody's
		}
		original[name] = values(t, ns)
	}
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json")}
	spaces := found(t, dir)
	half := 0 // kills that met a namespace in the middle
	for i := range 50 {
		cmd := exec.Command(os.Args[0], s.Path, strconv.Itoa(i))
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), applyEnv+"="+dir)
		cmd.Stderr = os.Stderr
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
		lines := bufio.NewScanner(out)
		lines.Scan()
		if lines.Text() != "ready" {
			t.Fatalf("the helper says %q", lines.Text())
		}
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(15 * time.Millisecond)) // the random moment, not a wait for something
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
		}
		cmd.Wait()

		state, err := s.Load()
		if err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
		for _, r := range state.Records {
			if r.Applying {
				half++
				break
			}
		}
		for _, r := range restore(t, s, list(spaces), false) {
			if r.Outcome != Restored {
				t.Errorf("kill %d: %+v", i, r)
			}
		}
		for name, want := range original {
			same(t, fmt.Sprintf("kill %d: %s", i, name), want, values(t, spaces[name]))
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of 50 kills came in the middle", half)
	if half < 5 {
		t.Errorf("only %d of 50 kills came in the middle of something: this shows nothing", half)
	}
}

// writeEnv has the test binary say whether it could write a sysctl.
const writeEnv = "RGT_WRITABLE"

func maybeWrite() {
	if os.Getenv(writeEnv) == "" {
		return
	}
	fmt.Print(FS{}.Writable())
	os.Exit(0)
}

func TestTheRightToWrite(t *testing.T) {
	// Where any user may read it.
	program := filepath.Join(t.TempDir(), "test")
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(program), filepath.Dir(filepath.Dir(program))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		caps []uintptr
		want string
	}{
		"nobody without CAP_NET_ADMIN": {nil, "cannot write net.ipv4.tcp_retries2: permission denied"},
		"nobody with it":               {[]uintptr{unix.CAP_NET_ADMIN}, "<nil>"},
	} {
		cmd := exec.Command(program)
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), writeEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: tt.caps}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != tt.want {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (FS{}).Read(); err != nil {
			b.Fatal(err)
		}
	}
}
