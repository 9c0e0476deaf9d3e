package reaper

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

func TestLastLook(t *testing.T) {
	condemned := verdict.Reap{Counters: verdict.Counters{SegsIn: 17}, AckAt: sys.Monotonic() - time.Minute, Asked: sys.Monotonic() - time.Second}
	same := func() *tcpstate.Result {
		r := &tcpstate.Result{}
		r.State, r.Inode, r.HasInfo, r.Info.SegsIn, r.Info.LastAckRecv = tcpstate.Established, 4711, true, 17, time.Minute
		return r
	}
	for _, tc := range []struct {
		name   string
		change func(*tcpstate.Result)
		want   verdict.ReapOutcome
	}{
		{"unchanged", func(r *tcpstate.Result) {}, ""},
		{"connecting", func(r *tcpstate.Result) { r.State = tcpstate.SynSent }, ""},
		{"its data was acknowledged", func(r *tcpstate.Result) { r.Info.BytesAcked++ }, verdict.ReapSpared},
		{"it has received data", func(r *tcpstate.Result) { r.Info.BytesReceived++ }, verdict.ReapSpared},
		{"an ask was answered", func(r *tcpstate.Result) { r.Info.SegsIn++; r.Info.LastAckRecv = 0 }, verdict.ReapSpared},
		{"its peer repeats a reply", func(r *tcpstate.Result) { r.Info.SegsIn++; r.Info.DataSegsIn++; r.Info.LastAckRecv = 0 }, ""},
		{"its peer probes", func(r *tcpstate.Result) { r.Info.SegsIn++ }, ""},
		{"an old answer", func(r *tcpstate.Result) { r.Info.SegsIn++; r.Info.LastAckRecv = 2 * time.Second }, ""},
		{"closed by its peer", func(r *tcpstate.Result) { r.State = tcpstate.CloseWait }, verdict.ReapSpared},
		{"closed by its application", func(r *tcpstate.Result) { r.State = tcpstate.FinWait1 }, verdict.ReapSpared},
		{"orphan", func(r *tcpstate.Result) { r.Inode = 0 }, verdict.ReapSpared},
		{"MPTCP", func(r *tcpstate.Result) { r.MPTCP = true }, verdict.ReapSpared},
		{"no tcp_info", func(r *tcpstate.Result) { r.HasInfo, r.Info = false, tcpstate.Info{} }, verdict.ReapFailed},
		{"gone", func(r *tcpstate.Result) { r.Err = tcpstate.ErrGone }, verdict.ReapGone},
		{"unknown", func(r *tcpstate.Result) { r.Err = errors.New("out of memory") }, verdict.ReapFailed},
	} {
		now := same()
		tc.change(now)
		if got, why := lastLook(now, &condemned, sys.Monotonic()); got != tc.want || (why == nil) != (got == "" || got == verdict.ReapGone) {
			t.Errorf("%s: %q (%v), want %q", tc.name, got, why, tc.want)
		}
	}
}

// What a policy wants ended though it makes progress is not spared for being heard, but for
// everything else.
func TestLastLookAtALiveOne(t *testing.T) {
	live := verdict.Reap{Live: true}
	now := &tcpstate.Result{}
	now.State, now.Inode, now.HasInfo, now.Info.BytesAcked = tcpstate.Established, 4711, true, 18
	if got, why := lastLook(now, &live, sys.Monotonic()); got != "" || why != nil {
		t.Errorf("heard since: %q (%v)", got, why)
	}
	now.Inode = 0
	if got, _ := lastLook(now, &live, sys.Monotonic()); got != verdict.ReapSpared {
		t.Errorf("an orphan: %q", got)
	}
}

// One that makes progress saves those that were condemned with it, and only those.
func TestOneSparedSavesItsBatch(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:6379"), netip.MustParseAddrPort("10.0.0.2:6379")
	down, flow := verdict.Evidence{Rule: verdict.RuleDown}, verdict.Evidence{Rule: verdict.RuleFlow}
	list := []verdict.Reap{{Remote: a, Evidence: down}, {Remote: a, Evidence: down}, {Remote: a, Evidence: flow}, {Remote: b, Evidence: down}}
	looks := make([]tcpstate.Result, len(list))
	for i := range looks {
		looks[i].State, looks[i].Inode, looks[i].HasInfo = tcpstate.Established, 4711, true
	}
	looks[1].Info.BytesAcked = 1
	results := make([]Result, len(list))
	LastLooks(looks, list, results)
	if !errors.Is(results[0].Why, ErrBatch) || !errors.Is(results[1].Why, ErrHeard) || results[2].Outcome != "" || results[3].Outcome != "" {
		t.Errorf("%+v", results)
	}
}

// What a person wants ended is spared while it makes progress, unless that is wanted too.
func TestByHand(t *testing.T) {
	for _, tc := range []struct {
		name  string
		heard time.Duration
		reap  view.Reap
		want  verdict.ReapOutcome
	}{
		{"silent", time.Minute, view.Reap{}, ""},
		{"makes progress", progress / 2, view.Reap{}, verdict.ReapSpared},
		{"by force", progress / 2, view.Reap{Force: true}, ""},
		{"silent, and only asked", time.Minute, view.Reap{DryRun: true}, verdict.ReapDryRun},
		{"makes progress, and only asked", 0, view.Reap{DryRun: true}, verdict.ReapSpared},
	} {
		now := &tcpstate.Result{}
		now.State, now.Inode, now.HasInfo, now.Info.SegsIn = tcpstate.Established, 4711, true, 17
		now.Info.LastAckRecv, now.Info.LastDataRecv = tc.heard, tc.heard
		if got, why := ByHand(now, &tc.reap); got != tc.want || (why == nil) != (got == "" || got == verdict.ReapDryRun) {
			t.Errorf("%s: %q (%v), want %q", tc.name, got, why, tc.want)
		}
	}
}
