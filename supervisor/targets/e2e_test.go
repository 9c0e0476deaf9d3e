//go:build e2e

package targets

import (
	"bufio"
	"bytes"
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

// These run the daemon itself, in a namespace from which the servers of a lab are reached.
// Labs beside each other have the same addresses, and each daemon guards the whole node: so each
// test has ports of its own.

// daemonProgram builds it, once.
var daemonProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "rgt")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "redisguard")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/redisguard").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(program)
})

// rig is a lab with a daemon in it.
type rig struct {
	*lab.Lab
	t      *testing.T
	ctx    context.Context
	apps   *lab.Host // where clients are
	home   *lab.Host // where the daemon is, and those who ask it
	daemon *lab.Process

	program, socket string

	mu     sync.Mutex
	events []v1.Event
}

func newRig(t *testing.T, name string) *rig {
	t.Helper()
	r := &rig{t: t, Lab: labtest.Must2(lab.New(lab.Config{Prefix: "rge" + name}))(t)}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	r.ctx = ctx
	r.apps = labtest.Must2(r.Lab.Client("apps"))(t)
	return r
}

// servers makes hosts, each with a Redis.
func (r *rig) servers(n int, cfg lab.RedisConfig) (list []*lab.Redis) {
	r.t.Helper()
	for i := range n {
		h := labtest.Must2(r.Server(fmt.Sprintf("r%d", i+1)))(r.t)
		list = append(list, labtest.Must2(h.Redis(r.ctx, cfg))(r.t))
	}
	return list
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
	dir := t.TempDir()
	program, socket, conf := filepath.Join(dir, "redisguard"), filepath.Join(dir, "s", "sock"), filepath.Join(dir, "redisguard.toml")
	labtest.Must(t, os.WriteFile(program, labtest.Must2(daemonProgram())(t), 0o755))
	text := fmt.Sprintf("profile = \"fast\"\n[watch]\nports = []\n[tune]\nmode = \"off\"\n[api]\nsocket = %q\nadmin_socket = \"\"\n%s", socket, targets)
	labtest.Must(t, os.WriteFile(conf, []byte(text), 0o600))
	script := `set -e
for d in redisguard redisguard-admin redisguard-state; do mkdir -p /run/$d; mount -t tmpfs tmpfs /run/$d; done
exec "$0" run --config "$1"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", script, program, conf)
	var log bytes.Buffer
	var mu sync.Mutex
	take := writer(func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		log.Write(b)
	})
	cmd.Stdout, cmd.Stderr = take, take
	r.home = labtest.Must2(r.Lab.Client("guard"))(t)
	r.daemon = labtest.Must2(r.home.Start(r.ctx, cmd))(t)
	r.program, r.socket = program, socket
	t.Cleanup(func() {
		if t.Failed() {
			for _, c := range r.connections() {
				t.Logf("%s %s to %s, %v, reapable %v %s", c.Namespace, c.Local, c.Endpoint, c.Process, c.Reapable, c.WhyNot)
			}
			mu.Lock()
			defer mu.Unlock()
			t.Logf("the daemon:\n%s", log.String())
		}
	})
	labtest.Within(t, 20*time.Second, "the daemon answers", func() bool { return r.ask(nil, "status") == nil })
	var line []byte
	events := exec.Command(program, "events", "--json", "--socket", socket)
	events.Stdout = writer(func(b []byte) {
		for line = append(line, b...); ; {
			one, rest, whole := bytes.Cut(line, []byte("\n"))
			if !whole {
				return
			}
			var e v1.Event
			if err := json.Unmarshal(one, &e); err != nil {
				t.Errorf("%q: %v", one, err)
			}
			r.mu.Lock()
			r.events = append(r.events, e)
			r.mu.Unlock()
			line = rest
		}
	})
	labtest.Must2(r.home.Start(r.ctx, events))(t)
	labtest.Within(t, 20*time.Second, "the events are followed", func() bool { return len(r.told()) > 0 })
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
	labtest.Within(r.t, 20*time.Second, "target "+name+" is up", func() bool {
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
			fmt.Sscanf(line, "cmdstat_role:calls=%d", &n)
		}
		return n
	}
	begin := calls()
	labtest.Within(r.t, 20*time.Second, fmt.Sprintf("%v is asked again", s.Addr()), func() bool { return calls() >= begin+n })
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

// Sentinel: a planned failover frees who was connected to the primary and nobody else; a
// power-cut whoever was there.
func TestSentinelDeployment(t *testing.T) {
	t.Parallel()
	const port, sentinelPort = 17011, 17012
	r := newRig(t, "s")
	redis := r.servers(3, lab.RedisConfig{Port: port, Args: []string{"--repl-diskless-sync-delay", "0"}})
	for _, s := range redis[1:] {
		r.do(s, "REPLICAOF", redis[0].Addr().Addr().String(), fmt.Sprint(port))
	}
	var sentinels []*lab.Redis
	var seeds []netip.AddrPort
	for _, s := range redis {
		x := labtest.Must2(s.Host().Sentinel(r.ctx, lab.SentinelConfig{Port: sentinelPort, Primary: redis[0].Addr(), Quorum: 2, FailoverTimeout: 6 * time.Second}))(t)
		sentinels, seeds = append(sentinels, x), append(seeds, x.Addr())
	}
	labtest.Within(t, 30*time.Second, "the sentinels know all", func() bool {
		for _, s := range sentinels {
			v := fmt.Sprint(r.do(s, "SENTINEL", "MASTER", "main"))
			if !strings.Contains(v, "num-slaves 2") || !strings.Contains(v, "num-other-sentinels 2") {
				return false
			}
		}
		return true
	})
	r.guard(targetText("orders", seeds, fmt.Sprintf("type = \"sentinel\"\nmaster_name = \"main\"\nallow_ports = [\"%d\", \"%d\"]\n[target.readers]\ncommands = [\"reader\"]\n", port, sentinelPort)))
	r.up("orders", func(x *v1.Target) bool { return len(x.Nodes) == 3 && len(x.Sentinels) == 3 })

	old := redis[0]
	r.settled()
	writing := r.start(lab.ClientConfig{Addr: old.Addr()})
	var freed []string
	for _, c := range []*lab.Client{writing, r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: old.Addr()}), r.start(lab.ClientConfig{Kind: lab.Idle, Addr: old.Addr()})} {
		freed = append(freed, r.key(c))
	}
	r.start(lab.ClientConfig{Kind: lab.Idle, Addr: old.Addr(), Comm: "reader"})
	for _, s := range redis[1:] {
		r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: s.Addr()})
	}
	r.asked(old, 2)

	begin, n := time.Now(), len(r.told())
	r.do(sentinels[0], "SENTINEL", "FAILOVER", "main")
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || e.Change.From != old.Addr().String() || e.Target != "orders" {
		t.Errorf("the event is %+v", e)
	}
	t.Logf("planned: changed after %v", e.Time.Sub(begin))
	// The Sentinels make it a replica 10 s later, and have it end its clients then. Operators do
	// so at once, and do not.
	begin = time.Now()
	to := netip.MustParseAddrPort(e.Change.To)
	r.do(old, "REPLICAOF", to.Addr().String(), fmt.Sprint(to.Port()))
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("planned: freed %v after it became a replica", time.Since(begin))
	r.asked(old, 3)
	r.only(n, []string{"demoted"}, freed...)

	// A power-cut of the new one.
	i := slices.IndexFunc(redis, func(s *lab.Redis) bool { return s.Addr().String() == e.Change.To })
	if i <= 0 {
		t.Fatalf("the new primary is %s", e.Change.To)
	}
	now := redis[i]
	freed = []string{}
	for _, kind := range []lab.ClientKind{lab.Writer, lab.Subscriber, lab.Blpop, lab.Idle} {
		freed = append(freed, r.key(r.start(lab.ClientConfig{Kind: kind, Addr: now.Addr(), Comm: "second"})))
	}
	for _, c := range r.connections() {
		if k := c.Namespace + " " + c.Local; c.Endpoint == now.Addr().String() && c.Namespace == r.apps.NSName && !slices.Contains(freed, k) {
			freed = append(freed, k) // the subscriber from before
		}
	}
	begin, n = time.Now(), len(r.told())
	labtest.Must(t, now.Host().Vanish())
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("power-cut: freed after %v", time.Since(begin))
	e, m := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || e.Change.From != now.Addr().String() || !slices.ContainsFunc(redis, func(s *lab.Redis) bool { return s != now && s.Addr().String() == e.Change.To }) {
		t.Errorf("the event is %+v", e)
	}
	r.next(m, 5*time.Second, v1.EventClusterUp, nil)
	r.only(n, []string{"down", "failed", "demoted", "flow", "connecting", "connecting-to-down"}, freed...)
	t.Logf("power-cut: changed after %v", e.Time.Sub(begin))
}

// Redis Cluster: a planned failover and the migration of slots end no connection; a power-cut
// those to the node that is gone.
func TestClusterDeployment(t *testing.T) {
	t.Parallel()
	const port = 17021
	r := newRig(t, "c")
	redis := r.servers(6, lab.RedisConfig{Port: port, Args: []string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"}})
	ids := map[*lab.Redis]string{}
	var seeds []netip.AddrPort
	for i, s := range redis {
		ids[s] = fmt.Sprint(r.do(s, "CLUSTER", "MYID"))
		if seeds = append(seeds, s.Addr()); i < 3 {
			first, last := []string{"0", "5461", "10923"}[i], []string{"5460", "10922", "16383"}[i]
			r.do(s, "CLUSTER", "ADDSLOTSRANGE", first, last)
			r.do(s, "CLUSTER", "SET-CONFIG-EPOCH", fmt.Sprint(i+1))
		}
	}
	for _, s := range redis[1:] {
		r.do(s, "CLUSTER", "MEET", redis[0].Addr().Addr().String(), fmt.Sprint(port))
	}
	for i, s := range redis[3:] {
		labtest.Eventually(t, "it has met its primary, and replicates it", func() bool {
			_, err := s.Do(r.ctx, "CLUSTER", "REPLICATE", ids[redis[i]])
			return err == nil
		})
	}
	labtest.Within(t, 20*time.Second, "the cluster is up", func() bool {
		return !slices.ContainsFunc(redis, func(s *lab.Redis) bool {
			return !strings.Contains(fmt.Sprint(r.do(s, "CLUSTER", "INFO")), "cluster_state:ok") ||
				strings.Count(fmt.Sprint(r.do(s, "CLUSTER", "NODES")), "slave") != 3
		}) && strings.Contains(fmt.Sprint(r.do(redis[3], "INFO", "replication")), "master_link_status:up")
	})
	r.guard(targetText("carts", seeds[:3], fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
	r.settled()
	clients := map[*lab.Redis][]string{}
	for _, s := range redis {
		clients[s] = append(clients[s], r.key(r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: s.Addr()})))
	}
	for _, kind := range []lab.ClientKind{lab.Writer, lab.Idle} {
		clients[redis[1]] = append(clients[redis[1]], r.key(r.start(lab.ClientConfig{Kind: kind, Addr: redis[1].Addr()})))
	}
	r.start(lab.ClientConfig{Addr: redis[0].Addr()})

	n := len(r.told())
	r.do(redis[3], "CLUSTER", "FAILOVER")
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || *e.Change != (v1.Change{From: redis[0].Addr().String(), To: redis[3].Addr().String()}) {
		t.Errorf("the event is %+v", e)
	}
	m := len(r.told())
	r.do(redis[2], "CLUSTER", "SETSLOT", "5000", "IMPORTING", ids[redis[3]])
	r.do(redis[3], "CLUSTER", "SETSLOT", "5000", "MIGRATING", ids[redis[2]])
	r.do(redis[2], "CLUSTER", "SETSLOT", "5000", "NODE", ids[redis[2]])
	r.do(redis[3], "CLUSTER", "SETSLOT", "5000", "NODE", ids[redis[2]])
	e, _ = r.next(m, 20*time.Second, v1.EventSlotsChanged, nil)
	if e.Change == nil || *e.Change != (v1.Change{From: redis[3].Addr().String(), To: redis[2].Addr().String()}) || !strings.Contains(e.Text, "slots=5000") {
		t.Errorf("the event is %+v", e)
	}
	r.only(n, nil)
	for _, e := range r.told()[m:] {
		if e.Type == v1.EventPrimaryChanged {
			t.Errorf("a migration is no failover: %s", e.Text)
		}
	}

	begin, n := time.Now(), len(r.told())
	labtest.Must(t, redis[1].Host().Vanish())
	freed := clients[redis[1]]
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("power-cut: freed after %v", time.Since(begin))
	e, _ = r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || *e.Change != (v1.Change{From: redis[1].Addr().String(), To: redis[4].Addr().String()}) {
		t.Errorf("the event is %+v", e)
	}
	t.Logf("power-cut: changed after %v", e.Time.Sub(begin))
	r.up("carts", func(x *v1.Target) bool { return x.Covered == 16384 })
	r.only(n, []string{"down", "failed", "flow", "connecting", "connecting-to-down"}, freed...)
}

// hostile answers each command of a connection by its name.
func (r *rig) hostile(h *lab.Host, port uint16, reply func(command string) []byte) netip.AddrPort {
	at := netip.AddrPortFrom(h.Addr, port)
	ln := labtest.Must2(h.Listen(r.ctx, "tcp4", at.String()))(r.t)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	r.t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				for in := resp.NewReader(bufio.NewReader(c), resp.Limits{}); ; {
					v, err := in.Read()
					if err != nil || len(v.Elems) == 0 {
						return
					}
					if _, err := c.Write(reply(strings.ToUpper(v.Elems[0].Str))); err != nil {
						return
					}
				}
			})
		}
	})
	return at
}

// Whatever a server says: memory and time are bounded, it is told, and nothing is touched.
func TestHostile(t *testing.T) {
	t.Parallel()
	const port = 17041
	r := newRig(t, "h")
	h := labtest.Must2(r.Server("r1"))(t)
	good := labtest.Must2(h.Redis(r.ctx, lab.RedisConfig{Port: port}))(t)
	info := func(mode string) []byte {
		text := fmt.Sprintf("# Server\r\nredis_version:7.0.15\r\nredis_mode:%s\r\nrun_id:%040d\r\n# Replication\r\nrole:master\r\n", mode, 7)
		return fmt.Appendf(nil, "$%d\r\n%s\r\n", len(text), text)
	}
	answers := func(role []byte) func(string) []byte {
		return func(command string) []byte {
			switch command {
			case "HELLO":
				return []byte("%2\r\n+proto\r\n:3\r\n+mode\r\n+standalone\r\n")
			case "INFO":
				return info("standalone")
			case "ROLE":
				return role
			}
			return []byte("+OK\r\n")
		}
	}
	var many bytes.Buffer
	const replicas = 8000
	fmt.Fprintf(&many, "*3\r\n$6\r\nmaster\r\n:1\r\n*%d\r\n", replicas)
	for i := range replicas {
		fmt.Fprintf(&many, "*3\r\n$%d\r\n198.51.%d.%d\r\n$5\r\n%5d\r\n$1\r\n1\r\n", len(fmt.Sprintf("198.51.%d.%d", i/250, i%250)), i/250, i%250, port)
	}
	seeds := map[string]netip.AddrPort{
		"outside": r.hostile(h, port+1, answers(many.Bytes())),
		"million": r.hostile(h, port+2, answers(append([]byte("*3\r\n$6\r\nmaster\r\n:1\r\n*1000000\r\n"), bytes.Repeat([]byte("*3\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\n1\r\n"), 1000)...))),
		"endless": r.hostile(h, port+3, answers(append([]byte("$1000000000\r\n"), bytes.Repeat([]byte("x"), 1<<20)...))),
		"nested":  r.hostile(h, port+4, answers(bytes.Repeat([]byte("*1\r\n"), 100000))),
		"slow":    r.hostile(h, port+5, func(string) []byte { return []byte("+") }),
	}
	text := targetText("good", []netip.AddrPort{good.Addr()}, "")
	for name, at := range seeds {
		text += targetText(name, []netip.AddrPort{at}, "")
	}
	r.guard(text)
	for _, at := range seeds {
		r.start(lab.ClientConfig{Kind: lab.Idle, Addr: at})
	}
	r.start(lab.ClientConfig{Addr: good.Addr()})
	r.up("good", nil)
	for name := range seeds {
		labtest.Within(t, 20*time.Second, "it is told what is wrong with "+name, func() bool {
			var x v1.Target
			labtest.Must(t, r.ask(&x, "targets", name))
			if len(x.Nodes) > 1 {
				t.Fatalf("%s has %d nodes", name, len(x.Nodes))
			}
			return len(x.Problems) > 0
		})
	}
	r.only(0, nil)
	status := string(labtest.Must2(os.ReadFile(fmt.Sprintf("/proc/%d/status", r.daemon.Pid())))(t))
	_, peak, _ := strings.Cut(status, "VmHWM:")
	kb := 0
	fmt.Sscan(peak, &kb)
	if kb == 0 || kb > 300<<10 {
		t.Errorf("it has taken %d kB", kb)
	}
	t.Logf("it has taken %d kB", kb)
}

// Behind a virtual address: who hangs on the old primary, which lives on as a replica, is freed;
// where replicas alternate nobody is.
func TestVirtualAddress(t *testing.T) {
	t.Parallel()
	const port, many = 17031, 17032
	r := newRig(t, "v")
	redis := r.servers(3, lab.RedisConfig{Port: port, Args: []string{"--repl-diskless-sync-delay", "0"}})
	first, second := redis[0], redis[1]
	for _, s := range redis[1:] {
		r.do(s, "REPLICAOF", first.Addr().Addr().String(), fmt.Sprint(port))
	}
	labtest.Within(t, 20*time.Second, "they replicate", func() bool {
		return strings.Contains(fmt.Sprint(r.do(first, "INFO", "replication")), "connected_slaves:2")
	})
	vip := labtest.Must2(r.VIP("one", netip.MustParseAddr("10.77.9.1"), port))(t)
	readers := labtest.Must2(r.VIP("many", netip.MustParseAddr("10.77.9.2"), many))(t)
	labtest.Must(t, vip.PointTo(first.Host(), port))
	labtest.Must(t, readers.PointTo(redis[1].Host(), port))
	r.guard(targetText("orders", []netip.AddrPort{vip.Addr}, "type = \"replication\"\n[target.policy]\non_replaced = \"reap\"\n") +
		targetText("readers", []netip.AddrPort{readers.Addr}, "[target.policy]\non_replaced = \"reap\"\non_demoted = \"reap\"\n"))
	r.up("orders", nil)
	r.settled()
	var freed []string
	for _, kind := range []lab.ClientKind{lab.Writer, lab.Subscriber, lab.Idle} {
		freed = append(freed, r.key(r.start(lab.ClientConfig{Kind: kind, Addr: vip.Addr})))
	}
	// Readers on each of the replicas, by one address.
	for range 2 {
		for _, s := range redis[1:] {
			labtest.Must(t, readers.PointTo(s.Host(), port))
			r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: readers.Addr, Comm: "reader"})
			r.settled()
		}
	}
	r.only(0, nil)

	begin, n := time.Now(), len(r.told())
	r.do(second, "REPLICAOF", "NO", "ONE")
	r.do(first, "REPLICAOF", second.Addr().Addr().String(), fmt.Sprint(port))
	labtest.Must(t, vip.PointTo(second.Host(), port))
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("freed after %v", time.Since(begin))
	r.only(n, []string{"replaced", "demoted"}, freed...)
}
