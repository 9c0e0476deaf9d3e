package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/tcpstate"
)

// crowdEnv makes this program hold so many loopback connections, both ends of
// each, in the namespace it is started in.
const crowdEnv = "REDISGUARD_BENCH_CROWD"

// crowdSize is how many connections one process can hold: two descriptors each,
// of the 20,000 that a process may have here.
const crowdSize = 9500

func maybeCrowd() {
	v := os.Getenv(crowdEnv)
	if v == "" {
		return
	}
	n, err := strconv.Atoi(v)
	if err == nil {
		err = crowd(n)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crowd:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func crowd(n int) error {
	const perListener = 5000 // well below the range of local ports
	var keep []int
	for len(keep) < 2*n {
		l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		if err := unix.Listen(l, 128); err != nil {
			return err
		}
		sa, err := unix.Getsockname(l)
		if err != nil {
			return err
		}
		for i := 0; i < perListener && len(keep) < 2*n; i++ {
			c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(c, sa); err != nil {
				return err
			}
			s, _, err := unix.Accept(l)
			if err != nil {
				return err
			}
			keep = append(keep, c, s)
		}
		unix.Close(l)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// addCrowd puts n connections into the namespaces of the hosts, evenly.
func (b *bench) addCrowd(hosts []*lab.Host, n int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for i := 0; n > 0; i++ {
		size := min(n, crowdSize)
		n -= size
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), crowdEnv+"="+strconv.Itoa(size))
		cmd.Stderr = os.Stderr
		if _, err := cmd.StdinPipe(); err != nil {
			return err
		}
		ready := make(chan struct{})
		var once sync.Once
		cmd.Stdout = writer(func([]byte) { once.Do(func() { close(ready) }) })
		p, err := hosts[i%len(hosts)].Start(b.ctx, cmd)
		if err != nil {
			return err
		}
		select {
		case <-ready:
		case <-p.Done():
			return errors.New("a crowd process ended")
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
	}
	return nil
}

// clients starts a client on each host, and waits for all of them.
func (b *bench) clients(hosts []*lab.Host, cfg lab.ClientConfig) error {
	var list []*lab.Client
	for _, h := range hosts {
		c, err := h.Client(b.ctx, cfg)
		if err != nil {
			return err
		}
		list = append(list, c)
	}
	for _, c := range list {
		if err := c.Ready(b.ctx); err != nil {
			return err
		}
	}
	return nil
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

// dump compares a full dump with ss on the same sockets.
func (b *bench) dump() error {
	l, err := lab.New(lab.Config{Prefix: "rgb"})
	if err != nil {
		return err
	}
	defer l.Close()
	h, err := l.Client("crowd")
	if err != nil {
		return err
	}
	want := 190_000
	if b.quick {
		want = 19_000
	}
	if err := b.addCrowd([]*lab.Host{h}, want/2); err != nil {
		return err
	}
	var ours, ss time.Duration
	seen := 0
	for range 5 {
		var s tcpstate.Socket
		if err := h.Do(func() error {
			if err := s.Open(); err != nil {
				return err
			}
			defer s.Close()
			seen = 0
			start := time.Now()
			err := s.Dump(tcpstate.Filter{States: tcpstate.Mask(tcpstate.Established), Info: true}, func(c *tcpstate.Connection) error {
				seen++
				return nil
			})
			if d := time.Since(start); ours == 0 || d < ours {
				ours = d
			}
			return err
		}); err != nil {
			return err
		}
		start := time.Now()
		p, err := h.Start(b.ctx, exec.Command("ss", "-tnio", "state", "established"))
		if err != nil {
			return err
		}
		if err := p.Wait(); err != nil {
			return fmt.Errorf("ss: %w", err)
		}
		if d := time.Since(start); ss == 0 || d < ss {
			ss = d
		}
	}
	allocs, err := dumpAllocs(h)
	if err != nil {
		return err
	}
	ratio := float64(ours) / float64(ss)
	b.add(ratio <= 0.25 && seen >= want, "full dump with TCP_INFO of 190,000 connections, against `ss -tnio`", "<= 1/4 of the wall time",
		"%v against %v: 1/%.1f, %d connections, best of 5", ms(ours), ms(ss), 1/ratio, seen)
	b.add(allocs == 0, "allocations per dump in steady state", "0", "%v", allocs)
	return nil
}

// cpu measures what the daemon costs on a crowded node.
func (b *bench) cpu() error {
	n, err := b.crowdedNode()
	if err != nil {
		return err
	}
	defer n.lab.Close()
	l, hosts, redis := n.lab, n.hosts, n.redis
	// The guard starts on a node that is there already, and its first look at
	// everything takes what the budget for dumps allows.
	g, err := b.start("profile = \"balanced\"\n", "--dry-run")
	if err != nil {
		return err
	}
	defer g.stop()
	settle := 3 * time.Minute
	if b.quick {
		settle = 60 * time.Second
	}
	if err := b.pass(settle); err != nil {
		return err
	}
	quiet, err := b.cpuOver(g, 30*time.Second)
	if err != nil {
		return err
	}
	b.add(quiet <= 10*time.Millisecond, "250 namespaces, 100,000 connections, 2,000 to Redis, quiet: CPU per second", "<= 10ms", "%v", quiet.Round(10*time.Microsecond))

	stop, opened, err := b.noise(l, hosts)
	if err != nil {
		return err
	}
	defer stop()
	if err := b.pass(15 * time.Second); err != nil {
		return err
	}
	from := opened.Load()
	noisy, err := b.cpuOver(g, 30*time.Second)
	if err != nil {
		return err
	}
	rate := float64(opened.Load()-from) / 30
	b.add(noisy <= 30*time.Millisecond, "the same, every namespace opens 10 other connections a second and retransmits: CPU per second", "<= 30ms",
		"%v (%.0f connections a second opened)", noisy.Round(10*time.Microsecond), rate)
	if err := b.discoveryInNoise(l, g, hosts, redis); err != nil {
		return err
	}
	stop()
	if err := b.pass(10 * time.Second); err != nil {
		return err
	}
	return b.suspicion(g, hosts, redis, quiet)
}

// crowded is a node with 250 namespaces, 100,000 connections, 2,000 of them to Redis.
type crowded struct {
	lab   *lab.Lab
	hosts []*lab.Host
	redis *lab.Redis
}

func (b *bench) crowdedNode() (n *crowded, err error) {
	const namespaces = 250
	l, err := lab.New(lab.Config{Prefix: "rgb"})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	n = &crowded{lab: l}
	server, err := l.Server("s")
	if err != nil {
		return nil, err
	}
	n.redis, err = server.Redis(b.ctx, lab.RedisConfig{Port: redisPort, Args: []string{"--maxclients", "12000"}})
	if err != nil {
		return nil, err
	}
	for i := range namespaces {
		h, err := l.Client(fmt.Sprintf("c%d", i))
		if err != nil {
			return nil, err
		}
		n.hosts = append(n.hosts, h)
	}
	if err := b.addCrowd(n.hosts, 98_000); err != nil {
		return nil, err
	}
	fmt.Fprintln(b.log, "  98,000 other connections are up")
	if err := b.clients(n.hosts, lab.ClientConfig{Addr: n.redis.Addr(), Conns: 8, Interval: 4 * time.Second, ReportEvery: time.Second}); err != nil {
		return nil, err
	}
	fmt.Fprintln(b.log, "  2,000 connections to Redis are up")
	return n, nil
}

func (b *bench) cpuOver(g *guard, d time.Duration) (time.Duration, error) {
	before, err := g.cpu()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := b.pass(d); err != nil {
		return 0, err
	}
	after, err := g.cpu()
	return time.Duration(float64(after-before) / time.Since(start).Seconds()), err
}

// noise opens ten connections a second in every namespace, and keeps one there
// that retransmits for ever.
func (b *bench) noise(l *lab.Lab, hosts []*lab.Host) (stop func(), opened *atomic.Int64, err error) {
	target, err := l.Server("noise")
	if err != nil {
		return nil, nil, err
	}
	hole, err := l.Server("hole")
	if err != nil {
		return nil, nil, err
	}
	ln, err := target.Listen(b.ctx, "tcp4", netip.AddrPortFrom(target.Addr, 7000).String())
	if err != nil {
		return nil, nil, err
	}
	holeLn, err := hole.Listen(b.ctx, "tcp4", netip.AddrPortFrom(hole.Addr, 7000).String())
	if err != nil {
		return nil, nil, err
	}
	accept := func(ln net.Listener, keep bool) {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if !keep {
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		}
	}
	go accept(ln, false)
	go accept(holeLn, true)
	done := make(chan struct{})
	var wg sync.WaitGroup
	opened = new(atomic.Int64)
	var stalled []net.Conn
	for _, h := range hosts {
		c, err := h.Dial(b.ctx, "tcp4", holeLn.Addr().String())
		if err != nil {
			return nil, nil, err
		}
		stalled = append(stalled, c)
	}
	if err := hole.Vanish(); err != nil {
		return nil, nil, err
	}
	for i, h := range hosts {
		_, _ = stalled[i].Write([]byte("into the void"))
		wg.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				c, err := h.Dial(b.ctx, "tcp4", ln.Addr().String())
				if err == nil {
					opened.Add(1)
					_ = c.(*net.TCPConn).SetLinger(0)
					c.Close()
				}
			}
		})
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			close(done)
			wg.Wait()
			ln.Close()
			holeLn.Close()
			for _, c := range stalled {
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		})
	}, opened, nil
}

// discoveryInNoise measures that a new connection is found within 5 s all the
// same: its flow is cut then, and a finding about it must come in time.
func (b *bench) discoveryInNoise(l *lab.Lab, g *guard, hosts []*lab.Host, redis *lab.Redis) error {
	n := max(1, b.runs(20))
	foundAll := true
	var took []time.Duration
	for i := range n {
		c, err := hosts[i*7%len(hosts)].Client(b.ctx, lab.ClientConfig{Addr: redis.Addr(), Interval: 5 * time.Millisecond, ReportEvery: time.Second})
		if err != nil {
			return err
		}
		if err := c.Ready(b.ctx); err != nil {
			return err
		}
		if err := b.pass(5 * time.Second); err != nil {
			return err
		}
		before := g.count("connection.judged")
		undo, err := l.DropFlow(c.Local(0), redis.Addr())
		if err != nil {
			return err
		}
		cut := time.Now()
		for g.count("connection.judged") == before && time.Since(cut) < 10*time.Second {
			if err := b.pass(5 * time.Millisecond); err != nil {
				return err
			}
		}
		d := time.Since(cut)
		took = append(took, d)
		foundAll = foundAll && d < 10*time.Second
		_, serr := c.Stop()
		if err := errors.Join(undo(), serr); err != nil {
			return err
		}
	}
	b.add(foundAll, "in that noise: connections of 5 s of age that are known, and judged when their flow breaks", "all", "%v of %d; judged after p50 %v, at most %v",
		foundAll, n, ms(quantile(took, 0.5)), ms(quantile(took, 1)))
	return nil
}

// suspicion measures what 1,000 connections under suspicion cost.
func (b *bench) suspicion(g *guard, hosts []*lab.Host, redis *lab.Redis, quiet time.Duration) error {
	// Half of the hosts are cut off from each other's view: their own link goes
	// dark, so that the guard doubts, judges nothing, and goes on looking.
	half := hosts[:len(hosts)/2]
	for _, h := range half {
		if err := h.Vanish(); err != nil {
			return err
		}
	}
	if err := b.pass(6 * time.Second); err != nil { // every client has written by then
		return err
	}
	under, err := b.cpuOver(g, 10*time.Second)
	for _, h := range half {
		err = errors.Join(err, h.Return())
	}
	if err != nil {
		return err
	}
	b.add(under-quiet <= 10*time.Millisecond, "1,000 connections under suspicion: CPU per second more", "<= 10ms", "%v", (under - quiet).Round(10*time.Microsecond))
	return nil
}

// memory measures the resident memory with 10,000 tracked connections.
func (b *bench) memory() error {
	var rss float64
	if err := b.tenThousand(func(g []*guard) (err error) {
		rss, err = g[0].rss()
		return err
	}, b.guard); err != nil {
		return err
	}
	b.add(rss <= 40, "resident memory at 10,000 tracked connections", "<= 40 MiB", "%.1f MiB", rss)
	return nil
}

// tenThousand has daemons of the given programs, beside each other, watch 10,000
// connections, and calls measure half a minute after they are there.
func (b *bench) tenThousand(measure func([]*guard) error, programs ...string) error {
	p, err := b.pairs(1)
	if err != nil {
		return err
	}
	defer p.Close()
	// 10,000 clients are more than the server's default.
	if err := p.redis[0].Kill(); err != nil {
		return err
	}
	redis, err := p.servers[0].Redis(b.ctx, lab.RedisConfig{Port: redisPort, Args: []string{"--maxclients", "15000"}})
	if err != nil {
		return err
	}
	guards, stop, err := b.startAll(programs)
	if err != nil {
		return err
	}
	defer stop()
	if err := b.clients(slices.Repeat(p.clients[:1], 10), lab.ClientConfig{Addr: redis.Addr(), Conns: 1000, Interval: 10 * time.Second, ReportEvery: time.Second}); err != nil {
		return err
	}
	if err := b.pass(30 * time.Second); err != nil {
		return err
	}
	return measure(guards)
}

// startAll starts a daemon of each program; they only observe if there are several.
func (b *bench) startAll(programs []string) (guards []*guard, stop func(), err error) {
	stop = func() {
		for _, g := range guards {
			g.stop()
		}
	}
	own := b.guard
	defer func() { b.guard = own }()
	var args []string
	if len(programs) > 1 {
		args = append(args, "--dry-run")
	}
	for _, b.guard = range programs {
		g, err := b.start("profile = \"balanced\"\n", args...)
		if err != nil {
			stop()
			return nil, nil, err
		}
		guards = append(guards, g)
	}
	return guards, stop, nil
}

// dumpAllocs counts allocations of dumps after the first.
func dumpAllocs(h *lab.Host) (float64, error) {
	var s tcpstate.Socket
	var n float64
	fn := func(*tcpstate.Connection) error { return nil }
	f := tcpstate.Filter{States: tcpstate.Mask(tcpstate.Established), Info: true}
	err := h.Do(func() error {
		if err := s.Open(); err != nil {
			return err
		}
		defer s.Close()
		if err := s.Dump(f, fn); err != nil {
			return err
		}
		var derr error
		n = testing.AllocsPerRun(3, func() { derr = errors.Join(derr, s.Dump(f, fn)) })
		return derr
	})
	return n, err
}
