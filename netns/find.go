package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Finder lists the network namespaces of the node. The zero value of each field
// takes the default named there. It remembers what it found, to spare a visit to
// every namespace at every look; it is for one goroutine at a time.
type Finder struct {
	// Walk calls fn with a process and the namespace of its main thread, for
	// all processes; proc.FS.WalkNetNS is made for it. Nil finds none by
	// process.
	Walk func(ctx context.Context, fn func(pid int, ns Key)) error
	// MountDirs are the directories where namespaces are bind-mounted, by
	// default /run/netns (iproute2, CNI) and /run/docker/netns.
	MountDirs []string
	// HostPath leads to the host's namespace, by default /proc/1/ns/net.
	HostPath string

	// HostErr is set by Find when HostPath was closed to us, so that our own
	// namespace was taken for the host's: right for a service on the host,
	// wrong in a container with a network of its own.
	HostErr error

	known map[Key]Namespace
}

// Find returns all network namespaces, the host's first and the others by inode,
// each once. What could not be looked at is told in the joined error, beside a
// list of everything else: a daemon that may not see some must still guard the
// others. It visits namespaces that it has not seen before, to read their
// cookies, and so wants a Thread.
func (f *Finder) Find(ctx context.Context, t *Thread) ([]Namespace, error) {
	found := map[Key]Namespace{}
	var errs []error
	host := f.HostPath
	if host == "" {
		host = "/proc/1/ns/net"
	}
	hostKey, err := nsfsKey(host)
	f.HostErr = nil
	if err != nil {
		// Process 1 may be closed to us, as without CAP_SYS_PTRACE.
		f.HostErr = fmt.Errorf("cannot see the host's network namespace, taking our own for it: %w", err)
		host = "/proc/thread-self/ns/net"
		if hostKey, err = nsfsKey(host); err != nil {
			return nil, err
		}
	}
	found[hostKey] = Namespace{ID: hostKey.ID(), Name: "host", Path: host}
	dirs := f.MountDirs
	if dirs == nil {
		dirs = []string{"/run/netns", "/run/docker/netns"}
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cannot list network namespaces: %w", err))
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			k, err := nsfsKey(path)
			if err != nil {
				// Between creating the file and mounting on it, and after
				// unmounting, it is an ordinary file: no namespace.
				continue
			}
			if _, ok := found[k]; !ok {
				found[k] = Namespace{ID: k.ID(), Name: e.Name(), Path: path}
			}
		}
	}
	if f.Walk != nil {
		err := f.Walk(ctx, func(pid int, k Key) {
			ns, ok := found[k]
			if ok && ns.PID != 0 {
				return
			}
			ns.ID, ns.PID = k.ID(), pid
			if ns.Path == "" {
				ns.Path = fmt.Sprintf("/proc/%d/ns/net", pid)
			}
			found[k] = ns
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot find network namespaces by their processes: %w", err))
		}
	}
	if err := f.addCookies(t, found); err != nil {
		errs = append(errs, err)
	}
	f.known = found
	return sorted(found, hostKey), errors.Join(errs...)
}

// addCookies completes the identities. A namespace known before keeps its
// cookie: if its inode has been used again since, the first visit to it that
// compares cookies will tell, and Forget makes the next Find read it anew.
func (f *Finder) addCookies(t *Thread, found map[Key]Namespace) error {
	var errs []error
	for k, ns := range found {
		if old, ok := f.known[k]; ok && old.Path == ns.Path && old.ID.Cookie != 0 {
			ns.ID.Cookie = old.ID.Cookie
			found[k] = ns
			continue
		}
		c, err := t.cookie(ns)
		switch {
		case errors.Is(err, ErrGone):
			delete(found, k)
			continue
		case err != nil:
			errs = append(errs, err)
		}
		ns.ID.Cookie = c
		found[k] = ns
	}
	if len(errs) > 3 {
		errs = append(errs[:3], fmt.Errorf("and %d namespaces more", len(errs)-3))
	}
	return errors.Join(errs...)
}

// Forget drops what is remembered about a namespace, so that the next Find
// identifies it anew.
func (f *Finder) Forget(id ID) { delete(f.known, id.Key()) }

// nsfsKey identifies the namespace behind path.
func nsfsKey(path string) (Key, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return Key{}, fmt.Errorf("cannot identify %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return Key{}, fmt.Errorf("%s is no namespace", path)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Key{}, fmt.Errorf("cannot identify %s: %w", path, err)
	}
	return Key{st.Dev, st.Ino}, nil
}

func sorted(found map[Key]Namespace, host Key) []Namespace {
	list := make([]Namespace, 0, len(found))
	for _, ns := range found {
		list = append(list, ns)
	}
	slices.SortFunc(list, func(a, b Namespace) int {
		if ah, bh := a.ID.Key() == host, b.ID.Key() == host; ah != bh {
			if ah {
				return -1
			}
			return 1
		}
		if a.ID.Inode != b.ID.Inode {
			if a.ID.Inode < b.ID.Inode {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return list
}
