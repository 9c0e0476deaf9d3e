package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// reader reads a stream line by line.
type reader struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// follow opens a stream.
func (w *world) follow(t *testing.T, query string, headers ...string) *reader {
	t.Helper()
	c, err := net.Dial("unix", w.read)
	labtest.Must(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = fmt.Fprintf(c, "GET /v1/events%s HTTP/1.1\r\nHost: x\r\n%s\r\n", query, strings.Join(headers, ""))
	labtest.Must(t, err)
	r := &reader{t, c, bufio.NewReader(c)}
	status := r.raw()
	if !strings.Contains(status, " 200 ") {
		t.Fatalf("the stream begins with %s", status)
	}
	for r.raw() != "" {
	}
	return r
}

func (r *reader) raw() string {
	r.t.Helper()
	labtest.Must(r.t, r.conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	s, err := r.r.ReadString('\n')
	if err != nil {
		r.t.Fatalf("the stream broke off: %v", err)
	}
	return strings.TrimRight(s, "\r\n")
}

func (r *reader) next() v1.Event {
	r.t.Helper()
	return into[v1.Event](r.t, r.raw())
}

// until reads up to a line of a type.
func (r *reader) until(types ...v1.EventType) v1.Event {
	r.t.Helper()
	for {
		if e := r.next(); slices.Contains(types, e.Type) {
			return e
		}
	}
}

func happen(n int) event.Event {
	return event.Event{Time: time.Now(), Type: verdict.EndpointSuspect, NS: 1, Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)}), 6379)}
}

func TestAStream(t *testing.T) {
	w := serve(t, nil, func(s *Server) { s.heartbeat = 500 * time.Millisecond })
	w.hub.Publish(event.Event{Time: time.Now(), Type: event.ModeChanged, Mode: &event.Mode{Effective: "observe"}})
	w.hub.Publish(happen(1))
	r := w.follow(t, "")
	if e := r.next(); e.Type != v1.Hello || e.HeartbeatMs != 500 || e.Scope != v1.ScopeHost || e.Version != "test" {
		t.Errorf("hello is %+v", e)
	}
	if e := r.next(); e.Type != v1.Snapshot || e.Mode == nil || e.Mode.Effective != v1.ModeObserve {
		t.Errorf("the mode is %+v", e)
	}
	if e := r.next(); e.Type != v1.Snapshot || e.Finding == nil || e.Finding.ID != "f2" || !e.Finding.Open {
		t.Errorf("the finding is %+v", e)
	}
	if e := r.next(); e.Type != v1.Synced || e.Cursor != w.hub.Epoch()+"-2" {
		t.Errorf("synced is %+v", e)
	}
	w.hub.Publish(happen(2))
	e := r.next()
	if e.Type != v1.EventEndpointSuspect || e.Seq != 3 || e.Cursor != w.hub.Epoch()+"-3" || e.Endpoint != "10.9.0.2:6379" {
		t.Errorf("the event is %+v", e)
	}
	if b := r.next(); b.Type != v1.Heartbeat || b.Cursor != e.Cursor {
		t.Errorf("the heartbeat is %+v", b)
	}

	// Resume after what was seen.
	w.hub.Publish(happen(3))
	r = w.follow(t, "?after="+e.Cursor)
	if h := r.next(); h.Type != v1.Hello {
		t.Errorf("%+v", h)
	}
	if e := r.next(); e.Seq != 4 {
		t.Errorf("resumed with %+v", e)
	}
	if e := r.next(); e.Type != v1.Synced || e.Cursor != w.hub.Epoch()+"-4" {
		t.Errorf("synced is %+v", e)
	}

	// Filters, of types and endpoints, hold for the snapshot too.
	r = w.follow(t, "?type=guard.*,endpoint.up&endpoint=10.9.0.2:6379")
	r.next()
	if e := r.next(); e.Type != v1.Synced {
		t.Errorf("the snapshot has %+v", e)
	}
	w.hub.Publish(happen(2))
	up := happen(2)
	up.Type = verdict.EndpointUp
	w.hub.Publish(up)
	if e := r.next(); e.Type != v1.EventEndpointUp {
		t.Errorf("what is not wanted comes: %+v", e)
	}
	if b := r.next(); b.Type != v1.Heartbeat || b.Cursor != w.hub.Cursor().String() {
		t.Errorf("the heartbeat is %+v", b)
	}

	// Server-sent events.
	r = w.follow(t, "", "Accept: text/event-stream\r\n", "Last-Event-ID: "+w.hub.Epoch()+"-4\r\n")
	for _, want := range []string{"event: hello", "data: ", "", "id: " + w.hub.Epoch() + "-5", "event: endpoint.suspect", "data: {", ""} {
		if got := r.raw(); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTheDaemonSaysBye(t *testing.T) {
	dir := t.TempDir()
	hub := event.NewHub(10)
	g := &fake{}
	s, err := New(Options{Source: g, Actor: g, Hub: hub, Log: serve(t, nil).opt.Log, Socket: dir + "/s", Group: -1})
	labtest.Must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w := &world{Server: s, t: t, read: dir + "/s", hub: hub}
	r := w.follow(t, "")
	r.until(v1.Synced)
	cancel()
	if e := r.next(); e.Type != v1.Bye || e.Text == "" {
		t.Errorf("got %+v", e)
	}
	if _, err := r.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("then %v", err)
	}
	labtest.Must(t, <-done)
	if _, err := os.Stat(dir + "/s"); !os.IsNotExist(err) {
		t.Error("the socket is still there")
	}
}

// A hundred subscribers join at random while there are 1,000 changes a second:
// each gets every event after its snapshot once, in order, and its snapshot is the
// state at that place.
func TestNoGapAndNoRepeat(t *testing.T) {
	w := serve(t, nil)
	const changes = 3000
	open := make([][]uint64, changes+1) // numbers of the findings that are open after each event
	var now []uint64
	events := make([]event.Event, changes)
	r := rand.New(rand.NewPCG(5, 6))
	paths := map[int]uint64{}
	for i := range events {
		n := r.IntN(20)
		events[i] = happen(n)
		if id, ok := paths[n]; ok {
			events[i].Type = verdict.EndpointUp
			delete(paths, n)
			now = slices.DeleteFunc(slices.Clone(now), func(x uint64) bool { return x == id })
		} else {
			paths[n] = uint64(i + 1)
			now = append(slices.Clone(now), uint64(i+1))
		}
		open[i+1] = now
	}
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := range events {
			<-tick.C
			w.hub.Publish(events[i])
		}
	}()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			<-time.After(rand.N(2 * time.Second))
			r := w.follow(t, "")
			var snapshot []uint64
			var seq uint64
			for {
				e := r.next()
				switch {
				case e.Finding != nil:
					var id uint64
					fmt.Sscanf(e.Finding.ID, "f%d", &id)
					snapshot = append(snapshot, id)
				case e.Type == v1.Synced:
					fmt.Sscanf(strings.TrimPrefix(e.Cursor, w.hub.Epoch()), "-%d", &seq)
					slices.Sort(snapshot)
					if !slices.Equal(snapshot, open[seq]) {
						t.Errorf("the snapshot at %d has %v, want %v", seq, snapshot, open[seq])
					}
				case e.Seq != 0:
					if seq++; e.Seq != seq {
						t.Errorf("event %d came where %d was due", e.Seq, seq)
						return
					}
				}
				if seq == changes {
					return
				}
			}
		})
	}
	wg.Wait()
	if c := w.Counters(); c.DroppedSlow+c.DroppedSilent+c.DroppedGarbage+c.RefusedStreams != 0 {
		t.Errorf("counted %+v", c)
	}
}

// Whatever hostile peers do, a well-behaved one gets every event in time, what is
// used is bounded, and everything that was refused or dropped is counted.
func TestHostilePeers(t *testing.T) {
	limits := Limits{Connections: 200, ConnectionsEach: 60, Streams: 100, StreamsEach: 50}
	// As another user they are on an account of their own.
	for name, hostile := range map[string]func(w *world, stop <-chan struct{}){
		"does not read": func(w *world, stop <-chan struct{}) {
			for range 200 {
				c, err := net.Dial("unix", w.read)
				if err != nil {
					return
				}
				defer c.Close()
				fmt.Fprintf(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
			}
			<-stop
		},
		"a byte a second": func(w *world, stop <-chan struct{}) {
			c, err := net.Dial("unix", w.read)
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
			for b := make([]byte, 1); ; {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					_, _ = c.Read(b)
				}
			}
		},
		"garbage": func(w *world, stop <-chan struct{}) {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("unix", w.read)
				if err != nil {
					return
				}
				if rand.IntN(2) == 0 {
					fmt.Fprintf(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
				}
				b := make([]byte, 5000)
				for i := range b {
					b[i] = byte(rand.Uint32())
				}
				_, _ = c.Write(b)
				_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		},
		"1,000 connections": func(w *world, stop <-chan struct{}) {
			for range 1000 {
				c, err := net.Dial("unix", w.read)
				if err != nil {
					return
				}
				defer c.Close()
			}
			<-stop
		},
		"1,000 streams": func(w *world, stop <-chan struct{}) {
			for range 1000 {
				c, err := net.Dial("unix", w.read)
				if err != nil {
					return
				}
				defer c.Close()
				fmt.Fprintf(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
				go func() { _, _ = io.Copy(io.Discard, c) }()
			}
			<-stop
		},
		"half a request": func(w *world, stop <-chan struct{}) {
			for i := range 200 {
				c, err := net.Dial("unix", w.read)
				if err != nil {
					return
				}
				defer c.Close()
				fmt.Fprint(c, []string{"GET /v1/sta", "POST /v1/reap HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", "GET / HTTP/1.1\r\nX: " + strings.Repeat("y", 7000)}[i%3])
			}
			<-stop
		},
		"asks without end": func(w *world, stop <-chan struct{}) {
			client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", w.read)
			}}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := client.Get("http://x/v1/connections")
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			// Who they are is told by a process, so the test plays two users by
			// turns: while others connect, everybody is one of them.
			var mu sync.Mutex
			good := true
			w := serve(t, func(o *Options) { o.Limits = limits }, func(s *Server) {
				real := s.identify
				s.identify = func(c *net.UnixConn) *peer {
					p := real(c)
					mu.Lock()
					defer mu.Unlock()
					if !good {
						p.guest, p.uid, p.scope, p.pod, p.space, p.admin = "pod evil", 4711, v1.ScopePod, podA, 77, false
					}
					return p
				}
			})
			w.guard.node = node()
			r := w.follow(t, "")
			r.until(v1.Synced)
			labtest.Must(t, r.conn.SetReadDeadline(time.Time{}))
			mu.Lock()
			good = false
			mu.Unlock()
			before := runtime.NumGoroutine()
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() { hostile(w, stop) })
			worst := time.Duration(0)
			for i := range 2000 {
				e := happen(i)
				e.NS, e.Text = 77, strings.Repeat("x", 500)
				published := time.Now()
				w.hub.Publish(e)
				if got := r.next(); got.Seq != uint64(i+1) && got.Type != v1.Heartbeat {
					t.Fatalf("got %+v where event %d was due", got, i+1)
				}
				worst = max(worst, time.Since(published))
			}
			mu.Lock()
			good = true
			mu.Unlock()
			for path, socket := range map[string]string{"/v1/status": w.read, "/v1/connections": w.admin} {
				if status, text := w.do("GET", socket, path, ""); status != 200 {
					t.Errorf("%s: %d %s", path, status, text)
				}
			}
			c := w.Counters()
			if c.OpenConnections > int64(limits.ConnectionsEach)+3 || c.OpenStreams > int64(limits.StreamsEach)+1 {
				t.Errorf("open: %+v", c)
			}
			if n := runtime.NumGoroutine(); n > before+1200 {
				t.Errorf("%d goroutines, %d before", n, before)
			}
			close(stop)
			wg.Wait()
			refused := c.RefusedConnections + c.RefusedStreams + c.RefusedRates + c.DroppedGarbage + c.DroppedSlow
			if refused == 0 && name != "a byte a second" {
				t.Errorf("nothing was refused: %+v", c)
			}
			if worst > time.Second {
				t.Errorf("an event took %v", worst)
			}
			t.Logf("worst %v, %+v", worst, c)
			// What they had is given back.
			w.settles(t, func(c Counters) bool { return c.OpenStreams == 1 && c.OpenConnections == 0 })
		})
	}
}

// settles waits for counters.
func (w *world) settles(t *testing.T, ok func(Counters) bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(w.Counters()); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %+v", w.Counters())
		}
	}
}

// Who falls out of the ring is told, and can come back with a snapshot.
func TestTooSlow(t *testing.T) {
	w := serve(t, nil)
	r := w.follow(t, "")
	last := r.until(v1.Synced)
	for i := range 10_000 {
		w.hub.Publish(happen(i))
	}
	w.settles(t, func(c Counters) bool { return c.DroppedSlow == 1 })
	// What the kernel had taken still comes, whole lines of it and in order.
	seq := uint64(0)
	for {
		line, err := r.r.ReadString('\n')
		if err != nil {
			break
		}
		e := into[v1.Event](t, line)
		if e.Seq != 0 {
			if seq++; e.Seq != seq {
				t.Fatalf("event %d came where %d was due", e.Seq, seq)
			}
		}
	}
	if status, text := w.get("/v1/events?after=" + last.Cursor); status != 410 || into[v1.ErrorBody](t, text).Error.Kind != v1.KindCursorGone {
		t.Errorf("resuming: %d %s", status, text)
	}
}

func TestBind(t *testing.T) {
	opt := func(dir string) Options {
		g := &fake{}
		return Options{Source: g, Actor: g, Hub: event.NewHub(1), Log: serve(t, nil).opt.Log, Socket: dir + "/r/s", AdminSocket: dir + "/a/s", Group: -1}
	}
	dir := t.TempDir()
	s, err := New(opt(dir))
	labtest.Must(t, err)
	if _, err := New(opt(dir)); !errors.Is(err, ErrInUse) || Unavailable(err) {
		t.Errorf("a second one: %v", err)
	}
	if got := s.Addrs(); !slices.Contains(got, "unix:"+dir+"/r/s") || !slices.Contains(got, "unix:"+dir+"/a/s") {
		t.Errorf("listening at %v", got)
	}
	for path, want := range map[string]os.FileMode{"/r": 0o755, "/r/s": 0o666, "/a": 0o700, "/a/s": 0o600} {
		if st, err := os.Stat(dir + path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v (%v), want %v", path, st.Mode(), err, want)
		}
	}
	s.Close()
	left, err := os.ReadDir(dir + "/r")
	labtest.Must(t, err)
	if len(left) != 0 { // where pods may have it mounted, not even a lock
		t.Errorf("left behind: %v", left)
	}

	// What a pod that has the directory mounted does there keeps nobody from starting.
	squatter := exec.Command("/proc/self/exe")
	squatter.Env = append(os.Environ(), squatEnv+"="+dir+"/r/s")
	squatter.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := squatter.StdinPipe()
	labtest.Must(t, err)
	out, err := squatter.StdoutPipe()
	labtest.Must(t, err)
	labtest.Must(t, squatter.Start())
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the squatter says %q", line)
	}
	s, err = New(opt(dir))
	if err != nil {
		t.Errorf("beside somebody of another namespace: %v", err)
	} else {
		s.Close()
	}
	in.Close()
	labtest.Must(t, squatter.Wait())

	// A dead one's socket is replaced; a living one's that takes no lock is not.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/r/s", Net: "unix"})
	labtest.Must(t, err)
	l.SetUnlinkOnClose(false)
	if _, err := New(opt(dir)); !errors.Is(err, ErrInUse) {
		t.Errorf("beside a living one: %v", err)
	}
	l.Close()
	s, err = New(opt(dir))
	labtest.Must(t, err)
	// Another's socket at our path is not removed.
	labtest.Must(t, os.Remove(dir+"/r/s"))
	labtest.Must(t, os.WriteFile(dir+"/r/s", nil, 0o600))
	s.Close()
	if _, err := os.Stat(dir + "/r/s"); err != nil {
		t.Error("what is not ours was removed")
	}
	if _, err := New(opt(dir)); err == nil || errors.Is(err, ErrInUse) {
		t.Errorf("over a file that is no socket: %v", err)
	}
	if _, err := New(opt("/proc/nowhere")); err == nil || !Unavailable(err) {
		t.Errorf("where nothing can be made: %v", err)
	}
}

// What a pod's stream tells of targets follows its connections and the config: a client may
// subscribe before it connects, and loses nothing by being cut off.
func TestAStreamSeesTheTargetsOfToday(t *testing.T) {
	pod := &peer{scope: v1.ScopePod, pod: podA, space: 77, podNamespace: "shop", guest: podA}
	w := serve(t, nil, func(s *Server) { s.identify = func(*net.UnixConn) *peer { return pod } })
	target := func(name string, visible ...string) view.Target {
		return view.Target{Conf: &config.TargetSection{Name: name, VisibleTo: config.Workloads{Namespaces: visible}}}
	}
	const none, another, own = -1, 0, 1 // connections of node()
	set := func(leads int, state tcpstate.State, targets ...view.Target) {
		n := node()
		n.Targets = append(targets, target("always", "shop"))
		if leads != none {
			n.Connections[leads].Target = "orders"
			n.Connections[leads].TCP.State = state
		}
		w.guard.mu.Lock()
		w.guard.node = n
		w.guard.mu.Unlock()
	}
	orders, stock := target("orders"), target("stock", "bank")
	set(none, 0, orders, stock)
	r := w.follow(t, "?type=primary.changed")
	r.until(v1.Synced)
	if _, woken := w.guard.woken.Load("always"); !woken {
		t.Error("the subscription woke no target")
	}
	if _, woken := w.guard.woken.Load("orders"); woken {
		t.Error("the subscription woke a target that it may not see")
	}
	for i, step := range []struct {
		why     string
		leads   int
		state   tcpstate.State
		targets []view.Target
		want    []string
	}{
		{"no connection", none, 0, []view.Target{orders, stock}, nil},
		{"another's connection", another, tcpstate.Established, []view.Target{orders, stock}, nil},
		{"one that is not there yet", own, tcpstate.SynSent, []view.Target{orders, stock}, nil},
		{"one of its own", own, tcpstate.Established, []view.Target{orders, stock}, []string{"orders"}},
		{"that was reaped", none, 0, []view.Target{orders, stock}, []string{"orders"}},
		{"a reload gives", none, 0, []view.Target{orders, target("stock", "shop")}, []string{"orders", "stock"}},
		{"a reload takes", none, 0, []view.Target{orders, stock}, []string{"orders"}},
		{"the target goes", none, 0, []view.Target{stock}, nil},
		{"another has its name", none, 0, []view.Target{orders, stock}, nil},
	} {
		mark := fmt.Sprint("step", i) // is seen from when the stream knows of this step
		known := false
		set(step.leads, step.state, append(step.targets, target(mark, "shop"))...)
		labtest.Eventually(t, step.why, func() bool {
			for _, name := range []string{"orders", "stock", mark, "always"} {
				w.hub.Publish(event.Event{Type: event.PrimaryChanged, Time: time.Now(), Target: name})
			}
			var got []string
			before := known // the sight may change amid a round
			for {
				switch e := r.until(v1.EventType(event.PrimaryChanged)); e.Target {
				case mark:
					known = true
				case "always":
					if before && !slices.Equal(got, step.want) {
						t.Fatalf("%s: the stream tells of %q, want %q", step.why, got, step.want)
					}
					return before
				default:
					got = append(got, e.Target)
				}
			}
		})
	}
}
