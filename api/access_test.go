package api

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

func TestEveryRouteHasAnAccessRule(t *testing.T) {
	for _, rt := range routes() {
		if rt.access < forAll || rt.access > forAdmin || rt.handle == nil || rt.method == "" {
			t.Errorf("%s %s is not complete", rt.method, rt.path)
		}
		if (rt.access == forAdmin) != (rt.method != "GET") {
			t.Errorf("%s %s: what changes something is for the admin socket, and only that", rt.method, rt.path)
		}
	}
	s := &Server{}
	if _, why := s.allowed(&route{}, &peer{scope: v1.ScopeHost, admin: true}, true); why == "" {
		t.Error("a route without a rule is open")
	}
}

func TestRefusals(t *testing.T) {
	w := serve(t, nil)
	w.guard.node = node()
	for _, tt := range []struct {
		method, path, body string
		headers            []string
		admin              bool
		status             int
		kind               v1.ErrorKind
	}{
		{method: "GET", path: "/v1/status", status: 200},
		{method: "GET", path: "/v1/status", headers: []string{"Origin", "http://x"}, status: 403, kind: v1.KindForbidden},
		{method: "GET", path: "/v1/status", headers: []string{"Sec-Fetch-Site", "none"}, status: 403, kind: v1.KindForbidden},
		{method: "GET", path: "/v1/status", headers: []string{"Sec-Fetch-Mode", "cors"}, status: 403, kind: v1.KindForbidden},
		{method: "PUT", path: "/v1/mode", body: `{"mode":"off"}`, headers: []string{"Origin", "null"}, admin: true, status: 403, kind: v1.KindForbidden},
		{method: "GET", path: "/", status: 404, kind: v1.KindNotFound},
		{method: "GET", path: "/v1/status/", status: 404, kind: v1.KindNotFound},
		{method: "GET", path: "/v1/explain/", status: 404, kind: v1.KindNotFound},
		{method: "GET", path: "/v1/explain/f1", status: 404, kind: v1.KindNotFound},
		{method: "GET", path: "/v1/explain/1-99", status: 404, kind: v1.KindNotFound},
		{method: "GET", path: "/v1/explain/%00", status: 404, kind: v1.KindNotFound},
		{method: "POST", path: "/v1/status", status: 405, kind: v1.KindMethodNotAllowed},
		{method: "GET", path: "/v1/reap", status: 405, kind: v1.KindMethodNotAllowed},
		{method: "POST", path: "/v1/reap", body: `{"endpoint":"10.0.0.9:6379"}`, status: 403, kind: v1.KindForbidden},
		{method: "PUT", path: "/v1/mode", body: `{"mode":"off"}`, status: 403, kind: v1.KindForbidden},
		{method: "POST", path: "/v1/reload", status: 403, kind: v1.KindForbidden},
		{method: "GET", path: "/v1/status?x=1", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/findings?all=1", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/findings?all=true&all=true", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/connections?endpoint=redis", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/connections?state=bad", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/connections?pod=" + strings.Repeat("a", 2000), status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/connections?%zz", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/events?type=squirrel", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/events?after=1", status: 400, kind: v1.KindBadRequest},
		{method: "GET", path: "/v1/events?after=e0-1", status: 410, kind: v1.KindCursorGone},
		{method: "GET", path: "/v1/events?after=" + w.hub.Epoch() + "-1", status: 410, kind: v1.KindCursorGone},
		{method: "POST", path: "/v1/reap", admin: true, status: 400, kind: v1.KindBadRequest},
		{method: "POST", path: "/v1/reap", body: `{}`, admin: true, status: 400, kind: v1.KindBadRequest},
		{method: "POST", path: "/v1/reap", body: `{"endpoint":"10.0.0.9:6379","connection":"1-1"}`, admin: true, status: 400, kind: v1.KindBadRequest},
		{method: "POST", path: "/v1/reap", body: `{"endpoint":"10.0.0.9:6379","dryrun":true}`, admin: true, status: 400, kind: v1.KindBadRequest},
		{method: "POST", path: "/v1/reap", body: `{"endpoint":"10.0.0.9:6379"} {}`, admin: true, status: 400, kind: v1.KindBadRequest},
		{method: "POST", path: "/v1/reap", body: `{"connection":"` + strings.Repeat("1", maxBody) + `"}`, admin: true, status: 413, kind: v1.KindTooLarge},
		{method: "POST", path: "/v1/reap", body: `{"connection":"1-999"}`, admin: true, status: 404, kind: v1.KindNotFound},
		{method: "POST", path: "/v1/reap", body: `{"connection":"1-1"}`, admin: true, status: 200},
		{method: "PUT", path: "/v1/mode", body: `{"mode":"on"}`, admin: true, status: 400, kind: v1.KindBadRequest},
		{method: "PUT", path: "/v1/mode", body: `{"mode":"observe"}`, admin: true, status: 200},
		{method: "POST", path: "/v1/reload", admin: true, status: 200},
		{method: "GET", path: "/metrics", status: 200},
	} {
		socket := w.read
		if tt.admin {
			socket = w.admin
		}
		status, text := w.do(tt.method, socket, tt.path, tt.body, tt.headers...)
		if status != tt.status {
			t.Errorf("%s %.60s: status %d, want %d: %s", tt.method, tt.path, status, tt.status, text)
			continue
		}
		if tt.kind != "" {
			if e := into[v1.ErrorBody](t, text).Error; e.Kind != tt.kind || e.Message == "" {
				t.Errorf("%s %.60s: error %+v, want kind %s", tt.method, tt.path, e, tt.kind)
			}
		}
	}
	if n := len(w.guard.asked); n != 2 {
		t.Errorf("%d reaps were asked of the guard, want 2", n)
	}
	if c := w.Counters(); c.RefusedOrigins != 4 || c.RefusedRights != 3 {
		t.Errorf("counted %+v", c)
	}
}

// A process with the cgroup of a pod sees its own, whatever network it is in.
// The same address behind two interfaces of a namespace is two paths.
func TestEndpointsByInterface(t *testing.T) {
	n := node()
	for i, iface := range []uint32{0, 3, 4} {
		c := n.Connections[0]
		c.Key.Cookie, c.TCP.Interface = uint64(10+i), iface
		n.Connections = append(n.Connections, c)
	}
	w := serve(t, nil)
	w.guard.node = n
	w.hub.Publish(event.Event{Type: verdict.EndpointDown, NS: 1, Endpoint: n.Connections[0].TCP.Remote, Interface: 3, Text: "behind 3", Time: time.Now()})
	_, text := w.from(as{}, "GET", w.read, "/v1/endpoints", "")
	var got []string
	for _, e := range into[[]v1.Endpoint](t, text) {
		for _, p := range e.Paths {
			got = append(got, fmt.Sprintf("%s of %s through %d: %d %s", e.Endpoint, p.Namespace, p.Interface, p.Connections, p.Health))
		}
	}
	want := []string{
		"10.0.0.9:6379 of host through 0: 2 up", "10.0.0.9:6379 of host through 3: 1 down", "10.0.0.9:6379 of host through 4: 1 up",
		"10.0.0.9:6379 of cni-a through 0: 1 up", "10.0.0.8:6379 of host through 0: 1 up",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	_, text = w.from(as{}, "GET", w.read, "/v1/findings", "")
	if f := into[[]v1.Finding](t, text); len(f) != 1 || f[0].Interface != 3 {
		t.Errorf("findings %s", text)
	}
}

// TestTargetsOfConnections: connections and endpoints have the name of their target, also an
// endpoint that is down and has no connection left.
func TestTargetsOfConnections(t *testing.T) {
	n := node()
	n.Connections[0].Target = "orders"
	lost := netip.MustParseAddrPort("10.0.0.77:6379")
	n.Targets = []view.Target{{Conf: &config.TargetSection{Name: "orders"}, Topology: &clusterview.Topology{
		Nodes: []clusterview.Node{{ID: "a", Endpoints: []clusterview.Endpoint{{Addr: lost}}}},
	}}}
	w := serve(t, nil)
	w.guard.node = n
	w.hub.Publish(event.Event{Type: verdict.EndpointDown, NS: 1, Endpoint: lost, Text: "it is down", Time: time.Now()})
	_, text := w.from(as{}, "GET", w.read, "/v1/endpoints", "")
	for _, e := range into[[]v1.Endpoint](t, text) {
		want := map[string]string{n.Connections[0].TCP.Remote.String(): "orders", lost.String(): "orders"}[e.Endpoint]
		if e.Target != want {
			t.Errorf("%s is of %q, want %q", e.Endpoint, e.Target, want)
		}
	}
	_, text = w.from(as{}, "GET", w.read, "/v1/connections", "")
	named := 0
	for _, c := range into[[]v1.Connection](t, text) {
		if c.Target == "orders" && c.Endpoint == n.Connections[0].TCP.Remote.String() {
			named++
		} else if c.Target != "" {
			t.Errorf("%+v", c)
		}
	}
	if named != 1 {
		t.Errorf("%d connections have it, want 1: %s", named, text)
	}
}

func TestAPodSeesItsOwn(t *testing.T) {
	w := serve(t, nil)
	w.guard.node = node()
	at := time.Now()
	other := netip.MustParseAddrPort("10.0.0.7:6379")
	for _, e := range []event.Event{
		{Type: event.ModeChanged, Text: "mode", Mode: &event.Mode{Effective: "enforce"}},
		{Type: verdict.EndpointDown, NS: 77, Endpoint: testEndpoint, Text: "the pod's namespace"},
		{Type: verdict.EndpointDown, NS: 1, Endpoint: netip.MustParseAddrPort("10.0.0.8:6379"), Text: "what pod B leads to"},
		{Type: verdict.EndpointDown, NS: 1, Endpoint: other, Text: "none of theirs"},
		{Type: verdict.ConnectionStalled, NS: 77, Cookie: 2, Endpoint: testEndpoint, Connection: &event.Connection{PodUID: podA, Remote: testEndpoint}, Text: "pod A's"},
		{Type: verdict.ConnectionStalled, NS: 1, Cookie: 3, Endpoint: other, Connection: &event.Connection{PodUID: podB, Remote: other}, Text: "pod B's"},
		{Type: verdict.ConnectionStalled, NS: 1, Cookie: 1, Endpoint: testEndpoint, Connection: &event.Connection{Unit: "app.service"}, Text: "the host's"},
		{Type: event.ConfigRefused, Text: "secret path"},
		{Type: verdict.GuardBreaker, Text: "breaker"},
	} {
		e.Time = at
		w.hub.Publish(e)
	}
	for _, tt := range []struct {
		name     string
		who      as
		scope    v1.Scope
		conns    []string
		findings []string
	}{
		{"host", as{}, v1.ScopeHost, []string{"1-1", "1-3", "77-2"},
			[]string{"the pod's namespace", "what pod B leads to", "none of theirs", "pod A's", "pod B's", "the host's", "secret path", "breaker"}},
		{"pod A", as{cgroup: podCgroup(t, podA), netns: true}, v1.ScopePod, []string{"77-2"}, []string{"pod A's"}},
		{"pod B in the host's network", as{cgroup: podCgroup(t, podB)}, v1.ScopePod, []string{"1-3"}, []string{"what pod B leads to", "pod B's"}},
		{"a pod without connections", as{cgroup: podCgroup(t, strings.Replace(podA, "0a0a", "0c0c", 1))}, v1.ScopePod, nil, nil},
		{"a namespace of its own", as{netns: true}, v1.ScopePod, nil, nil},
		{"a user namespace of its own", as{userns: true}, v1.ScopePod, nil, nil},
		{"a process namespace of its own", as{pidns: true}, v1.ScopePod, nil, nil},
		{"another user of the host", as{uid: 12345, gid: 12345}, v1.ScopeHost, []string{"1-1", "1-3", "77-2"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			status, text := w.from(tt.who, "GET", w.read, "/v1/status", "")
			st := into[v1.Status](t, text)
			if status != 200 || st.Scope != tt.scope {
				t.Fatalf("status %d: %s", status, text)
			}
			if st.Counts.Connections != len(tt.conns) || (st.Counters != nil) != (tt.scope == v1.ScopeHost) {
				t.Errorf("the status counts %+v, want %d connections", st.Counts, len(tt.conns))
			}
			_, text = w.from(tt.who, "GET", w.read, "/v1/connections", "")
			got := map[string]bool{}
			for _, c := range into[[]v1.Connection](t, text) {
				got[c.ID] = true
			}
			for _, id := range tt.conns {
				if !got[id] {
					t.Errorf("connection %s is not shown: %s", id, text)
				}
				delete(got, id)
			}
			if len(got) > 0 {
				t.Errorf("connections %v are shown", got)
			}
			_, text = w.from(tt.who, "GET", w.read, "/v1/findings", "")
			seen := map[string]bool{}
			for _, f := range into[[]v1.Finding](t, text) {
				seen[f.Text] = true
			}
			if tt.findings != nil || tt.scope == v1.ScopePod {
				for _, f := range tt.findings {
					if !seen[f] {
						t.Errorf("finding %q is not shown", f)
					}
					delete(seen, f)
				}
				if len(seen) > 0 {
					t.Errorf("findings %v are shown", seen)
				}
			}
			metrics, _ := w.from(tt.who, "GET", w.read, "/metrics", "")
			reap, _ := w.from(tt.who, "POST", w.read, "/v1/reap", `{"connection":"77-2"}`)
			other, _ := w.from(tt.who, "GET", w.read, "/v1/explain/f4", "")
			if want := tt.scope == v1.ScopeHost; (metrics == 200) != want || (other == 200) != want || reap != 403 {
				t.Errorf("metrics %d, the story of what is none of theirs %d, reap %d", metrics, other, reap)
			}
		})
	}
}

// A pod in the host's network makes a socket there and goes into a network of its own:
// the socket stays the host's, and so does its cookie.
func TestASocketOfAnotherNamespaceOpensNothing(t *testing.T) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	labtest.Must(t, err)
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	labtest.Must(t, err)
	w := serve(t, nil)
	n := node()
	n.Spaces[0].NS = verdict.NS(cookie)
	for i := range n.Connections {
		if n.Connections[i].Space == 0 {
			n.Connections[i].Key.NS = verdict.NS(cookie)
		}
	}
	w.guard.node = n
	for _, who := range []as{{moves: true}, {moves: true, cgroup: podCgroup(t, podA)}} {
		status, text := w.from(who, "GET", w.read, "/v1/connections", "")
		if status != 403 {
			t.Errorf("%+v: status %d: %s", who, status, text)
		}
	}
}

// The uid alone opens nothing: root in a pod is root to SO_PEERCRED, too.
func TestWhoMayAct(t *testing.T) {
	w := serve(t, func(o *Options) { o.Group = 4321 })
	w.guard.node = node()
	for _, tt := range []struct {
		name   string
		who    as
		status int
	}{
		{"root on the host", as{}, 200},
		{"root in a pod", as{cgroup: podCgroup(t, podA)}, 403},
		{"root in a pod with a network of its own", as{cgroup: podCgroup(t, podA), netns: true}, 403},
		{"root in another network namespace", as{netns: true}, 403},
		{"root of another user namespace", as{userns: true}, 403},
		{"root in a container that its cgroup does not show", as{pidns: true}, 403},
		{"the group", as{uid: 12345, gid: 4321}, 200},
		{"a supplementary group", as{uid: 12345, gid: 12345, groups: []uint32{7, 4321}}, 200},
		{"the group in a pod", as{cgroup: podCgroup(t, podA), uid: 12345, gid: 4321}, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			before := len(w.guard.modes)
			status, text := w.from(tt.who, "PUT", w.admin, "/v1/mode", `{"mode":"observe"}`)
			if status != tt.status || len(w.guard.modes)-before != map[int]int{200: 1}[tt.status] {
				t.Errorf("status %d, want %d: %s", status, tt.status, text)
			}
			if status == 200 {
				p := w.guard.peers[len(w.guard.peers)-1]
				if p.UID != tt.who.uid || p.PID <= 1 || p.Cgroup == "" || p.Comm == "" {
					t.Errorf("the guard was told that %+v asks", p)
				}
			}
			if read, _ := w.from(tt.who, "GET", w.admin, "/v1/status", ""); read != tt.status {
				t.Errorf("reading on the admin socket: status %d, want %d", read, tt.status)
			}
		})
	}
	// Without the group the socket's mode keeps others out before anything else.
	st, err := os.Stat(w.admin)
	labtest.Must(t, err)
	if st.Mode().Perm() != 0o660 {
		t.Errorf("the admin socket has mode %v", st.Mode())
	}
}

// Repeated requests without access do not fill the log.
func TestRefusalsAreBounded(t *testing.T) {
	var log bytes.Buffer // written to under the handler's lock, read at the end
	w := serve(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) }, func(s *Server) {
		s.identify = func(*net.UnixConn) *peer { return &peer{scope: v1.ScopePod, guest: "pod", why: "it is in a pod"} }
	})
	var mu sync.Mutex
	got := map[int]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c := dialer(w.admin)
			for range 40 {
				res, err := c.Get("http://x/v1/status")
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
				mu.Lock()
				got[res.StatusCode]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := w.Counters(); got[429] == 0 || int64(got[429]) != n.RefusedRates || int64(got[403]) != n.RefusedRights || got[403]+got[429] != 320 {
		t.Errorf("answers %v, counted %+v", got, n)
	}
	if lines := strings.Count(log.String(), "refused on the admin socket"); lines != got[403] {
		t.Errorf("%d lines in the log of %d refusals for want of the right", lines, got[403])
	}
}

// Who connects without end is looked at closely now and then only.
func TestAFloodOfConnectionsCostsLittle(t *testing.T) {
	var looks atomic.Int64
	w := serve(t, func(o *Options) { o.Limits.ConnectionsEach = 4 }, func(s *Server) {
		real := s.identify
		s.identify = func(c *net.UnixConn) *peer { looks.Add(1); return real(c) }
	})
	w.guard.node = node()
	var open []net.Conn
	for range 4 {
		c, err := net.Dial("unix", w.read)
		labtest.Must(t, err)
		defer c.Close()
		open = append(open, c)
	}
	began := time.Now()
	for range 1000 {
		c, err := net.Dial("unix", w.read)
		labtest.Must(t, err)
		b, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(b), "HTTP/1.1 429 ") {
			t.Fatalf("got %q", b)
		}
		c.Close()
	}
	if n, most := looks.Load(), 4+2+int64(time.Since(began)/rejectedFor); n > most {
		t.Errorf("%d close looks in %v, want %d at most", n, time.Since(began), most)
	}
	if c := w.Counters(); c.RefusedConnections != 1000 {
		t.Errorf("counted %+v", c)
	}
	for _, c := range open {
		c.Close()
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		if res, err := dialer(w.read).Get("http://x/v1/status"); err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("turned away for ever")
		}
	}
}

// Each list holds on to a copy of the tables: who does not read gets few.
func TestListsThatNobodyReadsAreFew(t *testing.T) {
	w := serve(t, nil, func(s *Server) {
		s.identify = func(*net.UnixConn) *peer { return &peer{scope: v1.ScopeHost, uid: 5, guest: "uid 5"} }
	})
	w.guard.node = node()
	for range 1000 {
		w.guard.node.Connections = append(w.guard.node.Connections, node().Connections...)
	}
	var open []net.Conn
	for range answersEach {
		c, err := net.Dial("unix", w.read)
		labtest.Must(t, err)
		defer c.Close()
		_, err = c.Write([]byte("GET /v1/connections HTTP/1.1\r\nHost: x\r\n\r\n"))
		labtest.Must(t, err)
		_, err = c.Read(make([]byte, 1)) // it has begun
		labtest.Must(t, err)
		open = append(open, c)
	}
	if status, text := w.get("/v1/endpoints"); status != 429 || into[v1.ErrorBody](t, text).Error.Kind != v1.KindTooMany {
		t.Errorf("one more: %d %.200s", status, text)
	}
	if status, _ := w.get("/v1/status"); status != 200 {
		t.Errorf("the status, beside lists: %d", status)
	}
	open[0].Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		status, _ := w.get("/v1/endpoints")
		if status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one has left: %d", status)
		}
	}
}

func TestASightIsBounded(t *testing.T) {
	s := (&peer{scope: v1.ScopePod, pod: podA}).sight(nil)
	for i := range 2 * maxOwnEndpoints {
		remote := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 6379)
		if !s.event(&event.Event{Type: verdict.ConnectionReaped, NS: 1, Cookie: 1, Connection: &event.Connection{PodUID: podA, Remote: remote}}) {
			t.Fatal("its own event is not shown")
		}
	}
	if len(s.endpoints) > maxOwnEndpoints {
		t.Errorf("%d endpoints are remembered", len(s.endpoints))
	}
}

// Who cannot be told apart sees the least, and that is what a number of a process
// that has ended is.
func TestWhoIsNotKnownSeesTheLeast(t *testing.T) {
	who, err := newIdentifier(proc.FS{}, -1)
	labtest.Must(t, err)
	who.fs.Proc = t.TempDir()
	w := serve(t, nil, func(s *Server) { s.identify = who.identify })
	w.guard.node = node()
	status, text := w.get("/v1/status")
	st := into[v1.Status](t, text)
	if status != 200 || st.Scope != v1.ScopeMinimal || st.Counts != nil || st.Cursor != "" || st.Mode != nil {
		t.Errorf("status %d: %s", status, text)
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/v1/connections": 403, "/v1/events": 403, "/v1/findings": 403, "/metrics": 403} {
		if status, text := w.get(path); status != want {
			t.Errorf("%s: status %d, want %d: %s", path, status, want, text)
		}
	}
	if status, _ := w.do("PUT", w.admin, "/v1/mode", `{"mode":"off"}`); status != 403 {
		t.Errorf("it may act: status %d", status)
	}
}

func TestHealth(t *testing.T) {
	w := serve(t, nil)
	if status, text := w.get("/readyz"); status != 503 || !strings.Contains(text, "namespaces") {
		t.Errorf("ready before anything was seen: %d %s", status, text)
	}
	w.guard.mu.Lock()
	w.guard.node = node()
	w.guard.node.Looked = false
	w.guard.mu.Unlock()
	if status, _ := w.get("/readyz"); status != 503 {
		t.Errorf("ready while the first look goes on: %d", status)
	}
	w.guard.mu.Lock()
	w.guard.node.Looked = true
	w.guard.mu.Unlock()
	if status, _ := w.get("/readyz"); status != 200 {
		t.Errorf("not ready: %d", status)
	}
	w.guard.mu.Lock()
	w.guard.hang = true
	w.guard.mu.Unlock()
	for _, path := range []string{"/healthz", "/readyz", "/v1/connections", "/v1/status"} {
		if status, _ := w.get(path); status != 503 {
			t.Errorf("%s: status %d while the guard hangs", path, status)
		}
	}
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{"", "type=endpoint.*", "type=a,b&endpoint=1.2.3.4:5", "type=%00", "endpoint=[::1]:1", "after=e1-2", "&&;", "%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := query(raw, []string{"type", "endpoint", "after"})
		if err != nil {
			return
		}
		w, err := parseFilter(q)
		if err != nil {
			return
		}
		for _, e := range event.Types() {
			w.wants(e, testEndpoint)
		}
	})
}

func FuzzReapBody(f *testing.F) {
	for _, s := range []string{"", "{}", `{"connection":"1-f"}`, `{"endpoint":"1.2.3.4:5","dry_run":true,"force":true}`, `{"connection":1}`, "null", "[]", `{"connection":"` + strconv.Itoa(1<<62) + `-0"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var in v1.ReapRequest
		if _, _, err := body(strings.NewReader(text), &in); err != nil {
			return
		}
		do, err := parseReap(&in)
		if err == nil && (do.Connection != verdict.ConnKey{}) == do.Endpoint.IsValid() {
			t.Errorf("%q became %+v", text, do)
		}
	})
}
