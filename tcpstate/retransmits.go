package tcpstate

import (
	"fmt"
	"net/netip"
)

// Retransmits tells of retransmissions to the watched ports, from all network
// namespaces of the node at once, as the kernel's tracepoint tcp:tcp_retransmit_skb
// (Linux 4.16) has them: timeouts, loss probes and repeated SYNs, but not the
// probes of keepalive and of a zero window. With them a connection that is silent
// need not be looked for: it says so itself, within some 220 ms of sending.
//
// It is a hint, not a ledger: what a CPU does in a timer that expires while it is idle, or
// while another program runs, is counted by perf (see Counted) but not always delivered,
// and not told as lost either (measured on 6.18: up to half of the retransmissions of an
// idle machine, a quarter with every CPU kept busy).
//
// What it costs is some 0.2 us of the kernel's time at each retransmission of any
// TCP socket of the node.
type Retransmits struct{ from *tracepoint }

// Retransmission is one transmission made again.
type Retransmission struct {
	// Socket is the one of ConnectEvent.
	Socket uint64
	// State is SynSent for a connect that waits for its answer.
	State         State
	Local, Remote netip.AddrPort
}

// retransmitPages is the room per CPU between two reads: 8 pages hold some 290
// retransmissions.
const retransmitPages = 8

// OpenRetransmits starts receiving retransmissions to the given remote ports (as
// OpenConnectEvents has them), only those of connects under way if connecting is set. It
// needs CAP_PERFMON or CAP_SYS_ADMIN, and tracefs.
func OpenRetransmits(ports []uint16, connecting bool) (*Retransmits, error) {
	where := ""
	if connecting {
		where = fmt.Sprintf("state == %d", SynSent)
	}
	from, err := openTracepoint("tcp/tcp_retransmit_skb", "state", where, ports, retransmitPages)
	if err != nil {
		return nil, fmt.Errorf("cannot receive retransmissions: %w", err)
	}
	return &Retransmits{from}, nil
}

// Close stops receiving.
func (r *Retransmits) Close() { r.from.close() }

// Read calls fn for every retransmission since the last call, without a system
// call. The kernel does not say in which namespace. Read returns how many were lost
// for want of room: then only looks tell.
func (r *Retransmits) Read(fn func(Retransmission)) (lost uint64) {
	return r.from.read(func(t traced) {
		fn(Retransmission{Socket: t.socket, State: t.state, Local: t.local, Remote: t.remote})
	})
}

// Counted is how many there were since the opening, delivered or not: exact where the
// kernel filters by port (up to MaxPorts ports), else those of all ports. It interrupts
// each CPU (22 us).
func (r *Retransmits) Counted() (uint64, error) {
	var sum uint64
	for _, ring := range r.from.rings {
		n, err := ring.Count()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
