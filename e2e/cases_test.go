//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// allKinds are the clients of the table in docs/targets.md.
var allKinds = []lab.ClientKind{lab.Writer, lab.Subscriber, lab.Blpop, lab.Idle}

// clients are one of each kind at each of some servers.
type clients struct {
	rig *rig
	at  map[string]client // by what the daemon calls the connection
}

type client struct {
	*lab.Client
	kind   lab.ClientKind
	server netip.AddrPort
}

func (r *rig) clients(servers ...*lab.Redis) clients {
	c := clients{r, map[string]client{}}
	for _, s := range servers {
		for _, kind := range allKinds {
			x := r.start(lab.ClientConfig{Kind: kind, Addr: s.Addr()})
			c.at[r.key(x)] = client{x, kind, s.Addr()}
		}
	}
	return c
}

// failed says when each of the connections to some servers ended for its client.
func (c clients) failed(servers ...*lab.Redis) (at map[string]time.Time, all bool) {
	at, all = map[string]time.Time{}, true
	for key, x := range c.at {
		if !slices.ContainsFunc(servers, func(s *lab.Redis) bool { return s.Addr() == x.server }) {
			continue
		}
		i := slices.IndexFunc(x.Events(), func(e lab.Event) bool { return e.Kind == lab.Error && e.Op != "reply" })
		if all = all && i >= 0; i >= 0 {
			at[key] = x.Events()[i].Time()
		}
	}
	return at, all
}

// freed waits until each connection to these servers has ended, and checks that no other has.
func (c clients) freed(name string, begun time.Time, within time.Duration, servers ...*lab.Redis) {
	t := c.rig.t
	t.Helper()
	labtest.Within(t, within+10*time.Second, name+": the clients are freed", func() bool {
		_, all := c.failed(servers...)
		return all
	})
	at, _ := c.failed(servers...)
	took := map[lab.ClientKind]time.Duration{}
	for key, when := range at {
		x := c.at[key]
		took[x.kind] = max(took[x.kind], when.Sub(begun))
	}
	for kind, d := range took {
		if d > within {
			t.Errorf("%s: a %s got its error after %v, later than %v", name, kind, d, within)
		}
	}
	t.Logf("%s: errors after at most %v", name, took)
	for key, x := range c.at {
		if _, ok := at[key]; !ok {
			c.untouched(name, x)
		}
	}
}

// untouched checks that a client has the connection that it began with.
func (c clients) untouched(name string, x client) {
	c.rig.t.Helper()
	if i := slices.IndexFunc(x.Events(), func(e lab.Event) bool { return e.Kind == lab.Error && e.Op != "reply" }); i >= 0 {
		c.rig.t.Errorf("%s: a %s of %v has lost its connection: %+v", name, x.kind, x.server, x.Events()[i])
	}
}

// none checks that nobody has lost a connection, and that the daemon has ended none.
func (c clients) none(name string, n int) {
	c.rig.t.Helper()
	for _, x := range c.at {
		c.untouched(name, x)
	}
	c.rig.only(n, nil)
}

// well says that all nodes of a target are: a replica that was a primary before stays demoted.
func well(x *v1.Target) bool {
	return !slices.ContainsFunc(x.Nodes, func(n v1.Node) bool {
		return n.State != v1.NodeOK && !(n.State == v1.NodeDemoted && n.Role == v1.RoleReplica)
	})
}

// downWithin is the promise for a power-cut in the profile of the rig: down_after, 0.7 s in the
// profile fast, and 1.5 s; and as much again for two cores that other tests load.
const downWithin = 2 * (700 + 1500) * time.Millisecond

// Two of three primaries lose their power at once: their replicas cannot be elected, as there is no
// majority. Who was connected to them is freed, and nobody else, then and when they come back.
func TestTwoPrimariesAreCut(t *testing.T) {
	for i, order := range [][2]int{{0, 1}, {1, 0}} {
		t.Run(fmt.Sprintf("%d first", order[0]), func(t *testing.T) {
			port := portsFrom + 51 + uint16(i)
			r := newRig(t, fmt.Sprintf("t%d", i))
			redis, ids := r.cluster(port, 3, 3)
			r.guard(targetText("carts", addrs(redis), fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
			r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
			r.settled()
			c := r.clients(redis[0], redis[1], redis[2], redis[3])
			begun, n := time.Now(), len(r.told())
			r.cut(redis[0])
			r.cut(redis[1])
			c.freed("two of three primaries", begun, downWithin, redis[0], redis[1])
			e, _ := r.next(n, 15*time.Second, v1.EventClusterDown, nil)
			t.Logf("cluster.down after %v", e.Time.Sub(begun))

			begun, m := time.Now(), len(r.told())
			first := r.comeBack(redis[order[0]])
			// With two of three primaries the third's replica can be elected.
			e, _ = r.next(m, 30*time.Second, v1.EventPrimaryChanged, nil)
			if e.Change == nil || e.Change.From != redis[order[1]].Addr().String() || e.Change.To != redis[3+order[1]].Addr().String() {
				t.Errorf("the event is %+v", e)
			}
			e, _ = r.next(m, 30*time.Second, v1.EventClusterUp, nil)
			t.Logf("cluster.up %v after the first came back", e.Time.Sub(begun))
			second := r.comeBack(redis[order[1]])
			x := r.up("carts", func(x *v1.Target) bool {
				return x.Covered == 16384 && well(x)
			})
			for s, role := range map[*lab.Redis]string{first: "primary", second: "replica"} {
				i := slices.IndexFunc(x.Nodes, func(n v1.Node) bool { return slices.Contains(n.Endpoints, s.Addr().String()) })
				if i < 0 || string(x.Nodes[i].Role) != role || x.Nodes[i].ID != ids[redis[order[map[bool]int{true: 0, false: 1}[s == first]]]] {
					t.Errorf("%v is no %s in %+v", s.Addr(), role, x.Nodes)
				}
			}
			c.freed("all are back", begun, time.Hour, redis[0], redis[1])
		})
	}
}

// A pod is replaced: another with a new address and the same node id; and one at the same
// address that is another node.
func TestReplacedPods(t *testing.T) {
	port := portsFrom + 55
	r := newRig(t, "p")
	redis, ids := r.cluster(port, 3, 3)
	r.guard(targetText("carts", addrs(redis[2:]), fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
	r.settled()
	c := r.clients(redis[0], redis[2], redis[5])

	begun, n := time.Now(), len(r.told())
	r.cut(redis[0])
	c.freed("the old pod is gone", begun, downWithin, redis[0])
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	t.Logf("primary.changed after %v", e.Time.Sub(begun))
	r.hosts++
	begun, n = time.Now(), len(r.told())
	pod := r.startAgain(redis[0], labtest.Must2(r.Server(fmt.Sprintf("r%d", r.hosts)))(t))
	if id := fmt.Sprint(r.do(pod, "CLUSTER", "MYID")); id != ids[redis[0]] {
		t.Fatalf("the new pod has the id %s", id)
	}
	e, _ = r.next(n, 20*time.Second, v1.EventNodeMoved, nil)
	if e.Change == nil || *e.Change != (v1.Change{From: redis[0].Addr().String(), To: pod.Addr().String()}) {
		t.Errorf("the event is %+v", e)
	}
	t.Logf("node.moved after %v", e.Time.Sub(begun))

	// redis[5] is a replica. Another node comes at its address, which joins the cluster later.
	n = len(r.told())
	r.cut(redis[5])
	labtest.Must(t, redis[5].Host().Return())
	other := labtest.Must2(redis[5].Host().Redis(r.ctx, lab.RedisConfig{Path: labtest.RedisServer(), Port: port, Args: clusterArgs}))(t)
	r.next(n, 30*time.Second, v1.EventTargetProblem, func(e *v1.Event) bool { return strings.Contains(e.Text, "foreign_cluster") })
	begun = time.Now()
	r.do(redis[2], "CLUSTER", "MEET", other.Addr().Addr().String(), fmt.Sprint(port))
	e, _ = r.next(n, 30*time.Second, v1.EventNodeReplaced, nil)
	t.Logf("node.replaced after %v: %s", e.Time.Sub(begun), e.Text)
	c.freed("another node at the address", begun, 30*time.Second, redis[0], redis[5])
}

// What cuts us off cuts all servers off, which go on among themselves: nothing is ended, and after
// it all connections go on.
func TestOwnPartition(t *testing.T) {
	port := portsFrom + 56
	r := newRig(t, "o")
	redis, _ := r.cluster(port, 3, 3)
	r.guard(targetText("carts", addrs(redis), fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
	r.settled()
	c := r.clients(redis...)
	n := len(r.told())
	heal := labtest.Must2(r.Loss(1000))(t)
	begun := time.Now()
	labtest.Within(t, time.Minute, "the partition has lasted 12 s", func() bool { return time.Since(begun) > 12*time.Second })
	c.none("partition", n)
	labtest.Must(t, heal())
	r.up("carts", func(x *v1.Target) bool {
		return x.Covered == 16384 && well(x)
	})
	c.none("after the partition", n)
	for i, e := range r.told() {
		if i >= n && e.Type == v1.EventPrimaryChanged {
			t.Errorf("nothing changed, and %s", e.Text)
		}
	}
}

// Sentinels that lie alone, or have lost their sense of time, end nothing.
func TestSentinelsThatAreWrong(t *testing.T) {
	port, sentinelPort := portsFrom+57, portsFrom+58
	r := newRig(t, "w")
	redis, sentinels := r.sentinels(port, sentinelPort)
	r.guard(targetText("orders", addrs(sentinels), fmt.Sprintf("type = \"sentinel\"\nmaster_name = \"main\"\nallow_ports = [\"%d\", \"%d\"]\n", port, sentinelPort)))
	r.up("orders", func(x *v1.Target) bool { return len(x.Nodes) == 3 && len(x.Sentinels) == 3 })
	r.settled()
	c := r.clients(redis...)
	r.asked(redis[0], 2)
	n := len(r.told())

	// One says that a replica is the primary, of which the others know nothing.
	liar := sentinels[2]
	r.do(liar, "SENTINEL", "REMOVE", "main")
	r.do(liar, "SENTINEL", "MONITOR", "main", redis[1].Addr().Addr().String(), fmt.Sprint(port), "2")
	r.asked(redis[0], 8)
	c.none("a lying minority", n)
	r.do(liar, "SENTINEL", "REMOVE", "main")
	r.do(liar, "SENTINEL", "MONITOR", "main", redis[0].Addr().Addr().String(), fmt.Sprint(port), "2")

	// All of them stood still, and so are in TILT for 30 s.
	for _, s := range sentinels {
		labtest.Must(t, s.Freeze())
	}
	begun := time.Now()
	labtest.Eventually(t, "they stand still for longer than the 2 s of sentinelCheckTiltCondition", func() bool { return time.Since(begun) > 3*time.Second })
	for _, s := range sentinels {
		labtest.Must(t, s.Thaw())
	}
	r.up("orders", func(x *v1.Target) bool {
		return slices.ContainsFunc(x.Problems, func(p string) bool { return strings.HasPrefix(p, "sentinel.tilt") })
	})
	r.asked(redis[0], 8)
	c.none("TILT", n)
	for i, e := range r.told() {
		if i >= n && (e.Type == v1.EventPrimaryChanged || e.Type == v1.EventNodeDemoted) {
			t.Errorf("nothing changed, and %s", e.Text)
		}
	}
}

// What belongs to Redis is never touched, in a namespace that is watched, when what it is connected
// to is gone: a replica's link, a Sentinel's, and redis-cli that changes a cluster.
func TestRedisItself(t *testing.T) {
	port, sentinelPort := portsFrom+61, portsFrom+62
	r := newRig(t, "i")
	far := r.servers(1, lab.RedisConfig{Port: port})[0]
	replica := labtest.Must2(r.apps.Redis(r.ctx, lab.RedisConfig{Path: labtest.RedisServer(), Port: port + 2, Args: []string{"--replicaof", far.Addr().Addr().String() + " " + fmt.Sprint(port)}}))(t)
	labtest.Must2(r.apps.Sentinel(r.ctx, lab.SentinelConfig{Path: labtest.RedisServer(), Port: sentinelPort, Primary: far.Addr(), DownAfter: time.Minute}))(t)
	labtest.Within(t, 20*time.Second, "it replicates", func() bool {
		return strings.Contains(fmt.Sprint(r.do(replica, "INFO", "replication")), "master_link_status:up")
	})
	cluster := labtest.Must2(far.Host().Redis(r.ctx, lab.RedisConfig{Path: labtest.RedisServer(), Port: port + 3, Args: clusterArgs}))(t)
	r.do(cluster, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	r.guard(targetText("orders", []netip.AddrPort{far.Addr()}, "") + targetText("carts", []netip.AddrPort{cluster.Addr()}, ""))
	client := r.start(lab.ClientConfig{Addr: far.Addr()})
	labtest.Eventually(t, "the cluster is up", func() bool { return strings.Contains(fmt.Sprint(r.do(cluster, "CLUSTER", "INFO")), "cluster_state:ok") })
	// It waits for an answer for ever.
	labtest.Must2(r.apps.Start(r.ctx, exec.Command("redis-cli", "--cluster", "call", cluster.Addr().String(), "BLPOP", "nothing", "0")))(t)
	exempt := func(at netip.AddrPort) (n int) {
		for _, c := range r.connections() {
			if c.Namespace == r.apps.NSName && c.Endpoint == at.String() && !c.Reapable && strings.HasPrefix(c.WhyNot, "Redis itself") {
				n++
			}
		}
		return n
	}
	labtest.Within(t, 20*time.Second, "the connections of all three are known", func() bool { return exempt(far.Addr()) >= 3 && exempt(cluster.Addr()) >= 1 })
	n := len(r.told())
	r.cut(far)
	labtest.Within(t, 20*time.Second, "its client is freed", func() bool { return len(r.reaped(n)) >= 1 })
	begun := time.Now()
	labtest.Eventually(t, "as long again", func() bool { return time.Since(begun) > 4*time.Second })
	r.only(n, []string{"down", "failed", "flow"}, r.key(client))
	if exempt(cluster.Addr()) == 0 {
		t.Error("the connection of redis-cli --cluster has ended")
	}
}
