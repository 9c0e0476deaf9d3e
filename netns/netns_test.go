package netns

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// makeNS makes a network namespace and mounts it on dir/name.
func makeNS(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errc <- err
			return
		}
		errc <- unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	}()
	if err := <-errc; err != nil {
		t.Fatalf("cannot make a network namespace (needs root): %v", err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func find(t *testing.T, f *Finder) []Namespace {
	t.Helper()
	var list []Namespace
	errc := make(chan error, 1)
	go func() {
		th, err := NewThread()
		if err != nil {
			errc <- err
			return
		}
		defer th.Close()
		list, err = f.Find(context.Background(), th)
		errc <- err
	}()
	if err := <-errc; err != nil {
		t.Fatal(err)
	}
	return list
}

func byName(list []Namespace, name string) (Namespace, bool) {
	for _, ns := range list {
		if ns.Name == name {
			return ns, true
		}
	}
	return Namespace{}, false
}

func TestFindAndVisit(t *testing.T) {
	dir := t.TempDir()
	makeNS(t, dir, "one")
	makeNS(t, dir, "two")
	if err := os.WriteFile(filepath.Join(dir, "plain-file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f := &Finder{MountDirs: []string{dir, "/nonexistent"}}
	list := find(t, f)
	if list[0].Name != "host" {
		t.Errorf("first is %v, want the host", list[0])
	}
	one, ok1 := byName(list, "one")
	two, ok2 := byName(list, "two")
	if !ok1 || !ok2 || len(list) != 3 {
		t.Fatalf("found %v", list)
	}
	if one.ID == two.ID || one.ID.Cookie == 0 || one.ID.Cookie == two.ID.Cookie {
		t.Errorf("not told apart: %+v, %+v", one.ID, two.ID)
	}
	err := Do(one, func() error {
		var st unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
			return err
		}
		if st.Ino != one.ID.Inode {
			t.Errorf("in %d, want %d", st.Ino, one.ID.Inode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestVisitOfAGoneOrReplacedNamespace(t *testing.T) {
	dir := t.TempDir()
	path := makeNS(t, dir, "pod")
	ns, _ := byName(find(t, &Finder{MountDirs: []string{dir}}), "pod")
	if err := unix.Unmount(path, 0); err != nil {
		t.Fatal(err)
	}
	never := func() error { t.Error("fn was called"); return nil }
	if err := Do(ns, never); !errors.Is(err, ErrGone) {
		t.Errorf("a plain file: %v, want ErrGone", err)
	}
	os.Remove(path)
	if err := Do(ns, never); !errors.Is(err, ErrGone) {
		t.Errorf("no file: %v, want ErrGone", err)
	}
	keep := makeNS(t, dir, "other") // takes an inode of its own
	_ = keep
	makeNS(t, dir, "pod")
	ns.ID.Inode++ // whatever is there now, it is not what was identified
	if err := Do(ns, never); !errors.Is(err, ErrGone) {
		t.Errorf("another namespace: %v, want ErrGone", err)
	}
}

func TestThreadIsHomeAfterErrorAndPanic(t *testing.T) {
	dir := t.TempDir()
	makeNS(t, dir, "pod")
	ns, _ := byName(find(t, &Finder{MountDirs: []string{dir}}), "pod")
	done := make(chan struct{})
	go func() {
		defer close(done)
		th, err := NewThread()
		if err != nil {
			t.Error(err)
			return
		}
		defer th.Close()
		before, err := nsfsKey("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		want := errors.New("mine")
		if err := th.Visit(ns, func() error { return want }); !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
		func() {
			defer func() { _ = recover() }()
			_ = th.Visit(ns, func() error { panic("in a foreign namespace") })
		}()
		after, err := nsfsKey("/proc/thread-self/ns/net")
		if err != nil || after != before {
			t.Errorf("the thread is in %v (%v), its home is %v", after, err, before)
		}
	}()
	<-done
}

func TestFindByProcess(t *testing.T) {
	dir := t.TempDir()
	path := makeNS(t, dir, "pod")
	k, err := nsfsKey(path)
	if err != nil {
		t.Fatal(err)
	}
	// A process that lives in the namespace is played by a bind mount in a
	// directory that the finder does not look into.
	f := &Finder{MountDirs: []string{}, Walk: func(_ context.Context, fn func(int, Key)) error {
		fn(os.Getpid(), k) // a lie: our pid is in the host's namespace
		return nil
	}}
	list := find(t, f)
	for _, ns := range list {
		if ns.ID.Inode == k.Inode {
			t.Errorf("a namespace whose process is elsewhere by now was listed: %v", ns)
		}
	}
	if len(list) != 1 {
		t.Errorf("found %v, want the host alone", list)
	}
}

func TestNothingIsPinned(t *testing.T) {
	count := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	dir := t.TempDir()
	for i := range 20 {
		makeNS(t, dir, "pod"+strconv.Itoa(i))
	}
	f := &Finder{MountDirs: []string{dir}}
	find(t, f)
	before := count()
	for range 5 {
		for _, ns := range find(t, f) {
			if err := Do(ns, func() error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors after, %d before", after, before)
	}
}

func BenchmarkVisit(b *testing.B) {
	path := filepath.Join(b.TempDir(), "pod")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		b.Fatal(err)
	}
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			errc <- err
			return
		}
		errc <- unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	}()
	if err := <-errc; err != nil {
		b.Fatal(err)
	}
	defer unix.Unmount(path, unix.MNT_DETACH)
	th, err := NewThread()
	if err != nil {
		b.Fatal(err)
	}
	defer th.Close()
	k, err := nsfsKey(path)
	if err != nil {
		b.Fatal(err)
	}
	ns := Namespace{ID: k.ID(), Path: path}
	b.ReportAllocs()
	for b.Loop() {
		if err := th.Visit(ns, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
