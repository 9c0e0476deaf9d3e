package supervisor

import (
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/verdict"
)

func TestWants(t *testing.T) {
	const now = 3 * time.Hour
	globs := func(g ...string) func(*config.Config) {
		return func(c *config.Config) { c.Tune.Scope = config.Scope{Of: config.ScopeGlobs, Globs: g} }
	}
	scope := func(of config.ScopeOf) func(*config.Config) {
		return func(c *config.Config) { c.Tune.Scope = config.Scope{Of: of} }
	}
	client := tuned{tenants: tenants{conns: 1, known: true, names: []string{"shop", "cart-0"}}, lastConn: now}
	with := func(change func(*tuned)) tuned { x := client; change(&x); return x }
	for _, tt := range []struct {
		name   string
		change func(*config.Config)
		sp     tuned
		tuned  bool // before
		want   bool
		why    string
	}{
		{name: "a client", sp: client, want: true},
		{name: "a client an hour ago", sp: with(func(x *tuned) { x.conns, x.lastConn = 0, now-tuneFor }), why: "scope"},
		{name: "a client just now", sp: with(func(x *tuned) { x.conns, x.lastConn = 0, now-tuneFor+1 }), want: true},
		{name: "no client ever", sp: tuned{}, why: "scope"},
		{name: "Redis is there", sp: with(func(x *tuned) { x.redis = "listens on watched port 6379" }), why: "Redis itself is here: a process listens on"},
		{name: "Redis is there, and asked for", change: func(c *config.Config) { c.Tune.RedisServers = true }, sp: with(func(x *tuned) { x.redis = "listens" }), want: true},
		{name: "excluded", sp: with(func(x *tuned) { x.excluded = "excluded: pod cart-0" }), tuned: true, why: "excluded: pod"},
		{name: "its own process is excluded", sp: with(func(x *tuned) { x.own = "excluded: pod cart-0" }), why: "excluded: pod"},
		{name: "nobody known yet", sp: with(func(x *tuned) { x.known, x.pending = false, true }), why: "not known yet"},
		{name: "nobody known yet, tuned before", sp: with(func(x *tuned) { x.known, x.pending = false, true }), tuned: true, want: true},
		{name: "one of many is known", sp: with(func(x *tuned) { x.pending = true }), want: true},
		{name: "nobody known, and some are excluded", change: func(c *config.Config) { c.Exclude.Pods = []string{"x"} }, sp: with(func(x *tuned) { x.known = false }), why: "[exclude] names some"},
		{name: "known by its own process", change: func(c *config.Config) { c.Exclude.Pods = []string{"x"} }, sp: with(func(x *tuned) { x.known, x.ownNames = false, []string{"cart-0"} }), want: true},
		{name: "nobody known", sp: with(func(x *tuned) { x.known = false }), want: true},
		{name: "the host alone", change: scope(config.ScopeHost), sp: client, why: "scope"},
		{name: "the host", change: scope(config.ScopeHost), sp: tuned{tenants: tenants{host: true}}, want: true},
		{name: "all", change: scope(config.ScopeAll), sp: tuned{}, want: true},
		{name: "all but Redis", change: scope(config.ScopeAll), sp: tuned{redis: "listens"}, why: "Redis itself"},
		{name: "by pod", change: globs("cart-*"), sp: client, want: true},
		{name: "by the pod of its own process", change: globs("cart-*"), sp: tuned{ownNames: []string{"cart-0"}}, want: true},
		{name: "another pod", change: globs("web-*"), sp: client, why: "scope"},
	} {
		c := config.Default()
		if tt.change != nil {
			tt.change(&c)
		}
		got, why := (&tuner{}).wants(&c, &tt.sp, tt.tuned, now)
		if got != tt.want || !strings.Contains(why, tt.why) || got == (why != "") {
			t.Errorf("%s: %v, %q", tt.name, got, why)
		}
	}
}

// Redis is known by what it listens on, also where nobody knows whose a socket is.
func TestRedisIn(t *testing.T) {
	tn := &tuner{s: &Supervisor{log: slog.New(slog.DiscardHandler)}}
	owner := func(comm string) proc.Owner { return proc.Owner{Process: proc.Process{PID: 1 << 22, Comm: comm}} }
	for _, tt := range []struct {
		name string
		ls   []listener
		own  map[uint64]proc.Owner
		want bool
	}{
		{"nobody listens", nil, nil, false},
		{"a web server", []listener{{80, 1}}, map[uint64]proc.Owner{1: owner("nginx")}, false},
		{"a web server of nobody we know", []listener{{80, 1}}, nil, false},
		{"a watched port", []listener{{6379, 1}}, nil, true},
		{"a Sentinel", []listener{{26379, 1}}, nil, true},
		{"a port and its cluster bus", []listener{{7000, 1}, {17000, 2}}, nil, true},
		{"another port, by name", []listener{{80, 1}, {7777, 2}}, map[uint64]proc.Owner{1: owner("nginx"), 2: owner("valkey-server")}, true},
	} {
		if why := tn.redisIn(tt.ls, tt.own, []uint16{6379}); (why != "") != tt.want {
			t.Errorf("%s: %q", tt.name, why)
		}
	}
}

func TestTenants(t *testing.T) {
	c := config.Default()
	c.Exclude.Commands = []string{"backup"}
	app := ownership{asked: true, owner: &proc.Owner{Process: proc.Process{PID: 5, Comm: "app"}, PodNamespace: "shop", PodName: "cart-0"}}
	backup := ownership{asked: true, owner: &proc.Owner{Process: proc.Process{PID: 6, Comm: "backup"}, Workload: proc.Workload{Unit: "b.service"}}}
	var x tenants
	x.add(&c, &ownership{}, 0)
	if !x.pending || x.known {
		t.Errorf("%+v", x)
	}
	x.add(&c, &app, 0)
	x.add(&c, &app, 0)
	if x.excluded != "" || !x.known || strings.Join(x.names, " ") != "shop cart-0" {
		t.Errorf("%+v", x)
	}
	x.add(&c, &backup, 0)
	if x.conns != 4 || x.excluded != "excluded: command backup" || len(x.names) != 3 {
		t.Errorf("%+v", x)
	}
	// Who reports again with the same does not make a namespace due.
	s := &Supervisor{figures: newFigures()}
	tn := &tuner{s: s, spaces: map[netns.ID]*tuned{}}
	x.ns.ID = netns.ID{Inode: 7}
	tn.take([]tenants{x})
	sp := tn.spaces[x.ns.ID]
	sp.due = monotonic() + time.Hour
	due := sp.due
	tn.take([]tenants{x})
	if sp.due != due || sp.lastConn == 0 || sp.key != verdict.NS(7) {
		t.Errorf("%+v", sp)
	}
	x.excluded = ""
	tn.take([]tenants{x})
	if sp.due == due {
		t.Error("what has changed is not looked at")
	}
	tn.take(nil)
	if len(tn.spaces) != 0 {
		t.Error("what is gone is still there")
	}
}

// What comparing the values of a hundred namespaces costs.
func BenchmarkTuneTurn(b *testing.B) {
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
			s := &Supervisor{log: slog.New(slog.DiscardHandler), figures: newFigures(), opt: Options{Hub: event.NewHub(1024), StateDir: b.TempDir(), DisablePath: "/nonexistent"}}
			s.override.Store(int32(config.Enforce))
			c := config.Default()
			c.Tune.Scope = config.Scope{Of: config.ScopeAll}
			s.conf.Store(&c)
			f := s.finder()
			found, _ := f.Find(b.Context(), thread)
			var list []tenants
			for i, ns := range found {
				list = append(list, tenants{ns: ns, host: i == 0})
			}
			tn := s.newTuner(thread)
			tn.take(list)
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
