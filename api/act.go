package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/view"
)

// actWithin is how long an act may take.
const actWithin = 5 * time.Second

// acting notes which peer acts, whatever comes of it: the audit file has what was done,
// the log which peer asked.
func (s *Server) acting(r *request, what string, attrs ...any) {
	p := r.peer
	s.opt.Log.Warn("asked on the admin socket: "+what, append(attrs, "pid", p.pid, "uid", p.uid, "comm", p.comm, "cgroup", p.cgrp)...)
}

func (s *Server) reap(w http.ResponseWriter, r *request) {
	var in v1.ReapRequest
	if status, kind, err := body(r.Body, &in); err != nil {
		fail(w, status, kind, err.Error())
		return
	}
	do, err := parseReap(&in)
	if err != nil {
		fail(w, http.StatusBadRequest, v1.KindBadRequest, err.Error())
		return
	}
	do.Peer = r.peer.event()
	s.acting(r, "reap", "connection", in.Connection, "endpoint", in.Endpoint, "dry_run", in.DryRun, "force", in.Force)
	ctx, cancel := context.WithTimeout(r.Context(), actWithin)
	defer cancel()
	list, err := s.opt.Actor.Reap(ctx, do)
	switch {
	case errors.Is(err, view.ErrOff):
		fail(w, http.StatusUnprocessableEntity, v1.KindUnprocessable, err.Error())
		return
	case err != nil:
		fail(w, http.StatusServiceUnavailable, v1.KindUnavailable, "the guard does not answer: "+err.Error())
		return
	case len(list) == 0:
		fail(w, http.StatusNotFound, v1.KindNotFound, "there is no such connection (any more)")
		return
	}
	out := v1.ReapResponse{DryRun: in.DryRun, Results: make([]v1.ReapResult, len(list))}
	for i := range list {
		k := &list[i]
		out.Results[i] = v1.ReapResult{
			Connection: view.ConnID(k.Key), Endpoint: k.Remote.String(), Local: k.Local.String(), Process: wireProcess(k.UID, k.Owner),
			Outcome: v1.ReapOutcome(k.Outcome), Why: k.Why,
		}
	}
	answer(w, http.StatusOK, out)
}

// parseReap takes the request apart.
func parseReap(in *v1.ReapRequest) (view.Reap, error) {
	do := view.Reap{DryRun: in.DryRun, Force: in.Force}
	var err error
	switch {
	case (in.Connection == "") == (in.Endpoint == ""):
		return do, errors.New("want either a connection or an endpoint")
	case in.Connection != "":
		do.Connection, err = view.ParseConnID(in.Connection)
	default:
		if do.Endpoint, err = netip.ParseAddrPort(in.Endpoint); err != nil {
			err = errors.New("the endpoint is no ip:port")
		}
	}
	return do, err
}

func (s *Server) setMode(w http.ResponseWriter, r *request) {
	var in v1.ModeRequest
	if status, kind, err := body(r.Body, &in); err != nil {
		fail(w, status, kind, err.Error())
		return
	}
	switch in.Mode {
	case v1.ModeOff, v1.ModeObserve, v1.ModeEnforce:
	default:
		fail(w, http.StatusBadRequest, v1.KindBadRequest, "mode is off, observe or enforce")
		return
	}
	s.acting(r, "mode", "mode", string(in.Mode))
	ctx, cancel := context.WithTimeout(r.Context(), actWithin)
	defer cancel()
	m, err := s.opt.Actor.SetMode(ctx, string(in.Mode), r.peer.event())
	if err != nil {
		fail(w, http.StatusInternalServerError, v1.KindInternal, err.Error())
		return
	}
	answer(w, http.StatusOK, wireMode(&m))
}

func (s *Server) reload(w http.ResponseWriter, r *request) {
	if status, kind, err := body(r.Body, &struct{}{}); err != nil && r.ContentLength != 0 {
		fail(w, status, kind, err.Error())
		return
	}
	s.acting(r, "reload")
	ctx, cancel := context.WithTimeout(r.Context(), actWithin)
	defer cancel()
	file, changed, err := s.opt.Actor.Reload(ctx, r.peer.event())
	switch {
	case errors.Is(err, ErrBadConfig):
		fail(w, http.StatusUnprocessableEntity, v1.KindUnprocessable, err.Error())
		return
	case err != nil:
		fail(w, http.StatusInternalServerError, v1.KindInternal, err.Error())
		return
	}
	if changed == nil {
		changed = []string{}
	}
	answer(w, http.StatusOK, v1.ReloadResponse{File: file, Changed: changed})
}
