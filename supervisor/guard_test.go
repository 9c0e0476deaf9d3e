package supervisor_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/supervisor"
	"github.com/redisguard/redisguard/verdict"
)

// port is watched in these tests, and in no others: supervisors see the whole
// node, and must keep their hands off the labs of other packages' tests.
const port = 16379

// guard is a running supervisor with everything that it has told.
type guard struct {
	*supervisor.Supervisor
	t       *testing.T
	disable string // path of the off switch
	log     *logKeeper

	mu     sync.Mutex
	events []event.Event
	news   chan struct{} // closed and replaced at every event
}

// base is the config of these tests before a test changes it.
func base() config.Config {
	c := config.Default()
	c.Watch.Ports = []uint16{port}
	c.Watch.Mode = config.Enforce
	c.Profile = config.Fast
	// What the kernel does by itself is not what these tests are about.
	c.Tune.Mode = config.Off
	c.Arm.Mode = config.Off
	return c
}

// startGuard runs a supervisor until the test ends.
func startGuard(t *testing.T, c config.Config, dryRun bool) *guard {
	t.Helper()
	return start(t, supervisor.Options{Config: c, DryRun: dryRun, StateDir: t.TempDir()})
}

// startGuardIn runs one with a state directory and a place of the sysctls.
func startGuardIn(t *testing.T, c config.Config, state, sysctls string) *guard {
	t.Helper()
	return start(t, supervisor.Options{Config: c, StateDir: state, Sysctls: sysctls})
}

// start fills in what is left open.
func start(t *testing.T, opt supervisor.Options) *guard {
	t.Helper()
	hub := event.NewHub(100_000)
	sub := hub.Subscribe()
	g := &guard{t: t, disable: filepath.Join(t.TempDir(), "disable"), log: keepLog(t), news: make(chan struct{})}
	opt.Log, opt.Hub, opt.OffSwitch = slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})), hub, g.disable
	s, err := supervisor.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	g.Supervisor = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var collector sync.WaitGroup
	collector.Go(func() {
		defer sub.Close()
		for {
			e, err := sub.Next(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("events were lost: %v", err)
				}
				return
			}
			g.mu.Lock()
			g.events = append(g.events, e.Event)
			close(g.news)
			g.news = make(chan struct{})
			g.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the supervisor ended with: %v", err)
			}
		case <-time.After(2 * time.Second):
			t.Error("the supervisor did not end within 2 s")
		}
		collector.Wait()
	})
	return g
}

// logKeeper keeps the log and shows it when the test has failed.
type logKeeper struct {
	mu sync.Mutex
	b  strings.Builder
}

func keepLog(t *testing.T) *logKeeper {
	w := &logKeeper{}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if t.Failed() {
			fmt.Fprintln(os.Stderr, w.b.String())
		}
	})
	return w
}

func (w *logKeeper) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(b)
}

// lines returns the lines of the log that contain what.
func (w *logKeeper) lines(what string) (list []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(w.b.String()) {
		if strings.Contains(line, what) {
			list = append(list, line)
		}
	}
	return list
}

// loud are the lines that people are meant to see even if all is well.
func (w *logKeeper) loud() []string {
	return append(w.lines("level=WARN"), w.lines("level=ERROR")...)
}

// wait waits for an event that match accepts.
func (g *guard) wait(within time.Duration, what string, match func(event.Event) bool) event.Event {
	g.t.Helper()
	deadline := time.After(within)
	seen := 0
	for {
		g.mu.Lock()
		list, news := g.events, g.news
		g.mu.Unlock()
		for ; seen < len(list); seen++ {
			if match(list[seen]) {
				return list[seen]
			}
		}
		select {
		case <-news:
		case <-deadline:
			g.t.Fatalf("no %s within %v", what, within)
		}
	}
}

func ofType(t verdict.EventType) func(event.Event) bool {
	return func(e event.Event) bool { return e.Type == t }
}

// all returns what was told up to now.
func (g *guard) all(match func(event.Event) bool) (list []event.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.events {
		if match(e) {
			list = append(list, e)
		}
	}
	return list
}

// reaped returns the connections that were ended.
func (g *guard) reaped() []event.Event {
	return g.all(func(e event.Event) bool {
		return e.Type == verdict.ConnectionReaped && e.Outcome == string(verdict.ReapDone)
	})
}

// ready waits until n connections are tracked and attributed, and the first
// probe has shown that the endpoint can be probed.
func (g *guard) ready(n int) {
	g.t.Helper()
	labtest.Within(g.t, 15*time.Second, fmt.Sprintf("%d connections tracked and a probe made", n), func() bool {
		s := g.Figures()
		return s.Tracked >= int64(n) && s.Attributions >= int64(n) && g.Figures().Probes[verdict.Alive] >= 1
	})
}

// pass lets time pass in which nothing may happen; what must happen is waited
// for instead.
func pass(d time.Duration) { <-time.After(d) }

// world is a lab with a Redis server and a client host.
type world struct {
	*lab.Lab
	t      *testing.T
	ctx    context.Context
	server *lab.Host
	client *lab.Host
	redis  *lab.Redis
}

func newWorld(t *testing.T) *world {
	t.Helper()
	l, err := lab.New(lab.Config{Prefix: "rgsv"})
	labtest.Must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("cannot close the lab: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	w := &world{Lab: l, t: t, ctx: ctx}
	w.server, err = l.Server("a")
	labtest.Must(t, err)
	w.client, err = l.Client("c")
	labtest.Must(t, err)
	w.redis, err = w.server.Redis(ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	return w
}

// run starts a client and waits until all its connections have been answered.
func (w *world) run(h *lab.Host, kind lab.ClientKind, addr netip.AddrPort, conns int) *lab.Client {
	w.t.Helper()
	c, err := h.Client(w.ctx, lab.ClientConfig{Kind: kind, Addr: addr, Conns: conns, Interval: 20 * time.Millisecond})
	labtest.Must(w.t, err)
	labtest.Must(w.t, c.Ready(w.ctx))
	return c
}

// failure waits for the first error of a client after since.
func (w *world) failure(c *lab.Client, since time.Time) lab.Event {
	w.t.Helper()
	e, err := c.WaitEvent(w.ctx, func(e lab.Event) bool { return e.Kind == lab.Error && e.T >= since.UnixNano() })
	labtest.Must(w.t, err)
	return e
}

// back waits for the first answer after the event, on the same connection.
func (w *world) back(c *lab.Client, after lab.Event) lab.Event {
	w.t.Helper()
	e, err := c.WaitEvent(w.ctx, func(e lab.Event) bool {
		return e.Kind == lab.OK && e.First && e.Conn == after.Conn && e.T > after.T
	})
	labtest.Must(w.t, err)
	return e
}

// answered waits for an answer after since.
func (w *world) answered(c *lab.Client, since time.Time) lab.Event {
	w.t.Helper()
	e, err := c.WaitEvent(w.ctx, func(e lab.Event) bool { return e.Kind == lab.OK && e.T > since.UnixNano() })
	labtest.Must(w.t, err)
	return e
}

// mode is how far a job goes now.
func (g *guard) mode(job policy.Job) config.Mode {
	m, _ := g.Policy().Mode(job)
	return m
}
