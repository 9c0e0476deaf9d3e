package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/view"
)

// targets lists those that the peer may see.
func (s *Server) targets(w http.ResponseWriter, r *request) {
	n := s.view(w, r)
	if n == nil {
		return
	}
	see := r.peer.sight(n)
	list := []v1.Target{}
	for i := range n.Targets {
		if t := &n.Targets[i]; see.target(t.Conf.Name) {
			s.opt.Source.Wake(t.Conf.Name)
			list = append(list, wireTarget(n, t, see))
		}
	}
	s.guests.cost(r.peer, len(n.Connections)/4)
	answerList(w, list, func(t *v1.Target) any { return t })
}

// oneTarget is the target with the request's name; it answers if there is none. One that
// the peer may not see does not exist.
func (s *Server) oneTarget(w http.ResponseWriter, r *request) (*view.Node, *view.Target, *sight) {
	n := s.view(w, r)
	if n == nil {
		return nil, nil, nil
	}
	see := r.peer.sight(n)
	for i := range n.Targets {
		if t := &n.Targets[i]; t.Conf.Name == r.id && see.target(r.id) {
			s.opt.Source.Wake(r.id)
			return n, t, see
		}
	}
	fail(w, http.StatusNotFound, v1.KindNotFound, fmt.Sprintf("there is no target %.63q", r.id))
	return nil, nil, nil
}

func (s *Server) target(w http.ResponseWriter, r *request) {
	if n, t, see := s.oneTarget(w, r); t != nil {
		answer(w, http.StatusOK, wireTarget(n, t, see))
	}
}

// primary answers with one line for scripts: the primary's address, and what there is to know
// before it is used.
func (s *Server) primary(w http.ResponseWriter, r *request) {
	n, t, _ := s.oneTarget(w, r)
	if t == nil {
		return
	}
	if t.Topology.Type == clusterview.Cluster {
		fail(w, http.StatusUnprocessableEntity, v1.KindUnprocessable, "a Redis Cluster has many primaries: ask for the slots of a key")
		return
	}
	p := t.Topology.Primary()
	if p == nil || len(p.Endpoints) == 0 || p.State == clusterview.StateFailed {
		why := t.Topology.Why
		if !t.Topology.Known {
			why = notKnown
		}
		fail(w, http.StatusServiceUnavailable, v1.KindUnavailable, "there is no primary that is known to be one: "+or(why, "none answers as one"))
		return
	}
	at := p.Endpoints[0].Addr
	for _, e := range p.Endpoints {
		if e.TLS == t.Conf.TLS.Enabled {
			at = e.Addr
			break
		}
	}
	line := at.String()
	if p.Name != "" {
		line += " name=" + p.Name
	}
	line += fmt.Sprintf(" epoch=%d", t.Topology.Epoch)
	if !t.Changed.IsZero() {
		line += fmt.Sprintf(" age=%ds", int(n.At.Sub(t.Changed).Seconds()))
	}
	head(w)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintln(w, line)
}

// slots answers who owns the slot of a key.
func (s *Server) slots(w http.ResponseWriter, r *request) {
	n, t, see := s.oneTarget(w, r)
	if t == nil {
		return
	}
	if !r.query.Has("key") {
		fail(w, http.StatusBadRequest, v1.KindBadRequest, "the parameter key is missing")
		return
	}
	key := r.query.Get("key")
	slot := reply.Slot(key)
	out := v1.SlotOwner{Key: key, Slot: int(slot), Replicas: []v1.Node{}}
	owner := t.Topology.Owner(slot)
	if t.Topology.Type != clusterview.Cluster {
		owner = t.Topology.Primary() // of all slots
	}
	if owner != nil {
		counts := connections(n, see)
		x := wireNode(owner, counts)
		out.Node = &x
		for i := range t.Topology.Nodes {
			if m := &t.Topology.Nodes[i]; m.Primary == owner.ID && m.Role == reply.RoleReplica {
				out.Replicas = append(out.Replicas, wireNode(m, counts))
			}
		}
	}
	answer(w, http.StatusOK, out)
}

// notKnown is why a target is not known that nobody has asked about.
const notKnown = "nothing was heard of it yet: it is asked about while this node has connections to it, or somebody asks"

// connections counts them by their endpoint.
func connections(n *view.Node, see *sight) map[netip.AddrPort]int {
	counts := map[netip.AddrPort]int{}
	for i := range n.Connections {
		if c := &n.Connections[i]; c.Target != "" && see.connection(c) {
			counts[c.TCP.Remote]++
		}
	}
	return counts
}

func wireTarget(n *view.Node, t *view.Target, see *sight) v1.Target {
	top, counts := t.Topology, connections(n, see)
	w := v1.Target{
		Name: t.Conf.Name, Type: v1.TargetType(top.Type), Mode: v1.Mode(t.Conf.Mode.String()), State: v1.TargetUnknown, Why: top.Why,
		Epoch: top.Epoch, Voters: top.Voters, Shards: []v1.Shard{}, Nodes: []v1.Node{}, Covered: top.Covered, Change: t.Change, Changed: timeRef(t.Changed),
	}
	switch {
	case !top.Known && t.Problem != "" && see.all:
		w.Why = t.Problem
	case !top.Known:
		w.Why = notKnown
	case top.State != "":
		w.State = v1.TargetState(top.State)
	}
	if see.all {
		for _, p := range top.Problems {
			w.Problems = append(w.Problems, p.Kind+": "+p.Detail)
		}
		if t.Problem != "" && len(w.Problems) == 0 {
			w.Problems = append(w.Problems, t.Problem)
		}
	}
	for _, s := range top.Shards {
		x := v1.Shard{Primary: s.Primary, Replicas: append([]string{}, s.Replicas...), Slots: slotText(s.Slots)}
		w.Shards = append(w.Shards, x)
	}
	for i := range top.Nodes {
		w.Nodes = append(w.Nodes, wireNode(&top.Nodes[i], counts))
	}
	for _, a := range top.Sentinels {
		w.Sentinels = append(w.Sentinels, a.String())
	}
	for _, f := range top.Former {
		w.Former = append(w.Former, v1.FormerAddress{Endpoint: f.Addr.String(), State: v1.NodeState(f.State), Successor: f.Successor, Detail: f.Detail})
	}
	for _, s := range t.Names {
		x := v1.TargetName{Name: s.Name, Addresses: []string{}, Stale: s.Stale}
		for _, a := range s.Addrs {
			x.Addresses = append(x.Addresses, a.String())
		}
		if s.Err != nil {
			x.Error = s.Err.Error()
		}
		w.Names = append(w.Names, x)
	}
	for i := range n.Connections {
		if c := &n.Connections[i]; c.Target == w.Name && see.connection(c) {
			w.Connections++
		}
	}
	return w
}

func wireNode(n *clusterview.Node, counts map[netip.AddrPort]int) v1.Node {
	w := v1.Node{
		ID: n.ID, Name: n.Name, Role: v1.Role(n.Role), State: v1.NodeState(n.State), Endpoints: []string{}, RunID: n.RunID, Primary: n.Primary,
		Slots: slotText(n.Slots), Loading: n.Loading, Successor: n.Successor, Detail: n.Detail,
	}
	var moving []reply.SlotRange
	for _, m := range n.Moves[:min(len(n.Moves), 100)] {
		moving = append(moving, m.Slots)
	}
	w.Moving = slotText(moving)
	for _, e := range n.Endpoints {
		w.Endpoints = append(w.Endpoints, e.Addr.String())
		w.Connections += counts[e.Addr]
	}
	return w
}

func slotText(ranges []reply.SlotRange) string {
	var parts []string
	for _, r := range ranges {
		if r.First == r.Last {
			parts = append(parts, fmt.Sprint(r.First))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", r.First, r.Last))
		}
	}
	return strings.Join(parts, ",")
}
