package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/tcpstate"
)

// armConfig is a config of a daemon in which arming may go so far. It does not
// tune: what is measured is what arm does.
func armConfig(mode string) string {
	return fmt.Sprintf("profile = \"balanced\"\n[tune]\nmode = \"off\"\n[arm]\nmode = %q\n", mode)
}

// held is the connections to Redis of a host.
type held struct {
	host *lab.Host
	ids  []tcpstate.ID
}

// hold lists the connections of each host, of which there must be so many in all.
func hold(hosts []*lab.Host, want int) ([]held, error) {
	var list []held
	n := 0
	for _, h := range hosts {
		x := held{host: h}
		if err := x.visit(func(s *tcpstate.Socket) error {
			seen := map[uint64]bool{}
			f := tcpstate.Filter{States: tcpstate.Mask(tcpstate.Established), RemotePorts: []uint16{redisPort}}
			return s.Dump(f, func(c *tcpstate.Connection) error {
				if !seen[c.Cookie] {
					seen[c.Cookie] = true
					x.ids = append(x.ids, c.ID)
				}
				return nil
			})
		}); err != nil {
			return nil, err
		}
		n += len(x.ids)
		list = append(list, x)
	}
	if n != want {
		return nil, fmt.Errorf("%d connections to Redis are there, not %d", n, want)
	}
	return list, nil
}

func (x *held) visit(fn func(*tcpstate.Socket) error) error {
	return x.host.Do(func() error {
		var s tcpstate.Socket
		if err := s.Open(); err != nil {
			return err
		}
		defer s.Close()
		return fn(&s)
	})
}

// states counts those of the given connections that are still there, and those of
// them that have keepalive on: an idle connection's timer is then that one.
func (x *held) states(ids []tcpstate.ID) (alive, armed int, err error) {
	out := make([]tcpstate.Result, len(ids))
	err = x.visit(func(s *tcpstate.Socket) error { return s.Get(ids, out) })
	for i := range out {
		if out[i].Err != nil || out[i].State != tcpstate.Established {
			continue
		}
		alive++
		if out[i].Timer == tcpstate.TimerKeepalive {
			armed++
		}
	}
	return alive, armed, err
}

// armed waits until the first and until all of the connections have keepalive. It
// asks the kernel, and little: of each host about one connection until the first,
// and then of one host at a time until that is done.
func (b *bench) armed(list []held) (first, last time.Time, err error) {
	deadline := time.Now().Add(time.Minute)
	for first.IsZero() {
		for i := range list {
			_, n, err := list[i].states(list[i].ids[:1])
			if err != nil {
				return first, last, err
			}
			if n > 0 {
				first = time.Now()
				break
			}
		}
		if time.Now().After(deadline) {
			return first, last, errors.New("nothing is armed after a minute")
		}
		if err := b.pass(20 * time.Millisecond); err != nil {
			return first, last, err
		}
	}
	for i := range list {
		for {
			_, n, err := list[i].states(list[i].ids)
			if err != nil {
				return first, last, err
			}
			if n == len(list[i].ids) {
				break
			}
			if time.Now().After(deadline) {
				return first, last, fmt.Errorf("host %s has %d of %d connections armed after a minute", list[i].host.Name, n, len(list[i].ids))
			}
			if err := b.pass(5 * time.Millisecond); err != nil {
				return first, last, err
			}
		}
	}
	return first, time.Now(), nil
}

// armingRun is what a daemon has cost.
type armingRun struct {
	start  []cpuAt       // from its start on
	steady time.Duration // a second, afterwards
	// With arming: since its start.
	first, all time.Duration
	allCPU     time.Duration
}

// cpuAt is the CPU time used so long after the start.
type cpuAt struct{ at, used time.Duration }

// after is the CPU time used by then.
func (r *armingRun) after(d time.Duration) (used time.Duration) {
	for _, c := range r.start {
		if c.at > d {
			break
		}
		used = c.used
	}
	return used
}

// arm measures what arming the connections of a node costs that is there already,
// against a daemon that does everything else.
func (b *bench) arm() error {
	const namespaces, processes, each = 50, 4, 50
	const conns = namespaces * processes * each
	l, err := lab.New(lab.Config{Prefix: "rgb"})
	if err != nil {
		return err
	}
	defer l.Close()
	// One server for each process of a namespace.
	var servers []*lab.Redis
	for i := range processes {
		h, err := l.Server(fmt.Sprintf("s%d", i))
		if err != nil {
			return err
		}
		r, err := h.Redis(b.ctx, lab.RedisConfig{Port: redisPort})
		if err != nil {
			return err
		}
		servers = append(servers, r)
	}
	var hosts []*lab.Host
	for i := range namespaces {
		h, err := l.Client(fmt.Sprintf("c%d", i))
		if err != nil {
			return err
		}
		hosts = append(hosts, h)
	}
	for _, r := range servers {
		if err := b.clients(hosts, lab.ClientConfig{Kind: lab.Idle, Addr: r.Addr(), Conns: each, ReportEvery: time.Hour}); err != nil {
			return err
		}
	}
	list, err := hold(hosts, conns)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.log, "  %d connections to Redis are up\n", conns)
	off, err := b.armingRun("off", list)
	if err != nil {
		return err
	}
	on, err := b.armingRun("enforce", list)
	if err != nil {
		return err
	}
	const what = "10,000 connections, 200 processes, 50 namespaces"
	b.add(on.all <= 3*time.Second, what+": all armed after the daemon's start", "<= 3s", "%v; from the first to the last %v", ms(on.all), ms(on.all-on.first))
	without := off.after(on.all)
	b.add(on.allCPU-without <= time.Second, "the same: CPU until then, more than with `arm` off", "<= 1s", "%v (%v against %v)", ms(on.allCPU-without), ms(on.allCPU), ms(without))
	more := on.steady - off.steady
	b.add(more < 5*time.Millisecond, "the same, afterwards: CPU per second more than with `arm` off", "< 5ms", "%v (%v against %v)",
		more.Round(10*time.Microsecond), on.steady.Round(10*time.Microsecond), off.steady.Round(10*time.Microsecond))
	return nil
}

// armingRun starts a daemon beside connections that are there.
func (b *bench) armingRun(mode string, list []held) (*armingRun, error) {
	settle, over := 45*time.Second, 30*time.Second
	if b.quick {
		settle, over = 20*time.Second, 10*time.Second
	}
	r := &armingRun{}
	began := time.Now()
	g, err := b.start(armConfig(mode))
	if err != nil {
		return nil, err
	}
	defer g.stop()
	if mode == "enforce" {
		first, last, err := b.armed(list)
		if err != nil {
			return nil, err
		}
		if r.allCPU, err = g.cpu(); err != nil {
			return nil, err
		}
		r.first, r.all = first.Sub(began), last.Sub(began)
	}
	for time.Since(began) < settle {
		used, err := g.cpu()
		if err != nil {
			return nil, err
		}
		r.start = append(r.start, cpuAt{time.Since(began), used})
		if err := b.pass(20 * time.Millisecond); err != nil {
			return nil, err
		}
	}
	if r.steady, err = b.cpuOver(g, over); err != nil {
		return nil, err
	}
	// The daemon must see it as the kernel does.
	want := 0
	if mode == "enforce" {
		for i := range list {
			want += len(list[i].ids)
		}
	}
	return r, b.checkArmed(g, want)
}

func (b *bench) checkArmed(g *guard, want int) error {
	c := g.client()
	defer c.Close()
	conns, err := c.Connections(b.ctx, client.ConnectionQuery{})
	if err != nil {
		return err
	}
	n := 0
	for i := range conns {
		if a := conns[i].Arm; a != nil && a.State == v1.ArmDone {
			n++
		}
	}
	if n != want {
		return fmt.Errorf("the daemon says that it has armed %d connections, not %d", n, want)
	}
	fmt.Fprintf(b.log, "  the daemon has armed %d connections of %d\n", n, len(conns))
	return nil
}

// armedLoss measures that a lossy path ends no armed connection.
func (b *bench) armedLoss() error {
	const paths, each = 10, 100
	p, err := b.pairs(paths)
	if err != nil {
		return err
	}
	defer p.Close()
	list := make([]*lab.Client, paths)
	if err := p.each(func(i int) (err error) {
		if list[i], err = p.clients[i].Client(b.ctx, lab.ClientConfig{Kind: lab.Idle, Addr: p.redis[i].Addr(), Conns: each}); err != nil {
			return err
		}
		return list[i].Ready(b.ctx)
	}); err != nil {
		return err
	}
	conns, err := hold(p.clients, paths*each)
	if err != nil {
		return err
	}
	g, err := b.start(armConfig("enforce"))
	if err != nil {
		return err
	}
	defer g.stop()
	if _, _, err := b.armed(conns); err != nil {
		return err
	}
	lasts := b.lossy
	if b.quick {
		lasts /= 10
	}
	before, err := keepaliveProbes(p.clients)
	if err != nil {
		return err
	}
	if _, err := p.Loss(10); err != nil {
		return err
	}
	if err := b.pass(lasts); err != nil {
		return err
	}
	probes, err := keepaliveProbes(p.clients)
	if err != nil {
		return err
	}
	probes -= before
	left := 0
	for i := range conns {
		alive, _, err := conns[i].states(conns[i].ids)
		if err != nil {
			return err
		}
		left += alive
	}
	reaped := g.count("connection.reaped/reaped")
	ended := map[string]int{}
	failed := 0
	for _, c := range list {
		t, err := c.Stop()
		if err != nil {
			return err
		}
		for errno, n := range t.Errors {
			ended[errno] += n
			failed += n
		}
	}
	b.add(left == paths*each && failed == 0 && reaped == 0 && probes > 0,
		fmt.Sprintf("1,000 idle armed connections, %v of 1 %% random loss each way: connections ended", lasts), "0",
		"%d, errors %v; reaped %d; %d keepalive probes sent; endpoints called suspect %d times, down %d times %s", paths*each-left, ended, reaped, probes,
		g.count("endpoint.suspect"), g.count("endpoint.down"), g.someReaps())
	return nil
}

// keepaliveProbes is how many keepalive probes the kernel has sent in the hosts.
func keepaliveProbes(hosts []*lab.Host) (sum int, err error) {
	for _, h := range hosts {
		if err := h.Do(func() error {
			text, err := os.ReadFile("/proc/thread-self/net/netstat")
			if err != nil {
				return err
			}
			// Each line of values follows its line of names.
			var names []string
			for line := range strings.Lines(string(text)) {
				f := strings.Fields(line)
				if len(f) == 0 || f[0] != "TcpExt:" {
					continue
				}
				for i, name := range names {
					if name == "TCPKeepAlive" && i < len(f) {
						n, err := strconv.Atoi(f[i])
						sum += n
						return err
					}
				}
				names = f
			}
			return errors.New("the kernel does not count keepalive probes")
		}); err != nil {
			return 0, err
		}
	}
	return sum, nil
}
