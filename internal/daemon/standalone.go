package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor/armer"
	"github.com/redisguard/redisguard/supervisor/attribution"
	"github.com/redisguard/redisguard/supervisor/survey"
	"github.com/redisguard/redisguard/supervisor/tuner"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// Standalone is for what needs no daemon: looks at this node, dry runs of the jobs, and
// the way back.
type Standalone struct {
	Config config.Config
	// StateDir replaces paths.State if it is not empty.
	StateDir string
	// MountDirs, Sysctls and Proc are as in supervisor.Options.
	MountDirs []string
	Sysctls   string
	Proc      proc.FS
}

// on runs fn on a thread of its own: never the main one, which must not enter namespaces.
func on(fn func(*netns.Thread) error) error {
	done := make(chan error)
	go func() {
		thread, err := netns.NewThread()
		if err == nil {
			err = fn(thread)
			thread.Close()
		}
		done <- err
	}()
	return <-done
}

// SurveyConfig says what a survey looks at.
type SurveyConfig = survey.Config

// Survey looks at the node. Where c.Finder finds no processes, it looks for them as the
// daemon does.
func (o *Standalone) Survey(ctx context.Context, c SurveyConfig) (node *survey.Node, err error) {
	if c.Finder.Walk == nil {
		c.Finder = o.Proc.Finder(o.MountDirs)
	}
	err = on(func(t *netns.Thread) (err error) {
		node, err = survey.Inspect(ctx, t, c)
		return err
	})
	return node, err
}

// Watched lists the connections that the config asks to watch, in the namespaces that finder
// finds.
func (o *Standalone) Watched(ctx context.Context, finder netns.Finder) ([]survey.Space, error) {
	interest := policy.New(policy.Inputs{Config: &o.Config}, nil).Interest
	node, err := o.Survey(ctx, SurveyConfig{
		Finder: finder, Filter: tcpstate.Filter{RemotePorts: interest.Ports()},
		Keep: func(k *tcpstate.Connection) bool { return interest.Wants(k.Local, k.Remote, k.Mark) },
	})
	if err != nil {
		return nil, err
	}
	return node.Spaces, nil
}

// connection is a watched connection with what was found out about it.
type connection struct {
	conn   tcpstate.Connection
	space  *survey.Space
	opened policy.Answer
	holder policy.Holder
	arm    armer.Conn
}

// watched looks at the connections that the config asks to watch and finds their holders.
func (o *Standalone) watched(ctx context.Context, t *netns.Thread) (node *survey.Node, conns []*connection, who *attribution.Loop, p *policy.Policy, err error) {
	p = policy.New(policy.Inputs{Config: &o.Config, Override: config.Enforce, Self: os.Getpid()}, nil)
	// Without TCP_INFO, for which it would wait for the owner of a socket's lock.
	node, err = survey.Inspect(ctx, t, survey.Config{
		Finder: o.Proc.Finder(o.MountDirs), Filter: tcpstate.Filter{RemotePorts: p.Interest.Ports()},
		Keep: func(k *tcpstate.Connection) bool {
			return k.Inode != 0 && p.Interest.Wants(k.Local, k.Remote, k.Mark)
		},
	})
	if err != nil {
		return nil, nil, nil, nil, err
	}
	node.Unseen = errors.Join(node.Unseen, node.Guessed)
	who = attribution.New(attribution.Config{
		Policy: func() *policy.Policy { return p }, Proc: o.Proc, Log: slog.New(slog.DiscardHandler), Figures: figures.New(),
	})
	known := map[verdict.ConnKey]*connection{}
	var subjects []*attribution.Subject
	for i := range node.Spaces {
		sp := &node.Spaces[i]
		if sp.Err != nil && !errors.Is(sp.Err, netns.ErrGone) {
			node.Unseen = errors.Join(node.Unseen, sp.Err)
		}
		for i, k := range sp.Connections {
			key := verdict.ConnKey{NS: verdict.NS(sp.NS.ID.Number()), Cookie: k.Cookie}
			c := &connection{conn: k, space: sp, opened: sp.Opened[i], holder: policy.Holder{Asked: true}}
			c.arm = armer.Conn{Key: key, NS: &sp.NS, TCP: &c.conn, Holder: &c.holder}
			known[key], conns = c, append(conns, c)
			subjects = append(subjects, &attribution.Subject{Key: key, NS: sp.NS, ID: k.ID, Inode: k.Inode, UID: k.UID})
		}
	}
	answers, _, err := who.Resolve(ctx, t, subjects)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	for _, a := range answers.Holders {
		known[a.Key].holder = a.Holder
	}
	for _, c := range conns {
		occupants := answers.Occupants[c.space.NS.ID]
		c.arm.Refusal = p.May(policy.Arm, policy.Subject{Occupants: &occupants, Connection: &c.conn, Holder: &c.holder, Opened: c.opened})
	}
	return node, conns, who, p, nil
}

// ArmPlan is what arming would do to one connection now.
type ArmPlan struct {
	NS    netns.Namespace
	TCP   tcpstate.Connection
	Owner *proc.Owner // nil if it is not known
	// State is armed for one that is by a daemon already, planned for one that would be.
	State view.ArmState
	Why   string // it would not be
	// Now and Then are its options, and would be; zero if they could not be read.
	Now, Then keepalive.Options
}

// PlanArming looks once at this node and says what arming would do. Options are read, and
// nothing is set. unseen is why there may be more; nil if there is nothing.
func (o *Standalone) PlanArming(ctx context.Context) (plans []ArmPlan, unseen, err error) {
	err = on(func(t *netns.Thread) error {
		node, conns, _, _, err := o.watched(ctx, t)
		if err != nil {
			return err
		}
		unseen = node.Unseen
		list := make([]*armer.Conn, len(conns))
		for i, c := range conns {
			list[i] = &c.arm
		}
		for i, p := range armer.DryRun(ctx, &o.Config, list) {
			c := conns[i]
			plans = append(plans, ArmPlan{
				NS: c.space.NS, TCP: c.conn, Owner: c.holder.Owner, State: p.State, Why: p.Why, Now: p.Now, Then: p.Then,
			})
		}
		return nil
	})
	return plans, unseen, err
}

// TunePlan is what tuning would do to one namespace now.
type TunePlan = tuner.Plan

// PlanTuning looks once at this node and says what tuning would do. It knows nothing of
// the last hour. unseen is as in PlanArming.
func (o *Standalone) PlanTuning(ctx context.Context) (plans []TunePlan, unseen, err error) {
	err = on(func(t *netns.Thread) error {
		node, conns, who, p, err := o.watched(ctx, t)
		if err != nil {
			return err
		}
		unseen = node.Unseen
		at := map[netns.ID]int{}
		list := make([]tuner.Report, len(node.Spaces))
		for i := range node.Spaces {
			list[i] = tuner.Report{NS: node.Spaces[i].NS, Host: node.Spaces[i].Host}
			at[node.Spaces[i].NS.ID] = i
		}
		for _, c := range conns {
			list[at[c.space.NS.ID]].Occupants.AddConnection(p, &c.holder, c.conn.UID)
		}
		plans, err = o.tuner(p, who).Plan(ctx, t, list)
		return err
	})
	return plans, unseen, err
}

// tuner is one that never runs.
func (o *Standalone) tuner(p *policy.Policy, who *attribution.Loop) *tuner.Loop {
	return tuner.New(tuner.Config{
		Policy: func() *policy.Policy { return p }, Log: slog.New(slog.DiscardHandler), Figures: figures.New(), State: o.state(), Sysctls: o.Sysctls,
		Finder: o.Proc.Finder(o.MountDirs), Survey: who.Survey, Publish: func(event.Event) {}, Missing: func(string) {},
	})
}

func (o *Standalone) state() string {
	if o.StateDir != "" {
		return o.StateDir
	}
	return paths.State
}

// RestoreOptions say how Restore goes about it.
type RestoreOptions struct {
	DryRun bool
	Force  bool // also while a daemon tunes this node
}

// Restore gives the tuned namespaces their original values back. It is
// sysctl.ErrClaimed while a daemon tunes this node. incomplete says that not all
// namespaces could be seen.
func (o *Standalone) Restore(ctx context.Context, r RestoreOptions) (list []sysctl.Restoration, incomplete, err error) {
	store := tuner.Store(o.state())
	// Without state no directory is made.
	if state, err := store.Load(); err != nil || len(state.Records) == 0 {
		return nil, nil, err
	}
	if !r.Force && !r.DryRun {
		claim, err := store.Claim()
		if err != nil {
			return nil, nil, err
		}
		defer claim.Close()
	}
	err = on(func(t *netns.Thread) (err error) {
		f := o.Proc.Finder(o.MountDirs)
		found, finding := f.Find(ctx, t)
		incomplete = errors.Join(finding, f.HostErr)
		list, err = store.Restore(t, sysctl.FS{Root: o.Sysctls}, found, incomplete == nil, nil, r.DryRun)
		return err
	})
	return list, incomplete, err
}
