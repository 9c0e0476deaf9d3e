package supervisor

import (
	"net/netip"
	"testing"

	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor/attribution"
	"github.com/redisguard/redisguard/supervisor/discovery"
	"github.com/redisguard/redisguard/tcpstate"
)

// A connection is permitted nothing until it is known to have been opened here: by the
// kernel's word on its connect, or by what listens and then by its counters. One that turns
// out to have been accepted is forgotten.
func TestWhoOpenedIt(t *testing.T) {
	w := someWatcher(1, 0)
	sp := w.byKey[1]
	w.s.attribution = attribution.New(attribution.Config{Policy: w.s.Policy, Log: w.s.log, Figures: w.s.figures})
	sp.occupants.Redis = policy.No
	conn := func(cookie uint64) tcpstate.Connection {
		return tcpstate.Connection{
			ID:    tcpstate.ID{Local: netip.MustParseAddrPort("10.0.0.7:40000"), Remote: redisAddr, Cookie: cookie},
			State: tcpstate.Established, Inode: 1,
		}
	}
	add := func(cookie uint64, opened policy.Answer, told bool) {
		w.add(&discovery.Found{NS: sp.ns.ID, Opened: opened, Told: told, Connections: []tcpstate.Connection{conn(cookie)}})
		if x := sp.conns[cookie]; x != nil {
			x.holder = policy.Holder{Asked: true, Owner: &proc.Owner{Complete: true, Process: proc.Process{PID: 1 << 22, Comm: "app"}}}
			w.introduce(x)
		}
	}
	look := func(cookie, acked uint64) {
		x := sp.conns[cookie]
		k := conn(cookie)
		k.HasInfo, k.Info = true, tcpstate.Info{InfoLen: 248, BytesAcked: acked}
		v := tcpstate.Visit{Results: []tcpstate.Result{{Connection: k}}}
		if err := w.observe(&visited{sp, []*tracked{x}}, &v); err != nil {
			t.Fatal(err)
		}
	}
	may := func(cookie uint64, want bool) {
		t.Helper()
		x := sp.conns[cookie]
		if x == nil {
			t.Fatalf("connection %d is not watched", cookie)
		}
		if got := !x.refusal.Refused() && !x.arm.Refusal.Refused(); got != want {
			t.Errorf("connection %d may be touched: %v (%s)", cookie, got, x.refusal.Why)
		}
	}
	add(1, policy.Yes, true)
	may(1, true)
	add(2, policy.Yes, false)
	may(2, false)
	look(2, 1) // its SYN
	may(2, true)
	add(3, policy.Yes, false)
	look(3, 0) // accepted by a listener that is gone
	if sp.conns[3] != nil {
		t.Error("one that was accepted is watched")
	}
	add(4, policy.CouldNotTell, false)
	look(4, 1)
	may(4, false)
	add(4, policy.Yes, false)
	may(4, true)
	add(5, policy.CouldNotTell, false)
	add(5, policy.No, false)
	add(6, policy.No, false)
	if sp.conns[5] != nil || sp.conns[6] != nil {
		t.Error("one that was accepted is watched")
	}
}
