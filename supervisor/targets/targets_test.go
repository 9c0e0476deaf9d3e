package targets

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/verdict"
)

var (
	a, b    = netip.MustParseAddrPort("192.0.2.1:7001"), netip.MustParseAddrPort("192.0.2.2:7001")
	outside = netip.MustParseAddrPort("198.51.100.1:7001")
)

// pair is a primary with replicas.
func pair(primary netip.AddrPort, replicas ...netip.AddrPort) map[netip.AddrPort]node {
	nodes := map[netip.AddrPort]node{primary: {replicas: replicas}}
	for _, r := range replicas {
		nodes[r] = node{primary: primary}
	}
	return nodes
}

func orders(lines string) string {
	return "[[target]]\nname = \"orders\"\nfleet_size = 1\ninterval = \"1s\"\nallow = [\"192.0.2.0/24\"]\n" + lines
}

// Endpoints, facts and events follow what the nodes say; what is not allowed is told, and never asked.
func TestFollows(t *testing.T) {
	f := newFake()
	f.put(pair(a, b, outside))
	w := follow(t, f, "", orders(`seeds = ["192.0.2.1:7001", "192.0.2.2:7001"]`))
	labtest.Eventually(t, "the seeds are members before anybody is asked", func() bool { return slices.Equal(w.endpoints("orders"), []netip.AddrPort{a, b}) })
	labtest.Eventually(t, "their policies hold", func() bool {
		f, ok := w.fact(a)
		return ok && f.Target == "orders" && f.Policies.OnDown == verdict.PolicyReap && f.State == ""
	})
	w.isUp("orders", a)
	w.until("the replica is known", func() bool { f, _ := w.fact(b); return f.Role == verdict.RoleReplica })
	if p := w.problem("address.outside"); p == "" || f.times(outside) != 0 {
		t.Errorf("%v was asked %d times", outside, f.times(outside))
	}
	if got := w.endpoints("orders"); !slices.Equal(got, []netip.AddrPort{a, b}) {
		t.Errorf("the members are %v", got)
	}
	fa, _ := w.fact(a)
	if fa.Role != verdict.RolePrimary || fa.RunID == "" || fa.At == 0 || fa.Source != "replication" || fa.Policies.OnDemoted != verdict.PolicyReap {
		t.Errorf("the fact is %+v", fa)
	}

	f.put(map[netip.AddrPort]node{b: {replicas: []netip.AddrPort{a}}, a: {primary: b}})
	w.isUp("orders", b)
	w.until("the old primary is demoted", func() bool { f, _ := w.fact(a); return f.State == verdict.StateDemoted && f.Successor == b })
	e := w.event(event.PrimaryChanged)
	if e == nil || e.Target != "orders" || e.Endpoint != b || e.Change == nil || *e.Change != (event.Change{From: a.String(), To: b.String()}) {
		t.Errorf("the event is %+v", e)
	}
	w.until("nothing is wrong any more", func() bool { return w.event(event.TargetResumed) != nil && w.target("orders").Problem == "" })
	if x := w.target("orders"); x.Change == "" || time.Since(x.Changed) > time.Minute || x.Topology.At(a).Role != reply.RoleReplica {
		t.Errorf("the table has %+v", x)
	}
}

// What was told of a target is taken back when it is another one, or gone, and only then.
func TestForgets(t *testing.T) {
	f := newFake()
	f.put(pair(a))
	f.put(pair(b))
	both := orders("seeds = [\"192.0.2.1:7001\"]\n") + "[[target]]\nname = \"users\"\nfleet_size = 1\nseeds = [\"192.0.2.2:7001\"]\n"
	w := follow(t, f, "", both)
	w.isUp("orders", a)
	w.isUp("users", b)
	forgotten := func(x netip.AddrPort) (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, f := range w.told {
			if f.Endpoint == x && f.Forget {
				n++
			}
		}
		return n
	}

	// Another one of that name.
	w.set(orders("seeds = [\"192.0.2.1:7001\"]\n[target.policy]\non_down = \"signal\"\n")+"[[target]]\nname = \"users\"\nfleet_size = 1\nseeds = [\"192.0.2.2:7001\"]\n", nil)
	w.until("the other policy holds", func() bool { f, _ := w.fact(a); return f.Policies.OnDown == verdict.PolicySignal })
	w.isUp("orders", a)
	if forgotten(a) != 1 || forgotten(b) != 0 {
		t.Errorf("forgotten %d and %d times", forgotten(a), forgotten(b))
	}

	// The other one is off, alone.
	w.set(orders("seeds = [\"192.0.2.1:7001\"]\n[target.policy]\non_down = \"signal\"\n")+"[[target]]\nname = \"users\"\nmode = \"off\"\nseeds = [\"192.0.2.2:7001\"]\n", nil)
	labtest.Eventually(t, "it is forgotten", func() bool { _, ok := w.fact(b); return !ok && w.endpoints("users") == nil })
	if x := w.target("users"); x.Conf != nil || forgotten(a) != 1 {
		t.Errorf("%+v is there, and the other one was forgotten %d times", x, forgotten(a))
	}

	w.set("", nil)
	labtest.Eventually(t, "all is forgotten", func() bool { _, ok := w.fact(a); return !ok && len(w.Table()) == 0 && w.endpoints("orders") == nil })
}

// An endpoint that two targets name is the first one's, until that is gone.
func TestSharedEndpoint(t *testing.T) {
	f := newFake()
	f.put(pair(a))
	second := "[[target]]\nname = \"second\"\nfleet_size = 1\nseeds = [\"192.0.2.1:7001\"]\n"
	w := follow(t, f, "", orders("seeds = [\"192.0.2.1:7001\"]\n")+second)
	of := func(name string) func() bool {
		return func() bool { f, ok := w.fact(a); return ok && f.Target == name && f.RunID != "" }
	}
	w.isUp("orders", a)
	w.isUp("second", a)
	w.until("it is the first one's", of("orders"))
	w.set(second, nil)
	w.until("it is the second one's", of("second"))
	w.set(orders("seeds = [\"192.0.2.1:7001\"]\n")+second, nil)
	w.until("it is the first one's again", of("orders"))
	w.set(orders("seeds = [\"192.0.2.1:7001\"]\n"), nil)
	w.until("the second one is gone", func() bool { return w.target("second").Conf == nil })
	if !of("orders")() {
		f, ok := w.fact(a)
		t.Errorf("known %v: %+v", ok, f)
	}
}

// Why a server cannot be asked is told for as long as that is so, and says nothing about the server.
func TestNotAsked(t *testing.T) {
	f := newFake()
	f.put(pair(a, b))
	w := follow(t, f, "", orders(`seeds = ["192.0.2.1:7001"]`))
	w.isUp("orders", a)
	f.put(map[netip.AddrPort]node{b: {err: fmt.Errorf("%w: %w", ErrNotAsked, errors.New("no such file"))}})
	w.problem(b.String(), "no such file")
	if n := w.target("orders").Topology.At(b); n == nil || n.State != "ok" {
		t.Errorf("the node is %+v", n)
	}
	f.put(pair(a, b))
	w.until("it is over", func() bool { return w.event(event.TargetResumed) != nil && w.target("orders").Problem == "" })
}

// A target of which nobody answers is a problem, until one does.
func TestUnreachable(t *testing.T) {
	f := newFake()
	w := follow(t, f, "", orders(`seeds = ["192.0.2.1:7001"]`))
	w.problem(a.String(), errGone.Error())
	f.put(pair(a))
	w.isUp("orders", a)
	w.until("it is over", func() bool { return w.event(event.TargetResumed) != nil && w.target("orders").Problem == "" })
}

// Nobody is asked while redisguard is off, nor while nobody is interested.
func TestAsksNobody(t *testing.T) {
	f := newFake()
	f.put(pair(a))
	conf := orders(`seeds = ["192.0.2.1:7001"]`)
	w := follow(t, f, "", conf)
	labtest.Eventually(t, "the target is there", func() bool { return len(w.Table()) == 1 })
	settled := func() {
		// Each is a turn of the loop.
		for range 3 {
			turn := make(chan bool)
			w.inbox <- func() { close(turn) }
			<-turn
		}
	}
	settled()
	if n := f.times(netip.AddrPort{}); n != 0 {
		t.Errorf("asked %d times, and nobody wanted it", n)
	}
	// What is known of a connection of this node wakes it as a question does.
	w.SetLocal(Locals{"orders": {Connections: 1}})
	w.Suspect("orders", a, "a stall")
	labtest.Eventually(t, "a suspicion is looked into at once", func() bool { return f.times(a) > 0 })
	w.SetLocal(nil)
	w.isUp("orders", a)

	w.set(conf, func(in *policy.Inputs) { in.Switch = true })
	labtest.Eventually(t, "the switch holds", func() bool { _, ok := w.fact(a); return !ok && len(w.Table()) == 0 })
	before := f.times(netip.AddrPort{})
	w.Wake("orders")
	w.Suspect("orders", a, "a stall")
	settled()
	w.set(conf, func(in *policy.Inputs) { in.Override = config.Off })
	settled()
	if n := f.times(netip.AddrPort{}); n > before+1 { // one may have been on its way
		t.Errorf("asked %d times while off", n-before)
	}
	w.set(conf, nil)
	w.isUp("orders", a)
}

// A target is asked about once when the config names it, though no connection of this node is
// known to lead there: as long as its nodes are not known, none can be.
func TestLearns(t *testing.T) {
	f := newFake()
	f.put(pair(a))
	w := follow(t, f, "", orders(`seeds = ["192.0.2.1:7001"]`))
	local := func() (n int) {
		got := make(chan int)
		w.inbox <- func() {
			n := -1
			if x := w.Loop.target("orders"); x != nil {
				n = x.local
			}
			got <- n
		}
		return <-got
	}
	labtest.Eventually(t, "somebody wants to know", func() bool { return local() == 1 })
	w.Wake("orders") // or it takes up to half a minute
	w.isUp("orders", a)
	labtest.Eventually(t, "nobody does any more", func() bool { return local() == 0 })
}

// What is watched for its port alone may lead to a node that nobody has named.
func TestCount(t *testing.T) {
	c, err := config.Parse("f", []byte("[[target]]\nname = 'a'\nseeds = ['10.0.0.1:26379']\nallow = ['10.0.0.0/24']\n[[target]]\nname = 'off'\nmode = 'off'\nseeds = ['10.0.1.1:6379']"))
	labtest.Must(t, err)
	i := policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil).Interest
	n := Count(i)
	for inode, remotes := range [][]string{{"10.0.0.1:26379", "10.0.0.7:6379", "10.0.0.7:6379", "10.0.0.7:80", "10.0.9.1:6379", "10.0.1.1:6379"}, {"10.0.0.8:6380"}, {"10.0.9.1:6379"}} {
		for _, r := range remotes {
			n.Add(netip.MustParseAddrPort(r), netns.Namespace{ID: netns.ID{Inode: uint64(inode + 1)}})
		}
	}
	if x := n.Locals["a"]; x.Connections != 4 || len(x.Clients) != 2 {
		t.Errorf("%+v", n.Locals)
	}
}
