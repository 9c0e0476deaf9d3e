package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/tcpstate"
)

// checkSuspend compares the two clocks of which one stands still while the
// machine sleeps.
func checkSuspend(context.Context, *node) Finding {
	var mono, boot unix.Timespec
	if err := errors.Join(unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono), unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)); err != nil {
		return cannotTell(fmt.Errorf("cannot read the clocks: %w", err))
	}
	return suspended(time.Duration(boot.Nano() - mono.Nano()))
}

func suspended(d time.Duration) Finding {
	if d < time.Second {
		return Finding{Status: OK, Evidence: "the machine has not been suspended since it booted"}
	}
	return Finding{Status: Warn, Evidence: fmt.Sprintf("the machine has been suspended for %v since it booted: after each time many connections are dead at once", d.Round(time.Second)),
		Remedy: "keep a server from suspending"}
}

func checkClockSync(context.Context, *node) Finding {
	var tx unix.Timex // modes 0: only asks
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return cannotTell(fmt.Errorf("cannot read the clock's state: %w", err))
	}
	return clockSync(state, tx.Status)
}

func clockSync(state int, status int32) Finding {
	if state == unix.TIME_ERROR || status&unix.STA_UNSYNC != 0 {
		return Finding{Status: Warn, Evidence: "the clock is not synchronised: the times in the log and the audit cannot be compared with other nodes'; judging does not depend on it",
			Remedy: "run an NTP client such as chrony or systemd-timesyncd"}
	}
	return Finding{Status: OK, Evidence: "the clock is synchronised"}
}

// finder looks for namespaces as the daemon does.
func (n *node) finder() netns.Finder {
	return netns.Finder{
		Walk:      n.procFS().WalkNetNS,
		MountDirs: []string{n.path("/run/netns"), n.path("/run/docker/netns")},
		HostPath:  n.path("/proc/1/ns/net"),
	}
}

func checkNamespaces(ctx context.Context, n *node) Finding {
	thread, err := netns.NewThread()
	if err != nil {
		return cannotTell(err)
	}
	defer thread.Close()
	finder := n.finder()
	list, err := finder.Find(ctx, thread)
	if len(list) == 0 {
		return cannotTell(errors.Join(errors.New("no network namespace was found"), err))
	}
	entered, named := 0, 0
	var first error
	for _, ns := range list {
		if err := thread.Visit(ns, func() error { return nil }); err == nil || errors.Is(err, netns.ErrGone) {
			entered++
		} else if first == nil {
			first = err
		}
		if ns.PID == 0 {
			named++
		}
	}
	f := Finding{Status: OK, Evidence: fmt.Sprintf("network namespaces seen: %d, of which %d have no process that we see and %d can be entered", len(list), named, entered)}
	if err := errors.Join(first, err); err != nil {
		f.Status = Warn
		f.Evidence += "; " + oneLine(err)
		f.Remedy = "run redisguard in the host's pid namespace, with CAP_SYS_ADMIN and CAP_SYS_PTRACE"
	}
	return f
}

func checkHostNamespace(ctx context.Context, n *node) Finding {
	ns, guessed, err := n.hostNamespace(ctx)
	switch {
	case err != nil:
		return cannotTell(err)
	case guessed != nil:
		return Finding{Status: Warn, Evidence: fmt.Sprintf("%s is taken for the host's by guess: %s", ns.ID, oneLine(guessed)),
			Remedy: "on a host this is right; in a container share the host's pid namespace and give redisguard CAP_SYS_PTRACE"}
	}
	return Finding{Status: OK, Evidence: fmt.Sprintf("%s is the host's", ns.ID)}
}

// hostNamespace is the host's namespace; guessed says why it is only our own.
func (n *node) hostNamespace(ctx context.Context) (ns netns.Namespace, guessed, err error) {
	thread, err := netns.NewThread()
	if err != nil {
		return netns.Namespace{}, nil, err
	}
	defer thread.Close()
	finder := n.finder()
	finder.Walk, finder.MountDirs = nil, []string{}
	list, err := finder.Find(ctx, thread)
	if len(list) == 0 {
		return netns.Namespace{}, nil, errors.Join(errors.New("cannot find the host's network namespace"), err)
	}
	return list[0], finder.HostErr, nil
}

func checkCgroups(_ context.Context, n *node) Finding {
	exists := func(p string) bool {
		_, err := os.Stat(n.path("/sys/fs/cgroup/" + p))
		return err == nil
	}
	switch {
	case exists("cgroup.controllers"):
		return Finding{Status: OK, Evidence: "cgroup v2"}
	case exists("unified/cgroup.procs"):
		return Finding{Status: OK, Evidence: "cgroup v1 and v2 side by side (hybrid)"}
	case exists("memory"), exists("systemd"), exists("pids"), exists("cpu"):
		return Finding{Status: OK, Evidence: "cgroup v1"}
	}
	// Processes' own files are what counts; the mounts are only the usual sign.
	if text, err := n.read("/proc/self/cgroup"); err == nil && text != "" {
		return Finding{Status: OK, Evidence: "cgroups are in use, though not mounted here"}
	}
	return Finding{Status: Warn, Evidence: "no cgroups: pods and units cannot be told, so nothing in [exclude] that names them matches",
		Remedy: "mount /sys/fs/cgroup, or use a kernel with CONFIG_CGROUPS"}
}

// sysctls reads numbers below net.ipv4 of the host's network namespace.
func (n *node) sysctls(ctx context.Context, names ...string) ([]int, error) {
	values := make([]int, len(names))
	read := func() error {
		for i, name := range names {
			text, err := n.read("/proc/sys/net/ipv4/" + name)
			if err != nil {
				return err
			}
			if values[i], err = strconv.Atoi(text); err != nil {
				return fmt.Errorf("cannot read net.ipv4.%s: %w", name, err)
			}
		}
		return nil
	}
	if n.root != "" {
		return values, read()
	}
	// /proc/sys/net is that of the thread's namespace.
	ns, guessed, err := n.hostNamespace(ctx)
	if err != nil {
		return nil, err
	}
	if guessed != nil {
		return values, read() // it is our own, where we need not go
	}
	return values, netns.Do(ns, read)
}

func checkRetries2(ctx context.Context, n *node) Finding {
	v, err := n.sysctls(ctx, "tcp_retries2")
	if err != nil {
		return cannotTell(err)
	}
	m := sysctl.Mean(sysctl.Values{sysctl.Retries2: v[0]}, 0)
	return Finding{Status: OK, Evidence: fmt.Sprintf("net.ipv4.tcp_retries2 is %d: left to the kernel, a client that writes to a lost host gets its error after about %s (each pod has its own value, 15 unless set)",
		v[0], sysctl.Words(m.Busy))}
}

func checkKeepalive(ctx context.Context, n *node) Finding {
	v, err := n.sysctls(ctx, "tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes")
	if err != nil {
		return cannotTell(err)
	}
	m := sysctl.Mean(sysctl.Values{sysctl.KeepaliveTime: v[0], sysctl.KeepaliveIntvl: v[1], sysctl.KeepaliveProbes: v[2]}, 0)
	return Finding{Status: OK, Evidence: fmt.Sprintf("net.ipv4.tcp_keepalive_time, _intvl, _probes are %d, %d, %d: an idle client notices a lost host after %s, and only if it turned keepalive on itself",
		v[0], v[1], v[2], sysctl.Words(m.Idle))}
}

// checkTune tells whether sysctls can be set, and what the host's mean.
func checkTune(ctx context.Context, n *node) Finding {
	ns, guessed, err := n.hostNamespace(ctx)
	if err != nil {
		return cannotTell(err)
	}
	var values sysctl.Values
	var writable error
	look := func() (err error) {
		writable = sysctl.FS{}.Writable()
		values, err = sysctl.FS{}.Read()
		return err
	}
	if guessed == nil {
		err = netns.Do(ns, look)
	} else {
		err = look() // it is our own, where we need not go
	}
	if err != nil {
		return cannotTell(err)
	}
	f := Finding{Status: OK, Evidence: "the host's limits: " + sysctl.Mean(values, 0).String()}
	store := sysctl.Store{Path: paths.Tuned(n.path(paths.State))}
	state, err := store.Load()
	switch {
	case errors.Is(err, sysctl.ErrRefused):
		return Finding{Status: Fail, Evidence: oneLine(err), Remedy: "look at the file: it has the original sysctls of tuned namespaces; then move it away"}
	case err == nil && len(state.Records) > 0:
		f.Evidence += fmt.Sprintf("; %d namespaces are tuned, redisguard restore takes that back", len(state.Records))
	}
	if writable != nil {
		f.Status, f.Evidence = Warn, f.Evidence+"; "+oneLine(writable)
		f.Remedy = "give redisguard CAP_NET_ADMIN and a /proc/sys that is not read-only; in a container mount the host's /proc/sys/net at /host/proc/sys/net"
	}
	return f
}

// checkMPTCP looks for clients that cannot be helped: ending a subflow is no
// news to the application, which sees the MPTCP connection.
func checkMPTCP(ctx context.Context, n *node) Finding {
	if n.survey == nil {
		return cannotTell(errors.New("connections were not looked at"))
	}
	all, mptcp := 0, 0
	where := ""
	looked, err := n.survey(ctx, n.config(), n.finder(), func(ns netns.Namespace, c *tcpstate.Connection) {
		all++
		if c.MPTCP {
			mptcp++
			where = ns.String()
		}
	})
	if err != nil {
		return cannotTell(err)
	}
	switch {
	case looked == 0:
		return cannotTell(errors.New("no network namespace could be looked at"))
	case mptcp > 0:
		return Finding{Status: Warn, Evidence: fmt.Sprintf("%d of %d connections to watched ports are MPTCP, as in namespace %s: they can be observed, not reaped", mptcp, all, where),
			Remedy: "turn MPTCP off in these clients, or set net.mptcp.enabled to 0 in their namespace"}
	}
	return Finding{Status: OK, Evidence: fmt.Sprintf("none of %d connections to watched ports is MPTCP", all)}
}

func checkConfig(_ context.Context, n *node) Finding {
	path, asked := n.file, n.file != ""
	if !asked {
		path = paths.Config
	}
	c, err := config.Load(path)
	switch {
	case err == nil:
		p := policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil)
		mode, _ := p.Mode(policy.Reap)
		return Finding{Status: OK, Evidence: fmt.Sprintf("%s is valid: connections to ports %d are in mode %s", path, p.Interest.Ports(), mode)}
	case !asked && errors.Is(err, fs.ErrNotExist):
		return Finding{Status: OK, Evidence: "there is no " + path + ": the defaults hold, which only observe"}
	}
	return Finding{Status: Fail, Evidence: oneLine(err), Remedy: "correct the file; redisguard config check tells when it is right"}
}
