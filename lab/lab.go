// Package lab builds a small network out of network namespaces, puts real Redis
// servers and clients into it, and breaks it on purpose. It is what redisguard's
// tests, demo and benchmarks run on.
//
// A lab is one router between two local networks, so that clients have a gateway
// as they have on a real node, and a virtual address can be translated on the
// way as a managed Redis or kube-proxy does it:
//
//	client hosts ── 10.77.1.0/24 ──┐             ┌── 10.77.2.0/24 ── server hosts
//	                fd77:1::/64    ├─── router ──┤   fd77:2::/64
//	                               │             │
//	                          virtual addresses 10.77.9.0/24, fd77:9::/64
//
// Every host, the router and the switch is a network namespace named
// <prefix>-<name> under /run/netns, where redisguard finds it. Nothing leads
// from them to the machine's own network, so several labs can use the same
// addresses at once.
//
// A lab needs Linux, root, and no program but the redis-server it is asked to
// start. It removes only what it made itself: the kernel's identity of each
// namespace and process is written to /run/redisguard-lab/<prefix>.json before
// anything else can see it, and a lab that died without Close is removed by the
// next New, whatever its prefix.
//
// A program that starts clients (Host.Client) calls MaybeChild first thing in
// its main or TestMain.
package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Config says how to make a Lab.
type Config struct {
	// Prefix begins the name of each namespace: lower-case letters, digits and
	// hyphens, at most 24. If empty, "rglab<pid>".
	Prefix string
}

// Lab is a running network. Its methods may be called from several goroutines.
type Lab struct {
	prefix  string
	dir     string // files of the servers
	journal *journal
	starter *starter
	net     *topology
	rules   *ruleset
	workers sync.WaitGroup // one per process and per burst fault

	closing  sync.Once
	closeErr error

	mu        sync.Mutex
	processes map[*Process]struct{} // nil once the lab closes
}

// New cleans up after labs whose owner is dead and makes an empty one. It fails
// without root, if a living process owns the prefix, and if a namespace of a
// name it needs exists already.
func New(cfg Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("cannot make a lab: it needs root, for network namespaces of its own")
	}
	if cfg.Prefix == "" {
		cfg.Prefix = fmt.Sprintf("rglab%d", os.Getpid())
	}
	if !validName(cfg.Prefix) || len(cfg.Prefix) > 24 {
		return nil, fmt.Errorf("cannot make a lab: the prefix %q is not 1 to 24 of a-z, 0-9 and -", cfg.Prefix)
	}
	j, err := openJournal(cfg.Prefix)
	if err != nil {
		return nil, err
	}
	l := &Lab{
		prefix:    cfg.Prefix,
		dir:       filepath.Join(journalDir, cfg.Prefix),
		journal:   j,
		starter:   newStarter(),
		net:       newTopology(),
		rules:     newRuleset(),
		processes: make(map[*Process]struct{}),
	}
	if err := l.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make lab %s: %w", l.prefix, err), l.Close())
	}
	return l, nil
}

func (l *Lab) build() error {
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return err
	}
	if err := l.net.build(l.namespace); err != nil {
		return err
	}
	return l.rules.start(l.net.router)
}

// namespace makes a network namespace that the journal knows.
func (l *Lab) namespace(name string) (*namespace, error) {
	full := l.prefix + "-" + name
	if !validName(full) || len(full) > 64 {
		return nil, fmt.Errorf("cannot make host %q: a name is made of a-z, 0-9 and -", name)
	}
	return newNamespace(full, func(id identity) error {
		return l.journal.add(entry{Netns: &netnsEntry{Name: full, identity: id}})
	})
}

// Close ends every process of the lab, removes its namespaces and waits for its
// goroutines. Later calls return what the first one did.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		if err := l.close(); err != nil {
			l.closeErr = fmt.Errorf("cannot close lab %s: %w", l.prefix, err)
		}
	})
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	processes := l.processes
	l.processes = nil
	l.mu.Unlock()
	for p := range processes {
		p.kill()
	}
	l.rules.close()
	l.workers.Wait()
	l.starter.close()
	err := errors.Join(l.net.remove(), os.RemoveAll(l.dir))
	if err != nil {
		// The journal stays, for the next lab to try again.
		return errors.Join(err, l.journal.file.Close())
	}
	return l.journal.remove()
}

// validName is deliberately narrower than what a file name allows: it also
// stands in process titles and tables.
func validName(s string) bool {
	return s != "" && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
