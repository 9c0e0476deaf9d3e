package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/proc"
)

// Who is Redis itself is decided here, by three kinds of evidence:
//
//   - The name of a process: its command, its program, the title that Redis sets, or what
//     [watch] servers names. It is enough by itself, also without a listener.
//   - The answer to a question. A port proves nothing: stunnel, HAProxy and Envoy listen on
//     6379, and any application may. So where something suggests Redis (see Asks) the
//     listening socket is asked who it is, and what it says of itself is compared with the
//     process that listens (see Identify).
//   - Nothing else. Where the answer leaves it open, the namespace is one in which Redis may
//     be, so that no fence and no detour stands there and it is not tuned; the connections
//     of that process are a client's, unless its name says otherwise. The other way round,
//     the upstream connections of every proxy would hang for ever when it wants a password.

// Listener is a listening socket of a namespace.
type Listener struct {
	Addr  netip.AddrPort
	Inode uint64
	Owner *proc.Owner // nil if it is not known
	// Reply is what came of asking it, for those that were asked.
	Reply Reply
}

// Reply is what came of asking a listening socket who it is. The zero value is that it was
// not asked.
type Reply struct {
	Asked bool
	// Pending says that it is to be asked, or asked again, and that nothing is to be done
	// until then.
	Pending bool
	Redis   Answer
	Why     string
}

// Server is what was decided about a process.
type Server struct {
	PID   int
	Comm  string // escaped
	Port  uint16 // one that it listens on
	Redis Answer
	Why   string
}

// sentinelPort is Sentinel's own, and clusterBus the distance between a node's port and
// that of its cluster bus.
const (
	sentinelPort = 26379
	clusterBus   = 10000
)

// Named says why a process is known by its name, and whether as Redis itself or as none;
// CouldNotTell if its name says nothing.
func (p *Policy) Named(x *proc.Process) (Answer, string) {
	if why := x.ServerName(); why != "" {
		return Yes, why
	}
	for _, name := range []string{x.Comm, path.Base(x.Exe)} {
		if name != "" && config.MatchAny(p.Config.Watch.Servers, name) {
			return Yes, "is called " + proc.Safe(name) + ", which watch.servers names"
		}
	}
	if why := x.ProxyName(); why != "" {
		return No, why
	}
	return CouldNotTell, ""
}

// Asks says what suggests that a listening socket of a namespace be asked who it is, "" if
// nothing does. Most are not: what is sent to them is no protocol of theirs.
func (p *Policy) Asks(l *Listener, all []Listener) string {
	if l.Owner == nil {
		return "" // there is nobody to compare the answer with
	}
	if is, _ := p.Named(&l.Owner.Process); is != CouldNotTell {
		return ""
	}
	return p.suggests(l, all)
}

// LeaveUnasked is what is known of a listening socket that is not to be asked, though
// something suggests that it be, since [exclude] names its process: an answer that leaves
// it open.
func (p *Policy) LeaveUnasked(l *Listener) (Reply, bool) {
	x := &l.Owner.Process
	r := worse(p.excludedProcess(l.Owner), p.excludedUser(x.UID, ""))
	if r.Exempt != ExemptExclude {
		return Reply{}, false
	}
	return Reply{Asked: true, Redis: CouldNotTell, Why: "was not asked, being " + r.Why}, true
}

// suggests says what of a listening socket suggests Redis.
func (p *Policy) suggests(l *Listener, all []Listener) string {
	port := l.Addr.Port()
	switch {
	case p.Interest.HasPort(port):
		return fmt.Sprintf("listens on watched port %d", port)
	case port == sentinelPort:
		return fmt.Sprintf("listens on Sentinel's port %d", port)
	case l.Owner == nil:
		return ""
	case proc.ParseTitle(l.Owner.Process.Title).Port == port:
		return "has the title " + proc.Safe(l.Owner.Process.Title)
	}
	for i := range all {
		x := &all[i]
		if x.Owner != nil && x.Owner.Process.PID == l.Owner.Process.PID && int(x.Addr.Port()) == int(port)+clusterBus {
			return fmt.Sprintf("listens on %d and its cluster bus %d", port, port+clusterBus)
		}
	}
	return ""
}

// IsRedis says whether a process is Redis itself, as far as its name and the listening
// sockets of the namespace tell, and why. pending says that one of them is still to be
// asked. A child of a server holds its connections too, while its listening socket may be
// found with the parent: same name, same program.
func (p *Policy) IsRedis(x *proc.Process, all []Listener) (is Answer, why string, pending bool) {
	if is, why = p.Named(x); is != CouldNotTell {
		return is, why, false
	}
	is = No
	for i := range all {
		l := &all[i]
		if l.Owner == nil || !l.Reply.Asked && !l.Reply.Pending {
			continue
		}
		o := &l.Owner.Process
		if o.PID != x.PID && (o.Comm != x.Comm || o.Exe != x.Exe || o.Cgroup != x.Cgroup || o.NetNS != x.NetNS) {
			continue
		}
		switch {
		case l.Reply.Redis == Yes:
			return Yes, l.Reply.Why, false
		case l.Reply.Pending || l.Reply.Redis == CouldNotTell:
			is, why = CouldNotTell, l.Reply.Why
			pending = pending || l.Reply.Pending
		case why == "":
			why = l.Reply.Why
		}
	}
	return is, why, pending
}

// maxServers bounds Occupants.Servers.
const maxServers = 16

// Listen takes in what listens in the namespace: whether Redis is among it, and why. Where
// it cannot be told whose a listener is, as without CAP_SYS_PTRACE, nothing can be told for
// sure; its port may speak for Redis.
func (o *Occupants) Listen(p *Policy, all []Listener) {
	o.Redis, o.RedisWhy, o.Servers = No, "", nil
	seen := map[int]bool{}
	sorted := slices.Clone(all)
	pid := func(l *Listener) int {
		if l.Owner == nil {
			return 0
		}
		return l.Owner.Process.PID
	}
	slices.SortFunc(sorted, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(pid(&a), pid(&b)), cmp.Compare(a.Addr.Port(), b.Addr.Port()), cmp.Compare(a.Inode, b.Inode))
	})
	worse := func(is Answer, why string) {
		if o.Redis == Yes || is == No || o.Redis == CouldNotTell && is == CouldNotTell && (o.RedisWhy != "" || why == "") {
			return
		}
		o.Redis, o.RedisWhy = is, why
	}
	for i := range sorted {
		l := &sorted[i]
		if l.Owner == nil {
			worse(CouldNotTell, p.suggests(l, all))
			continue
		}
		x := &l.Owner.Process
		if seen[x.PID] {
			continue
		}
		seen[x.PID] = true
		is, why, _ := p.IsRedis(x, all)
		worse(is, why)
		if why != "" && len(o.Servers) < maxServers {
			o.Servers = append(o.Servers, Server{PID: x.PID, Comm: proc.Safe(x.Comm), Port: l.Addr.Port(), Redis: is, Why: why})
		}
	}
}

// Said is what a listening socket says of itself: the section "server" of INFO.
type Said struct {
	// Executable, PID and Uptime are of the process that answers; zero where it does not
	// say. PID is the one in its own pid namespace.
	Executable string
	PID        int
	Uptime     time.Duration
}

// sameTime is how far the uptime that a server tells and the age of its process may be
// apart: it counts whole seconds from when it has started up.
const sameTime = 5 * time.Second

// Identify says whether what a listening socket answered comes from the process x itself,
// which is so old. A proxy in TCP mode relays the question, and so hands out the answer of
// another process: another program, another pid. Two of the three must agree, and the
// program must not differ: both may be pid 1 of their containers, and both may have been
// started in the same second.
func Identify(s *Said, x *proc.Process, age time.Duration) (Answer, string) {
	program := path.Base(s.Executable)
	told := s.Executable != "" && x.Exe != ""
	named := told && (program == path.Base(x.Exe) || program == path.Base(proc.ParseTitle(x.Title).Name))
	pid := s.PID != 0 && x.Inner != 0 && s.PID == x.Inner
	aged := s.Uptime > 0 && (s.Uptime-age).Abs() <= sameTime
	other := fmt.Sprintf("answers with the words of process %d, %s", s.PID, cmp.Or(proc.Safe(s.Executable), "a program without a name"))
	switch {
	case s.Executable == "" && s.PID == 0 && s.Uptime == 0:
		return CouldNotTell, "answers as Redis, and does not say who it is"
	case named && (pid || aged), !told && pid && aged:
		return Yes, "answers as Redis itself"
	case told && !named && !(pid && aged), !told && !pid && !aged:
		return No, other + ": a proxy"
	}
	return CouldNotTell, other + ", which may be itself"
}
