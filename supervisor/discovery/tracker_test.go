package discovery

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
)

var (
	redis = netip.MustParseAddrPort("10.0.0.1:6379")
	local = netip.MustParseAddrPort("10.0.0.7:40000")
	cart  = netns.Key{Dev: 4, Inode: 71}
	shop  = netns.Key{Dev: 4, Inode: 72}
)

func begin(socket uint64, ns netns.Key) record {
	return record{ConnectEvent: tcpstate.ConnectEvent{Socket: socket, State: tcpstate.SynSent, Remote: redis}, ns: ns}
}

func success(socket uint64) record {
	return record{ConnectEvent: tcpstate.ConnectEvent{Socket: socket, State: tcpstate.Established, Local: local, Remote: redis}}
}

func repeat(socket uint64) tcpstate.Retransmission {
	return tcpstate.Retransmission{Socket: socket, State: tcpstate.SynSent, Local: local, Remote: redis}
}

// words says what follows, for tables.
func (x *tracked) words() string {
	s := ""
	for _, p := range x.look {
		s += fmt.Sprintf("look %d ", p.ns.Inode)
	}
	for range x.everywhere {
		s += "everywhere "
	}
	for _, ns := range x.overdue {
		s += fmt.Sprintf("dump %d ", ns.Inode)
	}
	if x.unexplained {
		s += "unexplained "
	}
	if n := x.attempts[redis]; n > 0 {
		s += fmt.Sprintf("%d attempts ", n)
	}
	return s
}

func TestTracker(t *testing.T) {
	type step struct {
		at       time.Duration
		records  []record
		repeated []tcpstate.Retransmission
		want     string
	}
	own, ended := begin(1, netns.Key{}), begin(1, netns.Key{})
	own.own, ended.ended = true, true
	for _, tt := range []struct {
		name  string
		told  bool
		steps []step
	}{
		{"a connect", true, []step{
			{0, []record{begin(1, cart)}, nil, "1 attempts "},
			{time.Second, []record{success(1)}, nil, "look 71 "},
			{time.Hour, nil, nil, ""},
		}},
		{"all in one read", true, []step{{0, []record{begin(1, cart), begin(2, shop), success(2), success(1)}, nil, "look 72 look 71 2 attempts "}}},
		{"the success stands in a ring that is read first", true, []step{
			{0, []record{success(1)}, nil, ""},
			{time.Millisecond, []record{begin(1, cart)}, nil, "look 71 1 attempts "},
		}},
		{"the same within one read", true, []step{
			{0, []record{success(1), begin(1, cart)}, nil, "1 attempts "},
			{time.Millisecond, nil, nil, "look 71 "},
		}},
		{"its beginning was never told", true, []step{
			{0, []record{success(1)}, nil, ""},
			{time.Millisecond, nil, nil, "unexplained "},
			{2 * time.Millisecond, nil, nil, ""},
		}},
		{"a probe of ours", true, []step{
			{0, []record{own}, nil, ""},
			{time.Millisecond, []record{success(1)}, nil, ""},
		}},
		{"a probe of ours that is forgotten", true, []step{
			{0, []record{own}, nil, ""},
			{5 * slowConnect, nil, nil, ""},
			{6 * slowConnect, []record{success(1)}, nil, ""}, // early
		}},
		{"one that takes long, and says so", true, []step{
			{0, []record{begin(1, cart)}, nil, "1 attempts "},
			{time.Second, nil, []tcpstate.Retransmission{repeat(1)}, "look 71 "},
			{3 * time.Second, nil, []tcpstate.Retransmission{repeat(1)}, ""},
			{4 * time.Second, []record{success(1)}, nil, "look 71 "},
		}},
		{"one that takes long, and nobody says so", false, []step{
			{0, []record{begin(1, cart)}, nil, "1 attempts "},
			{slowConnect - 1, nil, nil, ""},
			{slowConnect, nil, nil, "dump 71 "},
			{time.Minute, nil, nil, ""},
		}},
		{"one whose repetition is not delivered", true, []step{
			{0, []record{begin(1, cart)}, nil, "1 attempts "},
			{slowConnect, nil, nil, ""},
			{slowConnectTold, nil, nil, "dump 71 "},
		}},
		{"a repetition of one that nobody knows", true, []step{{0, nil, []tcpstate.Retransmission{repeat(1)}, ""}}},
		{"its process has ended", true, []step{
			{0, []record{ended}, nil, "1 attempts "},
			{time.Millisecond, []record{success(1)}, nil, ""},
			{endedLook, nil, nil, ""},
			{endedLook + time.Millisecond, nil, nil, "everywhere "},
		}},
		{"its process has ended, and its address is known", true, []step{
			{0, []record{begin(2, shop), success(2)}, nil, "look 72 1 attempts "},
			{0, []record{ended, success(1)}, nil, "1 attempts "},
			{endedLook, nil, nil, "look 72 "},
		}},
	} {
		tr := newTracker(tt.told)
		for i, s := range tt.steps {
			out := tr.step(s.records, s.repeated, s.at)
			if got := out.words(); got != s.want {
				t.Errorf("%s, step %d: %q, want %q", tt.name, i+1, got, s.want)
			}
		}
		if n := len(tr.starting) + len(tr.own) + len(tr.ended); n > 0 && tt.steps[len(tt.steps)-1].at > time.Minute {
			t.Errorf("%s: %d are remembered for ever", tt.name, n)
		}
	}
}

// A namespace that is gone is nobody's home.
func TestHomes(t *testing.T) {
	tr := newTracker(true)
	tr.home(local.Addr(), cart)
	tr.home(netip.MustParseAddr("127.0.0.1"), shop)
	if len(tr.homes) != 1 {
		t.Errorf("homes: %v", tr.homes)
	}
	tr.forget(func(ns netns.Key) bool { return ns == cart })
	if len(tr.homes) != 0 {
		t.Errorf("homes: %v", tr.homes)
	}
	for i := range endedAtOnce + 1 {
		x := begin(uint64(i), netns.Key{})
		x.ended = true
		tr.step([]record{x, success(uint64(i))}, nil, 0)
	}
	if out := tr.step(nil, nil, endedLook); len(out.everywhere) != endedAtOnce || !out.unexplained {
		t.Errorf("%d are looked for everywhere, unexplained %v", len(out.everywhere), out.unexplained)
	}
}

// Whatever comes, nothing is remembered for longer than a connect may take, and what
// succeeds in order is looked at once.
func TestTrackerForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := newTracker(rapid.Bool().Draw(t, "told"))
		now := time.Duration(0)
		begun := map[uint64]bool{}
		for range rapid.IntRange(0, 50).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond
			var list []record
			for range rapid.IntRange(0, 5).Draw(t, "records") {
				socket := rapid.Uint64Range(0, 8).Draw(t, "socket")
				if rapid.Bool().Draw(t, "begins") {
					r := begin(socket, cart)
					r.ended, r.own = rapid.Bool().Draw(t, "ended"), rapid.Bool().Draw(t, "own")
					list = append(list, r)
				} else {
					list = append(list, success(socket))
				}
				begun[socket] = true
			}
			out := tr.step(list, []tcpstate.Retransmission{repeat(rapid.Uint64Range(0, 8).Draw(t, "repeated"))}, now)
			if len(out.look) > len(list)+1+len(begun)*len(list)+50 {
				t.Fatalf("%d looks follow from %d records", len(out.look), len(list))
			}
		}
		tr.step(nil, nil, now+2*longestConnect)
		tr.step(nil, nil, now+4*longestConnect)
		if n := len(tr.starting) + len(tr.own) + len(tr.ended) + len(tr.early); n != 0 {
			t.Fatalf("%d are remembered for ever", n)
		}
	})
}
