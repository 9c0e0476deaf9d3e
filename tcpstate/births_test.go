package tcpstate

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBirthsTellOfConnectionsToWatchedPorts(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	remote := l.Addr().(*net.TCPAddr).AddrPort()
	b, err := OpenBirths([]uint16{1, remote.Port()})
	if err != nil {
		t.Fatalf("this kernel has tracepoints, and we are root: %v", err)
	}
	defer b.Close()
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
		if lost := b.Read(func(x Birth) {
			if x.Remote != remote {
				t.Errorf("a birth to %v, which is not watched", x.Remote)
			}
			switch x.State {
			case SynSent:
				if _, err := os.Stat("/proc/self/task"); err != nil || x.TID == 0 {
					t.Errorf("no thread in %+v", x)
				}
				sockets[x.Socket] = true
			case Established:
				if !locals[x.Local] {
					t.Errorf("an unexpected birth: %+v", x)
				}
				if !sockets[x.Socket] {
					t.Errorf("%+v was born without its beginning", x)
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
		t.Errorf("no birth of %v", locals)
	}
}

func TestBirthsCountWhatIsLost(t *testing.T) {
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
	b, err := OpenBirths([]uint16{l.Addr().(*net.TCPAddr).AddrPort().Port()})
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
	born := 0
	count := func(x Birth) { born++ }
	lost := b.Read(count)
	for deadline := time.Now().Add(10 * time.Second); lost == 0 && time.Now().Before(deadline); { // on whatever CPU we run
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		lost += b.Read(count)
	}
	if lost == 0 || born == 0 {
		t.Errorf("%d births seen and %d lost of %d", born, lost, 2*n)
	}
}
