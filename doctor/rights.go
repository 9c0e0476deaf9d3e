package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/rights"
)

// statusField is one line of /proc/self/status.
func (n *node) statusField(name string) (string, error) {
	text, err := n.read("/proc/self/status")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no line %s", n.path("/proc/self/status"), name)
}

func (n *node) capabilities() (uint64, error) {
	text, err := n.statusField("CapEff")
	if err != nil {
		return 0, err
	}
	caps, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot read capabilities %q: %w", text, err)
	}
	return caps, nil
}

func checkCapabilities(_ context.Context, n *node) Finding {
	caps, err := n.capabilities()
	if err != nil {
		return cannotTell(err)
	}
	f := Finding{Status: OK}
	var have, missing, names []string
	for _, r := range rights.List() {
		if caps&(1<<r.Number) != 0 {
			have = append(have, r.Name)
			continue
		}
		if r.Number == unix.CAP_DAC_READ_SEARCH && caps&(1<<unix.CAP_SYS_PTRACE) != 0 && n.infoHasInode() {
			continue
		}
		missing = append(missing, fmt.Sprintf("without %s %s", r.Name, r.Lost))
		names = append(names, r.Name)
		if r.Vital {
			f.Status = Fail
		} else {
			f.Status = max(f.Status, Warn)
		}
	}
	if len(missing) == 0 {
		f.Evidence = strings.Join(have, ", ")
		return f
	}
	f.Evidence = strings.Join(missing, "; ")
	f.Remedy = "run redisguard as root, or give it " + strings.Join(names, ", ")
	return f
}

// infoHasInode says whether /proc/<pid>/fdinfo tells sockets (Linux 5.14), for which
// CAP_SYS_PTRACE is enough.
func (n *node) infoHasInode() bool {
	text, err := n.read("/proc/self/fdinfo/0")
	return err == nil && strings.Contains(text, "\nino:")
}

func checkYama(_ context.Context, n *node) Finding {
	scope, err := n.read("/proc/sys/kernel/yama/ptrace_scope")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Finding{Status: OK, Evidence: "Yama is not active"}
	case err != nil:
		return cannotTell(err)
	case scope == "3":
		return Finding{Status: Warn, Evidence: "kernel.yama.ptrace_scope is 3: nobody may take other processes' descriptors, so no option can be set on their sockets",
			Remedy: "set kernel.yama.ptrace_scope to 2 at boot; it cannot be lowered from 3 before"}
	case scope == "0", scope == "1", scope == "2":
		return Finding{Status: OK, Evidence: fmt.Sprintf("kernel.yama.ptrace_scope is %s, which CAP_SYS_PTRACE passes", scope)}
	}
	return Finding{Evidence: fmt.Sprintf("kernel.yama.ptrace_scope is %q", scope)}
}

// checkSeccomp only names the mode: what a filter forbids, setns and pidfd-getfd
// have tried.
func checkSeccomp(_ context.Context, n *node) Finding {
	mode, err := n.statusField("Seccomp")
	if err != nil {
		return cannotTell(err)
	}
	switch mode {
	case "0":
		return Finding{Status: OK, Evidence: "no seccomp filter on redisguard"}
	case "2":
		return Finding{Status: OK, Evidence: "a seccomp filter is on redisguard; setns and pidfd-getfd above say what it allows"}
	}
	return Finding{Evidence: fmt.Sprintf("seccomp mode %q", mode)}
}

func checkHidepid(_ context.Context, n *node) Finding {
	mounts, err := n.read("/proc/self/mounts")
	if err != nil {
		return cannotTell(err)
	}
	value := parseHidepid(mounts)
	if value == "" || value == "0" || value == "off" {
		return Finding{Status: OK, Evidence: "/proc shows all processes"}
	}
	caps, err := n.capabilities()
	if err == nil && caps&(1<<unix.CAP_SYS_PTRACE) != 0 && value != "4" && value != "ptraceable" {
		return Finding{Status: OK, Evidence: fmt.Sprintf("/proc is mounted with hidepid=%s, which CAP_SYS_PTRACE passes", value)}
	}
	return Finding{Status: Warn, Evidence: fmt.Sprintf("/proc is mounted with hidepid=%s: owners of connections and namespaces of other users stay unknown", value),
		Remedy: "run redisguard with CAP_SYS_PTRACE, or in the group of the mount option gid="}
}

// parseHidepid is the option of the last mount on /proc, which is the one that
// is seen; "" if it has none.
func parseHidepid(mounts string) string {
	value := ""
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 || f[1] != "/proc" || f[2] != "proc" {
			continue
		}
		value = ""
		for option := range strings.SplitSeq(f[3], ",") {
			if v, ok := strings.CutPrefix(option, "hidepid="); ok {
				value = v
			}
		}
	}
	return value
}

// fewDescriptors is below what redisguard may need at once: sockets of probes
// and of the API's clients. Go raises the soft limit to the hard one by itself.
const fewDescriptors = 1024

func checkDescriptors(context.Context, *node) Finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return cannotTell(fmt.Errorf("cannot read the limit of descriptors: %w", err))
	}
	f := Finding{Status: OK, Evidence: fmt.Sprintf("up to %d open descriptors", limit.Cur)}
	if limit.Cur < fewDescriptors {
		f.Status, f.Remedy = Warn, fmt.Sprintf("raise LimitNOFILE of the service to %d or more", fewDescriptors)
	}
	return f
}
