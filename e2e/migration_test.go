//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/lab"
)

// knows says whether a server knows a command, by trial.
func (r *rig) knows(s *lab.Redis, words ...string) bool {
	r.t.Helper()
	_, err := s.Do(r.ctx, words...)
	return err == nil || !strings.Contains(strings.ToLower(err.Error()), "unknown")
}

// Slots on their way are seen as such. When they have arrived, some of a primary's or all, that is
// a change of slots and no failover, and ends no connection. Where the server can hand slots over
// as a whole it does, else one by one.
func TestMigration(t *testing.T) {
	t.Parallel()
	port := portsFrom + 51
	r := newRig(t, "m")
	redis, ids := r.cluster(port, 3, 1)
	from, to := redis[0], redis[1]
	var seeds []netip.AddrPort
	for _, s := range redis {
		seeds = append(seeds, s.Addr())
	}
	r.guard(targetText("carts", seeds, fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 4 && x.Covered == reply.Slots && len(x.Problems) == 0 })
	r.settled()
	for _, s := range redis {
		for _, kind := range []lab.ClientKind{lab.Writer, lab.Subscriber, lab.Idle} {
			r.start(lab.ClientConfig{Kind: kind, Addr: s.Addr()})
		}
	}
	n := len(r.told())

	whole := r.knows(from, "CLUSTER", "GETSLOTMIGRATIONS")
	t.Attr("migration", map[bool]string{true: "as a whole", false: "slot by slot"}[whole])
	some := slots(5000, 5100)
	if whole {
		// Keys in these slots, and a second for each: it does not end.
		for key := 0; key < 20000; key++ {
			if at := reply.Slot(fmt.Sprint(key)); at >= 5000 && at <= 5100 {
				r.do(from, "SET", fmt.Sprint(key), "x")
			}
		}
		r.do(from, "CONFIG", "SET", "rdb-key-save-delay", "1000000")
		r.do(from, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", "5000", "5100", "NODE", ids[to])
	} else {
		for _, slot := range some {
			r.do(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from])
			r.do(from, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
		}
	}
	still := func(x *v1.Target) bool {
		return !slices.ContainsFunc(x.Nodes, func(n v1.Node) bool { return n.Moving != "" })
	}
	takesPart := func(n v1.Node) bool { return n.ID == ids[from] || n.ID == ids[to] }
	x := r.up("carts", func(x *v1.Target) bool {
		return !slices.ContainsFunc(x.Nodes, func(n v1.Node) bool {
			return takesPart(n) && !(n.Moving == "5000-5100" || !whole && strings.HasPrefix(n.Moving, "5000,5001,"))
		})
	})
	for _, node := range x.Nodes {
		if !takesPart(node) && node.Moving != "" {
			t.Errorf("%+v takes no part", node)
		}
	}
	r.only(n, nil)

	if whole {
		r.do(from, "CLUSTER", "CANCELSLOTMIGRATIONS")
		r.up("carts", still)
		r.do(from, "CONFIG", "SET", "rdb-key-save-delay", "0")
		r.do(from, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", "5000", "5100", "NODE", ids[to])
	} else {
		for _, slot := range some {
			r.do(to, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
			r.do(from, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
		}
	}
	change := v1.Change{From: from.Addr().String(), To: to.Addr().String()}
	e, m := r.next(n, askedWithin, v1.EventSlotsChanged, nil)
	if e.Change == nil || *e.Change != change || whole && !strings.Contains(e.Text, "slots=5000-5100") {
		t.Errorf("the event is %+v", e)
	}
	r.up("carts", still)

	// All that is left. A primary without slots becomes a replica of who has them.
	if whole {
		r.do(from, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", "0", "4999", "5101", "5460", "NODE", ids[to])
	} else {
		for _, slot := range append(slots(0, 4999), slots(5101, 5460)...) {
			r.do(to, "CLUSTER", "SETSLOT", slot, "NODE", ids[to]) // of which the one before hears
		}
	}
	r.up("carts", func(x *v1.Target) bool {
		return slices.ContainsFunc(x.Nodes, func(n v1.Node) bool { return n.ID == ids[from] && n.Slots == "" && n.Role == v1.RoleReplica })
	})
	e, _ = r.next(m, askedWithin, v1.EventSlotsChanged, nil)
	if e.Change == nil || *e.Change != change {
		t.Errorf("the event is %+v", e)
	}
	r.asked(from, 4)
	for _, e := range r.told()[n:] {
		if e.Type == v1.EventPrimaryChanged {
			t.Errorf("a migration is no failover: %s", e.Text)
		}
	}
	r.only(n, nil)
}

// slots are their numbers.
func slots(first, last int) (list []string) {
	for s := first; s <= last; s++ {
		list = append(list, fmt.Sprint(s))
	}
	return list
}

// Where servers name other addresses to IPv6 clients, nodes have both.
func TestAddressFamilies(t *testing.T) {
	t.Parallel()
	port := portsFrom + 61
	r := newRig(t, "f")
	redis, _ := r.cluster(port, 3, 1)
	names := true
	for _, s := range redis {
		_, err := s.Do(r.ctx, "CONFIG", "SET", "cluster-announce-client-ipv6", s.Addr6().Addr().String())
		names = names && err == nil
	}
	t.Attr("ipv6", map[bool]string{true: "one of its own", false: "the same"}[names])
	seeds := []netip.AddrPort{redis[0].Addr(), redis[0].Addr6()}
	r.guard(strings.Replace(targetText("carts", seeds, fmt.Sprintf("allow_ports = [\"%d\"]\n", port)), `allow = [`, `allow = ["fd77::/16", `, 1))
	all := func(x *v1.Target) bool {
		return len(x.Nodes) == len(redis) && !slices.ContainsFunc(redis, func(s *lab.Redis) bool {
			want := []string{s.Addr().String()}
			if names {
				want = append(want, s.Addr6().String())
			}
			return !slices.ContainsFunc(x.Nodes, func(n v1.Node) bool { return slices.Equal(n.Endpoints, want) })
		})
	}
	r.up("carts", all)
	if names {
		c := r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: redis[1].Addr6()})
		if !slices.ContainsFunc(r.connections(), func(x v1.Connection) bool { return x.Local == c.Local(0).String() && x.Target == "carts" }) {
			t.Errorf("a connection by IPv6 is not to the target: %+v", r.connections())
		}
	}
	r.start(lab.ClientConfig{Kind: lab.Idle, Addr: redis[0].Addr()})
	n := len(r.told())
	r.asked(redis[0], 1)
	r.settled()
	r.up("carts", all)
	for _, e := range r.told()[n:] {
		if e.Type == v1.EventAddressAdded || e.Type == v1.EventAddressRemoved || e.Type == v1.EventNodeMoved {
			t.Errorf("nothing has changed: %s", e.Text)
		}
	}
	r.only(n, nil)
}
