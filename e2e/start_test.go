//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// Connections that are made while the daemon starts, and learns what its targets are, are all known.
func TestConnectedAtTheStart(t *testing.T) {
	port := portsFrom + 81
	r := newRig(t, "b")
	s := r.servers(1, lab.RedisConfig{Port: port})[0]
	stop, done := make(chan struct{}), make(chan struct{})
	var clients []*lab.Client
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			c, err := r.apps.Client(r.ctx, lab.ClientConfig{Kind: lab.Idle, Addr: s.Addr()})
			if err != nil {
				t.Error(err)
				return
			}
			clients = append(clients, c)
		}
	}()
	r.guard(targetText("orders", []netip.AddrPort{s.Addr()}, ""))
	r.up("orders", nil)
	begun := time.Now()
	labtest.Eventually(t, "some more connect", func() bool { return time.Since(begun) > 500*time.Millisecond })
	close(stop)
	<-done
	for _, c := range clients {
		labtest.Must(t, c.Ready(r.ctx))
	}
	var missing []string
	defer func() { t.Log(missing) }()
	labtest.Within(t, 5*time.Second, fmt.Sprintf("all of %d are known", len(clients)), func() bool {
		missing = missing[:0]
		known := r.connections()
		for i, c := range clients {
			if !slices.ContainsFunc(known, func(x v1.Connection) bool { return x.Local == c.Local(0).String() }) {
				missing = append(missing, fmt.Sprintf("%d of %d: %v", i, len(clients), c.Local(0)))
			}
		}
		return len(missing) == 0
	})
}
