// Package supervisor ties the parts together: it finds the connections to watch,
// looks at them at their pace, hands what it sees to the verdict core, and does
// what follows, within its budgets and never without a last look.
//
// Each loop is a package of its own below this one (discovery, attribution, tuner,
// armer, and the outlets reaper and journal), and none knows another: what one has to
// tell another goes through the watcher, which is here. The watcher is one goroutine. It
// owns the table of connections and the verdict core, and takes everything that it is
// told from one bounded inbox, in order. So what it knows needs no locks, and what it
// tells the core can be recorded and judged again.
//
// What may be done is one immutable value, a policy.Policy, which is replaced as a whole.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/internal/tasks"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor/armer"
	"github.com/redisguard/redisguard/supervisor/attribution"
	"github.com/redisguard/redisguard/supervisor/discovery"
	"github.com/redisguard/redisguard/supervisor/journal"
	"github.com/redisguard/redisguard/supervisor/survey"
	"github.com/redisguard/redisguard/supervisor/targets"
	"github.com/redisguard/redisguard/supervisor/tuner"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// Options of a supervisor. Config, Log and Hub must be set.
type Options struct {
	Config config.Config
	Log    *slog.Logger
	Hub    *event.Hub
	// DryRun caps every mode at observe, whatever the config says.
	DryRun bool
	// OffSwitch replaces paths.OffSwitch if it is not empty.
	OffSwitch string
	// StateDir replaces paths.State if it is not empty.
	StateDir string
	// MountDirs replaces the directories with mounted namespaces, see
	// netns.Finder.
	MountDirs []string
	// Sysctls replaces the directory of net.*, see sysctl.FS.
	Sysctls string
	// Proc is where process information is read.
	Proc proc.FS
	// Alive is called about every second as long as the watcher completes its rounds: the
	// place to feed a service manager's watchdog. It may be nil.
	Alive func()
	// Ready is called once, after the first round in which everything was watched that
	// the first look at the whole node has found. It may be nil.
	Ready func()
}

// Supervisor is the running guard. Make one with New.
type Supervisor struct {
	opt     Options
	log     *slog.Logger
	caps    tcpstate.Capabilities
	figures *figures.Set
	journal *journal.Journal

	inbox  chan message
	policy atomic.Pointer[policy.Policy]
	change sync.Mutex // held while another policy is made

	discovery   *discovery.Loop
	attribution *attribution.Loop
	tuner       *tuner.Loop
	armer       *armer.Loop
	asker       *armer.Loop
	targets     *targets.Loop

	setting sync.Mutex                // held by SetMode
	view    atomic.Pointer[view.Node] // the last one made
	viewing chan struct{}             // held while another one is made
	probes  *tasks.Group
	looks   *tasks.Group // at next hops and unrelated connections
}

// inboxRoom is how many messages may wait for the watcher. A sender that finds it full waits.
const inboxRoom = 256

// New checks what this kernel and these privileges allow and returns a
// supervisor that has not started. What is missing is logged, with its remedy,
// and is an error only if nothing can be observed at all.
func New(opt Options) (*Supervisor, error) {
	if opt.OffSwitch == "" {
		opt.OffSwitch = paths.OffSwitch
	}
	if opt.StateDir == "" {
		opt.StateDir = paths.State
	}
	if opt.Proc.Stuck == nil {
		opt.Proc.Stuck = &proc.Stuck{}
	}
	s := &Supervisor{
		opt: opt, log: opt.Log, figures: figures.New(), inbox: make(chan message, inboxRoom), viewing: make(chan struct{}, 1),
		probes: tasks.New(maxProbes), looks: tasks.New(maxLooks),
	}
	s.caps = tcpstate.ProbeCapabilities()
	if s.caps.Dump.Support == tcpstate.NotSupported {
		return nil, fmt.Errorf("cannot observe anything: %w (is CONFIG_INET_DIAG in this kernel?)", s.caps.Dump.Err)
	}
	in := policy.Inputs{Config: &opt.Config, Override: journal.RecallMode(s.opt.StateDir, s.log), DryRun: opt.DryRun, Missing: survey.Missing(s.log, s.caps), Switch: s.switched(), Self: os.Getpid()}
	s.policy.Store(policy.New(in, nil))
	switch s.caps.Destroy.Support {
	case tcpstate.NotSupported:
		s.log.Warn("connections cannot be destroyed here; those whose process is known are shut down instead, where CAP_SYS_PTRACE allows",
			"error", s.caps.Destroy.Err, "remedy", "a kernel with CONFIG_INET_DIAG_DESTROY, and CAP_NET_ADMIN")
	case tcpstate.CouldNotTell:
		s.log.Warn("could not tell whether connections can be destroyed here", "error", s.caps.Destroy.Err)
	}
	s.build()
	return s, nil
}

// build makes the loops, and says what each is told and tells.
func (s *Supervisor) build() {
	s.discovery = discovery.New(discovery.Config{
		Policy: s.Policy, Log: s.log, Figures: s.figures, Finder: s.finder(), ProcRoot: s.opt.Proc.Proc,
		Namespaces: func(ctx context.Context, list []netns.Namespace) {
			s.post(ctx, func(w *watcher) error { w.updateSpaces(list); return nil })
		},
		Connections: func(ctx context.Context, f discovery.Found) {
			s.post(ctx, func(w *watcher) error { w.add(&f); return nil })
		},
		Polled: func(ctx context.Context) { s.post(ctx, func(w *watcher) error { w.looked = true; return nil }) },
	})
	s.attribution = attribution.New(attribution.Config{
		Policy: s.Policy, Proc: s.opt.Proc, Log: s.log, Figures: s.figures,
		Deliver: func(ctx context.Context, a attribution.Answers) {
			s.post(ctx, func(w *watcher) error { w.attributed(&a); return nil })
		},
	})
	s.tuner = tuner.New(tuner.Config{
		Policy: s.Policy, Log: s.log, Figures: s.figures, State: s.opt.StateDir, Sysctls: s.opt.Sysctls, Finder: s.finder(),
		Survey: s.attribution.Survey, Publish: s.publish, Missing: func(what string) { s.lacks(policy.Tune, what) },
	})
	s.armer = armer.New(armer.Config{
		Policy: s.Policy, Log: s.log,
		Deliver: func(ctx context.Context, list []armer.Result) {
			s.post(ctx, func(w *watcher) error { w.planner.Apply(monotonic(), list); return nil })
		},
	})
	s.asker = armer.NewAsker(armer.Config{
		Policy: s.Policy, Log: s.log,
		Deliver: func(ctx context.Context, list []armer.Result) {
			s.post(ctx, func(w *watcher) error { w.askedFor(list); return nil })
		},
	})
	s.targets = targets.New(targets.Config{
		Policy: s.Policy, Log: s.log, Dialer: targets.NewDialer(s.Policy), Publish: s.publish,
		Members: func(list []policy.Members) {
			s.update(func(in *policy.Inputs) bool { in.Members = list; return true })
		},
		Facts: func(ctx context.Context, list []verdict.EndpointFact) {
			s.post(ctx, func(w *watcher) error { w.in.Endpoints = append(w.in.Endpoints, list...); return nil })
		},
	})
}

// Wake has a target asked about, since somebody wants to know.
func (s *Supervisor) Wake(target string) { s.targets.Wake(target) }

// endPatience is how long the end waits for what is under way.
const endPatience = time.Second

// Run guards until ctx ends, and then returns within a second or so; or it
// returns an error that makes guarding impossible.
func (s *Supervisor) Run(ctx context.Context) error {
	s.journal = journal.Open(journal.Config{Hub: s.opt.Hub, Log: s.log, Figures: s.figures, Audit: s.Policy().Config.Audit})
	defer s.journal.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context) error{s.watch, s.watchSwitch, s.discovery.Run, s.attribution.Run, s.tuner.Run, s.armer.Run, s.asker.Run, s.targets.Run} {
		wg.Go(func() {
			// A loop that fails takes the daemon with it: half a guard would
			// look like a whole one. The service manager starts it anew.
			if err := loop(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	ended := make(chan struct{})
	go func() {
		wg.Wait()
		s.probes.Wait()
		s.looks.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(endPatience):
		s.log.Warn("ending though a call into the kernel has not returned; it may keep the process until it does")
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Policy is what may be done now. It is immutable.
func (s *Supervisor) Policy() *policy.Policy { return s.policy.Load() }

// update makes another policy, and wakes the watcher, which obeys within a round; the
// other loops ask for the policy of now at each of their turns, and before they act. It
// returns false if nothing has changed.
func (s *Supervisor) update(change func(*policy.Inputs) bool) bool {
	s.change.Lock()
	defer s.change.Unlock()
	before := s.policy.Load()
	in := before.Inputs
	if !change(&in) {
		return false
	}
	s.policy.Store(policy.New(in, before))
	select {
	case s.inbox <- func(*watcher) error { return nil }:
	default: // it is awake
	}
	return true
}

// lacks notes what a job lacks for acting, "" for nothing.
func (s *Supervisor) lacks(job policy.Job, what string) {
	s.update(func(in *policy.Inputs) bool {
		if in.Missing[job] == what {
			return false
		}
		missing := map[policy.Job]string{job: what}
		for j, w := range in.Missing {
			if j != job {
				missing[j] = w
			}
		}
		in.Missing = missing
		return true
	})
}

// Reconfigure replaces the configuration. It takes effect within a tick. The off switch
// is looked at with it: whoever switches redisguard off and then raises a mode must not
// see the mode act first.
func (s *Supervisor) Reconfigure(c config.Config) {
	old := *s.Policy().Config
	for _, line := range config.Diff(old, c) {
		s.log.Info("config changed", "key", line)
	}
	if old.Audit != c.Audit || old.Record != c.Record || old.API != c.API || old.Metrics != c.Metrics {
		s.log.Warn("what [audit], [record], [api] and [metrics] name is opened at the start only", "remedy", "restart redisguard")
	}
	s.update(func(in *policy.Inputs) bool { in.Config, in.Switch = &c, s.switched(); return true })
}

// switchEvery is how often the off switch is looked at: every job is to stop within 2 s
// of it. A look is some 2 us.
const switchEvery = 500 * time.Millisecond

// watchSwitch publishes the off switch until ctx ends. It is the only place that looks
// at it.
func (s *Supervisor) watchSwitch(ctx context.Context) error {
	tick := time.NewTicker(switchEvery)
	defer tick.Stop()
	for {
		s.readSwitch()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Supervisor) readSwitch() {
	on := s.switched()
	s.update(func(in *policy.Inputs) bool {
		changed := in.Switch != on
		in.Switch = on
		return changed
	})
}

// switched looks at the off switch.
func (s *Supervisor) switched() bool {
	// If this cannot be told, an operator may have switched it off.
	_, err := os.Lstat(s.opt.OffSwitch)
	return !errors.Is(err, fs.ErrNotExist)
}

// finder looks for namespaces by processes and mounts.
func (s *Supervisor) finder() netns.Finder { return s.opt.Proc.Finder(s.opt.MountDirs) }

// Figures reads what was counted.
func (s *Supervisor) Figures() figures.Figures { return s.figures.Read() }

// Capabilities is what this kernel allows.
func (s *Supervisor) Capabilities() tcpstate.Capabilities { return s.caps }
