package resolver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// ask has a table run for a while: each query is answered after delay.
func ask(table *Table, from time.Time, long, delay time.Duration, answer func(now time.Time, q Question) Answer, sent func(time.Time, Question), changed func(time.Time, Change)) {
	type flight struct {
		at time.Time
		Question
	}
	var out []flight // in the order of their arrival: all take the same time
	for now := from; now.Before(from.Add(long)); {
		for {
			q, ok := table.Next(now)
			if !ok {
				break
			}
			if sent != nil {
				sent(now, q)
			}
			out = append(out, flight{now.Add(delay), q})
		}
		wake := table.Wake(now)
		if len(out) > 0 && (wake.IsZero() || !out[0].at.After(wake)) {
			now = out[0].at
			c, ok := table.Observe(now, answer(now, out[0].Question))
			out = out[1:]
			if ok && changed != nil {
				changed(now, c)
			}
			continue
		}
		if wake.IsZero() {
			return
		}
		now = wake
	}
}

func addrs(q Question, ttl time.Duration, list ...string) Answer {
	a := Answer{Question: q, Outcome: Addresses, TTL: ttl}
	for _, s := range list {
		a.Addrs = append(a.Addrs, netip.MustParseAddr(s))
	}
	return a
}

func TestSearchAgain(t *testing.T) {
	table := newTable(t, unhurried, conf(t, "search a.test b.test", "options no-aaaa"), "r")
	moved := false // somebody adds r.a.test
	var asked []string
	answer := func(now time.Time, q Question) Answer {
		if q.Host == "r.b.test." || q.Host == "r.a.test." && moved {
			return addrs(q, time.Minute, "10.0.0.1")
		}
		return Answer{Question: q, Outcome: NXDomain}
	}
	sent := func(now time.Time, q Question) {
		if at := now.Sub(began).Round(time.Second); q.Host == "r.a.test." {
			asked = append(asked, at.String())
		}
	}
	ask(table, began, 21*time.Minute, 0, answer, sent, nil)
	if want := []string{"0s", "10m0s", "20m0s"}; !slices.Equal(asked, want) {
		t.Errorf("the candidate before the one with addresses was tried at %v, want %v", asked, want)
	}
	moved = true
	ask(table, began.Add(21*time.Minute), 10*time.Minute, 0, answer, sent, nil)
	if e := table.entries["r"]; e.home != 0 {
		t.Errorf("the earlier candidate has addresses, but %d is used", e.home)
	}
}

func TestWant(t *testing.T) {
	table := newTable(t, Limits{Rate: 1e6, Burst: 100, Names: 3}, conf(t))
	err := table.Want(began, []string{"A.example", "10.0.0.1", "a.example", "b.example", "x..y", "c.example.", "fd00::1", "d.example", "e.example"})
	if err == nil || !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), `"10.0.0.1"`) || !strings.Contains(err.Error(), `"d.example" and all names after it`) {
		t.Errorf("error %v", err)
	}
	var names []string
	for _, s := range table.Snapshot() {
		names = append(names, s.Name)
	}
	if want := []string{"a.example", "b.example", "c.example."}; !slices.Equal(names, want) {
		t.Errorf("resolved are %v, want %v", names, want)
	}
	if n := table.Stats().NamesLeftOut; n != 2 {
		t.Errorf("%d names are counted as left out, want 2", n)
	}
	queries := map[string]int{}
	ask(table, began, 9*time.Second, 0, func(_ time.Time, q Question) Answer { return addrs(q, 0, "10.0.0.1") },
		func(_ time.Time, q Question) { queries[fmt.Sprint(q.Host, q.IPv6)]++ }, nil)
	if queries["a.example.false"] != 1 || len(queries) != 6 {
		t.Errorf("a name wanted twice is asked for once, and three names in two families: %v", queries)
	}
	// What is still wanted keeps its addresses; what is not is forgotten.
	if err := table.Want(began.Add(9*time.Second), []string{"b.example", "f.example"}); err != nil {
		t.Error(err)
	}
	s := table.Snapshot()
	if len(s) != 2 || len(s[0].Addrs) != 1 || len(s[1].Addrs) != 0 {
		t.Errorf("left are %v", s)
	}
}

func TestForgottenWhileAsked(t *testing.T) {
	table := newTable(t, unhurried, conf(t), "a.example")
	table.Next(began) // from then on tokens come in
	now := began.Add(time.Second)
	q, ok := table.Next(now)
	if !ok {
		t.Fatal("nothing is asked")
	}
	for _, names := range [][]string{nil, {"a.example"}} {
		if err := table.Want(now, names); err != nil {
			t.Fatal(err)
		}
	}
	if c, ok := table.Observe(now, addrs(q, 0, "10.0.0.1")); ok {
		t.Errorf("an answer to what was asked before the name was forgotten changed %v", c)
	}
	now = now.Add(time.Millisecond)
	if q, ok = table.Next(now); !ok {
		t.Fatal("the name is not asked for again")
	}
	if c, ok := table.Observe(now, addrs(q, 0, "10.0.0.1")); !ok || len(c.Added) != 1 {
		t.Errorf("the answer changed %v", c)
	}
}

func TestConfigure(t *testing.T) {
	table := NewTable(unhurried, rand.New(zeros{}))
	neverAsks(t, table, "without resolv.conf")
	if err := table.Want(began, []string{"r"}); err != nil {
		t.Fatal(err)
	}
	neverAsks(t, table, "without resolv.conf")
	table.Configure(began, conf(t, "search a.test"))
	play(t, table, `
		0s  r.a.test. A     10.0.0.1 ttl=30   -> +10.0.0.1
		0s  r.a.test. AAAA  fd00::1 ttl=30    -> +fd00::1`)
	// Another server: what is on its way is asked again, and nothing else is lost.
	now := began.Add(30*time.Second + time.Millisecond)
	q, ok := table.Next(now)
	if !ok {
		t.Fatal("nothing is asked")
	}
	table.Configure(now, conf(t, "search a.test", "nameserver 192.0.2.1"))
	again, ok := table.Next(now.Add(time.Microsecond * 2))
	if !ok || again.Host != q.Host || again.IPv6 != q.IPv6 || again.Server.Addr() != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("asked again is %+v", again)
	}
	if c, ok := table.Observe(now, Answer{Question: q, Outcome: NXDomain}); ok {
		t.Errorf("an answer of a server that is none any more changed %v", c)
	}
	table.Observe(now, addrs(again, time.Minute, "10.0.0.1"))
	// Another search list: searched anew, with the addresses of before meanwhile; and no
	// AAAA, so that nobody confirms the IPv6 address, which goes.
	table.Configure(now, conf(t, "search b.test", "options no-aaaa"))
	q, ok = table.Next(now.Add(time.Millisecond))
	if !ok || q.Host != "r.b.test." || q.IPv6 {
		t.Fatalf("asked is %+v", q)
	}
	if c, ok := table.Observe(now, addrs(q, 0, "10.0.0.2")); !ok || sayChange(c) != "+10.0.0.2 -fd00::1" {
		t.Errorf("the change is: %s", sayChange(c))
	}
	if a := table.Snapshot()[0].Addrs; len(a) != 2 {
		t.Errorf("addresses %v, want that of before and the new one", a)
	}
}

func neverAsks(t *testing.T, table *Table, when string) {
	t.Helper()
	if q, ok := table.Next(began); ok || !table.Wake(began).IsZero() {
		t.Errorf("%s %v is asked", when, q)
	}
}

func TestRotate(t *testing.T) {
	table := NewTable(unhurried, rand.New(rand.NewPCG(1, 2)))
	table.Configure(began, conf(t, "nameserver 192.0.2.1", "nameserver 192.0.2.2", "nameserver 192.0.2.3", "options rotate"))
	if err := table.Want(began, []string{"r.example."}); err != nil {
		t.Fatal(err)
	}
	first, all := map[netip.AddrPort]int{}, map[netip.AddrPort]int{}
	var last time.Time
	ask(table, began, time.Hour, 0, func(_ time.Time, q Question) Answer {
		return Answer{Question: q, Outcome: Failed, Err: errors.New("x")}
	},
		func(now time.Time, q Question) {
			all[q.Server]++
			if now.Sub(last) > time.Second {
				first[q.Server]++
			}
			last = now
		}, nil)
	if len(first) != 3 || len(all) != 3 {
		t.Errorf("first asked were %v, all %v", first, all)
	}
}

// TestTimeouts has glibc's formula, for three servers.
func TestTimeouts(t *testing.T) {
	c := conf(t, "nameserver 192.0.2.1", "nameserver 192.0.2.2", "nameserver 192.0.2.3")
	for n, want := range []time.Duration{5 * time.Second, 3 * time.Second, 6 * time.Second} {
		if got := c.timeout(n); got != want {
			t.Errorf("server %d has %v, want %v", n, got, want)
		}
	}
	c = conf(t, "nameserver 192.0.2.1", "nameserver 192.0.2.2", "nameserver 192.0.2.3", "options timeout:1")
	if got := c.timeout(1); got != time.Second {
		t.Errorf("at least a second, not %v", got)
	}
}

// TestPartialAnswers: with answers that each show a part of the set, addresses are
// withdrawn wrongly a few times before the table knows, and not after.
func TestPartialAnswers(t *testing.T) {
	for _, tt := range []struct{ all, shown, learning, after int }{
		{20, 10, 5, 0},
		{20, 7, 10, 0},
		{400, 200, 20, 0},
		{8, 3, 5, 0},
		{40, 8, 80, 40}, // a fifth: one of the 40 every 160 answers, 0.2 * 0.8^32 * 40
	} {
		rng := rand.New(rand.NewPCG(uint64(tt.all), uint64(tt.shown)))
		table := NewTable(unhurried, rng)
		table.Configure(began, conf(t, "options no-aaaa"))
		if err := table.Want(began, []string{"r.example."}); err != nil {
			t.Fatal(err)
		}
		answers, learning, after := 0, 0, 0
		ask(table, began, 6*time.Hour, 0, func(_ time.Time, q Question) Answer {
			answers++
			a := Answer{Question: q, Outcome: Addresses}
			for _, i := range rng.Perm(tt.all)[:tt.shown] {
				a.Addrs = append(a.Addrs, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
			}
			return a
		}, nil, func(_ time.Time, c Change) {
			if answers <= 100 {
				learning += len(c.Removed)
			} else {
				after += len(c.Removed)
			}
		})
		t.Logf("%d of %d: %d answers, withdrawn %d in the first 100, %d after", tt.shown, tt.all, answers, learning, after)
		if learning > tt.learning || after > tt.after {
			t.Errorf("%d of %d shown: %d addresses withdrawn in the first 100 answers, %d after; want at most %d and %d",
				tt.shown, tt.all, learning, after, tt.learning, tt.after)
		}
	}
}

// TestTurns: a server that shows one of n addresses each time, in turns. They stay
// together while twice their absence, n-1 answers, is no more than 32.
func TestTurns(t *testing.T) {
	for n := 2; n <= 16; n++ {
		table := newTable(t, unhurried, conf(t, "options no-aaaa"), "r.example.")
		answers, after := 0, 0
		ask(table, began, 2*time.Hour, 0, func(_ time.Time, q Question) Answer {
			answers++
			return addrs(q, 0, fmt.Sprintf("10.0.0.%d", answers%n))
		}, nil, func(_ time.Time, c Change) {
			if answers > 100 {
				after++
			}
		})
		if got := len(table.Snapshot()[0].Addrs); got != n || after > 0 {
			t.Errorf("%d in turns: %d are held, %d changes after the first 100 answers", n, got, after)
		}
	}
}

// TestThereAndBack: an address that was replaced and put back is not taken for one of
// a set that is shown in parts for longer than 32 answers.
func TestThereAndBack(t *testing.T) {
	table := newTable(t, unhurried, conf(t, "options no-aaaa"), "r.example.")
	at := func(now time.Time) int { return int(now.Sub(began) / (10 * time.Second)) }
	var removed []int
	ask(table, began, time.Hour, 0, func(now time.Time, q Question) Answer {
		switch n := at(now); {
		case n < 10, n >= 20 && n < 100:
			return addrs(q, 0, "10.0.0.1")
		}
		return addrs(q, 0, "10.0.0.2")
	}, nil, func(now time.Time, c Change) {
		if len(c.Removed) > 0 {
			removed = append(removed, at(now))
		}
	})
	// The second time 10 misses are known, hence 21; the third it is three again.
	if want := []int{12, 40, 102}; !slices.Equal(removed, want) {
		t.Errorf("withdrawn at answers %v, want %v", removed, want)
	}
}

// TestFlips: a server that answers A and B in turns makes a set of both, once.
func TestFlips(t *testing.T) {
	table := newTable(t, Limits{}, conf(t, "options no-aaaa"), "r.example.")
	changes := 0
	ask(table, began, time.Hour, 0, func(now time.Time, q Question) Answer {
		return addrs(q, 0, fmt.Sprintf("10.0.0.%d", now.Unix()%2))
	}, nil, func(time.Time, Change) { changes++ })
	if changes > 4 {
		t.Errorf("%d changes in an hour", changes)
	}
}

// TestBudget: whatever the answers and the number of names, no more than 2 + 0.15 t queries
// are sent in any time t.
func TestBudget(t *testing.T) {
	for name, answer := range map[string]func(q Question, rng *rand.Rand) Answer{
		"answers": func(q Question, _ *rand.Rand) Answer { return addrs(q, 0, "10.0.0.1") },
		"silence": func(q Question, _ *rand.Rand) Answer {
			return Answer{Question: q, Outcome: Failed, Err: errors.New("x")}
		},
		"truncated": func(q Question, _ *rand.Rand) Answer { return Answer{Question: q, Outcome: Truncated} },
		"anything": func(q Question, rng *rand.Rand) Answer {
			a := Answer{Question: q, Outcome: Outcome(1 + rng.IntN(6)), Err: errors.New("x")}
			a.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(5))})}
			return a
		},
	} {
		for _, names := range []int{1, 3, 50} {
			rng := rand.New(rand.NewPCG(uint64(names), 7))
			table := NewTable(Limits{}, rng)
			table.Configure(began, conf(t, "search a.test b.test", "nameserver 192.0.2.1", "nameserver 192.0.2.2"))
			var list []string
			for i := range names {
				list = append(list, fmt.Sprintf("r%d", i))
			}
			if err := table.Want(began, list); err != nil {
				t.Fatal(err)
			}
			var sent []time.Time
			ask(table, began, 2*time.Hour, time.Second/5, func(_ time.Time, q Question) Answer { return answer(q, rng) },
				func(now time.Time, _ Question) { sent = append(sent, now) }, nil)
			for i := range sent {
				for _, n := range []int{2, 11, 50} { // windows of so many queries
					if i+n >= len(sent) {
						continue
					}
					// n+1 queries from sent[i] to sent[i+n], both included.
					if took := sent[i+n].Sub(sent[i]).Seconds(); float64(n+1) > 2+took*0.15+0.001 {
						t.Fatalf("%s, %d names: %d queries within %.1f s", name, names, n+1, took)
					}
				}
			}
			if len(sent) < 100 {
				t.Errorf("%s, %d names: only %d queries in two hours", name, names, len(sent))
			}
		}
	}
}

// TestFleet: 5,000 nodes send no more than 1,000 queries in any second: when all start in
// the same one, when all are told new names in the same one, and when all their servers
// fall silent.
func TestFleet(t *testing.T) {
	const nodes, start, told, silent, end = 5000, 0, 200, 300, 500 // seconds
	c := conf(t, "search a.test", "nameserver 192.0.2.1", "nameserver 192.0.2.2")
	var perSecond [end]int
	var firsts []time.Duration
	for node := range nodes {
		rng := rand.New(rand.NewPCG(uint64(node), 3))
		table := NewTable(Limits{}, rng)
		table.Configure(began, c)
		answer := func(now time.Time, q Question) Answer {
			if now.Sub(began) > silent*time.Second {
				return Answer{Question: q, Outcome: Failed, Err: errors.New("silence")}
			}
			if q.IPv6 {
				return Answer{Question: q, Outcome: NoData}
			}
			return addrs(q, time.Minute, "10.0.0.1")
		}
		sent := func(now time.Time, q Question) {
			if s := int(now.Sub(began).Seconds()); s < end {
				perSecond[s]++
			}
		}
		known := false
		changed := func(now time.Time, _ Change) {
			if !known {
				known = true
				firsts = append(firsts, now.Sub(began))
			}
		}
		if err := table.Want(began, []string{"a.example"}); err != nil {
			t.Fatal(err)
		}
		ask(table, began, told*time.Second, time.Millisecond, answer, sent, changed)
		at := began.Add(told * time.Second)
		if err := table.Want(at, []string{"a.example", "b.example", "c.example", "d.example", "e.example"}); err != nil {
			t.Fatal(err)
		}
		ask(table, at, (end-told)*time.Second, time.Millisecond, answer, sent, changed)
	}
	slices.Sort(firsts)
	most := slices.Max(perSecond[:])
	t.Logf("most in a second %d; the first address after %v (median), %v (last)", most, firsts[len(firsts)/2], firsts[len(firsts)-1])
	for s, n := range perSecond {
		if n > 1000 {
			t.Errorf("second %d: %d queries", s, n)
		}
	}
	if len(firsts) != nodes || firsts[nodes-1] > 8*time.Second {
		t.Errorf("%d nodes know an address, the last after %v", len(firsts), firsts[len(firsts)-1])
	}
}

// TestSameInput: the same input leads to the same output, so that a test that fails can
// be run again.
func TestSameInput(t *testing.T) {
	play := func() (log []string) {
		rng := rand.New(rand.NewPCG(5, 5))
		table := NewTable(Limits{Rate: 1, Addresses: 20}, rng)
		table.Configure(began, conf(t, "search a.test b.test", "nameserver 192.0.2.1", "nameserver 192.0.2.2", "options rotate"))
		if err := table.Want(began, []string{"c", "b", "a", "d.example", "e.example."}); err != nil {
			t.Fatal(err)
		}
		ask(table, began, 2*time.Hour, time.Second/5, func(_ time.Time, q Question) Answer {
			a := Answer{Question: q, Outcome: Outcome(1 + max(0, rng.IntN(10)-4)), Err: errors.New("x")}
			for range 15 {
				a.Addrs = append(a.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(200))}))
			}
			return a
		}, func(now time.Time, q Question) { log = append(log, fmt.Sprint(now, q)) },
			func(now time.Time, c Change) { log = append(log, fmt.Sprint(now, c)) })
		return log
	}
	first := play()
	if len(first) < 1000 {
		t.Errorf("only %d queries and changes", len(first))
	}
	if !slices.Equal(first, play()) {
		t.Error("the second run was another one")
	}
}

// TestNewNamesDoNotWait: with more names than the budget can refresh, a new one is known
// soon, and names that come and go all the time do not keep others from being asked for.
func TestNewNamesDoNotWait(t *testing.T) {
	table := NewTable(Limits{}, rand.New(rand.NewPCG(1, 1)))
	table.Configure(began, conf(t, "options no-aaaa"))
	var names []string
	for i := range 60 {
		names = append(names, fmt.Sprintf("old%d.example", i))
	}
	if err := table.Want(began, names); err != nil {
		t.Fatal(err)
	}
	answer := func(_ time.Time, q Question) Answer { return addrs(q, 0, "10.0.0.1") }
	ask(table, began, time.Hour, 0, answer, nil, nil)
	var soon time.Duration
	now := began.Add(time.Hour)
	old := map[string]bool{}
	for i := range 200 {
		fresh := fmt.Sprintf("new%d.example", i)
		if err := table.Want(now, append(slices.Clip(names), fresh)); err != nil {
			t.Fatal(err)
		}
		ask(table, now, 20*time.Second, 0, answer, func(_ time.Time, q Question) {
			if q.Name[:3] == "old" {
				old[q.Name] = true
			}
		}, func(at time.Time, c Change) {
			if c.Name == fresh {
				soon = max(soon, at.Sub(now))
			}
		})
		now = now.Add(20 * time.Second)
	}
	if soon == 0 || soon > 14*time.Second {
		t.Errorf("a new name was known after %v", soon)
	}
	if len(old) != len(names) {
		t.Errorf("only %d of %d old names were asked for", len(old), len(names))
	}
}

// FuzzTable holds the promises of a Table over any answers.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 201, 202, 203, 255})
	f.Add([]byte("\x01\x01\x01\x02\x02\x31\x41\x51\x61\x71\x81"))
	f.Fuzz(func(t *testing.T, script []byte) {
		limits := Limits{Rate: 10, Burst: 3, Names: 3, Addresses: 4, Asking: 2}
		table := newTable(t, limits, conf(t, "search a.test", "nameserver 192.0.2.1", "nameserver 192.0.2.2"), "a", "b.example", "c.example.")
		told := map[string][]netip.Addr{}
		now, sent := began, 0
		var out []Question
		for _, b := range script {
			switch op, n := b>>5, int(b&31); op {
			case 0, 1:
				if wake := table.Wake(now); wake.After(now) && op == 1 {
					now = wake
				}
				now = now.Add(time.Duration(n) * time.Second / 4)
				if q, ok := table.Next(now); ok {
					out = append(out, q)
					sent++
				}
			case 2:
				names := []string{"a", "b.example", "c.example.", "d"}
				names = slices.Delete(names, n%4, n%4+1)
				_ = table.Want(now, names)
				for name := range told {
					if !slices.Contains(names, name) {
						delete(told, name)
					}
				}
			case 3:
				table.Configure(now, conf(t, []string{"search a.test", "options rotate", "search . b.test\noptions use-vc attempts:1"}[n%3]))
			default:
				if len(out) == 0 {
					continue
				}
				i := n % len(out)
				a := Answer{Question: out[i], Outcome: Outcome(1 + n%6), TTL: time.Duration(b) * time.Second, Err: errors.New("x")}
				out = slices.Delete(out, i, i+1)
				if a.Outcome == Addresses {
					for k := range 1 + n/4 {
						a.Addrs = append(a.Addrs, netip.AddrFrom4([4]byte{10, 0, op, byte(k)}))
					}
				}
				c, ok := table.Observe(now, a)
				if !ok {
					continue
				}
				before := told[c.Name]
				after := slices.Concat(without(before, c.Removed), c.Added)
				slices.SortFunc(after, netip.Addr.Compare)
				if !slices.Equal(after, c.Addrs) {
					t.Errorf("%v and -%v +%v is not %v", before, c.Removed, c.Added, c.Addrs)
				}
				if len(before) > 0 && len(c.Addrs) == 0 {
					t.Errorf("%s has lost all its addresses", c.Name)
				}
				if c.Stale && c.Err == nil || len(c.Addrs) > limits.Addresses {
					t.Errorf("%+v", c)
				}
				told[c.Name] = c.Addrs
			}
			if len(out) > limits.Asking || table.asking != len(out) {
				t.Errorf("%d questions are out, %d counted", len(out), table.asking)
			}
			if most := 3 + 10*now.Sub(began).Seconds(); float64(sent) > most+0.001 {
				t.Errorf("%d queries within %v", sent, now.Sub(began))
			}
			if len(table.Snapshot()) > limits.Names {
				t.Errorf("%d names", len(table.Snapshot()))
			}
		}
	})
}
