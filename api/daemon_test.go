package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

const labPort = 16380

// daemon is a running redisguard with its sockets where they are by default, in a
// mount namespace of its own, beside a lab with a server and a client.
type daemon struct {
	t           *testing.T
	pid         int
	read, admin string
	server      *lab.Host
	client      *lab.Client
	endpoint    string
	audit       string
	config      string
	contract    contract
	seen        map[string]bool // routes that gave a success
}

func startDaemon(t *testing.T) *daemon {
	t.Helper()
	dir := t.TempDir()
	d := &daemon{t: t, contract: openapi(t), seen: map[string]bool{}, audit: filepath.Join(dir, "audit"), config: filepath.Join(dir, "config.toml")}
	program := filepath.Join(dir, "redisguard")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/redisguard").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := lab.New(lab.Config{Prefix: "rga"})
	labtest.Must(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("cannot close the lab: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	d.server, err = l.Server("a")
	labtest.Must(t, err)
	client, err := l.Client("c")
	labtest.Must(t, err)
	redis, err := d.server.Redis(ctx, lab.RedisConfig{Port: labPort})
	labtest.Must(t, err)
	d.endpoint = redis.Addr().String()
	labtest.Must(t, os.WriteFile(d.config, fmt.Appendf(nil, "profile = \"fast\"\n[watch]\nports = [%d]\nmode = \"enforce\"\n[audit]\nfile = %q\n[[target]]\nname = \"orders\"\nseeds = [\"%v\"]\n",
		labPort, d.audit, labtest.LoopbackRedis(t)), 0o600))
	script := `set -e
for d in redisguard redisguard-admin redisguard-state; do mkdir -p /run/$d; mount -t tmpfs tmpfs /run/$d; done
exec "$0" run --config "$1"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", script, program, d.config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stderr = &log
	labtest.Must(t, cmd.Start())
	d.pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	root := fmt.Sprintf("/proc/%d/root", d.pid)
	d.read, d.admin = root+v1.DefaultSocket, root+v1.DefaultAdminSocket
	d.until("it is ready", func() bool {
		res, err := dialer(d.read).Get("http://x/readyz")
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == 200
	})
	// Those that are made before their eyes are known at once, however busy the
	// node is otherwise.
	d.client, err = client.Client(ctx, lab.ClientConfig{Kind: lab.Writer, Addr: redis.Addr(), Conns: 3, Interval: 20 * time.Millisecond})
	labtest.Must(t, err)
	labtest.Must(t, d.client.Ready(ctx))
	d.until("it knows three connections that it may reap", func() bool {
		st, ok := d.status()
		return ok && st.Counts.Reapable == 3
	})
	return d
}

// until waits for something.
func (d *daemon) until(what string, ok func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (d *daemon) status() (st v1.Status, ok bool) {
	res, err := dialer(d.read).Get("http://x/v1/status")
	if err != nil {
		return st, false
	}
	defer res.Body.Close()
	return st, json.NewDecoder(res.Body).Decode(&st) == nil && st.Counts != nil
}

// admit makes a request, holds the answer against the contract, and returns it.
func (d *daemon) ask(method, socket, path, body string, want int, headers ...string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://redisguard"+path, strings.NewReader(body))
	labtest.Must(d.t, err)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := dialer(socket).Do(req)
	labtest.Must(d.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	labtest.Must(d.t, err)
	if res.StatusCode != want {
		d.t.Errorf("%s %s: status %d, want %d: %s", method, path, res.StatusCode, want, b)
	}
	plain, _, _ := strings.Cut(path, "?")
	route := ""
	for _, rt := range routes() {
		if _, ok := rt.match(plain); ok && rt.method == method {
			route = rt.path
		}
	}
	if route == "" { // 404 and 405 are the same everywhere
		route, method = "/v1/explain/{id}", "GET"
		if res.StatusCode == http.StatusMethodNotAllowed {
			return string(b)
		}
	}
	d.contract.holds(d.t, method, route, res.StatusCode, res.Header.Get("Content-Type"), string(b))
	if res.StatusCode == 200 {
		d.seen[method+" "+route] = true
	}
	return string(b)
}

// TestDaemon runs a real daemon over real connections to a real server, through a
// whole outage, and holds every answer against the contract.
func TestDaemon(t *testing.T) {
	d := startDaemon(t)
	// The stream of the whole story, to be read at the end.
	stream := (&world{t: t, read: d.read}).follow(t, "")
	var lines []string
	cursor := ""
	next := func(types ...v1.EventType) v1.Event {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			if time.Now().After(deadline) {
				t.Fatalf("none of %v within 20 s, but\n%s", types, strings.Join(lines, "\n"))
			}
			text := stream.raw()
			lines = append(lines, text)
			e := into[v1.Event](t, text)
			if e.Cursor != "" {
				cursor = e.Cursor
			}
			if slices.Contains(types, e.Type) {
				return e
			}
		}
	}
	next(v1.Synced)
	began := cursor

	everything := func() {
		for _, path := range []string{
			"/healthz", "/readyz", "/metrics", "/v1/status", "/v1/connections", "/v1/connections?state=stalled", "/v1/connections?endpoint=" + d.endpoint,
			"/v1/endpoints", "/v1/namespaces", "/v1/findings", "/v1/findings?all=true",
		} {
			d.ask("GET", d.read, path, "", 200)
			d.ask("GET", d.admin, path, "", 200)
		}
	}
	everything()
	for path, status := range map[string]int{"/v1/nothing": 404, "/v1/explain/f99999": 404, "/v1/connections?x=1": 400, "/v1/events?after=e1-1": 410, "/healthz?x=1": 400} {
		d.ask("GET", d.read, path, "", status)
	}
	d.ask("GET", d.read, "/metrics", "", 403, "Origin", "http://x")
	d.ask("POST", d.read, "/v1/reap", "{}", 403)

	// Acts.
	conns := into[[]v1.Connection](t, d.ask("GET", d.read, "/v1/connections", "", 200))
	if len(conns) != 3 || conns[0].Process == nil || !conns[0].Reapable || conns[0].Endpoint != d.endpoint || conns[0].Namespace != "rga-c" {
		t.Fatalf("connections are %+v", conns)
	}
	act := func(body string, want v1.ReapOutcome, n int) v1.ReapResponse {
		t.Helper()
		r := into[v1.ReapResponse](t, d.ask("POST", d.admin, "/v1/reap", body, 200))
		if len(r.Results) != n {
			t.Errorf("%s: %+v", body, r)
		}
		for _, x := range r.Results {
			if x.Outcome != want {
				t.Errorf("%s: %+v, want %s", body, x, want)
			}
		}
		return r
	}
	one := `"connection":"` + conns[0].ID + `"`
	act(`{`+one+`,"dry_run":true,"force":true}`, v1.OutcomeDryRun, 1)
	if r := act(`{`+one+`}`, v1.OutcomeSpared, 1); !strings.Contains(r.Results[0].Why, "makes progress") {
		t.Errorf("spared since %q", r.Results[0].Why)
	}
	act(`{`+one+`,"force":true}`, v1.OutcomeReaped, 1)
	next(v1.EventConnectionReaped) // that it was spared
	reaped := next(v1.EventConnectionReaped)
	if reaped.Peer == nil || reaped.Peer.PID != os.Getpid() || reaped.Outcome != v1.OutcomeReaped || reaped.Connection.ID != conns[0].ID {
		t.Errorf("the event is %+v", reaped)
	}
	if e := next(v1.EventConnectionRecovered); e.TookMs <= 0 && e.Text == "" {
		t.Errorf("%+v", e)
	}
	d.ask("POST", d.admin, "/v1/reap", `{`+one+`}`, 404)
	audit, err := os.ReadFile(d.audit)
	labtest.Must(t, err)
	if !strings.Contains(string(audit), fmt.Sprintf(`"peer":{"pid":%d,"uid":0,`, os.Getpid())) {
		t.Errorf("who asked is not in the audit file:\n%s", audit)
	}
	m := into[v1.ModeStatus](t, d.ask("PUT", d.admin, "/v1/mode", `{"mode":"observe"}`, 200))
	if m.Effective != v1.ModeObserve || m.Override != v1.ModeObserve || m.Configured != v1.ModeEnforce {
		t.Errorf("the mode is %+v", m)
	}
	if e := next(v1.EventModeChanged); e.Mode == nil || *e.Mode != m || e.Peer == nil {
		t.Errorf("the event is %+v", e)
	}
	refused := act(`{"endpoint":"`+d.endpoint+`","force":true}`, v1.OutcomeRefused, 3)
	if !strings.Contains(refused.Results[0].Why, "mode is observe") {
		t.Errorf("refused since %q", refused.Results[0].Why)
	}
	m = into[v1.ModeStatus](t, d.ask("PUT", d.admin, "/v1/mode", `{"mode":"off"}`, 200))
	d.ask("POST", d.admin, "/v1/reap", `{"endpoint":"`+d.endpoint+`"}`, 422)
	if m.Effective != v1.ModeOff {
		t.Errorf("the mode is %+v", m)
	}
	everything()
	d.ask("PUT", d.admin, "/v1/mode", `{"mode":"enforce"}`, 200)
	d.until("it is back at three connections", func() bool {
		st, ok := d.status()
		return ok && st.Counts.Reapable == 3 && st.Mode.Effective == v1.ModeEnforce
	})
	if r := into[v1.ReloadResponse](t, d.ask("POST", d.admin, "/v1/reload", "", 200)); len(r.Changed) != 0 || r.File != d.config {
		t.Errorf("reloaded %+v", r)
	}
	good, err := os.ReadFile(d.config)
	labtest.Must(t, err)
	labtest.Must(t, os.WriteFile(d.config, append(slices.Clone(good), "\n[reap]\nrate = -1\n"...), 0o600))
	if text := d.ask("POST", d.admin, "/v1/reload", "", 422); !strings.Contains(text, "reap.rate") {
		t.Errorf("refused with %s", text)
	}
	if f := into[[]v1.Finding](t, d.ask("GET", d.read, "/v1/findings", "", 200)); len(f) != 1 || f[0].Code != v1.CodeConfigRefused {
		t.Errorf("findings are %+v", f)
	}
	labtest.Must(t, os.WriteFile(d.config, append(slices.Clone(good), "\n[reap]\nrate = 100\n"...), 0o600))
	d.ask("POST", d.admin, "/v1/reload", "", 200)
	d.until("who asked for the reload is in the audit file", func() bool {
		audit, err := os.ReadFile(d.audit)
		labtest.Must(t, err)
		return regexp.MustCompile(`"type":"config.changed".*"peer":\{"pid":` + strconv.Itoa(os.Getpid())).Match(audit)
	})
	d.until("the finding is over", func() bool {
		return len(into[[]v1.Finding](t, d.ask("GET", d.read, "/v1/findings", "", 200))) == 0
	})

	// A target.
	d.ask("GET", d.read, "/v1/targets/nosuch", "", 404)
	d.until("the target is known", func() bool {
		list := into[[]v1.Target](t, d.ask("GET", d.read, "/v1/targets", "", 200))
		return len(list) == 1 && list[0].Name == "orders" && list[0].State == v1.TargetUp
	})
	target := into[v1.Target](t, d.ask("GET", d.read, "/v1/targets/orders", "", 200))
	if target.Type != v1.TargetStandalone || len(target.Nodes) != 1 || target.Nodes[0].Role != v1.RolePrimary || target.Nodes[0].RunID == "" {
		t.Errorf("the target is %+v", target)
	}
	if line := d.ask("GET", d.read, "/v1/targets/orders/primary", "", 200); !strings.HasPrefix(line, target.Nodes[0].Endpoints[0]+" ") {
		t.Errorf("its primary is %q", line)
	}
	d.ask("GET", d.read, "/v1/targets/orders/slots", "", 400)
	if s := into[v1.SlotOwner](t, d.ask("GET", d.read, "/v1/targets/orders/slots?key=%7Bfoo%7Dbar", "", 200)); s.Slot != 12182 || s.Node == nil {
		t.Errorf("the owner is %+v", s)
	}
	if x := into[v1.Explanation](t, d.ask("GET", d.read, "/v1/explain/orders", "", 200)); x.Kind != "target" || x.Target == nil {
		t.Errorf("the explanation is %+v", x)
	}

	// An outage.
	next(v1.EventConfigChanged)
	labtest.Must(t, d.server.Vanish())
	down := next(v1.EventEndpointDown)
	if down.Endpoint != d.endpoint || down.Evidence == nil || down.Evidence.Rule != "down" || down.Namespace != "rga-c" {
		t.Errorf("the event is %+v", down)
	}
	gone := next(v1.EventConnectionReaped)
	everything()
	eps := into[[]v1.Endpoint](t, d.ask("GET", d.read, "/v1/endpoints", "", 200))
	if len(eps) != 1 || eps[0].Health != v1.EndpointDown || eps[0].Since == nil || eps[0].Paths[0].Finding != "f"+strconv.FormatUint(down.Seq, 10) {
		t.Errorf("endpoints are %+v", eps)
	}
	labtest.Must(t, d.server.Return())
	next(v1.EventEndpointUp)
	back := next(v1.EventConnectionRecovered)
	everything()
	all := into[[]v1.Finding](t, d.ask("GET", d.read, "/v1/findings?all=true", "", 200))
	over := slices.IndexFunc(all, func(f v1.Finding) bool { return f.Code == v1.CodeEndpointDown })
	if over < 0 || all[over].Open || all[over].Ended == nil {
		t.Errorf("findings are %+v", all)
	}
	for _, id := range []string{"f" + strconv.FormatUint(down.Seq, 10), gone.Connection.ID, gone.Cursor, strconv.FormatUint(gone.Seq, 10)} {
		x := into[v1.Explanation](t, d.ask("GET", d.read, "/v1/explain/"+id, "", 200))
		parts := map[v1.Part]bool{}
		for _, s := range x.Story {
			parts[s.Part] = true
		}
		if !parts[v1.PartJudged] || !parts[v1.PartDone] || !parts[v1.PartAfter] {
			t.Errorf("the story of %s has %v: %+v", id, parts, x)
		}
	}

	// Every line of the stream, and what a resumed one repeats of it.
	d.contract.holds(t, "GET", "/v1/events", 200, "application/x-ndjson", strings.Join(lines, "\n"))
	d.seen["GET /v1/events"] = true
	again := (&world{t: t, read: d.read}).follow(t, "?after="+began)
	again.next()
	for _, line := range lines {
		if e := into[v1.Event](t, line); e.Seq != 0 {
			if got := again.raw(); got != line {
				t.Errorf("resumed: got %s\nwant %s", got, line)
			}
		}
	}
	if back.Seq == 0 {
		t.Error("nobody came back")
	}
	for _, rt := range routes() {
		if !d.seen[rt.method+" "+rt.path] {
			t.Errorf("no success of %s %s was seen", rt.method, rt.path)
		}
	}
}

// TestWalkThrough runs docs/api.md as written.
func TestWalkThrough(t *testing.T) {
	d := startDaemon(t)
	doc, err := os.ReadFile("../docs/api.md")
	labtest.Must(t, err)
	blocks := regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
	if len(blocks) < 8 {
		t.Fatalf("only %d blocks", len(blocks))
	}
	key := regexp.MustCompile(`"([a-z_]+)":`)
	vars := "" // assignments, which later commands use
	for _, b := range blocks {
		for part := range strings.SplitSeq("\n"+b[1], "\n$ ") {
			command, shown, _ := strings.Cut(part, "\n")
			if strings.TrimSpace(command) == "" {
				continue
			}
			// In the daemon's mount namespace its sockets are where they are said
			// to be.
			cmd := exec.Command("nsenter", "--mount=/proc/"+strconv.Itoa(d.pid)+"/ns/mnt", "bash", "-o", "pipefail", "-c", vars+command)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("$ %s\n%v: %s", command, err, out)
				continue
			}
			if strings.HasPrefix(command, "EP=") {
				vars += command + "\n"
			}
			for _, k := range key.FindAllStringSubmatch(shown, -1) {
				// A daemon without a finding or a reap shows less.
				if !strings.Contains(string(out), k[0]) {
					t.Errorf("$ %s\nshows no %s:\n%s", command, k[0], out)
				}
			}
			if shown == "" && !strings.HasPrefix(command, "EP=") {
				t.Errorf("$ %s\nis without its output", command)
			}
		}
	}
}

// TestSocketActivation passes a listening socket on as systemd does, by name.
func TestSocketActivation(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "redisguard")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/redisguard").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	config := filepath.Join(dir, "config.toml")
	labtest.Must(t, os.WriteFile(config, fmt.Appendf(nil, "[watch]\nports = [%d]\n[api]\nsocket = \"/nonexistent/s\"\nadmin_socket = \"\"\n", labPort), 0o600))
	path := filepath.Join(dir, "given")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	labtest.Must(t, err)
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	labtest.Must(t, err)
	defer f.Close()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" run --config "$1"`, program, config)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=redisguard.sock")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stderr = &log
	labtest.Must(t, cmd.Start())
	status := 0
	for deadline := time.Now().Add(10 * time.Second); status != 200 && time.Now().Before(deadline); {
		if res, err := dialer(path).Get("http://x/readyz"); err == nil {
			status = res.StatusCode
			res.Body.Close()
		}
	}
	labtest.Must(t, cmd.Process.Signal(syscall.SIGTERM))
	labtest.Must(t, cmd.Wait())
	if status != 200 {
		t.Errorf("status %d\n%s", status, log.String())
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("the service manager's socket was removed")
	}
	if _, err := os.Stat("/nonexistent"); err == nil {
		t.Error("it made a socket of its own as well")
	}
}
