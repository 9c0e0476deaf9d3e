package supervisor

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// A round of arming on a node with 10,000 connections in 50 namespaces to 4
// endpoints, all of which are armed.
func BenchmarkArmNothingNew(b *testing.B) {
	c := config.Default()
	c.Mode, c.Watch.Mode, c.Arm.Mode = config.Enforce, config.Enforce, config.Enforce
	s := &Supervisor{figures: newFigures(), arms: make(chan []*armJob, 1)}
	s.conf.Store(&c)
	s.override.Store(int32(config.Enforce))
	w := &watcher{s: s, conns: map[verdict.ConnKey]*tracked{}, mayTrace: true}
	o := armOptions(&c)
	for i := range 10_000 {
		sp := &space{key: verdict.NS(i/200 + 1), ns: netns.Namespace{Name: fmt.Sprint(i / 200)}}
		t := &tracked{key: verdict.ConnKey{NS: sp.key, Cookie: uint64(i)}, space: sp, own: ownership{asked: true, owner: &proc.Owner{Process: proc.Process{PID: i/50 + 2, Comm: "app"}}}}
		t.conn = tcpstate.Connection{ID: tcpstate.ID{Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 4)}), 6379)}, State: tcpstate.Established, Inode: 1}
		t.conn.Info.LastDataRecv = time.Hour
		t.arm = armed{state: view.ArmDone, options: w.share(o), want: w.share(o), original: &keepalive.Options{}}
		w.conns[t.key] = t
	}
	now := time.Second
	w.arm(now) // picks canaries
	for _, j := range <-s.arms {
		t := w.conns[j.key]
		t.arm.asked, t.arm.want = false, w.share(j.want)
	}
	b.ReportAllocs()
	for b.Loop() {
		now += armEvery
		w.arm(now)
		if len(s.arms) > 0 {
			b.Fatal("there is something new")
		}
	}
}
