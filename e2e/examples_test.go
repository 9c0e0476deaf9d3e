//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
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
	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// example says how a program of examples/ becomes one that runs.
type example struct {
	tools []string
	build [][]string // commands, in a copy of its folder
	run   []string   // there as well
}

var java = example{
	tools: []string{"java", "mvn"},
	build: [][]string{{"mvn", "--quiet", "--batch-mode", "compile"}},
	run:   []string{"java", "-cp", "target/classes:target/dependency/*", "Example"},
}

// root is the folder of this module.
var root = func() string {
	dir, err := filepath.Abs("..")
	if err != nil {
		panic(err)
	}
	return dir
}()

var examples = map[string]example{
	"lettuce": java,
	"jedis":   java,
	"ioredis": {
		tools: []string{"node", "npm"},
		build: [][]string{{"npm", "install", "--no-package-lock", "--no-audit", "--no-fund"}},
		run:   []string{"node", "example.js"},
	},
	"redis-py": {
		tools: []string{"python3"},
		build: [][]string{{"python3", "-m", "venv", "venv"}, {"venv/bin/pip", "install", "--quiet", "-r", "requirements.txt"}},
		run:   []string{"venv/bin/python", "example.py"},
	},
	"go-redis": {
		tools: []string{"go"},
		build: [][]string{{"go", "mod", "edit", "-replace", "github.com/redisguard/redisguard=" + root}, {"go", "build", "-o", "example", "."}},
		run:   []string{"./example"},
	},
}

// built makes a copy of the files of folders, in which the example is ready to run.
func (x example) built(t testing.TB, folders ...string) string {
	t.Helper()
	for _, tool := range x.tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing; lab/setup.sh e2e installs it", tool)
		}
	}
	dir := t.TempDir()
	for _, folder := range folders {
		for _, e := range labtest.Must2(os.ReadDir(folder))(t) {
			if e.Type().IsRegular() { // not what was built there by hand
				b := labtest.Must2(os.ReadFile(filepath.Join(folder, e.Name())))(t)
				labtest.Must(t, os.WriteFile(filepath.Join(dir, e.Name()), b, 0o600))
			}
		}
	}
	for _, words := range x.build {
		cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", words, err, out)
		}
	}
	return dir
}

// app is a running program, and what it has written line by line.
type app struct {
	r *rig

	mu    sync.Mutex
	lines []string
}

// app runs a program that is built in dir among the clients.
func (r *rig) app(x example, dir string, seeds []netip.AddrPort, env ...string) *app {
	r.t.Helper()
	a := &app{r: r}
	cmd := exec.Command(x.run[0], x.run[1:]...)
	cmd.Dir = dir
	words := []string{}
	for _, s := range seeds {
		words = append(words, s.String())
	}
	cmd.Env = append(append(os.Environ(), "REDIS_SEEDS="+strings.Join(words, ","), "REDISGUARD_SOCKET="+r.socket), env...)
	take := func(line []byte) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.lines = append(a.lines, string(line))
	}
	cmd.Stdout, cmd.Stderr = lines(take), lines(take)
	labtest.Must2(r.apps.Start(r.ctx, cmd))(r.t)
	r.t.Cleanup(func() {
		if r.t.Failed() {
			told := slices.DeleteFunc(a.said(), func(s string) bool { return strings.HasPrefix(s, "ok ") })
			r.t.Logf("but for what went well, the program said:\n%s", strings.Join(told, "\n"))
		}
	})
	return a
}

// said is what it has written so far.
func (a *app) said() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.lines)
}

// next waits for a line after the first n, and returns how many there are up to it.
func (a *app) next(n int, within time.Duration, what string, match func(string) bool) (upTo int) {
	a.r.t.Helper()
	labtest.Within(a.r.t, within, "the program says "+what, func() bool {
		i := slices.IndexFunc(a.said()[n:], match)
		upTo = n + i + 1
		return i >= 0
	})
	return upTo
}

// refreshed waits until its hook was called for an event of that type.
func (a *app) refreshed(n int, kind v1.EventType) (upTo int) {
	a.r.t.Helper()
	line := "refreshed " + string(kind)
	return a.next(n, 20*time.Second, line, func(s string) bool { return s == line })
}

// works waits for a good answer of the shard that is the first to third part of the slots.
func (a *app) works(n, shard int) (upTo int) {
	a.r.t.Helper()
	return a.next(n, 20*time.Second, fmt.Sprintf("that shard %d answers", shard), func(s string) bool {
		key, ok := strings.CutPrefix(s, "ok ")
		return ok && shardOf(key) == shard
	})
}

func shardOf(key string) int { return int(reply.Slot(key)) * 3 / 16384 }

// pod is a host with a node of a cluster, whose state is in the file conf.
func (r *rig) pod(name, conf string, port uint16) *lab.Redis {
	r.t.Helper()
	h := labtest.Must2(r.Server(name))(r.t)
	return labtest.Must2(h.Redis(r.ctx, lab.RedisConfig{Path: labtest.RedisServer(), Port: port, Args: []string{
		"--cluster-enabled", "yes", "--cluster-config-file", conf, "--cluster-announce-ip", h.Addr.String(),
		"--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0",
	}}))(r.t)
}

// pods makes a cluster of six pods; state is where the files of their nodes are.
func (r *rig) pods(port uint16) (redis []*lab.Redis, state []string) {
	r.t.Helper()
	dir := r.t.TempDir()
	for i := range 6 {
		state = append(state, filepath.Join(dir, fmt.Sprintf("nodes-%d.conf", i)))
		redis = append(redis, r.pod(fmt.Sprintf("r%d", i+1), state[i], port))
	}
	r.join(redis, map[*lab.Redis]string{}, 3, port)
	return redis, state
}

// replace starts a new pod with the identity of one that is gone, at an address of its own.
func (r *rig) replace(state string, port uint16) *lab.Redis {
	r.t.Helper()
	carried := state + ".carried"
	labtest.Must(r.t, os.WriteFile(carried, labtest.Must2(os.ReadFile(state))(r.t), 0o600))
	return r.pod("r7", carried, port)
}

// Each example goes on without redisguard, follows it as soon as it is there, calls its client's
// hook when a pod is replaced, and resumes after a break.
func TestExamples(t *testing.T) {
	names := []string{"go-redis", "ioredis", "jedis", "lettuce", "redis-py"}
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, port := examples[name], portsFrom+51+uint16(i)
			dir := x.built(t, filepath.Join("..", "examples", name))
			r := newRig(t, "x"+name[:1])
			redis, state := r.pods(port)
			seeds := []netip.AddrPort{redis[0].Addr(), redis[1].Addr(), redis[2].Addr()}
			a := r.app(x, dir, seeds)
			for shard := range 3 {
				a.works(0, shard)
			}

			n := len(a.said())
			r.guard(targetText("carts", seeds, fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
			r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
			a.refreshed(n, v1.Synced)
			r.settled() // a stream follows within 2 s what its pod is connected to

			n, m, begin := len(a.said()), len(r.told()), time.Now()
			labtest.Must(t, redis[1].Host().Vanish())
			e, m := r.next(m, 20*time.Second, v1.EventPrimaryChanged, nil)
			n = a.refreshed(n, v1.EventPrimaryChanged)
			t.Logf("power-cut: changed after %v, and the hook called %v later", e.Time.Sub(begin), time.Since(e.Time))
			n = a.works(n, 1)
			t.Logf("power-cut: a good answer %v after the event", time.Since(e.Time))
			r.replace(state[1], port)
			r.next(m, 20*time.Second, v1.EventNodeMoved, nil)
			n = a.refreshed(n, v1.EventNodeMoved)
			for shard := range 3 {
				a.works(n, shard)
			}

			n = len(a.said())
			labtest.Must(t, r.daemon.Kill())
			r.begin()
			n = a.refreshed(n, v1.Synced)
			for shard := range 3 {
				a.works(n, shard)
			}
			labtest.Must(t, r.reader.Kill()) // or it would ask as well
			labtest.Must(t, r.daemon.Kill())
			r.resumes(a)
		})
	}
}

// resumes puts a server of its own in the daemon's place, which answers by a script.
func (r *rig) resumes(a *app) {
	t := r.t
	t.Helper()
	script := []struct {
		after  string // the cursor that must be asked for, "*" for any
		status int
		lines  string
	}{
		{"*", 200, `{"type":"hello","heartbeat_ms":15000}
{"type":"slots.changed","cursor":"f-5","text":"the last event that the stream has"}
`},
		{"f-5", 410, `{"error":{"kind":"cursor_gone","message":"begin anew"}}`},
		{"", 200, `{"type":"hello","heartbeat_ms":15000}
{"type":"synced","cursor":"f-7"}
`},
		{"f-7", 200, `{"type":"hello","heartbeat_ms":15000}
{"type":"heartbeat","cursor":"f-8"}
`},
	}
	labtest.Must(t, os.RemoveAll(r.socket))
	ln := labtest.Must2(net.Listen("unix", r.socket))(t)
	n := len(a.said())
	var mu sync.Mutex
	var asked []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		i := len(asked)
		asked = append(asked, q.URL.Query().Get("after"))
		mu.Unlock()
		i = min(i, len(script)-1)
		w.Header().Set("Connection", "close")
		w.WriteHeader(script[i].status)
		fmt.Fprint(w, script[i].lines)
		if i == len(script)-1 {
			w.(http.Flusher).Flush()
			<-q.Context().Done()
		}
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ln) })
	defer wg.Wait()
	defer server.Close()
	labtest.Within(t, 20*time.Second, "the program has asked for all", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(asked) >= len(script)
	})
	for i, s := range script {
		if got := asked[i]; s.after == "*" && got == "" || s.after != "*" && got != s.after {
			t.Errorf("time %d the program asked for what is after %q, not after %q", i+1, got, s.after)
		}
	}
	upTo := a.refreshed(a.refreshed(n, v1.EventSlotsChanged), v1.Synced)
	calls := slices.DeleteFunc(a.said()[n:upTo], func(s string) bool { return !strings.HasPrefix(s, "refreshed ") })
	if len(calls) != 2 {
		t.Errorf("the hook was called more than once for an event: %q", calls)
	}
}
