package supervisor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
)

// births hears of new connections from the kernel, where it can.
type births struct {
	from  *tcpstate.Births
	slow  *tcpstate.Retransmits // of connects; nil where the kernel does not tell
	ports []uint16
	tried time.Duration // when it was last tried in vain; 0 is never
	// starting are sockets that are connecting, by the kernel's address of the
	// socket, and where.
	starting map[uint64]start
	// own are sockets of our probes that are connecting, since when.
	own map[uint64]time.Duration
	// born are those that are connected, to be looked at.
	born map[netns.ID][]tcpstate.ID
	// ended are connections whose process had ended by the time their beginning
	// was read, to be looked for a little later; homes says in which namespace a
	// local address was last seen.
	ended []endedBirth
	homes map[netip.Addr]netns.ID
	// early are those whose beginning was not read yet.
	early []tcpstate.Birth
	// foundlings are those of namespaces that are not known yet.
	foundlings []foundling
}

type foundling struct {
	ns key
	id tcpstate.ID
}

type endedBirth struct {
	id tcpstate.ID
	at time.Duration
}

type start struct {
	ns  key
	at  time.Duration
	met bool // it was looked at while it was still connecting
	// ended says that its process had ended by the time its beginning was read.
	ended bool
}

// key is a namespace's device and inode.
type key struct{ dev, inode uint64 }

const (
	// retryBirths is how soon to try again where it did not work.
	retryBirths = time.Minute
	// slowConnect is how long a connect may take before its namespace is dumped
	// to see it: until then the birth of the connection tells more, or the first
	// repetition of its SYN after a second (TCP_TIMEOUT_INIT), where the kernel
	// tells of that.
	slowConnect     = 500 * time.Millisecond
	slowConnectTold = 2 * time.Second
	// longestConnect is how long a connect may take that was met on its way: the
	// kernel's six repetitions (tcp_syn_retries) take 127 s.
	longestConnect = 130 * time.Second
	// endedLook is how long after its birth a connection is looked for whose
	// process had ended: most are gone with it, such as those of health checks, but
	// a child may have it. endedAtOnce bounds those that are looked for in every
	// namespace, because nobody knows where their address is at home.
	endedLook   = 3 * time.Second
	endedAtOnce = 64
	// maxStarting bounds what is remembered of connects under way.
	maxStarting = 100_000
)

func (b *births) open() bool { return b.from != nil }

func (b *births) close() {
	if b.from != nil {
		b.from.Close()
		b.from = nil
	}
	if b.slow != nil {
		b.slow.Close()
		b.slow = nil
	}
}

// openBirths starts hearing of births, if the config wants it and the kernel can.
func (d *discovery) openBirths(c *config.Config) {
	b := &d.births
	now := monotonic()
	if c.Watch.Births == config.BirthsOff || b.open() && !slices.Equal(b.ports, c.Watch.Ports) {
		b.close()
		b.tried = 0
	}
	if c.Watch.Births == config.BirthsOff || b.open() || b.tried != 0 && now-b.tried < retryBirths {
		return
	}
	from, err := tcpstate.OpenBirths(c.Watch.Ports)
	if err != nil {
		if b.tried == 0 {
			d.s.log.Info("the kernel does not tell of new connections here, they are found by dumps", "error", err, "remedy", "CAP_PERFMON or CAP_SYS_ADMIN, and tracefs; or watch.births = \"off\"")
		}
		b.tried = now
		return
	}
	slow, err := tcpstate.OpenRetransmits(c.Watch.Ports, true)
	if err != nil {
		d.s.log.Info("the kernel does not tell of connects that take long, they are found by dumps", "error", err)
	}
	*b = births{from: from, slow: slow, ports: slices.Clone(c.Watch.Ports), starting: map[uint64]start{}, own: map[uint64]time.Duration{}, born: map[netns.ID][]tcpstate.ID{}, homes: map[netip.Addr]netns.ID{}}
	// What was born before is found by a dump of everything.
	for _, v := range d.spaces {
		v.dirty = now
	}
}

// readBirths takes in what the kernel has told. It returns true if something was
// born in a namespace that is not known yet.
func (d *discovery) readBirths() (unknown bool) {
	b := &d.births
	if !b.open() {
		return false
	}
	now := monotonic()
	loopback := d.s.config().Watch.Loopback
	byKey := map[key]*viewed{}
	space := func(k key) *viewed {
		if len(byKey) == 0 {
			for id, v := range d.spaces {
				byKey[key{id.Dev, id.Inode}] = v
			}
		}
		return byKey[k]
	}
	early := b.early
	b.early = nil
	take := func(x tcpstate.Birth) {
		if x.Remote.Addr().IsLoopback() && !loopback {
			return // such as a health check's, many a second perhaps
		}
		if x.State == tcpstate.SynSent {
			if x.PID == os.Getpid() {
				d.births.own[x.Socket] = now // a probe of ours
				return
			}
			if len(b.starting) >= maxStarting {
				return // its birth will not be explained
			}
			// Where the thread has ended, its process is asked; where that has
			// ended, so has, almost always, what it connected.
			var st unix.Stat_t
			ended := unix.Stat(d.s.procPath(x.TID, "ns/net"), &st) != nil && unix.Stat(d.s.procPath(x.PID, "ns/net"), &st) != nil
			b.starting[x.Socket] = start{ns: key{st.Dev, st.Ino}, at: now, ended: ended}
			return
		}
		if _, ok := b.own[x.Socket]; ok {
			delete(b.own, x.Socket)
			return
		}
		s, ok := b.starting[x.Socket]
		if !ok {
			// The CPUs' rings are read one after the other: its beginning may
			// stand in one that was read before.
			b.early = append(b.early, x)
			return
		}
		delete(b.starting, x.Socket)
		if s.ended {
			if len(b.ended) < maxStarting {
				b.ended = append(b.ended, endedBirth{tcpstate.ID{Local: x.Local, Remote: x.Remote}, now})
			}
			return
		}
		v := space(s.ns)
		if v == nil {
			unknown = true // found right after this, see adopt
			if len(b.foundlings) < maxStarting {
				b.foundlings = append(b.foundlings, foundling{s.ns, tcpstate.ID{Local: x.Local, Remote: x.Remote}})
			}
			return
		}
		d.atHome(x.Local.Addr(), v.ns.ID)
		b.born[v.ns.ID] = append(b.born[v.ns.ID], tcpstate.ID{Local: x.Local, Remote: x.Remote})
	}
	lost := b.from.Read(func(x tcpstate.Birth) {
		d.s.stats.births.Add(1)
		take(x)
	})
	fresh := len(b.early)
	for _, x := range early {
		take(x)
	}
	// What has now come early twice has no beginning.
	unexplained := len(b.early) > fresh
	b.early = b.early[:fresh]
	patience := slowConnect
	if b.slow != nil {
		patience = slowConnectTold
		lost += b.slow.Read(func(x tcpstate.Retransmission) {
			s, ok := b.starting[x.Socket]
			if v := space(s.ns); ok && !s.met && v != nil {
				s.met = true
				b.starting[x.Socket] = s
				b.born[v.ns.ID] = append(b.born[v.ns.ID], tcpstate.ID{Local: x.Local, Remote: x.Remote})
			}
		})
	}
	if unexplained {
		d.unexplained(now)
	}
	if lost > 0 {
		d.s.stats.birthsLost.Add(int64(lost))
		for _, v := range d.spaces {
			v.dirty, v.full = now, false
		}
	}
	d.lookForEnded(now)
	for sk, at := range b.own {
		if now-at > 4*slowConnect {
			delete(b.own, sk)
		}
	}
	for sk, s := range b.starting {
		if now-s.at < patience || s.met && now-s.at < longestConnect {
			continue
		}
		delete(b.starting, sk)
		if s.met || s.ended {
			continue
		}
		if v := space(s.ns); v != nil && v.dirty == 0 {
			v.dirty = now
		}
	}
	return unknown
}

// lookForEnded has the connections of processes that have ended looked for.
func (d *discovery) lookForEnded(now time.Duration) {
	b := &d.births
	n, everywhere := 0, 0
	for _, e := range b.ended {
		if now-e.at < endedLook {
			break
		}
		n++
		if id, ok := b.homes[e.id.Local.Addr()]; ok && d.spaces[id] != nil {
			b.born[id] = append(b.born[id], e.id)
			continue
		}
		if everywhere++; everywhere > endedAtOnce {
			continue
		}
		for id := range d.spaces {
			b.born[id] = append(b.born[id], e.id)
		}
	}
	b.ended = b.ended[n:]
	if everywhere > endedAtOnce {
		d.unexplained(now)
	}
}

// atHome notes where a local address was seen. Where several namespaces have the
// same one, the last counts; the full look finds what that misses.
func (d *discovery) atHome(a netip.Addr, id netns.ID) {
	if b := &d.births; b.homes != nil && !a.IsLoopback() {
		b.homes[a] = id
	}
}

// adopt brings the connections of new namespaces to those, now that the
// namespaces have been looked for. The dump that such a namespace waits for comes
// as late as the budget has it; on a busy node that is no place for a new pod.
func (d *discovery) adopt() {
	b := &d.births
	if len(b.foundlings) == 0 {
		return
	}
	known := make(map[key]netns.ID, len(d.spaces))
	for id := range d.spaces {
		known[key{id.Dev, id.Inode}] = id
	}
	for _, f := range b.foundlings {
		if id, ok := known[f.ns]; ok {
			b.born[id] = append(b.born[id], f.id)
		}
	}
	b.foundlings = b.foundlings[:0]
}

// unexplained handles births of connections whose connect was not seen or whose
// thread ended: they are in some of the namespaces that have opened some.
func (d *discovery) unexplained(now time.Duration) {
	for _, v := range d.spaces {
		if v.dirty != 0 && !v.full {
			continue
		}
		if opens, err := d.opens(v); err == nil && opens != v.opens {
			v.dirty, v.full = now, false
		}
	}
}

// takeBirths looks at the newborn and passes them on.
func (d *discovery) takeBirths(ctx context.Context, c *config.Config) error {
	for id, ids := range d.births.born {
		delete(d.births.born, id)
		v := d.spaces[id]
		if v == nil {
			continue
		}
		out := make([]tcpstate.Result, len(ids))
		err := d.thread.Visit(v.ns, func() error {
			if err := d.socket.Open(); err != nil {
				return err
			}
			defer d.socket.Close()
			return d.socket.Peek(ids, out)
		})
		if errors.Is(err, netns.ErrStranded) {
			return err
		}
		if err != nil {
			v.dirty, v.full = monotonic(), false
			continue
		}
		f := found{ns: id}
		for i := range out {
			k := &out[i].Connection
			switch {
			case errors.Is(out[i].Err, tcpstate.ErrGone):
				// Short-lived, or in another namespace than the thread that
				// connected it: the dump of that one at the next full look.
			case out[i].Err != nil:
				v.dirty, v.full = monotonic(), false
			case (k.State == tcpstate.Established || k.State == tcpstate.SynSent) && wanted(c, k) && (c.Probe.Mark == 0 || k.Mark != c.Probe.Mark):
				f.conns = append(f.conns, *k)
			}
		}
		if len(f.conns) == 0 {
			continue
		}
		select {
		case d.s.found <- f:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}
