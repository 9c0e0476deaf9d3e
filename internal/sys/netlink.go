package sys

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RecvBatchSize is how many datagrams RecvBatch takes from the kernel in one
// system call. Replies to exact gets come one per datagram (facts.md,
// sock_diag), so this is also a sensible number of requests per send.
const RecvBatchSize = 64

// recvBatchBytes is the room for one reply to an exact get. A reply is a
// 16-byte header, the 72-byte inet_diag_msg and attributes; the largest one,
// TCP_INFO, is 280 bytes on Linux 6.18. 2 KiB leaves it room to grow sevenfold.
const recvBatchBytes = 2048

// ErrTruncated says that a datagram was larger than the buffer given for it.
var ErrTruncated = errors.New("netlink message truncated by a too small buffer")

// Netlink is a netlink socket in the network namespace of the thread that
// opened it. The kernel answers sock_diag requests while the request is being
// sent, or while the answer is being read, so nothing here ever has to wait: an
// empty queue is an error of the protocol, not a reason to block.
//
// Close it before leaving the namespace for good: an open netlink socket pins
// the namespace (facts.md, "Namespaces in Go").
//
// The zero value is closed. A Netlink may be opened again after Close, so that
// its owner's buffers can be used for many namespaces.
type Netlink struct {
	fd   int
	open bool
}

// NetlinkFromFD wraps a descriptor that speaks the netlink framing, and owns it
// from then on. Tests use it to put a fake kernel behind the real codec.
func NetlinkFromFD(fd int) Netlink { return Netlink{fd: fd, open: true} }

// OpenNetlink opens a netlink socket of the given protocol (such as
// unix.NETLINK_SOCK_DIAG) in the namespace of the calling thread.
func OpenNetlink(protocol int) (Netlink, error) {
	fd, err := Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return Netlink{}, fmt.Errorf("cannot open netlink socket of protocol %d: %w", protocol, err)
	}
	return Netlink{fd: fd, open: true}, nil
}

// IsOpen reports whether the socket is open.
func (n *Netlink) IsOpen() bool { return n.open }

// Close closes the socket; closing a closed one does nothing.
func (n *Netlink) Close() {
	if n.open {
		n.open = false
		Close(n.fd)
	}
}

// Send sends one or more complete netlink messages to the kernel.
func (n *Netlink) Send(b []byte) error {
	for {
		m, err := unix.Write(n.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if m != len(b) {
			return fmt.Errorf("netlink took %d of %d bytes", m, len(b))
		}
		return nil
	}
}

// Recv reads one datagram into b without blocking. unix.EAGAIN means that there
// is none, ErrTruncated that it did not fit (its rest is lost).
func (n *Netlink) Recv(b []byte) (int, error) {
	for {
		// recvfrom by hand: x/sys allocates a Sockaddr per call.
		r, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(n.fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		case int(r) > len(b):
			return 0, ErrTruncated
		}
		return int(r), nil
	}
}

// mmsghdr is struct mmsghdr of <sys/socket.h>.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// Batch holds the buffers for RecvBatch. It is large (some 140 KiB): make one
// per worker and keep it. The zero value is ready.
type Batch struct {
	hdrs [RecvBatchSize]mmsghdr
	iovs [RecvBatchSize]unix.Iovec
	bufs [RecvBatchSize][recvBatchBytes]byte
	init bool
}

// RecvBatch reads up to RecvBatchSize datagrams in one system call, without
// blocking, and returns how many came. Message(i) gives each of them.
func (n *Netlink) RecvBatch(b *Batch) (int, error) {
	if !b.init {
		for i := range b.hdrs {
			b.iovs[i].Base = &b.bufs[i][0]
			b.iovs[i].SetLen(recvBatchBytes)
			b.hdrs[i].hdr.Iov = &b.iovs[i]
			b.hdrs[i].hdr.SetIovlen(1)
		}
		b.init = true
	}
	for {
		r, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(n.fd),
			uintptr(unsafe.Pointer(&b.hdrs[0])), RecvBatchSize, unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(r), nil
	}
}

// Message returns datagram i of the last RecvBatch; it is valid until the next.
func (b *Batch) Message(i int) ([]byte, error) {
	if b.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0 {
		return nil, ErrTruncated
	}
	return b.bufs[i][:b.hdrs[i].len], nil
}
