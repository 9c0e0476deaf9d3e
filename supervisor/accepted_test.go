package supervisor_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/view"
)

// inbound is a connection from the watched port of the server's host, which no Redis has
// there, to a listener of the client's host.
type inbound struct {
	l            net.Listener
	theirs, ours net.Conn // the accepted end is ours
}

// accept makes one that the client's host accepts on a port, any if it is 0.
func (w *world) accept(from, at uint16, network string) *inbound {
	w.t.Helper()
	x := &inbound{}
	var err error
	labtest.Must(w.t, w.client.Do(func() error {
		x.l, err = net.Listen(network, fmt.Sprintf(":%d", at))
		return err
	}))
	w.t.Cleanup(func() { x.l.Close() })
	to := netip.AddrPortFrom(w.client.Addr, uint16(x.l.Addr().(*net.TCPAddr).Port))
	labtest.Must(w.t, w.server.Do(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: w.server.Addr.AsSlice(), Port: int(from)}}
		x.theirs, err = d.DialContext(w.ctx, "tcp4", to.String())
		return err
	}))
	w.t.Cleanup(func() { x.theirs.Close() })
	x.ours, err = x.l.Accept()
	labtest.Must(w.t, err)
	w.t.Cleanup(func() { x.ours.Close() })
	return x
}

// What was accepted from a watched port is no connection to Redis: it is not watched, and
// nothing is done on its account, whoever listens, and whether the listener is still there;
// beside a client of Redis, perhaps of the same process, which is watched as ever.
func TestAcceptedConnectionsAreNotWatched(t *testing.T) {
	for _, tracepoints := range []config.Tracepoints{config.TracepointsAuto, config.TracepointsOff} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("tracepoints %v, late %v", tracepoints, late), func(t *testing.T) {
				w := newWorld(t)
				const from = port + 1 // a watched port, too, which the clients' server does not have
				c := base()
				c.Watch.Tracepoints, c.Watch.Ports = tracepoints, []uint16{port, from, from + 1, from + 2, from + 3}
				busy := w.run(w.client, lab.Writer, w.redis.Addr(), 1) // so that the namespace has opened some
				var g *guard
				if !late {
					g = startGuard(t, c, false)
					g.ready(1)
				}
				var all []*inbound
				// Below and within the range of connects; of IPv4, and dual-stack.
				all = append(all, w.accept(from, 8080, "tcp4"), w.accept(from+1, 8081, "tcp"), w.accept(from+2, 0, "tcp4"), w.accept(from+3, 8083, "tcp"))
				// Two whose listeners are gone; over one of them something was sent.
				_, err := all[2].ours.Write([]byte("hello"))
				labtest.Must(t, err)
				all[2].l.Close()
				all[3].l.Close()
				if late {
					g = startGuard(t, c, false)
				} else {
					c.Probe.Timeout += time.Millisecond // a change, and a look at everything
					c.Watch.Ports = append(slices.Clone(c.Watch.Ports), from+4)
					g.Reconfigure(c)
				}
				g.ready(1)
				// Of this namespace alone: other labs on the machine have such connections, too.
				watched := func() (list []view.Connection) {
					n, err := g.View(t.Context())
					labtest.Must(t, err)
					for _, k := range n.Connections {
						if n.Spaces[k.Space].Name == w.client.NSName {
							list = append(list, k)
						}
					}
					return list
				}
				for range 20 {
					pass(100 * time.Millisecond) // the looks of two seconds
					for _, k := range watched() {
						if k.TCP.Local != busy.Local(0) && k.WhyNot == "" {
							t.Fatalf("%v from %v may be touched", k.TCP.Local, k.TCP.Remote)
						}
					}
				}
				labtest.Within(t, 5*time.Second, "only the client's connection is watched, and may be reaped", func() bool {
					list := watched()
					return len(list) == 1 && list[0].TCP.Local == busy.Local(0) && list[0].WhyNot == ""
				})
				labtest.Must(t, w.server.Vanish())
				lost := time.Now()
				if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" {
					t.Errorf("the client got %s", e.Errno)
				}
				for _, x := range all {
					if _, err := x.ours.Write([]byte("x")); err != nil {
						t.Errorf("%v from %v: %v", x.ours.LocalAddr(), x.ours.RemoteAddr(), err)
					}
				}
			})
		}
	}
}
