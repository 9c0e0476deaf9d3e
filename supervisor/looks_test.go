package supervisor

import (
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/supervisor/armer"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// someWatcher has a table with n idle connections in each of some namespaces, and no
// kernel behind it.
func someWatcher(spaces, n int) *watcher {
	c := config.Default()
	c.Watch.Mode = config.Enforce
	s := &Supervisor{figures: figures.New(), log: slog.New(slog.DiscardHandler), inbox: make(chan message, inboxRoom)}
	s.policy.Store(policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil))
	w := newWatcher(s)
	w.planner.Publish = func(event.Event) {}
	w.rounds.chance = rand.New(rand.NewPCG(1, 2))
	for i := range spaces {
		sp := &space{key: verdict.NS(i + 1), conns: map[uint64]*tracked{}, ns: netns.Namespace{ID: netns.ID{Inode: uint64(i + 1)}}}
		w.spaces[sp.ns.ID], w.byKey[sp.key] = sp, sp
		for j := range n {
			t := &tracked{key: verdict.ConnKey{NS: sp.key, Cookie: uint64(j + 1)}, space: sp}
			t.conn = tcpstate.Connection{ID: tcpstate.ID{Remote: redisAddr}, State: tcpstate.Established, Inode: 1}
			t.arm = armer.Conn{Key: t.key, NS: &sp.ns, TCP: &t.conn, Holder: &t.holder}
			w.conns[t.key], sp.conns[t.key.Cookie] = t, t
		}
	}
	return w
}

var redisAddr = netip.MustParseAddrPort("10.0.0.1:6379")

// blockedNow is what the core is told since the last time.
func blockedNow(w *watcher) map[uint64]bool {
	m := map[uint64]bool{}
	for _, h := range w.in.Blocked {
		m[h.Key.Cookie] = h.On
	}
	w.in.Clear()
	return m
}

// Of those that were looked at together it is found out which one it was; one accident
// is none; and what blocks us again and again is counted once.
func TestWhichConnectionBlocks(t *testing.T) {
	w := someWatcher(1, 5)
	sp := w.byKey[1]
	var all []*tracked
	for cookie := range uint64(5) {
		all = append(all, sp.conns[cookie+1])
	}
	free := make(chan struct{})
	w.blockedAt(sp, all, free)
	if m := blockedNow(w); len(m) != 0 || !sp.careful || !all[4].alone || all[0].block != nil {
		t.Errorf("after the first time: %v", m)
	}
	for range 2 {
		w.blockedAt(sp, all[:1], free)
	}
	if m := blockedNow(w); len(m) != 1 || !m[1] || sp.blocked != 1 || len(w.blocked) != 1 || !all[0].arm.Blocked {
		t.Errorf("it was found: %v, %d blocked", m, sp.blocked)
	}
	w.rounds.begin()
	for _, c := range all {
		w.rounds.enqueue(c)
	}
	if len(sp.turn) != 4 {
		t.Errorf("%d are looked at, want the 4 others", len(sp.turn))
	}

	// With three of them the namespace is left out.
	w.blockedAt(sp, all[1:2], free)
	w.blockedAt(sp, all[2:3], free)
	if m := blockedNow(w); len(m) != 5 || !m[5] || !sp.closed {
		t.Errorf("three are blocked: %v", m)
	}
	w.rounds.begin()
	if w.rounds.enqueue(all[4]); len(sp.turn) != 0 {
		t.Error("a namespace with three of them is looked at")
	}

	// Nothing happens before they are free, and then it takes a while.
	now := monotonic()
	w.unblock(now + blockMost)
	if sp.blocked != 3 || len(blockedNow(w)) != 0 {
		t.Errorf("%d are blocked though none has let go", sp.blocked)
	}
	close(free)
	w.unblock(now + blockMost)
	w.unblock(now + 3*blockMost)
	if m := blockedNow(w); len(m) != 5 || m[1] || m[5] || sp.blocked != 0 || sp.closed || len(w.blocked) != 0 || all[0].block != nil || all[0].arm.Blocked {
		t.Errorf("they have let go: %v, %d blocked", m, sp.blocked)
	}
}

// taken counts those whose turn it is, by namespace.
func taken(turn []*space) (n int) {
	for _, sp := range turn {
		n += len(sp.turn)
	}
	return n
}

// Few connections are all looked at in each round; of many those that are due.
func TestRounds(t *testing.T) {
	w := someWatcher(2, perTick/2)
	s := &situation{now: time.Hour}
	for range 2 {
		if n := taken(w.rounds.next(&w.table, s)); n != perTick {
			t.Errorf("%d of %d few are looked at", n, perTick)
		}
	}

	w = someWatcher(20, perTick/10)
	s = &situation{now: time.Hour, told: true}
	one := w.conns[verdict.ConnKey{NS: 3, Cookie: 1}]
	busy := w.conns[verdict.ConnKey{NS: 4, Cookie: 1}]
	busy.conn.Info.BytesReceived = 1 << 20
	if n := taken(w.rounds.next(&w.table, s)); n != len(w.conns) {
		t.Errorf("%d are looked at the first time, want all", n)
	}
	s.now += 100 * time.Millisecond
	if n := taken(w.rounds.next(&w.table, s)); n != 0 {
		t.Errorf("%d are looked at right after that", n)
	}
	// What retransmits, and what is new, in this round; each once.
	s.retransmitted, s.fresh = []*tracked{one}, []*tracked{one}
	if turn := w.rounds.next(&w.table, s); taken(turn) != 1 || turn[0] != one.space {
		t.Errorf("one retransmits: %d are looked at", taken(turn))
	}
	s.retransmitted, s.fresh = nil, nil
	s.asked, s.now = []*tracked{one}, s.now+100*time.Millisecond
	if n := taken(w.rounds.next(&w.table, s)); n != 1 {
		t.Errorf("one was asked: %d are looked at", n)
	}
	s.asked = nil
	// After a second some of each endpoint, the one that received most among them.
	s.now = time.Hour + allWithin
	if n := taken(w.rounds.next(&w.table, s)); n != representatives || busy.round != w.rounds.n {
		t.Errorf("%d representatives, the busy one among them: %v", n, busy.round == w.rounds.n)
	}
	// A suspect path: some of its connections, those first that wait for something.
	one.conn.Info.Unacked = 1
	s.now += 100 * time.Millisecond
	s.suspects = []verdict.PathKey{{NS: 3, Endpoint: redisAddr}, {NS: 99, Endpoint: redisAddr}}
	turn := w.rounds.next(&w.table, s)
	if len(one.space.turn) < suspectsPerPath || one.round != w.rounds.n {
		t.Errorf("of the suspect path %d are looked at", len(one.space.turn))
	}
	if n := taken(turn); n > suspectsPerPath+representatives+perTick/10 {
		t.Errorf("one suspect path: %d are looked at", n)
	}
	// Everybody within the time for that, and in what is suspect sooner.
	seen := map[*tracked]bool{}
	for range 40 {
		s.now += 100 * time.Millisecond
		for _, sp := range w.rounds.next(&w.table, s) {
			for _, x := range sp.turn {
				seen[x] = true
			}
		}
	}
	if len(seen) != len(w.conns) {
		t.Errorf("%d of %d are looked at within %v", len(seen), len(w.conns), allWithinTold)
	}
	// A verdict waits for a look at all of some paths.
	turn = w.rounds.paths(&w.table, []verdict.PathKey{{NS: 3, Endpoint: redisAddr}, {NS: 99}})
	if taken(turn) != perTick/10 {
		t.Errorf("%d of a path are looked at", taken(turn))
	}
	// Where the kernel does not tell, everybody is looked at within a second.
	s = &situation{now: 2 * time.Hour}
	clear(seen)
	for range 15 {
		s.now += 100 * time.Millisecond
		for _, sp := range w.rounds.next(&w.table, s) {
			for _, x := range sp.turn {
				seen[x] = true
			}
		}
	}
	if len(seen) != len(w.conns) {
		t.Errorf("%d of %d are looked at within a second and a half", len(seen), len(w.conns))
	}
}

// Whoever tells the watcher something waits for room, which is counted, but not for ever.
func TestTheInboxIsBounded(t *testing.T) {
	w := someWatcher(0, 0)
	n := 0
	count := func(*watcher) error { n++; return nil }
	for range inboxRoom {
		w.s.post(t.Context(), count)
	}
	posted := make(chan struct{})
	go func() {
		w.s.post(t.Context(), count)
		close(posted)
	}()
	for w.s.figures.InboxWaits.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := w.drain(); err != nil || n < inboxRoom {
		t.Errorf("%d messages, %v", n, err)
	}
	<-posted
	if err := w.drain(); err != nil || n != inboxRoom+1 {
		t.Errorf("%d messages, %v", n, err)
	}
}
