package targets

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview/session"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/resolver"
	"github.com/redisguard/redisguard/verdict"
)

// told is a Loop whose goroutine is the test's, and what it tells.
type told struct {
	*Loop
	conf    config.Config
	policy  *policy.Policy
	facts   map[netip.AddrPort]verdict.EndpointFact
	members int
}

func newTold(t *testing.T, targets ...config.TargetSection) *told {
	x := &told{facts: map[netip.AddrPort]verdict.EndpointFact{}}
	x.Loop = New(Config{
		Policy: func() *policy.Policy { return x.policy }, Log: slog.New(slog.DiscardHandler),
		Members: func([]policy.Members) { x.members++ }, Publish: func(event.Event) {},
		Facts: func(_ context.Context, list []verdict.EndpointFact) {
			for _, f := range list {
				if x.facts[f.Endpoint] = f; f.Forget {
					delete(x.facts, f.Endpoint)
				}
			}
		},
	})
	x.ctx = t.Context()
	x.use(targets...)
	return x
}

// use has the config name other targets.
func (x *told) use(targets ...config.TargetSection) {
	x.conf = config.Default()
	x.conf.Targets = targets
	conf := x.conf
	x.policy = policy.New(policy.Inputs{Config: &conf, Override: config.Enforce}, x.policy)
	x.obey()
	x.settle()
}

func section(name string, onDemoted config.Reaction, seeds ...string) config.TargetSection {
	t := config.TargetSection{Name: name, Mode: config.Enforce, Type: config.TypeReplication, Interval: 10 * time.Second}
	t.Policy = config.PolicySection{OnDown: config.ReactAuto, OnUnresponsive: config.ReactAuto, OnDemoted: onDemoted, OnRemoved: config.ReactAuto, OnReplaced: config.ReactAuto}
	for _, s := range seeds {
		a := netip.MustParseAddrPort(s)
		t.Seeds = append(t.Seeds, config.Seed{Host: a.Addr().String(), Port: a.Port()})
	}
	return t
}

// TestSharedEndpoint: of two targets with one endpoint it is the first's, whatever comes and
// goes: the policy of the second never holds for its connections, and no target takes the
// facts of another with it.
func TestFirstOwnsAnEndpoint(t *testing.T) {
	const shared = "192.0.2.1:6379"
	careful, eager := section("careful", config.ReactSignal, shared), section("eager", config.ReactReap, shared, "192.0.2.2:6379")
	x := newTold(t, careful, eager)
	is := func(when, target string, demoted verdict.Policy) {
		t.Helper()
		f := x.facts[netip.MustParseAddrPort(shared)]
		if f.Target != target || f.Policies.OnDemoted != demoted {
			t.Errorf("%s: it is of %q, on_demoted %q", when, f.Target, f.Policies.OnDemoted)
		}
	}
	is("both", "careful", verdict.PolicySignal)
	x.use(eager)
	is("the first is gone", "eager", verdict.PolicyReap)
	x.use(careful, eager)
	is("it is back", "careful", verdict.PolicySignal)
	x.use(eager, careful)
	is("another order", "eager", verdict.PolicyReap)
	x.use(careful)
	is("the second is gone", "careful", verdict.PolicySignal)
	if _, still := x.facts[netip.MustParseAddrPort("192.0.2.2:6379")]; still {
		t.Error("a fact outlives its target")
	}
	x.use()
	if len(x.facts) > 0 {
		t.Errorf("facts outlive their targets: %v", x.facts)
	}
}

// TestNamesForgotten: what became of names that nobody announces any more is not kept.
func TestNamesForgotten(t *testing.T) {
	x := newTold(t)
	for i := range 100 {
		x.resolved[fmt.Sprintf("n%d.example", i)] = resolver.State{}
		x.look([]string{"N1.example"})
	}
	if _, kept := x.resolved["n1.example"]; !kept || len(x.resolved) != 1 {
		t.Errorf("%d names are kept", len(x.resolved))
	}
}

// TestMembersThatChange: a target whose endpoints are others all the time does not have all
// connections looked through all the time.
func TestMembersThatChange(t *testing.T) {
	x := newTold(t, section("orders", config.ReactSignal, "192.0.2.1:6379"))
	n, now := x.members, x.told
	for i := range 600 { // ten minutes
		now += time.Second
		x.targets[0].seeds[0] = netip.AddrPortFrom(x.targets[0].seeds[0].Addr(), uint16(i+1))
		x.tellMembers(now)
	}
	if n = x.members - n; n < 20 || n > 60 {
		t.Errorf("told %d times", n)
	}
}

// TestWorkIsBounded: a loop with something to do at any time rests three of four seconds.
func TestWorkIsBounded(t *testing.T) {
	b, now, worked := budget{}, time.Hour, time.Duration(0)
	b.at = now
	if rest := b.spend(now, workBurst); rest != 0 {
		t.Errorf("it rests for %v after a start", rest)
	}
	for now < 2*time.Hour {
		now += 10 * time.Millisecond
		worked += 10 * time.Millisecond
		now += b.spend(now, 10*time.Millisecond)
	}
	if worked > 20*time.Minute {
		t.Errorf("it worked for %v of an hour", worked)
	}
}

// TestRefusedIsBounded: servers that refuse a password at ever other addresses fill no memory.
func TestRefusedIsBounded(t *testing.T) {
	c := credentials{refused: map[netip.AddrPort]*session.Backoff{}}
	for i := range 3 * maxRefused {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 6379)
		c.note(a, session.NewPassword("wrong"), session.ErrWrongPass)
		if c.wait(a, session.NewPassword("wrong")) == 0 {
			t.Fatal("a password that was refused is sent again at once")
		}
	}
	if len(c.refused) > maxRefused {
		t.Errorf("%d are kept", len(c.refused))
	}
}

// TestHearsay: what was asked in the namespace of a client without TLS, where the client may
// have led the question to itself, ends no connection of another namespace.
func TestHearsay(t *testing.T) {
	const node = "192.0.2.1:6379"
	x := newTold(t, section("orders", config.ReactReap, node))
	is := func(when string, want verdict.Policy) {
		t.Helper()
		x.settle()
		if got := x.facts[netip.MustParseAddrPort(node)].Policies.OnDemoted; got != want {
			t.Errorf("%s: on_demoted %q, want %q", when, got, want)
		}
	}
	ns := func(n uint64) netns.Namespace { return netns.Namespace{ID: netns.ID{Dev: 1, Inode: n}} }
	x.local = Locals{"orders": {Connections: 2, Clients: []netns.Namespace{ns(1), ns(2)}}}
	is("asked from our own namespace", verdict.PolicyReap)
	x.targets[0].doubt()
	is("asked from a client's", verdict.PolicySignal)
	x.local = Locals{"orders": {Connections: 2, Clients: []netns.Namespace{ns(1)}}}
	is("it is the only one", verdict.PolicyReap)
	x.local = Locals{"orders": {Connections: 2, Clients: []netns.Namespace{ns(1), ns(2)}}}
	x.targets[0].unproven.Store(int64(sys.Monotonic() - unprovenFor))
	is("long ago", verdict.PolicyReap)
}
