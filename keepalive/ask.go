package keepalive

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The errors after which a connection has not been asked, and is as it was.
var (
	// ErrNetAdmin is an ErrNotPermitted: TCP_REPAIR wants more than reaching the socket does.
	ErrNetAdmin = fmt.Errorf("%w: CAP_NET_ADMIN is missing in the user namespace that owns the network namespace of the connection, or a BPF program forbids setsockopt there", ErrNotPermitted)
	// ErrRepair: the socket is in repair mode, so somebody (CRIU) is saving or restoring
	// it. Ending that mode would break a checkpoint.
	ErrRepair = errors.New("the socket is in repair mode")
	// ErrState: the connection is not ESTABLISHED. The kernel sends nothing then.
	ErrState = errors.New("the connection is not established")
)

const (
	// established is TCP_ESTABLISHED of include/net/tcp_states.h.
	established = 1
	// repairOff is TCP_REPAIR_OFF of include/uapi/linux/tcp.h.
	repairOff = 0
)

// Ask has the kernel of an established connection of another process send one window
// probe at once. The answer, if any, has to be looked for in tcp_info: a segment without
// data has come in (segs_in rose and data_segs_in did not), and last_ack_recv is younger
// than the question. Ask does not wait for it.
//
// What is sent: one empty segment with the sequence number before the first that is not
// acknowledged, which every TCP has to answer with an acknowledgement (RFC 9293, 3.10.7.4),
// whether or not data is in flight, the window is closed, or the connection was ever
// silent. The process at the other end does not notice it. A Linux peer answers such
// segments at most once per 500 ms and socket (net.ipv4.tcp_invalid_ratelimit there), so
// what is asked within 500 ms is one question. On a path that loses packets an answer may
// be missing.
//
// How: setsockopt(TCP_REPAIR, 0), whose purpose is to end repair mode, on a socket that is
// not in it (do_tcp_setsockopt and tcp_send_window_probe in net/ipv4). No timer is started
// or moved, no count of unanswered probes changes (neither TCP_KEEPCNT nor TCP_USER_TIMEOUT
// nor tcp_retries2 come nearer), and no option of the application is changed, but for one:
// the kernel clears SO_REUSEADDR, which Ask sets again in the same visit. Between the two
// system calls another socket cannot be bound to the local port of this connection, if it
// needs the option for that; a daemon that is killed just there leaves it cleared. The
// segment acknowledges what has been received, as each does, and counts in segs_out and in
// TCPWinProbe of the namespace. The answer is an acknowledgement like any other: keepalive
// measures the silence from it, and with a closed window the next probe of the kernel's own
// is due one interval after it.
//
// The other way to have a probe sent at once, TCP_KEEPIDLE on a socket with SO_KEEPALIVE
// that has been silent for longer, is no fallback: nothing is sent while data is queued,
// and such a probe counts. The one that reaches TCP_KEEPCNT, or goes unanswered on a
// socket with TCP_USER_TIMEOUT, ends the connection, and the count would have to be
// raised for that and restored, which a daemon that is killed does not do (facts.md,
// Asking a connection on demand).
//
// Of a connection that has never received anything, it is not known whether the server
// has it: with a full accept queue, or SYN cookies, ESTABLISHED here is not ESTABLISHED
// there, and the answer may be a RST, which ends the connection. The caller must not ask
// those.
//
// Ask needs CAP_NET_ADMIN in the user namespace that owns the network namespace of the
// connection (ErrNetAdmin), besides what reaching a socket needs. MPTCP sockets give
// ErrNotSupported. Two of the calls wait for the lock of the socket, and cannot be
// interrupted while the application holds it, as with Read and Set.
func Ask(s Socket) error { return s.with(ask) }

func ask(fd int) error {
	// tcpi_state is the first byte of struct tcp_info, and the kernel copies no more than
	// is asked for. The kernel itself sends nothing in another state, but clears
	// SO_REUSEADDR all the same.
	state, err := unix.GetsockoptByte(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return askError("read the state of the connection", err)
	}
	if state != established {
		return fmt.Errorf("%w: its state is %d", ErrState, state)
	}
	repair, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
	if err != nil {
		return askError("read TCP_REPAIR", err)
	}
	if repair != 0 {
		return ErrRepair
	}
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return askError("read SO_REUSEADDR", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, repairOff); err != nil {
		return askError("ask the connection", err)
	}
	if reuse == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse); err != nil {
		return fmt.Errorf("cannot set SO_REUSEADDR again: %w", err)
	}
	return nil
}

// askError names the errors after which a caller does without asking.
func askError(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		// The errno is left out: it would be taken for that of pidfd_getfd, whose
		// remedy is another.
		return fmt.Errorf("cannot %s: %w", what, ErrNetAdmin)
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP): // MPTCP
		return fmt.Errorf("cannot %s: %w: %w", what, ErrNotSupported, err)
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}
