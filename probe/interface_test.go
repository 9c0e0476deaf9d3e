package probe

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// Two servers have one address, behind two interfaces. A probe says how the one behind its
// own interface fares, and nothing where it has none.
func TestBoundToAnInterface(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	other := labtest.Must2(l.Client("o"))(t)
	near := labtest.Must2(l.Client("n"))(t)
	labtest.Must(t, client.Shadow(other, server.Addr))
	at := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t).Addr()
	eth0, _ := labtest.LinkOf(t, client, "eth0")
	eth1, _ := labtest.LinkOf(t, client, "eth1")
	through := func(index uint32, at netip.AddrPort) Result {
		t.Helper()
		cfg := testConfig
		cfg.Interface = index
		return probeFrom(t, t.Context(), client, at, cfg)
	}
	labtest.Eventually(t, "the second link is in use", func() bool { return through(eth1, at).Outcome == Refused })
	if r := through(eth0, at); r.Outcome != Alive {
		t.Errorf("the one behind eth0: %+v", r)
	}
	labtest.Must2(other.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	labtest.Must(t, server.Vanish())
	for index, want := range map[uint32]Outcome{eth0: Dead, eth1: Alive} {
		if r := through(index, at); r.Outcome != want {
			t.Errorf("interface %d: %+v, want %v", index, r, want)
		}
	}
	labtest.Must(t, server.Return())

	// One that is not there any more.
	if r := through(4711, at); r.Outcome != CouldNotTell {
		t.Errorf("an interface that does not exist: %+v", r)
	}

	_, local := labtest.LinkOf(t, near, "eth0")
	scoped := netip.AddrPortFrom(local, port)
	labtest.Must2(near.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	labtest.Eventually(t, "the link-local address is in use", func() bool { return through(eth0, scoped).Outcome == Alive })
	for _, index := range []uint32{0, 4711} {
		if r := through(index, scoped); r.Outcome != CouldNotTell {
			t.Errorf("a link-local address on interface %d: %+v", index, r)
		}
	}
	if r := through(eth1, scoped); r.Outcome == Alive {
		t.Errorf("a link-local address on another link: %+v", r)
	}
	nothingLeft(t, client)

	// The ways to them.
	for name, index := range map[string]uint32{"eth0": eth0, "eth1": eth1} {
		labtest.Must(t, client.Do(func() error {
			w, err := Way(t.Context(), at.Addr(), index)
			if w.Interface != name || w.LinkDown {
				t.Errorf("the way through %s: %+v", name, w)
			}
			return err
		}))
	}
}

func TestInAVRF(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	if err := client.VRF("vrf0"); errors.Is(err, errors.ErrUnsupported) {
		t.Log("this kernel has no VRF (CONFIG_NET_VRF)")
		return
	} else {
		labtest.Must(t, err)
	}
	serve(t, server, "6390", func(c net.Conn) {
		c.Read(make([]byte, 16))
		c.Write([]byte("+PONG\r\n"))
	})
	at := netip.AddrPortFrom(server.Addr, 6390)
	vrf, _ := labtest.LinkOf(t, client, "vrf0")
	cfg := testConfig
	cfg.Interface = vrf
	labtest.Eventually(t, "the VRF leads there", func() bool {
		return probeFrom(t, t.Context(), client, at, cfg).Outcome == Alive
	})
	if r := probeFrom(t, t.Context(), client, at, testConfig); r.Outcome == Alive {
		t.Errorf("without the VRF: %+v", r)
	}
	labtest.Must(t, client.Do(func() error {
		w, err := Way(t.Context(), at.Addr(), vrf)
		if w.Interface != "eth0" || w.LinkDown || w.Gateway == Silent {
			t.Errorf("the way in the VRF: %+v", w)
		}
		return err
	}))
}
