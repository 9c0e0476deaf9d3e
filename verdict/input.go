package verdict

import (
	"cmp"
	"net/netip"
	"time"
)

// NS names a network namespace: its cookie where the kernel has one, else its
// inode number. HostNS in Settings says which one is the host's.
type NS uint64

// ConnKey names a connection by namespace and socket cookie.
type ConnKey struct {
	NS     NS     `json:"ns"`
	Cookie uint64 `json:"cookie"`
}

// PathKey names a path: the connections of one namespace to one endpoint.
type PathKey struct {
	NS       NS             `json:"ns"`
	Endpoint netip.AddrPort `json:"endpoint"`
	// Interface is the one that the sockets of these connections are bound to, by its index
	// in the namespace (by SO_BINDTODEVICE, to a VRF, or as the scope of a link-local
	// address); 0 is none. The same address may be another server behind another
	// interface, so such a path is judged by nothing but its own connections and probes.
	Interface uint32 `json:"interface,omitempty"`
}

// Compare orders paths by endpoint, namespace and interface.
func (p PathKey) Compare(q PathKey) int {
	return cmp.Or(p.Endpoint.Compare(q.Endpoint), cmp.Compare(p.NS, q.NS), cmp.Compare(p.Interface, q.Interface))
}

// endpointKey names an endpoint: by its address alone, and as seen through an interface only
// for one path.
type endpointKey struct {
	addr netip.AddrPort
	// via is zero but for connections that are bound to an interface.
	via struct {
		ns    NS
		iface uint32
	}
}

// endpoint is the endpoint of the path.
func (p PathKey) endpoint() (k endpointKey) {
	k.addr = p.Endpoint
	if p.Interface != 0 {
		k.via.ns, k.via.iface = p.NS, p.Interface
	}
	return k
}

func (k endpointKey) compare(o endpointKey) int {
	return cmp.Or(k.addr.Compare(o.addr), cmp.Compare(k.via.ns, o.via.ns), cmp.Compare(k.via.iface, o.via.iface))
}

// Input is everything that was observed since the last step. All times in it are
// readings of one clock that never steps (CLOCK_MONOTONIC), as is Now.
type Input struct {
	Now time.Duration `json:"now"`
	// Late is how much later than planned this step comes: more than a little
	// is a reason to doubt ourselves.
	Late time.Duration `json:"late,omitempty"`
	// Reset says that everything known before is to be forgotten: redisguard was
	// off meanwhile. Settings are new ones, nil where they have not changed. Both
	// are part of the input so that a recording has them.
	Reset    bool      `json:"reset,omitempty"`
	Settings *Settings `json:"settings,omitempty"`

	Endpoints []EndpointFact `json:"endpoints,omitempty"`
	Appeared  []Appeared     `json:"appeared,omitempty"`
	Samples   []Sample       `json:"samples,omitempty"`
	Gone      []ConnKey      `json:"gone,omitempty"`
	Blocked   []Blocked      `json:"blocked,omitempty"`
	Asked     []Asked        `json:"asked,omitempty"`
	Probes    []Probe        `json:"probes,omitempty"`
	NextHops  []NextHop      `json:"next_hops,omitempty"`
	Unrelated []Unrelated    `json:"unrelated,omitempty"`
	Fenced    []FenceState   `json:"fenced,omitempty"`
	Reaped    []ReapResult   `json:"reaped,omitempty"`
}

// Clear empties in for the next step and keeps its memory.
func (in *Input) Clear() {
	if cap(in.Appeared) > keptAppeared {
		in.Appeared = nil // of a look at the whole node, as after the start
	}
	*in = Input{
		Endpoints: in.Endpoints[:0], Fenced: in.Fenced[:0],
		Appeared: in.Appeared[:0], Samples: in.Samples[:0], Gone: in.Gone[:0], Blocked: in.Blocked[:0], Asked: in.Asked[:0], Probes: in.Probes[:0],
		NextHops: in.NextHops[:0], Unrelated: in.Unrelated[:0], Reaped: in.Reaped[:0],
	}
}

// keptAppeared is for how many connections Clear keeps the memory: some 200 kB.
const keptAppeared = 1024

// Blocked is a connection whose socket lock is held, by a sendmsg that waits for a page
// fault for instance, so that it cannot be looked at: the kernel takes that lock for
// TCP_INFO and for SOCK_DESTROY. On is false when it can be looked at again. Meanwhile
// the other connections are judged without it, and it is not reaped.
type Blocked struct {
	Key ConnKey `json:"key"`
	On  bool    `json:"on"`
}

// Permit says what may be done about a connection. The zero value is the careful
// one.
type Permit uint8

// The permits.
const (
	ObserveOnly Permit = iota
	MayReap
)

// Appeared introduces a connection, or changes what was said about it before.
type Appeared struct {
	// Reader says that its owner wants a replica: that its node is demoted is no reason to
	// end it.
	Reader bool           `json:"reader,omitempty"`
	Key    ConnKey        `json:"key"`
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	// Interface is the one that its socket is bound to, see PathKey.
	Interface uint32 `json:"interface,omitempty"`
	Permit    Permit `json:"permit"`
	// Why is the reason for ObserveOnly, such as "mode" or "Redis itself".
	Why string `json:"why,omitempty"`
	// OnlyMode says that the reason lies in the modes, rights and flags that redisguard
	// ran with, not in whose the connection is: a replay under other settings leaves it
	// out.
	OnlyMode bool `json:"only_mode,omitempty"`
	// MayAsk says that its kernel may be had to send an empty probe, see Output.Ask;
	// NotAsked is why not, such as "arm.mode is observe".
	MayAsk   bool   `json:"may_ask,omitempty"`
	NotAsked string `json:"not_asked,omitempty"`
	// Owner names the process that holds the socket, empty if it is not known (yet), and
	// Workload the pod, unit or program that it belongs to, empty if that is not known.
	// They serve to recognise a client that comes back.
	Owner    string `json:"owner,omitempty"`
	Workload string `json:"workload,omitempty"`
	// Backend is what a virtual address leads the connection to; zero is the endpoint
	// itself. RunID and Role are what stood there when it was opened, empty if unknown.
	// What was known before is kept where one of these is empty.
	Backend netip.AddrPort `json:"backend,omitzero"`
	RunID   string         `json:"run_id,omitempty"`
	Role    Role           `json:"role,omitempty"`
	// Opened is when its connect began, 0 if unknown, as for what was there before us.
	Opened time.Duration `json:"opened,omitempty"`
}

// State is the part of a TCP state that matters here.
type State uint8

// The states of a watched connection; anything else is Closing and left alone.
const (
	Closing State = iota
	SynSent
	Established
)

// Timer is the timer that a socket has running.
type Timer uint8

// The timers; see tcpstate.Timer.
const (
	NoTimer Timer = iota
	RetransmitTimer
	KeepaliveTimer
	ZeroWindowTimer
)

// Sample is one look at a connection.
type Sample struct {
	Key ConnKey `json:"key"`
	// At is when it was made; 0 is at the time of the step.
	At    time.Duration `json:"at,omitempty"`
	State State         `json:"state"`
	Timer Timer         `json:"timer,omitempty"`
	// Retrans is idiag_retrans: unanswered probes with the keepalive and
	// zero-window timers.
	Retrans uint8         `json:"retrans,omitempty"`
	Unacked uint32        `json:"unacked,omitempty"`
	RTT     time.Duration `json:"rtt,omitempty"`
	// Times since.
	LastDataSent time.Duration `json:"last_data_sent"`
	LastDataRecv time.Duration `json:"last_data_recv"`
	LastAckRecv  time.Duration `json:"last_ack_recv"`
	// RTO is the retransmission timeout, 0 if unknown.
	RTO time.Duration `json:"rto,omitempty"`
	// Counters of the socket's life.
	Counters
	DataSegsOut  uint32 `json:"data_segs_out"`
	TotalRetrans uint32 `json:"total_retrans,omitempty"`
}

// Asked tells what became of an [Output].Ask.
type Asked struct {
	Key ConnKey `json:"key"`
	// At is when the probe was sent; 0 if there was no turn for it.
	At time.Duration `json:"at"`
	// Unable is why none was sent, empty if one was.
	Unable string `json:"unable,omitempty"`
}

// Outcome is what a probe found out.
type Outcome uint8

// The outcomes. Only Alive, Dead, Refused and Unresponsive are evidence.
const (
	Pending      Outcome = iota // under way: no answer up to now
	Alive                       // any reply of Redis or TLS, even an error
	Dead                        // no answer to the connection request, or "unreachable"
	Refused                     // the connection request was reset
	Unresponsive                // connected, but no reply
	CouldNotTell                // our own resources, or a policy of this node
)

func (o Outcome) String() string {
	switch o {
	case Pending:
		return "pending"
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	case Refused:
		return "refused"
	case Unresponsive:
		return "unresponsive"
	}
	return "could not tell"
}

// Probe tells that a probe was started (Pending), that it is connected, or how it
// ended. All carry the same ID.
type Probe struct {
	ID      uint64        `json:"id"`
	Path    PathKey       `json:"path"`
	Started time.Duration `json:"started"`
	Ended   time.Duration `json:"ended,omitempty"`
	Outcome Outcome       `json:"outcome"`
	// Connected is how long the connection took, 0 while there is none. A probe
	// that is pending but connected is no sign of a silent endpoint.
	Connected time.Duration `json:"connected,omitempty"`
	// Detail is the error or the reply, for the evidence.
	Detail string `json:"detail,omitempty"`
	// Backend, RunID and Role are what has answered, as in Appeared.
	Backend netip.AddrPort `json:"backend,omitzero"`
	RunID   string         `json:"run_id,omitempty"`
	Role    Role           `json:"role,omitempty"`
}

// Neighbour is the state of a neighbour entry (ARP, ND) that was asked to prove
// itself.
type Neighbour uint8

// The neighbour states. NotOnLink also means: there is no gateway.
const (
	NotOnLink Neighbour = iota
	Reachable
	Silent
	NeighbourUnknown
)

// NextHop is the state of the way out of a namespace toward an endpoint.
type NextHop struct {
	Path PathKey       `json:"path"`
	At   time.Duration `json:"at"`
	// LinkDown: the interface toward the endpoint has no carrier.
	LinkDown bool `json:"link_down,omitempty"`
	// Gateway is the gateway toward the endpoint, or the default gateway.
	Gateway Neighbour `json:"gateway,omitempty"`
	// Endpoint is the endpoint's own neighbour entry if it is on our link.
	Endpoint Neighbour `json:"endpoint,omitempty"`
	Detail   string    `json:"detail,omitempty"`
}

// Unrelated is how the connections of a namespace that are not toward Redis fare.
type Unrelated struct {
	NS NS            `json:"ns"`
	At time.Duration `json:"at"`
	// Heard counts those that heard from their peers within the last Window.
	// Stalled counts those that wait for an answer, toward other addresses, and
	// fell silent when ours did, not earlier: a connection that has been dead
	// for minutes says nothing about now.
	Heard   int           `json:"heard"`
	Stalled int           `json:"stalled"`
	Window  time.Duration `json:"window"`
}

// ReapResult tells what became of a Reap action.
type ReapResult struct {
	Key ConnKey       `json:"key"`
	At  time.Duration `json:"at"`
	// Outcome is one of the Reap constants.
	Outcome ReapOutcome `json:"outcome"`
	// Heard says that it was spared since it makes progress.
	Heard bool `json:"heard,omitempty"`
	// Postponed says that it was not tried, as what may be done has just changed, or as
	// another connection that was condemned with it makes progress. There is no outcome
	// then, and it is judged anew.
	Postponed bool `json:"postponed,omitempty"`
}

// ReapOutcome is what became of a Reap action.
type ReapOutcome string

// The outcomes of a reap.
const (
	ReapDone   ReapOutcome = "reaped"
	ReapSpared ReapOutcome = "spared" // it was heard at the last look
	ReapGone   ReapOutcome = "gone"   // closed by itself meanwhile
	ReapFailed ReapOutcome = "failed"
	ReapDryRun ReapOutcome = "dry-run"
)

// ReapOutcomes are all outcomes of a reap.
func ReapOutcomes() []ReapOutcome {
	return []ReapOutcome{ReapDone, ReapSpared, ReapGone, ReapFailed, ReapDryRun}
}
