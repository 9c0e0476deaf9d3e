package clusterview

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var table = flag.Bool("fleet-table", false, "print the figures of TestFleet for docs/scale.md")

// daemon is one scheduler of a fleet, with what it has asked.
type daemon struct {
	s    *schedule
	next time.Duration
	open []poll
}

type poll struct {
	addr netip.AddrPort
	ends time.Duration
	ok   bool
}

// fleet is the daemons by the time at which they do something next.
type fleet []*daemon

func (f fleet) Len() int           { return len(f) }
func (f fleet) Less(i, j int) bool { return f[i].next < f[j].next }
func (f fleet) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *fleet) Push(x any)        { *f = append(*f, x.(*daemon)) }
func (f *fleet) Pop() any          { panic("none leaves") }

// load is what one server had to bear.
type load struct {
	polls  map[int]int // by second
	open   int
	held   time.Duration // connections times time
	latest time.Duration
}

func (l *load) at(now time.Duration) {
	l.held += time.Duration(l.open) * (now - l.latest)
	l.latest = now
}

// run lets time pass until end. A poll takes took.
func (f fleet) run(now, end, took time.Duration, loads map[netip.AddrPort]*load, dead netip.AddrPort) {
	for f[0].next <= end {
		d := f[0]
		now = max(now, d.next)
		for i := 0; i < len(d.open); {
			if p := d.open[i]; p.ends <= now {
				d.s.done(now, p.addr, p.ok)
				d.open = slices.Delete(d.open, i, i+1)
				l := loads[p.addr]
				l.at(now)
				l.open--
				continue
			}
			i++
		}
		for _, t := range d.s.ready(now) {
			l := loads[t.addr]
			l.at(now)
			l.open++
			l.polls[int(now/time.Second)]++
			p := poll{t.addr, now + took/2 + d.s.part(took), true}
			if t.addr == dead {
				p.ends, p.ok = now+time.Second, false
			}
			d.open = append(d.open, p)
		}
		at, ok := d.s.next(now)
		if !ok {
			at = end + time.Hour
		}
		for _, p := range d.open {
			at = min(at, p.ends)
		}
		d.next = max(at, now+1)
		heap.Fix(&f, 0)
	}
	for _, l := range loads {
		l.at(end)
	}
}

// figures are those of the worst server in a time.
type figures struct {
	mean, peak  float64 // polls a second
	connections float64 // held on average
}

func measure(loads map[netip.AddrPort]*load, from, to time.Duration) (x figures) {
	for _, l := range loads {
		sum := 0
		for second, n := range l.polls {
			if second >= int(from/time.Second) && second < int(to/time.Second) {
				sum += n
				x.peak = max(x.peak, float64(n))
			}
		}
		x.mean = max(x.mean, float64(sum)/(to-from).Seconds())
		x.connections = max(x.connections, float64(l.held)/float64(to-from))
	}
	return x
}

// TestFleet runs the schedulers of 100, 1,000 and 5,000 daemons, on a primary with two replicas
// and on 100 nodes, for some quiet minutes and for the minute of a failover that all of them notice in the
// same instant. It fails where all together ask a server more often than schedule.go says, or
// hold more than a tenth of its connections. Each daemon knows only its own connections.
func TestFleet(t *testing.T) {
	t.Parallel()
	for _, servers := range []int{3, 100} {
		for _, daemons := range []int{100, 1000, 5000} {
			for _, took := range []time.Duration{2 * time.Millisecond, 200 * time.Millisecond} {
				if servers == 100 && (took > 2*time.Millisecond || daemons == 5000 && !*table) {
					continue // takes long, and each server has less to bear than one of three
				}
				t.Run(fmt.Sprintf("servers=%d/daemons=%d/poll=%v", servers, daemons, took), func(t *testing.T) { testFleet(t, servers, daemons, took) })
			}
		}
	}
}

func testFleet(t *testing.T, servers, daemons int, took time.Duration) {
	random := rand.New(rand.NewPCG(uint64(servers), uint64(daemons)))
	var addrs []netip.AddrPort
	loads := map[netip.AddrPort]*load{}
	for i := range servers {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 200), byte(i % 200)}), 6379)
		addrs = append(addrs, a)
		loads[a] = &load{polls: map[int]int{}}
	}
	// Nodes have from 1 to 19 connections to the target: the primary of three has them all, of
	// 100 nodes each has its part, and one at least.
	local, all := make([]int, daemons), 0
	for i := range local {
		local[i] = 1 + random.IntN(19)
		all += local[i]
	}
	clients := make([]int, servers)
	for i := range clients {
		clients[i] = max(1, all/servers)
		if servers == 3 {
			clients[i] = []int{all, 1, 1}[i]
		}
	}
	var f fleet
	voters := servers/2 + servers%2
	for i := range daemons {
		s := newSchedule(rand.New(rand.NewPCG(uint64(i), 9)), 0, 0)
		s.set(0, addrs, func(a netip.AddrPort) pace {
			if servers == 3 {
				return pace{hot: true}
			}
			// As View.setContacts does for a cluster of 50 primaries with a replica each.
			j := slices.Index(addrs, a)
			return pace{calm: float64(servers) / 2, hot: (j+i)%voters < maxVoters && j < voters, haste: float64(maxVoters) / 6}
		})
		s.setLocal(0, local[i])
		for j, a := range addrs {
			s.setClients(a, clients[j])
		}
		f = append(f, &daemon{s: s})
	}
	heap.Init(&f)
	quiet, end := 3*time.Minute, 4*time.Minute
	if servers == 100 {
		quiet, end = 140*time.Second, 160*time.Second
		if !*table {
			quiet, end = 90*time.Second, 100*time.Second
		}
	}
	f.run(0, quiet, took, loads, netip.AddrPort{})
	calm := measure(loads, time.Minute, quiet)
	for _, l := range loads {
		l.held = 0
	}
	// The primary dies, and everybody sees its own connections stall.
	for _, d := range f {
		d.s.hint(quiet, addrs[0], "a connection has stalled")
		d.s.unclear = quiet
		d.next = quiet
	}
	heap.Init(&f)
	f.run(quiet, end, took, loads, addrs[0])
	loads[addrs[0]].held = 0 // nobody is there to hold them
	hasty := measure(loads, quiet, end)

	// Random bunches of independent daemons: a second may have more than the mean.
	slack := func(rate float64) float64 { return 1.15*rate + 4*max(1, rate)/10 + 10 }
	if calm.mean > 1.05*quietRate || calm.peak > slack(quietRate) {
		t.Errorf("quiet: %.0f polls a second, %.0f in the worst one, at most %d", calm.mean, calm.peak, quietRate)
	}
	if hasty.mean > 1.05*hastyRate || hasty.peak > slack(hastyRate) {
		t.Errorf("failover: %.0f polls a second, %.0f in the worst one, at most %d", hasty.mean, hasty.peak, hastyRate)
	}
	if most := connectionShare * float64(slices.Max(clients)); calm.connections > most || hasty.connections > most {
		t.Errorf("%.2f connections on average while quiet, %.2f in a failover, of %d", calm.connections, hasty.connections, slices.Max(clients))
	}
	// What it is for: how soon after a promotion somebody looks.
	var periods []time.Duration
	for _, d := range f {
		periods = append(periods, d.s.hurry(d.s.by[addrs[1]]))
	}
	slices.Sort(periods)
	// A promotion comes at any time within a period: half of a period is the median.
	half, most := periods[len(periods)/2]/2, periods[len(periods)*99/100]
	if servers == 3 && daemons == 100 && took < 10*time.Millisecond && (half > 100*time.Millisecond || most > 530*time.Millisecond) {
		t.Errorf("a server is asked %v after a promotion by half of the daemons, %v by the slowest", half, most)
	}
	if *table {
		fmt.Printf("| %d | %d | %v | %.1f / %.0f | %.1f / %.0f | %.2f / %.2f | %v / %v |\n", servers, daemons, took, calm.mean, calm.peak, hasty.mean, hasty.peak, calm.connections, hasty.connections,
			half.Round(time.Millisecond), most.Round(time.Millisecond))
	}
}

// TestAsleep: a target without a local connection is left alone, and a query wakes it for a
// minute, and not without end.
func TestAsleep(t *testing.T) {
	s := newSchedule(rand.New(rand.NewPCG(1, 1)), 0, 0)
	a := netip.MustParseAddrPort("10.0.0.1:6379")
	s.set(0, []netip.AddrPort{a}, func(netip.AddrPort) pace { return pace{hot: true} })
	s.hint(0, a, "a hint")
	if out := s.ready(time.Hour); len(out) > 0 {
		t.Error("it is asked in its sleep")
	}
	if _, more := s.next(time.Hour); more {
		t.Error("it wants to be called in its sleep")
	}
	now := time.Hour
	s.wake(now)
	asked := 0
	for end := now + 10*time.Minute; now < end; now += 100 * time.Millisecond {
		for _, x := range s.ready(now) {
			asked++
			s.done(now, x.addr, true)
		}
	}
	if asked == 0 || asked > 10 {
		t.Errorf("asked %d times in the minute in which it is awake", asked)
	}
}

// TestLost: a question that nobody reports on does not block the target for ever.
func TestLost(t *testing.T) {
	s := newSchedule(rand.New(rand.NewPCG(1, 1)), 0, 1)
	addrs := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6379"), netip.MustParseAddrPort("10.0.0.2:6379"), netip.MustParseAddrPort("10.0.0.3:6379")}
	s.set(0, addrs, func(netip.AddrPort) pace { return pace{} })
	s.setLocal(0, 1)
	if n := len(s.ready(time.Minute)); n != maxInFlight {
		t.Fatalf("%d questions at once", n)
	}
	if n := len(s.ready(time.Minute + lostAfter)); n != 0 {
		t.Errorf("%d more while the first are open", n)
	}
	if n := len(s.ready(time.Minute + lostAfter + 1)); n == 0 {
		t.Error("nothing is asked any more")
	}
	s.set(0, addrs[:1], func(netip.AddrPort) pace { return pace{} })
	if s.inFlight < 0 || s.inFlight > 1 {
		t.Errorf("%d in flight", s.inFlight)
	}
}
