package probe

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/vishvananda/netlink"
)

// A probe has the source address that it is to have, and that of the kernel's choice where
// the namespace has no such address.
func TestFromASource(t *testing.T) {
	for _, tt := range []struct{ name, second, foreign, listen string }{
		{"IPv4", "192.0.2.7/32", "192.0.2.8", "127.0.0.1:0"},
		{"IPv6", "2001:db8::7/128", "2001:db8::8", "[::1]:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			client, _ := pair(t, l)
			labtest.Must(t, client.Do(func() error {
				lo, err := netlink.LinkByName("lo")
				if err != nil {
					return err
				}
				return lab.AddAddress(lo, netip.MustParsePrefix(tt.second))
			}))
			ln := labtest.Must2(client.Listen(t.Context(), "tcp", tt.listen))(t)
			defer ln.Close()
			to := ln.Addr().(*net.TCPAddr).AddrPort()
			own, _ := netip.ParsePrefix(tt.second)
			for source, want := range map[netip.Addr]netip.Addr{
				own.Addr():                      own.Addr(),
				netip.MustParseAddr(tt.foreign): to.Addr(),
				{}:                              to.Addr(),
			} {
				from := make(chan netip.Addr, 1)
				labtest.Must(t, ln.(*net.TCPListener).SetDeadline(time.Now().Add(10*time.Second)))
				go func() {
					c, err := ln.Accept()
					if err != nil {
						close(from)
						return
					}
					from <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
					c.Write([]byte("+PONG\r\n"))
					c.Close()
				}()
				cfg := testConfig
				cfg.Source = source
				if r := probeFrom(t, t.Context(), client, to, cfg); r.Outcome != Alive {
					t.Errorf("from %v: %+v", source, r)
				}
				if got := <-from; got != want {
					t.Errorf("from %v: the server sees %v, want %v", source, got, want)
				}
			}
			// One of the other family is a mistake of the caller.
			wrong := netip.MustParseAddr("2001:db8::1")
			if to.Addr().Is6() {
				wrong = netip.MustParseAddr("192.0.2.1")
			}
			cfg := testConfig
			cfg.Source = wrong
			labtest.Must(t, client.Do(func() error {
				if s, err := Open(to, cfg); err == nil {
					s.Close()
					t.Errorf("from %v to %v: no error", wrong, to)
				}
				return nil
			}))
		})
	}
}
