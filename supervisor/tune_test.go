package supervisor_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/daemon"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor/tuner"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/view"
)

// tunePort is watched in the tests of tuning and in no others.
const tunePort = 16382

// tuneWorld is a lab in which somebody has a connection to Redis.
func tuneWorld(t *testing.T) *world {
	t.Helper()
	l, err := lab.New(lab.Config{Prefix: "rgt"})
	labtest.Must(t, err)
	t.Cleanup(func() { labtest.Must(t, l.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	w := &world{Lab: l, t: t, ctx: ctx}
	w.server, err = l.Server("a")
	labtest.Must(t, err)
	w.client, err = l.Client("c")
	labtest.Must(t, err)
	w.redis, err = w.server.Redis(ctx, lab.RedisConfig{Port: tunePort})
	labtest.Must(t, err)
	return w
}

func tuneConfig() config.Config {
	c := config.Default()
	c.Watch.Ports = []uint16{tunePort}
	c.Watch.Mode = config.Enforce
	c.Reap.Mode = config.Off
	return c
}

// sysctls are the values of a host of the lab.
func sysctls(t *testing.T, h *lab.Host) (v sysctl.Values) {
	t.Helper()
	labtest.Must(t, h.Do(func() (err error) { v, err = sysctl.FS{}.Read(); return err }))
	return v
}

func setRetries2(t *testing.T, h *lab.Host, n int) {
	t.Helper()
	labtest.Must(t, h.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_retries2", []byte(strconv.Itoa(n)), 0)
	}))
}

// about are the events of a host of the lab.
func about(h *lab.Host, types ...string) func(event.Event) bool {
	return func(e event.Event) bool {
		if e.Namespace != "rgt-"+h.Name {
			return false
		}
		for _, typ := range types {
			if string(e.Type) == typ {
				return true
			}
		}
		return false
	}
}

func (w *world) dial(h *lab.Host) net.Conn {
	w.t.Helper()
	c, err := h.Dial(w.ctx, "tcp4", w.redis.Addr().String())
	labtest.Must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// A client in a pod of its own hangs whatever the host is set to; tuned, the
// kernel ends its connection, even where nobody reaps.
func TestAPodIsTuned(t *testing.T) {
	w := tuneWorld(t)
	replica, err := w.Server("b")
	labtest.Must(t, err)
	_, err = replica.Redis(w.ctx, lab.RedisConfig{Port: tunePort})
	labtest.Must(t, err)
	idle, err := w.Client("idle")
	labtest.Must(t, err)
	g := startGuard(t, tuneConfig(), false)
	w.dial(replica) // a connection beside a Redis server
	pass(500 * time.Millisecond)
	began := time.Now()
	writer := w.run(w.client, lab.Writer, w.redis.Addr(), 1)
	e := g.wait(4*time.Second, "namespace.tuned", about(w.client, "namespace.tuned"))
	if took := e.Time.Sub(began); took > 2*time.Second {
		t.Errorf("tuned %v after the first connection", took)
	}
	if !strings.Contains(e.Text, "tcp_retries2 15 -> 5") || !strings.Contains(e.Text, "a busy connection here fails after 13.4 s") {
		t.Errorf("it says %q", e.Text)
	}
	for k, want := range tuner.Values(g.Policy().Config) {
		if got := sysctls(t, w.client)[k]; got != want {
			t.Errorf("%s is %d, want %d", k, got, want)
		}
	}
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	pass(time.Second)
	for _, h := range []*lab.Host{idle, w.server, replica} {
		if v := sysctls(t, h); v[sysctl.Retries2] != 15 {
			t.Errorf("%s was tuned: %v", h.Name, v)
		}
	}
	n, err := g.View(w.ctx)
	labtest.Must(t, err)
	states := map[string]view.TuneState{}
	for _, sp := range n.Spaces {
		if sp.Tune != nil {
			states[sp.Name] = sp.Tune.State
			if sp.Name == "rgt-b" && !strings.Contains(sp.Tune.Why, "Redis itself is here") {
				t.Errorf("of the replica it says %q", sp.Tune.Why)
			}
		}
	}
	if states["rgt-c"] != view.TuneTuned || states["rgt-b"] != view.TuneExempt || states["rgt-idle"] != "" {
		t.Errorf("the view says %v", states)
	}
	if f := w.failure(writer, lost); f.Errno != "ETIMEDOUT" || f.Time().Sub(lost) > 16*time.Second {
		t.Errorf("the client got %s after %v", f.Errno, f.Time().Sub(lost))
	}
}

// Why the host's values are not enough: a namespace that is made on a host which was
// tuned by hand has the kernel's own, and its clients hang when the host's have long
// had their error. What redisguard does about it, TestAPodIsTuned shows.
func TestAHostTunedByHandHelpsNoPod(t *testing.T) {
	w := tuneWorld(t)
	host, err := w.Client("host")
	labtest.Must(t, err)
	setRetries2(t, host, 5)
	cmd := exec.Command("unshare", "--net", "--pid", "--fork", "cat", "/proc/sys/net/ipv4/tcp_retries2")
	var out bytes.Buffer
	cmd.Stdout = &out
	inside, err := host.Start(w.ctx, cmd)
	labtest.Must(t, err)
	labtest.Must(t, inside.Wait())
	if got := strings.TrimSpace(out.String()); got != "15" {
		t.Fatalf("a namespace made on the host has tcp_retries2 %s", got)
	}
	onHost := w.run(host, lab.Writer, w.redis.Addr(), 1)
	inPod := w.run(w.client, lab.Writer, w.redis.Addr(), 1)
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if f := w.failure(onHost, lost); f.Errno != "ETIMEDOUT" || f.Time().Sub(lost) > 16*time.Second {
		t.Errorf("the host's client got %s after %v", f.Errno, f.Time().Sub(lost))
	}
	conns := w.connections(w.client)
	if len(conns) != 1 || conns[0].State != tcpstate.Established || conns[0].Timer != tcpstate.TimerRetransmit {
		t.Errorf("the pod's client does not hang: %+v", conns)
	}
	for _, e := range inPod.Events() {
		if e.Kind == lab.Error {
			t.Errorf("the pod's client got %s", e.Errno)
		}
	}
}

func TestTuningObserves(t *testing.T) {
	w := tuneWorld(t)
	w.dial(w.client)
	c := tuneConfig()
	c.Tune.Mode = config.Observe
	g := startGuard(t, c, false)
	e := g.wait(5*time.Second, "word of what would be done", about(w.client, "namespace.tuned"))
	if e.Outcome != "dry-run" || sysctls(t, w.client)[sysctl.Retries2] != 15 {
		t.Errorf("%+v, %v", e, sysctls(t, w.client))
	}
	if g.mode(policy.Tune) != config.Observe {
		t.Errorf("the mode is %v", g.mode(policy.Tune))
	}
	// The off switch is above all.
	labtest.Must(t, os.WriteFile(g.disable, nil, 0o600))
	c.Tune.Mode = config.Enforce
	g.Reconfigure(c)
	pass(2 * time.Second)
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 15 {
		t.Errorf("switched off it wrote %v", v)
	}
	labtest.Must(t, os.Remove(g.disable))
	g.wait(5*time.Second, "tuning", func(e event.Event) bool {
		return about(w.client, "namespace.tuned")(e) && e.Outcome == ""
	})
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 5 {
		t.Errorf("switched on it leaves %v", v)
	}
	// What [exclude] names is let go.
	c.Exclude.Commands = []string{"*"}
	g.Reconfigure(c)
	e = g.wait(5*time.Second, "restoring", about(w.client, "namespace.restored"))
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 15 || !strings.Contains(e.Text, "excluded") {
		t.Errorf("excluded: %q, %v", e.Text, v)
	}
}

func TestForeignValuesAndDrift(t *testing.T) {
	w := tuneWorld(t)
	w.dial(w.client)
	labtest.Must(t, w.client.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syn_retries", []byte("2"), 0) }))
	c := tuneConfig()
	g := startGuard(t, c, false)
	again := func() { // has it look now instead of in half a minute
		c.Tune.TCPFinTimeout = c.Tune.TCPFinTimeout%40 + 21
		g.Reconfigure(c)
	}
	e := g.wait(5*time.Second, "tuning", about(w.client, "namespace.tuned"))
	if !strings.Contains(e.Text, "left, since somebody has chosen it: tcp_syn_retries 2 -> 3") || sysctls(t, w.client)[sysctl.SynRetries] != 2 {
		t.Errorf("it says %q", e.Text)
	}
	drifts := func() int { return len(g.all(about(w.client, "namespace.drift"))) }
	setRetries2(t, w.client, 9)
	again()
	e = g.wait(5*time.Second, "drift", about(w.client, "namespace.drift"))
	if !strings.Contains(e.Text, "tcp_retries2 9 -> 5") || sysctls(t, w.client)[sysctl.Retries2] != 9 {
		t.Errorf("it says %q", e.Text)
	}
	again()
	pass(1500 * time.Millisecond)
	if n := drifts(); n != 1 {
		t.Errorf("the same drift was told %d times", n)
	}
	setRetries2(t, w.client, 5)
	again()
	g.wait(5*time.Second, "its end", about(w.client, "namespace.drift_over"))

	c.Tune.Drift = config.DriftRepair
	for i := range sysctl.MaxConflicts {
		setRetries2(t, w.client, 9)
		again()
		labtest.Within(t, 5*time.Second, "a repair", func() bool { return sysctls(t, w.client)[sysctl.Retries2] == 5 })
		labtest.Within(t, time.Second, "word of it", func() bool { return drifts() == 2+i })
	}
	setRetries2(t, w.client, 9)
	again()
	g.wait(5*time.Second, "giving up", func(e event.Event) bool {
		return about(w.client, "namespace.drift")(e) && strings.Contains(e.Text, "given up")
	})
	again()
	pass(1500 * time.Millisecond)
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 9 {
		t.Errorf("given up, and still it writes: %v", v)
	}
	// What is off finds nothing.
	c.Tune.Mode = config.Off
	g.Reconfigure(c)
	g.wait(5*time.Second, "the end of the finding", func(e event.Event) bool {
		return about(w.client, "namespace.drift_over")(e) && e.Text == "tuning is off"
	})
}

func TestTuningRefusesABadStateFile(t *testing.T) {
	w := tuneWorld(t)
	w.dial(w.client)
	dir := t.TempDir()
	path := tuner.Store(dir).Path
	labtest.Must(t, os.WriteFile(path, []byte(`{"version":99}`), 0o600))
	g := startGuardIn(t, tuneConfig(), dir, "")
	e := g.wait(5*time.Second, "tune.failed", func(e event.Event) bool { return e.Type == event.TuneFailed })
	if !strings.Contains(e.Text, "version 99") || !strings.Contains(e.Text, path) || e.Namespace != "host" {
		t.Errorf("it says %+v", e)
	}
	pass(1500 * time.Millisecond)
	if b, err := os.ReadFile(path); err != nil || string(b) != `{"version":99}` {
		t.Errorf("the file is %q, %v", b, err)
	}
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 15 {
		t.Errorf("without a place for the originals it writes: %v", v)
	}
}

func TestWithoutTheRightToWrite(t *testing.T) {
	w := tuneWorld(t)
	w.dial(w.client)
	// As in a container that is not privileged.
	root := filepath.Join(t.TempDir(), "net")
	labtest.Must(t, os.Mkdir(root, 0o755))
	labtest.Must(t, unix.Mount("/proc/sys/net", root, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	labtest.Must(t, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	g := startGuardIn(t, tuneConfig(), t.TempDir(), root)
	e := g.wait(5*time.Second, "tune.failed", func(e event.Event) bool { return e.Type == event.TuneFailed })
	if !strings.Contains(e.Text, "CAP_NET_ADMIN") {
		t.Errorf("no remedy: %q", e.Text)
	}
	g.wait(5*time.Second, "what would be done", about(w.client, "namespace.tuned"))
	pass(1500 * time.Millisecond)
	if n := len(g.all(func(e event.Event) bool { return e.Type == event.TuneFailed })); n != 1 || g.mode(policy.Tune) != config.Observe {
		t.Errorf("said %d times, mode %v", n, g.mode(policy.Tune))
	}
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 15 {
		t.Errorf("it wrote %v", v)
	}
}

func TestTuningRestoresOnStopAndPinsNothing(t *testing.T) {
	w := tuneWorld(t)
	w.dial(w.client)
	pod, err := w.Client("pod")
	labtest.Must(t, err)
	there := w.link(pod, "rgt-pod")
	gone := w.dial(pod)
	dir := t.TempDir()
	c := tuneConfig()
	c.Tune.RestoreOnStop = true
	t.Run("run", func(t *testing.T) {
		g := startGuardIn(t, c, dir, "")
		g.wait(5*time.Second, "tuning", about(w.client, "namespace.tuned"))
		g.wait(5*time.Second, "tuning", about(pod, "namespace.tuned"))
		// An orphan would keep its namespace.
		labtest.Must(t, gone.(*net.TCPConn).SetLinger(0))
		gone.Close()
		w.remove(pod, there)
		// A second one keeps its hands off.
		other, err := tuner.Store(dir).Claim()
		if !errors.Is(err, sysctl.ErrClaimed) {
			t.Errorf("a second one may tune: %v", err)
			other.Close()
		}
	})
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 15 || v[sysctl.KeepaliveTime] != 7200 {
		t.Errorf("after the stop: %v", v)
	}
	st, err := tuner.Store(dir).Load()
	labtest.Must(t, err)
	for _, r := range st.Records {
		// Where some processes cannot be seen, as on a CI machine that hides its
		// first one, nobody can say that a namespace is gone.
		if _, err := (proc.FS{}).NetNS(1); err == nil || r.Name != "rgt-pod" {
			t.Errorf("left in the state: %+v", r)
		}
	}
}

func TestRangesOfTheConfigAreTheKernels(t *testing.T) {
	for _, k := range sysctl.Keys() {
		for _, n := range []int{k.Def().Least - 1, k.Def().Least, k.Def().Most, k.Def().Most + 1} {
			if n < 0 {
				continue
			}
			_, err := config.Parse("f", []byte("[tune]\n"+k.Short()+" = "+strconv.Itoa(n)))
			if (err == nil) != (k.Check(n) == nil) {
				t.Errorf("%s = %d: config says %v, sysctl %v", k.Short(), n, err, k.Check(n))
			}
		}
	}
	c := config.Default()
	if v := tuner.Values(&c); len(v) != 5 || v[sysctl.Retries2] != 5 {
		t.Errorf("the defaults are %v", v)
	}
}

// What tuning would do can be asked without a daemon.
func TestPlanTuning(t *testing.T) {
	w := tuneWorld(t)
	w.dial(w.client)
	plans, _, err := (&daemon.Standalone{Config: tuneConfig(), StateDir: t.TempDir()}).PlanTuning(w.ctx)
	labtest.Must(t, err)
	found := false
	for _, p := range plans {
		if p.NS.Name == "rgt-c" {
			found = true
			if !p.Wanted || !sysctl.Changes(p.Items, nil) || p.Then.Busy > 15*time.Second || p.Now.Busy < 15*time.Minute {
				t.Errorf("%+v", p)
			}
		} else if p.Wanted && p.NS.Name != "host" {
			t.Errorf("somebody else's: %+v", p)
		}
	}
	if !found || sysctls(t, w.client)[sysctl.Retries2] != 15 {
		t.Errorf("%+v", plans)
	}
}

// Two guards do not tune one node, and without CAP_SYS_PTRACE one still can.
func TestOneOfTwoGuardsTunes(t *testing.T) {
	w := tuneWorld(t)
	w.dial(w.client)
	dir := t.TempDir()
	hold, err := tuner.Store(dir).Claim()
	labtest.Must(t, err)
	c := tuneConfig()
	g := startGuardIn(t, c, dir, "")
	e := g.wait(5*time.Second, "tune.failed", func(e event.Event) bool { return e.Type == event.TuneFailed })
	if !strings.Contains(e.Text, "another redisguard") || sysctls(t, w.client)[sysctl.Retries2] != 15 {
		t.Errorf("it says %q, %v", e.Text, sysctls(t, w.client))
	}
	labtest.Must(t, hold.Close())
	c.Tune.TCPFinTimeout = 30
	g.Reconfigure(c)
	g.wait(5*time.Second, "its turn", about(w.client, "namespace.tuned"))
	g.wait(time.Second, "tune.resumed", func(e event.Event) bool { return e.Type == event.TuneResumed })
}

func TestTuningWithoutPtrace(t *testing.T) {
	w := newWorld(t)
	ln, err := w.client.Listen(w.ctx, "tcp4", "0.0.0.0:8080") // as pods do
	labtest.Must(t, err)
	defer ln.Close()
	w.dial(w.client)
	d := startDaemon(t, daemonConfig{drop: []int{unix.CAP_SYS_PTRACE}})
	d.wait(10*time.Second, "tuning", func(l *logLine) bool {
		return l.field("msg") == "namespace.tuned" && l.field("namespace") == w.client.NSName
	})
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 5 {
		t.Errorf("it says so, and the values are %v", v)
	}
	if v := sysctls(t, w.server); v[sysctl.Retries2] != 15 {
		t.Errorf("the server's are %v", v)
	}
	// While it runs nobody restores; when it was killed anybody can.
	if _, _, err := (&daemon.Standalone{StateDir: d.state}).Restore(w.ctx, daemon.RestoreOptions{}); !errors.Is(err, sysctl.ErrClaimed) {
		t.Errorf("restoring beside the daemon: %v", err)
	}
	d.kill()
	_, _, err = (&daemon.Standalone{StateDir: d.state}).Restore(w.ctx, daemon.RestoreOptions{})
	labtest.Must(t, err)
	if v := sysctls(t, w.client); v[sysctl.Retries2] != 15 || v[sysctl.KeepaliveTime] != 7200 {
		t.Errorf("restored after a kill: %v", v)
	}
}
