package tcpstate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// Numbers of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h. They are
// spelled out here, and not taken from x/sys, so that the codec builds on any
// system.
const (
	nlmsgHdrLen = 16
	nlmsgNoop   = 1
	nlmsgError  = 2
	nlmsgDone   = 3

	nlmFRequest = 0x1
	nlmFAck     = 0x4
	nlmFDump    = 0x300

	msgTCPDiag       = 18 // TCPDIAG_GETSOCK: the legacy request, which walks both families at once
	msgSockDiag      = 20 // SOCK_DIAG_BY_FAMILY
	msgSockDestroy   = 21 // SOCK_DESTROY
	protoTCP         = 6
	familyInet       = 2
	familyInet6      = 10
	reqLen           = 56 // struct inet_diag_req and inet_diag_req_v2
	diagMsgLen       = 72 // struct inet_diag_msg
	attrReqBytecode  = 1  // INET_DIAG_REQ_BYTECODE
	attrInfo         = 2  // INET_DIAG_INFO
	attrMark         = 15 // INET_DIAG_MARK
	attrULPInfo      = 19 // INET_DIAG_ULP_INFO
	attrCgroupID     = 21 // INET_DIAG_CGROUP_ID
	ulpName          = 1  // INET_ULP_INFO_NAME
	extInfo          = 1 << (attrInfo - 1)
	nlaTypeMask      = 0x3fff // the two top bits are flags
	nlaHdrLen        = 4
	opJump           = 1          // INET_DIAG_BC_JMP
	opRemoteCond     = 8          // INET_DIAG_BC_D_COND
	opLen            = 4          // struct inet_diag_bc_op
	opRemoteCondLen  = 12         // with struct inet_diag_hostcond and no address
	maxFilterPorts   = 64         // bytecode is audited in O(n^2) by the kernel (facts.md)
	noCookie         = ^uint32(0) // INET_DIAG_NOCOOKIE
	minInfoLen       = 104        // up to total_retrans: every tcp_info since 2.6
	errorPayloadSize = 4
)

// MaxPorts is the most remote ports that the kernel is asked to filter by. With
// more it hands over the connections to all ports, and those to others are left
// out here.
const MaxPorts = maxFilterPorts

// Filter selects what a dump returns.
type Filter struct {
	// States selects TCP states; zero selects Established and SynSent, which
	// are the only ones redisguard acts on.
	States StateMask
	// RemotePorts are matched in the kernel, up to MaxPorts of them. nil matches
	// every port, and an empty list none.
	RemotePorts []uint16
	// Info asks for TCP_INFO with each connection.
	Info bool
}

var (
	errShort = errors.New("netlink message shorter than its header says")
	ne       = binary.NativeEndian
)

// appendDump appends a dump request to b. It uses the legacy message, because
// that one walks both address families in a single pass over the kernel's table.
func appendDump(b []byte, seq uint32, f Filter) []byte {
	states := f.States
	if states == 0 {
		states = Mask(Established, SynSent)
	}
	start := len(b)
	b = appendHeader(b, msgTCPDiag, nlmFRequest|nlmFDump, seq)
	var ext byte
	if f.Info {
		ext = extInfo
	}
	// struct inet_diag_req: family, source length, destination length, extensions
	b = append(b, familyInet, 0, 0, ext)
	var remotePort uint16
	if len(f.RemotePorts) == 1 {
		// One port in the header is cheaper than bytecode, and lets the kernel
		// leave out the table of listening sockets.
		remotePort = f.RemotePorts[0]
	}
	b = appendTuple(b, ID{Remote: netip.AddrPortFrom(netip.Addr{}, remotePort)})
	b = ne.AppendUint32(b, uint32(states))
	b = ne.AppendUint32(b, 0) // idiag_dbs: tables to dump, unused by the kernel
	if n := len(f.RemotePorts); n > 1 && n <= MaxPorts {
		attr := len(b)
		b = ne.AppendUint16(b, 0)
		b = ne.AppendUint16(b, attrReqBytecode)
		b = appendPortFilter(b, f.RemotePorts)
		ne.PutUint16(b[attr:], uint16(len(b)-attr))
	}
	ne.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendPortFilter appends bytecode that accepts any of the remote ports. The
// kernel's little machine accepts when it lands exactly behind the last
// operation, and refuses when it jumps past it. The port of a condition is a
// 32-bit number in host order; address family 0 matches both families.
func appendPortFilter(b []byte, ports []uint16) []byte {
	const block = opRemoteCondLen + opLen // a condition and the jump to "accept"
	end := len(ports)*block - opLen       // the last condition needs no jump
	for i, p := range ports {
		rest := end - i*block
		last := i == len(ports)-1
		no := block
		if last {
			no = rest + opLen // past the end: refuse
		}
		b = append(b, opRemoteCond, opRemoteCondLen)
		b = ne.AppendUint16(b, uint16(no))
		b = append(b, 0, 0, 0, 0) // struct inet_diag_hostcond: family, prefix length, padding
		b = ne.AppendUint32(b, uint32(p))
		if !last {
			b = append(b, opJump, opLen)
			b = ne.AppendUint16(b, uint16(rest-opRemoteCondLen))
		}
	}
	return b
}

// appendExact appends a request about exactly one connection: msgSockDiag to
// look at it, msgSockDestroy to abort it.
func appendExact(b []byte, typ uint16, seq uint32, id ID, info bool) []byte {
	flags := uint16(nlmFRequest)
	if typ == msgSockDestroy {
		flags |= nlmFAck
	}
	start := len(b)
	b = appendHeader(b, typ, flags, seq)
	family, ext := byte(familyInet6), byte(0)
	if id.Remote.Addr().Unmap().Is4() {
		// The AF_INET form also finds dual-stack sockets (facts.md, sock_diag).
		family = familyInet
	}
	if info {
		ext = extInfo
	}
	// struct inet_diag_req_v2
	b = append(b, family, protoTCP, ext, 0)
	b = ne.AppendUint32(b, ^uint32(0)) // states: not looked at by an exact request
	b = appendTuple(b, id)
	ne.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendHeader(b []byte, typ, flags uint16, seq uint32) []byte {
	b = ne.AppendUint32(b, 0) // length, set by the caller
	b = ne.AppendUint16(b, typ)
	b = ne.AppendUint16(b, flags)
	b = ne.AppendUint32(b, seq)
	return ne.AppendUint32(b, 0) // port id of the kernel
}

// appendTuple appends a struct inet_diag_sockid (48 bytes).
func appendTuple(b []byte, id ID) []byte {
	b = binary.BigEndian.AppendUint16(b, id.Local.Port())
	b = binary.BigEndian.AppendUint16(b, id.Remote.Port())
	b = appendAddr(b, id.Local.Addr())
	b = appendAddr(b, id.Remote.Addr())
	b = ne.AppendUint32(b, id.Interface)
	if id.Cookie == 0 {
		b = ne.AppendUint32(b, noCookie)
		return ne.AppendUint32(b, noCookie)
	}
	b = ne.AppendUint32(b, uint32(id.Cookie))
	return ne.AppendUint32(b, uint32(id.Cookie>>32))
}

func appendAddr(b []byte, a netip.Addr) []byte {
	a = a.Unmap()
	switch {
	case a.Is4():
		v4 := a.As4()
		b = append(b, v4[:]...)
		return append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	case a.Is6():
		v6 := a.As16()
		return append(b, v6[:]...)
	}
	return append(b, make([]byte, 16)...)
}

// message is one netlink message of a datagram.
type message struct {
	typ  uint16
	seq  uint32
	body []byte
}

// nextMessage cuts the first message off a datagram. The lengths inside come
// from outside and are checked before anything is read.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < nlmsgHdrLen {
		return message{}, nil, fmt.Errorf("%w: %d bytes left, a header has %d", errShort, len(b), nlmsgHdrLen)
	}
	n := int(ne.Uint32(b))
	if n < nlmsgHdrLen || n > len(b) {
		return message{}, nil, fmt.Errorf("%w: length %d of %d bytes", errShort, n, len(b))
	}
	m = message{typ: ne.Uint16(b[4:]), seq: ne.Uint32(b[8:]), body: b[nlmsgHdrLen:n]}
	return m, b[min((n+3)&^3, len(b)):], nil
}

// errno returns the error in an NLMSG_ERROR or NLMSG_DONE message; nil is the
// acknowledgement.
func (m message) errno() error {
	if len(m.body) < errorPayloadSize {
		if m.typ == nlmsgDone && len(m.body) == 0 {
			return nil // very old kernels end a dump without a status
		}
		return fmt.Errorf("%w: error message without its code", errShort)
	}
	code := int32(ne.Uint32(m.body))
	switch {
	case code == 0:
		return nil
	case code < 0 && code > -4096: // MAX_ERRNO of linux/err.h
		return syscall.Errno(-code)
	case m.typ == nlmsgDone && code > 0:
		return nil // a positive status is the length of the last part
	}
	return fmt.Errorf("netlink error code %d is no errno", code)
}

// parseConnection reads an inet_diag_msg with its attributes into c, every field
// of which is set.
func parseConnection(b []byte, c *Connection) error {
	if len(b) < diagMsgLen {
		return fmt.Errorf("%w: inet_diag record of %d bytes, need %d", errShort, len(b), diagMsgLen)
	}
	*c = Connection{}
	switch b[0] {
	case familyInet:
		c.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[8:12])), binary.BigEndian.Uint16(b[4:]))
		c.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[24:28])), binary.BigEndian.Uint16(b[6:]))
	case familyInet6:
		c.V6 = true
		c.Local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])).Unmap(), binary.BigEndian.Uint16(b[4:]))
		c.Remote = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])).Unmap(), binary.BigEndian.Uint16(b[6:]))
	default:
		return fmt.Errorf("inet_diag record of unknown address family %d", b[0])
	}
	c.State = State(b[1])
	c.Timer = Timer(b[2])
	c.Retrans = b[3]
	c.Interface = ne.Uint32(b[40:])
	c.Cookie = uint64(ne.Uint32(b[44:])) | uint64(ne.Uint32(b[48:]))<<32
	c.Expires = time.Duration(ne.Uint32(b[52:])) * time.Millisecond
	c.RQueue = ne.Uint32(b[56:])
	c.WQueue = ne.Uint32(b[60:])
	c.UID = ne.Uint32(b[64:])
	c.Inode = ne.Uint32(b[68:])
	return eachAttr(b[diagMsgLen:], func(typ uint16, v []byte) {
		switch typ {
		case attrInfo:
			c.HasInfo = parseInfo(v, &c.Info)
		case attrMark:
			if len(v) >= 4 {
				c.Mark = ne.Uint32(v)
			}
		case attrCgroupID:
			if len(v) >= 8 {
				c.CgroupID = ne.Uint64(v)
			}
		case attrULPInfo:
			c.MPTCP = isMPTCP(v)
		}
	})
}

// isMPTCP tells whether the "upper layer protocol" of a socket is MPTCP. A
// malformed attribute says nothing.
func isMPTCP(ulp []byte) (is bool) {
	_ = eachAttr(ulp, func(typ uint16, v []byte) {
		if typ == ulpName && len(v) >= 5 && string(v[:5]) == "mptcp" {
			is = true
		}
	})
	return is
}

// eachAttr walks netlink attributes (struct nlattr).
func eachAttr(b []byte, fn func(typ uint16, value []byte)) error {
	for len(b) >= nlaHdrLen {
		n := int(ne.Uint16(b))
		if n < nlaHdrLen || n > len(b) {
			return fmt.Errorf("%w: attribute of %d bytes, %d left", errShort, n, len(b))
		}
		fn(ne.Uint16(b[2:])&nlaTypeMask, b[nlaHdrLen:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// parseInfo reads as much of a struct tcp_info as this kernel sent: the
// structure has grown at its end ever since (192 to 280 bytes in use today).
func parseInfo(b []byte, i *Info) bool {
	*i = Info{InfoLen: uint16(min(len(b), 1<<16-1))}
	if len(b) < minInfoLen {
		return false
	}
	u32 := func(off int) uint32 { return ne.Uint32(b[off:]) }
	i.Probes = b[3]
	i.Backoff = b[4]
	i.RTO = time.Duration(u32(8)) * time.Microsecond
	i.Unacked = u32(24)
	i.LastDataSent = time.Duration(u32(44)) * time.Millisecond
	i.LastDataRecv = time.Duration(u32(52)) * time.Millisecond
	i.LastAckRecv = time.Duration(u32(56)) * time.Millisecond
	i.RTT = time.Duration(u32(68)) * time.Microsecond
	i.TotalRetrans = u32(100)
	since32 := func(f Field) uint32 {
		if !i.Has(f) {
			return 0
		}
		return ne.Uint32(b[f-4:])
	}
	since64 := func(f Field) uint64 {
		if !i.Has(f) {
			return 0
		}
		return ne.Uint64(b[f-8:])
	}
	i.BytesAcked = since64(FieldBytesAcked)
	i.BytesReceived = since64(FieldBytesReceived)
	i.SegsIn = since32(FieldSegsIn)
	i.NotSentBytes = since32(FieldNotSentBytes)
	i.DataSegsIn = since32(FieldDataSegsIn)
	i.DataSegsOut = since32(FieldDataSegsOut)
	i.Delivered = since32(FieldDelivered)
	i.BytesSent = since64(FieldBytesSent)
	i.BytesRetrans = since64(FieldBytesRetrans)
	i.SndWnd = since32(FieldSndWnd)
	return true
}
