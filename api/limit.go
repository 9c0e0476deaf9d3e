package api

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
)

// Limits bound what peers may use. A zero field takes the default.
type Limits struct {
	// Connections bounds those that are open, Streams the event streams; the
	// others bound those of one guest: a pod, a container, or a user.
	Connections, ConnectionsEach int
	Streams, StreamsEach         int
}

func (l Limits) filled() Limits {
	or := func(n *int, otherwise int) {
		if *n <= 0 {
			*n = otherwise
		}
	}
	or(&l.Connections, 512)
	or(&l.ConnectionsEach, 64)
	or(&l.Streams, 2048)
	or(&l.StreamsEach, 256)
	return l
}

const (
	// Requests of one guest: so many at once, and a second. A request for a long
	// list counts as more than one, see cost. Root on the host may do all of this
	// in other ways, and does not wait.
	requestBurst = 100
	requestRate  = 50
	// refusedPause is how long the refusal of a request beyond them takes.
	refusedPause = 100 * time.Millisecond
	// answersEach is how many lists one guest may be sent at once: each holds on to
	// a copy of the tables, and who does not read holds it as long as an answer may
	// take.
	answersEach = 4
	// share is how much of all connections and streams those may use together
	// who are not of the host, so that pods cannot lock the operator out.
	share = 0.75
	// adminRoom is how many connections are kept for those who may act: they
	// must get through whatever goes on.
	adminRoom = 32
	// forget is when a guest that has nothing open is forgotten.
	forget = 10 * time.Minute
)

// counters count what was refused or dropped, and what was done.
type counters struct {
	connections, requests, streams                    atomic.Int64 // that were let in
	refusedConnections, refusedStreams, refusedRights atomic.Int64
	refusedRates, refusedOrigins                      atomic.Int64
	slow, silent, lost, garbage                       atomic.Int64 // streams that we closed
	lines, bytes                                      atomic.Int64 // written to streams
}

// Counters is a reading of them, since the start unless it says otherwise.
type Counters struct {
	// OpenConnections and OpenStreams are open now.
	OpenConnections, OpenStreams int64
	// Connections, Requests and Streams were let in.
	Connections, Requests, Streams int64
	// Refused: connections and streams beyond a limit, requests beyond the rate,
	// without the right, and of browsers.
	RefusedConnections, RefusedStreams, RefusedRates, RefusedRights, RefusedOrigins int64
	// Dropped: streams that were closed since the reader fell out of the ring
	// (Slow), took nothing for a minute (Silent), or sent something (Garbage).
	DroppedSlow, DroppedSilent, DroppedGarbage int64
	// Left were closed by the reader.
	Left int64
	// Lines and Bytes were written to streams.
	Lines, Bytes int64
}

// Counters reads them.
func (s *Server) Counters() Counters {
	c := &s.counts
	open, streams := s.guests.open()
	return Counters{
		OpenConnections: int64(open), OpenStreams: int64(streams),
		Connections: c.connections.Load(), Requests: c.requests.Load(), Streams: c.streams.Load(),
		RefusedConnections: c.refusedConnections.Load(), RefusedStreams: c.refusedStreams.Load(), RefusedRates: c.refusedRates.Load(),
		RefusedRights: c.refusedRights.Load(), RefusedOrigins: c.refusedOrigins.Load(),
		DroppedSlow: c.slow.Load(), DroppedSilent: c.silent.Load(), DroppedGarbage: c.garbage.Load(), Left: c.lost.Load(),
		Lines: c.lines.Load(), Bytes: c.bytes.Load(),
	}
}

// guests keeps account of how much each guest uses.
type guests struct {
	limits Limits
	counts *counters

	mu      sync.Mutex
	by      map[string]*account
	total   account // of all
	foreign account // of those who are not of the host
	swept   time.Time
}

// account is what a guest has open, and how many requests are left.
type account struct {
	connections, streams, answers int
	tokens                        float64
	at                            time.Time
}

func (g *guests) init(l Limits, c *counters) {
	g.limits, g.counts, g.by = l, c, map[string]*account{}
}

func (g *guests) open() (connections, streams int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.total.connections, g.total.streams
}

// account is under mu.
func (g *guests) account(p *peer) *account {
	now := time.Now()
	a := g.by[p.guest]
	if a == nil {
		if now.Sub(g.swept) > forget {
			g.swept = now
			for name, old := range g.by {
				if old.connections+old.streams == 0 && now.Sub(old.at) > forget {
					delete(g.by, name)
				}
			}
		}
		a = &account{tokens: requestBurst}
		g.by[p.guest] = a
	}
	return a
}

// enter takes a place for a connection, if there is one.
func (g *guests) enter(p *peer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.account(p)
	a.at = time.Now()
	foreign := p.scope != v1.ScopeHost
	room := g.limits.Connections
	if !p.admin {
		room -= min(adminRoom, room/4)
	}
	if a.connections >= g.limits.ConnectionsEach || g.total.connections >= room ||
		foreign && float64(g.foreign.connections) >= share*float64(g.limits.Connections) {
		g.counts.refusedConnections.Add(1)
		return false
	}
	g.counts.connections.Add(1)
	for _, x := range g.accounts(a, foreign) {
		x.connections++
	}
	return true
}

func (g *guests) leave(p *peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range g.accounts(g.account(p), p.scope != v1.ScopeHost) {
		x.connections--
	}
}

// subscribe takes a place for a stream, if there is one.
func (g *guests) subscribe(p *peer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.account(p)
	foreign := p.scope != v1.ScopeHost
	if a.streams >= g.limits.StreamsEach || g.total.streams >= g.limits.Streams ||
		foreign && float64(g.foreign.streams) >= share*float64(g.limits.Streams) {
		g.counts.refusedStreams.Add(1)
		return false
	}
	g.counts.streams.Add(1)
	for _, x := range g.accounts(a, foreign) {
		x.streams++
	}
	return true
}

func (g *guests) unsubscribe(p *peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range g.accounts(g.account(p), p.scope != v1.ScopeHost) {
		x.streams--
	}
}

func (g *guests) accounts(a *account, foreign bool) []*account {
	if foreign {
		return []*account{a, &g.total, &g.foreign}
	}
	return []*account{a, &g.total}
}

// unbound says that a peer may ask as much as it likes: root on the host.
func (p *peer) unbound() bool { return p.uid == 0 && p.scope == v1.ScopeHost }

// admit says whether the peer may make a request now.
func (g *guests) admit(p *peer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.account(p)
	now := time.Now()
	a.tokens = min(requestBurst, a.tokens+now.Sub(a.at).Seconds()*requestRate)
	a.at = now
	if a.tokens <= 0 && !p.unbound() {
		g.counts.refusedRates.Add(1)
		return false
	}
	g.counts.requests.Add(1)
	a.tokens = max(a.tokens-1, -10*requestBurst)
	return true
}

// begin takes a place for a list, if there is one; finish must follow.
func (g *guests) begin(p *peer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.account(p)
	if a.answers >= answersEach && !p.unbound() {
		g.counts.refusedRates.Add(1)
		return false
	}
	a.answers++
	return true
}

func (g *guests) finish(p *peer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.account(p).answers--
}

// cost charges the peer for an answer with n things in it.
func (g *guests) cost(p *peer, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.account(p)
	a.tokens = max(a.tokens-float64(n)/500, -10*requestBurst)
}

// guarded is a listener that identifies each peer, and turns away those with too much open.
type guarded struct {
	*net.UnixListener
	server *Server
	admin  bool
	// rejected are processes that were turned away, and until when they are without a
	// closer look: that costs ten times as much as the rest. It is Accept's alone.
	rejected map[int32]time.Time
}

const (
	rejectedFor = 100 * time.Millisecond
	maxRejected = 1024
)

// isRejected says whether the process that has connected was turned away a moment ago.
func (l *guarded) isRejected(pid int32) bool {
	until, ok := l.rejected[pid]
	return ok && time.Now().Before(until)
}

// noteRejected notes that it was.
func (l *guarded) noteRejected(pid int32) {
	if l.rejected == nil || len(l.rejected) >= maxRejected {
		l.rejected = map[int32]time.Time{}
	}
	l.rejected[pid] = time.Now().Add(rejectedFor)
}

// peerPID is the process that has connected, 0 if it cannot be told.
func peerPID(c *net.UnixConn) (pid int32) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				pid = cred.Pid
			}
		})
	}
	return pid
}

// guest is a connection with its peer.
type guest struct {
	*net.UnixConn
	peer  *peer
	leave func()
}

func (g *guest) Close() error {
	g.leave()
	return g.UnixConn.Close()
}

// rejection is the answer to a connection too many: its request is not read.
const rejection = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 71\r\n\r\n" +
	`{"error":{"kind":"too_many","message":"too many connections are open"}}`

// Accept gives the connections that are let in.
func (l *guarded) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		pid := peerPID(c)
		if pid != 0 && l.isRejected(pid) {
			l.server.counts.refusedConnections.Add(1)
			reject(c)
			continue
		}
		p := l.server.identify(c)
		if l.admin {
			// The account of those that may act is theirs alone.
			p.guest = "refused on the admin socket"
			if p.admin {
				p.guest, p.scope = "admin", v1.ScopeHost
			}
		}
		if !l.server.guests.enter(p) {
			l.noteRejected(pid)
			reject(c)
			continue
		}
		return &guest{UnixConn: c, peer: p, leave: sync.OnceFunc(func() { l.server.guests.leave(p) })}, nil
	}
}

func reject(c *net.UnixConn) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_, _ = unix.SendmsgN(int(fd), []byte(rejection), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
	}
	c.Close()
}
