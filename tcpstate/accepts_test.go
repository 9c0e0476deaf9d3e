package tcpstate

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/redisguard/redisguard/lab/labtest"
)

// The accepted end of a connection is told of, also that of a dual-stack listener, and not
// the end that connects.
func TestAccepts(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp"} { // "tcp" on a wildcard is dual-stack
		address := map[string]string{"tcp4": "127.0.0.1:0", "tcp": ":0"}[network]
		l, err := net.Listen(network, address)
		labtest.Must(t, err)
		defer l.Close()
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		// The port that the client is given is the remote one of the accepted end.
		from, err := net.Listen("tcp4", "127.0.0.1:0")
		labtest.Must(t, err)
		mine := from.Addr().(*net.TCPAddr)
		from.Close()
		a, err := OpenAccepts([]uint16{uint16(mine.Port)})
		if err != nil {
			t.Fatalf("this kernel has tracepoints, and we are root: %v", err)
		}
		defer a.Close()
		pair(t, "tcp4", "127.0.0.1:0") // of other ports
		d := net.Dialer{LocalAddr: mine}
		c, err := d.Dial("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
		labtest.Must(t, err)
		defer c.Close()
		want := [2]netip.AddrPort{c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort()}
		var got [][2]netip.AddrPort
		labtest.Eventually(t, "the accept is told", func() bool {
			a.Read(func(local, remote netip.AddrPort) { got = append(got, [2]netip.AddrPort{local, remote}) })
			return len(got) > 0
		})
		if !slices.Equal(got, [][2]netip.AddrPort{want}) {
			t.Errorf("%s: told of %v, want %v", network, got, want)
		}
		var s Socket
		labtest.Must(t, s.Open())
		list, err := s.Listening()
		s.Close()
		labtest.Must(t, err)
		if !slices.ContainsFunc(list, func(x netip.AddrPort) bool { return x.Port() == port }) {
			t.Errorf("%s: port %d is not among those that listen: %v", network, port, list)
		}
	}
	if low, high, err := LocalPorts(); err != nil || low == 0 || high <= low {
		t.Errorf("local ports %d to %d, %v", low, high, err)
	}
}

func TestParsePortRange(t *testing.T) {
	for text, want := range map[string][2]uint16{"32768\t60999\n": {32768, 60999}, "1024 65535": {1024, 65535}, "5\t5\n": {5, 5}} {
		if low, high, err := parsePortRange([]byte(text)); err != nil || low != want[0] || high != want[1] {
			t.Errorf("%q: %d to %d, %v", text, low, high, err)
		}
	}
	for _, text := range []string{"", "1", "1 2 3", "x 2", "2 1", "1 65536", "-1 5"} {
		if low, high, err := parsePortRange([]byte(text)); err == nil {
			t.Errorf("%q: %d to %d", text, low, high)
		}
	}
}

func FuzzParsePortRange(f *testing.F) {
	f.Add([]byte("32768\t60999\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if low, high, err := parsePortRange(b); err == nil && low > high {
			t.Errorf("%q: %d to %d", b, low, high)
		}
	})
}
