package clusterview

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

func port(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// TestAuto finds the type out by what the first server says.
func TestAuto(t *testing.T) {
	for _, tt := range []struct {
		make string
		want Type
	}{
		{"cluster A B C", Cluster}, {"sentinel S1 S2 S3 : A a:A", Sentinel}, {"replication A a:A", Replication}, {"replication A", Standalone},
	} {
		s := &script{t: t}
		s.do(tt.make)
		w := s.w
		seeds := w.order
		if tt.want == Sentinel {
			seeds = []string{"S1", "S2", "S3"}
		}
		w.view = New(Config{Name: "x", Allow: w.view.cfg.Allow, Random: rand.New(rand.NewPCG(1, 1))})
		var all []netip.AddrPort
		for _, n := range seeds {
			all = append(all, w.servers[n].addr)
		}
		for n, x := range w.servers {
			if x.mode == "sentinel" {
				one := w.sentinel(x, "MASTER")
				w.servers[n].raw = map[string]resp.Value{"SENTINEL MASTERS": arr(one)}
			}
		}
		w.view.SetSeeds(0, all)
		w.view.SetLocal(0, 5)
		w.run(2 * time.Minute)
		if top := w.view.Topology(); top.Type != tt.want || !top.Known {
			t.Errorf("%s: type %s, known %v: %+v", tt.make, top.Type, top.Known, top.Problems)
		}
	}
}

// TestTypeMismatch tells of a config that says another type than the server.
func TestTypeMismatch(t *testing.T) {
	w := newWorld(Config{Name: "x", Type: Sentinel, MasterName: "orders"})
	w.cluster([]string{"A", "B", "C"})
	w.seedAll()
	w.view.SetLocal(0, 5)
	w.run(time.Minute)
	if top := w.view.Topology(); top.Known || top.has(ProblemType) == nil {
		t.Errorf("known %v, problems %v", top.Known, top.Problems)
	}
}

// clusterOf gives a View the views of some nodes, as they answer at their addresses.
func clusterOf(t *testing.T, cfg Config, views map[string]string, slots map[string]resp.Value) *View {
	t.Helper()
	cfg.Type, cfg.Random = Cluster, rand.New(rand.NewPCG(1, 1))
	v := New(cfg)
	var seeds []netip.AddrPort
	for a := range views {
		seeds = append(seeds, port(a))
	}
	v.SetSeeds(0, seeds)
	v.SetLocal(0, 5)
	for a, nodes := range views {
		commands := []Command{askInfo, askCluster, askNodes}
		replies := []resp.Value{bulk("redis_mode:cluster\r\nrole:master\r\nrun_id:" + strings.Repeat("9", 40) + "\r\n"), bulk("cluster_state:ok\r\n"), bulk(nodes)}
		if s, ok := slots[a]; ok {
			commands, replies = append(commands, askSlots), append(replies, s)
		}
		v.Answer(time.Second, Want{Addr: port(a), Commands: commands}, time.Second, replies)
	}
	return v
}

func ids(c string) string { return strings.Repeat(c, 40) }

// TestFamilies: a node names another address to IPv4 clients than to IPv6 ones, and its TLS
// port beside the plain one. All are its endpoints.
func TestFamilies(t *testing.T) {
	line := func(me, c, addr, slots string) string {
		if me == c {
			me = "myself,"
		} else {
			me = ""
		}
		return fmt.Sprintf("%s %s,,tls-port=6390 %smaster - 0 0 1 connected %s\n", ids(c), addr, me, slots)
	}
	view := func(me, first, second string) string {
		return line(me, "a", first+":6379@1", "0-8191") + line(me, "b", second+":6379@1", "8192-16383")
	}
	all := func(netip.AddrPort) bool { return true }
	v := clusterOf(t, Config{Allow: all}, map[string]string{"10.0.0.1:6379": view("a", "10.0.0.1", "10.0.0.2"), "[2001:db8::2]:6379": view("b", "2001:db8::1", "2001:db8::2")}, nil)
	n := v.Topology().Node(ids("b"))
	want := []Endpoint{{port("10.0.0.2:6379"), false}, {port("10.0.0.2:6390"), true}, {port("[2001:db8::2]:6379"), false}, {port("[2001:db8::2]:6390"), true}}
	if n == nil || !slices.Equal(n.Endpoints, want) {
		t.Fatalf("%+v", n)
	}
	if a := n.like(Endpoint{port("[2001:db8::7]:1"), true}); a != want[3].Addr {
		t.Errorf("a TLS client on IPv6 is sent to %v", a)
	}

	// The same, asked over TLS: the port told is the one for TLS.
	v = clusterOf(t, Config{Allow: all, TLS: true}, map[string]string{"10.0.0.1:6390": strings.ReplaceAll(view("a", "10.0.0.1", "10.0.0.2"), ":6379@1,,tls-port=6390", ":6390@1,,tcp-port=6379")}, nil)
	if n := v.Topology().Node(ids("b")); n == nil || !slices.Equal(n.Endpoints, want[:2]) {
		t.Errorf("over TLS: %+v", n)
	}
}

// TestAnnounced: what clients are told to dial is an endpoint beside what nodes call each other,
// and a host name is looked up; "where you asked me" is said of the node itself only.
func TestAnnounced(t *testing.T) {
	nodes := ids("a") + " 10.0.0.1:6379@1,db-a.example myself,master - 0 0 1 connected 0-8191\n" + ids("b") + " 10.0.0.2:6379@1,db-b.example master - 0 0 2 connected 8192-16383\n"
	null := resp.Value{Kind: resp.Null}
	served := func(first, second resp.Value) resp.Value {
		more := func(ip string) resp.Value { return words("ip", ip) }
		return arr(arr(num(0), num(8191), arr(first, num(6379), bulk(ids("a")), more("10.0.0.1"))), arr(num(8192), num(16383), arr(second, num(6379), bulk(ids("b")), more("10.0.0.2"))))
	}
	inside := func(a netip.AddrPort) bool { return !a.Addr().Is4() || a.Addr().As4()[0] != 192 }
	for _, tt := range []struct {
		why           string
		first, second resp.Value
		dialled       string
		want          []string // of a and of b
	}{
		{"another address", bulk("203.0.113.1"), bulk("203.0.113.2"), "10.0.0.1:6379", []string{"10.0.0.1:6379 203.0.113.1:6379", "10.0.0.2:6379 203.0.113.2:6379"}},
		{"one outside", bulk("203.0.113.1"), bulk("192.168.0.2"), "10.0.0.1:6379", []string{"10.0.0.1:6379 203.0.113.1:6379", "10.0.0.2:6379"}},
		{"unknown endpoints, through a proxy", null, null, "10.9.9.9:6379", []string{"10.0.0.1:6379 10.9.9.9:6379", "10.0.0.2:6379"}},
		{"?", bulk("?"), bulk("?"), "10.0.0.1:6379", []string{"10.0.0.1:6379", "10.0.0.2:6379"}},
	} {
		v := clusterOf(t, Config{Allow: inside}, map[string]string{tt.dialled: nodes}, map[string]resp.Value{tt.dialled: served(tt.first, tt.second)})
		for i, id := range []string{ids("a"), ids("b")} {
			var got []string
			for _, e := range v.Topology().Node(id).Endpoints {
				got = append(got, e.Addr.String())
			}
			if s := strings.Join(got, " "); s != tt.want[i] {
				t.Errorf("%s: %s has %s, want %s", tt.why, short(id), s, tt.want[i])
			}
		}
		if outside := v.Topology().has(ProblemOutside); (outside != nil) != (tt.why == "one outside") {
			t.Errorf("%s: %+v", tt.why, outside)
		}
	}

	v := clusterOf(t, Config{Allow: inside}, map[string]string{"10.0.0.1:6379": nodes}, nil)
	if names := v.Topology().Names; !slices.Equal(names, []string{"db-a.example", "db-b.example"}) {
		t.Fatalf("names %v", names)
	}
	v.SetResolved(2*time.Second, map[string][]netip.Addr{"db-b.example": {netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("192.168.0.1")}})
	if n := v.Topology().At(port("10.1.0.2:6379")); n == nil || n.ID != ids("b") {
		t.Errorf("the address of the name belongs to %+v", n)
	}
	if v.Topology().At(port("192.168.0.1:6379")) != nil {
		t.Error("an address that is not allowed became an endpoint, by a name")
	}
}

// TestTranslate: an address map for NAT holds for all that nodes say, and before allow is asked.
func TestTranslate(t *testing.T) {
	nodes := ids("a") + " 172.16.0.1:6379@1 myself,master - 0 0 1 connected 0-16383\n"
	v := clusterOf(t, Config{
		Allow: func(a netip.AddrPort) bool { return a.Addr().As4()[0] == 10 },
		Translate: func(a netip.AddrPort) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), a.Port()+1)
		},
	}, map[string]string{"10.0.0.1:6380": nodes}, nil)
	if n := v.Topology().Owner(reply.Slot("foo")); n == nil || n.first() != port("10.0.0.1:6380") {
		t.Errorf("%+v, %+v", n, v.Topology().Problems)
	}
}

// TestReplacedByItsOwnWord: a node that answers at an address as another one has replaced it,
// though the others do not know yet.
func TestReplacedByItsOwnWord(t *testing.T) {
	s := &script{t: t}
	s.do("cluster A B C a:A b:B c:C")
	w := s.w
	w.seedAll()
	w.view.SetLocal(0, 50)
	w.run(2 * time.Minute)
	x := w.servers["c"]
	x.raw = map[string]resp.Value{"CLUSTER NODES": bulk(ids("d") + " 10.0.0.6:6379@1 myself,master - 0 0 0 connected\n")}
	x.run = ids("8")
	w.run(2 * time.Minute)
	i := slices.IndexFunc(w.view.Facts(), func(f Fact) bool { return f.Endpoint == x.addr })
	if f := w.view.Facts()[i]; f.State != StateReplaced || f.RunID != x.run || !f.Single || f.At == 0 {
		t.Errorf("%+v", f)
	}
	if w.view.Topology().has(ProblemForeign) == nil {
		t.Error("nobody says that it answers as another cluster")
	}
}

// TestSubscriptions: one for each Sentinel that answers, and one to the primary only where the
// budget of connections lets it.
func TestSubscriptions(t *testing.T) {
	s := &script{t: t}
	s.do("sentinel S1 S2 S3 : A a:A")
	w := s.w
	w.seedAll()
	w.view.SetLocal(0, 9)
	w.servers["S3"].silent = true
	w.run(2 * time.Minute)
	if n := len(w.view.Subscriptions(w.now)); n != 2 {
		t.Errorf("%d subscriptions with 9 connections, want 2", n)
	}
	w.view.SetLocal(w.now, 10)
	all := w.view.Subscriptions(w.now)
	if n := len(all); n != 3 || all[2].Channels[0] != reply.HelloChannel || all[2].Addr != w.servers["A"].addr {
		t.Errorf("%+v with 10 connections", all)
	}
	// A hello of a higher epoch is a hint: whom it names is asked, and nothing else follows.
	w.view.Changes()
	before := w.asked["a"]
	w.view.Message(w.now, w.servers["A"].addr, reply.HelloChannel, "10.0.0.3,26379,"+ids("7")+",9,orders,10.0.0.2,6379,9")
	w.run(time.Second)
	if changes, _ := w.view.Changes(); len(changes) > 0 || w.asked["a"] == before {
		t.Errorf("asked %d times after %d, %v", w.asked["a"], before, changes)
	}
	w.view.SetLocal(w.now, 0)
	if n := len(w.view.Subscriptions(w.now)); n != 0 {
		t.Errorf("%d subscriptions in its sleep", n)
	}
}

// TestLargeCluster: of many primaries some are drawn as voters, others by each daemon, and a
// failover is seen all the same.
func TestLargeCluster(t *testing.T) {
	t.Parallel()
	w := newWorld(Config{Name: "orders", Type: Cluster})
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("P%02d", i))
	}
	w.cluster(append(names, "r:P00"))
	w.seedAll()
	w.view.SetLocal(0, 1000)
	w.run(3 * time.Minute)
	top := w.view.Topology()
	if !top.Known || top.Voters != maxVoters || top.Electorate != maxVoters || len(w.view.cluster.reports) > maxReports || top.Covered != reply.Slots {
		t.Fatalf("known %v, %d of %d voters, %d reports, %d slots", top.Known, top.Voters, top.Electorate, len(w.view.cluster.reports), top.Covered)
	}
	w.view.Changes()
	for _, s := range w.servers {
		old, heir := s.sees["P00"], s.sees["r"]
		heir.flags, heir.primary, heir.epoch, heir.slots = "master", "", 99, old.slots
		old.flags, old.primary, old.slots = "slave", "r", nil
		s.sees["P00"], s.sees["r"] = old, heir
	}
	w.view.Suspect(w.now, w.servers["P00"].addr, "a connection was reset")
	w.run(5 * time.Second)
	changes, _ := w.view.Changes()
	if len(changes) == 0 || changes[0].Kind != PrimaryChanged || changes[0].Node != w.servers["r"].id {
		t.Errorf("%v", changes)
	}
}

// TestReplicationNamesOutside: what a node names that is not allowed is told, and not asked.
func TestReplicationNamesOutside(t *testing.T) {
	s := &script{t: t}
	s.do("replication A a:A")
	w := s.w
	a, outside := w.servers["a"].addr, w.servers["A"].addr
	w.view = New(Config{Name: "x", Type: Replication, Allow: func(x netip.AddrPort) bool { return x == a }, Random: rand.New(rand.NewPCG(1, 1))})
	w.view.SetSeeds(0, []netip.AddrPort{a})
	w.view.SetLocal(0, 10)
	w.run(2 * time.Minute)
	if p := w.view.Topology().has(ProblemOutside); p == nil || !strings.Contains(p.Detail, outside.String()) {
		t.Errorf("%+v", w.view.Topology().Problems)
	}
	if w.asked["A"] > 0 || w.asked["a"] == 0 {
		t.Errorf("asked %v", w.asked)
	}
}

// TestAskedAsSentinels: Sentinels have credentials of their own, and are asked with these from
// the first question on, also where only another Sentinel names them; nodes never are.
func TestAskedAsSentinels(t *testing.T) {
	s := &script{t: t}
	s.do("sentinel S1 S2 S3 : A a:A")
	w := s.w
	w.wanted = func(x *server, want Want) {
		if want.Sentinel != strings.HasPrefix(x.name, "S") {
			t.Errorf("%s is asked as a Sentinel: %v", x.name, want.Sentinel)
		}
	}
	s.do("seeds S1")
	s.do("local 10")
	s.do("run 60s")
	for _, name := range w.order {
		if w.asked[name] == 0 {
			t.Errorf("%s was not asked", name)
		}
	}
	for _, x := range w.view.Subscriptions(w.now) {
		if x.Sentinel != strings.HasPrefix(w.at(x.Addr).name, "S") {
			t.Errorf("%+v", x)
		}
	}
}

// TestStaleViews: the others' views of before a failover are no majority against it. Here two of
// three primaries know of it already, the new one's own last answer is from before, and so is that of
// the third.
func TestStaleViews(t *testing.T) {
	t.Parallel()
	w := newWorld(Config{Name: "orders", Type: Cluster})
	w.cluster([]string{"A", "B", "C", "a:A"})
	w.seedAll()
	w.view.SetLocal(0, 1000)
	w.run(time.Minute)
	w.view.Changes()
	for _, n := range []string{"A", "B", "C", "a"} {
		s := w.servers[n]
		old, heir := s.sees["A"], s.sees["a"]
		heir.flags, heir.primary, heir.epoch, heir.slots = "master", "", 4, old.slots
		old.flags, old.primary, old.epoch, old.slots = "slave", "a", 4, nil
		s.sees["A"], s.sees["a"] = old, heir
	}
	for i, n := range []string{"A", "B", "B", "A", "C", "a"} {
		w.deliver(event{want: Want{Addr: w.servers[n].addr, Commands: []Command{askInfo, askNodes}}, from: w.now})
		changes, _ := w.view.Changes()
		var kinds []Kind
		for _, c := range changes {
			kinds = append(kinds, c.Kind)
		}
		if want := []Kind{PrimaryChanged, NodeDemoted}; i == 1 && !slices.Equal(kinds, want) || i != 1 && len(kinds) > 0 {
			t.Errorf("after %d answers: %v", i+1, changes)
		}
	}
	if n := w.view.Topology().Node(w.servers["a"].id); n.Role != reply.RolePrimary || n.State != StateOK || n.Successor != "" {
		t.Errorf("the new primary is %+v", n)
	}
}
