// Command demo shows redisguard's main job on this machine: two identical clients
// talk to the same Redis through a virtual address; the server vanishes without a
// word and the address leads to another one; one client is guarded.
//
// Nothing is scripted: the clients, the network and redisguard are real, and so
// are the figures. The servers are real Redis servers if redis-server is
// installed, else miniredis.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/redisguard/redisguard/lab"
)

const (
	port = 6379
	// before is how long all is well, after is how long we watch.
	before = 6 * time.Second
	after  = 15 * time.Second
	// serverEnv makes this program a miniredis on the address in it.
	serverEnv = "REDISGUARD_DEMO_SERVER"
)

func main() {
	lab.MaybeChild()
	if addr := os.Getenv(serverEnv); addr != "" {
		serve(addr)
		return
	}
	guard := flag.String("redisguard", "bin/redisguard", "the redisguard `binary`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, *guard, os.Stdout); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// serve is the embedded Redis: a process of its own in a server's namespace.
func serve(addr string) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr(addr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// server starts a Redis on the host and says what it is.
func server(ctx context.Context, h *lab.Host) (string, error) {
	if _, err := exec.LookPath("redis-server"); err == nil {
		_, err := h.Redis(ctx, lab.RedisConfig{Port: port})
		return "redis-server", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serverEnv+"="+netip.AddrPortFrom(h.Addr, port).String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // its end ends the server
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { in.Close() })
	ready := make(chan struct{})
	var once sync.Once
	cmd.Stdout = writer(func(b []byte) { once.Do(func() { close(ready) }) })
	p, err := h.Start(ctx, cmd)
	if err != nil {
		return "", err
	}
	select {
	case <-ready:
		return "miniredis (install redis-server for the real one)", nil
	case <-p.Done():
		return "", errors.New("the embedded Redis ended")
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

func demo(ctx context.Context, guard string, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 55*time.Second)
	defer cancel()
	fmt.Fprintln(out, "Two servers, a virtual address, two namespaces with the same client each.")
	l, err := lab.New(lab.Config{Prefix: "rgdemo"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	a, err := l.Server("a")
	if err != nil {
		return err
	}
	b, err := l.Server("b")
	if err != nil {
		return err
	}
	kind := ""
	for _, h := range []*lab.Host{a, b} {
		if kind, err = server(ctx, h); err != nil {
			return err
		}
	}
	vip, err := l.VIP("vip", netip.MustParseAddr("10.77.9.1"), port)
	if err != nil {
		return err
	}
	if err := vip.PointTo(a, port); err != nil {
		return err
	}
	d, err := startGuard(ctx, guard, out)
	if err != nil {
		return err
	}
	defer d.stop()
	var clients [2]*client
	for i, name := range []string{"guarded", "unguarded"} {
		if clients[i], err = startClient(ctx, l, name, vip.Addr); err != nil {
			return err
		}
		defer clients[i].Stop()
	}
	retries, err := kernelRetries(clients[1].Host())
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Server: %s. Client: waits for each reply, has no timeout of its own, reconnects on an error.\n", kind)
	fmt.Fprintf(out, "redisguard runs with mode = \"enforce\" and its other defaults; [exclude] keeps it from the unguarded client.\n\n")
	fmt.Fprintf(out, "%8s  %-34s %-34s\n", "time", "guarded", "unguarded")

	start := time.Now()
	fault := start.Add(before)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	happened := false
	for now := start; now.Before(fault.Add(after)); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now = <-tick.C:
		}
		if !happened && !now.Before(fault) {
			fault = time.Now()
			if err := errors.Join(a.Vanish(), vip.PointTo(b, port)); err != nil {
				return err
			}
			happened = true
			fmt.Fprintf(out, "%8s  %s\n", "0.0s", "---- server A vanishes without a word; the virtual address now leads to server B ----")
		}
		// Every two seconds when nothing happens, to keep it short.
		since := max(now.Sub(fault), -before)
		if happened {
			since = max(since, 0)
		}
		if since > -2*time.Second && since < 4*time.Second || now.Sub(start).Milliseconds()/500%4 == 0 {
			fmt.Fprintf(out, "%7.1fs  %-34s %-34s\n", since.Seconds(), clients[0].line(fault), clients[1].line(fault))
		}
	}
	return conclude(out, clients, fault, retries)
}

// conclude says what was measured.
func conclude(out io.Writer, clients [2]*client, fault time.Time, retries int) error {
	fmt.Fprintln(out)
	g, u := clients[0].story(fault), clients[1].story(fault)
	fmt.Fprintf(out, "guarded:    %s\n", g)
	fmt.Fprintf(out, "unguarded:  %s\n", u)
	fmt.Fprintf(out, "the kernel alone: net.ipv4.tcp_retries2 = %d there, so it gives up after %v at the least\n", retries, giveUp(retries).Round(time.Second))
	switch {
	case g.back.IsZero():
		return errors.New("the guarded client did not come back: this is not what should have happened")
	case !u.failed.IsZero():
		return errors.New("the unguarded client got an error too: something else than redisguard is at work here")
	}
	return nil
}

// giveUp is how long the kernel retransmits before it gives a connection up on a
// LAN: 0.2 s (TCP_RTO_MIN), doubled each time up to 120 s (TCP_RTO_MAX), as
// tcp_model_timeout in net/ipv4/tcp_timer.c has it.
func giveUp(retries int) time.Duration {
	rto, sum := 200*time.Millisecond, time.Duration(0)
	for range retries + 1 {
		sum += rto
		rto = min(2*rto, 120*time.Second)
	}
	return sum
}

func kernelRetries(h *lab.Host) (n int, err error) {
	err = h.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_retries2")
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(b), &n)
		return err
	})
	return n, err
}

// client is one of the two clients.
type client struct {
	*lab.Client
	name string
	seen int // of its OKs, at the last line
}

func startClient(ctx context.Context, l *lab.Lab, name string, addr netip.AddrPort) (*client, error) {
	h, err := l.Client(name)
	if err != nil {
		return nil, err
	}
	c, err := h.Client(ctx, lab.ClientConfig{Addr: addr, Interval: 5 * time.Millisecond, Comm: name})
	if err != nil {
		return nil, err
	}
	return &client{Client: c, name: name}, c.Ready(ctx)
}

// story is what happened to a client since the fault.
type story struct {
	failed, back time.Time
	errno        string
	fault        time.Time
}

func (s story) String() string {
	switch {
	case s.failed.IsZero():
		return fmt.Sprintf("no error and no answer in the %.0f s since: it hangs", time.Since(s.fault).Seconds())
	case s.back.IsZero():
		return fmt.Sprintf("error (%s) after %.2f s, no good answer since", s.errno, s.failed.Sub(s.fault).Seconds())
	}
	return fmt.Sprintf("error (%s) after %.2f s, first good answer after %.2f s", s.errno, s.failed.Sub(s.fault).Seconds(), s.back.Sub(s.fault).Seconds())
}

func (c *client) story(fault time.Time) story {
	s := story{fault: fault}
	for _, e := range c.Events() {
		switch {
		case e.T <= fault.UnixNano():
		case e.Kind == lab.Error && s.failed.IsZero():
			s.failed, s.errno = e.Time(), e.Errno
		case e.Kind == lab.OK && e.First && !s.failed.IsZero() && s.back.IsZero():
			s.back = e.Time()
		}
	}
	return s
}

// line is what a client did since the last line.
func (c *client) line(fault time.Time) string {
	ok := c.Totals().OK
	n := ok - c.seen
	c.seen = ok
	s := c.story(fault)
	switch {
	case n > 0:
		return fmt.Sprintf("%s %d answers", strings.Repeat("#", min(20, max(1, n/10))), n)
	case s.failed.IsZero():
		return fmt.Sprintf("hangs since %.1f s", time.Since(fault).Seconds())
	default:
		return s.errno
	}
}

// daemon is the running redisguard.
type daemon struct {
	cmd *exec.Cmd
	dir string
}

// startGuard runs redisguard and shows what it says about what it does.
func startGuard(ctx context.Context, path string, out io.Writer) (*daemon, error) {
	dir, err := os.MkdirTemp("", "redisguard-demo-")
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "redisguard.toml")
	// Sockets and state of its own: the node may have a redisguard.
	api := fmt.Sprintf("[api]\nsocket = %q\nadmin_socket = %q\n", filepath.Join(dir, "redisguard.sock"), filepath.Join(dir, "admin", "admin.sock"))
	if err := os.WriteFile(conf, []byte(api+"[watch]\nmode = \"enforce\"\n[log]\nformat = \"json\"\n[exclude]\ncommands = [\"unguarded\"]\n"), 0o600); err != nil {
		return nil, err
	}
	d := &daemon{cmd: exec.CommandContext(ctx, path, "run", "--config", conf, "--state-dir", filepath.Join(dir, "state")), dir: dir}
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.WaitDelay = 3 * time.Second
	pr, pw := io.Pipe()
	d.cmd.Stderr = pw
	started := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(pr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			show(out, lines.Bytes(), started)
		}
		_, _ = io.Copy(io.Discard, pr)
	}()
	if err := d.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start redisguard: %w", err), os.RemoveAll(dir))
	}
	select {
	case <-started:
		return d, nil
	case <-ctx.Done():
		d.stop()
		return nil, ctx.Err()
	case <-time.After(10 * time.Second):
		d.stop()
		return nil, errors.New("redisguard does not start")
	}
}

// show prints the lines of redisguard's log that tell of its work.
func show(out io.Writer, line []byte, started chan struct{}) {
	var rec struct {
		Msg, Text, Level, Namespace string
	}
	if json.Unmarshal(line, &rec) != nil {
		fmt.Fprintf(out, "          redisguard: %s\n", bytes.TrimSpace(line))
		return
	}
	switch {
	case rec.Msg == "redisguard is starting":
		close(started)
	case strings.HasPrefix(rec.Msg, "connection.re"), strings.HasPrefix(rec.Msg, "endpoint.down"), strings.HasPrefix(rec.Msg, "connection.judged"):
		fmt.Fprintf(out, "          redisguard: %s: %s\n", rec.Msg, wrap(rec.Text))
	case rec.Level == "ERROR":
		fmt.Fprintf(out, "          redisguard: %s\n", line)
	}
}

// wrap breaks a long sentence at its semicolons.
func wrap(s string) string { return strings.ReplaceAll(s, "; ", ";\n                      ") }

func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
	os.RemoveAll(d.dir)
}
