//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// Behind a virtual address: who hangs on the old primary, which lives on as a replica, is freed;
// where replicas alternate nobody is.
func TestVirtualAddress(t *testing.T) {
	t.Parallel()
	port, many := portsFrom+31, portsFrom+32
	r := newRig(t, "v")
	redis := r.servers(3, lab.RedisConfig{Port: port, Args: []string{"--repl-diskless-sync-delay", "0"}})
	first, second := redis[0], redis[1]
	for _, s := range redis[1:] {
		r.do(s, "REPLICAOF", first.Addr().Addr().String(), fmt.Sprint(port))
	}
	labtest.Within(t, 20*time.Second, "they replicate", func() bool {
		return strings.Contains(fmt.Sprint(r.do(first, "INFO", "replication")), "connected_slaves:2")
	})
	vip := labtest.Must2(r.VIP("one", netip.MustParseAddr("10.77.9.1"), port))(t)
	readers := labtest.Must2(r.VIP("many", netip.MustParseAddr("10.77.9.2"), many))(t)
	labtest.Must(t, vip.PointTo(first.Host(), port))
	labtest.Must(t, readers.PointTo(redis[1].Host(), port))
	r.guard(targetText("orders", []netip.AddrPort{vip.Addr}, "type = \"replication\"\n[target.policy]\non_replaced = \"reap\"\n") +
		targetText("readers", []netip.AddrPort{readers.Addr}, "[target.policy]\non_replaced = \"reap\"\non_demoted = \"reap\"\n"))
	r.up("orders", nil)
	r.settled()
	var freed []string
	for _, kind := range []lab.ClientKind{lab.Writer, lab.Subscriber, lab.Idle} {
		freed = append(freed, r.key(r.start(lab.ClientConfig{Kind: kind, Addr: vip.Addr})))
	}
	// Readers on each of the replicas, by one address.
	for range 2 {
		for _, s := range redis[1:] {
			labtest.Must(t, readers.PointTo(s.Host(), port))
			r.start(lab.ClientConfig{Kind: lab.Subscriber, Addr: readers.Addr, Comm: "reader"})
			r.settled()
		}
	}
	r.only(0, nil)
	r.asked(first, 2)

	begin, n := time.Now(), len(r.told())
	r.do(second, "REPLICAOF", "NO", "ONE")
	r.do(first, "REPLICAOF", second.Addr().Addr().String(), fmt.Sprint(port))
	labtest.Must(t, vip.PointTo(second.Host(), port))
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("freed after %v", time.Since(begin))
	r.only(n, []string{"replaced", "demoted"}, freed...)
}
