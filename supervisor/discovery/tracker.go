package discovery

import (
	"net/netip"
	"time"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
)

const (
	// slowConnect is how long a connect may take before its namespace is dumped to see
	// it: until then the event of its success tells more, or, slowConnectTold, the first
	// repetition of its SYN after a second (TCP_TIMEOUT_INIT), where the kernel tells of
	// that.
	slowConnect     = 500 * time.Millisecond
	slowConnectTold = 2 * time.Second
	// longestConnect is how long a connect may take that was seen on its way: the
	// kernel's six repetitions (tcp_syn_retries) take 127 s.
	longestConnect = 130 * time.Second
	// endedLook is how long after its success a connection is looked for whose process
	// had ended: most are gone with it, such as those of health checks, but a child may
	// have it. endedAtOnce bounds those that are looked for in every namespace, because
	// the namespace of their address is not known.
	endedLook   = 3 * time.Second
	endedAtOnce = 64
	// maxStarting bounds what is remembered of connects under way, and maxHomes the
	// addresses.
	maxStarting = 100_000
	maxHomes    = 100_000
)

// tracker makes of the kernel's events what is to be looked at and where. It is pure:
// records and the time come in, what is known of processes with them; namespaces are
// named by their keys.
type tracker struct {
	// told says that the kernel tells of repeated SYNs, too.
	told bool
	// starting are sockets that are connecting, by the kernel's address of the socket.
	starting map[uint64]start
	// own are sockets of our probes that are connecting, since when.
	own map[uint64]time.Duration
	// early are successes whose beginning was not read yet: the CPUs' rings are read one
	// after the other, and it may stand in one that was read before.
	early []tcpstate.ConnectEvent
	// ended are connections whose process had ended by the time their beginning was
	// read.
	ended []endedConnect
	// homes says in which namespace a local address was last seen.
	homes map[netip.Addr]netns.Key
}

type endedConnect struct {
	id tcpstate.ID
	at time.Duration
}

type start struct {
	ns   netns.Key
	at   time.Duration
	from time.Duration // when the kernel saw it begin
	seen bool          // it was looked at while it was still connecting
	// ended says that its process had ended by the time its beginning was read.
	ended bool
}

// record is an event with what was found out about its thread.
type record struct {
	tcpstate.ConnectEvent
	// Of one with state SynSent: the namespace of the thread; that its process has
	// ended; that it is a probe of ours.
	ns    netns.Key
	ended bool
	own   bool
}

// place is a connection with the namespace in which it is to be looked at.
type place struct {
	ns   netns.Key
	id   tcpstate.ID
	from time.Duration // when its connect began, 0 if that is not known
}

// tracked is what follows from some records.
type tracked struct {
	// look are the connections that are to be looked at, and everywhere those that may
	// be in any namespace.
	look       []place
	everywhere []tcpstate.ID
	// overdue are namespaces with a connect that is neither answered nor repeated: only a
	// dump shows it.
	overdue []netns.Key
	// unexplained says that there are connections whose beginning was not seen: they are
	// in some namespace that has opened some.
	unexplained bool
	// attempts counts the connects that were begun, by endpoint, our own left out:
	// a fence reports which clients still try to reach its endpoint.
	attempts map[netip.AddrPort]int
}

func newTracker(told bool) *tracker {
	return &tracker{told: told, starting: map[uint64]start{}, own: map[uint64]time.Duration{}, homes: map[netip.Addr]netns.Key{}}
}

// home notes where a local address was seen. Where several namespaces have the same one,
// the last counts; the full look finds what that misses.
func (t *tracker) home(a netip.Addr, ns netns.Key) {
	if !a.IsLoopback() && len(t.homes) < maxHomes {
		t.homes[a] = ns
	}
}

// forget drops the homes in namespaces that are gone.
func (t *tracker) forget(gone func(netns.Key) bool) {
	for a, ns := range t.homes {
		if gone(ns) {
			delete(t.homes, a)
		}
	}
}

// step takes in records and repetitions of SYNs.
func (t *tracker) step(records []record, repeated []tcpstate.Retransmission, now time.Duration) (out tracked) {
	before := t.early
	t.early = nil
	for i := range records {
		if r := &records[i]; r.State == tcpstate.SynSent {
			t.begun(r, now, &out)
		} else {
			t.succeeded(r.ConnectEvent, now, &out)
		}
	}
	fresh := len(t.early)
	for _, x := range before {
		t.succeeded(x, now, &out)
	}
	// What has now come early twice has no beginning.
	out.unexplained = len(t.early) > fresh
	t.early = t.early[:fresh]
	for _, x := range repeated {
		if s, ok := t.starting[x.Socket]; ok && !s.seen && !s.ended {
			s.seen = true
			t.starting[x.Socket] = s
			out.look = append(out.look, place{s.ns, tcpstate.ID{Local: x.Local, Remote: x.Remote}, s.from})
		}
	}
	t.expire(now, &out)
	return out
}

func (t *tracker) begun(r *record, now time.Duration, out *tracked) {
	if r.own {
		t.own[r.Socket] = now
		return
	}
	if out.attempts == nil { // most steps have none
		out.attempts = map[netip.AddrPort]int{}
	}
	out.attempts[r.Remote]++
	if len(t.starting) < maxStarting { // else its success will not be explained
		t.starting[r.Socket] = start{ns: r.ns, at: now, from: r.At, ended: r.ended}
	}
}

func (t *tracker) succeeded(x tcpstate.ConnectEvent, now time.Duration, out *tracked) {
	if _, ok := t.own[x.Socket]; ok {
		delete(t.own, x.Socket)
		return
	}
	s, ok := t.starting[x.Socket]
	if !ok {
		t.early = append(t.early, x)
		return
	}
	delete(t.starting, x.Socket)
	id := tcpstate.ID{Local: x.Local, Remote: x.Remote}
	if s.ended {
		if len(t.ended) < maxStarting {
			t.ended = append(t.ended, endedConnect{id, now})
		}
		return
	}
	t.home(x.Local.Addr(), s.ns)
	out.look = append(out.look, place{s.ns, id, s.from})
}

// expire does what is due by time.
func (t *tracker) expire(now time.Duration, out *tracked) {
	n := 0
	for _, e := range t.ended {
		if now-e.at < endedLook {
			break
		}
		n++
		if ns, ok := t.homes[e.id.Local.Addr()]; ok {
			out.look = append(out.look, place{ns, e.id, 0})
		} else if len(out.everywhere) < endedAtOnce {
			out.everywhere = append(out.everywhere, e.id)
		} else {
			out.unexplained = true
		}
	}
	t.ended = t.ended[n:]
	for socket, at := range t.own {
		if now-at > 4*slowConnect {
			delete(t.own, socket)
		}
	}
	patience := slowConnect
	if t.told {
		patience = slowConnectTold
	}
	for socket, s := range t.starting {
		if now-s.at < patience || s.seen && now-s.at < longestConnect {
			continue
		}
		delete(t.starting, socket)
		if !s.seen && !s.ended {
			out.overdue = append(out.overdue, s.ns)
		}
	}
}
