package api

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// viewWithin is how long an answer waits for the watcher.
const viewWithin = 3 * time.Second

// view gets what is known of the node; if that takes too long it answers so.
func (s *Server) view(w http.ResponseWriter, r *request) *view.Node {
	ctx, cancel := context.WithTimeout(r.Context(), viewWithin)
	defer cancel()
	n, err := s.opt.Source.View(ctx)
	if err != nil {
		noView(w, err)
		return nil
	}
	return n
}

func noView(w http.ResponseWriter, err error) {
	fail(w, http.StatusServiceUnavailable, v1.KindUnavailable, "the guard does not answer: "+err.Error())
}

func (s *Server) healthz(w http.ResponseWriter, r *request) {
	s.ready(w, r, func(*view.Node) string { return "" })
}

func (s *Server) readyz(w http.ResponseWriter, r *request) {
	s.ready(w, r, func(n *view.Node) string {
		if !n.Off && !n.Looked {
			return "the first look into all network namespaces is not over yet"
		}
		return ""
	})
}

func (s *Server) ready(w http.ResponseWriter, r *request, missing func(*view.Node) string) {
	ctx, cancel := context.WithTimeout(r.Context(), viewWithin)
	defer cancel()
	n, err := s.opt.Source.View(ctx)
	why := ""
	if err != nil {
		why = "the guard does not answer"
	} else {
		why = missing(n)
	}
	if why != "" {
		answer(w, http.StatusServiceUnavailable, v1.Ready{Why: why})
		return
	}
	answer(w, http.StatusOK, v1.Ready{OK: true})
}

func (s *Server) metrics(w http.ResponseWriter, r *request) {
	if s.opt.Metrics == nil {
		fail(w, http.StatusNotFound, v1.KindNotFound, "there are no metrics")
		return
	}
	s.opt.Metrics.ServeHTTP(w, r.Request)
}

func (s *Server) status(w http.ResponseWriter, r *request) {
	full := s.opt.Source.Info()
	st := v1.Status{Scope: r.peer.scope, Version: full.Version, Now: wireTime(time.Now())}
	if r.peer.scope == v1.ScopeMinimal {
		answer(w, http.StatusOK, st)
		return
	}
	n := s.view(w, r)
	if n == nil {
		return
	}
	see := r.peer.sight(n)
	snap := s.opt.Hub.Snapshot(false)
	st.Started, st.Jobs, st.Profile, st.DownAfterMs, st.Ports = full.Started, full.Jobs, full.Profile, full.DownAfterMs, full.Ports
	st.Cursor = event.Cursor{Epoch: s.opt.Hub.Epoch(), Seq: snap.Seq}.String()
	st.Mode = wireMode(snap.Mode)
	st.Counts = counts(n, &snap, see)
	if see.all {
		st.Revision, st.Kernel, st.Capabilities, st.Counters = full.Revision, full.Kernel, full.Capabilities, full.Counters
		if st.Counters != nil {
			c := s.Counters()
			st.Counters.Events, st.Counters.Streams = int64(snap.Seq), c.OpenStreams
			st.Counters.StreamsDropped = c.DroppedSlow + c.DroppedSilent + c.DroppedGarbage
			st.Counters.Refused = c.RefusedConnections + c.RefusedStreams + c.RefusedRates + c.RefusedRights + c.RefusedOrigins
			st.Counters.ViewAgeMs = time.Since(n.At).Milliseconds()
		}
	}
	s.guests.cost(r.peer, len(n.Connections)/4)
	answer(w, http.StatusOK, st)
}

func counts(n *view.Node, snap *event.Snapshot, see *sight) *v1.Counts {
	c := &v1.Counts{}
	conns := byConnection(snap.Open)
	spaces := map[verdict.NS]bool{}
	for i := range n.Connections {
		k := &n.Connections[i]
		if !see.connection(k) {
			continue
		}
		c.Connections++
		spaces[k.Key.NS] = true
		if k.Reapable() {
			c.Reapable++
		}
		switch h, _ := health(k, conns[k.Key], n.At); h {
		case v1.HealthWaiting:
			c.Waiting++
		case v1.HealthStalled:
			c.Stalled++
		case v1.HealthHalfDead:
			c.HalfDead++
		}
	}
	c.Namespaces = len(spaces)
	if see.all {
		c.Namespaces = len(n.Spaces)
	}
	for _, e := range endpoints(n, snap, see) {
		c.Endpoints++
		switch e.Health {
		case v1.EndpointDown:
			c.EndpointsDown++
		case v1.EndpointSuspect:
			c.EndpointsSuspect++
		}
	}
	for _, f := range snap.Open {
		if see.finding(f) {
			c.Findings++
		}
	}
	return c
}

// states are the words of ?state=: a health, or stalled, which is that and worse.
var states = map[string]func(v1.ConnectionHealth) bool{
	"":          func(v1.ConnectionHealth) bool { return true },
	"ok":        func(h v1.ConnectionHealth) bool { return h == v1.HealthOK },
	"waiting":   func(h v1.ConnectionHealth) bool { return h == v1.HealthWaiting },
	"stalled":   func(h v1.ConnectionHealth) bool { return h == v1.HealthStalled || h == v1.HealthHalfDead },
	"half_dead": func(h v1.ConnectionHealth) bool { return h == v1.HealthHalfDead },
}

func (s *Server) connections(w http.ResponseWriter, r *request) {
	endpoint, err := parseEndpoint(r.query)
	if err != nil {
		fail(w, http.StatusBadRequest, v1.KindBadRequest, err.Error())
		return
	}
	state, ok := states[r.query.Get("state")]
	if !ok {
		fail(w, http.StatusBadRequest, v1.KindBadRequest, "state is ok, waiting, stalled or half_dead")
		return
	}
	namespace, pod := r.query.Get("namespace"), r.query.Get("pod")
	n := s.view(w, r)
	if n == nil {
		return
	}
	see := r.peer.sight(n)
	snap := s.opt.Hub.Snapshot(false)
	found := byConnection(snap.Open)
	type entry struct {
		*view.Connection
		rank int
		long time.Duration
	}
	var list []entry
	for i := range n.Connections {
		c := &n.Connections[i]
		if !see.connection(c) || endpoint.IsValid() && c.TCP.Remote != endpoint || namespace != "" && !isSpace(n, c, namespace) || pod != "" && !isPod(c.Owner, pod) {
			continue
		}
		h, long := health(c, found[c.Key], n.At)
		if state(h) {
			list = append(list, entry{c, worseConnection(h), long})
		}
	}
	slices.SortFunc(list, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(b.long, a.long), a.TCP.Remote.Compare(b.TCP.Remote),
			cmp.Compare(a.Key.NS, b.Key.NS), cmp.Compare(a.Key.Cookie, b.Key.Cookie))
	})
	s.guests.cost(r.peer, len(n.Connections)/4+len(list))
	answerList(w, list, func(e *entry) any { return wireConnection(n, e.Connection, found[e.Key]) })
}

func isSpace(n *view.Node, c *view.Connection, want string) bool {
	return nsID(c.Key.NS) == want || n.Spaces[c.Space].Name == want
}

func isPod(o *proc.Owner, want string) bool {
	if o == nil {
		return false
	}
	w := &o.Workload
	return w.PodUID == want || w.ContainerID == want || o.PodName == want || o.PodName != "" && o.PodNamespace+"/"+o.PodName == want
}

// endpoints puts together what is seen of each.
func endpoints(n *view.Node, snap *event.Snapshot, see *sight) []v1.Endpoint {
	wrong := byPath(snap.Open)
	found := byConnection(snap.Open)
	names := map[verdict.NS]string{}
	for i := range n.Spaces {
		names[n.Spaces[i].NS] = n.Spaces[i].Name
	}
	all := map[netip.AddrPort]map[verdict.PathKey]*v1.Path{}
	path := func(key verdict.PathKey, name string) *v1.Path {
		paths := all[key.Endpoint]
		if paths == nil {
			paths = map[verdict.PathKey]*v1.Path{}
			all[key.Endpoint] = paths
		}
		p := paths[key]
		if p == nil {
			f := wrong[key]
			p = &v1.Path{NamespaceID: nsID(key.NS), Namespace: cmp.Or(names[key.NS], name), Interface: key.Interface, Health: pathHealth(f)}
			if f != nil {
				p.Finding = findingID(f.Opened.Seq)
			}
			paths[key] = p
		}
		return p
	}
	answered := map[verdict.PathKey]bool{}
	targets := map[netip.AddrPort]string{}
	for i := range n.Connections {
		c := &n.Connections[i]
		if !see.connection(c) {
			continue
		}
		p := path(c.Path(), "")
		p.Connections++
		if c.Target != "" {
			targets[c.TCP.Remote] = c.Target
		}
		if c.TCP.Info.BytesReceived > 0 || c.TCP.Info.BytesAcked > 1 { // more than the SYN
			answered[c.Path()] = true
		}
		switch h, _ := health(c, found[c.Key], n.At); h {
		case v1.HealthWaiting:
			p.Waiting++
		case v1.HealthStalled, v1.HealthHalfDead:
			p.Stalled++
		}
	}
	for _, f := range wrong {
		// One that is down stays in sight when its last connection has gone.
		if see.finding(f) {
			path(f.Opened.Path(), f.Opened.Namespace)
		}
	}
	list := make([]v1.Endpoint, 0, len(all))
	for _, ep := range slices.SortedFunc(maps.Keys(all), netip.AddrPort.Compare) {
		e := v1.Endpoint{Endpoint: ep.String(), Target: targets[ep], Health: v1.EndpointUnknown, Paths: []v1.Path{}}
		if e.Target == "" {
			e.Target = targetOf(n, ep, see) // whose last connection may have gone
		}
		for key, p := range all[ep] {
			if p.Health == v1.EndpointUp && !answered[key] {
				p.Health = v1.EndpointUnknown
			} else {
				e.Health = v1.EndpointUp
			}
		}
		for _, key := range slices.SortedFunc(maps.Keys(all[ep]), verdict.PathKey.Compare) {
			p := all[ep][key]
			e.Connections, e.Waiting, e.Stalled = e.Connections+p.Connections, e.Waiting+p.Waiting, e.Stalled+p.Stalled
			e.Paths = append(e.Paths, *p)
			if f := wrong[key]; f != nil {
				if worse(p.Health) < worse(e.Health) || p.Health == e.Health && f.Opened.Time.Before(*e.Since) {
					e.Health, e.Since = p.Health, timeRef(f.Opened.Time)
				}
			}
		}
		list = append(list, e)
	}
	slices.SortStableFunc(list, func(a, b v1.Endpoint) int { return cmp.Compare(worse(a.Health), worse(b.Health)) })
	return list
}

// targetOf is the first target that has a node at an endpoint, of those that may be seen.
func targetOf(n *view.Node, endpoint netip.AddrPort, see *sight) string {
	for i := range n.Targets {
		if t := &n.Targets[i]; see.target(t.Conf.Name) && t.Topology.At(endpoint) != nil {
			return t.Conf.Name
		}
	}
	return ""
}

func (s *Server) endpoints(w http.ResponseWriter, r *request) {
	n := s.view(w, r)
	if n == nil {
		return
	}
	snap := s.opt.Hub.Snapshot(false)
	list := endpoints(n, &snap, r.peer.sight(n))
	s.guests.cost(r.peer, len(n.Connections)/4+len(list))
	answerList(w, list, func(e *v1.Endpoint) any { return e })
}

func (s *Server) namespaces(w http.ResponseWriter, r *request) {
	n := s.view(w, r)
	if n == nil {
		return
	}
	see := r.peer.sight(n)
	snap := s.opt.Hub.Snapshot(false)
	found := byConnection(snap.Open)
	list := make([]v1.Namespace, len(n.Spaces))
	pods := make([]map[string]bool, len(n.Spaces))
	at := map[verdict.NS]int{}
	for i := range n.Spaces {
		sp := &n.Spaces[i]
		list[i] = v1.Namespace{ID: nsID(sp.NS), Name: sp.Name, Host: sp.Host}
		if see.inSpace(sp.NS) {
			list[i].Tune, list[i].Redis = wireTune(sp.Tune), wireRedis(&sp.Redis)
		}
		at[sp.NS] = i
	}
	for i := range n.Connections {
		c := &n.Connections[i]
		if !see.connection(c) {
			continue
		}
		e := &list[c.Space]
		e.Connections++
		if h, _ := health(c, found[c.Key], n.At); h == v1.HealthStalled || h == v1.HealthHalfDead {
			e.Stalled++
		}
		if name := podName(c.Owner); name != "" {
			if pods[c.Space] == nil {
				pods[c.Space] = map[string]bool{}
			}
			pods[c.Space][name] = true
		}
	}
	for _, f := range snap.Open {
		if i, ok := at[f.Opened.NS]; ok && f.Code == verdict.GuardDoubt && see.finding(f) {
			list[i].Doubt, list[i].DoubtSince = f.Opened.Text, timeRef(f.Opened.Time)
		}
	}
	for i := range list {
		list[i].Pods = slices.Sorted(maps.Keys(pods[i]))
	}
	list = slices.DeleteFunc(list, func(e v1.Namespace) bool {
		return e.Connections == 0 && e.Doubt == "" && !(see.all && (e.Host || e.Tune != nil || e.Redis != nil && len(e.Redis.Processes) > 0))
	})
	slices.SortFunc(list, func(a, b v1.Namespace) int {
		if a.Host != b.Host {
			if a.Host {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Stalled, a.Stalled), strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	s.guests.cost(r.peer, len(n.Connections)/4+len(list))
	answerList(w, list, func(e *v1.Namespace) any { return e })
}

func (s *Server) findings(w http.ResponseWriter, r *request) {
	all := false
	switch r.query.Get("all") {
	case "", "false":
	case "true":
		all = true
	default:
		fail(w, http.StatusBadRequest, v1.KindBadRequest, "all is true or false")
		return
	}
	n := s.view(w, r)
	if n == nil {
		return
	}
	see := r.peer.sight(n)
	snap := s.opt.Hub.Snapshot(all)
	var list []*event.Finding
	for _, f := range append(snap.Open, snap.Ended...) {
		if see.finding(f) {
			list = append(list, f)
		}
	}
	rank := map[event.Severity]int{event.Critical: 0, event.Warning: 1, event.Info: 2}
	slices.SortFunc(list, func(a, b *event.Finding) int {
		if o := a.Ended.IsZero(); o != b.Ended.IsZero() {
			if o {
				return -1
			}
			return 1
		}
		if !a.Ended.IsZero() {
			return b.Ended.Compare(a.Ended)
		}
		return cmp.Or(cmp.Compare(rank[event.SeverityOf(a.Code)], rank[event.SeverityOf(b.Code)]), cmp.Compare(a.Opened.Seq, b.Opened.Seq))
	})
	s.guests.cost(r.peer, len(list))
	answerList(w, list, func(f **event.Finding) any { return wireFinding(*f, see.form()) })
}
