package policy

import (
	"testing"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/tcpstate"
)

func TestMode(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Inputs, *config.Config)
		job    Job
		want   config.Mode
		kind   Limit
		text   string
	}{
		{"nothing stands in the way", nil, Reap, config.Enforce, NoLimit, ""},
		{"the shipped default", func(_ *Inputs, c *config.Config) { c.Watch.Mode = config.Observe }, Reap, config.Observe, ByTarget, "watch.mode is observe"},
		{"all observe", func(_ *Inputs, c *config.Config) { c.Mode, c.Watch.Mode = config.Observe, config.Observe }, Reap, config.Observe, ByMode, "mode is observe"},
		{"the job observes", func(_ *Inputs, c *config.Config) { c.Reap.Mode = config.Observe }, Reap, config.Observe, ByJob, "reap.mode is observe"},
		{"another job observes", func(_ *Inputs, c *config.Config) { c.Tune.Mode = config.Off }, Reap, config.Enforce, NoLimit, ""},
		{"watching has no mode of its own", func(_ *Inputs, c *config.Config) { c.Reap.Mode = config.Off }, Watch, config.Enforce, NoLimit, ""},
		{"the strictest is named", func(in *Inputs, c *config.Config) { c.Mode, in.Override = config.Observe, config.Off }, Arm, config.Off, ByOverride, "the override is off"},
		{"the switch is before all", func(in *Inputs, c *config.Config) { in.Switch, c.Mode = true, config.Off }, Arm, config.Off, BySwitch, "the off switch is there"},
		{"dry run", func(in *Inputs, _ *config.Config) { in.DryRun = true }, Tune, config.Observe, ByDryRun, "--dry-run"},
		{"a right is missing", func(in *Inputs, _ *config.Config) { in.Missing = map[Job]string{Reap: "CAP_NET_ADMIN"} }, Reap, config.Observe, ByRight, "CAP_NET_ADMIN is missing"},
		{"another's right is missing", func(in *Inputs, _ *config.Config) { in.Missing = map[Job]string{Reap: "CAP_NET_ADMIN"} }, Arm, config.Enforce, NoLimit, ""},
		{"what is not built is off", nil, Detour, config.Off, ByJob, "detour.mode is off"},
	} {
		c := config.Default()
		c.Watch.Mode = config.Enforce
		in := Inputs{Config: &c, Override: config.Enforce}
		if tc.change != nil {
			tc.change(&in, &c)
		}
		m, why := New(in, nil).Mode(tc.job)
		if m != tc.want || why != (Reason{tc.kind, tc.text}) {
			t.Errorf("%s: %v, %+v", tc.name, m, why)
		}
	}
	p := enforcing(nil)
	if m, why := p.ModeFor(Reap, &Watched{Target: "orders", Mode: config.Observe}); m != config.Observe || why.Text != "target[orders].mode is observe" {
		t.Errorf("a target that observes: %v, %+v", m, why)
	}
}

// Permit is whom and how far together, and says which kind of reason it was.
func TestPermitKnowsTheModes(t *testing.T) {
	for _, tc := range []struct {
		change func(*Inputs, *config.Config)
		exempt Exemption
		why    string
	}{
		{nil, NotExempt, ""},
		{func(_ *Inputs, c *config.Config) { c.Watch.Mode = config.Observe }, ExemptMode, "mode is observe"},
		{func(_ *Inputs, c *config.Config) { c.Reap.Mode = config.Off }, ExemptMode, "mode is off"},
		{func(in *Inputs, _ *config.Config) { in.DryRun = true }, ExemptDryRun, "--dry-run"},
		{func(in *Inputs, _ *config.Config) { in.Missing = map[Job]string{Reap: "CAP_NET_ADMIN"} }, ExemptRight, "CAP_NET_ADMIN is missing"},
		{func(in *Inputs, c *config.Config) { in.DryRun, c.Exclude.Commands = true, []string{"app"} }, ExemptExclude, "excluded: command app"},
	} {
		c := config.Default()
		c.Watch.Mode = config.Enforce
		in := Inputs{Config: &c, Override: config.Enforce}
		if tc.change != nil {
			tc.change(&in, &c)
		}
		p := New(in, nil)
		w, _ := p.Interest.Of(ap("10.0.0.1:6379"))
		r := p.Permit(Reap, Subject{Occupants: &Occupants{Redis: No}, Connection: &tcpstate.Connection{Inode: 1}, Holder: &Holder{Asked: true, Owner: app()}, Opened: Yes}, &w)
		if r != (Refusal{tc.exempt, tc.why}) || r.Exempt.OnlyMode() != (tc.exempt == ExemptMode || tc.exempt == ExemptDryRun || tc.exempt == ExemptRight) {
			t.Errorf("%+v, want %s (%s)", r, tc.exempt, tc.why)
		}
	}
}
