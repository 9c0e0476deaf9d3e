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
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// form makes a cluster of six, three primaries and then a replica of each, and returns their ids.
func (r *rig) form(redis []*lab.Redis) map[*lab.Redis]string {
	r.t.Helper()
	ids := map[*lab.Redis]string{}
	for i, s := range redis {
		ids[s] = fmt.Sprint(r.do(s, "CLUSTER", "MYID"))
		if i < 3 {
			first, last := []string{"0", "5461", "10923"}[i], []string{"5460", "10922", "16383"}[i]
			r.do(s, "CLUSTER", "ADDSLOTSRANGE", first, last)
			r.do(s, "CLUSTER", "SET-CONFIG-EPOCH", fmt.Sprint(i+1))
		}
	}
	for _, s := range redis[1:] {
		r.do(s, "CLUSTER", "MEET", redis[0].Addr().Addr().String(), fmt.Sprint(redis[0].Addr().Port()))
	}
	for i, s := range redis[3:] {
		labtest.Eventually(r.t, "it has met its primary, and replicates it", func() bool {
			_, err := s.Do(r.ctx, "CLUSTER", "REPLICATE", ids[redis[i]])
			return err == nil
		})
	}
	labtest.Within(r.t, 20*time.Second, "the cluster is up", func() bool {
		return !slices.ContainsFunc(redis, func(s *lab.Redis) bool {
			return !strings.Contains(fmt.Sprint(r.do(s, "CLUSTER", "INFO")), "cluster_state:ok") ||
				strings.Count(fmt.Sprint(r.do(s, "CLUSTER", "NODES")), "slave") != 3
		}) && strings.Contains(fmt.Sprint(r.do(redis[3], "INFO", "replication")), "master_link_status:up")
	})
	return ids
}

// Redis Cluster: a planned failover and the migration of slots end no connection; a power-cut
// those to the node that is gone.
func TestClusterDeployment(t *testing.T) {
	t.Parallel()
	port := portsFrom + 21
	r := newRig(t, "c")
	redis := r.servers(6, lab.RedisConfig{Port: port, Args: []string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"}})
	ids := r.form(redis)
	var seeds []netip.AddrPort
	for _, s := range redis[:3] {
		seeds = append(seeds, s.Addr())
	}
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
	r.do(redis[3], "CLUSTER", "FAILOVER")
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
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
	labtest.Must(t, redis[1].Host().Vanish())
	freed := clients[redis[1]]
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("power-cut: freed after %v", time.Since(begin))
	e, _ = r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || *e.Change != (v1.Change{From: redis[1].Addr().String(), To: redis[4].Addr().String()}) {
		t.Errorf("the event is %+v", e)
	}
	t.Logf("power-cut: changed after %v", e.Time.Sub(begin))
	r.up("carts", func(x *v1.Target) bool { return x.Covered == 16384 })
	r.only(n, []string{"down", "failed", "flow", "connecting", "connecting-to-down"}, freed...)
}
