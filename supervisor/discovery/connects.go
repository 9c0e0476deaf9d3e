package discovery

import (
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
)

// connects hears of new connections from the kernel, where it can: the edge of tracker.
type connects struct {
	from    *tcpstate.ConnectEvents
	slow    *tcpstate.Retransmits // of connects; nil where the kernel does not tell
	ports   []uint16
	tried   time.Duration // when it was last tried in vain; 0 is never
	tracker *tracker
	// look are those to be looked at, by namespace; unknown those in namespaces that have
	// not been found yet.
	look    map[netns.ID]*sought
	unknown []place
	bound   bound
	// Kept for their memory, up to keptRecords.
	records  []record
	repeated []tcpstate.Retransmission
}

// sought are connections that are to be looked at in a namespace: those that were opened in
// it, since when, and those of which it is not known where they were.
type sought struct {
	here, somewhere []tcpstate.ID
	from            []time.Duration // of here
}

func (s *sought) add(p *place) { s.here, s.from = append(s.here, p.id), append(s.from, p.from) }

// in are the connections to be looked at in a namespace.
func (e *connects) in(id netns.ID) *sought {
	s := e.look[id]
	if s == nil {
		s = &sought{}
		e.look[id] = s
	}
	return s
}

// keptRecords is how many records' memory is kept for the next read: some 500 kB.
const keptRecords = 4096

// retryTracepoints is how soon to try again where it did not work.
const retryTracepoints = time.Minute

func (e *connects) open() bool { return e.from != nil }

func (e *connects) close() {
	if e.from != nil {
		e.from.Close()
		e.from = nil
	}
	if e.slow != nil {
		e.slow.Close()
		e.slow = nil
	}
}

// openConnects starts hearing of connects, if the config wants it and the kernel can.
func (d *Loop) openConnects(c *config.Config, ports []uint16) {
	e := &d.connects
	now := sys.Monotonic()
	off := c.Watch.Tracepoints == config.TracepointsOff
	if off || e.open() && !slices.Equal(e.ports, ports) {
		d.accepts.close()
		e.close()
		e.tried = 0
	}
	if off || e.open() || e.tried != 0 && now-e.tried < retryTracepoints {
		return
	}
	from, err := tcpstate.OpenConnectEvents(ports)
	if err != nil {
		if e.tried == 0 {
			d.Log.Info("the kernel does not tell of new connections here, they are found by dumps", "error", err, "remedy", "CAP_PERFMON or CAP_SYS_ADMIN, and tracefs; or watch.tracepoints = \"off\"")
		}
		e.tried = now
		return
	}
	slow, err := tcpstate.OpenRetransmits(ports, true)
	if err != nil {
		d.Log.Info("the kernel does not tell of connects that take long, they are found by dumps", "error", err)
	}
	if d.accepts.from, err = tcpstate.OpenAccepts(ports); err != nil {
		d.Log.Info("the kernel does not tell of accepts; what listens does", "error", err)
	}
	*e = connects{from: from, slow: slow, ports: ports, tracker: newTracker(slow != nil), look: map[netns.ID]*sought{}}
	// What was connected before is found by a dump of everything.
	for _, v := range d.spaces {
		v.dirty, v.full = now, false
	}
}

// read takes in what the kernel has told. It returns true if something was connected in
// a namespace that is not known yet.
func (d *Loop) read() (unknown bool) {
	e := &d.connects
	if !e.open() {
		return false
	}
	now := sys.Monotonic()
	if d.accepts.from != nil {
		d.accepts.from.Read(d.accepts.note)
	}
	loopback := d.Policy().Interest.Loopback()
	if cap(e.records) > keptRecords {
		e.records = nil
	}
	e.records, e.repeated = e.records[:0], e.repeated[:0]
	lost := e.from.Read(func(x tcpstate.ConnectEvent) {
		d.Figures.ConnectEvents.Add(1)
		if loopback || !x.Remote.Addr().IsLoopback() { // such as a health check's, many a second perhaps
			e.records = append(e.records, d.record(x))
		}
	})
	if e.slow != nil {
		lost += e.slow.Read(func(x tcpstate.Retransmission) { e.repeated = append(e.repeated, x) })
	}
	out := e.tracker.step(e.records, e.repeated, now)
	var known map[netns.Key]*viewed
	if len(out.look)+len(out.overdue) > 0 {
		known = d.byKey()
	}
	for _, p := range out.look {
		if v := known[p.ns]; v != nil {
			e.in(v.ns.ID).add(&p)
			continue
		}
		unknown = true // found right after this, see adopt
		if len(e.unknown) < maxStarting {
			e.unknown = append(e.unknown, p)
		}
	}
	for id := range d.spaces {
		if len(out.everywhere) > 0 {
			s := e.in(id)
			s.somewhere = append(s.somewhere, out.everywhere...)
		}
	}
	for _, ns := range out.overdue {
		if v := known[ns]; v != nil && v.dirty == 0 {
			v.dirty = now
		}
	}
	if out.unexplained {
		d.unexplained(now)
	}
	if lost > 0 {
		d.Figures.ConnectEventsLost.Add(int64(lost))
		for _, v := range d.spaces {
			v.dirty, v.full = now, false
		}
	}
	return unknown
}

// record finds out about the thread of an event. Where the thread has ended, its process
// is asked; where that has ended, so has, almost always, what it connected.
func (d *Loop) record(x tcpstate.ConnectEvent) record {
	r := record{ConnectEvent: x}
	if x.State != tcpstate.SynSent {
		return r
	}
	if r.own = x.PID == os.Getpid(); r.own {
		return r
	}
	var st unix.Stat_t
	r.ended = unix.Stat(d.procPath(x.TID, "ns/net"), &st) != nil && unix.Stat(d.procPath(x.PID, "ns/net"), &st) != nil
	r.ns = netns.Key{Dev: st.Dev, Inode: st.Ino}
	return r
}

func (d *Loop) byKey() map[netns.Key]*viewed {
	m := make(map[netns.Key]*viewed, len(d.spaces))
	for id, v := range d.spaces {
		m[id.Key()] = v
	}
	return m
}

// adopt brings the connections of new namespaces to those, now that the namespaces have
// been looked for. The dump that such a namespace waits for comes as late as the budget
// has it; on a busy node that is no place for a new pod.
func (d *Loop) adopt() {
	e := &d.connects
	if len(e.unknown) == 0 {
		return
	}
	known := d.byKey()
	for _, p := range e.unknown {
		if v := known[p.ns]; v != nil {
			e.in(v.ns.ID).add(&p)
		}
	}
	e.unknown = e.unknown[:0]
}

// unexplained handles connections whose connect was not seen or whose thread ended: they
// are in some of the namespaces that have opened some.
func (d *Loop) unexplained(now time.Duration) {
	for _, v := range d.spaces {
		if v.dirty != 0 && !v.full {
			continue
		}
		if opens, err := d.opens(v); err == nil && opens != v.opens {
			v.dirty, v.full = now, false
		}
	}
}

// atHome notes where a local address was seen.
func (d *Loop) atHome(k *tcpstate.Connection, ns netns.Key) {
	if d.connects.open() {
		d.connects.tracker.home(k.Local.Addr(), ns)
	}
}

// peekConnects looks at what was connected and passes it on.
func (d *Loop) peekConnects(deliver func(Found)) error {
	interest := d.Policy().Interest
	for id, s := range d.connects.look {
		delete(d.connects.look, id)
		v := d.spaces[id]
		if v == nil {
			continue
		}
		ids := append(s.here, s.somewhere...)
		out := make([]tcpstate.Result, len(ids))
		err := d.socket.In(d.thread, v.ns, func() (err error) {
			if err = d.socket.Peek(ids, out); err == nil {
				out, err = d.connects.bound.peek(&d.socket, v, ids[:len(s.here)], out)
			}
			return err
		})
		if errors.Is(err, netns.ErrStranded) {
			return err
		}
		if err != nil {
			v.dirty, v.full = sys.Monotonic(), false
			continue
		}
		f := Found{NS: id, Opened: policy.Yes, Told: true}
		for i := range out {
			k := &out[i].Connection
			switch {
			case errors.Is(out[i].Err, tcpstate.ErrGone):
				// Short-lived, or in another namespace than the thread that
				// connected it, or bound to an interface that was not tried:
				// the dump at the next full look.
			case out[i].Err != nil:
				v.dirty, v.full = sys.Monotonic(), false
			case (k.State == tcpstate.Established || k.State == tcpstate.SynSent) && interest.Wants(k.Local, k.Remote, k.Mark):
				f.Connections, f.From = append(f.Connections, *k), append(f.From, 0)
				if i < len(s.from) {
					f.From[len(f.From)-1] = s.from[i]
				}
				d.accepts.connected(&k.ID)
			}
		}
		if len(f.Connections) > 0 {
			deliver(f)
		}
	}
	return nil
}
