package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/redisguard/redisguard/lab"
)

const redisPort = 6379

// pairs is a lab with n servers, each with a client host of its own.
type pairs struct {
	*lab.Lab
	servers, clients []*lab.Host
	redis            []*lab.Redis
}

func (b *bench) pairs(n int) (*pairs, error) {
	l, err := lab.New(lab.Config{Prefix: "rgb"})
	if err != nil {
		return nil, err
	}
	p := &pairs{Lab: l}
	for i := range n {
		s, err := l.Server(fmt.Sprintf("s%d", i))
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		c, err := l.Client(fmt.Sprintf("c%d", i))
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		r, err := s.Redis(b.ctx, lab.RedisConfig{Port: redisPort})
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		p.servers, p.clients, p.redis = append(p.servers, s), append(p.clients, c), append(p.redis, r)
	}
	return p, nil
}

// each runs fn for every pair at once.
func (p *pairs) each(fn func(i int) error) error {
	errs := make([]error, len(p.clients))
	var wg sync.WaitGroup
	for i := range p.clients {
		wg.Go(func() { errs[i] = fn(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// writers starts a client per pair.
func (p *pairs) writers(b *bench, conns int, interval time.Duration) ([]*lab.Client, error) {
	list := make([]*lab.Client, len(p.clients))
	err := p.each(func(i int) (err error) {
		if list[i], err = p.clients[i].Client(b.ctx, lab.ClientConfig{Addr: p.redis[i].Addr(), Conns: conns, Interval: interval}); err != nil {
			return err
		}
		return list[i].Ready(b.ctx)
	})
	return list, err
}

// scene is a lab with a guard and writing clients that has been going on for
// long enough.
type scene struct {
	*pairs
	g       *guard
	writing []*lab.Client // one per pair
}

// scene sets up n pairs of server and client, each client with so many
// connections that write at the given interval, guarded under a profile.
func (b *bench) scene(profile string, n, conns int, interval time.Duration) (*scene, error) {
	return b.sceneWith(fmt.Sprintf("profile = %q\n", profile), n, conns, interval)
}

// sceneWith is scene under a config.
func (b *bench) sceneWith(config string, n, conns int, interval time.Duration) (*scene, error) {
	p, err := b.pairs(n)
	if err != nil {
		return nil, err
	}
	s := &scene{pairs: p}
	if s.g, err = b.start(config); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	if s.writing, err = p.writers(b, conns, interval); err == nil {
		err = b.pass(warm)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *scene) close() error {
	s.g.stop()
	return s.Close()
}

// warm is how long traffic runs before the first fault: the guard has to have
// seen the connections, made its first probes, and seen that the path is clean.
const warm = 12 * time.Second

// firstError waits for a client's first error since t, and for the first good
// answer after that.
func (b *bench) firstError(c *lab.Client, since time.Time) (lab.Event, error) {
	return c.WaitEvent(b.ctx, func(e lab.Event) bool { return e.Kind == lab.Error && e.T >= since.UnixNano() })
}

func (b *bench) back(c *lab.Client, after lab.Event) error {
	_, err := c.WaitEvent(b.ctx, func(e lab.Event) bool { return e.Kind == lab.OK && e.First && e.T > after.T && e.Conn == after.Conn })
	return err
}

// silentLoss measures from the server's vanishing to the client's error.
func (b *bench) silentLoss(profile string, downAfter time.Duration) error {
	const atOnce = 10
	s, err := b.scene(profile, atOnce, 2, 10*time.Millisecond)
	if err != nil {
		return err
	}
	defer s.close()
	var mu sync.Mutex
	var took []time.Duration
	for range b.runs(100) / atOnce {
		if err := s.each(func(i int) error {
			if err := b.pass(rand.N(2 * time.Second)); err != nil {
				return err
			}
			if err := s.servers[i].Vanish(); err != nil {
				return err
			}
			lost := time.Now()
			e, err := b.firstError(s.writing[i], lost)
			if err != nil {
				return err
			}
			mu.Lock()
			took = append(took, e.Time().Sub(lost))
			mu.Unlock()
			if err := s.servers[i].Return(); err != nil {
				return err
			}
			if err := b.back(s.writing[i], e); err != nil {
				return err
			}
			return b.pass(6 * time.Second) // up again, and probes paid back
		}); err != nil {
			return err
		}
	}
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	what := fmt.Sprintf("silent loss of the endpoint, clients writing, `%s`: error after", profile)
	goal50, goal99 := downAfter+300*time.Millisecond, downAfter+900*time.Millisecond
	b.add(p50 <= goal50, what+" (p50)", fmt.Sprintf("<= %v", goal50), "%v, %d runs", ms(p50), len(took))
	b.add(p99 <= goal99, what+" (p99)", fmt.Sprintf("<= %v", goal99), "%v", ms(p99))
	return nil
}

// flow measures how soon a single broken flow is ended, in every profile.
func (b *bench) flow() error {
	for _, profile := range []string{"fast", "balanced", "calm"} {
		if err := b.flowIn(profile); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) flowIn(profile string) error {
	took, err := b.brokenFlows(profile, b.runs(100))
	if err != nil {
		return err
	}
	p50 := quantile(took, 0.5)
	b.add(p50 <= 800*time.Millisecond, fmt.Sprintf("only the old flow dead, `%s`: error after (p50)", profile), "<= 800ms",
		"%v, p99 %v, %d runs", ms(p50), ms(quantile(took, 0.99)), len(took))
	return nil
}

// brokenFlows breaks about n flows beside ones that work, and returns after how long their
// clients had an error.
func (b *bench) brokenFlows(profile string, n int) (took []time.Duration, err error) {
	const atOnce = 10
	s, err := b.scene(profile, atOnce, 2, 5*time.Millisecond)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var mu sync.Mutex
	for range max(1, n/atOnce) {
		if err := s.each(func(i int) error {
			if err := b.pass(rand.N(2 * time.Second)); err != nil {
				return err
			}
			undo, err := s.DropFlow(s.writing[i].Local(0), s.redis[i].Addr())
			if err != nil {
				return err
			}
			cut := time.Now()
			e, err := b.firstError(s.writing[i], cut)
			if err != nil {
				return err
			}
			mu.Lock()
			took = append(took, e.Time().Sub(cut))
			mu.Unlock()
			return errors.Join(undo(), b.back(s.writing[i], e), b.pass(4*time.Second))
		}); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// thousand measures how long it takes to reap 1,000 connections.
func (b *bench) thousand() error {
	first, all, err := b.reapThousand()
	if err != nil {
		return err
	}
	b.add(all <= 3*time.Second, "1,000 connections to one dead endpoint: from the first reap to the last", "<= 3s",
		"%v; the first %v after the loss", ms(all), ms(first))
	return nil
}

// reapThousand loses the endpoint of 1,000 connections, and returns how long after that
// the first of them had an error, and how long after the first the last.
func (b *bench) reapThousand() (first, all time.Duration, err error) {
	s, err := b.scene("balanced", 1, 1000, 500*time.Millisecond)
	if err != nil {
		return 0, 0, err
	}
	defer s.close()
	if err := s.servers[0].Vanish(); err != nil {
		return 0, 0, err
	}
	lost := time.Now()
	failed := map[int]bool{}
	var from, to time.Time
	if _, err := s.writing[0].WaitEvent(b.ctx, func(e lab.Event) bool {
		if e.Kind == lab.Error && e.T >= lost.UnixNano() && !failed[e.Conn] {
			failed[e.Conn] = true
			if from.IsZero() {
				from = e.Time()
			}
			to = e.Time()
		}
		return len(failed) == 1000
	}); err != nil {
		return 0, 0, err
	}
	return from.Sub(lost), to.Sub(from), nil
}

// pause measures that a short pause ends no connection.
func (b *bench) pause() error {
	for _, x := range []struct {
		profile string
		pause   time.Duration
	}{{"fast", 500 * time.Millisecond}, {"balanced", 1800 * time.Millisecond}} {
		if err := b.pauseIn(x.profile, x.pause); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) pauseIn(profile string, pause time.Duration) error {
	const atOnce = 10
	s, err := b.scene(profile, atOnce, 3, 20*time.Millisecond)
	if err != nil {
		return err
	}
	defer s.close()
	rounds := max(1, b.runs(50)/atOnce)
	for range rounds {
		if err := s.each(func(i int) error {
			if err := b.pass(rand.N(2 * time.Second)); err != nil {
				return err
			}
			if err := s.servers[i].Vanish(); err != nil {
				return err
			}
			<-time.After(pause)
			return errors.Join(s.servers[i].Return(), b.pass(6*time.Second))
		}); err != nil {
			return err
		}
	}
	reaped := s.g.count("connection.reaped/reaped")
	b.add(reaped == 0, fmt.Sprintf("a pause of %v in `%s`: connections reaped", pause, profile), "0", "%d in %d pauses %s", reaped, rounds*atOnce, s.g.someReaps())
	return nil
}

// noFalseReap runs a million requests over a lossy path.
func (b *bench) noFalseReap(kind string) error {
	p, err := b.pairs(1)
	if err != nil {
		return err
	}
	defer p.Close()
	g, err := b.start("profile = \"fast\"\n")
	if err != nil {
		return err
	}
	defer g.stop()
	if kind == "random" {
		_, err = p.Loss(100)
	} else {
		_, err = p.LossBursts(lab.Bursts{Permille: 10, Min: 30 * time.Millisecond, Max: 80 * time.Millisecond, Seed: 1})
	}
	if err != nil {
		return err
	}
	// Over a path that loses that much, being ready takes a while.
	conns, interval := 1000, time.Duration(0)
	if kind == "bursts" {
		conns, interval = 200, 20*time.Millisecond
	}
	c, err := p.clients[0].Client(b.ctx, lab.ClientConfig{Addr: p.redis[0].Addr(), Conns: conns, Interval: interval})
	if err != nil {
		return err
	}
	want := b.runs(1_000_000)
	start := time.Now()
	for c.Totals().OK < want {
		if err := b.pass(time.Second); err != nil {
			return err
		}
		if time.Since(start) > 10*time.Minute {
			break
		}
	}
	t := c.Totals()
	aborted := t.Errors["ECONNABORTED"]
	kernel := 0
	for errno, n := range t.Errors {
		if errno != "ECONNABORTED" {
			kernel += n
		}
	}
	reaped := g.count("connection.reaped/reaped")
	what := "10 % random loss each way, `fast`"
	if kind == "bursts" {
		what = "1 % loss in bursts of 30 to 80 ms, `fast`"
	}
	b.add(reaped == 0 && aborted == 0 && t.OK >= want, what+": connections reaped", "0 in 1,000,000 requests",
		"%d in %d requests over %v; the kernel's timers ended %d %s", reaped, t.OK, time.Since(start).Round(time.Second), kernel, g.someReaps())
	return nil
}

// busyServer measures that a frozen server and a closed window end no connection.
func (b *bench) busyServer() error {
	s, err := b.scene("fast", 1, 20, 10*time.Millisecond)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.redis[0].Freeze(); err != nil {
		return err
	}
	<-time.After(5 * time.Second)
	if err := s.redis[0].Thaw(); err != nil {
		return err
	}
	if err := b.pass(3 * time.Second); err != nil {
		return err
	}
	reaped := s.g.count("connection.reaped/reaped")
	b.add(reaped == 0 && len(s.writing[0].Totals().Errors) == 0, "a server frozen for 5 s, `fast`: connections reaped", "0", "%d of 20; errors %v", reaped, s.writing[0].Totals().Errors)
	return b.closedWindow(s)
}

// closedWindow lets a client write into a server that does not read for 10 s.
func (b *bench) closedWindow(s *scene) error {
	before := s.g.count("connection.reaped/reaped")
	addr := netip.AddrPortFrom(s.servers[0].Addr, redisPort+1) // watched by default as well
	ln, err := s.servers[0].Listen(b.ctx, "tcp4", addr.String())
	if err != nil {
		return err
	}
	defer ln.Close()
	var first net.Conn
	accepted := make(chan struct{})
	var once sync.Once
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if first == nil {
				first = c // never read until the end
				once.Do(func() { close(accepted) })
				continue
			}
			go func() { // a probe
				defer c.Close()
				buf := make([]byte, 64)
				if n, _ := c.Read(buf); n > 0 {
					_, _ = c.Write([]byte("+PONG\r\n"))
				}
			}()
		}
	}()
	conn, err := s.pairs.clients[0].Dial(b.ctx, "tcp4", addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	<-accepted
	written := make(chan error, 1)
	const size = 16 << 20 // more than both buffers hold
	go func() {
		_, err := conn.Write(make([]byte, size))
		written <- err
	}()
	select {
	case err := <-written:
		return fmt.Errorf("the window did not close: %v", err)
	case <-time.After(10 * time.Second):
	}
	buf := make([]byte, 1<<20)
	got := 0
	for got < size {
		n, err := first.Read(buf)
		got += n
		if err != nil {
			break
		}
	}
	werr := <-written
	reaped := s.g.count("connection.reaped/reaped") - before
	b.add(reaped == 0 && werr == nil && got == size, "a server with a closed window for 10 s, `fast`: connections reaped", "0", "%d; all %d MiB arrived: %v", reaped, size>>20, got == size)
	return nil
}
