package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/view"
)

// events begins a stream.
func (s *Server) events(w http.ResponseWriter, r *request) {
	filter, err := parseFilter(r.query)
	if err != nil {
		fail(w, http.StatusBadRequest, v1.KindBadRequest, err.Error())
		return
	}
	st := &stream{peer: r.peer, filter: filter, sse: strings.Contains(r.Header.Get("Accept"), "text/event-stream")}
	after := r.query.Get("after")
	if last := r.Header.Get("Last-Event-ID"); after == "" && st.sse {
		after = last
	}
	if after != "" {
		cursor, err := event.ParseCursor(after)
		if err != nil {
			fail(w, http.StatusBadRequest, v1.KindBadRequest, err.Error())
			return
		}
		if cursor.Epoch != s.opt.Hub.Epoch() {
			fail(w, http.StatusGone, v1.KindCursorGone, "the cursor is of another run of redisguard: begin without one, with a snapshot")
			return
		}
		if _, err := s.opt.Hub.Read(cursor.Seq, 0, nil); err != nil {
			fail(w, http.StatusGone, v1.KindCursorGone, err.Error()+": begin without one, with a snapshot")
			return
		}
		st.after = cursor.Seq
	}
	st.see = r.peer.sight(nil)
	var n *view.Node
	if !st.see.all || filter.targets() {
		ctx, cancel := context.WithTimeout(r.Context(), viewWithin)
		n, err = s.opt.Source.View(ctx)
		cancel()
	}
	if !st.see.all {
		if err != nil {
			noView(w, err)
			return
		}
		st.see = r.peer.sight(n)
	}
	if !s.guests.subscribe(r.peer) {
		w.Header().Set("Retry-After", "5")
		fail(w, http.StatusTooManyRequests, v1.KindTooMany, "too many event streams are open")
		return
	}
	if err := s.hijack(w, st); err != nil {
		s.guests.unsubscribe(r.peer)
		s.opt.Log.Debug("cannot begin an event stream", "pid", r.peer.pid, "error", err)
		return
	}
	if n != nil && filter.targets() {
		for i := range n.Targets {
			if name := n.Targets[i].Conf.Name; st.see.target(name) {
				s.opt.Source.Wake(name)
			}
		}
	}
	if after == "" {
		snap := s.opt.Hub.Snapshot(false)
		st.snap, st.after = &snap, snap.Seq
		st.syncAt = snap.Seq
	} else {
		st.syncAt = s.opt.Hub.Head()
	}
	st.rest = header(st.sse)
	if !s.streams[s.turn.Add(1)%uint32(len(s.streams))].add(st) {
		sys.Close(st.fd)
		s.guests.unsubscribe(r.peer)
	}
}

func header(sse bool) []byte {
	kind := "application/x-ndjson"
	if sse {
		kind = "text/event-stream"
	}
	return []byte("HTTP/1.1 200 OK\r\nContent-Type: " + kind + "\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n")
}

// hijack takes the connection away from the HTTP server, and keeps no more of it
// than a descriptor.
func (s *Server) hijack(w http.ResponseWriter, st *stream) error {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer c.Close() // the connection's place, not the connection: see the duplicate
	g, ok := c.(*guest)
	if !ok {
		return errors.New("it is no connection of ours")
	}
	raw, err := g.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { st.fd, err = sys.Dup(int(fd)) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(st.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer); err != nil {
		sys.Close(st.fd)
		return err
	}
	return nil
}
