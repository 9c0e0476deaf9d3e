package targets

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// following is a Loop with real connections, and what it has told.
type following struct {
	t    *testing.T
	loop *Loop
	pol  atomic.Pointer[policy.Policy]

	mu      sync.Mutex
	events  []event.Event
	members []policy.Members
	facts   map[netip.AddrPort]verdict.EndpointFact
}

func newFollowing(t *testing.T, conf string, args ...any) *following {
	t.Helper()
	r := &following{t: t, facts: map[netip.AddrPort]verdict.EndpointFact{}}
	r.configure(conf, args...)
	r.loop = New(Config{
		Policy: r.pol.Load, Log: slog.New(slog.DiscardHandler), Dialer: NewDialer(r.pol.Load),
		Members: func(list []policy.Members) { r.do(func() { r.members = list }) },
		Publish: func(e event.Event) { r.do(func() { r.events = append(r.events, e) }) },
		Facts: func(_ context.Context, list []verdict.EndpointFact) {
			r.do(func() {
				for _, f := range list {
					if r.facts[f.Endpoint] = f; f.Forget {
						delete(r.facts, f.Endpoint)
					}
				}
			})
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			r.do(func() {
				for _, e := range r.events {
					t.Log(e.Type, e.Target, e.Text)
				}
			})
		}
	})
	return r
}

func (r *following) do(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
}

// configure has another config in force.
func (r *following) configure(conf string, args ...any) {
	r.t.Helper()
	c, err := config.Parse("test", fmt.Appendf(nil, conf, args...))
	labtest.Must(r.t, err)
	r.pol.Store(policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil))
}

func (r *following) table(name string) (t view.Target, ok bool) {
	list := r.loop.Table()
	i := slices.IndexFunc(list, func(t view.Target) bool { return t.Conf.Name == name })
	if i < 0 {
		return t, false
	}
	return list[i], true
}

// known waits until a target is, asked for again and again as a client would.
func (r *following) known(name string, holds func(top *clusterview.Topology) bool) {
	r.t.Helper()
	labtest.Eventually(r.t, name+" is as it should be", func() bool {
		r.loop.Wake(name)
		t, ok := r.table(name)
		return ok && t.Topology.Known && holds(t.Topology)
	})
}

// event waits for one of a type, whose text contains something.
func (r *following) event(typ verdict.EventType, text string) {
	r.t.Helper()
	labtest.Eventually(r.t, fmt.Sprintf("%s with %q", typ, text), func() (found bool) {
		r.do(func() {
			found = slices.ContainsFunc(r.events, func(e event.Event) bool { return e.Type == typ && strings.Contains(e.Text, text) })
			for _, t := range r.loop.Table() {
				r.loop.Wake(t.Conf.Name)
			}
		})
		return found
	})
}

func primaryAt(a netip.AddrPort) func(*clusterview.Topology) bool {
	return func(top *clusterview.Topology) bool {
		p := top.Primary()
		return p != nil && len(p.Endpoints) > 0 && p.Endpoints[0].Addr == a
	}
}

const one = "[[target]]\nname = 'orders'\nseeds = ['%v']\n"

// A target is followed, and with it go its members, its facts and its policies. When the
// config drops it, or redisguard is off, they are withdrawn.
func TestATargetComesAndGoes(t *testing.T) {
	at := labtest.LoopbackRedis(t)
	r := newFollowing(t, one+"policy.on_down = 'signal'", at)
	r.known("orders", primaryAt(at))
	labtest.Eventually(t, "members and facts are told", func() (ok bool) {
		r.do(func() {
			f := r.facts[at]
			ok = len(r.members) == 1 && slices.Equal(r.members[0].Endpoints, []netip.AddrPort{at}) && r.members[0].Type == config.TypeStandalone &&
				f.Target == "orders" && f.State == verdict.StateOK && f.Role == verdict.RolePrimary && f.RunID != "" && f.Policies.OnDown == verdict.PolicySignal
		})
		return ok
	})
	gone := func(what string) {
		t.Helper()
		labtest.Eventually(t, what+": nothing is left", func() (ok bool) {
			r.do(func() { ok = len(r.facts) == 0 && len(r.members) == 0 })
			return ok && len(r.loop.Table()) == 0
		})
	}
	r.configure("")
	gone("no target")
	r.configure(one, at)
	r.known("orders", primaryAt(at))
	r.configure("mode = 'off'\n"+one, at)
	gone("off")
}

// What somebody has forgotten is told once more.
func TestRetell(t *testing.T) {
	at := labtest.LoopbackRedis(t)
	r := newFollowing(t, one, at)
	r.known("orders", primaryAt(at))
	labtest.Eventually(t, "a fact is told", func() (ok bool) { r.do(func() { ok = r.facts[at].State == verdict.StateOK }); return ok })
	r.do(func() { clear(r.facts) })
	r.loop.Retell()
	labtest.Eventually(t, "it is told again", func() (ok bool) { r.do(func() { ok = r.facts[at].State == verdict.StateOK }); return ok })
}

// What is wrong with credentials is told with its remedy, and over when it is mended. A
// password that has changed is taken at once.
func TestProblemsOfPasswords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	labtest.Must(t, os.WriteFile(file, []byte("wrong\n"), 0o644))
	at := labtest.LoopbackRedis(t, "--requirepass", "right")
	r := newFollowing(t, one+"interval = '1s'\npassword_file = %q", at, file)
	r.event(event.TargetProblem, "chmod")
	labtest.Must(t, os.Chmod(file, 0o600))
	r.event(event.TargetProblem, "password")
	labtest.Must(t, os.WriteFile(file, []byte("right\n"), 0o600))
	r.known("orders", primaryAt(at))
	r.event(event.TargetResumed, "")
	r.do(func() {
		for _, e := range r.events {
			if strings.Contains(e.Text, "right") {
				t.Errorf("the password is in %q", e.Text)
			}
		}
	})
}

// A replica is promoted: the primary changes, by the word of both.
func TestAPromotion(t *testing.T) {
	a := labtest.LoopbackRedis(t)
	b := labtest.LoopbackRedis(t, "--replicaof", fmt.Sprintf("127.0.0.1 %d", a.Port()))
	r := newFollowing(t, "[[target]]\nname = 'orders'\ntype = 'replication'\nseeds = ['%v', '%v']\n", a, b)
	r.known("orders", func(top *clusterview.Topology) bool { return primaryAt(a)(top) && len(top.Nodes) == 2 })
	tell := func(at netip.AddrPort, command ...string) {
		t.Helper()
		if _, err := r.loop.Dialer.Ask(t.Context(), r.loop.Table()[0].Conf, Server{Addr: at}, command); err != nil {
			t.Fatal(err)
		}
	}
	tell(b, "REPLICAOF NO ONE")
	tell(a, fmt.Sprintf("REPLICAOF 127.0.0.1 %d", b.Port()))
	r.known("orders", primaryAt(b))
	r.event(event.PrimaryChanged, "")
}
