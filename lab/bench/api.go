package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/api"
	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// api measures what subscribers cost.
func (b *bench) api() error {
	if err := b.publishing(); err != nil {
		return err
	}
	g, err := b.start("[api]\nsocket = \"%dir/r/s\"\nadmin_socket = \"%dir/a/s\"\nmax_connections = 10000\nmax_connections_each = 10000\nmax_streams = 15000\nmax_streams_each = 15000\n")
	if err != nil {
		return err
	}
	defer g.stop()
	if err := b.delivery(g); err != nil {
		return err
	}
	return b.queued(g)
}

// subscribe opens a stream.
func subscribe(socket string) (net.Conn, error) {
	c, err := net.Dial("unix", socket)
	for errors.Is(err, syscall.EAGAIN) { // more than can be accepted at once
		time.Sleep(time.Millisecond)
		c, err = net.Dial("unix", socket)
	}
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
	return c, err
}

func (g *guard) client() *client.Client {
	return client.New(client.Config{Socket: filepath.Join(g.dir, "r/s"), AdminSocket: filepath.Join(g.dir, "a/s")})
}

// toggle has the daemon publish events: each change of the mode is one.
func (b *bench) toggle(c *client.Client, n int, pause time.Duration) error {
	for i := range n {
		m := v1.ModeObserve
		if i%2 == 1 {
			m = v1.ModeEnforce
		}
		if _, err := c.SetMode(b.ctx, m); err != nil {
			return err
		}
		if err := b.pass(pause); err != nil {
			return err
		}
	}
	return nil
}

// delivery measures from the publishing of an event to its arrival at each of a
// thousand subscribers, which all live in this process and share the CPUs with the
// daemon.
func (b *bench) delivery(g *guard) error {
	const subscribers = 1000
	var mu sync.Mutex
	var took []time.Duration
	var wg, synced sync.WaitGroup
	var conns []net.Conn
	defer wg.Wait()
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range subscribers {
		c, err := subscribe(filepath.Join(g.dir, "r/s"))
		if err != nil {
			return err
		}
		conns = append(conns, c)
		synced.Add(1)
		wg.Go(func() {
			lines := bufio.NewScanner(c)
			for lines.Scan() {
				now := time.Now()
				var e v1.Event
				if json.Unmarshal(lines.Bytes(), &e) != nil {
					continue
				}
				switch e.Type {
				case v1.Synced:
					synced.Done()
				case v1.EventModeChanged:
					mu.Lock()
					took = append(took, now.Sub(e.Time))
					mu.Unlock()
				}
			}
		})
	}
	synced.Wait()
	c := g.client()
	defer c.Close()
	n := b.runs(200)
	if err := b.toggle(c, n, 100*time.Millisecond); err != nil {
		return err
	}
	if err := b.pass(time.Second); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if len(took) < n*subscribers {
		return fmt.Errorf("only %d of %d events arrived", len(took), n*subscribers)
	}
	p99 := quantile(took, 0.99)
	b.add(p99 <= 50*time.Millisecond, "An event reaches 1,000 subscribers", "p99 at most 50 ms", "p50 %v, p99 %v, worst %v (%d events)",
		quantile(took, 0.5).Round(100*time.Microsecond), p99.Round(100*time.Microsecond), quantile(took, 1).Round(100*time.Microsecond), n)
	return nil
}

// queued measures what 10,000 subscribers cost that do not read while events go on.
func (b *bench) queued(g *guard) error {
	c := g.client()
	defer c.Close()
	before, err := g.rss()
	if err != nil {
		return err
	}
	kernel := slab()
	subscribers := 10_000
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range subscribers {
		c, err := subscribe(filepath.Join(g.dir, "r/s"))
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	// 200 events of some 300 bytes: more than the socket of one takes.
	if err := b.toggle(c, 200, 0); err != nil {
		return err
	}
	if err := b.pass(3 * time.Second); err != nil {
		return err
	}
	st, err := c.Status(b.ctx)
	if err != nil {
		return err
	}
	after, err := g.rss()
	if err != nil {
		return err
	}
	if st.Counters.Streams != int64(subscribers) {
		return fmt.Errorf("only %d streams are open", st.Counters.Streams)
	}
	b.add(after-before <= 64, "10,000 subscribers that do not read", "at most 64 MiB", "%.1f MiB more resident memory (and %.0f MiB of socket buffers in the kernel)", after-before, slab()-kernel)
	return nil
}

// slab is the kernel's unreclaimable slab memory in MiB, where socket buffers are.
func slab() float64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "SUnreclaim:" {
			kb, _ := strconv.Atoi(f[1])
			return float64(kb) / 1024
		}
	}
	return 0
}

// still is a guard of which there is nothing to see.
type still struct{}

func (still) View(context.Context) (*view.Node, error) { return &view.Node{At: time.Now()}, nil }
func (still) Wake(string)                              {}

func (still) Info() v1.Status                                              { return v1.Status{} }
func (still) Reap(context.Context, view.Reap) ([]view.Reaped, error)       { return nil, nil }
func (still) Reload(context.Context, event.Peer) (string, []string, error) { return "", nil, nil }
func (still) SetMode(context.Context, string, event.Peer) (event.Mode, error) {
	return event.Mode{}, nil
}

// publishing measures what an event costs its publisher, with a thousand
// subscribers of which half do not read.
func (b *bench) publishing() error {
	dir, err := os.MkdirTemp("", "rga-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	hub := event.NewHub(8192)
	s, err := api.New(api.Options{
		Source: still{}, Actor: still{}, Hub: hub, Log: slog.New(slog.DiscardHandler), Socket: dir + "/s", Group: -1,
		Limits: api.Limits{Connections: 2000, ConnectionsEach: 2000, Streams: 2000, StreamsEach: 2000},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for i := range 1000 {
		c, err := subscribe(dir + "/s")
		if err != nil {
			return err
		}
		defer c.Close()
		if i%2 == 0 {
			wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
		}
	}
	e := event.Event{
		Type: verdict.ConnectionStalled, Text: "data is unacknowledged and retransmitting", NS: 7, Namespace: "app",
		Endpoint: netip.MustParseAddrPort("10.0.0.5:6379"), Connection: &event.Connection{Comm: "app", PID: 7},
	}
	// What it costs is CPU time of the publisher's thread: how long it takes by
	// the clock also depends on other users of the cores.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A step of the watcher publishes what it has found in one go; alone, an event
	// finds the caches cold.
	for _, inRow := range []int{10, 1} {
		if err := b.publishingInRow(hub, e, inRow); err != nil {
			return err
		}
	}
	return nil
}

// publishingInRow measures events that come so many at a time, 1,000 a second.
func (b *bench) publishingInRow(hub *event.Hub, e event.Event, inRow int) error {
	var took []time.Duration
	var sum time.Duration
	for i := range b.runs(5000) {
		e.Time, e.Cookie = time.Now(), uint64(i%3000+1)
		// Reading that clock costs as much as half of a publishing.
		clock := threadCPU()
		began, cpu := time.Now(), threadCPU()
		hub.Publish(e)
		sum += threadCPU() - cpu - (cpu - clock)
		took = append(took, time.Since(began))
		if i%inRow == inRow-1 {
			if err := b.pass(time.Duration(inRow) * time.Millisecond); err != nil {
				return err
			}
		}
	}
	mean := sum / time.Duration(len(took))
	b.add(mean < 5*time.Microsecond, fmt.Sprintf("publishing an event, %d at a time and 1,000 a second, 1,000 subscribers of which half do not read", inRow), "under 5 us", "%v of CPU time on average (by the clock p50 %v, p99 %v)",
		mean, quantile(took, 0.5), quantile(took, 0.99))
	return nil
}

// threadCPU is the CPU time of the calling thread.
func threadCPU() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // cannot fail for this clock
	return time.Duration(ts.Nano())
}

// hostileEnv names the socket that a process of ours torments.
const hostileEnv = "REDISGUARD_BENCH_HOSTILE"

// maybeHostile is the other side of torment.
func maybeHostile() {
	socket := os.Getenv(hostileEnv)
	if socket == "" {
		return
	}
	hold := func(n int, text string) {
		var held []net.Conn
		for {
			for len(held) < n {
				c, err := net.Dial("unix", socket)
				if err != nil {
					break
				}
				_, _ = io.WriteString(c, text)
				held = append(held, c)
			}
			time.Sleep(time.Second)
			// Some are dropped, so that there is always a new one.
			for range min(len(held), 1+rand.N(n/10+1)) {
				held[0].Close()
				held = held[1:]
			}
		}
	}
	stream := "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n"
	go hold(300, stream)                              // do not read
	go hold(300, "")                                  // say nothing
	go hold(100, "GET /v1/status HTTP/1.1\r\nHost: ") // half a request
	go hold(50, stream+strings.Repeat("\xff\x00garbage", 1000))
	go func() { // a byte a second
		for {
			if c, err := subscribe(socket); err == nil {
				for b := make([]byte, 1); ; time.Sleep(time.Second) {
					if _, err := c.Read(b); err != nil {
						break
					}
				}
				c.Close()
			}
			time.Sleep(time.Second)
		}
	}()
	for { // asks without end
		c := client.New(client.Config{Socket: socket})
		for range 100 {
			_, _ = c.Connections(context.Background(), client.ConnectionQuery{})
			time.Sleep(time.Millisecond)
		}
		c.Close()
	}
}

// torment starts a hostile process of another user.
func torment(g *guard) (stop func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hostileEnv+"="+filepath.Join(g.dir, "r/s"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}

// soak lets hostile subscribers go on for ten minutes, and compares detection and
// memory with and without them.
func (b *bench) soak() error {
	s, err := b.scene("fast", 1, 2, 10*time.Millisecond)
	if err != nil {
		return err
	}
	defer s.close()
	detect := func() (time.Duration, error) {
		if err := b.pass(rand.N(time.Second)); err != nil {
			return 0, err
		}
		if err := s.servers[0].Vanish(); err != nil {
			return 0, err
		}
		lost := time.Now()
		e, err := b.firstError(s.writing[0], lost)
		if err != nil {
			return 0, err
		}
		if err := s.servers[0].Return(); err != nil {
			return 0, err
		}
		if err := b.back(s.writing[0], e); err != nil {
			return 0, err
		}
		return e.Time().Sub(lost), b.pass(5 * time.Second) // until the path is clean again
	}
	var alone, beset []time.Duration
	for range b.runs(20) {
		d, err := detect()
		if err != nil {
			return err
		}
		alone = append(alone, d)
	}
	goroutines, err := s.g.goroutines(b.ctx)
	if err != nil {
		return err
	}
	stop, err := torment(s.g)
	if err != nil {
		return err
	}
	defer func() { stop() }()
	length := 10 * time.Minute
	if b.quick {
		length = time.Minute
	}
	began := time.Now()
	var early, late []float64
	for time.Since(began) < length {
		d, err := detect()
		if err != nil {
			return err
		}
		beset = append(beset, d)
		m, err := s.g.rss()
		if err != nil {
			return err
		}
		switch at := time.Since(began); {
		case at > length/5 && at < 2*length/5:
			early = append(early, m)
		case at > 4*length/5:
			late = append(late, m)
		}
	}
	c := s.g.client()
	defer c.Close()
	st, err := c.Status(b.ctx)
	if err != nil {
		return err
	}
	stop()
	stop = func() {}
	left := 0
	for range 100 {
		if left, err = s.g.goroutines(b.ctx); err != nil {
			return err
		}
		if left <= goroutines+2 {
			break
		}
		if err := b.pass(100 * time.Millisecond); err != nil {
			return err
		}
	}
	if len(early) == 0 || len(late) == 0 {
		return errors.New("too short to say anything of memory")
	}
	ratio := float64(quantile(beset, 0.5)) / float64(quantile(alone, 0.5))
	b.add(ratio <= 1.2, fmt.Sprintf("Silent loss to error, %v of hostile subscribers", length), "median at most 1.2 times that without them",
		"%.2f times (%v and %v, %d and %d runs; %d refused, %d dropped)", ratio, quantile(beset, 0.5).Round(time.Millisecond), quantile(alone, 0.5).Round(time.Millisecond),
		len(beset), len(alone), st.Counters.Refused, st.Counters.StreamsDropped)
	e, l := slices.Max(early), slices.Max(late)
	b.add(l <= e*1.1+1, "Memory meanwhile", "flat (10 % at most)", "%.1f MiB in the second fifth, %.1f MiB in the last", e, l)
	b.add(left <= goroutines+2, "Goroutines afterwards", "none left", "%d before, %d after", goroutines, left)
	return nil
}

// goroutines is how many the daemon has.
func (g *guard) goroutines(ctx context.Context) (int, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(g.dir, "r/s"))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			return strconv.Atoi(rest)
		}
	}
	return 0, errors.New("the metrics have no go_goroutines")
}
