package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/redisguard/redisguard/lab"
)

// armed is the config of a guard that may ask, if arm is "enforce": then idle connections
// can be found. The keepalive that comes with it ends none before 25 s.
func armed(profile, arm string) string {
	return fmt.Sprintf("profile = %q\n[tune]\nmode = \"off\"\n[arm]\nmode = %q\n", profile, arm)
}

// use is what a client is doing when the fault comes.
type use struct {
	name string
	kind lab.ClientKind
	idle bool
}

var uses = []use{{"waiting", lab.Writer, false}, {"subscriber", lab.Subscriber, true}, {"BLPOP", lab.Blpop, true}}

// faults measures how soon a client has its error: one flow or the whole endpoint, in each
// direction, for each use. Beside each client another one goes on writing.
func (b *bench) faults() error {
	profiles, dirs := []string{"fast", "balanced"}, []lab.Direction{lab.BothWays, lab.ToServer, lab.ToClient, lab.Rejected}
	if b.quick {
		profiles, dirs = profiles[1:], dirs[:2]
	}
	for _, profile := range profiles {
		for _, u := range uses {
			for _, dir := range dirs {
				for _, whole := range []bool{false, true} {
					if err := b.fault(profile, u, dir, whole); err != nil {
						return fmt.Errorf("%s, %s, %s: %w", profile, u.name, dir, err)
					}
				}
			}
		}
	}
	return nil
}

func (b *bench) fault(profile string, u use, dir lab.Direction, whole bool) error {
	const atOnce = 10
	downAfter := map[string]time.Duration{"fast": 700 * time.Millisecond, "balanced": 2 * time.Second}[profile]
	s, err := b.sceneWith(armed(profile, "enforce"), atOnce, 2, 20*time.Millisecond)
	if err != nil {
		return err
	}
	defer s.close()
	clients := s.writing
	if u.kind != lab.Writer {
		clients = make([]*lab.Client, atOnce)
		if err := s.each(func(i int) (err error) {
			clients[i], err = s.clients[i].Client(b.ctx, lab.ClientConfig{Kind: u.kind, Addr: s.redis[i].Addr(), Conns: 2})
			if err != nil || u.kind == lab.Blpop { // which is ready when it has an element
				return err
			}
			return clients[i].Ready(b.ctx)
		}); err != nil {
			return err
		}
		if err := b.pass(warm / 2); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var took []time.Duration
	for range max(1, b.runs(50)/atOnce) {
		if err := s.each(func(i int) error {
			if err := b.pass(rand.N(2 * time.Second)); err != nil {
				return err
			}
			var undo func() error
			var err error
			if whole {
				undo, err = s.BlockOneWay(s.clients[i], s.servers[i], redisPort, dir)
			} else {
				undo, err = s.DropFlowOneWay(clients[i].Local(0), s.redis[i].Addr(), dir)
			}
			if err != nil {
				return err
			}
			lost := time.Now()
			e, err := b.firstError(clients[i], lost)
			if err != nil {
				return errors.Join(err, undo())
			}
			mu.Lock()
			took = append(took, e.Time().Sub(lost))
			mu.Unlock()
			if err := undo(); err != nil {
				return err
			}
			return b.pass(8 * time.Second) // back, up again, and the pause for a successor
		}); err != nil {
			return err
		}
	}
	what := "one flow"
	goal50, goal99 := 600*time.Millisecond, time.Second
	switch {
	case u.idle:
		goal50, goal99 = downAfter+1200*time.Millisecond, downAfter+3*time.Second
	case whole:
		goal50, goal99 = downAfter+100*time.Millisecond, downAfter+900*time.Millisecond
	}
	if whole {
		what = "endpoint"
	}
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	b.add(p50 <= goal50 && p99 <= goal99, fmt.Sprintf("%s lost %s, %s, `%s`: error after (p50, p99)", what, dir, u.name, profile),
		fmt.Sprintf("<= %v, %v", goal50, goal99), "%v, %v, %d runs", ms(p50), ms(p99), len(took))
	return nil
}

// counterparts measures that what looks like a dead connection and is none is not reaped.
func (b *bench) counterparts() error {
	for _, profile := range []string{"fast", "balanced"} {
		for _, arm := range []string{"enforce", "off"} {
			if err := b.refused(profile, arm); err != nil {
				return err
			}
		}
	}
	return nil
}

// refused measures that connection requests which get lost harm no connection that is
// there: beside clients that write, that write seldom, and that listen.
func (b *bench) refused(profile, arm string) error {
	const atOnce = 10
	p, err := b.pairs(atOnce)
	if err != nil {
		return err
	}
	defer p.Close()
	g, err := b.start(armed(profile, arm))
	if err != nil {
		return err
	}
	defer g.stop()
	for _, cfg := range []lab.ClientConfig{{Conns: 1, Interval: 200 * time.Millisecond}, {Conns: 1, Interval: 4 * time.Second}, {Conns: 6, Kind: lab.Subscriber}} {
		if err := p.each(func(i int) error {
			cfg := cfg
			cfg.Addr = p.redis[i].Addr()
			c, err := p.clients[i].Client(b.ctx, cfg)
			if err != nil {
				return err
			}
			return c.Ready(b.ctx)
		}); err != nil {
			return err
		}
	}
	if err := b.pass(warm); err != nil {
		return err
	}
	rounds := max(1, b.runs(50)/atOnce)
	for range rounds {
		if err := p.each(func(i int) error {
			undo, err := p.BlockConnects(p.clients[i], p.servers[i], redisPort)
			if err != nil {
				return err
			}
			late, err := p.clients[i].Client(b.ctx, lab.ClientConfig{Addr: p.redis[i].Addr(), Conns: 1, ConnectTimeout: 5 * time.Second})
			if err != nil {
				return err
			}
			if err := b.pass(12 * time.Second); err != nil {
				return err
			}
			_, err = late.Stop()
			return errors.Join(err, undo(), b.pass(4*time.Second))
		}); err != nil {
			return err
		}
	}
	reaped := g.count("connection.reaped/reaped")
	b.add(reaped == 0, fmt.Sprintf("connection requests dropped beside living connections, `%s`, arm %s: connections reaped", profile, arm), "0",
		"%d in %d runs %s", reaped, rounds*atOnce, g.someReaps())
	return nil
}

// spaces measures that the time to free all does not grow with the namespaces that share
// a dead endpoint.
func (b *bench) spaces() error {
	one := time.Duration(0)
	for _, n := range []int{1, 50, 250} {
		took, err := b.freeAll(n)
		if err != nil {
			return err
		}
		if n == 1 {
			one = took
		}
		goal := one*3/2 + time.Second // the spread
		b.add(took <= goal, fmt.Sprintf("an endpoint dies for %d namespaces with 4 connections each, `balanced`: the last error after", n),
			fmt.Sprintf("<= %v (1.5 x 1 namespace + spread)", ms(goal)), "%v", ms(took))
	}
	return nil
}

// freeAll has the endpoint of clients in n namespaces vanish, and returns after how long
// the last of their connections had an error.
func (b *bench) freeAll(n int) (time.Duration, error) {
	l, err := lab.New(lab.Config{Prefix: "rgb"})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	s, err := l.Server("s")
	if err != nil {
		return 0, err
	}
	r, err := s.Redis(b.ctx, lab.RedisConfig{Port: redisPort})
	if err != nil {
		return 0, err
	}
	g, err := b.start(armed("balanced", "enforce"))
	if err != nil {
		return 0, err
	}
	defer g.stop()
	var clients []*lab.Client
	for i := range n {
		h, err := l.Client(fmt.Sprintf("c%d", i))
		if err != nil {
			return 0, err
		}
		for _, cfg := range []lab.ClientConfig{{Kind: lab.Writer, Interval: 500 * time.Millisecond}, {Kind: lab.Subscriber}} {
			cfg.Addr, cfg.Conns, cfg.ReportEvery = r.Addr(), 2, 2*time.Second // 500 processes must leave some of the machine to the guard
			c, err := h.Client(b.ctx, cfg)
			if err != nil {
				return 0, err
			}
			clients = append(clients, c)
		}
	}
	for _, c := range clients {
		if err := c.Ready(b.ctx); err != nil {
			return 0, err
		}
	}
	if err := b.pass(warm); err != nil {
		return 0, err
	}
	if err := s.Vanish(); err != nil {
		return 0, err
	}
	lost := time.Now()
	last := lost
	for _, c := range clients {
		failed := map[int]bool{}
		if _, err := c.WaitEvent(b.ctx, func(e lab.Event) bool {
			if e.Kind == lab.Error && e.T >= lost.UnixNano() && !failed[e.Conn] {
				failed[e.Conn] = true
				if e.Time().After(last) {
					last = e.Time()
				}
				if !strings.Contains(e.Errno, "ECONNABORTED") {
					fmt.Fprintf(b.log, "  a client got %s\n", e.Errno)
				}
			}
			return len(failed) == 2
		}); err != nil {
			return 0, err
		}
	}
	return last.Sub(lost), nil
}
