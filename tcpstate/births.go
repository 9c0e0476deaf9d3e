package tcpstate

import (
	"fmt"
	"net/netip"
)

// Birth is a client connection that came into being, as the kernel's tracepoint
// sock:inet_sock_set_state (Linux 4.16) tells it.
type Birth struct {
	// Socket is the same in both births of one socket, and says nothing else.
	Socket uint64
	// PID and TID are the process and the thread that were running. In a birth
	// with State SynSent it is the one that called connect; in one with
	// Established it is any.
	PID, TID int
	// State is SynSent (the local port is not chosen yet) or Established.
	State         State
	Local, Remote netip.AddrPort
}

// Births receives births from all network namespaces of the node at once. With
// them a dump is needed only to learn what was there before: where every
// namespace opens other connections all the time, its counters give no hint, and
// a dump of each costs far too much.
//
// What it costs is some 0.2 us of the kernel's time at each change of state of any
// TCP socket of the node.
type Births struct{ from *tracepoint }

// birthPages is the room per CPU between two reads: 16 pages hold some 600 births.
const birthPages = 16

// OpenBirths starts receiving the births of connections to the given remote
// ports. It needs CAP_PERFMON or CAP_SYS_ADMIN, and tracefs.
func OpenBirths(ports []uint16) (*Births, error) {
	// The beginning of a connect, and the end of one that succeeds.
	states := fmt.Sprintf("(newstate == %d || (oldstate == %d && newstate == %d))", SynSent, SynSent, Established)
	from, err := openTracepoint("sock/inet_sock_set_state", "newstate", states, ports, birthPages)
	if err != nil {
		return nil, fmt.Errorf("cannot receive births: %w", err)
	}
	return &Births{from}, nil
}

// Close stops receiving.
func (b *Births) Close() { b.from.close() }

// Read calls fn for every birth since the last call, without a system call. It
// returns how many were lost for want of room: then only dumps tell.
func (b *Births) Read(fn func(Birth)) (lost uint64) {
	return b.from.read(func(pid, tid int, r traced) {
		fn(Birth{Socket: r.socket, PID: pid, TID: tid, State: r.state, Local: r.local, Remote: r.remote})
	})
}
