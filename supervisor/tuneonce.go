package supervisor

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
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
	s := &Supervisor{opt: opt, log: cmp.Or(opt.Log, slog.New(slog.DiscardHandler)), figures: newFigures()}
	s.conf.Store(&opt.Config)
	done := make(chan struct{})
	go func() { // a thread of its own, never the main one
		defer close(done)
		plans, seen, err = s.planTuning(ctx)
	}()
	<-done
	return plans, seen, err
}

func (s *Supervisor) planTuning(ctx context.Context) (list []TunePlan, seen error, err error) {
	thread, err := netns.NewThread()
	if err != nil {
		return nil, nil, err
	}
	defer thread.Close()
	t, c := s.newTuner(thread), s.config()
	f := s.finder()
	spaces, seen := f.Find(ctx, thread)
	seen = errors.Join(seen, f.HostErr)
	state, err := t.store.Load()
	if err != nil {
		return nil, seen, err
	}
	var socket tcpstate.Socket
	subjects := map[netns.ID][]*subject{}
	var batch []*subject
	for _, ns := range spaces {
		err := thread.Visit(ns, func() error {
			if err := socket.Open(); err != nil {
				return err
			}
			defer socket.Close()
			return socket.Dump(tcpstate.Filter{RemotePorts: c.Watch.Ports}, func(k *tcpstate.Connection) error {
				if wanted(c, k) && k.Inode != 0 {
					sub := &subject{key: verdict.ConnKey{NS: nsKey(ns.ID), Cookie: k.Cookie}, ns: ns, id: k.ID, inode: k.Inode, uid: k.UID}
					subjects[ns.ID] = append(subjects[ns.ID], sub)
					batch = append(batch, sub)
				}
				return nil
			})
		})
		if errors.Is(err, netns.ErrStranded) {
			return nil, seen, err
		}
		if err != nil && !errors.Is(err, netns.ErrGone) {
			seen = errors.Join(seen, err)
		}
	}
	answers, _ := t.owners.resolve(ctx, batch)
	own := map[verdict.ConnKey]ownership{}
	for _, a := range answers {
		own[a.key] = a.own
	}
	var news []tenants
	for i, ns := range spaces {
		x := tenants{ns: ns, host: i == 0}
		for _, sub := range subjects[ns.ID] {
			o := own[sub.key]
			o.asked = true
			x.add(c, &o, sub.uid)
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
	s := &Supervisor{opt: opt}
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
	done := make(chan struct{})
	go func() { // a thread of its own, never the main one
		defer close(done)
		var thread *netns.Thread
		if thread, err = netns.NewThread(); err != nil {
			return
		}
		defer thread.Close()
		f := s.finder()
		found, finding := f.Find(ctx, thread)
		incomplete = errors.Join(finding, f.HostErr)
		list, err = store.Restore(thread, sysctl.FS{Root: opt.Sysctls}, found, incomplete == nil, nil, r.DryRun)
	}()
	<-done
	return list, incomplete, err
}
