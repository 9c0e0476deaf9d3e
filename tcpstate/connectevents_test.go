package tcpstate

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

func TestConnectEventsTellOfConnectionsToWatchedPorts(t *testing.T) {
	t.Run("by a filter in the kernel", func(t *testing.T) { connectEventsTell(t, func(port uint16) []uint16 { return []uint16{1, port} }) })
	t.Run("by a set", func(t *testing.T) { connectEventsTell(t, func(port uint16) []uint16 { return manyPorts(port, 0) }) })
}

func TestConnectEventsOfNoPorts(t *testing.T) {
	b, err := OpenConnectEvents([]uint16{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	pair(t, "tcp4", "127.0.0.1:0")
	if lost := b.Read(func(x ConnectEvent) { t.Errorf("%+v", x) }); lost != 0 {
		t.Errorf("%d lost", lost)
	}
}

func connectEventsTell(t *testing.T, ports func(port uint16) []uint16) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	remote := l.Addr().(*net.TCPAddr).AddrPort()
	b, err := OpenConnectEvents(ports(remote.Port()))
	if err != nil {
		t.Fatalf("this kernel has tracepoints, and we are root: %v", err)
	}
	defer b.Close()
	began := sys.Monotonic()
	pair(t, "tcp4", "127.0.0.1:0") // to another port
	c, err := net.Dial("tcp4", remote.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(remote.Port()), Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}); err != nil {
		t.Fatal(err)
	}
	name, _ := unix.Getsockname(fd)
	locals := map[netip.AddrPort]bool{
		c.LocalAddr().(*net.TCPAddr).AddrPort():                                                       true,
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet6).Port)): true,
	}
	sockets := map[uint64]bool{}
	deadline := time.Now().Add(5 * time.Second)
	for len(locals) > 0 && time.Now().Before(deadline) {
		if lost := b.Read(func(x ConnectEvent) {
			if now := sys.Monotonic(); x.At < began || x.At > now {
				t.Errorf("it was at %v, not between %v and %v", x.At, began, now)
			}
			if x.Remote != remote {
				t.Errorf("a connect event to %v, which is not watched", x.Remote)
			}
			switch x.State {
			case SynSent:
				if _, err := os.Stat("/proc/self/task"); err != nil || x.TID == 0 {
					t.Errorf("no thread in %+v", x)
				}
				sockets[x.Socket] = true
			case Established:
				if !locals[x.Local] {
					t.Errorf("an unexpected connect event: %+v", x)
				}
				if !sockets[x.Socket] {
					t.Errorf("%+v was seen without its beginning", x)
				}
				delete(locals, x.Local)
			default:
				t.Errorf("state %v", x.State)
			}
		}); lost != 0 {
			t.Errorf("%d lost", lost)
		}
	}
	if len(locals) > 0 {
		t.Errorf("no connect event of %v", locals)
	}
}

func TestConnectEventsCountWhatIsLost(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	b, err := OpenConnectEvents([]uint16{l.Addr().(*net.TCPAddr).AddrPort().Port()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const n = 2000 // more than the rings hold
	for range n {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	// What is lost is told with the first record that has room again.
	seen := 0
	count := func(x ConnectEvent) { seen++ }
	lost := b.Read(count)
	for deadline := time.Now().Add(10 * time.Second); lost == 0 && time.Now().Before(deadline); { // on whatever CPU we run
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		lost += b.Read(count)
	}
	if lost == 0 || seen == 0 {
		t.Errorf("%d connect events seen and %d lost of %d", seen, lost, 2*n)
	}
}
