package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/tcpstate"
)

// parseRelease takes major and minor from "6.18.44-generic".
func parseRelease(s string) (major, minor int, ok bool) {
	number := func(s string) (int, string, bool) {
		end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(s)
		}
		n, err := strconv.Atoi(s[:end])
		return n, s[end:], err == nil
	}
	major, rest, ok1 := number(s)
	rest, dot := strings.CutPrefix(rest, ".")
	minor, _, ok2 := number(rest)
	return major, minor, ok1 && dot && ok2
}

// since are the kernel's versions that brought what redisguard uses. What a
// distribution has ported back, the checks that try it will find.
var since = []struct {
	major, minor int
	what         string
	status       Status
}{
	{4, 9, "ending connections (SOCK_DESTROY)", Fail},
	{4, 12, "SO_COOKIE", Warn},
	{5, 6, "setting options on other processes' sockets (pidfd_getfd)", Warn},
	{5, 14, "telling reused network namespaces apart (SO_NETNS_COOKIE)", Warn},
}

func checkKernel(_ context.Context, n *node) Finding {
	release, err := n.read("/proc/sys/kernel/osrelease")
	if err != nil {
		return cannotTell(err)
	}
	major, minor, ok := parseRelease(release)
	if !ok {
		return Finding{Evidence: fmt.Sprintf("the kernel calls itself %q", release)}
	}
	f := Finding{Status: OK, Evidence: "Linux " + release}
	var lacks []string
	for _, s := range since {
		if major < s.major || major == s.major && minor < s.minor {
			lacks = append(lacks, fmt.Sprintf("%s needs %d.%d", s.what, s.major, s.minor))
			f.Status = max(f.Status, s.status)
		}
	}
	if len(lacks) > 0 {
		f.Evidence += ": " + strings.Join(lacks, ", ")
		f.Remedy = "run a newer kernel, unless the checks below find these things ported back"
	}
	return f
}

func checkSockDiag(context.Context, *node) Finding {
	return sockDiag(tcpstate.ProbeCapabilities().Dump)
}

func sockDiag(c tcpstate.Capability) Finding {
	switch c.Support {
	case tcpstate.Supported:
		return Finding{Status: OK, Evidence: "the kernel lists TCP connections"}
	case tcpstate.NotSupported:
		return Finding{Status: Fail, Evidence: "the kernel does not list TCP connections: " + oneLine(c.Err),
			Remedy: "load the modules inet_diag and tcp_diag, or use a kernel with CONFIG_INET_TCP_DIAG"}
	}
	return cannotTell(c.Err)
}

func checkSockDestroy(_ context.Context, n *node) Finding {
	c := tcpstate.ProbeCapabilities().Destroy
	// The kernel looks for the connection first and for the privilege then, so
	// that the probe, which names no connection, does not get to the second.
	if caps, err := n.capabilities(); c.Support == tcpstate.Supported && err == nil && caps&(1<<unix.CAP_NET_ADMIN) == 0 {
		c = tcpstate.Capability{Support: tcpstate.NotSupported, Err: tcpstate.ErrNotPermitted}
	}
	return sockDestroy(c)
}

func sockDestroy(c tcpstate.Capability) Finding {
	switch {
	case c.Support == tcpstate.Supported:
		return Finding{Status: OK, Evidence: "the kernel ends connections for us"}
	case errors.Is(c.Err, tcpstate.ErrNotPermitted):
		return Finding{Status: Fail, Evidence: "connections cannot be ended: " + oneLine(c.Err),
			Remedy: "run redisguard with CAP_NET_ADMIN"}
	case c.Support == tcpstate.NotSupported:
		return Finding{Status: Warn, Evidence: "this kernel has no SOCK_DESTROY: connections are shut down through pidfd_getfd instead",
			Remedy: "use a kernel with CONFIG_INET_DIAG_DESTROY"}
	}
	return cannotTell(c.Err)
}

// withSocket calls fn with a socket that is closed afterwards.
func withSocket(fn func(fd int) Finding) Finding {
	fd, err := sys.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return cannotTell(fmt.Errorf("cannot open a socket: %w", err))
	}
	defer sys.Close(fd)
	return fn(fd)
}

func checkSocketCookie(context.Context, *node) Finding {
	return withSocket(func(fd int) Finding {
		_, err := sys.SocketCookie(fd)
		switch {
		case err == nil:
			return Finding{Status: OK, Evidence: "sockets have cookies (SO_COOKIE)"}
		case errors.Is(err, unix.ENOPROTOOPT):
			return Finding{Status: Warn, Evidence: "no SO_COOKIE: a descriptor of another process cannot be verified, so none is touched",
				Remedy: "use Linux 4.12 or newer"}
		}
		return cannotTell(fmt.Errorf("cannot read SO_COOKIE: %w", err))
	})
}

func checkNetNSCookie(context.Context, *node) Finding {
	_, ok, err := sys.NetNSCookie()
	switch {
	case err != nil:
		return cannotTell(err)
	case !ok:
		return Finding{Status: Warn, Evidence: "no SO_NETNS_COOKIE: a network namespace is known by its inode only, which may be used again",
			Remedy: "use Linux 5.14 or newer"}
	}
	return Finding{Status: OK, Evidence: "network namespaces have cookies (SO_NETNS_COOKIE)"}
}

// checkPidfdGetfd tries it on ourselves, which needs no privilege: what remains
// is whether the kernel has it and lets us call it.
func checkPidfdGetfd(context.Context, *node) Finding {
	const less = "options on other processes' sockets cannot be set, and nothing replaces SOCK_DESTROY where it is missing"
	return withSocket(func(fd int) Finding {
		pidfd, err := sys.PidfdOpen(os.Getpid(), 0)
		if err == nil {
			defer sys.Close(pidfd)
			var dup int
			if dup, err = sys.PidfdGetfd(pidfd, fd, 0); err == nil {
				sys.Close(dup)
				return Finding{Status: OK, Evidence: "pidfd_getfd works on our own process"}
			}
		}
		switch {
		case errors.Is(err, unix.ENOSYS):
			return Finding{Status: Warn, Evidence: "no pidfd_getfd: " + less, Remedy: "use Linux 5.6 or newer, or a seccomp profile that knows pidfd_getfd"}
		case errors.Is(err, unix.EPERM):
			return Finding{Status: Warn, Evidence: "pidfd_getfd is forbidden even on ourselves: " + less, Remedy: "allow pidfd_open and pidfd_getfd in the seccomp profile"}
		}
		return cannotTell(fmt.Errorf("cannot call pidfd_getfd: %w", err))
	})
}

// checkSetns enters the namespace that the thread is in already.
func checkSetns(context.Context, *node) Finding {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := sys.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return cannotTell(fmt.Errorf("cannot open our own network namespace: %w", err))
	}
	defer sys.Close(fd)
	switch err := unix.Setns(fd, unix.CLONE_NEWNET); {
	case err == nil:
		return Finding{Status: OK, Evidence: "network namespaces can be entered"}
	case errors.Is(err, unix.EPERM):
		return Finding{Status: Fail, Evidence: "network namespaces cannot be entered: only our own is watched, no pod",
			Remedy: "run redisguard with CAP_SYS_ADMIN, and with a seccomp profile that allows setns"}
	default:
		return cannotTell(fmt.Errorf("cannot enter our own network namespace: %w", err))
	}
}

const connectEventsID = "events/sock/inet_sock_set_state/id"

// checkConnectEvents looks for the tracepoint that tells of new connections. Its number
// is in tracefs, which need not be mounted: a mount that no other process sees is
// enough.
func checkConnectEvents(_ context.Context, n *node) Finding {
	var found string
	var lastErr error
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		id, err := n.read(dir + "/" + connectEventsID)
		if err == nil {
			found = fmt.Sprintf("tracepoint %s in %s", id, dir)
			break
		}
		lastErr = err
	}
	if found == "" && n.root == "" {
		id, err := privateTracefs()
		if err == nil {
			found = fmt.Sprintf("tracepoint %s by a private mount of tracefs", id)
		}
		lastErr = err
	}
	if found != "" {
		return Finding{Status: OK, Evidence: "new connections can be told by the kernel: " + found}
	}
	f := Finding{Status: Warn, Evidence: "new connections are found by looking only, within watch.discovery: " + oneLine(lastErr)}
	if errors.Is(lastErr, fs.ErrPermission) {
		f.Remedy = "run redisguard with CAP_SYS_ADMIN"
	} else {
		f.Remedy = "use a kernel with CONFIG_FTRACE and tracefs if that is too slow"
	}
	return f
}

// privateTracefs reads the tracepoint's number from a detached mount.
func privateTracefs() (string, error) {
	dir, err := sys.OpenTracefs()
	if err != nil {
		return "", err
	}
	defer dir.Close()
	id, err := sys.ReadAt(dir, connectEventsID)
	if err != nil {
		return "", fmt.Errorf("cannot read the tracepoint's number in tracefs: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
