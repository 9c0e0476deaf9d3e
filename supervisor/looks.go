package supervisor

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/supervisor/discovery"
	"github.com/redisguard/redisguard/supervisor/journal"
	"github.com/redisguard/redisguard/supervisor/reaper"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

const (
	// visitPatience is how long one namespace may take, before the worker is abandoned (up
	// to half as long again). 20,000 looks take 60 ms.
	visitPatience = 200 * time.Millisecond
	// A connection that has blocked a worker is not looked at for twice as long as it did,
	// within these bounds: a machine that was busy for a moment is forgiven soon.
	blockLeast = time.Second
	blockMost  = 30 * time.Second
	// maxBlockedPerSpace is how many connections of a namespace may block workers. One that
	// has more is not looked at until there are fewer: it costs the others no more time.
	// Where maxBlocked do on the node, one is enough.
	maxBlockedPerSpace = 3
	maxBlocked         = 32
)

// poll looks at the connections whose turn it is, namespace by namespace.
func (w *watcher) poll(turn []*space) error {
	n := 0
	for _, sp := range turn {
		n += len(sp.turn)
	}
	w.ids, w.results = slices.Grow(w.ids[:0], n), slices.Grow(w.results[:0], n)[:n]
	w.visits, w.visited = w.visits[:0], w.visited[:0]
	for _, sp := range turn {
		if sp.lost {
			continue
		}
		if sp.careful {
			sp.sortCareful()
		}
		for conns := sp.turn; len(conns) > 0; {
			m := len(conns)
			if conns[0].alone {
				m = 1
			}
			at := len(w.ids)
			for _, t := range conns[:m] {
				w.ids = append(w.ids, t.conn.ID)
			}
			w.visits = append(w.visits, tcpstate.Visit{NS: sp.ns, IDs: w.ids[at:], Results: w.results[at : at+m]})
			w.visited = append(w.visited, visited{sp, conns[:m]})
			conns = conns[m:]
		}
	}
	return w.visit()
}

// visited are the connections that a visit looks at.
type visited struct {
	sp    *space
	conns []*tracked
}

// sortCareful has those that are to be looked at alone come first, as long as there are
// any.
func (sp *space) sortCareful() {
	sp.careful = false
	for _, t := range sp.conns {
		sp.careful = sp.careful || t.alone
	}
	slices.SortFunc(sp.turn, func(a, b *tracked) int {
		switch {
		case a.alone == b.alone:
			return 0
		case a.alone:
			return -1
		}
		return 1
	})
}

// visit makes the visits, up to one that is blocked: what comes after that is for the
// next round, so that a round waits for one of them at most.
func (w *watcher) visit() error {
	done, free := w.worker.Make(w.visits, visitPatience)
	for i := range done {
		if err := w.observe(&w.visited[i], &w.visits[i]); err != nil {
			return err
		}
	}
	if free == nil {
		return nil
	}
	// These are the abandoned worker's now.
	w.ids, w.results, w.visits = nil, nil, nil
	w.blockedAt(w.visited[done].sp, w.visited[done].conns, free)
	for _, l := range w.visited[done+1:] {
		w.fresh = append(w.fresh, l.conns...)
	}
	return nil
}

// observe takes in what a look has shown.
func (w *watcher) observe(l *visited, v *tcpstate.Visit) error {
	sp := l.sp
	w.s.figures.Gets.Add(int64(len(v.IDs)))
	switch {
	case errors.Is(v.Err, netns.ErrStranded):
		return v.Err
	case errors.Is(v.Err, netns.ErrGone):
		w.wayLost(sp)
		return nil
	case v.Err != nil:
		w.s.log.Debug("cannot look at connections", "namespace", sp.ns, "error", v.Err)
		return nil
	}
	now := monotonic()
	for i, t := range l.conns {
		r := &v.Results[i]
		t.alone = false
		switch {
		case errors.Is(r.Err, tcpstate.ErrGone):
			w.forget(t)
		case !t.told && policy.Accepted(&r.Connection):
			w.forget(t)
		case r.Err != nil:
			w.s.log.Debug("cannot look at a connection", "namespace", sp.ns, "local", t.conn.Local, "remote", t.conn.Remote, "error", r.Err)
		case r.Interface != t.conn.Interface:
			w.unbound(t, &r.Connection)
		default:
			news := r.Inode == 0 && t.conn.Inode != 0 || !t.conn.HasInfo
			t.conn, t.arm.Seen = r.Connection, now
			if news {
				w.introduce(t)
			}
			if t.asked != 0 && now-t.conn.Info.LastAckRecv >= t.asked {
				t.asked = 0 // answered: it need not be looked at for that any more
			}
			w.in.Samples = append(w.in.Samples, sample(t.key, &t.conn, now))
		}
	}
	return nil
}

// unbound handles a connection that is not bound to its interface any more, by its
// application's doing: it is of another path now, and what is found out about that
// interface says nothing about it. To the core it is another one, from the next step on.
// (One that is bound to another interface is not found by a look, but by a dump.)
func (w *watcher) unbound(t *tracked, now *tcpstate.Connection) {
	w.forget(t)
	f := discovery.Found{NS: t.space.ns.ID, Connections: []tcpstate.Connection{*now}}
	select {
	case w.s.inbox <- func(w *watcher) error { w.add(&f); return nil }:
	default: // the next full look finds it
	}
}

// wayLost has another way into a namespace looked for.
func (w *watcher) wayLost(sp *space) {
	sp.lost = true
	w.s.discovery.Refresh()
}

// sample turns a look at a connection into the core's words.
func sample(key verdict.ConnKey, k *tcpstate.Connection, at time.Duration) verdict.Sample {
	s := verdict.Sample{
		Key: key, At: at, Retrans: k.Retrans, Unacked: k.Info.Unacked, RTT: k.Info.RTT, RTO: k.Info.RTO,
		LastDataSent: k.Info.LastDataSent, LastDataRecv: k.Info.LastDataRecv, LastAckRecv: k.Info.LastAckRecv,
		Counters: reaper.Counters(&k.Info), DataSegsOut: k.Info.DataSegsOut, TotalRetrans: k.Info.TotalRetrans,
	}
	switch k.State {
	case tcpstate.Established:
		s.State = verdict.Established
	case tcpstate.SynSent:
		s.State = verdict.SynSent
	}
	switch k.Timer {
	case tcpstate.TimerRetransmit:
		s.Timer = verdict.RetransmitTimer
	case tcpstate.TimerKeepalive:
		s.Timer = verdict.KeepaliveTimer
	case tcpstate.TimerZeroWindow:
		s.Timer = verdict.ZeroWindowTimer
	}
	return s
}

// block is why a connection is not looked at.
type block struct {
	free  <-chan struct{}
	since time.Duration
	until time.Duration // once it is free
}

// blockedAt notes that looking at these connections of a namespace did not return. At
// first each of them is looked at alone, until it is known which one it was, and that it
// was no accident; then the core is told to judge the others without it.
func (w *watcher) blockedAt(sp *space, conns []*tracked, free <-chan struct{}) {
	if len(conns) > 1 || !conns[0].alone {
		sp.careful = true
		for _, t := range conns {
			t.alone = true
		}
		return
	}
	t := conns[0]
	if t.block != nil {
		return
	}
	t.block = &block{free: free, since: monotonic()}
	t.arm.Blocked = true
	sp.blocked++
	w.blocked = append(w.blocked, t)
	w.s.log.Warn("a process has the lock of its socket, which cannot be looked at", "namespace", sp.ns, "connection", journal.Describe(&t.conn, t.holder.Owner))
	w.leaveOut(sp, t)
}

// leaveOut tells the core which connections of a namespace cannot be looked at, after
// something has changed about t.
func (w *watcher) leaveOut(sp *space, t *tracked) {
	most := maxBlockedPerSpace
	if len(w.blocked) >= maxBlocked {
		most = 1
	}
	if closed := sp.blocked >= most; closed != sp.closed {
		sp.closed = closed
		if closed {
			w.s.log.Warn("too many connections of a namespace cannot be looked at: none of it is for now", "namespace", sp.ns, "blocked", sp.blocked)
		}
		for _, x := range sp.conns {
			w.in.Blocked = append(w.in.Blocked, verdict.Blocked{Key: x.key, On: closed || x.block != nil})
		}
		return
	}
	w.in.Blocked = append(w.in.Blocked, verdict.Blocked{Key: t.key, On: sp.closed || t.block != nil})
}

// unblock looks which of those that were blocked can be looked at again.
func (w *watcher) unblock(now time.Duration) {
	for i := 0; i < len(w.blocked); {
		t := w.blocked[i]
		b := t.block
		if b.until == 0 {
			select {
			case <-b.free:
				b.until = now + min(max(blockLeast, 2*(now-b.since)), blockMost)
			default:
			}
		}
		if b.until == 0 || now < b.until {
			i++
			continue
		}
		last := len(w.blocked) - 1
		w.blocked[i], w.blocked[last] = w.blocked[last], nil
		w.blocked = w.blocked[:last]
		t.block, t.arm.Blocked = nil, false
		t.space.blocked--
		w.leaveOut(t.space, t)
	}
}

// retransmits hears of retransmissions from the kernel, where it can, so that connections
// that are fine need not be looked at all the time.
type retransmits struct {
	from  *tcpstate.Retransmits
	ports []uint16
	tried time.Duration // when it was last tried in vain; 0 is never
	// told are the connections that retransmitted since the last round, locals their local
	// ports: those spare most connections a closer comparison.
	told   map[flow]bool
	locals [1 << 16 / 64]uint64
	list   []*tracked // kept for its memory
}

// flow is a connection's addresses; the kernel does not say in which namespace.
type flow struct{ local, remote netip.AddrPort }

// retryTracepoint is how soon to try again where it did not work.
const retryTracepoint = time.Minute

func (r *retransmits) close() {
	if r.from != nil {
		r.from.Close()
		r.from = nil
	}
}

// hear returns the connections that have retransmitted. It says false where it cannot
// tell, now or at all: then all must be looked at.
func (r *retransmits) hear(w *watcher) ([]*tracked, bool) {
	ports := w.policy.Interest.Ports()
	off := w.policy.Config.Watch.Tracepoints == config.TracepointsOff
	now := monotonic()
	if off || r.from != nil && !slices.Equal(r.ports, ports) {
		r.close()
		r.tried = 0
	}
	if r.from == nil {
		if off || r.tried != 0 && now-r.tried < retryTracepoint {
			return nil, false
		}
		from, err := tcpstate.OpenRetransmits(ports, false)
		if err != nil {
			if r.tried == 0 {
				w.s.log.Info("the kernel does not tell of retransmissions here, all connections are looked at every second", "error", err,
					"remedy", "CAP_PERFMON or CAP_SYS_ADMIN, and tracefs; or watch.tracepoints = \"off\"")
			}
			r.tried = now
			return nil, false
		}
		r.from, r.ports, r.told = from, ports, map[flow]bool{}
		return nil, false // the kernel does not tell of what was before
	}
	lost := r.from.Read(func(x tcpstate.Retransmission) {
		r.told[flow{x.Local, x.Remote}] = true
		r.locals[x.Local.Port()/64] |= 1 << (x.Local.Port() % 64)
	})
	r.list = r.list[:0]
	if len(r.told) > 0 {
		for _, t := range w.conns {
			local := t.conn.Local.Port()
			if r.locals[local/64]&(1<<(local%64)) != 0 && r.told[flow{t.conn.Local, t.conn.Remote}] {
				r.list = append(r.list, t)
			}
		}
		clear(r.told)
		clear(r.locals[:])
	}
	return r.list, lost == 0
}
