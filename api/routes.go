package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/verdict"
)

// access says which peers may use a route. There is no default: a route without one is
// refused to all.
type access int

const (
	_          access = iota
	forAll            // every peer: tells nothing of the node
	forMinimal        // every peer; an unidentified one sees the least
	forKnown          // every identified peer, which sees its own part
	forHost           // peers on the host
	forAdmin          // peers that may act, on the admin socket
)

// route is one thing that can be asked for.
type route struct {
	method string
	// path is exact, but for one part that may be "{id}".
	path   string
	access access
	// query are the parameters that it knows.
	query  []string
	handle func(s *Server, w http.ResponseWriter, r *request)
}

// request is a request with what was found out about it.
type request struct {
	*http.Request
	peer  *peer
	id    string
	query url.Values
	admin bool // it came on the admin socket
}

// routes are all of them. docs/openapi.yaml says the same, and a test compares.
func routes() []route {
	return []route{
		{"GET", "/healthz", forAll, nil, (*Server).healthz},
		{"GET", "/readyz", forAll, nil, (*Server).readyz},
		{"GET", "/metrics", forHost, nil, (*Server).metrics},
		{"GET", "/v1/status", forMinimal, nil, (*Server).status},
		{"GET", "/v1/connections", forKnown, []string{"endpoint", "namespace", "pod", "state"}, (*Server).connections},
		{"GET", "/v1/endpoints", forKnown, nil, (*Server).endpoints},
		{"GET", "/v1/namespaces", forKnown, nil, (*Server).namespaces},
		{"GET", "/v1/findings", forKnown, []string{"all"}, (*Server).findings},
		{"GET", "/v1/events", forKnown, []string{"after", "type", "endpoint"}, (*Server).events},
		{"GET", "/v1/explain/{id}", forKnown, nil, (*Server).explain},
		{"GET", "/v1/targets", forKnown, nil, (*Server).targets},
		{"GET", "/v1/targets/{id}", forKnown, nil, (*Server).target},
		{"GET", "/v1/targets/{id}/primary", forKnown, nil, (*Server).primary},
		{"GET", "/v1/targets/{id}/slots", forKnown, []string{"key"}, (*Server).slots},
		{"POST", "/v1/reap", forAdmin, nil, (*Server).reap},
		{"PUT", "/v1/mode", forAdmin, nil, (*Server).setMode},
		{"POST", "/v1/reload", forAdmin, nil, (*Server).reload},
	}
}

// match says whether a path is the route's, and gives its {id}.
func (rt *route) match(path string) (id string, ok bool) {
	before, after, with := strings.Cut(rt.path, "{id}")
	if !with {
		return "", path == rt.path
	}
	id, begins := strings.CutPrefix(path, before)
	id, ends := strings.CutSuffix(id, after)
	return id, begins && ends && id != "" && !strings.Contains(id, "/")
}

// handler serves one of the sockets.
func (s *Server) handler(admin bool) http.Handler {
	table := routes()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(peerKey{}).(*peer)
		if !ok {
			fail(w, http.StatusForbidden, v1.KindForbidden, "who asks is not known")
			return
		}
		// A browser can be led here by any page, through a proxy that somebody
		// has put before the socket. No program of ours is one.
		if fromBrowser(r.Header) {
			s.counts.refusedOrigins.Add(1)
			fail(w, http.StatusForbidden, v1.KindForbidden, "requests of browsers are refused")
			return
		}
		// Before anything that leaves a line in the log.
		if !s.guests.admit(p) {
			// A client that goes on all the same is to cost little.
			select {
			case <-r.Context().Done():
			case <-time.After(refusedPause):
			}
			w.Header().Set("Retry-After", "1")
			fail(w, http.StatusTooManyRequests, v1.KindTooMany, fmt.Sprintf("too many requests: no more than %d a second", requestRate))
			return
		}
		if admin && !p.admin {
			s.counts.refusedRights.Add(1)
			why := ""
			if p.why != "" {
				why = " (" + p.why + ")"
			}
			s.opt.Log.Warn("refused on the admin socket", "pid", p.pid, "uid", p.uid, "comm", p.comm, "cgroup", p.cgrp, "why", p.why)
			fail(w, http.StatusForbidden, v1.KindForbidden, "only root on the host and the group of [api] may use the admin socket"+why)
			return
		}
		var other []string
		for i := range table {
			rt := &table[i]
			id, ok := rt.match(r.URL.Path)
			if !ok {
				continue
			}
			if rt.method != r.Method {
				other = append(other, rt.method)
				continue
			}
			if kind, why := s.allowed(rt, p, admin); why != "" {
				s.counts.refusedRights.Add(1)
				fail(w, http.StatusForbidden, kind, why)
				return
			}
			q, err := query(r.URL.RawQuery, rt.query)
			if err != nil {
				fail(w, http.StatusBadRequest, v1.KindBadRequest, err.Error())
				return
			}
			if rt.access == forKnown {
				if !s.guests.begin(p) {
					w.Header().Set("Retry-After", "1")
					fail(w, http.StatusTooManyRequests, v1.KindTooMany, fmt.Sprintf("too many requests at once: no more than %d of this kind", answersEach))
					return
				}
				defer s.guests.finish(p)
			}
			rt.handle(s, w, &request{Request: r, peer: p, id: id, query: q, admin: admin})
			return
		}
		if len(other) > 0 {
			w.Header().Set("Allow", strings.Join(other, ", "))
			fail(w, http.StatusMethodNotAllowed, v1.KindMethodNotAllowed, fmt.Sprintf("%s can only be asked for with %s", r.URL.Path, strings.Join(other, ", ")))
			return
		}
		fail(w, http.StatusNotFound, v1.KindNotFound, fmt.Sprintf("there is no %.100q", r.URL.Path))
	})
}

func fromBrowser(h http.Header) bool {
	if h["Origin"] != nil {
		return true
	}
	for name := range h {
		if strings.HasPrefix(name, "Sec-Fetch-") {
			return true
		}
	}
	return false
}

// allowed says why a peer may not use a route, empty if it may.
func (s *Server) allowed(rt *route, p *peer, admin bool) (v1.ErrorKind, string) {
	switch rt.access {
	case forAll, forMinimal:
		return "", ""
	case forKnown:
		if p.scope == v1.ScopeMinimal {
			return v1.KindForbidden, "who asks could not be found out: " + p.why
		}
		return "", ""
	case forHost:
		if p.scope != v1.ScopeHost {
			return v1.KindForbidden, "this is for processes of the host: " + p.why
		}
		return "", ""
	case forAdmin:
		if !admin {
			return v1.KindForbidden, "this is for the admin socket, " + or(s.opt.AdminSocket, v1.DefaultAdminSocket)
		}
		return "", ""
	}
	return v1.KindForbidden, "nobody may use this"
}

// query reads the parameters of a request: each known, each once.
func query(raw string, known []string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, errors.New("the query cannot be read")
	}
	for name, values := range q {
		if !slices.Contains(known, name) {
			if len(known) == 0 {
				return nil, fmt.Errorf("unknown parameter %.40q: this takes none", name)
			}
			return nil, fmt.Errorf("unknown parameter %.40q: this takes %s", name, strings.Join(known, ", "))
		}
		if len(values) > 1 {
			return nil, fmt.Errorf("parameter %s is given %d times", name, len(values))
		}
		if len(values[0]) > 1024 {
			return nil, fmt.Errorf("parameter %s is too long", name)
		}
	}
	return q, nil
}

// parseFilter reads the filters of an event stream.
func parseFilter(q url.Values) (filter, error) {
	var w filter
	if v := q.Get("type"); v != "" {
		w.types = strings.Split(v, ",")
		for _, t := range w.types {
			if !knownType(t) {
				return w, fmt.Errorf("no event is of type %.40q", t)
			}
		}
	}
	ep, err := parseEndpoint(q)
	w.endpoint = ep
	return w, err
}

// knownType says whether some event can be of a wanted type.
func knownType(want string) bool {
	one := filter{types: []string{want}}
	return slices.ContainsFunc(append(event.Types(), event.ReapFailed), func(t verdict.EventType) bool { return one.wants(t, netip.AddrPort{}) })
}

// parseEndpoint reads the parameter endpoint, if there is one.
func parseEndpoint(q url.Values) (netip.AddrPort, error) {
	v := q.Get("endpoint")
	if v == "" {
		return netip.AddrPort{}, nil
	}
	ep, err := netip.ParseAddrPort(v)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%.60q is no endpoint: want ip:port", v)
	}
	return ep, nil
}

// body reads the JSON body of a request into v.
func body(r io.Reader, v any) (status int, kind v1.ErrorKind, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	switch {
	case err != nil:
		return http.StatusBadRequest, v1.KindBadRequest, errors.New("the body cannot be read")
	case len(b) > maxBody:
		return http.StatusRequestEntityTooLarge, v1.KindTooLarge, fmt.Errorf("the body is longer than %d bytes", maxBody)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	// A misspelled "dry_run" that is ignored would do the opposite of what was
	// meant.
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return http.StatusBadRequest, v1.KindBadRequest, fmt.Errorf("the body is not what is wanted: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return http.StatusBadRequest, v1.KindBadRequest, errors.New("the body goes on after its end")
	}
	return 0, "", nil
}

// fail answers with an error.
func fail(w http.ResponseWriter, status int, kind v1.ErrorKind, message string) {
	answer(w, status, v1.ErrorBody{Error: v1.ErrorDetail{Kind: kind, Message: message}})
}

// answer answers with v.
func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status = http.StatusInternalServerError
		b = []byte(`{"error":{"kind":"internal","message":"the answer cannot be encoded"}}`)
	}
	head(w)
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func head(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
}

// answerList answers with an array, piece by piece: the longest lists are tens of
// megabytes.
func answerList[T any](w http.ResponseWriter, list []T, wire func(*T) any) {
	head(w)
	b := bufio.NewWriterSize(w, 32<<10)
	for i := range list {
		sep := ",\n "
		if i == 0 {
			sep = "["
		}
		_, _ = b.WriteString(sep)
		if _, err := b.Write(line(wire(&list[i]))); err != nil {
			return // the client has gone
		}
	}
	if len(list) == 0 {
		_ = b.WriteByte('[')
	}
	_, _ = b.WriteString("]\n")
	_ = b.Flush()
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
