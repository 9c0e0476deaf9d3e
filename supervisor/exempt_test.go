package supervisor_test

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// connections lists what is connected from h to the watched port.
func (w *world) connections(h *lab.Host) (list []tcpstate.Connection) {
	w.t.Helper()
	labtest.Must(w.t, h.Do(func() error {
		var s tcpstate.Socket
		if err := s.Open(); err != nil {
			return err
		}
		defer s.Close()
		return s.Dump(tcpstate.Filter{States: tcpstate.Mask(tcpstate.Established), RemotePorts: []uint16{port, tunePort}}, func(c *tcpstate.Connection) error {
			list = append(list, *c)
			return nil
		})
	}))
	return list
}

// judged waits until each of the connections was judged and spared, for a reason
// with why in it.
func (g *guard) judged(why string, locals ...netip.AddrPort) {
	g.t.Helper()
	for _, local := range locals {
		e := g.wait(6*time.Second, "connection.judged of "+local.String(), func(e event.Event) bool {
			return e.Type == verdict.ConnectionJudged && e.Connection != nil && e.Connection.Local == local
		})
		if !strings.Contains(e.Text, "not reaped ("+why) || e.Evidence == nil {
			g.t.Errorf("%v was spared for another reason than %q: %s", local, why, e.Text)
		}
	}
}

func locals(c *lab.Client, conns int) (list []netip.AddrPort) {
	for i := range conns {
		list = append(list, c.Local(i))
	}
	return list
}

// copyFile makes a program of another name.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	labtest.Must(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	labtest.Must(t, err)
	_, err = io.Copy(out, in)
	labtest.Must(t, err)
	labtest.Must(t, out.Close())
}

func TestRedisItselfIsOnlyObserved(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	primary := w.redis.Addr()
	follow := []string{"--replicaof", primary.Addr().String(), strconv.Itoa(port), "--repl-timeout", "60"}

	// By its name and since it listens, on a port that nobody watches.
	_, err := w.client.Redis(w.ctx, lab.RedisConfig{Port: 17000, Args: follow})
	labtest.Must(t, err)
	// By what it listens on, under another name.
	path, err := exec.LookPath("redis-server")
	labtest.Must(t, err)
	path, err = filepath.EvalSymlinks(path) // Debian's is a link to redis-check-rdb
	labtest.Must(t, err)
	renamed := filepath.Join(t.TempDir(), "my-store")
	copyFile(t, path, renamed)
	_, err = w.client.Redis(w.ctx, lab.RedisConfig{Port: port, Args: follow, Path: renamed})
	labtest.Must(t, err)
	// By Sentinel's port and name. It would drop its own connections sooner
	// than the test ends if it called the primary down.
	_, err = w.client.Sentinel(w.ctx, lab.SentinelConfig{Primary: primary, DownAfter: time.Minute})
	labtest.Must(t, err)
	labtest.Within(t, 15*time.Second, "two links of replicas and two of the sentinel", func() bool { return len(w.connections(w.client)) >= 4 })

	busy := w.run(w.client, lab.Writer, primary, 2)
	mine := locals(busy, 2)
	var theirs []tcpstate.Connection
	for _, c := range w.connections(w.client) {
		if !slices.Contains(mine, c.Local) && c.Remote == primary {
			theirs = append(theirs, c)
		}
	}
	g.ready(2 + len(theirs))
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
		t.Errorf("the client beside them got %s after %v", e.Errno, e.Time().Sub(lost))
	}
	for _, c := range theirs {
		g.judged("Redis itself", c.Local)
	}
	pass(time.Second) // in which nothing may happen to them
	now := w.connections(w.client)
	for _, c := range theirs {
		if !slices.ContainsFunc(now, func(x tcpstate.Connection) bool { return x.Cookie == c.Cookie }) {
			t.Errorf("a connection of Redis itself is gone: %v", c.ID)
		}
	}
	for _, r := range g.reaped() {
		if !slices.Contains(mine, r.Connection.Local) && r.Connection.Comm != "lab-writer" {
			t.Errorf("reaped: %s of %s", r.Connection.Local, r.Connection.Comm)
		}
	}
	comms := map[string]bool{}
	for _, e := range g.all(ofType(verdict.ConnectionJudged)) {
		comms[e.Connection.Comm] = true
	}
	if !comms["my-store"] || len(comms) < 2 {
		t.Errorf("judged and spared were those of %v", comms)
	}
}

// inUnit moves a process into the cgroup of a systemd unit of the given name.
func inUnit(t *testing.T, pid int, unit string) {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(root, unit)
		labtest.Must(t, os.Mkdir(dir, 0o755))
		t.Cleanup(func() { // before the lab ends the process
			_ = os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
			labtest.Within(t, 5*time.Second, "the cgroup is removed", func() bool { return os.Remove(dir) == nil })
		})
		labtest.Must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
		return
	}
	t.Fatal("no cgroup hierarchy to make a unit in")
}

func TestWhatIsExcludedIsOnlyObserved(t *testing.T) {
	w := newWorld(t)
	c := base()
	c.Exclude.Commands = []string{"keep-*"}
	c.Exclude.Units = []string{"rgsv-*.service"}
	byCommand, err := w.client.Client(w.ctx, lab.ClientConfig{Addr: w.redis.Addr(), Conns: 2, Interval: 20 * time.Millisecond, Comm: "keep-me"})
	labtest.Must(t, err)
	labtest.Must(t, byCommand.Ready(w.ctx))
	byUnit := w.run(w.client, lab.Writer, w.redis.Addr(), 2)
	inUnit(t, byUnit.Pid(), fmt.Sprintf("rgsv-%d.service", os.Getpid()))
	other := w.run(w.client, lab.Writer, w.redis.Addr(), 2)
	g := startGuard(t, c, false)
	g.ready(6)
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if e := w.failure(other, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
		t.Errorf("the other client got %s after %v", e.Errno, e.Time().Sub(lost))
	}
	g.judged("excluded: command keep-me", locals(byCommand, 2)...)
	g.judged("excluded: unit rgsv-", locals(byUnit, 2)...)
	for _, c := range []*lab.Client{byCommand, byUnit} {
		if n := c.Totals().Errors; len(n) > 0 {
			t.Errorf("an excluded client had errors: %v", n)
		}
	}
}

func TestNothingIsReapedThatMayNotBe(t *testing.T) {
	w := newWorld(t)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	for _, test := range []struct {
		name   string
		change func(*config.Config)
		dryRun bool
		why    string // "": nothing is even seen
	}{
		{name: "a user by name", change: func(c *config.Config) { c.Exclude.Users = []string{"ro*t"} }, why: "excluded: user 0"},
		{name: "a user by number", change: func(c *config.Config) { c.Exclude.Users = []string{"0"} }, why: "excluded: user 0"},
		{name: "mode", change: func(c *config.Config) { c.Mode = config.Observe }, why: "mode is observe"},
		{name: "watch.mode", change: func(c *config.Config) { c.Watch.Mode = config.Observe }, why: "mode is observe"},
		{name: "reap.mode off", change: func(c *config.Config) { c.Reap.Mode = config.Off }, why: "mode is off"},
		{name: "policy", change: func(c *config.Config) { c.Policy.OnDown = config.ReactSignal }, why: "the policy is to signal only"},
		{name: "dry run", dryRun: true, why: "--dry-run"},
		{name: "mode off", change: func(c *config.Config) { c.Mode = config.Off }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := base()
			if test.change != nil {
				test.change(&c)
			}
			g := startGuard(t, c, test.dryRun)
			if test.why != "" {
				g.ready(3)
			}
			labtest.Must(t, w.server.Vanish())
			if test.why == "" {
				pass(1500 * time.Millisecond) // in which a guard that is on reaps
				if s := g.Figures(); s.Tracked != 0 || s.ProbesMade != 0 || s.Dumps != 0 {
					t.Errorf("it is off and busy: %+v", s)
				}
			} else {
				g.judged(test.why, locals(busy, 3)...)
			}
			labtest.Must(t, w.server.Return())
			w.allAnswered(busy, 3, time.Now())
			if r := g.all(ofType(verdict.ConnectionReaped)); len(r) > 0 {
				t.Errorf("reaped: %s", r[0].Text)
			}
		})
	}
	if n := busy.Totals().Errors; len(n) > 0 {
		t.Errorf("the client had errors: %v", n)
	}
}

func TestTheConfigChangesInAnOutage(t *testing.T) {
	w := newWorld(t)
	c := base()
	c.Reap.DownAfter = 1500 * time.Millisecond
	g := startGuard(t, c, false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	g.ready(3)
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	g.wait(3*time.Second, "connection.stalled", ofType(verdict.ConnectionStalled))
	observe := c
	observe.Mode = config.Observe
	g.Reconfigure(observe)
	g.judged("mode is observe", locals(busy, 3)...)
	if n := busy.Totals().Errors; len(n) > 0 {
		t.Errorf("the client had errors while the guard only observed: %v", n)
	}
	g.Reconfigure(c)
	changed := time.Now()
	if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(changed) > 2*time.Second {
		t.Errorf("enforcing again: %s after %v", e.Errno, e.Time().Sub(changed))
	}
}

func TestTheOffSwitch(t *testing.T) {
	w := newWorld(t)
	c := base()
	c.Reap.DownAfter = 2500 * time.Millisecond
	g := startGuard(t, c, false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	g.ready(3)
	labtest.Must(t, w.server.Vanish())
	g.wait(3*time.Second, "connection.stalled", ofType(verdict.ConnectionStalled))
	labtest.Must(t, os.WriteFile(g.disable, nil, 0o600))
	g.wait(2*time.Second, "mode.changed", func(e event.Event) bool {
		return e.Type == event.ModeChanged && strings.Contains(e.Text, "is off")
	})
	pass(3 * time.Second) // in which it would have reaped
	if n := busy.Totals().Errors; len(n) > 0 || g.Figures().Tracked != 0 {
		t.Errorf("it is off: errors %v, %d connections tracked", n, g.Figures().Tracked)
	}
	labtest.Must(t, w.server.Return())
	w.allAnswered(busy, 3, time.Now())
	attributed := g.Figures().Attributions
	labtest.Must(t, os.Remove(g.disable))
	g.wait(3*time.Second, "mode.changed", func(e event.Event) bool {
		return e.Type == event.ModeChanged && strings.Contains(e.Text, "is on")
	})
	// That its probes have worked there before, it remembers.
	labtest.Within(t, 10*time.Second, "it watches again", func() bool { return g.Figures().Tracked >= 3 && g.Figures().Attributions >= attributed+3 })
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 5*time.Second {
		t.Errorf("on again: %s after %v", e.Errno, e.Time().Sub(lost))
	}
}

// Connections that are there already when the config begins to ask for them must
// be found as well, with and without word from the kernel about new ones.
func TestLoopbackIsWatchedOnlyIfAsked(t *testing.T) {
	w := newWorld(t)
	w.run(w.server, lab.Writer, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), 2)
	w.run(w.server, lab.Writer, w.redis.Addr(), 2) // its own address: loopback in all but name
	w.run(w.client, lab.Writer, w.redis.Addr(), 1)
	for _, tracepoints := range []config.Tracepoints{config.TracepointsAuto, config.TracepointsOff} {
		t.Run("tracepoints "+tracepoints.String(), func(t *testing.T) {
			c := base()
			c.Watch.Tracepoints = tracepoints
			g := startGuard(t, c, false)
			g.ready(1)
			for range 10 {
				pass(200 * time.Millisecond) // two looks for connections
				if n := g.Figures().Tracked; n != 1 {
					t.Fatalf("%d connections tracked, want the one that is not local", n)
				}
			}
			tracked := func(n int64) {
				t.Helper()
				g.Reconfigure(c)
				labtest.Within(t, 3*time.Second, fmt.Sprintf("%d connections tracked", n), func() bool { return g.Figures().Tracked == n })
			}
			c.Watch.Loopback = true
			tracked(5)
			c.Watch.Loopback = false
			tracked(1)
			c.Watch.Ports = []uint16{port + 1}
			tracked(0)
			c.Watch.Ports = []uint16{port + 1, port}
			tracked(1)
			// None, and more than the kernel filters by.
			c.Watch.Ports = []uint16{}
			tracked(0)
			for p := range uint16(200) {
				c.Watch.Ports = append(c.Watch.Ports, port+100-p)
			}
			tracked(1)
		})
	}
}
