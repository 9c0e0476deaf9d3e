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

// sentinels makes a primary with two replicas, and a Sentinel on the host of each.
func (r *rig) sentinels(port, sentinelPort uint16) (redis, sentinels []*lab.Redis) {
	r.t.Helper()
	redis = r.servers(3, lab.RedisConfig{Port: port, Args: []string{"--repl-diskless-sync-delay", "0"}})
	for _, s := range redis[1:] {
		r.do(s, "REPLICAOF", redis[0].Addr().Addr().String(), fmt.Sprint(port))
	}
	for _, s := range redis {
		sentinels = append(sentinels, labtest.Must2(s.Host().Sentinel(r.ctx, lab.SentinelConfig{Path: labtest.RedisServer(), Port: sentinelPort, Primary: redis[0].Addr(), Quorum: 2, FailoverTimeout: 6 * time.Second}))(r.t))
	}
	labtest.Within(r.t, 30*time.Second, "the sentinels know all", func() bool {
		for _, s := range sentinels {
			v := fmt.Sprint(r.do(s, "SENTINEL", "MASTER", "main"))
			if !strings.Contains(v, "num-slaves 2") || !strings.Contains(v, "num-other-sentinels 2") {
				return false
			}
		}
		return true
	})
	return redis, sentinels
}

// Sentinel: a planned failover frees who was connected to the primary and nobody else; a
// power-cut whoever was there.
func TestSentinelDeployment(t *testing.T) {
	t.Parallel()
	port, sentinelPort := portsFrom+11, portsFrom+12
	r := newRig(t, "s")
	redis, sentinels := r.sentinels(port, sentinelPort)
	seeds := addrs(sentinels)
	r.guard(targetText("orders", seeds, fmt.Sprintf("type = \"sentinel\"\nmaster_name = \"main\"\nallow_ports = [\"%d\", \"%d\"]\n[target.readers]\ncommands = [\"reader\"]\n", port, sentinelPort)))
	r.up("orders", func(x *v1.Target) bool { return len(x.Nodes) == 3 && len(x.Sentinels) == 3 })

	old := redis[0]
	r.settled()
	writing := r.start(lab.ClientConfig{Addr: old.Addr()})
	var freed []string
	for _, c := range []*lab.Client{writing, r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: old.Addr()}), r.start(lab.ClientConfig{Kind: lab.Idle, Addr: old.Addr()})} {
		freed = append(freed, r.key(c))
	}
	r.start(lab.ClientConfig{Kind: lab.Idle, Addr: old.Addr(), Comm: "reader"})
	for _, s := range redis[1:] {
		r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: s.Addr()})
	}
	r.asked(old, 2)

	begin, n := time.Now(), len(r.told())
	promoted, announced := r.promotion(redis[1:]...), r.announcement(sentinels)
	r.do(sentinels[0], "SENTINEL", "FAILOVER", "main")
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || e.Change.From != old.Addr().String() || e.Target != "orders" {
		t.Errorf("the event is %+v", e)
	}
	t.Logf("planned: changed after %v, %v after the promotion, %v after a Sentinel said so", e.Time.Sub(begin), e.Time.Sub(<-promoted), e.Time.Sub(<-announced))
	// The Sentinels make it a replica 10 s later, and have it end its clients then. Operators do
	// so at once, and do not.
	begin = time.Now()
	to := netip.MustParseAddrPort(e.Change.To)
	r.do(old, "REPLICAOF", to.Addr().String(), fmt.Sprint(to.Port()))
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("planned: freed %v after it became a replica", time.Since(begin))
	r.asked(old, 3)
	r.only(n, []string{"demoted"}, freed...)

	// A power-cut of the new one.
	i := slices.IndexFunc(redis, func(s *lab.Redis) bool { return s.Addr().String() == e.Change.To })
	if i <= 0 {
		t.Fatalf("the new primary is %s", e.Change.To)
	}
	now := redis[i]
	freed = []string{}
	for _, kind := range []lab.ClientKind{lab.Writer, lab.Subscriber, lab.Blpop, lab.Idle} {
		freed = append(freed, r.key(r.start(lab.ClientConfig{Kind: kind, Addr: now.Addr(), Comm: "second"})))
	}
	for _, c := range r.connections() {
		if k := c.Namespace + " " + c.Local; c.Endpoint == now.Addr().String() && c.Namespace == r.apps.NSName && !slices.Contains(freed, k) {
			freed = append(freed, k) // the subscriber from before
		}
	}
	begin, n = time.Now(), len(r.told())
	var left []*lab.Redis
	for _, s := range redis {
		if s != now {
			left = append(left, s)
		}
	}
	promoted, announced = r.promotion(left...), r.announcement(sentinels)
	labtest.Must(t, now.Host().Vanish())
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("power-cut: freed after %v", time.Since(begin))
	e, _ = r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	if e.Change == nil || e.Change.From != now.Addr().String() || !slices.ContainsFunc(redis, func(s *lab.Redis) bool { return s != now && s.Addr().String() == e.Change.To }) {
		t.Errorf("the event is %+v", e)
	}
	for i, x := range r.told() {
		if i >= n && x.Type == v1.EventPrimaryUp {
			t.Errorf("it is gone, and %s", x.Text)
		}
	}
	r.only(n, []string{"down", "failed", "demoted", "flow", "connecting", "connecting-to-down"}, freed...)
	t.Logf("power-cut: changed after %v, %v after the promotion, %v after a Sentinel said so", e.Time.Sub(begin), e.Time.Sub(<-promoted), e.Time.Sub(<-announced))
}
