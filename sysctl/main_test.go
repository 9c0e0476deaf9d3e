package sysctl

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
)

func TestMain(m *testing.M) {
	maybeApply()
	maybeWrite()
	labtest.Main(m)
}

// makeNS makes a network namespace and mounts it on dir/name.
func makeNS(t *testing.T, dir, name string) netns.Namespace {
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
	return found(t, dir)[name]
}

// found are the namespaces that are mounted in dir.
func found(t *testing.T, dir string) map[string]netns.Namespace {
	t.Helper()
	named := map[string]netns.Namespace{}
	onThread(t, func(th *netns.Thread) error {
		list, err := (&netns.Finder{MountDirs: []string{dir}}).Find(t.Context(), th)
		for _, ns := range list {
			if ns.Name != "host" {
				named[ns.Name] = ns
			}
		}
		return err
	})
	return named
}

func list(named map[string]netns.Namespace) (all []netns.Namespace) {
	for _, ns := range named {
		all = append(all, ns)
	}
	return all
}

// onThread runs fn on a thread that may visit namespaces.
func onThread(t testing.TB, fn func(*netns.Thread) error) {
	t.Helper()
	errc := make(chan error, 1)
	go func() {
		th, err := netns.NewThread()
		if err != nil {
			errc <- err
			return
		}
		defer th.Close()
		errc <- fn(th)
	}()
	if err := <-errc; err != nil {
		t.Fatal(err)
	}
}

// values of a namespace.
func values(t testing.TB, ns netns.Namespace) (v Values) {
	t.Helper()
	onThread(t, func(th *netns.Thread) (err error) {
		v, err = FS{}.ReadIn(th, ns)
		return err
	})
	return v
}

// choose writes a value as somebody else would.
func choose(t testing.TB, ns netns.Namespace, k Key, v int) {
	t.Helper()
	onThread(t, func(th *netns.Thread) error {
		return In(th, ns, func() error { return os.WriteFile(FS{}.path(k), []byte(strconv.Itoa(v)), 0) })
	})
}

var profile = Values{Retries2: 5, KeepaliveTime: 15, KeepaliveIntvl: 5, KeepaliveProbes: 3, SynRetries: 3}

// tune plans and applies.
func tune(t testing.TB, s Store, want Values, p Policy, spaces ...netns.Namespace) (errs []error, plans [][]Item) {
	t.Helper()
	onThread(t, func(th *netns.Thread) error {
		state, err := s.Load()
		if err != nil {
			return err
		}
		var jobs []Job
		for _, ns := range spaces {
			have, err := FS{}.ReadIn(th, ns)
			if err != nil {
				return err
			}
			items := Plan(have, state.Of(ns.ID), want, p)
			plans = append(plans, items)
			jobs = append(jobs, Job{NS: ns, Items: items})
		}
		errs, err = s.Apply(th, FS{}, jobs)
		return err
	})
	return errs, plans
}

func restore(t testing.TB, s Store, spaces []netns.Namespace, dryRun bool) (out []Restoration) {
	t.Helper()
	onThread(t, func(th *netns.Thread) (err error) {
		out, err = s.Restore(th, FS{}, spaces, true, nil, dryRun)
		return err
	})
	return out
}
