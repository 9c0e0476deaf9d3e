package api

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// sight is what a peer may see. It is for one request or stream.
type sight struct {
	all            bool
	pod, container string
	space          verdict.NS // its own, 0 if that is the host's
	host           verdict.NS // the host's, 0 while it is not known
	// endpoints are what its own connections in the host's namespace lead or led
	// to.
	endpoints map[netip.AddrPort]bool
	// targets are those that it may see: its own connections lead there (for a stream: or
	// led there while it was open), or the config says so.
	targets map[string]bool
	led     map[string]bool // of them those that its own connections made visible
}

// maxOwnEndpoints bounds what is remembered for a stream of where its own
// connections have led.
const maxOwnEndpoints = 4096

func (p *peer) sight(n *view.Node) *sight {
	s := &sight{all: p.scope == v1.ScopeHost, pod: p.pod, container: p.container, space: p.space, endpoints: map[netip.AddrPort]bool{}}
	if s.all || n == nil {
		return s
	}
	for i := range n.Connections {
		if c := &n.Connections[i]; s.connection(c) {
			s.endpoints[c.TCP.Remote] = true
		}
	}
	s.look(p, newReach(n))
	return s
}

// look brings what changes while a stream is open up to date: a client may subscribe before it
// connects, and a reload may give and take the right to see a target.
func (s *sight) look(p *peer, r *reach) {
	s.host = r.host
	led, targets := map[string]bool{}, map[string]bool{}
	for i := range r.targets {
		t := &r.targets[i]
		name := t.Conf.Name
		led[name] = s.led[name] || r.leads(s, name)
		targets[name] = led[name] || t.VisibleTo(p.podNamespace, p.podName, p.unit)
	}
	s.led, s.targets = led, targets
}

// reach is where the connections of the node lead to, by whose they are.
type reach struct {
	at      time.Time
	host    verdict.NS // the host's, 0 while it is not known
	targets []view.Target
	ways    map[way]bool
}

// way is one of whose connections lead to a target.
type way struct {
	target         string
	space          verdict.NS // or
	pod, container string
}

func newReach(n *view.Node) *reach {
	r := &reach{at: n.At, targets: n.Targets, ways: map[way]bool{}}
	for i := range n.Spaces {
		if n.Spaces[i].Host {
			r.host = n.Spaces[i].NS
		}
	}
	for i := range n.Connections {
		c := &n.Connections[i]
		// Who merely tries to connect to an address is told nothing of whose it is.
		if c.Target == "" || c.TCP.State != tcpstate.Established {
			continue
		}
		r.ways[way{target: c.Target, space: c.Key.NS}] = true
		if o := c.Owner; o != nil {
			r.ways[way{target: c.Target, pod: o.Workload.PodUID}] = true
			r.ways[way{target: c.Target, container: o.Workload.ContainerID}] = true
		}
	}
	return r
}

// leads says whether a connection that a peer may see leads to a target; see sight.connection.
func (r *reach) leads(s *sight, target string) bool {
	if s.space != 0 && r.ways[way{target: target, space: s.space}] {
		return true
	}
	if s.pod != "" {
		return r.ways[way{target: target, pod: s.pod}]
	}
	return s.container != "" && r.ways[way{target: target, container: s.container}]
}

// form is how events are written for it.
func (s *sight) form() event.Form {
	if s.all {
		return event.ForHost
	}
	return event.ForPod
}

// inSpace says whether everything in a network namespace is the peer's.
func (s *sight) inSpace(ns verdict.NS) bool { return s.all || s.space != 0 && ns == s.space }

func (s *sight) mine(pod, container string) bool {
	return s.pod != "" && pod == s.pod || s.pod == "" && s.container != "" && container == s.container
}

func (s *sight) owner(o *proc.Owner) bool {
	return o != nil && s.mine(o.Workload.PodUID, o.Workload.ContainerID)
}

// connection says whether the peer may see a connection.
func (s *sight) connection(c *view.Connection) bool { return s.inSpace(c.Key.NS) || s.owner(c.Owner) }

// path says whether the peer may see how an endpoint fares, seen from a namespace.
func (s *sight) path(ns verdict.NS, endpoint netip.AddrPort) bool {
	return s.inSpace(ns) || s.space == 0 && ns == s.host && ns != 0 && s.endpoints[endpoint]
}

// event says whether the peer may see an event.
func (s *sight) event(e *event.Event) bool {
	if s.all {
		return true
	}
	switch event.Of(e.Type).Access {
	case event.ForAll:
		return true
	case event.ForNamespace:
		return s.inSpace(e.NS)
	case event.ForPath:
		return s.path(e.NS, e.Endpoint)
	case event.ForTarget:
		return s.targets[e.Target]
	case event.ForOwner:
		if e.Cookie == 0 {
			return s.path(e.NS, e.Endpoint)
		}
		if k := e.Connection; k != nil && s.mine(k.PodUID, k.ContainerID) {
			if len(s.endpoints) < maxOwnEndpoints { // a stream may last, and a pod may connect to anything
				s.endpoints[k.Remote] = true
			}
			return true
		}
		return s.inSpace(e.NS)
	}
	return false
}

// target says whether the peer may see a target.
func (s *sight) target(name string) bool { return s.all || s.targets[name] }

func (s *sight) finding(f *event.Finding) bool { return s.event(f.Opened) }

// filter is what a subscriber wants of what it may see.
type filter struct {
	types    []string // exact, or with a "*" at the end
	endpoint netip.AddrPort
}

// wants says whether an event is of the wanted kind.
func (w *filter) wants(t verdict.EventType, endpoint netip.AddrPort) bool {
	return (!w.endpoint.IsValid() || endpoint == w.endpoint) && w.wantsType(t)
}

// targets says whether events about targets are wanted.
func (w *filter) targets() bool {
	return slices.ContainsFunc(event.Types(), func(t verdict.EventType) bool {
		return event.Of(t).Access == event.ForTarget && w.wantsType(t)
	})
}

func (w *filter) wantsType(t verdict.EventType) bool {
	if len(w.types) == 0 {
		return true
	}
	for _, p := range w.types {
		if prefix, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(string(t), prefix) || p == string(t) {
			return true
		}
	}
	return false
}
