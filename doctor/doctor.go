// Package doctor looks at a node with the eyes of redisguard: what this kernel,
// these privileges and this configuration allow, and what to do about the rest.
//
// It is a list of small checks that know nothing of each other. They run in
// parallel, each with a time limit; one that hangs or panics is a finding of its
// own and hides no other. Nothing is changed by them.
package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

// Status is what a check came to. The zero value is the careful one.
type Status uint8

// The statuses.
const (
	CouldNotTell Status = iota
	OK
	Warn // redisguard works, with less
	Fail // a job cannot be done
)

func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Warn:
		return "warn"
	case Fail:
		return "fail"
	}
	return "could not tell"
}

// Finding is the answer of one check.
type Finding struct {
	Check    string // its name, stable
	Status   Status
	Evidence string // what was seen, one line
	Remedy   string // what to do, one line; "" if nothing need be done
}

// Config says where to look.
type Config struct {
	// Root is put before the paths of /proc, /sys and /run that are read. If
	// empty, those of the running system. What is asked by system calls is the
	// running kernel's in any case.
	Root string
	// File is the config file to check. If empty, the default path, where a
	// missing file is fine.
	File string
	// Timeout bounds each check, and five times as long those that wait for other hosts. If
	// 0, 2 s.
	Timeout time.Duration
	// Survey calls each with every watched connection in the namespaces that finder finds,
	// and returns into how many it could look.
	Survey func(ctx context.Context, c config.Config, finder netns.Finder, each func(netns.Namespace, *tcpstate.Connection)) (looked int, err error)
	// Arming looks how connections stand, with processes from files and namespaces that
	// are mounted below mounts. If nil, that is not checked: it takes more of redisguard
	// than a check should know.
	Arming func(ctx context.Context, c config.Config, files proc.FS, mounts []string) (Arming, error)
	// Problems asks a running daemon what is wrong with each of its targets, by their names.
	// If nil, that is not asked.
	Problems func(ctx context.Context) (map[string][]string, error)
}

// check is one thing to look at. run need not name itself in its answer.
type check struct {
	name   string
	run    func(context.Context, *node) Finding
	remote bool // it waits for other hosts, and has remotePatience times as long
}

// remotePatience: names that are looked up, and then servers that are asked one after another,
// of which some may be gone, take longer than a look at this node.
const remotePatience = 5

// checks is all of them that every node has, in the order in which they are shown.
func checks() []check {
	return []check{
		{name: "kernel", run: checkKernel},
		{name: "sock-diag", run: checkSockDiag},
		{name: "sock-destroy", run: checkSockDestroy},
		{name: "socket-cookie", run: checkSocketCookie},
		{name: "netns-cookie", run: checkNetNSCookie},
		{name: "pidfd-getfd", run: checkPidfdGetfd},
		{name: "setns", run: checkSetns},
		{name: "connect-events", run: checkConnectEvents},
		{name: "capabilities", run: checkCapabilities},
		{name: "yama", run: checkYama},
		{name: "seccomp", run: checkSeccomp},
		{name: "hidepid", run: checkHidepid},
		{name: "descriptors", run: checkDescriptors},
		{name: "suspend", run: checkSuspend},
		{name: "clock-sync", run: checkClockSync},
		{name: "namespaces", run: checkNamespaces},
		{name: "host-namespace", run: checkHostNamespace},
		{name: "cgroups", run: checkCgroups},
		{name: "tcp-retries2", run: checkRetries2},
		{name: "tcp-keepalive", run: checkKeepalive},
		{name: "tune", run: checkTune},
		{name: "arm", run: checkArm},
		{name: "mptcp", run: checkMPTCP},
		{name: "config", run: checkConfig},
	}
}

// Run runs all checks and returns their findings in a fixed order.
func Run(ctx context.Context, cfg Config) []Finding {
	n := &node{root: cfg.Root, file: cfg.File, survey: cfg.Survey, arming: cfg.Arming, problems: cfg.Problems}
	return run(ctx, n, cfg.Timeout, append(checks(), targetChecks(n)...))
}

func run(ctx context.Context, n *node, timeout time.Duration, list []check) []Finding {
	if timeout == 0 {
		timeout = 2 * time.Second
	}
	answers := make([]chan Finding, len(list))
	for i, c := range list {
		answers[i] = make(chan Finding, 1)
		go func() { answers[i] <- c.try(ctx, n, timeout) }()
	}
	findings := make([]Finding, len(list))
	for i := range list {
		findings[i] = <-answers[i]
	}
	return findings
}

// try runs the check on a goroutine that it gives up when the time is over:
// nothing ends a system call that hangs, as on a dead network file system.
func (c check) try(ctx context.Context, n *node, timeout time.Duration) Finding {
	if c.remote {
		timeout *= remotePatience
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan Finding, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- Finding{Evidence: fmt.Sprintf("the check itself failed: %v", p), Remedy: "report this as a bug of redisguard"}
			}
		}()
		done <- c.run(ctx, n)
	}()
	var f Finding
	select {
	case f = <-done:
	case <-ctx.Done():
		f = Finding{Evidence: fmt.Sprintf("no answer within %v", timeout)}
	}
	f.Check = c.name
	return f
}

// node is what the checks look at. They share it, so it does not change.
type node struct {
	root   string
	file   string
	survey func(context.Context, config.Config, netns.Finder, func(netns.Namespace, *tcpstate.Connection)) (int, error)
	arming func(context.Context, config.Config, proc.FS, []string) (Arming, error)
	// problems is Config.Problems.
	problems func(context.Context) (map[string][]string, error)
}

func (n *node) path(p string) string { return filepath.Join("/", n.root, p) }

// read returns the trimmed text of a small file.
func (n *node) read(p string) (string, error) {
	data, err := os.ReadFile(n.path(p))
	return strings.TrimSpace(string(data)), err
}

func (n *node) procFS() proc.FS { return proc.FS{Proc: n.path("/proc")} }

// config is the config in effect, or the defaults if it is invalid.
func (n *node) config() config.Config {
	path := n.file
	if path == "" {
		path = paths.Config
	}
	if c, err := config.Load(path); err == nil {
		return c
	}
	return config.Default()
}

// cannotTell is the finding of a check that could not look.
func cannotTell(err error) Finding { return Finding{Evidence: oneLine(err)} }

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}
