package tuner

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
)

func TestWants(t *testing.T) {
	const now = 3 * time.Hour
	globs := func(g ...string) func(*config.Config) {
		return func(c *config.Config) { c.Tune.Scope = config.Scope{Of: config.ScopeGlobs, Globs: g} }
	}
	scope := func(of config.ScopeOf) func(*config.Config) {
		return func(c *config.Config) { c.Tune.Scope = config.Scope{Of: of} }
	}
	client := space{
		Report: Report{Occupants: policy.Occupants{Connections: 1, Known: true, Names: []string{"shop", "cart-0"}}},
		base:   policy.Occupants{Redis: policy.No}, lastConn: now,
	}
	with := func(change func(*space)) space { x := client; change(&x); return x }
	redis := func(x *space) { x.base.Redis, x.base.RedisWhy = policy.Yes, "listens on watched port 6379" }
	for _, tt := range []struct {
		name   string
		change func(*config.Config)
		sp     space
		before bool
		want   bool
		why    string
	}{
		{name: "a client", sp: client, want: true},
		{name: "a client an hour ago", sp: with(func(x *space) { x.Occupants, x.lastConn = policy.Occupants{}, now-keepFor }), why: "scope"},
		{name: "a client just now", sp: with(func(x *space) { x.Occupants, x.lastConn = policy.Occupants{}, now-keepFor+1 }), want: true},
		{name: "no client ever", sp: space{}, why: "scope"},
		{name: "Redis is there", sp: with(redis), why: "Redis itself is here: a process listens on"},
		{name: "Redis is there, and asked for", change: func(c *config.Config) { c.Tune.RedisServers = true }, sp: with(redis), want: true},
		{name: "who listens cannot be told", sp: with(func(x *space) { x.base.Redis = policy.CouldNotTell }), want: true},
		{name: "excluded", sp: with(func(x *space) { x.Occupants.Excluded = "excluded: pod cart-0" }), before: true, why: "excluded: pod"},
		{name: "its own process is excluded", sp: with(func(x *space) { x.base.Excluded = "excluded: pod cart-0" }), why: "excluded: pod"},
		{name: "nobody known yet", sp: with(func(x *space) { x.Occupants = policy.Occupants{Connections: 1, Pending: true} }), why: "not known yet"},
		{name: "nobody known yet, tuned before", sp: with(func(x *space) { x.Occupants = policy.Occupants{Connections: 1, Pending: true} }), before: true, want: true},
		{name: "nobody known, and some are excluded", change: func(c *config.Config) { c.Exclude.Pods = []string{"x"} }, sp: with(func(x *space) { x.Occupants = policy.Occupants{Connections: 1} }), why: "[exclude] names some"},
		{name: "known by its own process", change: func(c *config.Config) { c.Exclude.Pods = []string{"x"} }, sp: with(func(x *space) {
			x.Occupants, x.base.Names = policy.Occupants{Connections: 1}, []string{"cart-0"}
		}), want: true},
		{name: "the host alone", change: scope(config.ScopeHost), sp: client, why: "scope"},
		{name: "the host", change: scope(config.ScopeHost), sp: space{Report: Report{Host: true}}, want: true},
		{name: "all", change: scope(config.ScopeAll), sp: space{}, want: true},
		{name: "all but Redis", change: scope(config.ScopeAll), sp: with(redis), why: "Redis itself"},
		{name: "by pod", change: globs("cart-*"), sp: client, want: true},
		{name: "by the pod of its own process", change: globs("cart-*"), sp: space{base: policy.Occupants{Names: []string{"cart-0"}}}, want: true},
		{name: "another pod", change: globs("web-*"), sp: client, why: "scope"},
	} {
		c := config.Default()
		if tt.change != nil {
			tt.change(&c)
		}
		got, why := (&Loop{}).wants(policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil), &tt.sp, tt.before, now)
		if got != tt.want || !strings.Contains(why, tt.why) || got == (why != "") {
			t.Errorf("%s: %v, %q", tt.name, got, why)
		}
	}
}

// A report with the same as before does not make a namespace due.
func TestUpdate(t *testing.T) {
	tn := New(Config{State: t.TempDir()})
	x := Report{NS: netns.Namespace{ID: netns.ID{Inode: 7}}, Occupants: policy.Occupants{Connections: 2, Known: true, Names: []string{"shop"}, Excluded: "excluded"}}
	tn.update([]Report{x})
	sp := tn.spaces[x.NS.ID]
	sp.due = sys.Monotonic() + time.Hour
	due := sp.due
	x.Occupants.Connections++
	tn.update([]Report{x})
	if sp.due != due || sp.lastConn == 0 {
		t.Errorf("%+v", sp)
	}
	x.Occupants.Excluded = ""
	tn.update([]Report{x})
	if sp.due == due {
		t.Error("what has changed is not looked at")
	}
	sp.due = due
	x.Occupants.Connections = 0
	tn.update([]Report{x})
	if sp.due == due {
		t.Error("the last connection has gone, and it is not looked at")
	}
	tn.update(nil)
	if len(tn.spaces) != 0 {
		t.Error("what is gone is still there")
	}
	// A report that nobody took in is replaced.
	tn.Report([]Report{x, x})
	tn.Report([]Report{x})
	if list := <-tn.reports; len(list) != 1 {
		t.Errorf("a report of %d namespaces", len(list))
	}
}

// What comparing the values of a hundred namespaces costs.
func BenchmarkTurn(b *testing.B) {
	l, err := lab.New(lab.Config{Prefix: "rgt"})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for i := range 100 {
		if _, err := l.Client("n" + strconv.Itoa(i)); err != nil {
			b.Fatal(err)
		}
	}
	errc := make(chan error, 1)
	go func() {
		errc <- func() error {
			thread, err := netns.NewThread()
			if err != nil {
				return err
			}
			defer thread.Close()
			c := config.Default()
			c.Tune.Scope = config.Scope{Of: config.ScopeAll}
			p := policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil)
			tn := New(Config{
				Policy: func() *policy.Policy { return p }, Log: slog.New(slog.DiscardHandler), Figures: figures.New(), State: b.TempDir(),
				Publish: func(event.Event) {}, Missing: func(string) {},
				Survey: func(context.Context, *netns.Thread, []netns.Namespace, netns.ID) (map[netns.ID]policy.Occupants, error) {
					return nil, nil
				},
			})
			tn.thread = thread
			found, _ := tn.Finder.Find(b.Context(), thread)
			var list []Report
			for i, ns := range found {
				list = append(list, Report{NS: ns, Host: i == 0})
			}
			tn.update(list)
			for b.Loop() {
				for _, sp := range tn.spaces {
					sp.due = 0
				}
				if err := tn.turn(b.Context()); err != nil {
					return err
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(list)), "us/namespace")
			return nil
		}()
	}()
	if err := <-errc; err != nil {
		b.Fatal(err)
	}
}
