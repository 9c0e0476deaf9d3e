package supervisor_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// Connections that are bound to an interface, by SO_BINDTODEVICE or as they lead to a
// link-local address, are found, before the start and after it, looked at, and ended.
func TestBoundToAnInterface(t *testing.T) {
	w := newWorld(t)
	neighbour, err := w.Client("n") // on the same link
	labtest.Must(t, err)
	_, err = neighbour.Redis(w.ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	eth0, _ := labtest.LinkOf(t, w.client, "eth0")
	_, local := labtest.LinkOf(t, neighbour, "eth0")
	scoped := netip.AddrPortFrom(local.WithZone("eth0"), port)
	run := func(kind lab.ClientKind, addr netip.AddrPort, device string) *lab.Client {
		t.Helper()
		c, err := w.client.Client(w.ctx, lab.ClientConfig{Kind: kind, Addr: addr, Conns: 2, Interval: 20 * time.Millisecond, Device: device})
		labtest.Must(t, err)
		labtest.Must(t, c.Ready(w.ctx))
		return c
	}
	before := run(lab.Writer, w.redis.Addr(), "eth0")
	linked := run(lab.Writer, scoped, "")
	g := startGuard(t, arming(), false)
	g.ready(4)
	bound := func() (list []view.Connection) {
		n, err := g.View(w.ctx)
		labtest.Must(t, err)
		for _, c := range n.Connections {
			if c.TCP.Interface == eth0 && c.Owner != nil && c.TCP.Info.BytesReceived > 0 {
				list = append(list, c)
			}
		}
		return list
	}
	labtest.Within(t, 5*time.Second, "those that were there are looked at", func() bool { return len(bound()) == 4 })
	dumps := g.Figures().Dumps
	after := run(lab.Subscriber, w.redis.Addr(), "eth0")
	run(lab.Subscriber, scoped, "")
	run(lab.Subscriber, w.redis.Addr6(), "eth0")
	labtest.Within(t, 5*time.Second, "those that came are looked at", func() bool { return len(bound()) == 10 })
	if n := g.Figures().Dumps - dumps; n > 0 {
		t.Errorf("they were found by %d dumps, not by what the kernel told", n)
	}
	// Each is probed through its interface: of a link-local address there is no other way.
	for _, at := range []netip.AddrPort{w.redis.Addr(), w.redis.Addr6(), netip.AddrPortFrom(local, port)} {
		labtest.Within(t, 20*time.Second, "an answered probe of "+at.String(), func() bool {
			return len(g.log.lines("msg=probe endpoint="+at.String()+" namespace=rgsv-c outcome=alive")) > 0
		})
	}
	for _, at := range []netip.AddrPort{w.redis.Addr(), netip.AddrPortFrom(local, port)} { // by hand
		var victim view.Connection
		for _, c := range bound() {
			if c.TCP.Remote == at {
				victim = c
			}
		}
		list, err := g.Reap(w.ctx, view.Reap{Connection: victim.Key, Force: true})
		if err != nil || len(list) != 1 || list[0].Outcome != verdict.ReapDone {
			t.Errorf("reaped by hand: %+v, %v", list, err)
		}
		r := g.wait(5*time.Second, "its record", func(e event.Event) bool {
			return e.Type == verdict.ConnectionReaped && e.Cookie == victim.Key.Cookie
		})
		if r.Interface != eth0 || r.Connection == nil || r.Connection.Interface != eth0 {
			t.Errorf("the record says %+v, %+v", r, r.Connection)
		}
		// Its client comes back, and its connection is found once more.
		labtest.Within(t, 5*time.Second, "all are there again", func() bool {
			l := bound()
			return len(l) == 10 && !slices.ContainsFunc(l, func(c view.Connection) bool { return c.Key == victim.Key })
		})
	}
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	for _, k := range []*lab.Client{before, after} {
		e := w.failure(k, lost)
		t.Logf("%s after %v", e.Errno, e.Time().Sub(lost))
		if e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 6*time.Second {
			t.Errorf("a client got %s after %v", e.Errno, e.Time().Sub(lost))
		}
	}
	down := g.wait(time.Second, "endpoint.down", ofType(verdict.EndpointDown))
	if down.Interface != eth0 || down.Endpoint != w.redis.Addr() {
		t.Errorf("the finding says %+v", down)
	}
	w.answered(linked, time.Now())
	labtest.Must(t, w.server.Return())
	g.wait(10*time.Second, "endpoint.up", func(e event.Event) bool { return e.Path() == down.Path() && e.Type == verdict.EndpointUp })
	for _, k := range []*lab.Client{before, after} {
		w.back(k, w.failure(k, lost))
	}
	for _, r := range g.reaped() {
		if r.Peer == nil && r.Endpoint.Addr().IsLinkLocalUnicast() {
			t.Errorf("reaped at another endpoint: %+v", r)
		}
	}
}

// Two servers have one address, behind two interfaces of a namespace. One is gone; what is
// bound to the other interface is not judged by that, idle as it is.
func TestOneAddressBehindTwoInterfaces(t *testing.T) {
	w := newWorld(t)
	other, err := w.Client("o")
	labtest.Must(t, err)
	labtest.Must(t, w.client.Shadow(other, w.server.Addr))
	_, err = other.Redis(w.ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	run := func(kind lab.ClientKind, device string) *lab.Client {
		t.Helper()
		c, err := w.client.Client(w.ctx, lab.ClientConfig{Kind: kind, Addr: w.redis.Addr(), Conns: 2, Interval: 20 * time.Millisecond, Device: device})
		labtest.Must(t, err)
		labtest.Must(t, c.Ready(w.ctx))
		return c
	}
	g := startGuard(t, arming(), false)
	lost0, kept := run(lab.Writer, "eth0"), run(lab.Subscriber, "eth1")
	idle := run(lab.Subscriber, "eth0")
	labtest.Within(t, 20*time.Second, "all are watched and both servers were probed", func() bool {
		return g.Figures().Tracked >= 6 && g.Figures().Attributions >= 6 && g.Figures().Probes[verdict.Alive] >= 2
	})
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	for _, k := range []*lab.Client{lost0, idle} {
		if e := w.failure(k, lost); e.Errno != "ECONNABORTED" {
			t.Errorf("the client got %s", e.Errno)
		}
	}
	pass(5 * time.Second) // in which nothing happens to the others
	if e := kept.Totals().Errors; len(e) > 0 {
		t.Errorf("the client of the other server got %v", e)
	}
	eth0, _ := labtest.LinkOf(t, w.client, "eth0")
	for _, e := range g.all(ofType(verdict.EndpointDown)) {
		if e.Interface != eth0 {
			t.Errorf("down: %+v", e)
		}
	}
}

// An application may take the binding away.
func TestUnbound(t *testing.T) {
	w := newWorld(t)
	eth0, _ := labtest.LinkOf(t, w.client, "eth0")
	var fd int
	labtest.Must(t, w.client.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.BindToDevice(fd, "eth0")
		}
		return errors.Join(err, unix.Connect(fd, &unix.SockaddrInet4{Addr: w.server.Addr.As4(), Port: port}))
	}))
	defer unix.Close(fd)
	cookie := labtest.Must2(sys.SocketCookie(fd))(t)
	g := startGuard(t, arming(), false)
	is := func(iface uint32) func() bool {
		return func() bool {
			n := labtest.Must2(g.View(w.ctx))(t)
			return slices.ContainsFunc(n.Connections, func(c view.Connection) bool {
				return c.Key.Cookie == cookie && c.TCP.Interface == iface && c.TCP.HasInfo
			})
		}
	}
	labtest.Within(t, 10*time.Second, "it is watched as bound", is(eth0))
	labtest.Must(t, unix.BindToDevice(fd, ""))
	labtest.Within(t, 10*time.Second, "it is watched as not bound", is(0))
}

// A link-local endpoint that is gone. The daemon lives beside the client, so that the
// machine's own way out has no say.
func TestLinkLocalEndpointIsGone(t *testing.T) {
	w := newWorld(t)
	neighbour, err := w.Client("n")
	labtest.Must(t, err)
	_, err = neighbour.Redis(w.ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	eth0, _ := labtest.LinkOf(t, w.client, "eth0")
	_, local := labtest.LinkOf(t, neighbour, "eth0")
	busy := w.run(w.client, lab.Writer, netip.AddrPortFrom(local.WithZone("eth0"), port), 2)
	other := w.run(w.client, lab.Writer, w.redis.Addr(), 2)
	d := startDaemon(t, daemonConfig{in: w.client})
	d.probed(netip.AddrPortFrom(local, port).String())
	labtest.Must(t, neighbour.Vanish())
	lost := time.Now()
	e := w.failure(busy, lost)
	t.Logf("%s after %v", e.Errno, e.Time().Sub(lost))
	if e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 6*time.Second {
		t.Errorf("the client got %s after %v", e.Errno, e.Time().Sub(lost))
	}
	line := d.wait(time.Second, "endpoint.down", func(l *logLine) bool { return l.is(verdict.EndpointDown) })
	if n, _ := line.text["interface"].(float64); uint32(n) != eth0 {
		t.Errorf("the finding says %s", line.raw)
	}
	labtest.Must(t, neighbour.Return())
	w.back(busy, e)
	w.answered(other, time.Now())
	if n := other.Totals().Errors; len(n) > 0 {
		t.Errorf("the client of another endpoint got %v", n)
	}
}
