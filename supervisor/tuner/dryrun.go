package tuner

import (
	"context"
	"maps"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/sysctl"
)

// Plan is what tuning would do to one namespace now.
type Plan struct {
	NS     netns.Namespace
	Wanted bool
	Why    string // why it is not tuned
	Items  []sysctl.Item
	// Now and Then are what the values mean, and would mean.
	Now, Then sysctl.Meaning
	Err       error
}

// Plan says, without a daemon, what tuning would do to the namespaces of which list
// tells. It writes nothing, and knows nothing of the last hour.
func (t *Loop) Plan(ctx context.Context, thread *netns.Thread, list []Report) (plans []Plan, err error) {
	state, err := t.store.Load()
	if err != nil {
		return nil, err
	}
	t.thread = thread
	t.update(list)
	due := make([]*space, len(list))
	for i, x := range list {
		due[i] = t.spaces[x.NS.ID]
	}
	found, err := t.plan(ctx, t.Policy(), due, state, sys.Monotonic())
	if err != nil {
		return nil, err
	}
	for _, p := range found {
		then := maps.Clone(p.have)
		for _, it := range p.items {
			if it.Action.Writes() {
				then[it.Key] = it.Want
			}
		}
		plans = append(plans, Plan{NS: p.sp.NS, Wanted: p.wanted, Why: p.why, Items: p.items, Now: sysctl.Mean(p.have, 0), Then: sysctl.Mean(then, 0), Err: p.err})
	}
	return plans, nil
}
