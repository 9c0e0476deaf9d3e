//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab/labtest"
)

const (
	// underWay is how long after the fault answers may arrive that were sent before.
	underWay = 100 * time.Millisecond
	// podStarts is how long after the fault the new pod is started.
	podStarts = 15 * time.Second
	// giveUp is how long after the fault a client is waited for.
	giveUp = 60 * time.Second
)

// BenchmarkLettuceReplacedPods measures how long Lettuce has no answer from a shard whose primary
// loses its power and is replaced by a pod of the same id and another address. Each fault is seen
// by one client for each kind of topology refresh, with the hook of examples/lettuce and without.
func BenchmarkLettuceReplacedPods(b *testing.B) {
	bench := java
	// Six of them share the cores with all else: none shall compile much, or collect in parallel.
	bench.run = []string{"java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", "target/classes:target/dependency/*", "Bench"}
	dir := bench.built(b, filepath.Join("..", "examples", "lettuce"), filepath.Join("testdata", "lettuce"))
	var table strings.Builder
	fmt.Fprintln(&table, "| settings | refresh | hook | from the fault | from the event | unanswered at most |\n|---|---|---|---|---|---|")
	for b.Loop() {
		for i, settings := range []string{"defaults", "example"} {
			b.Run(settings, func(b *testing.B) {
				replacedPod(b, bench, dir, settings, portsFrom+61+uint16(i), &table)
			})
		}
	}
	fmt.Print(table.String()) // a benchmark's log is cut
}

func replacedPod(b *testing.B, bench example, dir, settings string, port uint16, table *strings.Builder) {
	r := newRig(b, "l"+settings[:1])
	redis, state := r.pods(port)
	seeds := []netip.AddrPort{redis[0].Addr(), redis[1].Addr(), redis[2].Addr()}
	r.guard(targetText("carts", seeds, fmt.Sprintf("allow_ports = [\"%d\"]\n", port)))
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
	type client struct {
		*app
		refresh, hook string
	}
	var clients []client
	for _, refresh := range []string{"off", "periodic", "adaptive"} {
		for _, hook := range []string{"without", "with"} {
			a := r.app(bench, dir, seeds, "SETTINGS="+settings, "REFRESH="+refresh, "HOOK="+hook)
			clients = append(clients, client{a, refresh, hook})
			// One after the other: each takes a core for some seconds to start.
			for shard := range 3 {
				a.next(0, 40*time.Second, fmt.Sprintf("that shard %d answers", shard), func(s string) bool {
					var key string
					_, err := fmt.Sscanf(s, "answered %s", &key)
					return err == nil && shardOf(key) == shard
				})
			}
			if hook == "with" {
				a.refreshed(0, v1.Synced)
			}
		}
	}
	r.settled() // and streams follow what their pod is connected to

	m := len(r.told())
	labtest.Must(b, redis[1].Host().Vanish())
	fault := time.Now()
	e, m := r.next(m, 20*time.Second, v1.EventPrimaryChanged, nil)
	time.Sleep(time.Until(fault.Add(podStarts)))
	r.replace(state[1], port)
	moved, _ := r.next(m, 20*time.Second, v1.EventNodeMoved, nil)
	time.Sleep(time.Until(fault.Add(giveUp)))
	for _, c := range clients {
		answered, most := outage(c.said(), fault)
		after := func(from time.Time) string {
			if answered.IsZero() {
				return fmt.Sprintf("> %.0f s", giveUp.Seconds())
			}
			return fmt.Sprintf("%.2f s", answered.Sub(from).Seconds())
		}
		fmt.Fprintf(table, "| %s | %s | %s | %s | %s | %d |\n", settings, c.refresh, c.hook, after(fault), after(e.Time), most)
	}
	fmt.Printf("%s: primary.changed %v after the fault, node.moved %v\n", settings, e.Time.Sub(fault), moved.Time.Sub(fault))
}

// outage reads in what a client has said when the shard first answered after the fault, and how many
// commands were unanswered at most until then. If it did not answer the time is zero.
func outage(said []string, fault time.Time) (answered time.Time, most int) {
	for _, s := range said {
		var what, key string
		var ms int64
		var unanswered int
		if n, _ := fmt.Sscan(s, &what, &key, &ms, &unanswered); n != 4 || ms <= fault.UnixMilli() {
			continue
		}
		most = max(most, unanswered)
		if what == "answered" && shardOf(key) == 1 && ms > fault.Add(underWay).UnixMilli() {
			return time.UnixMilli(ms), most
		}
	}
	return time.Time{}, most
}
