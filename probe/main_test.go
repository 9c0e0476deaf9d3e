package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
)

func TestMain(m *testing.M) {
	lab.MaybeChild()
	labtest.Main(m)
}

// port is none of the usual ones: this machine may be guarded, by a daemon that
// would come and probe as well.
const port = 17380

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(lab.Config{Prefix: "rgpr" + strconv.Itoa(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { labtest.Must(t, l.Close()) })
	return l
}

// pair makes a client and a server that reach each other. The kernel takes up to a
// second to bring a new link into use, and what is sent before is lost.
func pair(t *testing.T, l *lab.Lab) (client, server *lab.Host) {
	t.Helper()
	client, server = labtest.Must2(l.Client("c"))(t), labtest.Must2(l.Server("s"))(t)
	talk(t, client, server.Addr)
	talk(t, client, server.Addr6)
	return client, server
}

// talk makes the host and all on its way to addr know each other, by a
// connection request that addr refuses.
func talk(t *testing.T, h *lab.Host, addr netip.Addr) {
	t.Helper()
	c, err := h.Dial(labtest.Soon(t), "tcp", netip.AddrPortFrom(addr, 1).String())
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("%v port 1: %v, want it refused", addr, err)
	}
}

// namespace finds the host's namespace as the daemon does.
func namespace(t *testing.T, h *lab.Host) netns.Namespace {
	t.Helper()
	var found netns.Namespace
	onThread(t, func(th *netns.Thread) {
		f := netns.Finder{MountDirs: []string{"/run/netns"}}
		list, err := f.Find(t.Context(), th)
		if err != nil {
			t.Error(err)
		}
		for _, ns := range list {
			if ns.Name == h.NSName {
				found = ns
			}
		}
	})
	if found.Path == "" {
		t.Fatalf("namespace %s was not found", h.NSName)
	}
	return found
}

// onThread runs fn with a thread that may visit namespaces.
func onThread(t *testing.T, fn func(*netns.Thread)) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		th, err := netns.NewThread()
		if err != nil {
			t.Error(err)
			return
		}
		defer th.Close()
		fn(th)
	})
	wg.Wait()
}

// probeFrom probes addr from the host, as the daemon does: the socket is made inside,
// the waiting is done outside.
func probeFrom(t *testing.T, ctx context.Context, h *lab.Host, addr netip.AddrPort, cfg Config) Result {
	t.Helper()
	ns := namespace(t, h)
	var s *Socket
	onThread(t, func(th *netns.Thread) {
		var err error
		if s, err = In(th, ns, addr, cfg); err != nil {
			t.Error(err)
		}
	})
	if s == nil {
		t.FailNow()
	}
	return s.Run(ctx)
}

// serve listens on the host and lets fn have each connection.
func serve(t *testing.T, h *lab.Host, port string, fn func(net.Conn)) {
	t.Helper()
	ln := labtest.Must2(h.Listen(t.Context(), "tcp", "[::]:"+port))(t)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fn(c)
			c.Close()
		}
	})
}

// sockets are the TCP sockets of the host in any state, listening ones apart.
func sockets(t *testing.T, h *lab.Host) []tcpstate.Connection {
	t.Helper()
	all := tcpstate.StateMask(1<<12-2) &^ tcpstate.Mask(tcpstate.Listen)
	var list []tcpstate.Connection
	labtest.Must(t, h.Do(func() error {
		var s tcpstate.Socket
		if err := s.Open(); err != nil {
			return err
		}
		defer s.Close()
		return s.Dump(tcpstate.Filter{States: all}, func(c *tcpstate.Connection) error {
			list = append(list, *c)
			return nil
		})
	}))
	return list
}

// nothingLeft checks that the host has no TCP socket at all.
func nothingLeft(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, c := range sockets(t, h) {
		t.Errorf("the probe left %v -> %v in %v", c.Local, c.Remote, c.State)
	}
}
