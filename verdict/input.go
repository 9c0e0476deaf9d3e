package verdict

import (
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
}

// Input is everything that was observed since the last step. All times in it are
// readings of one clock that never steps (CLOCK_MONOTONIC), as is Now.
type Input struct {
	Now time.Duration `json:"now"`
	// Late is how much later than planned this step comes: more than a little
	// is a reason to doubt ourselves.
	Late time.Duration `json:"late,omitempty"`
	// Anew says that everything known before is to be forgotten: redisguard was
	// off meanwhile. Settings are new ones, nil where they have not changed. Both
	// stand here so that a recording has them.
	Anew     bool      `json:"anew,omitempty"`
	Settings *Settings `json:"settings,omitempty"`

	Appeared []Appeared   `json:"appeared,omitempty"`
	Samples  []Sample     `json:"samples,omitempty"`
	Gone     []ConnKey    `json:"gone,omitempty"`
	Held     []Held       `json:"held,omitempty"`
	Probes   []Probe      `json:"probes,omitempty"`
	NextHops []NextHop    `json:"next_hops,omitempty"`
	Others   []Others     `json:"others,omitempty"`
	Reaped   []ReapResult `json:"reaped,omitempty"`
}

// Reset empties in for the next step and keeps its memory.
func (in *Input) Reset() {
	*in = Input{
		Appeared: in.Appeared[:0], Samples: in.Samples[:0], Gone: in.Gone[:0], Held: in.Held[:0], Probes: in.Probes[:0],
		NextHops: in.NextHops[:0], Others: in.Others[:0], Reaped: in.Reaped[:0],
	}
}

// Held says that a connection cannot be looked at from now on, since its process does
// not let the kernel do so, or that it can again. Meanwhile others are judged without
// it, and nothing is done about it.
type Held struct {
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
	Key    ConnKey        `json:"key"`
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	Permit Permit         `json:"permit"`
	// Why is the reason for ObserveOnly, such as "mode" or "Redis itself".
	Why string `json:"why,omitempty"`
	// Owner names the process that holds the socket, empty if it is not known
	// (yet). It serves to recognise a client that comes back.
	Owner string `json:"owner,omitempty"`
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
	Key   ConnKey `json:"key"`
	State State   `json:"state"`
	Timer Timer   `json:"timer,omitempty"`
	// Retrans is idiag_retrans: unanswered probes with the keepalive and
	// zero-window timers.
	Retrans uint8         `json:"retrans,omitempty"`
	Unacked uint32        `json:"unacked,omitempty"`
	RTT     time.Duration `json:"rtt,omitempty"`
	// Times since.
	LastDataSent time.Duration `json:"last_data_sent"`
	LastDataRecv time.Duration `json:"last_data_recv"`
	LastAckRecv  time.Duration `json:"last_ack_recv"`
	// Counters of the socket's life.
	SegsIn        uint32 `json:"segs_in"`
	DataSegsOut   uint32 `json:"data_segs_out"`
	TotalRetrans  uint32 `json:"total_retrans,omitempty"`
	BytesReceived uint64 `json:"bytes_received"`
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

// Others tells how connections that are not toward Redis fare in a namespace.
type Others struct {
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
