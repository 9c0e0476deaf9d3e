package supervisor

import (
	"context"
	"errors"
	"maps"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/sysctl"
)

// TunePlan is what tuning would do to one namespace now.
type TunePlan struct {
	NS     netns.Namespace
	Wanted bool
	Why    string // why it is not tuned
	Items  []sysctl.Item
	// Now and Then are what the values mean, and would mean.
	Now, Then sysctl.Meaning
	Err       error
}

// PlanTuning looks once at this node, without a daemon, and says what tuning
// would do. It knows nothing of the last hour. seen says that namespaces could be
// listed completely.
func PlanTuning(ctx context.Context, opt Options) (plans []TunePlan, seen error, err error) {
	err = once(opt, func(s *Supervisor, thread *netns.Thread) (err error) {
		plans, seen, err = s.planTuning(ctx, thread)
		return err
	})
	return plans, seen, err
}

func (s *Supervisor) planTuning(ctx context.Context, thread *netns.Thread) (list []TunePlan, seen error, err error) {
	t, c := s.newTuner(thread), s.config()
	state, err := t.store.Load()
	if err != nil {
		return nil, nil, err
	}
	spaces, seen, err := s.lookOnce(ctx, thread)
	if err != nil {
		return nil, seen, err
	}
	var news []tenants
	for i := range spaces {
		x := tenants{ns: spaces[i].ns, host: i == 0}
		for _, k := range spaces[i].conns {
			x.add(c, &k.own, k.conn.UID)
		}
		news = append(news, x)
	}
	t.take(news)
	var due []*tuned
	for _, x := range news {
		due = append(due, t.spaces[x.ns.ID])
	}
	plans, err := t.plan(ctx, c, due, state, monotonic())
	if err != nil {
		return nil, seen, err
	}
	for _, p := range plans {
		then := maps.Clone(p.have)
		for _, it := range p.items {
			if it.Action.Writes() {
				then[it.Key] = it.Want
			}
		}
		list = append(list, TunePlan{NS: p.sp.ns, Wanted: p.wanted, Why: p.why, Items: p.items, Now: sysctl.Mean(p.have, 0), Then: sysctl.Mean(then, 0), Err: p.err})
	}
	return list, seen, nil
}

// RestoreOptions say how RestoreTuning goes about it.
type RestoreOptions struct {
	DryRun bool
	Force  bool // also while a daemon tunes this node
}

// RestoreTuning gives the tuned namespaces their original values back, without a
// daemon. It is sysctl.ErrHeld while one tunes this node. incomplete says that not
// all namespaces could be seen.
func RestoreTuning(ctx context.Context, opt Options, r RestoreOptions) (list []sysctl.Restoration, incomplete, err error) {
	store := TuneStore(opt.StateDir)
	// Nobody's state, nobody's directory: none is made for nothing.
	if state, err := store.Load(); err != nil || len(state.Records) == 0 {
		return nil, nil, err
	}
	if !r.Force && !r.DryRun {
		hold, err := store.Hold()
		if err != nil {
			return nil, nil, err
		}
		defer hold.Close()
	}
	err = once(opt, func(s *Supervisor, thread *netns.Thread) (err error) {
		f := s.finder()
		found, finding := f.Find(ctx, thread)
		incomplete = errors.Join(finding, f.HostErr)
		list, err = store.Restore(thread, sysctl.FS{Root: opt.Sysctls}, found, incomplete == nil, nil, r.DryRun)
		return err
	})
	return list, incomplete, err
}
