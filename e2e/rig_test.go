//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

// Labs beside each other have the same addresses, and each daemon guards the whole node: so each
// test has ports of its own, and each run whose REDISGUARD_E2E_PORTS says so.
var portsFrom = func() uint16 {
	n := uint16(17000)
	if s := os.Getenv("REDISGUARD_E2E_PORTS"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil || n < 1024 || n > 30000 {
			panic("REDISGUARD_E2E_PORTS is no port from 1024 to 30000: " + s)
		}
	}
	return n
}()

func TestMain(m *testing.M) {
	lab.MaybeChild()
	if words := os.Getenv(tlsClientEnv); words != "" {
		if err := runTLSClient(strings.Fields(words)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	labtest.Main(m)
}

// writer is a function that takes what is written.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

// lines hands on what is written line by line.
func lines(take func(line []byte)) writer {
	var rest []byte
	return func(b []byte) {
		for rest = append(rest, b...); ; {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				return
			}
			take(line)
			rest = after
		}
	}
}

// daemonProgram builds it, once.
var daemonProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "rgt")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "redisguard")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/redisguard").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(program)
})

// askedWithin is how long what follows from the next question to a server may take. A server is asked
// the more rarely, the fewer connections lead to it and the longer its answer took.
const askedWithin = 30 * time.Second

// rig is a lab with a daemon in it.
type rig struct {
	*lab.Lab
	t      testing.TB
	ctx    context.Context
	apps   *lab.Host // where clients are
	home   *lab.Host // where the daemon is, and those who ask it
	daemon *lab.Process
	reader *lab.Process // reads the events for told

	program, socket, conf string // of the daemon

	hosts   int // servers so far
	configs map[*lab.Redis]lab.RedisConfig

	mu     sync.Mutex
	events []v1.Event
	log    bytes.Buffer
}

func newRig(t testing.TB, name string) *rig {
	t.Helper()
	r := &rig{t: t, configs: map[*lab.Redis]lab.RedisConfig{}, Lab: labtest.Must2(lab.New(lab.Config{Prefix: fmt.Sprintf("rge%d%s", portsFrom/1000, name)}))(t)}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	r.ctx = ctx
	r.apps = labtest.Must2(r.Lab.Client("apps"))(t)
	dir := t.TempDir()
	r.program, r.socket, r.conf = filepath.Join(dir, "redisguard"), filepath.Join(dir, "s", "sock"), filepath.Join(dir, "redisguard.toml")
	return r
}

// servers makes hosts, each with a Redis.
func (r *rig) servers(n int, cfg lab.RedisConfig) (list []*lab.Redis) {
	r.t.Helper()
	for range n {
		list = append(list, r.server(cfg))
	}
	return list
}

// server makes a host with a Redis, whose data outlive the process.
func (r *rig) server(cfg lab.RedisConfig) *lab.Redis {
	r.t.Helper()
	cfg.Path, cfg.Args = labtest.RedisServer(), append(slices.Clone(cfg.Args), "--dir", r.t.TempDir())
	r.hosts++
	h := labtest.Must2(r.Server(fmt.Sprintf("r%d", r.hosts)))(r.t)
	s := labtest.Must2(h.Redis(r.ctx, cfg))(r.t)
	r.configs[s] = cfg
	return s
}

// cut has the host of a server lose its power.
func (r *rig) cut(s *lab.Redis) {
	r.t.Helper()
	labtest.Must(r.t, s.Host().Vanish())
	labtest.Must(r.t, s.Kill())
}

// comeBack has a server whose host lost its power start again, there.
func (r *rig) comeBack(s *lab.Redis) *lab.Redis {
	r.t.Helper()
	labtest.Must(r.t, s.Host().Return())
	return r.startAgain(s, s.Host())
}

// startAgain starts a server with the data of one that was killed.
func (r *rig) startAgain(s *lab.Redis, h *lab.Host) *lab.Redis {
	r.t.Helper()
	cfg := r.configs[s]
	next := labtest.Must2(h.Redis(r.ctx, cfg))(r.t)
	r.configs[next] = cfg
	return next
}

// do runs a command that must not fail.
func (r *rig) do(s *lab.Redis, words ...string) any {
	r.t.Helper()
	v, err := s.Do(r.ctx, words...)
	if err != nil {
		r.t.Fatalf("%q at %v: %v", words, s.Addr(), err)
	}
	return v
}

// guard starts the daemon for targets, with nothing watched beside them.
func (r *rig) guard(targets string) {
	t := r.t
	t.Helper()
	labtest.Must(t, os.WriteFile(r.program, labtest.Must2(daemonProgram())(t), 0o755))
	level := cmp.Or(os.Getenv("REDISGUARD_E2E_LOG"), "info")
	text := fmt.Sprintf("profile = \"fast\"\n[log]\nlevel = %q\n[watch]\nports = []\n[tune]\nmode = \"off\"\n[api]\nsocket = %q\nadmin_socket = \"\"\n%s", level, r.socket, targets)
	labtest.Must(t, os.WriteFile(r.conf, []byte(text), 0o600))
	r.home = labtest.Must2(r.Lab.Client("guard"))(t)
	t.Cleanup(func() {
		if t.Failed() {
			for _, c := range r.connections() {
				var x v1.Explanation
				_ = r.ask(&x, "explain", c.ID)
				t.Logf("%s %s to %s, %v, reapable %v %s: %s %+v", c.Namespace, c.Local, c.Endpoint, c.Process, c.Reapable, c.WhyNot, x.Summary, x.Story)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Logf("the daemon:\n%s", r.log.String())
		}
	})
	r.begin()
	events := exec.Command(r.program, "events", "--json", "--socket", r.socket)
	events.Stdout = lines(func(line []byte) {
		var e v1.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	})
	r.reader = labtest.Must2(r.home.Start(r.ctx, events))(t)
	labtest.Within(t, 20*time.Second, "the events are followed", func() bool { return len(r.told()) > 0 })
}

// begin starts the daemon, for the first time or anew.
func (r *rig) begin() {
	r.t.Helper()
	script := `set -e
for d in redisguard redisguard-admin redisguard-state; do mkdir -p /run/$d; mount -t tmpfs tmpfs /run/$d; done
exec "$0" run --config "$1"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", script, r.program, r.conf)
	take := writer(func(b []byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.log.Write(b)
	})
	cmd.Stdout, cmd.Stderr = take, take
	r.daemon = labtest.Must2(r.home.Start(r.ctx, cmd))(r.t)
	labtest.Within(r.t, 20*time.Second, "the daemon answers", func() bool { return r.ask(nil, "status") == nil })
}

// ask runs the command line beside the daemon, and reads what it writes. Who asks from another
// network namespace than the daemon's is taken for a pod, and sees only what is its own.
func (r *rig) ask(into any, args ...string) error {
	cmd := exec.Command(r.program, append(args, "--json", "--socket", r.socket)...)
	var out bytes.Buffer
	cmd.Stdout = &out
	p, err := r.home.Start(r.ctx, cmd)
	if err == nil {
		err = p.Wait()
	}
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(out.Bytes(), into)
}

// connections are those that the daemon knows.
func (r *rig) connections() (list []v1.Connection) {
	labtest.Must(r.t, r.ask(&list, "connections"))
	return list
}

// told are the events so far.
func (r *rig) told() []v1.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// next waits for an event after the first n, and returns it and how many there are up to it.
func (r *rig) next(n int, within time.Duration, kind v1.EventType, match func(*v1.Event) bool) (e v1.Event, upTo int) {
	r.t.Helper()
	labtest.Within(r.t, within, "the event "+string(kind), func() bool {
		for i, x := range r.told() {
			if i >= n && x.Type == kind && (match == nil || match(&x)) {
				e, upTo = x, i+1
				return true
			}
		}
		return false
	})
	return e, upTo
}

// reaped are the connections that were ended after the first n events, by their local address,
// and by which rule.
func (r *rig) reaped(n int) map[string]v1.Event {
	all := map[string]v1.Event{}
	for i, e := range r.told() {
		if i >= n && e.Type == v1.EventConnectionReaped && e.Connection != nil {
			all[e.Namespace+" "+e.Connection.Local] = e
		}
	}
	return all
}

// up waits until a target is known, and returns it.
func (r *rig) up(name string, ok func(*v1.Target) bool) (x v1.Target) {
	r.t.Helper()
	defer func() {
		if r.t.Failed() {
			r.t.Logf("the target is %+v", x)
		}
	}()
	labtest.Within(r.t, askedWithin, "target "+name+" is up", func() bool {
		x = v1.Target{}
		return r.ask(&x, "targets", name) == nil && x.State == v1.TargetUp && (ok == nil || ok(&x))
	})
	return x
}

// start starts a client, of which the daemon knows all connections on return.
func (r *rig) start(cfg lab.ClientConfig) *lab.Client {
	r.t.Helper()
	cfg.Interval, cfg.ConnectTimeout, cfg.Backoff = 5*time.Millisecond, time.Second, 100*time.Millisecond
	c := labtest.Must2(r.apps.Client(r.ctx, cfg))(r.t)
	labtest.Must2(c.WaitEvent(r.ctx, func(e lab.Event) bool { return e.Kind == lab.Connected }))(r.t)
	labtest.Within(r.t, 20*time.Second, "the daemon knows its connection", func() bool {
		return slices.ContainsFunc(r.connections(), func(x v1.Connection) bool { return x.Local == c.Local(0).String() && x.Process != nil })
	})
	return c
}

// key is how reaped names the connection of a client.
func (r *rig) key(c *lab.Client) string { return r.apps.NSName + " " + c.Local(0).String() }

// asked waits until the daemon has asked a server again, n times: connections opened before are
// between two of its answers.
func (r *rig) asked(s *lab.Redis, n int) {
	r.t.Helper()
	calls := func() (n int) {
		text, _ := s.Do(r.ctx, "INFO", "commandstats")
		for line := range strings.Lines(fmt.Sprint(text)) {
			// In a Redis Cluster CLUSTER NODES is asked and not ROLE; before 7.0 all of CLUSTER is one.
			for _, command := range []string{"role", "cluster|nodes", "cluster"} {
				var calls int
				fmt.Sscanf(line, "cmdstat_"+command+":calls=%d", &calls)
				n += calls
			}
		}
		return n
	}
	begin := calls()
	labtest.Within(r.t, askedWithin, fmt.Sprintf("%v is asked again", s.Addr()), func() bool { return calls() >= begin+n })
}

// promotion tells when the first of some replicas says that it is the primary.
func (r *rig) promotion(replicas ...*lab.Redis) <-chan time.Time {
	at := make(chan time.Time, len(replicas))
	ctx, cancel := context.WithCancel(r.ctx)
	var wg sync.WaitGroup
	for _, s := range replicas {
		wg.Go(func() {
			for ctx.Err() == nil {
				asked := time.Now()
				if v, err := s.Do(ctx, "ROLE"); err == nil && strings.HasPrefix(fmt.Sprint(v), "[master") {
					at <- asked
					cancel()
				}
			}
		})
	}
	r.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return at
}

// announcement tells when the first Sentinel says that a replica was promoted.
func (r *rig) announcement(sentinels []*lab.Redis) <-chan time.Time {
	at := make(chan time.Time, len(sentinels))
	for _, s := range sentinels {
		c := labtest.Must2(s.Host().Dial(r.ctx, "tcp", s.Addr().String()))(r.t)
		labtest.Must2(c.Write([]byte("SUBSCRIBE +promoted-slave +config-update-from +switch-master\r\n")))(r.t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			in := resp.NewReader(bufio.NewReader(c), resp.Limits{})
			for {
				v, err := in.Read()
				if err != nil {
					return
				}
				if len(v.Elems) == 3 && v.Elems[0].Str == "message" {
					at <- time.Now()
					return
				}
			}
		}()
		r.t.Cleanup(func() {
			c.Close()
			<-done
		})
	}
	return at
}

// settled waits until the roles of now are known for longer than it may take until the kernel has
// told of a connect: of a connection that was opened before it is not known who has accepted it.
func (r *rig) settled() {
	begin := time.Now()
	labtest.Eventually(r.t, "roles are known for long", func() bool { return time.Since(begin) > 2*time.Second })
}

// only checks that of all connections just these were reaped, by that rule.
func (r *rig) only(n int, rules []string, want ...string) {
	r.t.Helper()
	got := r.reaped(n)
	for _, k := range want {
		if _, ok := got[k]; !ok {
			r.t.Errorf("%s was not reaped", k)
		}
	}
	for k, e := range got {
		if !slices.Contains(want, k) {
			r.t.Errorf("%s to %s was reaped: %s", k, e.Endpoint, e.Text)
		} else if e.Evidence == nil || !slices.Contains(rules, e.Evidence.Rule) {
			r.t.Errorf("%s was reaped for another reason: %s", k, e.Text)
		}
	}
}

func targetText(name string, seeds []netip.AddrPort, lines string) string {
	words := []string{}
	for _, s := range seeds {
		words = append(words, s.String())
	}
	return fmt.Sprintf("[[target]]\nname = %q\nfleet_size = 1\ninterval = \"1s\"\nseeds = [\"%s\"]\nallow = [\"10.77.0.0/16\"]\n%s", name, strings.Join(words, `", "`), lines)
}
