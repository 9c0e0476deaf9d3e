package policy

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/redisguard/redisguard/tcpstate"
)

func TestOpened(t *testing.T) {
	listed := func(list ...string) Origin {
		o := Origin{Listed: true, Low: 32768, High: 60999}
		for _, x := range list {
			o.Listening = append(o.Listening, ap(x))
		}
		return o
	}
	wide := listed()
	wide.Low, wide.High = 1024, 65535
	noRange := listed()
	noRange.Low, noRange.High = 0, 0
	unlisted := Origin{Low: 32768, High: 60999}
	for _, tt := range []struct {
		name     string
		o        Origin
		local    string
		state    tcpstate.State
		accepted bool
		want     Answer
	}{
		{"a client", listed("0.0.0.0:8080"), "10.0.0.7:40000", tcpstate.Established, false, Yes},
		{"nothing listens", listed(), "10.0.0.7:40000", tcpstate.Established, false, Yes},
		{"accepted by a wildcard", listed("0.0.0.0:8080"), "10.0.0.7:8080", tcpstate.Established, false, No},
		{"accepted by an address", listed("10.0.0.7:8080"), "10.0.0.7:8080", tcpstate.Established, false, No},
		{"accepted by one of several (SO_REUSEPORT)", listed("10.0.0.8:8080", "10.0.0.7:8080", "10.0.0.7:8080"), "10.0.0.7:8080", tcpstate.Established, false, No},
		{"IPv4 accepted by a dual-stack wildcard", listed("[::]:8080"), "10.0.0.7:8080", tcpstate.Established, false, No},
		{"the same, mapped", listed("[::]:8080"), "[::ffff:10.0.0.7]:8080", tcpstate.Established, false, No},
		{"IPv6", listed("[fd00::7]:8080"), "[fd00::7]:8080", tcpstate.Established, false, No},
		{"link-local, with its zone", listed("[fe80::7%eth0]:8080"), "[fe80::7]:8080", tcpstate.Established, false, No},
		{"accepted by a listener in the range of connects", listed("0.0.0.0:40000"), "10.0.0.7:40000", tcpstate.Established, false, No},
		{"another address listens on its port", listed("127.0.0.1:40000"), "10.0.0.7:40000", tcpstate.Established, false, Yes},
		{"it listens on the watched port, and connects from another", listed("0.0.0.0:6379"), "10.0.0.7:40000", tcpstate.Established, false, Yes},
		{"the listener was closed", listed(), "10.0.0.7:8080", tcpstate.Established, false, No},
		{"the listener was closed, above the range", listed(), "10.0.0.7:61000", tcpstate.Established, false, No},
		{"the listener in the range was closed, and the accept was told", listed(), "10.0.0.7:40000", tcpstate.Established, true, No},
		{"a range that has all ports", wide, "10.0.0.7:8080", tcpstate.Established, false, Yes},
		{"the range is not known", noRange, "10.0.0.7:8080", tcpstate.Established, false, Yes},
		{"what listens could not be listed", unlisted, "10.0.0.7:40000", tcpstate.Established, false, CouldNotTell},
		{"the same, below the range", unlisted, "10.0.0.7:8080", tcpstate.Established, false, CouldNotTell},
		{"the same, its accept was told", unlisted, "10.0.0.7:8080", tcpstate.Established, true, No},
		{"one that is connecting", unlisted, "10.0.0.7:8080", tcpstate.SynSent, false, Yes},
		{"one that is connecting from a port of its own", listed(), "10.0.0.7:8080", tcpstate.SynSent, false, Yes},
		{"one that is being accepted", unlisted, "10.0.0.7:8080", tcpstate.SynRecv, false, No},
	} {
		k := tcpstate.Connection{ID: tcpstate.ID{Local: ap(tt.local), Remote: ap("10.0.0.1:6379")}, State: tt.state}
		if got := tt.o.Opened(&k, tt.accepted); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Whatever else is known: a listener on the local port, or an accept that was told, never
// lets a connection be one that was opened here; and more listeners make it no likelier.
func TestAcceptedIsNeverOpened(t *testing.T) {
	addr := rapid.SampledFrom([]string{"10.0.0.7", "10.0.0.8", "0.0.0.0", "::", "fd00::7", "::ffff:10.0.0.7"})
	port := rapid.SampledFrom([]uint16{8080, 6379, 40000, 40001})
	at := rapid.Custom(func(t *rapid.T) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(addr.Draw(t, "address")), port.Draw(t, "port"))
	})
	rapid.Check(t, func(t *rapid.T) {
		o := Origin{Listed: rapid.Bool().Draw(t, "listed"), Listening: rapid.SliceOfN(at, 0, 4).Draw(t, "listening")}
		if rapid.Bool().Draw(t, "range") {
			o.Low, o.High = 32768, 60999
		}
		k := tcpstate.Connection{ID: tcpstate.ID{Local: at.Draw(t, "local"), Remote: ap("10.0.0.1:6379")}, State: tcpstate.Established}
		accepted := rapid.Bool().Draw(t, "accepted")
		got := o.Opened(&k, accepted)
		for _, l := range o.Listening {
			if l == k.Local && got == Yes {
				t.Fatalf("%v listens, and %v was opened here", l, k.Local)
			}
		}
		if accepted && got != No {
			t.Fatalf("accepted: %v", got)
		}
		more := o
		more.Listening = append(more.Listening[:len(more.Listening):len(more.Listening)], at.Draw(t, "another"))
		if got == No && more.Opened(&k, accepted) != No {
			t.Fatalf("another listener made %v less accepted", k.Local)
		}
	})
}

// The side that connects has a byte more acknowledged than it has sent: its SYN.
func TestAccepted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*tcpstate.Connection)
		want   bool
	}{
		{"accepted, nothing sent", func(k *tcpstate.Connection) {}, true},
		{"accepted, sent", func(k *tcpstate.Connection) { k.Info.BytesSent, k.Info.BytesAcked = 100, 100 }, true},
		{"accepted, sent again", func(k *tcpstate.Connection) { k.Info.BytesSent, k.Info.BytesRetrans, k.Info.BytesAcked = 130, 30, 100 }, true},
		{"opened, nothing sent", func(k *tcpstate.Connection) { k.Info.BytesAcked = 1 }, false},
		{"opened, sent again", func(k *tcpstate.Connection) { k.Info.BytesSent, k.Info.BytesRetrans, k.Info.BytesAcked = 130, 30, 101 }, false},
		{"opened, the last byte is in flight", func(k *tcpstate.Connection) { k.Info.Unacked, k.Info.BytesSent, k.Info.BytesAcked = 1, 100, 100 }, false},
		{"a kernel that does not count", func(k *tcpstate.Connection) { k.Info.InfoLen = 192 }, false},
		{"not looked at", func(k *tcpstate.Connection) { k.HasInfo = false }, false},
		{"connecting", func(k *tcpstate.Connection) { k.State = tcpstate.SynSent }, false},
	} {
		k := tcpstate.Connection{State: tcpstate.Established, HasInfo: true, Info: tcpstate.Info{InfoLen: 248}}
		tt.change(&k)
		if got := Accepted(&k); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
