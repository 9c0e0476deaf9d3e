package tcpstate

import (
	"net/netip"
	"time"
)

// State is a TCP state as the kernel numbers it (net/tcp_states.h).
type State uint8

// The states that redisguard has to tell apart, and the rest for display.
const (
	Established State = 1
	SynSent     State = 2
	SynRecv     State = 3
	FinWait1    State = 4
	FinWait2    State = 5
	TimeWait    State = 6
	Close       State = 7
	CloseWait   State = 8
	LastAck     State = 9
	Listen      State = 10
	Closing     State = 11
)

// String gives the name that ss and the kernel's sources use.
func (s State) String() string {
	names := [...]string{"", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2",
		"TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING"}
	if s == 0 || int(s) >= len(names) {
		return "UNKNOWN"
	}
	return names[s]
}

// StateMask selects states in a dump: bit n is state n.
type StateMask uint32

// Mask returns the mask of the given states.
func Mask(states ...State) StateMask {
	var m StateMask
	for _, s := range states {
		m |= 1 << s
	}
	return m
}

// Timer is the timer that a socket has running, as inet_diag numbers it.
type Timer uint8

// The timers of inet_diag (inet_sk_diag_fill in net/ipv4/inet_diag.c).
const (
	TimerNone       Timer = 0
	TimerRetransmit Timer = 1 // data is unacknowledged: retransmission, loss probe or reordering timer
	TimerKeepalive  Timer = 2
	TimerTimeWait   Timer = 3
	TimerZeroWindow Timer = 4 // the peer's window is closed: window probes
)

func (t Timer) String() string {
	switch t {
	case TimerNone:
		return "none"
	case TimerRetransmit:
		return "retransmit"
	case TimerKeepalive:
		return "keepalive"
	case TimerTimeWait:
		return "time-wait"
	case TimerZeroWindow:
		return "zero-window"
	}
	return "unknown"
}

// ID names one connection for Get and Destroy.
type ID struct {
	// Local and Remote have no zone: that of a link-local address is Interface.
	Local, Remote netip.AddrPort
	// Interface is the index, in the connection's namespace, of the network interface that
	// the socket is bound to (sk_bound_dev_if in the kernel): by SO_BINDTODEVICE, to a VRF,
	// or because it is connected to a link-local address, whose scope it is. 0 is none.
	// The kernel finds a bound socket only if asked for it with this index, and one that
	// is not bound with any.
	Interface uint32
	// Cookie is the socket's cookie. Zero means "whatever socket has this
	// 4-tuple"; Destroy refuses it.
	Cookie uint64
}

// Connection is what the kernel says about one TCP socket at one moment.
// Durations that the kernel counts in jiffies are only as fine as its HZ
// (1 to 10 ms).
type Connection struct {
	ID
	// V6 says that the socket is an AF_INET6 one; with v4 addresses in ID it is
	// a dual-stack socket.
	V6    bool
	State State
	Timer Timer
	// Retrans counts, by Timer: retransmission timeouts, unanswered keepalive
	// probes, or unanswered window probes. It also counts timeouts at which
	// nothing could be sent (neighbour unresolved): evidence of silence is
	// Info.TotalRetrans.
	Retrans uint8
	// Expires is the time until Timer fires.
	Expires time.Duration
	// RQueue is what the application has not read, WQueue what it has written
	// and the peer has not acknowledged, in bytes. For Listen: the backlog in
	// use and its limit.
	RQueue, WQueue uint32
	UID            uint32
	// Inode is the socket's inode, as in /proc/<pid>/fd; 0 is an orphan, whose
	// application has closed it.
	Inode uint32
	// Mark is SO_MARK; the kernel shows it only to CAP_NET_ADMIN.
	Mark uint32
	// CgroupID is the id (inode) of the socket's cgroup v2, 0 if not told.
	CgroupID uint64
	// MPTCP says that the socket is a subflow of an MPTCP connection, which
	// cannot be ended one by one (facts.md, sock_diag).
	MPTCP bool
	// HasInfo says whether Info was in the answer.
	HasInfo bool
	Info    Info
}

// Info is the part of struct tcp_info (include/uapi/linux/tcp.h) that redisguard uses.
// A field that the running kernel does not have is 0 here and must not be taken for a
// count of 0: see Has.
type Info struct {
	// InfoLen is the length of the kernel's tcp_info in bytes.
	InfoLen uint16
	// Backoff is the exponent of the current RTO's backoff.
	Backoff uint8
	// Probes counts unanswered window or keepalive probes. Any acknowledgement of the
	// peer sets it to 0.
	Probes uint8
	// RTO is the retransmission timeout, with the backoff of retransmissions (not that
	// of window probes) in it. RTT is the smoothed round trip.
	RTO, RTT time.Duration
	// Unacked is the number of segments sent and not acknowledged.
	Unacked uint32
	// LastDataSent, LastDataRecv and LastAckRecv are the times since then. The
	// kernel starts them with the socket's life, so they are small in a new one.
	LastDataSent, LastDataRecv, LastAckRecv time.Duration
	// TotalRetrans counts segments really sent again, loss probes included.
	TotalRetrans uint32
	// BytesAcked and BytesReceived only grow, and only when the peer answers: a
	// repetition counts in neither. The SYN counts as a byte that was acknowledged.
	BytesAcked, BytesReceived uint64
	// SegsIn counts all segments that came in, repetitions and those that are refused
	// too, DataSegsIn those of them with data. The difference is the segments without
	// data.
	SegsIn, DataSegsIn uint32
	DataSegsOut        uint32
	// Delivered counts the segments that the peer has acknowledged, selectively too.
	Delivered uint32
	// NotSentBytes is what was written and never sent.
	NotSentBytes uint32
	// BytesSent are those of data, sent again or not, and BytesRetrans those sent again.
	BytesSent, BytesRetrans uint64
	// SndWnd is the window that the peer offers.
	SndWnd uint32
}

// Field is a field of Info that older kernels lack. Its value is where it ends in struct
// tcp_info, which has only ever grown at its end: a kernel whose structure is as long has
// the field.
type Field uint16

// The fields of Info that not every kernel has, and the first that does. All others are
// older than 2.6.
const (
	FieldBytesAcked    Field = 128 // 4.1
	FieldBytesReceived Field = 136 // 4.1
	FieldSegsIn        Field = 144 // 4.2
	FieldNotSentBytes  Field = 148 // 4.6
	FieldDataSegsIn    Field = 156 // 4.6
	FieldDataSegsOut   Field = 160 // 4.6
	FieldDelivered     Field = 196 // 4.18
	FieldBytesSent     Field = 208 // 4.19
	FieldBytesRetrans  Field = 216 // 4.19
	FieldSndWnd        Field = 232 // 5.4
)

// Has says whether the kernel has told the field.
func (i *Info) Has(f Field) bool { return i.InfoLen >= uint16(f) }
