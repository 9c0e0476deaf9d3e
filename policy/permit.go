package policy

import (
	"slices"
	"strings"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

// Exemption is the kind of reason for which something is only observed.
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

// OnlyMode says that the reason lies in how redisguard was configured or run, not in
// whose the thing is: another configuration would lift it.
func (x Exemption) OnlyMode() bool { return x == ExemptRight || x == ExemptDryRun || x == ExemptMode }

// Refusal is why something may not be done. The zero value refuses nothing.
type Refusal struct {
	Exempt Exemption
	Why    string // for people
}

// Refused says whether it does.
func (r Refusal) Refused() bool { return r.Exempt != NotExempt }

// Subject is what a job is about to touch: a connection (reap, arm) or a namespace as a
// whole (tune, fence, detour). Occupants must be set.
type Subject struct {
	Occupants *Occupants
	// Connection and Holder are nil for a namespace. Opened says whether the connection
	// was opened here (see Origin).
	Connection *tcpstate.Connection
	Holder     *Holder
	Opened     Answer
	// Before says that the job has acted here before: then it is not undone only because
	// it must be found out anew who lives here.
	Before bool
}

// May says whether a job may touch something, whatever the modes are.
func (p *Policy) May(job Job, s Subject) Refusal {
	if s.Connection != nil {
		return p.connection(job, s)
	}
	return p.namespace(job, s)
}

// Permit says whether a job may act on something now: whether it may touch it and the
// modes, for what is watched as w, let it.
func (p *Policy) Permit(job Job, s Subject, w *Watched) Refusal {
	if r := p.May(job, s); r.Refused() {
		return r
	}
	m, why := p.ModeFor(job, w)
	if m == config.Enforce {
		return Refusal{}
	}
	switch why.Kind {
	case ByRight:
		return Refusal{ExemptRight, why.Text}
	case ByDryRun:
		return Refusal{ExemptDryRun, why.Text}
	}
	return Refusal{ExemptMode, "mode is " + m.String()}
}

func (p *Policy) connection(job Job, s Subject) Refusal {
	k, h, excludes := s.Connection, s.Holder, p.Excludes()
	unowned, unknown := h.Owner == nil, h.Unknown()
	mine := func(o *proc.Owner) bool { return o.Process.PID == p.Self }
	switch {
	case s.Opened == No:
		return Refusal{ExemptUnknown, "it was accepted here, so that its other end is no Redis"}
	case s.Opened != Yes:
		return Refusal{ExemptUnknown, "it cannot be told yet whether it was opened or accepted here"}
	case k.MPTCP:
		return Refusal{ExemptMPTCP, "MPTCP connections cannot be ended one by one"}
	case k.Inode == 0:
		return Refusal{ExemptOrphan, "no application holds it any more"}
	case slices.ContainsFunc(slices.Collect(h.Processes()), mine):
		return Refusal{ExemptOwn, "it is our own"}
	case !h.Asked:
		return Refusal{ExemptUnknown, "its process is not known yet"}
	case h.Redis != "":
		return Refusal{ExemptRedis, "Redis itself: its process " + h.Redis}
	}
	for o := range h.Processes() { // by a name that the config has learned since
		if is, why := p.Named(&o.Process); is == Yes {
			return Refusal{ExemptRedis, "Redis itself: its process " + why}
		}
		if why := o.Process.ClusterTool(); why != "" {
			return Refusal{ExemptRedis, "Redis itself: its process " + why}
		}
	}
	// Before what is not known: one that is known to be excluded stays so whoever else
	// has the connection.
	if r := p.excluded(h, k.UID); r.Refused() {
		return r
	}
	switch {
	case unknown != "" && s.Occupants.Redis != No && !jobs[job].redis:
		return Refusal{ExemptUnknown, unknown + ", and Redis listens in this namespace or may do so"}
	case unknown != "" && excludes:
		return Refusal{ExemptUnknown, unknown + ", and [exclude] names some"}
	case unowned && !jobs[job].unowned:
		return Refusal{ExemptUnknown, unknown}
	}
	return Refusal{}
}

func (p *Policy) namespace(job Job, s Subject) Refusal {
	o, may := s.Occupants, &jobs[job]
	strangers := !o.Known && len(o.Names) == 0
	switch {
	case o.Excluded != "":
		return Refusal{ExemptExclude, o.Excluded}
	case o.Redis == Yes && !(job == Tune && p.Config.Tune.RedisServers):
		return Refusal{ExemptRedis, "Redis itself is here: a process " + o.RedisWhy}
	case o.Redis == CouldNotTell && o.RedisWhy != "" && !(job == Tune && p.Config.Tune.RedisServers):
		return Refusal{ExemptUnknown, "Redis itself may be here: a process " + o.RedisWhy}
	case o.Redis == CouldNotTell && !may.redis:
		return Refusal{ExemptUnknown, "it cannot be told whether Redis listens here"}
	case o.Pending && (!may.unowned || !o.Known && !s.Before):
		return Refusal{ExemptUnknown, "whose its connections are is not known yet"}
	case o.Connections > 0 && strangers && p.Excludes():
		return Refusal{ExemptUnknown, "whose its connections are is not known, and [exclude] names some"}
	case strangers && !may.unowned:
		return Refusal{ExemptUnknown, "who lives here is not known"}
	}
	return Refusal{}
}

// Excludes says whether [exclude] names anything: then it matters who else has a
// connection.
func (p *Policy) Excludes() bool {
	x := &p.Config.Exclude
	return len(x.Namespaces)+len(x.Pods)+len(x.Units)+len(x.Users)+len(x.Commands) > 0
}

// excluded says what in [exclude] names one of the holders of a connection, whose socket
// is of a user.
func (p *Policy) excluded(h *Holder, uid uint32) Refusal {
	r := p.excludedUser(uid, h.User)
	for o := range h.Processes() {
		if r.Exempt == ExemptExclude {
			break
		}
		next := p.excludedProcess(o)
		if next.Exempt != ExemptExclude && o.Process.UID != uid {
			next = worse(next, p.excludedUser(o.Process.UID, h.Users[o.Process.UID]))
		}
		r = worse(r, next)
	}
	return r
}

// worse prefers what is known to be excluded to what may be, and either to nothing.
func worse(a, b Refusal) Refusal {
	if !a.Refused() || b.Exempt == ExemptExclude && a.Exempt != ExemptExclude {
		return b
	}
	return a
}

func (p *Policy) excludedUser(uid uint32, name string) Refusal {
	x := &p.Config.Exclude
	id := itoa(uid)
	switch {
	case config.MatchAny(x.Users, id), config.MatchAny(x.Users, name):
		return Refusal{ExemptExclude, "excluded: user " + id}
	case name == "" && slices.ContainsFunc(x.Users, func(s string) bool { return !numeric(s) }):
		// A name that only a directory service knows, perhaps one of those.
		return Refusal{ExemptUnknown, "the name of user " + id + " is not known, and [exclude] names some"}
	}
	return Refusal{}
}

func (p *Policy) excludedProcess(o *proc.Owner) Refusal {
	x, w := &p.Config.Exclude, &o.Workload
	switch {
	case config.MatchAny(x.Namespaces, o.PodNamespace):
		return Refusal{ExemptExclude, "excluded: Kubernetes namespace " + proc.Safe(o.PodNamespace)}
	case config.MatchAny(x.Pods, o.PodName), config.MatchAny(x.Pods, w.PodUID):
		return Refusal{ExemptExclude, "excluded: pod " + proc.Safe(o.PodName)}
	case config.MatchAny(x.Units, w.Unit):
		return Refusal{ExemptExclude, "excluded: unit " + proc.Safe(w.Unit)}
	case config.MatchAny(x.Commands, o.Process.Comm):
		return Refusal{ExemptExclude, "excluded: command " + proc.Safe(o.Process.Comm)}
	case w.PodUID != "" && o.PodName == "" && len(x.Namespaces)+len(x.Pods) > 0:
		// A pod whose name we cannot learn may be one of those.
		return Refusal{ExemptUnknown, "the name of pod " + w.PodUID + " is not known, and [exclude] names some"}
	}
	return Refusal{}
}

// numeric says whether a pattern can only mean a user's number.
func numeric(pattern string) bool {
	return strings.Trim(pattern, "0123456789") == ""
}
