package probe

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// wayTime is within how long the way must be known, whatever it is.
const wayTime = 500 * time.Millisecond

func way(t *testing.T, ctx context.Context, h *lab.Host, addr netip.Addr) NextHop {
	t.Helper()
	var w NextHop
	labtest.Must(t, h.Do(func() (err error) {
		start := time.Now()
		w, err = Way(ctx, addr, 0)
		if took := time.Since(start); took > wayTime {
			t.Errorf("the way to %v took %v", addr, took)
		}
		return err
	}))
	return w
}

func TestWay(t *testing.T) {
	l := newLab(t)
	client, other, server := labtest.Must2(l.Client("c"))(t), labtest.Must2(l.Client("o"))(t), labtest.Must2(l.Server("s"))(t)
	both := func(h *lab.Host) []netip.Addr { return []netip.Addr{h.Addr, h.Addr6} }

	for _, addr := range both(server) {
		if w := way(t, t.Context(), client, addr); w.Gateway != Unknown || w.LinkDown {
			t.Errorf("%v, to a gateway that nobody has talked to: %+v", addr, w)
		}
	}
	for _, h := range []*lab.Host{server, other} {
		for _, addr := range both(h) {
			talk(t, client, addr)
		}
	}
	for _, addr := range both(server) {
		if w := way(t, t.Context(), client, addr); w.Gateway != Reachable || w.Endpoint != NoNeighbour || w.LinkDown || w.Interface != "eth0" {
			t.Errorf("%v, behind a gateway that is well: %+v", addr, w)
		}
	}
	for _, addr := range both(other) {
		if w := way(t, t.Context(), client, addr); w.Gateway != Reachable || w.Endpoint != Reachable {
			t.Errorf("%v, on the link: %+v", addr, w)
		}
	}
	if w := way(t, t.Context(), client, netip.MustParseAddr("127.0.0.1")); w.Gateway != NoNeighbour || w.Endpoint != NoNeighbour || w.LinkDown {
		t.Errorf("loopback: %+v", w)
	}
	if w := way(t, t.Context(), client, client.Addr); w.Gateway != NoNeighbour || w.Endpoint != NoNeighbour || w.LinkDown {
		t.Errorf("our own address: %+v", w)
	}

	labtest.Must(t, other.Vanish())
	for _, addr := range both(other) {
		if w := way(t, t.Context(), client, addr); w.Gateway != Reachable || w.Endpoint != Silent {
			t.Errorf("%v, on the link and gone: %+v", addr, w)
		}
	}
	labtest.Must(t, other.Return())

	labtest.Must(t, client.Vanish())
	for _, addr := range both(server) {
		if w := way(t, t.Context(), client, addr); w.Gateway != Silent || w.LinkDown {
			t.Errorf("%v, behind a gateway that is silent: %+v", addr, w)
		}
	}
	labtest.Must(t, client.Return())

	labtest.Must(t, client.LinkDown())
	labtest.Eventually(t, "the client sees that it has no carrier", func() bool {
		return way(t, t.Context(), client, server.Addr).LinkDown
	})
	labtest.Must(t, client.LinkUp())
	labtest.Eventually(t, "the client sees its carrier", func() bool {
		return !way(t, t.Context(), client, server.Addr).LinkDown
	})

	labtest.Must(t, client.Do(func() error { return netlink.RouteDel(&netlink.Route{Gw: net.IP{10, 77, 1, 1}}) }))
	if w := way(t, t.Context(), client, server.Addr); w.Gateway != Unknown {
		t.Errorf("no route: %+v", w)
	}
}

func TestWayEndsWithItsContext(t *testing.T) {
	l := newLab(t)
	client, server := labtest.Must2(l.Client("c"))(t), labtest.Must2(l.Server("s"))(t)
	talk(t, client, server.Addr)
	labtest.Must(t, client.Vanish())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	w := way(t, ctx, client, server.Addr)
	if took := time.Since(start); took >= neighbourWait {
		t.Errorf("%v after its context", took)
	}
	if w.Gateway != Unknown {
		t.Errorf("nobody waited for an answer, and yet: %+v", w)
	}
}
