package supervisor

import (
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// ownership is what is known about whose a connection is.
type ownership struct {
	// asked says that the attributor has looked; before that nothing is allowed.
	asked bool
	// owner is nil if no process was found to hold the socket.
	owner *proc.Owner
	// redis is why the owner is taken for a Redis server itself; empty if not.
	redis string
	// listens says that Redis seems to listen in the namespace, so that a
	// connection without a known owner may be its.
	listens bool
	user    string
}

// Reasons that lie in how redisguard was run, not in whose the connection is.
const (
	whyPrivilege = "CAP_NET_ADMIN is missing"
	whyDryRun    = "--dry-run"
	whyMode      = "mode is "
)

// OnlyTheMode says whether a connection was merely observed for a reason that a
// replay under other settings leaves out.
func OnlyTheMode(why string) bool {
	return why == whyPrivilege || why == whyDryRun || strings.HasPrefix(why, whyMode)
}

// Exemption is the kind of reason for which a connection is only observed.
type Exemption string

// The exemptions.
const (
	NotExempt     Exemption = ""
	ExemptMPTCP   Exemption = "mptcp"
	ExemptOrphan  Exemption = "orphan"
	ExemptOwn     Exemption = "own"
	ExemptRight   Exemption = "privilege" // we lack one
	ExemptUnknown Exemption = "unknown"   // whose it is could not be told (yet), and that matters
	ExemptRedis   Exemption = "redis"     // Redis itself
	ExemptExclude Exemption = "excluded"  // [exclude] names it
	ExemptDryRun  Exemption = "dry_run"
	ExemptMode    Exemption = "mode"
)

// Exemptions are all of them.
func Exemptions() []Exemption {
	return []Exemption{ExemptMPTCP, ExemptOrphan, ExemptOwn, ExemptRight, ExemptUnknown, ExemptRedis, ExemptExclude, ExemptDryRun, ExemptMode}
}

// permit decides what may be done about a connection, and why not more: the kind
// of reason, and the reason in words. It is where the safety promises about whom
// we touch live.
func (s *Supervisor) permit(c *config.Config, k *tcpstate.Connection, o *ownership) (verdict.Permit, Exemption, string) {
	no := func(x Exemption, why string) (verdict.Permit, Exemption, string) { return verdict.ObserveOnly, x, why }
	if x, why := s.touchable(c, k, o); x != NotExempt {
		return no(x, why)
	}
	if s.powerless {
		return no(ExemptRight, whyPrivilege)
	}
	if s.opt.DryRun {
		return no(ExemptDryRun, whyDryRun)
	}
	if m := config.Ceiling(c.Mode, config.Mode(s.override.Load()), c.Watch.Mode, c.Reap.Mode); m != config.Enforce {
		return no(ExemptMode, whyMode+m.String())
	}
	return verdict.MayReap, NotExempt, ""
}

// touchable says whether a connection may be touched at all, by whatever job.
func (s *Supervisor) touchable(c *config.Config, k *tcpstate.Connection, o *ownership) (Exemption, string) {
	switch {
	case k.MPTCP:
		return ExemptMPTCP, "MPTCP connections cannot be ended one by one"
	case k.Inode == 0:
		return ExemptOrphan, "no application holds it any more"
	case o.owner != nil && o.owner.Process.PID == os.Getpid():
		return ExemptOwn, "it is our own"
	case !o.asked:
		return ExemptUnknown, "its process is not known yet"
	case o.redis != "":
		return ExemptRedis, "Redis itself: its process " + o.redis
	case o.owner == nil && o.listens:
		return ExemptUnknown, "its process is not known, and Redis listens in this namespace"
	case o.owner == nil && excludes(c):
		return ExemptUnknown, "its process is not known, and [exclude] names some"
	}
	return excluded(c, o, k.UID)
}

func excludes(c *config.Config) bool {
	x := &c.Exclude
	return len(x.Namespaces)+len(x.Pods)+len(x.Units)+len(x.Users)+len(x.Commands) > 0
}

// excluded tells which entry of [exclude] names the owner.
func excluded(c *config.Config, o *ownership, uid uint32) (Exemption, string) {
	x := &c.Exclude
	id := strconv.FormatUint(uint64(uid), 10)
	if config.MatchAny(x.Users, id) || config.MatchAny(x.Users, o.user) {
		return ExemptExclude, "excluded: user " + id
	}
	if o.user == "" && slices.ContainsFunc(x.Users, func(u string) bool { return !numeric(u) }) {
		// A name that only a directory service knows, perhaps one of those.
		return ExemptUnknown, "the name of user " + id + " is not known, and [exclude] names some"
	}
	if o.owner == nil {
		return NotExempt, ""
	}
	w := &o.owner.Workload
	switch {
	case config.MatchAny(x.Namespaces, o.owner.PodNamespace):
		return ExemptExclude, "excluded: Kubernetes namespace " + proc.Safe(o.owner.PodNamespace)
	case config.MatchAny(x.Pods, o.owner.PodName), config.MatchAny(x.Pods, w.PodUID):
		return ExemptExclude, "excluded: pod " + proc.Safe(o.owner.PodName)
	case config.MatchAny(x.Units, w.Unit):
		return ExemptExclude, "excluded: unit " + proc.Safe(w.Unit)
	case config.MatchAny(x.Commands, o.owner.Process.Comm):
		return ExemptExclude, "excluded: command " + proc.Safe(o.owner.Process.Comm)
	case w.PodUID != "" && o.owner.PodName == "" && len(x.Namespaces)+len(x.Pods) > 0:
		// A pod whose name we cannot learn may be one of those.
		return ExemptUnknown, "the name of pod " + w.PodUID + " is not known, and [exclude] names some"
	}
	return NotExempt, ""
}

// numeric says whether a pattern can only mean a user's number.
func numeric(pattern string) bool {
	return strings.Trim(pattern, "0123456789") == ""
}

// users caches the names of users.
type users struct {
	mu    sync.Mutex
	names map[uint32]string
}

// name is the login name of a user of the host, empty if it has none.
func (u *users) name(uid uint32) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n, ok := u.names[uid]; ok {
		return n
	}
	if u.names == nil || len(u.names) > 10_000 {
		u.names = map[uint32]string{}
	}
	n := ""
	if found, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		n = found.Username
	}
	u.names[uid] = n
	return n
}
