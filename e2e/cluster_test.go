//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// cluster makes a Redis Cluster of primaries, and of replicas, each of the primary at its place.
func (r *rig) cluster(port uint16, primaries, replicas int) (redis []*lab.Redis, ids map[*lab.Redis]string) {
	r.t.Helper()
	redis, ids = r.servers(primaries+replicas, lab.RedisConfig{Port: port, Args: clusterArgs}), map[*lab.Redis]string{}
	r.join(redis, ids, primaries, port)
	return redis, ids
}

var clusterArgs = []string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"}

// join makes a Redis Cluster of servers, which meet at a port.
func (r *rig) join(redis []*lab.Redis, ids map[*lab.Redis]string, primaries int, port uint16) {
	t := r.t
	t.Helper()
	for i, s := range redis {
		ids[s] = fmt.Sprint(r.do(s, "CLUSTER", "MYID"))
		if i < primaries {
			slots := []string{"CLUSTER", "ADDSLOTS"} // ADDSLOTSRANGE is of 7.0
			for slot := i * reply.Slots / primaries; slot < (i+1)*reply.Slots/primaries; slot++ {
				slots = append(slots, fmt.Sprint(slot))
			}
			r.do(s, slots...)
			r.do(s, "CLUSTER", "SET-CONFIG-EPOCH", fmt.Sprint(i+1))
		}
	}
	for _, s := range redis[1:] {
		r.do(s, "CLUSTER", "MEET", redis[0].Addr().Addr().String(), fmt.Sprint(port))
	}
	for i, s := range redis[primaries:] {
		labtest.Eventually(t, "it has met its primary, and replicates it", func() bool {
			_, err := s.Do(r.ctx, "CLUSTER", "REPLICATE", ids[redis[i]])
			return err == nil
		})
	}
	defer func() {
		if t.Failed() {
			t.Log(r.do(redis[0], "CLUSTER", "NODES"), r.do(redis[3], "INFO", "replication"))
		}
	}()
	labtest.Within(t, 20*time.Second, "the cluster is up", func() bool {
		return !slices.ContainsFunc(redis, func(s *lab.Redis) bool {
			nodes := fmt.Sprint(r.do(s, "CLUSTER", "NODES"))
			return !strings.Contains(fmt.Sprint(r.do(s, "CLUSTER", "INFO")), "cluster_state:ok") ||
				strings.Count(nodes, "slave") != len(redis)-primaries || strings.Contains(nodes, "handshake") || strings.Count(nodes, "\n") != len(redis)
		}) && !slices.ContainsFunc(redis[primaries:], func(s *lab.Redis) bool {
			return !strings.Contains(fmt.Sprint(r.do(s, "INFO", "replication")), "master_link_status:up")
		})
	})
}

func addrs(redis []*lab.Redis) (list []netip.AddrPort) {
	for _, s := range redis {
		list = append(list, s.Addr())
	}
	return list
}

// Redis Cluster: a planned failover and the migration of slots end no connection; a power-cut
// those to the node that is gone.
func TestClusterDeployment(t *testing.T) {
	t.Parallel()
	port := portsFrom + 21
	r := newRig(t, "c")
	redis, ids := r.cluster(port, 3, 3)
	seeds := addrs(redis[:3])
	r.guard(targetText("carts", seeds, fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
	r.settled()
	clients := map[*lab.Redis][]string{}
	for _, s := range redis {
		clients[s] = append(clients[s], r.key(r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: s.Addr()})))
	}
	for _, kind := range []lab.ClientKind{lab.Writer, lab.Idle} {
		clients[redis[1]] = append(clients[redis[1]], r.key(r.start(lab.ClientConfig{Kind: kind, Addr: redis[1].Addr()})))
	}
	r.start(lab.ClientConfig{Addr: redis[0].Addr()})

	n := len(r.told())
	promoted := r.promotion(redis[3])
	r.do(redis[3], "CLUSTER", "FAILOVER")
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	t.Logf("planned: changed %v after the promotion", e.Time.Sub(<-promoted))
	if e.Change == nil || *e.Change != (v1.Change{From: redis[0].Addr().String(), To: redis[3].Addr().String()}) {
		t.Errorf("the event is %+v", e)
	}
	m := len(r.told())
	r.do(redis[2], "CLUSTER", "SETSLOT", "5000", "IMPORTING", ids[redis[3]])
	r.do(redis[3], "CLUSTER", "SETSLOT", "5000", "MIGRATING", ids[redis[2]])
	r.do(redis[2], "CLUSTER", "SETSLOT", "5000", "NODE", ids[redis[2]])
	r.do(redis[3], "CLUSTER", "SETSLOT", "5000", "NODE", ids[redis[2]])
	e, _ = r.next(m, 20*time.Second, v1.EventSlotsChanged, nil)
	if e.Change == nil || *e.Change != (v1.Change{From: redis[3].Addr().String(), To: redis[2].Addr().String()}) || !strings.Contains(e.Text, "slots=5000") {
		t.Errorf("the event is %+v", e)
	}
	r.only(n, nil)
	for _, e := range r.told()[m:] {
		if e.Type == v1.EventPrimaryChanged {
			t.Errorf("a migration is no failover: %s", e.Text)
		}
	}

	begin, n := time.Now(), len(r.told())
	promoted = r.promotion(redis[4])
	labtest.Must(t, redis[1].Host().Vanish())
	freed := clients[redis[1]]
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("power-cut: freed after %v", time.Since(begin))
	e, _ = r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || *e.Change != (v1.Change{From: redis[1].Addr().String(), To: redis[4].Addr().String()}) {
		t.Errorf("the event is %+v", e)
	}
	t.Logf("power-cut: changed after %v, %v after the promotion", e.Time.Sub(begin), e.Time.Sub(<-promoted))
	r.up("carts", func(x *v1.Target) bool { return x.Covered == 16384 })
	r.only(n, []string{"down", "failed", "flow", "connecting", "connecting-to-down"}, freed...)
}
