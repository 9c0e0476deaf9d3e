package supervisor

import (
	"context"
	"slices"

	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/view"
)

// ArmPlan is what arming would do to one connection now.
type ArmPlan struct {
	NS    netns.Namespace
	TCP   tcpstate.Connection
	Owner *proc.Owner // nil if it is not known
	// State is armed for one that is by a daemon already, planned for one that
	// would be.
	State  view.ArmState
	Why    string // it would not be
	Canary bool
	// Now and Then are its options, and would be; zero if they could not be read.
	Now, Then keepalive.Options
}

// PlanArming looks once at this node, without a daemon, and says what arming would
// do. Options are read, and nothing is set. seen says that namespaces could be
// listed completely.
func PlanArming(ctx context.Context, opt Options) (plans []ArmPlan, seen error, err error) {
	err = once(opt, func(s *Supervisor, thread *netns.Thread) (err error) {
		plans, seen, err = s.planArming(ctx, thread)
		return err
	})
	return plans, seen, err
}

func (s *Supervisor) planArming(ctx context.Context, thread *netns.Thread) (list []ArmPlan, seen, err error) {
	spaces, seen, err := s.lookOnce(ctx, thread)
	if err != nil {
		return nil, seen, err
	}
	var conns []*tracked
	for i := range spaces {
		conns = append(conns, spaces[i].conns...)
	}
	c := s.config()
	ordinary, asCanary := armOptions(c), canaryOptions(c)
	read := map[*tracked]*armResult{}
	for _, t := range conns {
		if state, _ := t.armable(); state == "" {
			r := &armResult{job: t.armJob(c, ordinary, true)}
			r.before, r.err = keepalive.Read(r.job.socket)
			r.after = r.before
			if r.err != nil {
				t.arm.state = view.ArmFailed
			} else {
				t.arm.options = &r.before
				t.arm.canary = r.before.SameTimes(canary) // a daemon's
			}
			read[t] = r
		}
	}
	if c.Arm.Canary {
		new(picker).pick(slices.Values(conns), &asCanary, nil)
	}
	for _, t := range conns {
		p := ArmPlan{NS: t.space.ns, TCP: t.conn, Owner: t.own.owner}
		if r := read[t]; r == nil {
			p.State, p.Why = t.armable()
		} else {
			if t.arm.canary {
				r.job = t.armJob(c, asCanary, true)
			}
			p.State, _, p.Why = r.outcome()
			if r.err == nil {
				p.Canary, p.Now, p.Then = t.arm.canary, r.before, r.job.plan(r.before)
			}
		}
		list = append(list, p)
	}
	return list, seen, nil
}
