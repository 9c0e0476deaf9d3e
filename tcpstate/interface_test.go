package tcpstate_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/tcpstate"
)

// bound is a way to bind a socket to an interface.
type bound struct {
	what   string
	client *lab.Host
	to     netip.AddrPort // with a zone, where it is link-local
	family int
	device string // of SO_BINDTODEVICE; empty is none
	index  uint32 // that the kernel must show
}

// connect returns a connected socket, and its cookie.
func (b *bound) connect(t *testing.T) (fd int, cookie uint64) {
	t.Helper()
	labtest.Must(t, b.client.Do(func() (err error) {
		if fd, err = unix.Socket(b.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if b.device != "" {
			if err := unix.BindToDevice(fd, b.device); err != nil {
				return err
			}
		}
		var to unix.Sockaddr = &unix.SockaddrInet4{Port: int(b.to.Port())}
		if b.family == unix.AF_INET {
			to.(*unix.SockaddrInet4).Addr = b.to.Addr().As4()
		} else {
			to = &unix.SockaddrInet6{Port: int(b.to.Port()), Addr: b.to.Addr().As16()}
			if b.to.Addr().IsLinkLocalUnicast() {
				to.(*unix.SockaddrInet6).ZoneId = b.index
			}
		}
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		cookie, err = sys.SocketCookie(fd)
		return err
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return fd, cookie
}

// A socket that is bound to an interface is in a dump, with the interface, and is looked at
// and ended with it, and not without.
func TestBoundToAnInterface(t *testing.T) {
	l, err := lab.New(lab.Config{Prefix: "rgts"})
	labtest.Must(t, err)
	defer l.Close()
	client, err := l.Client("c")
	labtest.Must(t, err)
	inVRF, err := l.Client("v")
	labtest.Must(t, err)
	neighbour, err := l.Client("n") // on the same link
	labtest.Must(t, err)
	server, err := l.Server("s")
	labtest.Must(t, err)
	for _, h := range []*lab.Host{server, neighbour} {
		ln, err := h.Listen(labtest.Soon(t), "tcp", "[::]:6390")
		labtest.Must(t, err)
		defer ln.Close()
	}
	const port = 6390
	eth0, _ := labtest.LinkOf(t, client, "eth0")
	_, near := labtest.LinkOf(t, neighbour, "eth0")
	v4, v6 := netip.AddrPortFrom(server.Addr, port), netip.AddrPortFrom(server.Addr6, port)
	ways := []bound{
		{"not bound", client, v4, unix.AF_INET, "", 0},
		{"SO_BINDTODEVICE", client, v4, unix.AF_INET, "eth0", eth0},
		{"SO_BINDTODEVICE, IPv6", client, v6, unix.AF_INET6, "eth0", eth0},
		{"SO_BINDTODEVICE, dual-stack", client, v4, unix.AF_INET6, "eth0", eth0},
		{"link-local", client, netip.AddrPortFrom(near, port), unix.AF_INET6, "", eth0},
	}
	if err := inVRF.VRF("vrf0"); errors.Is(err, errors.ErrUnsupported) {
		t.Log("this kernel has no VRF (CONFIG_NET_VRF)")
	} else {
		labtest.Must(t, err)
		vrf, _ := labtest.LinkOf(t, inVRF, "vrf0")
		ways = append(ways, bound{"VRF", inVRF, v4, unix.AF_INET, "vrf0", vrf})
	}
	for _, b := range ways {
		t.Run(b.what, func(t *testing.T) {
			fd, cookie := b.connect(t)
			in := func(fn func(s *tcpstate.Socket) error) {
				t.Helper()
				labtest.Must(t, b.client.Do(func() error {
					var s tcpstate.Socket
					return s.Use(func() error { return fn(&s) })
				}))
			}
			var id tcpstate.ID
			var candidates []uint32
			in(func(s *tcpstate.Socket) error {
				return s.Dump(tcpstate.Filter{RemotePorts: []uint16{port}}, func(c *tcpstate.Connection) error {
					if c.Cookie == cookie {
						id = c.ID
					}
					return nil
				})
			})
			if id.Cookie != cookie || id.Interface != b.index || id.Remote != b.to || id.Remote.Addr().Zone() != "" {
				t.Fatalf("the dump shows %+v, want interface %d and remote %v", id, b.index, b.to)
			}
			get := func(id tcpstate.ID) (out tcpstate.Connection, with, peeked error) {
				var results [2]tcpstate.Result
				in(func(s *tcpstate.Socket) error {
					return errors.Join(s.Get([]tcpstate.ID{id}, results[:1]), s.Peek([]tcpstate.ID{id}, results[1:]))
				})
				return results[0].Connection, results[0].Err, results[1].Err
			}
			if c, with, peeked := get(id); with != nil || peeked != nil || c.ID != id || !c.HasInfo {
				t.Errorf("%v, %v, %+v", with, peeked, c)
			}
			end := func(id tcpstate.ID) error {
				var errs [1]error
				in(func(s *tcpstate.Socket) error { return s.Destroy([]tcpstate.ID{id}, errs[:]) })
				return errs[0]
			}
			none, other := id, id
			none.Interface, other.Interface = 0, 1 // lo
			if b.index != 0 {
				for _, wrong := range []tcpstate.ID{none, other} {
					if _, with, peeked := get(wrong); !errors.Is(with, tcpstate.ErrGone) || !errors.Is(peeked, tcpstate.ErrGone) {
						t.Errorf("with interface %d: %v, %v, want %v", wrong.Interface, with, peeked, tcpstate.ErrGone)
					}
					if err := end(wrong); !errors.Is(err, tcpstate.ErrGone) {
						t.Errorf("destroy with interface %d: %v, want %v", wrong.Interface, err, tcpstate.ErrGone)
					}
				}
				// As it is found by a connect event: by its addresses, with an interface
				// to try.
				labtest.Must(t, b.client.Do(func() (err error) {
					var f tcpstate.InterfacesFile
					candidates, err = f.Candidates(nil, id.Local.Addr())
					return err
				}))
				found := false
				for _, index := range candidates {
					c, _, err := get(tcpstate.ID{Local: id.Local, Remote: id.Remote, Interface: index})
					found = found || err == nil && c.Cookie == cookie
				}
				if !found {
					t.Errorf("it is not found with any of the interfaces %v", candidates)
				}
			} else if c, with, _ := get(other); with != nil || c.Interface != 0 {
				t.Errorf("one that is not bound is found with any interface: %v, %+v", with, c)
			}
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Fatalf("it was hit: %v", err)
			}
			if err := end(id); err != nil {
				t.Fatalf("destroy: %v", err)
			}
			if _, err := unix.Read(fd, make([]byte, 1)); err != unix.ECONNABORTED {
				t.Errorf("the application got %v, want ECONNABORTED", err)
			}
		})
	}
}
