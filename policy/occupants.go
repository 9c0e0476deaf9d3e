package policy

import (
	"iter"
	"maps"
	"slices"
	"strconv"

	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/view"
)

// Answer is yes, no, or that it cannot be told.
type Answer uint8

// The answers. The zero value is the careful one.
const (
	CouldNotTell Answer = iota
	No
	Yes
)

func (a Answer) String() string { return [...]string{"could not tell", "no", "yes"}[a] }

// Holder is what is known about who holds a connection: more than one process after a
// fork, or where a socket was sent to another process. What is true of any of them holds
// for the connection. The zero value is that it was not looked for yet.
type Holder struct {
	// Asked says that it was looked for; before that nothing is permitted.
	Asked bool
	// Owner is the process through which the socket is reached, nil if none was found
	// to hold it. Owner.Complete says whether all holders are known.
	Owner *proc.Owner
	// Redis is why one of its processes is taken for a Redis server itself; empty if
	// none is.
	Redis string
	// User is the login name of the socket's user on the host, "" if it has none; Users
	// are those of its processes' users, which may be others.
	User  string
	Users map[uint32]string
}

// Processes are all that are known to hold the connection, one of each kind.
func (h *Holder) Processes() iter.Seq[*proc.Owner] {
	return func(yield func(*proc.Owner) bool) {
		if h.Owner == nil || !yield(h.Owner) {
			return
		}
		for _, o := range h.Owner.Others {
			if !yield(o) {
				return
			}
		}
	}
}

// Equal says whether nothing that is decided by has changed.
func (h *Holder) Equal(x *Holder) bool {
	if h.Asked != x.Asked || h.Redis != x.Redis || h.User != x.User || (h.Owner == nil) != (x.Owner == nil) || !maps.Equal(h.Users, x.Users) {
		return false
	}
	return h.Owner == nil || h.Owner.FD == x.Owner.FD && h.Owner.Complete == x.Owner.Complete &&
		slices.EqualFunc(slices.Collect(h.Processes()), slices.Collect(x.Processes()), func(a, b *proc.Owner) bool {
			return a.Process == b.Process && a.PodName == b.PodName && a.PodNamespace == b.PodNamespace
		})
}

// Stale is the same under a policy that asks for more: it is to be looked for again, and
// until then nobody knows whether all is known.
func (h *Holder) Stale() Holder {
	x := *h
	if h.Owner != nil {
		o := *h.Owner
		o.Complete = false
		x.Owner = &o
	}
	return x
}

// Unknown says what is not known of who holds it, "" if all is.
func (h *Holder) Unknown() string {
	switch {
	case h.Owner == nil:
		return "its process is not known"
	case !h.Owner.Complete:
		return "not every process was asked yet whether it has the connection, too"
	}
	return ""
}

// Word names the process for recognising a client that comes back.
func (h *Holder) Word() string {
	if h.Owner == nil {
		return ""
	}
	return proc.Safe(h.Owner.Process.Comm) + "[" + strconv.Itoa(h.Owner.Process.PID) + "]"
}

// Client names the workload, which is the same when its process is another one: the pod
// with its container, the unit, or else the program of the process.
func (h *Holder) Client() string {
	if h.Owner == nil {
		return ""
	}
	switch w := &h.Owner.Workload; {
	case w.PodUID != "" && h.Owner.PodName != "":
		return "pod " + proc.Safe(h.Owner.PodNamespace) + "/" + proc.Safe(h.Owner.PodName)
	case w.PodUID != "":
		return "pod " + w.PodUID
	case w.Unit != "":
		return "unit " + proc.Safe(w.Unit)
	}
	return proc.Safe(h.Owner.Process.Comm)
}

// Occupants is who lives in a network namespace, as far as any job has to know it. It is
// made by one place and handed to all. The zero value knows nothing.
type Occupants struct {
	// Redis says whether Redis itself listens in the namespace, and RedisWhy why. Where that
	// cannot be told, RedisWhy is what speaks for it; "" says that nothing does.
	Redis    Answer
	RedisWhy string
	// Servers are the processes of which something speaks for it, whatever the answer.
	Servers []Server
	// Excluded is what in [exclude] names what lives here.
	Excluded string
	// Connections counts those that are watched; of some of them it is still being found
	// out whose they are if Pending, of one at least it is known if Known.
	Connections int
	Pending     bool
	Known       bool
	// Names are the Kubernetes namespaces, pods and units that live here.
	Names []string
}

// Equal compares.
func (o *Occupants) Equal(x *Occupants) bool {
	return o.Redis == x.Redis && o.RedisWhy == x.RedisWhy && o.Excluded == x.Excluded && o.Connections == x.Connections &&
		o.Pending == x.Pending && o.Known == x.Known && slices.Equal(o.Names, x.Names) && slices.Equal(o.Servers, x.Servers)
}

// AddConnection takes in whose a watched connection is.
func (o *Occupants) AddConnection(p *Policy, h *Holder, uid uint32) {
	o.Connections++
	if !h.Asked {
		o.Pending = true
		return
	}
	// Another holder may be one that is excluded.
	unsure := h.Owner != nil && !h.Owner.Complete && p.Excludes()
	o.Pending = o.Pending || unsure
	o.add(p, h, uid)
	o.Meet(h)
	o.Known = o.Known || h.Owner != nil && !unsure
}

// Meet takes in that a holder is Redis itself: it may listen nowhere, or was not found with
// what it listens on.
func (o *Occupants) Meet(h *Holder) {
	if h.Redis == "" {
		return
	}
	if o.Redis != Yes {
		o.Redis, o.RedisWhy = Yes, h.Redis
	}
	if x := h.Owner; x != nil && len(o.Servers) < maxServers && !slices.ContainsFunc(o.Servers, func(s Server) bool { return s.PID == x.Process.PID }) {
		o.Servers = append(slices.Clip(o.Servers), Server{PID: x.Process.PID, Comm: proc.Safe(x.Process.Comm), Redis: Yes, Why: h.Redis})
	}
}

// answers are for programs.
var answers = [...]string{CouldNotTell: "unknown", No: "no", Yes: "yes"}

// View says for others whether Redis itself is there, holders being those of connections.
func (o *Occupants) View(holders iter.Seq[*Holder]) view.Redis {
	x := *o
	for h := range holders {
		x.Meet(h)
	}
	r := view.Redis{Answer: answers[x.Redis], Why: x.RedisWhy}
	for _, s := range x.Servers {
		r.Processes = append(r.Processes, view.RedisProcess{PID: s.PID, Comm: s.Comm, Port: s.Port, Answer: answers[s.Redis], Why: s.Why})
	}
	return r
}

// AddProcess takes in a process that is known to live here.
func (o *Occupants) AddProcess(p *Policy, h *Holder) { o.add(p, h, h.Owner.Process.UID) }

// Add takes in what another look at the same namespace has found.
func (o *Occupants) Add(x *Occupants) {
	if x.Redis == Yes || o.Redis == CouldNotTell && (x.Redis == No || x.RedisWhy != "") {
		o.Redis, o.RedisWhy = x.Redis, x.RedisWhy
	}
	if o.Excluded == "" {
		o.Excluded = x.Excluded
	}
	if len(o.Servers) == 0 {
		o.Servers = x.Servers
	}
	o.Connections += x.Connections
	o.Pending, o.Known = o.Pending || x.Pending, o.Known || x.Known
	for _, n := range x.Names {
		o.name(n)
	}
}

func (o *Occupants) add(p *Policy, h *Holder, uid uint32) {
	if o.Excluded == "" && p.Excludes() {
		o.Excluded = p.excluded(h, uid).Why
	}
	for x := range h.Processes() {
		o.name(x.PodNamespace)
		o.name(x.PodName)
		o.name(x.Workload.Unit)
	}
}

func (o *Occupants) name(n string) {
	if n != "" && !slices.Contains(o.Names, n) {
		o.Names = append(slices.Clip(o.Names), n)
	}
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
