package discovery

import (
	"net/netip"
	"testing"

	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"

	"context"
)

func TestAcceptsAreBounded(t *testing.T) {
	var a accepts
	id := func(n int) tcpstate.ID {
		return tcpstate.ID{Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 8080), Remote: redis}
	}
	if x := id(1); a.has(&x) {
		t.Error("it knows one before it was told of any")
	}
	for n := range 3 * maxAccepts {
		x := id(n % (1 << 16))
		a.note(x.Local, x.Remote)
		if !a.has(&x) || len(a.now)+len(a.old) > maxAccepts {
			t.Fatalf("%d: %d are remembered, the last one %v", n, len(a.now)+len(a.old), a.has(&x))
		}
	}
	last := id((3*maxAccepts - 1) % (1 << 16))
	a.connected(&last)
	if a.has(&last) {
		t.Error("one that was opened since is still taken for accepted")
	}
}

// What a dump has shown is told by who opened it: what was accepted only where it may have
// been taken for something else before, and it stays accepted when its listener is gone.
func TestWhatADumpTells(t *testing.T) {
	var told []Found
	d := &Loop{Config: Config{Connections: func(_ context.Context, f Found) { told = append(told, f) }}}
	web := tcpstate.Connection{ID: tcpstate.ID{Local: netip.MustParseAddrPort("10.0.0.7:40001"), Remote: redis, Cookie: 1}, State: tcpstate.Established}
	client := tcpstate.Connection{ID: tcpstate.ID{Local: local, Remote: redis, Cookie: 2}, State: tcpstate.Established}
	listed := policy.Origin{Listed: true, Listening: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:40001")}, Low: 32768, High: 60999}
	closed := listed
	closed.Listening = nil
	v := &viewed{}
	for i, step := range []struct {
		from policy.Origin
		want map[policy.Answer][]uint64
	}{
		{policy.Origin{}, map[policy.Answer][]uint64{policy.CouldNotTell: {1, 2}}},
		{listed, map[policy.Answer][]uint64{policy.Yes: {2}, policy.No: {1}}},
		{listed, map[policy.Answer][]uint64{policy.Yes: {2}}},
		{closed, map[policy.Answer][]uint64{policy.Yes: {2}}},
	} {
		told = nil
		v.dirty = 0
		d.batch = []tcpstate.Connection{web, client}
		d.tell(t.Context(), v, &step.from)
		if len(told) != len(step.want) {
			t.Errorf("step %d: told of %+v", i, told)
		}
		for _, f := range told {
			want := step.want[f.Opened]
			if len(want) != len(f.Connections) || f.Told {
				t.Errorf("step %d: %v of %d, want %v", i, f.Opened, len(f.Connections), want)
				continue
			}
			for j, k := range f.Connections {
				if k.Cookie != want[j] {
					t.Errorf("step %d: %v: %d, want %v", i, f.Opened, k.Cookie, want)
				}
			}
		}
		if again := v.dirty != 0; again != !step.from.Listed {
			t.Errorf("step %d: looked at again: %v", i, again)
		}
	}
}
