//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
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

// An address over living servers, as a Kubernetes service has it, leads every connection elsewhere:
// whoever answers there proves nothing about the others. REDISGUARD_E2E_LONG says how long this is
// tried, 15 s if it does not.
func TestManyBehindOneAddress(t *testing.T) {
	long := 15 * time.Second
	if s := os.Getenv("REDISGUARD_E2E_LONG"); s != "" {
		long = labtest.Must2(time.ParseDuration(s))(t)
	}
	port, clusterPort := portsFrom+85, portsFrom+86
	r := newRig(t, "m")
	ctx, cancel := context.WithTimeout(context.Background(), long+4*time.Minute)
	t.Cleanup(cancel)
	r.ctx = ctx
	redis := r.servers(4, lab.RedisConfig{Port: port, Args: []string{"--repl-diskless-sync-delay", "0"}})
	for _, s := range redis[1:] {
		r.do(s, "REPLICAOF", redis[0].Addr().Addr().String(), fmt.Sprint(port))
	}
	nodes, _ := r.cluster(clusterPort, 3, 3)
	readers := labtest.Must2(r.VIP("readers", netip.MustParseAddr("10.77.9.3"), port))(t)
	carts := labtest.Must2(r.VIP("carts", netip.MustParseAddr("10.77.9.4"), clusterPort))(t)
	turn := func(n int) {
		labtest.Must(t, readers.PointTo(redis[1+n%3].Host(), port))
		labtest.Must(t, carts.PointTo(nodes[n%6].Host(), clusterPort))
	}
	turn(0)
	const reap = "[target.policy]\non_replaced = \"reap\"\non_demoted = \"reap\"\non_removed = \"reap\"\n"
	r.guard(targetText("readers", []netip.AddrPort{readers.Addr}, reap) + targetText("carts", []netip.AddrPort{carts.Addr}, fmt.Sprintf("allow_ports = [\"%d\"]\n", clusterPort)+reap))
	r.up("readers", nil)
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 })
	n := len(r.told())
	c := clients{r, map[string]client{}}
	for i := range 6 {
		turn(i)
		for _, at := range []netip.AddrPort{readers.Addr, carts.Addr} {
			for _, kind := range []lab.ClientKind{lab.Writer, lab.Subscriber, lab.Idle} {
				x := r.start(lab.ClientConfig{Kind: kind, Addr: at})
				c.at[r.key(x)] = client{x, kind, at}
			}
		}
	}
	for begun, i := time.Now(), 0; time.Since(begun) < long; i++ {
		turn(i)
		for _, at := range []netip.AddrPort{readers.Addr, carts.Addr} { // those that come and go
			conn := labtest.Must2(r.apps.Dial(r.ctx, "tcp", at.String()))(t)
			labtest.Must2(conn.Write([]byte("PING\r\n")))(t)
			labtest.Must2(conn.Read(make([]byte, 7)))(t)
			conn.Close()
		}
		time.Sleep(100 * time.Millisecond) // the pace of what is tried, not a wait for something
	}
	c.none("many behind one address", n)
}
