package tcpstate

import (
	"fmt"
	"net/netip"
	"time"
)

// ConnectEvent is the beginning or the success of a connect(2), as the kernel's tracepoint
// sock:inet_sock_set_state (Linux 4.16) tells it.
type ConnectEvent struct {
	// Socket is the same in both connect events of one socket, and says nothing else.
	Socket uint64
	// PID and TID are the process and the thread that were running. In a connect event
	// with State SynSent it is the one that called connect; in one with
	// Established it is any.
	PID, TID int
	// At is when it was, by CLOCK_MONOTONIC.
	At time.Duration
	// State is SynSent (the local port is not chosen yet) or Established.
	State         State
	Local, Remote netip.AddrPort
}

// ConnectEvents receives connect events from all network namespaces of the node at once. With
// them a dump is needed only to learn what was there before: where every
// namespace opens other connections all the time, its counters give no hint, and
// a dump of each costs far too much.
//
// What it costs is some 0.2 us of the kernel's time at each change of state of any
// TCP socket of the node.
type ConnectEvents struct{ from *tracepoint }

// connectEventPages is the room per CPU between two reads: 16 pages hold some 600 connect events.
const connectEventPages = 16

// OpenConnectEvents starts receiving the connect events of connections to the given remote
// ports. With more than MaxPorts those of all connections on the node take up room
// and are left out when they are read, so more may be lost. It needs CAP_PERFMON or
// CAP_SYS_ADMIN, and tracefs.
func OpenConnectEvents(ports []uint16) (*ConnectEvents, error) {
	// The beginning of a connect, and the end of one that succeeds.
	states := fmt.Sprintf("(newstate == %d || (oldstate == %d && newstate == %d))", SynSent, SynSent, Established)
	from, err := openTracepoint("sock/inet_sock_set_state", "newstate", states, ports, connectEventPages)
	if err != nil {
		return nil, fmt.Errorf("cannot receive connect events: %w", err)
	}
	return &ConnectEvents{from}, nil
}

// Close stops receiving.
func (b *ConnectEvents) Close() { b.from.close() }

// Read calls fn for every connect event since the last call, without a system call. It
// returns how many were lost for want of room: then only dumps tell.
func (b *ConnectEvents) Read(fn func(ConnectEvent)) (lost uint64) {
	return b.from.read(func(r traced) {
		fn(ConnectEvent{Socket: r.socket, PID: r.pid, TID: r.tid, At: r.at, State: r.state, Local: r.local, Remote: r.remote})
	})
}
