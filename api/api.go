// Package api serves what the guard knows, and takes what it is asked to do, over
// two Unix sockets: one to read, which every user may open and on which each
// sees what is his, and one to act, for root on the host and a configured group.
//
// It is HTTP/1.1 and JSON, in the words of package api/v1. A client may be
// hostile (a pod may have the read socket mounted), so everything is bounded:
// connections, streams and requests for each peer and in total, sizes, and the
// time that anything may take. Event streams cost neither a goroutine nor a queue
// each: a few writers serve them all, without ever waiting for one.
package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/view"
)

// Source is where answers come from.
type Source interface {
	// View is what is known of the node, as of a moment ago.
	View(ctx context.Context) (*view.Node, error)
	// Info fills in what of a status does not depend on who asks: version,
	// jobs, settings, capabilities, counters of the guard.
	Info() v1.Status
	// Wake has a target asked about for a while, since somebody wants to know.
	Wake(target string)
}

// Actor does what is asked for on the admin socket.
type Actor interface {
	Reap(ctx context.Context, r view.Reap) ([]view.Reaped, error)
	SetMode(ctx context.Context, mode string, peer event.Peer) (event.Mode, error)
	// Reload reads the config file now. An error that wraps ErrBadConfig says
	// that it is refused.
	Reload(ctx context.Context, peer event.Peer) (file string, changed []string, err error)
}

// ErrBadConfig says that a config file is refused, and the one before stays in
// force.
var ErrBadConfig = errors.New("the config is refused")

// Options of a Server. Source, Actor, Hub and Log must be set.
type Options struct {
	Source Source
	Actor  Actor
	Hub    *event.Hub
	Log    *slog.Logger
	// Metrics answers GET /metrics; nil: there is no such route.
	Metrics http.Handler

	// Socket and AdminSocket are the paths to listen at, "" for none. A socket
	// that the service manager has passed on (by the names "redisguard.sock" and
	// "redisguard-admin.sock") is served instead.
	Socket, AdminSocket string
	// Group may act, beside root: a group's number, negative for none.
	Group int
	// MetricsListen is a TCP address for /metrics alone, "" for none.
	MetricsListen string
	Limits        Limits
	// Proc is where process information is read.
	Proc proc.FS
}

// Server serves the sockets. Make one with New.
type Server struct {
	opt     Options
	guests  guests
	streams []*shard
	turn    atomic.Uint32 // of the writers, to take streams
	news    chan struct{} // from publishers; room for one
	stop    func()        // the hub's notices
	version string
	counts  counters
	reach   atomic.Pointer[reach] // for the streams of pods
	sockets []socket

	identify  func(*net.UnixConn) *peer
	heartbeat time.Duration
}

// socket is one place to listen.
type socket struct {
	address  string // for people; the kernel knows the socket by the name it was made under
	listener net.Listener
	handler  http.Handler
	close    func()
}

// writers is how many goroutines write streams: with one, a node with two cores
// would serve a thousand subscribers with half of what it has.
const writers = 2

// New binds the sockets, so that a later start finds them. The error
// wraps ErrInUse if another daemon serves one of them.
func New(opt Options) (*Server, error) {
	s := &Server{opt: opt, heartbeat: heartbeatEvery, news: make(chan struct{}, 1), version: opt.Source.Info().Version}
	s.opt.Limits = opt.Limits.filled()
	s.guests.init(s.opt.Limits, &s.counts)
	who, err := newIdentifier(opt.Proc, opt.Group)
	if err != nil {
		return nil, err
	}
	s.identify = who.identify
	passed, err := activated()
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			s.Close()
		}
	}()
	// A pod that has the read socket's directory mounted could hold a lock there, or
	// serve a socket of its own, and keep the daemon from ever starting again.
	reading, acting := place(opt.Socket, false, opt.Group), place(opt.AdminSocket, true, opt.Group)
	if opt.AdminSocket != "" && passed["redisguard-admin.sock"] == nil {
		reading.lock = acting.path + ".read.lock"
	}
	daemon := func(c *net.UnixConn) bool { return s.identify(c).scope == v1.ScopeHost }
	for _, sock := range []struct {
		name  string
		at    site
		admin bool
	}{{"redisguard-admin.sock", acting, true}, {"redisguard.sock", reading, false}} {
		l, release := passed[sock.name], func() {}
		address := "unix:" + sock.at.path
		if l != nil {
			address = "unix:" + l.Addr().String()
		} else {
			if sock.at.path == "" {
				continue
			}
			if l, release, err = bind(sock.at, daemon); err != nil {
				return nil, err
			}
		}
		s.sockets = append(s.sockets, socket{
			address: address, listener: &guarded{UnixListener: l, server: s, admin: sock.admin}, handler: s.handler(sock.admin), close: release,
		})
	}
	if opt.MetricsListen != "" && opt.Metrics != nil {
		l, err := net.Listen("tcp", opt.MetricsListen)
		if err != nil {
			return nil, fmt.Errorf("cannot serve metrics: %w", err)
		}
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", opt.Metrics)
		s.sockets = append(s.sockets, socket{address: "tcp:" + l.Addr().String(), listener: &capped{Listener: l, slots: make(chan struct{}, 16)}, handler: mux, close: func() {}})
	}
	for range writers {
		sh, err := newShard(s)
		if err != nil {
			return nil, err
		}
		s.streams = append(s.streams, sh)
	}
	s.stop = opt.Hub.Notify(s.published)
	ok = true
	return s, nil
}

// Close lets go of what New has bound, if Run was never called.
func (s *Server) Close() {
	for _, sock := range s.sockets {
		sock.listener.Close()
		sock.close()
	}
	for _, sh := range s.streams {
		sh.close()
	}
	if s.stop != nil {
		s.stop()
	}
}

// Addrs are the addresses that are listened at, for the log and for tests.
func (s *Server) Addrs() (list []string) {
	for _, sock := range s.sockets {
		list = append(list, sock.address)
	}
	return list
}

// The times that a request and its answer may take, and a connection may be idle.
const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second
	answerTimeout = 30 * time.Second
	idleTimeout   = time.Minute
	goodbye       = time.Second
	maxHeader     = 8 << 10
	maxBody       = 64 << 10
)

// Run serves until ctx ends. Streams are told so; requests under way have a
// second.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, sh := range s.streams {
		wg.Go(func() { sh.run(ctx) })
	}
	wg.Go(func() { s.notifyWriters(ctx) })
	wg.Go(func() { s.lookForPods(ctx) })
	for _, sock := range s.sockets {
		h := &http.Server{
			Handler:           sock.handler,
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       bodyTimeout,
			WriteTimeout:      answerTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(s.opt.Log.Handler(), slog.LevelDebug),
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				if g, ok := c.(*guest); ok {
					return context.WithValue(ctx, peerKey{}, g.peer)
				}
				return ctx
			},
			DisableGeneralOptionsHandler: true,
		}
		wg.Go(func() {
			if err := h.Serve(sock.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.opt.Log.Error("the API has ended", "socket", sock.address, "error", err)
			}
		})
		wg.Go(func() {
			<-ctx.Done()
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
			defer cancel()
			if err := h.Shutdown(end); err != nil {
				h.Close()
			}
			sock.close()
		})
	}
	<-ctx.Done()
	wg.Wait()
	s.stop()
	return nil
}

// published is called at each publish. Waking another thread costs more than
// all the rest of publishing, so it is left to a goroutine, and that rests for a
// moment after each time: of events in quick succession only one in some pays for a
// wake-up at all.
func (s *Server) published() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// notifyRest is the rest.
const notifyRest = 5 * time.Millisecond

// notifyWriters has the writers look for news.
func (s *Server) notifyWriters(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.news:
		}
		for _, sh := range s.streams {
			if sh.open.Load() > 0 {
				sh.poke()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(notifyRest):
		}
	}
}

// lookForPods keeps what the streams of pods may see up to date, while there are any.
func (s *Server) lookForPods(ctx context.Context) {
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !slices.ContainsFunc(s.streams, func(sh *shard) bool { return sh.pods.Load() > 0 }) {
			continue
		}
		within, cancel := context.WithTimeout(ctx, viewWithin)
		n, err := s.opt.Source.View(within)
		cancel()
		if err == nil { // else they see what they saw
			s.reach.Store(newReach(n))
		}
	}
}

// Unavailable says whether an error of New is one that a guard can do without its
// API for: its directory cannot be made, or may not be written to.
func Unavailable(err error) bool {
	return !errors.Is(err, ErrInUse) && (errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, os.ErrInvalid) || readOnly(err))
}

// peerKey finds the peer in a request's context.
type peerKey struct{}

// capped bounds the connections of a listener.
type capped struct {
	net.Listener
	slots chan struct{}
}

func (l *capped) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &cappedConn{Conn: c, give: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			c.Close()
		}
	}
}

type cappedConn struct {
	net.Conn
	give func()
}

func (c *cappedConn) Close() error {
	c.give()
	return c.Conn.Close()
}
