package tuner

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/sysctl"
)

// Values are the sysctls that a config asks for.
func Values(c *config.Config) sysctl.Values {
	v := sysctl.Values{}
	t := &c.Tune
	for k, n := range map[sysctl.Key]int{
		sysctl.Retries2: t.TCPRetries2, sysctl.KeepaliveTime: t.TCPKeepaliveTime, sysctl.KeepaliveIntvl: t.TCPKeepaliveIntvl,
		sysctl.KeepaliveProbes: t.TCPKeepaliveProbes, sysctl.SynRetries: t.TCPSynRetries, sysctl.RTOMax: t.TCPRtoMaxMs,
		sysctl.OrphanRetries: t.TCPOrphanRetries, sysctl.FinTimeout: t.TCPFinTimeout,
	} {
		if n != config.Leave {
			v[k] = n
		}
	}
	return v
}

// spacePlan is what is found and planned for one namespace.
type spacePlan struct {
	sp     *space
	wanted bool
	why    string // why it is not
	have   sysctl.Values
	items  []sysctl.Item
	kept   *sysctl.Record
	err    error
	done   bool // the items were carried out
}

// survey finds out who lives in the namespaces beside their connections.
func (t *Loop) survey(ctx context.Context, due []*space) error {
	list := make([]netns.Namespace, len(due))
	var host netns.ID
	for i, sp := range due {
		list[i] = sp.NS
		if sp.Host {
			host = sp.NS.ID
		}
	}
	found, err := t.Survey(ctx, t.thread, list, host)
	if err != nil {
		return err
	}
	for _, sp := range due {
		if o, ok := found[sp.NS.ID]; ok {
			sp.base = o
		}
	}
	return nil
}

// plan looks at the namespaces.
func (t *Loop) plan(ctx context.Context, pol *policy.Policy, due []*space, state *sysctl.State, now time.Duration) ([]*spacePlan, error) {
	if err := t.survey(ctx, due); err != nil {
		return nil, err
	}
	c := pol.Config
	want := Values(c)
	how := sysctl.Policy{Override: c.Tune.Override, Repair: c.Tune.Drift == config.DriftRepair}
	var plans []*spacePlan
	for _, sp := range due {
		p := &spacePlan{sp: sp, kept: state.Of(sp.NS.ID)}
		if p.kept != nil && sp.lastConn == 0 {
			sp.lastConn = now // a predecessor has tuned it: it gets its hour
		}
		sp.due = now + compareEvery
		p.wanted, p.why = t.wants(pol, sp, p.kept != nil, now)
		if !p.wanted && p.kept == nil && sp.Occupants.Connections == 0 && !sp.Host {
			sp.view = nil
			continue
		}
		p.have, p.err = t.sysctls.ReadIn(t.thread, sp.NS)
		switch {
		case errors.Is(p.err, netns.ErrStranded):
			return nil, p.err
		case errors.Is(p.err, netns.ErrGone):
			continue // the next list will be without it
		case p.err != nil:
			plans = append(plans, p)
			continue
		}
		if p.wanted {
			p.items = sysctl.Plan(p.have, p.kept, want, how)
		} else {
			p.items = sysctl.Plan(p.have, p.kept, nil, how)
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// apply carries out the plans.
func (t *Loop) apply(plans []*spacePlan, state *sysctl.State) error {
	var jobs []sysctl.Job
	var of []*spacePlan
	for _, p := range plans {
		if p.err == nil && p.sp.Mode == config.Enforce && sysctl.Changes(p.items, p.kept) {
			jobs = append(jobs, sysctl.Job{NS: p.sp.NS, Items: p.items})
			of = append(of, p)
		}
	}
	if len(jobs) == 0 {
		return nil
	}
	unable := func(err error, remedy string) error {
		t.fail(err, remedy)
		for _, p := range of {
			p.sp.due = sys.Monotonic() + compareEvery
		}
		return nil
	}
	// Planning took a while, in which redisguard may have been switched off.
	if now := t.Policy(); now.Config != t.conf || now.Most(policy.Tune) != config.Enforce {
		for _, p := range of {
			p.sp.due = 0
		}
		return nil
	}
	if err := t.sysctls.Writable(); err != nil {
		t.Missing("a /proc/sys that can be written to")
		return unable(err, "give redisguard CAP_NET_ADMIN and a /proc/sys that is not read-only; in a container mount the host's /proc/sys/net at /host/proc/sys/net")
	}
	if t.claim == nil {
		claim, err := t.store.Claim()
		if err != nil {
			return unable(err, "let one redisguard run on a node")
		}
		t.claim = claim
	}
	errs, err := t.store.Apply(t.thread, t.sysctls, jobs)
	if errors.Is(err, netns.ErrStranded) {
		return err
	}
	if err != nil {
		return unable(err, "let redisguard write "+filepath.Dir(t.store.Path))
	}
	t.mend(mended)
	if now, err := t.store.Load(); err == nil {
		*state = *now
	}
	for i, p := range of {
		if err := errs[i]; err != nil {
			p.err = err
			p.sp.due = sys.Monotonic() + retryEvery
			if errors.Is(err, sysctl.ErrChanged) {
				p.sp.due = sys.Monotonic() // another program writes it: look again
			}
			continue
		}
		p.done = true
		for _, it := range p.items {
			if it.Action.Writes() {
				p.have[it.Key] = it.Want
			}
		}
	}
	for _, p := range plans {
		p.kept = state.Of(p.sp.NS.ID)
	}
	return nil
}

// wants decides whether a namespace is to be tuned: whether that is permitted, whatever
// the mode, and in the scope. before says that it was tuned before.
func (t *Loop) wants(p *policy.Policy, sp *space, before bool, now time.Duration) (bool, string) {
	who := sp.Occupants
	who.Add(&sp.base)
	if r := p.May(policy.Tune, policy.Subject{Occupants: &who, Before: before}); r.Refused() {
		return false, r.Why
	}
	in := false
	switch scope := &p.Config.Tune.Scope; scope.Of {
	case config.ScopeHost:
		in = sp.Host
	case config.ScopeAll:
		in = true
	case config.ScopeGlobs:
		in = slices.ContainsFunc(who.Names, func(name string) bool { return config.MatchAny(scope.Globs, name) })
	default:
		in = sp.lastConn != 0 && now-sp.lastConn < keepFor
	}
	if !in {
		return false, "not in tune.scope"
	}
	return true, ""
}
