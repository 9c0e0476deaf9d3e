// Package rights is the one list of what redisguard needs of the kernel's privileges:
// for which operation, and what is lost without. The daemon's warnings, doctor, the gate
// of the jobs and the packages' units go by it.
package rights

import (
	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// Job is a part of redisguard that does less, or nothing, without a right.
type Job string

// The jobs. Reap and Arm stop without their right; the others see or do less.
const (
	Reap     Job = "reap"
	Arm      Job = "arm"
	Discover Job = "discover"
)

// Right is a capability with what it is needed for.
type Right struct {
	Number    int // in linux/capability.h
	Name      string
	Operation string // what the kernel asks it for
	Lost      string // what is not done without it, as a sentence without its end
	Job       Job    // that suffers most
	// Vital says that the job cannot be done at all without it.
	Vital bool
	// Until is the kernel from which on it is needed no more, "" if it always is.
	Until string
}

// List is everything that is needed, in the order of importance.
func List() []Right {
	return []Right{
		{
			Number: unix.CAP_NET_ADMIN, Name: "CAP_NET_ADMIN", Job: Reap, Vital: true,
			Operation: "ending connections (SOCK_DESTROY), asking neighbours, marking probes, writing sysctls",
			Lost:      "connections are only observed, none can be ended",
		},
		{
			Number: unix.CAP_SYS_ADMIN, Name: "CAP_SYS_ADMIN", Job: Discover, Vital: true,
			Operation: "entering network namespaces (setns), the tracepoints",
			Lost:      "no network namespace but our own is seen, and no pod with it",
		},
		{
			Number: unix.CAP_SYS_PTRACE, Name: "CAP_SYS_PTRACE", Job: Arm,
			Operation: "finding namespaces and sockets of other users' processes, setting options on their sockets (pidfd_getfd)",
			Lost:      "namespaces and owners of other users' processes stay unknown, connections without a known process are mostly only observed, and no option can be set on their sockets",
		},
		{
			// It also opens the environ of all: since Linux 5.14 /proc/<pid>/fdinfo
			// tells sockets, for which CAP_SYS_PTRACE is enough.
			Number: unix.CAP_DAC_READ_SEARCH, Name: "CAP_DAC_READ_SEARCH", Job: Discover, Until: "5.14",
			Operation: "listing the descriptors of other users' processes",
			Lost:      "the processes of other users' connections stay unknown",
		},
	}
}

// Of is the right to a capability, which must be in the list.
func Of(number int) Right {
	for _, r := range List() {
		if r.Number == number {
			return r
		}
	}
	panic("not in the list of rights")
}

// Held says whether the process has the right.
func (r Right) Held() (bool, error) { return sys.HasCapability(r.Number) }
