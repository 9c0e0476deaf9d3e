package api

import (
	"net/netip"
	"strings"

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
	// targets are those that it may see: its own connections lead there, or the config
	// says so.
	targets map[string]bool
}

// maxOwnEndpoints bounds what is remembered for a stream of where its own
// connections have led.
const maxOwnEndpoints = 4096

func (p *peer) sight(n *view.Node) *sight {
	s := &sight{all: p.scope == v1.ScopeHost, pod: p.pod, container: p.container, space: p.space, endpoints: map[netip.AddrPort]bool{}, targets: map[string]bool{}}
	if s.all || n == nil {
		return s
	}
	for i := range n.Spaces {
		if n.Spaces[i].Host {
			s.host = n.Spaces[i].NS
		}
	}
	for i := range n.Connections {
		if c := &n.Connections[i]; s.connection(c) {
			s.endpoints[c.TCP.Remote] = true
			// Who merely tries to connect to an address is told nothing of whose it is.
			if c.Target != "" && c.TCP.State == tcpstate.Established {
				s.targets[c.Target] = true
			}
		}
	}
	for i := range n.Targets {
		if t := &n.Targets[i]; t.VisibleTo(p.podNamespace, p.podName, p.unit) {
			s.targets[t.Conf.Name] = true
		}
	}
	return s
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
	if w.endpoint.IsValid() && endpoint != w.endpoint {
		return false
	}
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
