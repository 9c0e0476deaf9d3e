package targets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/resp"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// world is a running Loop with all that it has told.
type world struct {
	*Loop
	t      *testing.T
	now    atomic.Pointer[policy.Policy]
	dialer Dialer // nil: real connections

	mu      sync.Mutex
	members []policy.Members
	known   map[netip.AddrPort]verdict.EndpointFact // as the decision core has them
	told    []verdict.EndpointFact                  // all of them
	events  []event.Event
}

// follow runs a Loop on a config until the test ends.
func follow(t *testing.T, d Dialer, resolvConf, conf string) *world {
	t.Helper()
	w := &world{t: t, dialer: d, known: map[netip.AddrPort]verdict.EndpointFact{}}
	w.set(conf, nil)
	if d == nil {
		d = NewDialer(w.now.Load)
	}
	w.Loop = New(Config{
		Policy: w.now.Load, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), Dialer: d, ResolvConf: resolvConf,
		Members: func(m []policy.Members) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.members = slices.Clone(m)
		},
		Facts: func(_ context.Context, facts []verdict.EndpointFact) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, facts...)
			for _, f := range facts {
				if delete(w.known, f.Endpoint); !f.Forget {
					w.known[f.Endpoint] = f
				}
			}
		},
		Publish: func(e event.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// set puts another config into force.
func (w *world) set(conf string, change func(*policy.Inputs)) {
	w.t.Helper()
	c := labtest.Must2(config.Parse("test", []byte(conf)))(w.t)
	in := policy.Inputs{Config: &c, Override: config.Enforce}
	if change != nil {
		change(&in)
	}
	w.now.Store(policy.New(in, w.now.Load()))
}

// until waits for something, as somebody does who asks for the targets.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	labtest.Eventually(w.t, what, func() bool {
		for _, t := range w.now.Load().Config.Targets {
			w.Wake(t.Name)
		}
		return ok()
	})
}

// target is what the table says of one; zero if it is not there.
func (w *world) target(name string) (x view.Target) {
	for _, t := range w.Table() {
		if t.Conf.Name == name {
			return t
		}
	}
	return x
}

// isUp waits until the primary of a target is known.
func (w *world) isUp(name string, primary netip.AddrPort) {
	w.t.Helper()
	w.until(fmt.Sprintf("%v is the primary of %s", primary, name), func() bool {
		t := w.target(name)
		p := t.Topology.Primary()
		return p != nil && t.Topology.Known && p.Endpoints[0].Addr == primary
	})
}

// fact is what the core knows of an endpoint.
func (w *world) fact(a netip.AddrPort) (verdict.EndpointFact, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := w.known[a]
	return f, ok
}

// endpoints are the members of a target.
func (w *world) endpoints(target string) []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.members {
		if m.Target == target {
			return m.Endpoints
		}
	}
	return nil
}

// event is the first event of a type that says some words.
func (w *world) event(kind verdict.EventType, words ...string) *event.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.events {
		missing := func(word string) bool { return !strings.Contains(w.events[i].Text, word) }
		if w.events[i].Type == kind && !slices.ContainsFunc(words, missing) {
			return &w.events[i]
		}
	}
	return nil
}

// problem waits until a problem is told, and says its words.
func (w *world) problem(words ...string) string {
	w.t.Helper()
	w.until(fmt.Sprintf("a problem with %q", words), func() bool { return w.event(event.TargetProblem, words...) != nil })
	return w.event(event.TargetProblem, words...).Text
}

// fake is a Dialer to servers that are made up.
type fake struct {
	mu    sync.Mutex
	nodes map[netip.AddrPort]node
	asked map[netip.AddrPort]int
}

// node answers as Redis without Cluster and Sentinel.
type node struct {
	primary  netip.AddrPort // zero: it is one
	replicas []netip.AddrPort
	err      error // of dialling it
}

var errGone = errors.New("connection refused")

func newFake() *fake {
	return &fake{nodes: map[netip.AddrPort]node{}, asked: map[netip.AddrPort]int{}}
}

func (f *fake) put(nodes map[netip.AddrPort]node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.Copy(f.nodes, nodes)
}

// times is how often a server was asked; all of them if it is zero.
func (f *fake) times(a netip.AddrPort) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.IsValid() {
		return f.asked[a]
	}
	for _, times := range f.asked {
		n += times
	}
	return n
}

func (f *fake) Ask(_ context.Context, _ *config.TargetSection, s Server, commands []string) (all []resp.Value, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[s.Addr]++
	n, ok := f.nodes[s.Addr]
	switch {
	case !ok:
		return nil, errGone
	case n.err != nil:
		return nil, n.err
	}
	for _, c := range commands {
		all = append(all, n.reply(s.Addr, c))
	}
	return all, nil
}

func (f *fake) Subscribe(ctx context.Context, _ *config.TargetSection, _ Server, _ []string, _ func(), _ func(channel, payload string)) error {
	<-ctx.Done()
	return nil
}

func bulk(s string) resp.Value { return resp.Value{Kind: resp.Bulk, Str: s} }

func number(n int) resp.Value { return resp.Value{Kind: resp.Integer, Int: int64(n)} }

func list(of ...resp.Value) resp.Value { return resp.Value{Kind: resp.Array, Elems: of} }

func (n *node) reply(at netip.AddrPort, command string) resp.Value {
	role := "master"
	if n.primary.IsValid() {
		role = "slave"
	}
	switch command {
	case "HELLO":
		return resp.Value{Kind: resp.Map, Elems: []resp.Value{
			bulk("server"), bulk("redis"), bulk("version"), bulk("7.0.15"), bulk("proto"), number(3), bulk("mode"), bulk("standalone"), bulk("role"), bulk(role)}}
	case "INFO":
		return bulk(fmt.Sprintf("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:%040x\r\n# Clients\r\nconnected_clients:1\r\n# Replication\r\nrole:%s\r\nconnected_slaves:%d\r\n",
			at.Addr().As16(), role, len(n.replicas)))
	case "ROLE":
		if n.primary.IsValid() {
			return list(bulk("slave"), bulk(n.primary.Addr().String()), number(int(n.primary.Port())), bulk("connected"), number(1))
		}
		var replicas []resp.Value
		for _, r := range n.replicas {
			replicas = append(replicas, list(bulk(r.Addr().String()), bulk(fmt.Sprint(r.Port())), bulk("1")))
		}
		return list(bulk("master"), number(1), list(replicas...))
	}
	return resp.Value{Kind: resp.Error, Str: "ERR unknown command"}
}

// writer is an io.Writer of a function.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

var _ io.Writer = writer(nil)
