package policy

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/proc"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestInterest(t *testing.T) {
	p := enforcing(func(c *config.Config) { c.Watch.Ports = []uint16{7000, 6379} })
	i := p.Interest
	if !slices.Equal(i.Ports(), []uint16{6379, 7000}) || !i.HasPort(7000) || i.HasPort(7001) {
		t.Errorf("ports %v", i.Ports())
	}
	for _, tc := range []struct {
		local, remote string
		mark          uint32
		want          bool
	}{
		{"10.0.0.7:4000", "10.0.0.1:6379", 0, true},
		{"[fd00::7]:4000", "[fd00::1]:7000", 0, true},
		{"10.0.0.7:4000", "10.0.0.1:80", 0, false},
		{"10.0.0.7:6379", "10.0.0.1:80", 0, false}, // the server's side
		{"127.0.0.1:4000", "127.0.0.1:6379", 0, false},
		{"[::1]:4000", "[::1]:6379", 0, false},
		{"10.0.0.1:4000", "10.0.0.1:6379", 0, false}, // its own address
		{"10.0.0.7:4000", "10.0.0.1:6379", p.Config.Probe.Mark, false},
		{"10.0.0.7:4000", "10.0.0.1:6379", 1, true},
	} {
		if got := i.Wants(ap(tc.local), ap(tc.remote), tc.mark); got != tc.want {
			t.Errorf("%s -> %s with mark %#x: %v", tc.local, tc.remote, tc.mark, got)
		}
	}
	w, ok := i.Of(ap("10.0.0.1:6379"))
	if !ok || w.Mode != config.Enforce || w.Target != "" || w.Policy != p.Config.Policy {
		t.Errorf("%+v, %v", w, ok)
	}
	if _, ok := i.Of(ap("10.0.0.1:80")); ok {
		t.Error("a port that nobody watches")
	}
}

// A generation says that there is something else to look for, and only that.
func TestGenerations(t *testing.T) {
	var p *Policy
	c := config.Default()
	next := func(change func(*config.Config)) uint64 {
		d := c
		change(&d)
		c = d
		p = New(Inputs{Config: &d, Override: config.Enforce}, p)
		return p.Interest.Generation
	}
	for i, tc := range []struct {
		change func(*config.Config)
		want   uint64
	}{
		{func(*config.Config) {}, 1},
		{func(c *config.Config) { c.Mode = config.Observe }, 1},
		{func(c *config.Config) { c.Watch.Ports = []uint16{6380, 6379} }, 1},
		{func(c *config.Config) { c.Watch.Ports = []uint16{6380} }, 2},
		{func(c *config.Config) { c.Watch.Loopback = true }, 3},
		{func(c *config.Config) { c.Watch.Ports = nil }, 4},
	} {
		if got := next(tc.change); got != tc.want {
			t.Errorf("change %d: generation %d, want %d", i, got, tc.want)
		}
	}
	if p.Interest.Wants(ap("10.0.0.7:4000"), ap("10.0.0.1:6379"), 0) {
		t.Error("without a port something is watched")
	}
	// More ports than a filter in the kernel takes are possible.
	many := make([]uint16, 500)
	for i := range many {
		many[i] = uint16(8000 + i)
	}
	c.Watch.Ports = many
	p = New(Inputs{Config: &c, Override: config.Enforce}, p)
	if len(p.Interest.Ports()) != 500 || !p.Interest.HasPort(8499) {
		t.Error("500 ports are not watched")
	}
}

// Endpoints of targets are watched whatever their ports, each with its target's mode and
// policy, and nothing that is not allowed is.
func TestInterestInTargets(t *testing.T) {
	conf, err := config.Parse("f", []byte(`
[watch]
ports = [6379]
mode = "observe"
[[target]]
name = "a"
type = "sentinel"
seeds = ["10.0.0.1:26379", "s.example:26379"]
allow = ["10.0.0.0/24"]
allow_ports = ["26379", "7000-7009"]
[[target]]
name = "b"
mode = "off"
seeds = ["10.0.0.9:6379"]
`))
	if err != nil {
		t.Fatal(err)
	}
	in := Inputs{Config: &conf, Override: config.Enforce}
	p := New(in, nil)
	in.Members = []Members{{Target: "a", Endpoints: []netip.AddrPort{ap("10.0.0.2:7000"), ap("10.0.1.2:7000"), ap("10.0.0.2:22"), ap("10.0.0.9:6379")}}, {Target: "none", Endpoints: []netip.AddrPort{ap("10.0.0.3:7000")}}}
	next := New(in, p)
	if next.Interest.Generation == p.Interest.Generation {
		t.Error("other members are nothing new")
	}
	if again := New(in, next); again.Interest.Generation != next.Interest.Generation {
		t.Error("the same members are something new")
	}
	i := next.Interest
	if !slices.Equal(i.Ports(), []uint16{6379, 7000, 26379}) {
		t.Errorf("ports %v", i.Ports())
	}
	me := ap("10.0.0.77:4000")
	for remote, want := range map[string]struct {
		target string
		mode   config.Mode
	}{
		"10.0.0.1:26379": {"a", config.Enforce}, "10.0.0.2:7000": {"a", config.Enforce}, "10.0.0.5:6379": {"", config.Observe},
		"10.0.1.2:7000": {}, "10.0.0.2:22": {}, "10.0.0.3:7000": {}, "10.0.0.9:6379": {},
	} {
		w, ok := i.Of(ap(remote))
		if wants := i.Wants(me, ap(remote), 0); wants != (want.mode != config.Off) {
			t.Errorf("%s is wanted: %v", remote, wants)
		}
		if want.mode != config.Off && (!ok || w.Target != want.target || w.Mode != want.mode) {
			t.Errorf("%s: %+v, want %+v", remote, w, want)
		}
		if m, _ := next.ModeAt(Reap, ap(remote)); m != want.mode {
			t.Errorf("reaping at %s: %v", remote, m)
		}
	}
	if w, _ := i.Of(ap("10.0.0.2:7000")); w.Policy.OnDemoted != config.ReactReap {
		t.Errorf("policy %+v", w.Policy)
	}
	if m := next.Most(Reap); m != config.Enforce {
		t.Errorf("at most %v", m)
	}
}

func TestReads(t *testing.T) {
	conf, err := config.Parse("f", []byte("[[target]]\nname = 'a'\nseeds = ['10.0.0.1:1']\nreaders.commands = ['rep*']\n[[target]]\nname = 'b'\nseeds = ['10.0.0.2:1']"))
	if err != nil {
		t.Fatal(err)
	}
	p := New(Inputs{Config: &conf, Override: config.Enforce}, nil)
	holder := func(comm string) *Holder { return &Holder{Owner: &proc.Owner{Process: proc.Process{Comm: comm}}} }
	for name, tc := range map[string]struct {
		target string
		h      *Holder
		want   bool
	}{
		"a reader": {"a", holder("reporter"), true}, "not one": {"a", holder("web"), false}, "of another target": {"b", holder("reporter"), false},
		"nobody knows": {"a", &Holder{}, true}, "nobody knows, and nobody reads": {"b", &Holder{}, false}, "no target": {"", holder("reporter"), false},
		"Redis itself": {"b", &Holder{Redis: "is called redis-server"}, true},
	} {
		if got := p.Reads(tc.target, tc.h); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestStricterTarget: what may be a node of a target that has a lower mode than [watch] is not
// touched for its port: who the nodes of one that is off are is never known.
func TestStricterTarget(t *testing.T) {
	for _, mode := range []config.Mode{config.Off, config.Observe, config.Enforce} {
		p := enforcing(func(c *config.Config) {
			c.Targets = []config.TargetSection{{
				Name: "orders", Mode: mode, Seeds: []config.Seed{{Host: "redis.orders", Port: 6379}}, Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
			}}
		})
		if m, why := p.ModeAt(Reap, ap("10.1.0.1:6379")); m != mode || mode != config.Enforce && why.Text != "target[orders].mode is "+mode.String()+", and its allow covers the endpoint" {
			t.Errorf("target %v: %v, %v", mode, m, why)
		}
		if w, ok := p.Interest.Of(ap("10.1.0.1:6379")); !ok || w.Target != "" {
			t.Errorf("target %v: it is one of its nodes: %+v", mode, w)
		}
		if got := p.Interest.Wants(ap("10.0.0.7:4000"), ap("10.1.0.1:6379"), 0); got != (mode != config.Off) {
			t.Errorf("target %v: watched %v", mode, got)
		}
		if m, _ := p.ModeAt(Reap, ap("10.2.0.1:6379")); m != config.Enforce {
			t.Errorf("target %v: beside what it allows %v", mode, m)
		}
		on := *p.Config
		on.Targets = slices.Clone(on.Targets)
		on.Targets[0].Mode = config.Enforce
		in := p.Inputs
		in.Config = &on
		if again := New(in, p); (again.Interest.Generation == p.Interest.Generation) != (mode == config.Enforce) {
			t.Errorf("target %v, then enforce: it is looked everywhere once more: %v", mode, again.Interest.Generation)
		}
	}
}
