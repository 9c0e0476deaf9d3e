package api

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	// What happened on the same path belongs to the story of a connection from so
	// long before its first event until so long after its last: a reap and the
	// client's return lie further apart than anything else.
	storyBefore = 30 * time.Second
	storyAfter  = 45 * time.Second
	// longestStory bounds the steps: of an outage with thousands of connections
	// the first and the last say enough.
	longestStory = 200
)

// story gathers what belongs together.
type story struct {
	ns       verdict.NS
	cookie   uint64 // of the connection it is about, 0 for a whole path
	pid      int
	endpoint bool // whether the path counts
	path     verdict.PathKey
	target   string // of the path, or whose story it is
	from, to time.Time
}

func (s *Server) explain(w http.ResponseWriter, r *request) {
	n := s.view(w, r)
	if n == nil {
		return
	}
	see := r.peer.sight(n)
	snap := s.opt.Hub.Snapshot(true)
	all := s.opt.Hub.Last(1 << 20)
	s.guests.cost(r.peer, len(all)/4)
	out, what := s.find(r.id, n, &snap, all, see)
	if what == nil {
		fail(w, http.StatusNotFound, v1.KindNotFound, fmt.Sprintf("there is no finding, connection or event %.60q (any more)", r.id))
		return
	}
	what.render(out, all, see, s.opt.Hub.Epoch())
	if out.Summary == "" && len(out.Story) > 0 {
		out.Summary = out.Story[0].Text
	}
	answer(w, http.StatusOK, out)
}

// find finds what an id names.
func (s *Server) find(id string, n *view.Node, snap *event.Snapshot, all []*event.Record, see *sight) (*v1.Explanation, *story) {
	out := &v1.Explanation{ID: id, Story: []v1.Step{}}
	if number, ok := strings.CutPrefix(id, "f"); ok {
		seq, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, nil
		}
		for _, f := range append(snap.Open, snap.Ended...) {
			if f.Opened.Seq == seq && see.finding(f) {
				wf := wireFinding(f, see.form())
				out.Kind, out.Finding, out.Summary = "finding", &wf, wf.Text
				st := about(f.Opened)
				if !f.Ended.IsZero() {
					st.to = f.Ended
				} else {
					st.to = time.Now()
				}
				return out, st
			}
		}
		return nil, nil
	}
	if seq, ok := s.eventNumber(id); ok {
		for _, e := range all {
			if e.Seq == seq && see.event(&e.Event) {
				we := wireEvent(&e.Event, s.opt.Hub.Epoch(), see.form())
				out.Kind, out.Summary = "event", we.Text
				return out, about(&e.Event)
			}
		}
		return nil, nil
	}
	key, err := view.ParseConnID(id)
	if err != nil {
		return s.findTarget(out, n, all, see)
	}
	out.Kind = "connection"
	found := byConnection(snap.Open)
	var st *story
	for i := range n.Connections {
		if c := &n.Connections[i]; c.Key == key && see.connection(c) {
			wc := wireConnection(n, c, found[key])
			out.Connection = &wc
			out.Summary = fmt.Sprintf("%s is %s", id, wc.Health)
			if tune := n.Spaces[c.Space].Tune; tune != nil {
				out.Kernel = tune.Meaning
			}
			st = &story{ns: key.NS, cookie: key.Cookie, path: c.Path(), endpoint: true, target: c.Target, from: n.At, to: n.At}
			if c.Owner != nil {
				st.pid = c.Owner.Process.PID
			}
		}
	}
	// It may be gone, and its events not.
	for _, e := range all {
		if e.Cookie == key.Cookie && e.NS == key.NS && see.event(&e.Event) {
			if st == nil {
				st = about(&e.Event)
			}
			if e.Time.Before(st.from) {
				st.from = e.Time
			}
			st.to = e.Time
			if e.Connection != nil {
				st.pid = e.Connection.PID
			}
		}
	}
	if st == nil {
		return nil, nil
	}
	return out, st
}

// findTarget tells the story of a target: all that the hub still has of it.
func (s *Server) findTarget(out *v1.Explanation, n *view.Node, all []*event.Record, see *sight) (*v1.Explanation, *story) {
	for i := range n.Targets {
		t := &n.Targets[i]
		if t.Conf.Name != out.ID || !see.target(t.Conf.Name) {
			continue
		}
		w := wireTarget(n, t, see)
		out.Kind, out.Target = "target", &w
		out.Summary = fmt.Sprintf("%s is %s", w.Name, w.State)
		if w.Why != "" {
			out.Summary += ": " + w.Why
		}
		st := &story{target: w.Name, from: n.At, to: n.At}
		for _, e := range all {
			if e.Target == w.Name && e.Time.Before(st.from) {
				st.from = e.Time
			}
		}
		return out, st
	}
	return nil, nil
}

// eventNumber reads a cursor of ours, or a bare number.
func (s *Server) eventNumber(id string) (uint64, bool) {
	if c, err := event.ParseCursor(id); err == nil && c.Epoch == s.opt.Hub.Epoch() {
		return c.Seq, true
	}
	n, err := strconv.ParseUint(id, 10, 64)
	return n, err == nil
}

func about(e *event.Event) *story {
	st := &story{ns: e.NS, cookie: e.Cookie, path: e.Path(), endpoint: e.Endpoint.IsValid(), target: e.Target, from: e.Time, to: e.Time}
	if e.Connection != nil {
		st.pid = e.Connection.PID
	}
	return st
}

// render writes the steps: what happened to the connection itself, whenever; what
// happened on its path around then; what became of its client; and what held us
// back. Without a connection it is about all of the path.
func (st *story) render(out *v1.Explanation, all []*event.Record, see *sight, epoch string) {
	from, to := st.from.Add(-storyBefore), st.to.Add(storyAfter)
	for _, r := range all {
		e := &r.Event
		if !see.event(e) || !st.belongs(e, from, to) {
			continue
		}
		w := wireEvent(e, epoch, see.form())
		out.Story = append(out.Story, v1.Step{
			Part: v1.Part(event.Of(e.Type).Part), Time: w.Time, Type: w.Type, Level: w.Level, Text: w.Text, Cursor: w.Cursor, Evidence: w.Evidence, Outcome: w.Outcome, TookMs: w.TookMs,
		})
	}
	slices.SortStableFunc(out.Story, func(a, b v1.Step) int { return cmp.Or(a.Time.Compare(b.Time)) })
	if n := len(out.Story); n > longestStory {
		out.Story = append(out.Story[:longestStory/2], out.Story[n-longestStory/2:]...)
		out.Incomplete = true
	}
	if len(all) > 0 && all[0].Seq > 1 && all[0].Time.After(from) {
		out.Incomplete = true
	}
}

func (st *story) belongs(e *event.Event, from, to time.Time) bool {
	if st.cookie != 0 && e.Cookie == st.cookie && e.NS == st.ns {
		return true
	}
	if e.Time.Before(from) || e.Time.After(to) {
		return false
	}
	switch event.Of(e.Type).Story {
	case event.OfPath:
		return st.endpoint && e.Path() == st.path
	case event.OfNamespace:
		return e.NS == st.ns
	case event.OfProcess:
		// Its own cookie is that of the client's new connection.
		return e.NS == st.ns && (st.cookie == 0 || e.Connection != nil && e.Connection.PID == st.pid)
	case event.OfClients:
		return e.NS == st.ns && e.Endpoint == st.path.Endpoint
	case event.OfTarget:
		return st.target != "" && e.Target == st.target
	case event.OfEverything:
		return true
	}
	if st.cookie != 0 {
		return false
	}
	if !st.endpoint {
		return st.ns != 0 && e.NS == st.ns
	}
	return e.Path() == st.path
}
