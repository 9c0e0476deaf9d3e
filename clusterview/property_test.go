package clusterview

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

// TestMinority has less than half of the primaries, and all replicas, say whatever comes to
// mind, for minutes: no node that the others know becomes failed, removed or demoted, and no
// slot gets another owner.
func TestMinority(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 1))
		primaries := 3 + random.IntN(5)
		var names []string
		for i := range primaries {
			names = append(names, string(rune('A'+i)))
		}
		for i := range primaries {
			names = append(names, fmt.Sprintf("%c:%c", 'a'+i, 'A'+i))
		}
		w := newWorld(Config{Name: "orders", Type: Cluster})
		w.cluster(names)
		w.seedAll()
		w.view.SetLocal(0, 2) // asks every half second in haste
		w.run(2 * time.Minute)
		if !w.view.Topology().Known {
			t.Fatalf("seed %d: nothing is known after a minute", seed)
		}
		w.view.Changes()
		liars := slices.Clone(w.order[:(primaries-1)/2])
		random.Shuffle(len(liars), func(i, j int) { liars[i], liars[j] = liars[j], liars[i] })
		liars = append(liars, w.order[primaries:]...)
		for round := range 10 {
			for _, n := range liars {
				w.lie(random, w.servers[n])
			}
			if random.IntN(4) == 0 {
				w.view.Suspect(w.now, w.servers[w.order[0]].addr, "a connection has stalled")
			}
			w.run(time.Duration(1+random.IntN(20)) * time.Second)
			if changes, _ := w.view.Changes(); len(changes) > 0 {
				t.Fatalf("seed %d, round %d: %v", seed, round, w.readable(fmt.Sprint(changes)))
			}
			for _, f := range w.view.Facts() {
				if f.State != StateOK {
					t.Fatalf("seed %d, round %d: %s", seed, round, w.readable(fmt.Sprintf("%+v", f)))
				}
			}
		}
	}
}

func (w *world) seedAll() {
	var seeds []netip.AddrPort
	for _, n := range w.order {
		seeds = append(seeds, w.servers[n].addr)
	}
	w.view.SetSeeds(w.now, seeds)
}

// lie makes up what s sees.
func (w *world) lie(random *rand.Rand, s *server) {
	all := slices.Clone(w.order)
	pick := func() string { return all[random.IntN(len(all))] }
	for range 1 + random.IntN(4) {
		about := pick()
		l, known := s.sees[about]
		switch random.IntN(8) {
		case 0:
			l.flags = "master,fail"
		case 1:
			l.flags, l.primary, l.slots = "slave", pick(), nil
		case 2:
			if about != s.name {
				delete(s.sees, about)
				continue
			}
		case 3:
			l.flags, l.primary, l.epoch, l.slots = "master", "", 1000, []string{"0-16383"}
			for n, o := range s.sees {
				o.slots = nil
				s.sees[n] = o
			}
		case 4:
			l.addr = w.servers[pick()].addr.String()
		case 5:
			l.flags = "slave,noaddr,fail?"
		case 6:
			s.sees[fmt.Sprintf("x%d", random.IntN(5))] = line{flags: "master", epoch: 5, addr: "10.1.1.1:6379", slots: []string{"5"}}
			continue
		case 7:
			s.down = !s.down
		}
		if l.flags == "" || !known {
			l.flags, l.addr = "master", w.servers[about].addr.String()
		}
		s.sees[about] = l
	}
	// Two lines that claim the same slot are still one reply.
	if me, ok := s.sees[s.name]; !ok || me.addr == "" {
		s.sees[s.name] = line{flags: "master", addr: s.addr.String()}
	}
}

// TestSentinelMinority is the same for Sentinels, and for what they publish.
func TestSentinelMinority(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 2))
		s := &script{t: t}
		s.do("sentinel S1 S2 S3 S4 S5 : A a:A b:A")
		w := s.w
		w.seedAll()
		w.view.SetLocal(0, 1)
		w.run(2 * time.Minute)
		if p := w.view.Topology().Primary(); p == nil || p.ID != w.servers["A"].addr.String() {
			t.Fatalf("seed %d: the primary is %v", seed, p)
		}
		w.view.Changes()
		for round := range 10 {
			for _, n := range []string{"S1", "S2"} {
				x := w.servers[n]
				x.names, x.epoch, x.tilt = []string{"A", "a", "b", "S1"}[random.IntN(4)], random.IntN(100), random.IntN(3) == 0
				x.lists = [][]string{nil, {"a"}, {"A", "a", "b", "S5"}}[random.IntN(3)]
				x.flags = map[string]string{"A": []string{"", "s_down", "s_down,o_down"}[random.IntN(3)], "a": "s_down,o_down"}
				w.view.Message(w.now, x.addr, []string{"+switch-master", "+promoted-slave", "+tilt", "+odown"}[random.IntN(4)], "orders 10.0.0.1 6379 10.0.0.2 6379")
			}
			w.run(time.Duration(1+random.IntN(15)) * time.Second)
			if changes, _ := w.view.Changes(); len(changes) > 0 {
				t.Fatalf("seed %d, round %d: %v", seed, round, w.readable(fmt.Sprint(changes)))
			}
			for _, f := range w.view.Facts() {
				if f.State != StateOK {
					t.Fatalf("seed %d, round %d: %s", seed, round, w.readable(fmt.Sprintf("%+v", f)))
				}
			}
		}
	}
}

// TestHostileNode: a node that names as many nodes as fit into a reply, or addresses that are
// not allowed, or the same address for all, costs a bounded amount and is never dialled there.
func TestHostileNode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, address, kind string }{
		{"many", "10.%d.%d.1:6379@1", ProblemTooMany},
		{"outside", "192.168.%d.%d:6379@1", ProblemOutside},
		{"itself", "10.0.0.1:6379@1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(Config{Name: "orders", Type: Cluster})
			s := w.add("A", "cluster")
			var b strings.Builder
			for i := range 8000 {
				flags, addr := "master", tt.address
				if strings.Contains(addr, "%") {
					addr = fmt.Sprintf(addr, i/250, i%250+2)
				}
				if i == 0 {
					flags, addr = "myself,master", "10.0.0.1:6379@1"
				}
				fmt.Fprintf(&b, "%040x %s %s - 0 0 7 connected %d\n", i+1, addr, flags, i)
			}
			s.raw = map[string]resp.Value{"CLUSTER NODES": bulk(b.String())}
			w.seedAll()
			w.view.SetLocal(0, 100)
			w.run(31 * time.Second)
			top := w.view.Topology()
			if len(top.Nodes) > reply.MaxNodes || len(w.view.contacts) > reply.MaxNodes+maxSeeds || len(w.view.changes) > maxChanges {
				t.Errorf("%d nodes, %d contacts, %d changes", len(top.Nodes), len(w.view.contacts), len(w.view.changes))
			}
			if tt.kind != "" && top.has(tt.kind) == nil {
				t.Errorf("nothing is said about it: %+v", top.Problems)
			}
			for a := range w.view.contacts {
				if a.Addr().As4()[0] != 10 {
					t.Errorf("%v is dialled", a)
				}
			}
			for _, f := range w.view.Facts() {
				if f.Endpoint.Addr().As4()[0] != 10 {
					t.Errorf("%v is an endpoint", f.Endpoint)
				}
			}
		})
	}
}

// FuzzView gives a View arbitrary replies and messages at arbitrary times.
func FuzzView(f *testing.F) {
	line := func(c string, flags string) string {
		return strings.Repeat(c, 40) + " 10.0.0.1:6379@16379 " + flags + " - 0 0 7 connected 0-16383\n"
	}
	f.Add(uint64(1), "$"+"0\r\n\r\n", line("a", "myself,master"), "orders 10.0.0.1 6379 10.0.0.2 6379")
	f.Add(uint64(2), "*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.2\r\n:6379\r\n$9\r\nconnected\r\n:1\r\n", line("a", "myself,slave")+line("b", "master,fail"), "slave x 10.0.0.1 6379 @ orders 10.0.0.2 6379")
	f.Add(uint64(3), "%1\r\n+mode\r\n+sentinel\r\n", line("c", "myself,master"), "10.0.0.1,1,ea761c39747a47122f4d8fc487287c0b62326d0e,0,orders,10.0.0.2,27111,9")
	f.Fuzz(func(t *testing.T, seed uint64, wire, nodes, payload string) {
		random := rand.New(rand.NewPCG(seed, 3))
		types := []Type{Auto, Cluster, Sentinel, Replication, Standalone}
		v := New(Config{Name: "orders", Type: types[seed%5], MasterName: "orders", Random: random, TLS: seed%2 == 0,
			Allow: func(a netip.AddrPort) bool { return a.Addr().Is4() && a.Addr().As4()[0] == 10 }})
		value, _ := resp.NewReader(strings.NewReader(wire), resp.Limits{}).Read()
		values := []resp.Value{value, bulk(nodes), words("mode", "cluster", "ip", "10.0.0.3", "port", "6379", "name", "orders", "flags", "master"), bulk("role:master\r\nredis_mode:cluster\r\n"), num(3)}
		values = append(values, arr(values[2]), arr(bulk("master"), num(1), arr()))
		v.SetSeeds(0, []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6379"), netip.MustParseAddrPort("10.0.0.2:6379")})
		v.SetLocal(0, random.IntN(50))
		var now time.Duration
		for range 60 {
			wants, again, more := v.Wants(now)
			for _, w := range wants {
				if !v.allowed(w.Addr) {
					t.Fatalf("%v is to be dialled", w.Addr)
				}
				if random.IntN(4) == 0 {
					v.Unanswered(now, w.Addr)
					continue
				}
				var replies []resp.Value
				for range w.Commands {
					replies = append(replies, values[random.IntN(len(values))])
				}
				v.Answer(now, w, now, replies)
			}
			for _, channel := range append(reply.Events(), reply.HelloChannel) {
				v.Message(now, netip.MustParseAddrPort("10.0.0.1:6379"), channel, payload)
			}
			for _, x := range v.Facts() {
				if !v.allowed(x.Endpoint) {
					t.Fatalf("%v is an endpoint", x.Endpoint)
				}
			}
			if len(wants) > maxInFlight {
				t.Fatalf("%d questions at once", len(wants))
			}
			if now += time.Duration(random.IntN(5000)) * time.Millisecond; more {
				now = max(now, again)
			}
		}
		for slot := range uint16(20) {
			v.Topology().Owner(slot * 819)
		}
	})
}

// TestTopologyIsNotChanged: is never changed after it was handed out.
func TestTopologyIsNotChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(Config{Name: "orders", Type: Cluster})
	w.cluster([]string{"A", "B", "C", "a:A", "b:B", "c:C"})
	w.seedAll()
	w.view.SetLocal(0, 10)
	w.run(time.Minute)
	top := w.view.Topology()
	before := fmt.Sprintf("%+v", *top)
	random := rand.New(rand.NewPCG(1, 1))
	for range 8 {
		for _, n := range slices.Sorted(maps.Keys(w.servers)) {
			w.lie(random, w.servers[n])
		}
		w.run(20 * time.Second)
	}
	if fmt.Sprintf("%+v", *top) != before {
		t.Error("a topology that was handed out has changed")
	}
}
