package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// port is none of the usual ones: this machine may be guarded.
const port = 17379

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(lab.Config{Prefix: fmt.Sprintf("rgcl%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { labtest.Must(t, l.Close()) })
	return l
}

// redisguard runs the command line here.
func redisguard(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = execute(args, nil, &out, &errs)
	return code, out.String(), errs.String()
}

// list runs `connections --json` on the host.
func list(t *testing.T, h *lab.Host, args ...string) (int, []listed) {
	t.Helper()
	code, out, errs := redisguard(t, append([]string{"connections", "--json", "--ports", fmt.Sprint(port), "--namespace", h.NSName}, args...)...)
	var found []listed
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&found); err != nil || found == nil {
		t.Fatalf("%v: exit code %d, %v\nstdout: %s\nstderr: %s", args, code, err, out, errs)
	}
	return code, found
}

func TestConnections(t *testing.T) {
	l := newLab(t)
	client, server := labtest.Must2(l.Client("c"))(t), labtest.Must2(l.Server("s"))(t)
	redis := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	writer := labtest.Must2(client.Client(labtest.Soon(t), lab.ClientConfig{Addr: redis.Addr(), Conns: 2, Interval: 5 * time.Millisecond, Mapped: true}))(t)
	idle := labtest.Must2(client.Client(labtest.Soon(t), lab.ClientConfig{Addr: redis.Addr6(), Kind: lab.Idle}))(t)
	labtest.Must(t, writer.Ready(labtest.Soon(t)))
	labtest.Must(t, idle.Ready(labtest.Soon(t)))

	// All is well.
	code, found := list(t, client)
	if code != ExitOK || len(found) != 3 {
		t.Fatalf("exit code %d, %+v", code, found)
	}
	remotes := map[string]int{}
	for _, c := range found {
		remotes[c.Endpoint]++
		pid := writer.Pid()
		if c.Endpoint == redis.Addr6().String() {
			pid = idle.Pid()
		}
		if c.Process == nil || c.Process.PID != pid || c.Holders != 1 {
			t.Errorf("%v is of %+v, want process %d", c.Local, c.Process, pid)
		}
		if c.Health != v1.HealthOK || c.StalledMs != 0 || c.State != v1.StateEstablished || c.HeardMs == nil || c.Namespace != client.NSName || c.ID == "" || c.RTTMicros == 0 {
			t.Errorf("%+v", c)
		}
	}
	if remotes[redis.Addr().String()] != 2 || remotes[redis.Addr6().String()] != 1 {
		t.Errorf("remotes %v: a mapped address is shown as the plain one", remotes)
	}
	code, out, _ := redisguard(t, "connections", "--ports", fmt.Sprint(port), "--namespace", client.NSName)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); code != ExitOK || len(lines) != 4 || !strings.HasPrefix(lines[0], "ID ") ||
		!strings.Contains(out, fmt.Sprintf("[%d]", idle.Pid())) || !strings.Contains(out, " established ") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if code, found := list(t, client, "--stalled"); code != ExitOK || len(found) != 0 {
		t.Errorf("exit code %d, stalled: %+v", code, found)
	}

	// Filters.
	for _, tt := range []struct {
		args []string
		want int
	}{
		{[]string{"--endpoint", redis.Addr().String()}, 2},
		{[]string{"--endpoint", "::ffff:" + server.Addr.String()}, 2},
		{[]string{"--endpoint", server.Addr6.String()}, 1},
		{[]string{"--endpoint", netip.AddrPortFrom(server.Addr, port+1).String()}, 0},
		{[]string{"--endpoint", server.Addr.Next().String()}, 0},
	} {
		if _, found := list(t, client, tt.args...); len(found) != tt.want {
			t.Errorf("%v: %d connections, want %d", tt.args, len(found), tt.want)
		}
	}
	for ports, want := range map[string]int{"7000,17379": 3, "7000,7001": 0} {
		var found []listed
		_, out, _ := redisguard(t, "connections", "--json", "--namespace", client.NSName, "--ports", ports)
		if err := json.Unmarshal([]byte(out), &found); err != nil || len(found) != want {
			t.Errorf("--ports %s: %v, %d connections, want %d", ports, err, len(found), want)
		}
	}
	// An endpoint's port is looked for though it is not a watched one.
	if _, out, _ := redisguard(t, "connections", "--endpoint", redis.Addr().String()); strings.Count(out, redis.Addr().String()) != 2 {
		t.Errorf("by endpoint:\n%s", out)
	}
	// Seen from the server everything goes to other ports; the lab's own PING
	// may have come over loopback.
	if _, found := list(t, server); len(found) != 0 {
		t.Errorf("on the server: %+v", found)
	}

	// The server is gone. A new client meets silence as well.
	labtest.Must(t, server.Vanish())
	labtest.Must2(client.Client(labtest.Soon(t), lab.ClientConfig{Addr: redis.Addr()}))(t)
	deadline := time.Now().Add(15 * time.Second)
	for {
		code, found = list(t, client, "--stalled")
		if len(found) == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for three stalled connections: %+v", found)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if code != ExitFindings {
		t.Errorf("exit code %d, want %d", code, ExitFindings)
	}
	for i, c := range found {
		if c.Health != v1.HealthStalled || c.Retransmits < 1 || c.Process.PID == 0 {
			t.Errorf("%+v", c)
		}
		if i > 0 && c.StalledMs > found[i-1].StalledMs {
			t.Errorf("not the longest first: %d after %d ms", c.StalledMs, found[i-1].StalledMs)
		}
		switch c.State {
		case v1.StateConnecting:
			if c.HeardMs != nil {
				t.Errorf("heard before the first answer: %+v", c)
			}
		case v1.StateEstablished:
			if c.HeardMs == nil || *c.HeardMs < c.StalledMs || *c.UnsentBytes == 0 {
				t.Errorf("%+v", c)
			}
		}
	}
	// The idle one shows nothing, and comes last.
	if code, found = list(t, client); code != ExitOK || len(found) != 4 || found[3].Endpoint != redis.Addr6().String() || found[3].Health != v1.HealthOK {
		t.Errorf("exit code %d, %+v", code, found)
	}
}

func TestConnectionsInNoNamespace(t *testing.T) {
	code, out, errs := redisguard(t, "connections", "--namespace", "there-is-none")
	if code != ExitFailed || out != "" || !strings.Contains(errs, "no network namespace is called there-is-none") {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
}

// TestWithoutPrivileges runs the commands as the user nobody, which may look at its own
// namespace and no other.
func TestWithoutPrivileges(t *testing.T) {
	l := newLab(t)
	client := labtest.Must2(l.Client("c"))(t)
	dir := labtest.Must2(os.MkdirTemp("", "rgcl"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	labtest.Must(t, os.Chmod(dir, 0o755))
	program := filepath.Join(dir, "redisguard")
	labtest.Must(t, os.WriteFile(program, labtest.Must2(os.ReadFile(labtest.Must2(os.Executable())(t)))(t), 0o755))
	nobody := func(args ...string) (int, string, string) {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return exit.ExitCode(), out.String(), errs.String()
		}
		labtest.Must(t, err)
		return 0, out.String(), errs.String()
	}

	code, out, errs := nobody("connections")
	if code != ExitOK || !strings.HasPrefix(out, "ID ") || !strings.Contains(errs, "CAP_SYS_PTRACE") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	code, out, errs = nobody("connections", "--namespace", client.NSName)
	if code != ExitNotPermitted || !strings.Contains(errs, "cannot list connections of network namespace "+client.NSName) || !strings.Contains(errs, "CAP_SYS_ADMIN") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if n := strings.Count(errs, "\n"); n > 5 {
		t.Errorf("%d lines of errors:\n%s", n, errs)
	}
	code, out, _ = nobody("doctor", "--json")
	var findings []jsonFinding
	labtest.Must(t, json.Unmarshal([]byte(out), &findings))
	status := map[string]string{}
	for _, f := range findings {
		status[f.Check] = f.Status
		if f.Status == "fail" && f.Remedy == "" {
			t.Errorf("no remedy: %+v", f)
		}
	}
	if code != ExitFailed || status["capabilities"] != "fail" || status["sock-destroy"] != "fail" || status["setns"] != "fail" || status["sock-diag"] != "ok" ||
		status["connect-events"] != "warn" || status["namespaces"] != "warn" || status["config"] != "ok" {
		t.Errorf("exit code %d, %v", code, status)
	}
}

// TestClosedWindow has a server that does not read: its kernel answers every
// window probe, so nothing is stalled, until the host is gone.
func TestClosedWindow(t *testing.T) {
	l := newLab(t)
	client, server := labtest.Must2(l.Client("c"))(t), labtest.Must2(l.Server("s"))(t)
	ln := labtest.Must2(server.Listen(t.Context(), "tcp", fmt.Sprintf("0.0.0.0:%d", port)))(t)
	defer ln.Close()
	c := labtest.Must2(client.Dial(labtest.Soon(t), "tcp", netip.AddrPortFrom(server.Addr, port).String()))(t)
	defer c.Close()
	labtest.Must(t, c.(*net.TCPConn).SetLinger(0))
	accepted := labtest.Must2(ln.Accept())(t)
	defer accepted.Close()
	go func() {
		for chunk := make([]byte, 64<<10); ; {
			if _, err := c.Write(chunk); err != nil {
				return // the test is over
			}
		}
	}()
	look := func(what string, want func(listed) bool) {
		t.Helper()
		// The pauses between two probes double, from whatever RTT a busy machine has.
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			_, found := list(t, client)
			if len(found) != 1 {
				t.Fatalf("%+v", found)
			}
			if want(found[0]) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s: %+v", what, found[0])
			}
		}
	}
	probes := 0
	heard := int64(0)
	look("some answered window probes", func(c listed) bool {
		if c.Timer != "zero-window" {
			return false
		}
		if c.Health != v1.HealthOK {
			t.Fatalf("stalled, with answered probes: %+v", c)
		}
		if *c.HeardMs < heard {
			probes++
		}
		heard = *c.HeardMs
		return probes >= 2 // each pause is twice as long as the one before
	})
	labtest.Must(t, server.Vanish())
	look("a stall", func(c listed) bool { return c.Health == v1.HealthStalled && c.Retransmits >= 2 })
}
