package clusterview

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// Fact is what the decision core takes of one endpoint. It holds until another takes its place
// or it is not in View.Facts any more.
type Fact struct {
	Endpoint netip.AddrPort
	State    NodeState
	Since    time.Duration
	// Role and RunID are of who answered at this very address at At. Where nobody of us asked
	// there At is 0, Role what the view says, and RunID empty.
	Role  reply.Role
	RunID string
	At    time.Duration
	// Single says that one process at a time answers there: it is a node's own address.
	Single    bool
	Clients   int            // of the server, as it said last; 0 is unknown
	Successor netip.AddrPort // zero if none is confirmed
	Source    string
	Detail    string
}

// Facts lists what is known of each endpoint, sorted. It is empty until the topology is known.
func (v *View) Facts() []Fact {
	t := v.top
	if !t.Known {
		return nil
	}
	by := map[netip.AddrPort]Fact{}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		for _, e := range n.Endpoints {
			f := Fact{Endpoint: e.Addr, State: n.State, Since: n.Since, Role: n.Role, Single: !n.Virtual, Source: string(t.Type), Detail: n.Detail}
			if n.State == StateFailed || n.State == StateDemoted {
				f.Successor = t.Node(n.Successor).like(e)
			}
			if k := v.contacts[e.Addr]; k != nil && k.asked > 0 {
				v.identify(&f, k, n)
			}
			by[e.Addr] = f
		}
	}
	for _, old := range t.Former {
		f, taken := by[old.Addr]
		if !taken {
			f = Fact{Endpoint: old.Addr, Single: true, Source: string(t.Type)}
		} else if old.State != StateReplaced || f.State != StateOK {
			continue
		}
		f.State, f.Since, f.Detail, f.Successor = old.State, old.Since, old.Detail, t.Node(old.Successor).like(old.Endpoint)
		by[old.Addr] = f
	}
	all := make([]Fact, 0, len(by))
	for _, f := range by {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Fact) int { return a.Endpoint.Compare(b.Endpoint) })
	return all
}

// identify adds who has answered at the address.
func (v *View) identify(f *Fact, k *contact, n *Node) {
	f.At = k.asked
	if k.info != nil {
		f.RunID, f.Clients = k.info.RunID, max(k.info.Clients, 0)
		if k.info.Role != "" {
			f.Role = k.info.Role
		}
	}
	if v.top.Type == Cluster && k.node != "" && k.node != n.ID && f.State == StateOK {
		// Its own answer is sooner than the view of the others.
		f.State, f.Since = StateReplaced, k.nodeSince
		f.Detail = "node " + short(k.node) + " answers where " + short(n.ID) + " should be"
	}
	if n.Virtual {
		f.Single = !k.behind.many
		if f.State == StateOK {
			f.Single = false // another process may be met there the next time
		}
	}
}

// like is an address of n for clients that dial ones like e: TLS or plain, IPv4 or IPv6.
func (n *Node) like(e Endpoint) netip.AddrPort {
	if n == nil {
		return netip.AddrPort{}
	}
	best, points := netip.AddrPort{}, -1
	for _, x := range n.Endpoints {
		p := 0
		if x.TLS == e.TLS {
			p += 2
		}
		if x.Addr.Addr().Is4() == e.Addr.Addr().Is4() {
			p++
		}
		if p > points {
			best, points = x.Addr, p
		}
	}
	return best
}
