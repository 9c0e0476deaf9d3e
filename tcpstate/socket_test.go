package tcpstate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
)

// pair returns both ends of a real TCP connection over loopback.
func pair(t *testing.T, network, listen string) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	host := "127.0.0.1"
	if network == "tcp6" {
		host = "::1"
	}
	c, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// dualStack returns a connection to a v4 server from an AF_INET6 socket, as
// Java, Go and Node clients often have.
func dualStack(t *testing.T) (fd int, local, remote netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	remote = l.Addr().(*net.TCPAddr).AddrPort()
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	sa := &unix.SockaddrInet6{Port: int(remote.Port()), Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
	if err := unix.Connect(fd, sa); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	local = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet6).Port))
	return fd, local, remote
}

func openSocket(t *testing.T) *Socket {
	t.Helper()
	s := new(Socket)
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// find dumps and returns the record with the given local address.
func find(t *testing.T, s *Socket, f Filter, local netip.AddrPort) (Connection, bool) {
	t.Helper()
	var found Connection
	var ok bool
	if err := s.Dump(f, func(c *Connection) error {
		if c.Local == local {
			found, ok = *c, true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found, ok
}

func TestDumpFindsBothFamiliesInOneWalk(t *testing.T) {
	c4, _ := pair(t, "tcp4", "127.0.0.1:0")
	c6, _ := pair(t, "tcp6", "[::1]:0")
	_, mappedLocal, mappedRemote := dualStack(t)
	s := openSocket(t)
	a4, a6 := c4.LocalAddr().(*net.TCPAddr).AddrPort(), c6.LocalAddr().(*net.TCPAddr).AddrPort()
	ports := []uint16{c4.RemoteAddr().(*net.TCPAddr).AddrPort().Port(), c6.RemoteAddr().(*net.TCPAddr).AddrPort().Port(), mappedRemote.Port()}
	for _, tc := range []struct {
		name  string
		local netip.AddrPort
		v6    bool
	}{{"v4", a4, false}, {"v6", a6, true}, {"v4-mapped", mappedLocal, true}} {
		got, ok := find(t, s, Filter{RemotePorts: ports, Info: true}, tc.local)
		if !ok {
			t.Fatalf("%s: connection from %v not in the dump", tc.name, tc.local)
		}
		if got.V6 != tc.v6 || got.State != Established || got.Cookie == 0 || got.Inode == 0 || !got.HasInfo {
			t.Errorf("%s: got %+v", tc.name, got)
		}
	}
}

func TestDumpFiltersPortsInTheKernel(t *testing.T) {
	s := openSocket(t)
	var locals []netip.AddrPort
	var ports []uint16
	for range 5 {
		c, _ := pair(t, "tcp4", "127.0.0.1:0")
		locals = append(locals, c.LocalAddr().(*net.TCPAddr).AddrPort())
		ports = append(ports, c.RemoteAddr().(*net.TCPAddr).AddrPort().Port())
	}
	for n := 1; n <= len(ports); n++ {
		seen := map[netip.AddrPort]bool{}
		if err := s.Dump(Filter{RemotePorts: ports[:n]}, func(c *Connection) error {
			seen[c.Local] = true
			return nil
		}); err != nil {
			t.Fatalf("%d ports: %v", n, err)
		}
		if len(seen) != n {
			t.Errorf("%d ports: %d connections, want exactly theirs", n, len(seen))
		}
		for _, l := range locals[:n] {
			if !seen[l] {
				t.Errorf("%d ports: %v is missing", n, l)
			}
		}
	}
	full := make([]uint16, MaxPorts)
	for i := range full {
		full[i] = uint16(20000 + i)
	}
	full[MaxPorts-1] = ports[0]
	if _, ok := find(t, s, Filter{RemotePorts: full}, locals[0]); !ok {
		t.Errorf("the last of %d ports is not matched", MaxPorts)
	}
}

func TestDumpOfManyPortsAndOfNone(t *testing.T) {
	s := openSocket(t)
	watched, _ := pair(t, "tcp4", "127.0.0.1:0")
	other, _ := pair(t, "tcp4", "127.0.0.1:0")
	ports := manyPorts(watched.RemoteAddr().(*net.TCPAddr).AddrPort().Port(), other.RemoteAddr().(*net.TCPAddr).AddrPort().Port())
	f := Filter{RemotePorts: ports}
	if _, ok := find(t, s, f, watched.LocalAddr().(*net.TCPAddr).AddrPort()); !ok {
		t.Errorf("the last of %d ports is not matched", len(ports))
	}
	if _, ok := find(t, s, f, other.LocalAddr().(*net.TCPAddr).AddrPort()); ok {
		t.Errorf("a port that is none of %d is matched", len(ports))
	}
	// The set of one dump must not show in the next.
	if _, ok := find(t, s, Filter{RemotePorts: manyPorts(1, 2)}, watched.LocalAddr().(*net.TCPAddr).AddrPort()); ok {
		t.Error("a port of the dump before is matched")
	}
	if err := s.Dump(Filter{RemotePorts: []uint16{}}, func(c *Connection) error {
		return fmt.Errorf("%v -> %v", c.Local, c.Remote)
	}); err != nil {
		t.Errorf("an empty list of ports matches: %v", err)
	}
	if _, ok := find(t, s, Filter{}, other.LocalAddr().(*net.TCPAddr).AddrPort()); !ok {
		t.Error("nil does not match every port")
	}
}

// manyPorts are more ports than the kernel filters by, with is among them and
// isNot not.
func manyPorts(is, isNot uint16) (ports []uint16) {
	for p := uint16(1); len(ports) < MaxPorts+100; p++ {
		if p != isNot && p != is {
			ports = append(ports, p)
		}
	}
	return append(ports, is)
}

func TestGetBatchAndGone(t *testing.T) {
	const n = 150 // more than two batches
	s := openSocket(t)
	var ids []ID
	for range n {
		c, _ := pair(t, "tcp4", "127.0.0.1:0")
		got, ok := find(t, s, Filter{RemotePorts: []uint16{c.RemoteAddr().(*net.TCPAddr).AddrPort().Port()}}, c.LocalAddr().(*net.TCPAddr).AddrPort())
		if !ok {
			t.Fatal("not found")
		}
		ids = append(ids, got.ID)
	}
	ids[7].Cookie++ // a predecessor on the same 4-tuple
	out := make([]Result, n)
	if err := s.Get(ids, out); err != nil {
		t.Fatal(err)
	}
	for i, r := range out {
		if i == 7 {
			if !errors.Is(r.Err, ErrGone) {
				t.Errorf("a wrong cookie gave %v, want ErrGone", r.Err)
			}
			continue
		}
		if r.Err != nil || r.ID != ids[i] || !r.HasInfo || r.Info.RTO <= 0 {
			t.Fatalf("%d: %+v", i, r)
		}
	}
}

// The fields are where this kernel, which has all of them, puts them.
func TestInfoOfThisKernel(t *testing.T) {
	c, peer := pair(t, "tcp4", "127.0.0.1:0")
	buf := make([]byte, 8)
	for range 3 {
		for from, to := range map[*net.TCPConn]*net.TCPConn{c: peer, peer: c} {
			if _, err := from.Write([]byte("12345")); err != nil {
				t.Fatal(err)
			}
			if _, err := to.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, local := openSocket(t), c.LocalAddr().(*net.TCPAddr).AddrPort()
	labtest.Eventually(t, "everything is acknowledged", func() bool {
		got, ok := find(t, s, Filter{RemotePorts: []uint16{c.RemoteAddr().(*net.TCPAddr).AddrPort().Port()}, Info: true}, local)
		i := got.Info
		for f := range fields {
			if !i.Has(f) {
				t.Fatalf("tcp_info of %d bytes does not have the field that ends at %d", i.InfoLen, f)
			}
		}
		return ok && i.BytesAcked == 1+15 && i.BytesReceived == 15 && i.DataSegsIn == 3 && i.DataSegsOut == 3 && i.Delivered == 1+3 && // with the SYN
			i.SegsIn >= 1+3 && i.NotSentBytes == 0 && i.SndWnd > 0 && i.Probes == 0 && i.RTO > 0
	})
}

func TestDestroy(t *testing.T) {
	s := openSocket(t)
	for _, tc := range []string{"tcp4", "tcp6"} {
		c, peer := pair(t, tc, map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[tc])
		got, ok := find(t, s, Filter{RemotePorts: []uint16{c.RemoteAddr().(*net.TCPAddr).AddrPort().Port()}}, c.LocalAddr().(*net.TCPAddr).AddrPort())
		if !ok {
			t.Fatal("not found")
		}
		errs := make([]error, 1)
		wrong := got.ID
		wrong.Cookie++
		if err := s.Destroy([]ID{wrong}, errs); err != nil || !errors.Is(errs[0], ErrGone) {
			t.Fatalf("wrong cookie: %v, %v, want ErrGone", err, errs[0])
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatalf("a destroy with a wrong cookie hit the connection: %v", err)
		}
		if err := s.Destroy([]ID{got.ID}, errs); err != nil || errs[0] != nil {
			t.Fatalf("destroy: %v, %v", err, errs[0])
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("%s: the application got %v, want ECONNABORTED", tc, err)
		}
		buf := make([]byte, 2)
		var err error
		for err == nil {
			_, err = peer.Read(buf)
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the peer got %v, want ECONNRESET", tc, err)
		}
		if err := s.Destroy([]ID{got.ID}, errs); err != nil || !errors.Is(errs[0], ErrGone) {
			t.Errorf("destroy again: %v, %v, want ErrGone", err, errs[0])
		}
	}
}

func TestDestroyDualStack(t *testing.T) {
	fd, local, remote := dualStack(t)
	s := openSocket(t)
	got, ok := find(t, s, Filter{RemotePorts: []uint16{remote.Port()}}, local)
	if !ok {
		t.Fatal("not found")
	}
	if !got.V6 || !got.Remote.Addr().Is4() {
		t.Fatalf("not a v4-mapped connection: %+v", got)
	}
	errs := make([]error, 1)
	if err := s.Destroy([]ID{got.ID}, errs); err != nil || errs[0] != nil {
		t.Fatalf("destroy: %v, %v", err, errs[0])
	}
	if _, err := unix.Read(fd, make([]byte, 1)); err != unix.ECONNABORTED {
		t.Errorf("read: %v, want ECONNABORTED", err)
	}
}

func TestDestroyRefusesMissingCookie(t *testing.T) {
	s := openSocket(t)
	c, _ := pair(t, "tcp4", "127.0.0.1:0")
	id := ID{Local: c.LocalAddr().(*net.TCPAddr).AddrPort(), Remote: c.RemoteAddr().(*net.TCPAddr).AddrPort()}
	if err := s.Destroy([]ID{id}, make([]error, 1)); err == nil {
		t.Fatal("destroyed without a cookie")
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatalf("the connection was hit: %v", err)
	}
}

// A callback that gives up leaves a dump open in the kernel; a later dump on the
// same socket would get EBUSY. The socket must not be usable after that, and
// must work again once it is opened anew.
func TestAbandonedDumpClosesTheSocket(t *testing.T) {
	for range 300 { // more than one kernel buffer of records
		pair(t, "tcp4", "127.0.0.1:0")
	}
	s := openSocket(t)
	stop := errors.New("stop")
	err := s.Dump(Filter{Info: true}, func(*Connection) error { return stop })
	if !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
	if s.nl.IsOpen() {
		t.Fatal("the socket is still open")
	}
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := s.Dump(Filter{Info: true}, func(*Connection) error { n++; return nil }); err != nil {
		t.Fatalf("dump after an abandoned one: %v", err)
	}
	if n < 600 {
		t.Errorf("%d connections, want both ends of 300", n)
	}
}

func TestProbeCapabilities(t *testing.T) {
	got := ProbeCapabilities()
	if got.Dump.Support != Supported || got.Destroy.Support != Supported {
		t.Errorf("as root on this kernel: %+v", got)
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	c, _ := pair(t, "tcp4", "127.0.0.1:0")
	s := openSocket(t)
	f := Filter{RemotePorts: []uint16{c.RemoteAddr().(*net.TCPAddr).AddrPort().Port(), 6379}, Info: true}
	var id ID
	fn := func(c *Connection) error { id = c.ID; return nil }
	if err := s.Dump(f, fn); err != nil {
		t.Fatal(err)
	}
	ids, out := []ID{id, id}, make([]Result, 2)
	ids[1].Cookie++
	if err := s.Get(ids, out); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if s.Dump(f, fn) != nil || s.Get(ids, out) != nil {
			panic("failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations per dump and get, want none", n)
	}
}
