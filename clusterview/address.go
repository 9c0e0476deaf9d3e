package clusterview

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// way is how a view was got: nodes may name other addresses to IPv4 clients than to IPv6
// ones, and another port to those that speak TLS.
type way struct{ v6, tls bool }

func (r *report) way() way { return way{r.from.Addr().Is6(), r.tls} }

// toldBy is a node that was asked in some way.
type toldBy struct {
	id  string
	way way
}

// byWay are the last reports of the voters, one for each way in which they were asked: what one of
// them says to IPv4 clients is no other opinion of what it says to IPv6 ones. Often a seed is the
// only one that is asked by IPv6. If no server is any more, or none answers, what they said last
// holds: a look-up that brings no such address is no reason to take addresses from nodes.
func (c *clusterState) byWay(p *panel, answers func(netip.AddrPort) bool) (all []*report) {
	current := map[way]bool{}
	for _, id := range p.voters {
		for _, tls := range []bool{false, true} {
			for _, v6 := range []bool{false, true} {
				how := way{v6, tls}
				if r := c.told[toldBy{id, how}]; r != nil {
					all = append(all, r)
					current[how] = current[how] || answers(r.from)
				}
			}
		}
	}
	return slices.DeleteFunc(all, func(r *report) bool { return current[r.way()] && !answers(r.from) })
}

// mergeAddresses gives each node the addresses that a majority of those names who were asked in
// the same way. Where there is no majority it keeps what it had.
func (c *clusterState) mergeAddresses(prev *Topology, p *panel, m merging, next *Topology) {
	outside := map[netip.AddrPort]bool{}
	served := map[*report]map[string]reply.Server{}
	of := map[way]int{}
	views := c.byWay(p, m.answers)
	for _, v := range views {
		of[v.way()]++
		served[v] = v.servers()
	}
	lost := map[string]bool{} // nodes without an address of their own, as far as the others know
	tooMany := 0
	for i := range next.Nodes {
		n := &next.Nodes[i]
		was := prev.Node(n.ID)
		votes := map[way]vote[Endpoint]{}
		for _, v := range views {
			if votes[v.way()] == nil {
				votes[v.way()] = vote[Endpoint]{}
			}
			for _, e := range v.addresses(n.ID, served[v][n.ID]) {
				addr, ok := m.accept(e.Addr)
				if !ok {
					outside[addr] = true
					continue
				}
				votes[v.way()][Endpoint{addr, e.TLS}]++
			}
		}
		settled := was == nil
		for how, by := range votes {
			for e, count := range by {
				if 2*count > of[how] {
					n.Endpoints = append(n.Endpoints, e)
					settled = true
				}
			}
		}
		if n.Name != "" {
			next.Names = append(next.Names, n.Name)
			n.addNamed(m)
		}
		// A node that is noaddr for most of the others has lost its address, but what it had may
		// still lead to it; it is another node at the address, or another address, that ends it.
		if !settled {
			n.Endpoints, lost[n.ID] = slices.Clone(was.Endpoints), true
		}
		slices.SortFunc(n.Endpoints, compareEndpoints)
		n.Endpoints = slices.Compact(n.Endpoints)
		if over := len(n.Endpoints) - MaxEndpoints; over > 0 {
			tooMany += over
			n.Endpoints = n.Endpoints[:MaxEndpoints]
		}
	}
	next.concede(lost)
	next.problem(ProblemTooMany, fmt.Sprintf("more than %d addresses of one node", MaxEndpoints), tooMany)
	next.outside(outside)
}

// concede takes an address away from nodes that have failed, or have lost theirs, if exactly one
// is said to be there that has not: the pod of the one has the address that was the other's. Redis
// itself forgets the address of a node where another id answers, and may never call it failed.
func (t *Topology) concede(lost map[string]bool) {
	gone := func(n *Node) bool { return n.State == StateFailed || lost[n.ID] }
	alive := map[netip.AddrPort]int{}
	for i := range t.Nodes {
		if n := &t.Nodes[i]; !gone(n) {
			for _, e := range n.Endpoints {
				alive[e.Addr]++
			}
		}
	}
	for i := range t.Nodes {
		if n := &t.Nodes[i]; gone(n) {
			n.Endpoints = slices.DeleteFunc(n.Endpoints, func(e Endpoint) bool { return alive[e.Addr] == 1 })
		}
	}
}

// addNamed adds the addresses of n's announced name, with the ports that are known.
func (n *Node) addNamed(m merging) {
	ports := slices.Clone(n.Endpoints)
	for _, ip := range m.names(n.Name) {
		for _, e := range ports {
			addr, ok := m.accept(netip.AddrPortFrom(ip, e.Addr.Port()))
			if e := (Endpoint{addr, e.TLS}); ok && len(n.Endpoints) <= 2*MaxEndpoints && !slices.Contains(n.Endpoints, e) {
				n.Endpoints = append(n.Endpoints, e)
			}
		}
	}
}

// outside tells of addresses that are not allowed.
func (t *Topology) outside(addrs map[netip.AddrPort]bool) {
	var first netip.AddrPort
	for a := range addrs {
		if !first.IsValid() || a.Compare(first) < 0 {
			first = a
		}
	}
	t.problem(ProblemOutside, fmt.Sprintf("%v is not in allow", first), len(addrs))
}

// servers is what CLUSTER SLOTS says of each node.
func (r *report) servers() map[string]reply.Server {
	by := map[string]reply.Server{}
	for _, s := range r.slots {
		for _, n := range s.Nodes {
			if n.ID != "" && len(by) < reply.MaxNodes {
				by[n.ID] = n
			}
		}
	}
	return by
}

// addresses is where a report says that a node is: by its line of CLUSTER NODES, by what clients
// are told to dial, and on the port for the other kind of connection.
func (r *report) addresses(id string, s reply.Server) (all []Endpoint) {
	line := r.by[id]
	if line == nil {
		return nil
	}
	add := func(a reply.Address, tls bool) {
		addr := a.AddrPort(r.from.Addr())
		if e := (Endpoint{addr, tls}); addr.IsValid() && !slices.Contains(all, e) {
			all = append(all, e)
		}
	}
	both := func(a reply.Address) {
		add(a, r.tls)
		for _, other := range []struct {
			port uint16
			tls  bool
		}{{line.TLSPort, true}, {line.PlainPort, false}} {
			if other.port != 0 && other.port != a.Port {
				a.Port = other.port
				add(a, other.tls)
			}
		}
	}
	both(line.Address)
	if s.ID == id {
		// "Where you have asked me" is said of every node where endpoints are unknown, as
		// behind a proxy: of another node it says nothing.
		if s.Preferred.Told == reply.Given || id == r.me {
			both(s.Preferred)
		}
		both(s.IP)
	}
	return all
}

// settleAddresses compares the addresses of two topologies: what was a node's and is no more
// is remembered, with who is there now.
func (t *Topology) settleAddresses(now time.Duration, prev *Topology) {
	at := map[netip.AddrPort]*Node{}
	for i := range t.Nodes {
		for _, e := range t.Nodes[i].Endpoints {
			at[e.Addr] = &t.Nodes[i]
		}
	}
	if prev != nil && prev.Known {
		for i := range prev.Nodes {
			was := &prev.Nodes[i]
			n := t.Node(was.ID)
			for _, e := range was.Endpoints {
				switch taker := at[e.Addr]; {
				case taker != nil && taker.ID != was.ID && n != nil && n.has(e.Addr):
					// Two nodes are said to be at one address: not known, so nothing follows.
				case taker != nil && taker.ID != was.ID:
					t.leave(now, was, []Endpoint{e}, StateReplaced, "", fmt.Sprintf("%s is there now, where %s was", short(taker.ID), short(was.ID)))
				case taker == nil && n != nil:
					t.leave(now, was, []Endpoint{e}, StateRemoved, n.ID, fmt.Sprintf("%s moved to %v", short(was.ID), n.first()))
				}
			}
		}
	}
	t.Former = slices.DeleteFunc(t.Former, func(f Former) bool {
		taken := at[f.Addr] != nil && (f.State != StateReplaced || at[f.Addr].ID == f.Node)
		return taken || now-f.Since > keepFormer
	})
}
