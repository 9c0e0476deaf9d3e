package supervisor

import (
	"errors"
	"testing"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

func TestLastLook(t *testing.T) {
	condemned := verdict.Reap{SegsIn: 17}
	same := func() *tcpstate.Result {
		r := &tcpstate.Result{}
		r.State, r.Inode, r.HasInfo, r.Info.SegsIn = tcpstate.Established, 4711, true, 17
		return r
	}
	for _, tc := range []struct {
		name   string
		change func(*tcpstate.Result)
		want   verdict.ReapOutcome
	}{
		{"unchanged", func(r *tcpstate.Result) {}, ""},
		{"connecting", func(r *tcpstate.Result) { r.State = tcpstate.SynSent }, ""},
		{"heard since", func(r *tcpstate.Result) { r.Info.SegsIn++ }, verdict.ReapSpared},
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
		if got, why := lastLook(now, condemned.SegsIn); got != tc.want || (why == nil) != (got == "" || got == verdict.ReapGone) {
			t.Errorf("%s: %q (%v), want %q", tc.name, got, why, tc.want)
		}
	}
}

func TestPermit(t *testing.T) {
	app := &proc.Owner{Process: proc.Process{PID: 1 << 22, Comm: "app"}}
	pod := &proc.Owner{Process: app.Process, Workload: proc.Workload{Kind: proc.KindPod, PodUID: "u"}}
	base := config.Default()
	base.Watch.Mode = config.Enforce
	known := ownership{asked: true, owner: app, user: "www"}
	for _, tc := range []struct {
		name   string
		change func(*config.Config, *tcpstate.Connection, *ownership)
		may    bool
	}{
		{"all is well", func(*config.Config, *tcpstate.Connection, *ownership) {}, true},
		{"not asked yet", func(_ *config.Config, _ *tcpstate.Connection, o *ownership) { o.asked = false }, false},
		{"orphan", func(_ *config.Config, k *tcpstate.Connection, _ *ownership) { k.Inode = 0 }, false},
		{"MPTCP", func(_ *config.Config, k *tcpstate.Connection, _ *ownership) { k.MPTCP = true }, false},
		{"Redis itself", func(_ *config.Config, _ *tcpstate.Connection, o *ownership) { o.redis = "listens on watched port 6379" }, false},
		{"owner unknown, no Redis there", func(_ *config.Config, _ *tcpstate.Connection, o *ownership) { o.owner = nil }, true},
		{"owner unknown, Redis may be there", func(_ *config.Config, _ *tcpstate.Connection, o *ownership) { o.owner, o.listens = nil, true }, false},
		{"owner unknown, some are excluded", func(c *config.Config, _ *tcpstate.Connection, o *ownership) {
			o.owner, c.Exclude.Commands = nil, []string{"x"}
		}, false},
		{"its command is excluded", func(c *config.Config, _ *tcpstate.Connection, _ *ownership) { c.Exclude.Commands = []string{"ap?"} }, false},
		{"another command is excluded", func(c *config.Config, _ *tcpstate.Connection, _ *ownership) { c.Exclude.Commands = []string{"web"} }, true},
		{"its user is excluded", func(c *config.Config, _ *tcpstate.Connection, _ *ownership) { c.Exclude.Users = []string{"ww*"} }, false},
		{"users are excluded, its name is unknown", func(c *config.Config, _ *tcpstate.Connection, o *ownership) {
			o.user, c.Exclude.Users = "", []string{"postgres"}
		}, false},
		{"numbers are excluded, its name is unknown", func(c *config.Config, _ *tcpstate.Connection, o *ownership) {
			o.user, c.Exclude.Users = "", []string{"70"}
		}, true},
		{"its pod has no name, pods are excluded", func(c *config.Config, _ *tcpstate.Connection, o *ownership) {
			o.owner, c.Exclude.Pods = pod, []string{"db-*"}
		}, false},
		{"watch observes", func(c *config.Config, _ *tcpstate.Connection, _ *ownership) { c.Watch.Mode = config.Observe }, false},
		{"reap observes", func(c *config.Config, _ *tcpstate.Connection, _ *ownership) { c.Reap.Mode = config.Observe }, false},
		{"all observes", func(c *config.Config, _ *tcpstate.Connection, _ *ownership) { c.Mode = config.Observe }, false},
	} {
		c, k, o := base, tcpstate.Connection{Inode: 4711, UID: 33}, known
		tc.change(&c, &k, &o)
		s := new(Supervisor)
		s.override.Store(int32(config.Enforce)) // nobody has set a mode
		got, exempt, why := s.permit(&c, &k, &o)
		if (got == verdict.MayReap) != tc.may || (why == "") != tc.may || (exempt == NotExempt) != tc.may {
			t.Errorf("%s: may reap is %v (%s), want %v", tc.name, got == verdict.MayReap, why, tc.may)
		}
	}
}
