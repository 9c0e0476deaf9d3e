package tcpstate

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// Accepts tells of connections that were accepted: their sockets went from SYN_RECV to
// ESTABLISHED. It is told of those whose remote port is one of the given, where such a
// connection looks like one that was opened to that port.
type Accepts struct{ from *tracepoint }

// acceptPages is the room per CPU between two reads. Such connections are rare: their
// peer has chosen, or been given, a watched port as its own.
const acceptPages = 2

// OpenAccepts starts receiving; see OpenConnectEvents for what it needs.
func OpenAccepts(ports []uint16) (*Accepts, error) {
	states := fmt.Sprintf("oldstate == %d && newstate == %d", SynRecv, Established)
	from, err := openTracepoint("sock/inet_sock_set_state", "newstate", states, ports, acceptPages)
	if err != nil {
		return nil, fmt.Errorf("cannot receive accepts: %w", err)
	}
	return &Accepts{from}, nil
}

// Close stops receiving.
func (a *Accepts) Close() { a.from.close() }

// Read calls fn for every connection that was accepted since the last call. The kernel
// does not say in which namespace, and what is lost for want of room is not told: it is
// a hint beside the listening sockets.
func (a *Accepts) Read(fn func(local, remote netip.AddrPort)) {
	a.from.read(func(t traced) { fn(t.local, t.remote) })
}

// Listening lists what the listening sockets of the namespace are bound to.
func (s *Socket) Listening() ([]netip.AddrPort, error) {
	list := []netip.AddrPort{}
	err := s.Dump(Filter{States: Mask(Listen)}, func(c *Connection) error {
		list = append(list, c.Local)
		return nil
	})
	return list, err
}

// portRange is the sysctl that LocalPorts reads: of the namespace of the thread.
const portRange = "/proc/sys/net/ipv4/ip_local_port_range"

// LocalPorts says from which ports the kernel of the calling thread's namespace chooses the
// local port of a connect (net.ipv4.ip_local_port_range, for IPv6 too). A socket option
// (IP_LOCAL_PORT_RANGE) only narrows it.
func LocalPorts() (low, high uint16, err error) {
	fd, err := sys.Open(portRange, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: portRange, Err: err}
	}
	defer sys.Close(fd)
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, 0, &os.PathError{Op: "read", Path: portRange, Err: err}
	}
	return parsePortRange(buf[:n])
}

// parsePortRange reads two numbers of which the second is not less.
func parsePortRange(b []byte) (low, high uint16, err error) {
	fields := bytes.Fields(b)
	if len(fields) != 2 {
		return 0, 0, fmt.Errorf("cannot read the range of local ports: %d numbers instead of 2", len(fields))
	}
	var n [2]uint64
	for i, f := range fields {
		if n[i], err = strconv.ParseUint(string(f), 10, 16); err != nil {
			return 0, 0, fmt.Errorf("cannot read the range of local ports: %w", err)
		}
	}
	if n[0] > n[1] {
		return 0, 0, fmt.Errorf("cannot read the range of local ports: %d to %d", n[0], n[1])
	}
	return uint16(n[0]), uint16(n[1]), nil
}
