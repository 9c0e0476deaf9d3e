// Package supervisor ties the parts together: it finds the connections to watch,
// looks at them at their pace, hands what it sees to the verdict core, and does
// what follows, within its budgets and never without a last look.
//
// Its goroutines, each the only owner of what it works on:
//
//   - the watcher owns the table of connections and the core. It looks, steps the
//     core, and acts, on one OS thread that visits the namespaces.
//   - the discoverer owns the list of namespaces. It finds new connections by
//     dumps, on a thread of its own, since a dump may take 100 ms on a busy node
//     and watching must not wait for it.
//   - the attributor finds out whose a connection is, and so what may be done
//     about it. Until it has, the connection is only observed.
//   - the tuner keeps the TCP limits of the namespaces in which the watcher has
//     connections.
//   - errands, bounded in number: a probe, a look at the next hop or at other
//     connections; and the writer of the audit file.
//
// They talk through channels; nothing is shared but the configuration, which is
// replaced as a whole.
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

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// DisablePath is the off switch: while a file is there, every job is off.
const DisablePath = "/run/redisguard-admin/disable"

// Options of a supervisor. Config, Log and Hub must be set.
type Options struct {
	Config config.Config
	Log    *slog.Logger
	Hub    *event.Hub
	// DryRun caps every mode at observe, whatever the config says.
	DryRun bool
	// DisablePath replaces DisablePath if it is not empty.
	DisablePath string
	// StateDir replaces StateDir if it is not empty.
	StateDir string
	// MountDirs replaces the directories with mounted namespaces, see
	// netns.Finder.
	MountDirs []string
	// Sysctls replaces the directory of net.*, see sysctl.FS.
	Sysctls string
	// Proc is where process information is read.
	Proc proc.FS
	// Alive is called about every second while the watcher makes its rounds: the
	// place to feed a service manager's watchdog.
	Alive func()
}

// Supervisor is the running guard. Make one with New.
type Supervisor struct {
	opt   Options
	log   *slog.Logger
	conf  atomic.Pointer[config.Config]
	caps  tcpstate.Capabilities
	audit *audit
	// powerless says that every reap would fail for want of a privilege.
	powerless bool

	found    chan found      // discoverer to watcher
	spaces   chan spaceList  // discoverer to watcher
	changed  chan struct{}   // configuration, to the watcher; room for one
	ask      chan []*subject // watcher to attributor
	answered chan []answer   // attributor to watcher
	results  chan result     // errands to watcher
	hot      chan netns.ID   // watcher to discoverer: look here soon
	refresh  chan struct{}   // watcher to discoverer: a way in is broken; room for one
	restart  chan struct{}   // watcher to discoverer: forget what was seen; room for one

	tenants    chan []tenants   // watcher to tuner; room for one
	setting    sync.Mutex       // held by SetMode
	arms       chan []*armJob   // watcher to armer
	armResults chan []armResult // armer to watcher
	tuning     atomic.Pointer[map[netns.ID]*view.Tune]
	cannotTune atomic.Bool // for want of a right

	asks     chan func(*watcher) error // others to watcher: to be done on its goroutine
	view     atomic.Pointer[view.Node] // the last one made
	viewing  chan struct{}             // held by who has another one made
	override atomic.Int32              // config.Mode, see SetMode
	errands  errands                   // probes
	looks    errands                   // at next hops and other connections

	stats   stats
	figures *figures
}

// stats are counters that anybody may read.
type stats struct {
	tracked, namespaces       atomic.Int64
	dumps, dumpErrors         atomic.Int64
	gets, steps, late         atomic.Int64
	probes, skippedErrands    atomic.Int64
	reaped, spared, failed    atomic.Int64
	oldestDump                atomic.Int64 // age of the oldest view of a namespace, ns
	attributions, unexplained atomic.Int64
	auditDropped              atomic.Int64
	births, birthsLost        atomic.Int64
}

// count counts a reap.
func (s *stats) count(outcome verdict.ReapOutcome) {
	switch outcome {
	case verdict.ReapDone:
		s.reaped.Add(1)
	case verdict.ReapSpared:
		s.spared.Add(1)
	case verdict.ReapFailed:
		s.failed.Add(1)
	}
}

// Stats is a reading of the counters, each since the start unless it says
// otherwise.
type Stats struct {
	// Tracked and Namespaces are how many there are now.
	Tracked, Namespaces int64
	Dumps, DumpErrors   int64
	// Gets counts exact looks at connections, Steps verdict steps, Late those
	// that came later than they were due by more than a tick.
	Gets, Steps, Late int64
	// Probes counts those made, SkippedErrands those not made because too many
	// were under way.
	Probes, SkippedErrands int64
	// Reaped, Spared and Failed are the outcomes of reaps.
	Reaped, Spared, Failed int64
	// Discovery is the age of the oldest view of any namespace that is known to
	// have something new: how late discovery is.
	Discovery time.Duration
	// Attributions counts connections whose owner was looked for, Unexplained
	// those for whom none was found.
	Attributions, Unexplained int64
	// AuditDropped counts audit records that could not be written.
	AuditDropped int64
	// Births counts new connections that the kernel's tracepoint told of,
	// BirthsLost those it could not tell for want of room.
	Births, BirthsLost int64
}

// New checks what this kernel and these privileges allow and returns a
// supervisor that has not started. What is missing is logged, with its remedy,
// and is an error only if nothing can be observed at all.
func New(opt Options) (*Supervisor, error) {
	s := &Supervisor{
		opt:        opt,
		log:        opt.Log,
		found:      make(chan found, 16),
		spaces:     make(chan spaceList, 1),
		changed:    make(chan struct{}, 1),
		ask:        make(chan []*subject, 64),
		answered:   make(chan []answer, 64),
		results:    make(chan result, 64),
		hot:        make(chan netns.ID, 256),
		refresh:    make(chan struct{}, 1),
		restart:    make(chan struct{}, 1),
		tenants:    make(chan []tenants, 1),
		arms:       make(chan []*armJob, 1),
		armResults: make(chan []armResult, 1),
		asks:       make(chan func(*watcher) error),
		viewing:    make(chan struct{}, 1),
		figures:    newFigures(),
	}
	if s.opt.Proc.Held == nil {
		s.opt.Proc.Held = &proc.Held{}
	}
	s.errands.init(maxProbes)
	s.looks.init(maxLooks)
	s.conf.Store(&opt.Config)
	s.recallMode()
	s.caps = tcpstate.ProbeCapabilities()
	if s.caps.Dump.Support == tcpstate.NotSupported {
		return nil, fmt.Errorf("cannot observe anything: %w (is CONFIG_INET_DIAG in this kernel?)", s.caps.Dump.Err)
	}
	for _, c := range []struct {
		number     int
		name, lack string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "connections are only observed, none can be ended"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "no network namespace but our own can be entered"},
		{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "namespaces and sockets of other users' processes cannot be told; connections without a known process are mostly only observed"},
	} {
		if has, err := sys.HasCapability(c.number); err != nil {
			s.log.Warn("could not tell what is permitted", "error", err)
		} else if !has {
			s.log.Warn("a privilege is missing: "+c.lack, "missing", c.name, "remedy", "give redisguard "+c.name)
			// Where the kernel cannot destroy, shutting down takes another one.
			if c.number == unix.CAP_NET_ADMIN && s.caps.Destroy.Support != tcpstate.NotSupported {
				s.powerless = true
			}
		}
	}
	switch s.caps.Destroy.Support {
	case tcpstate.NotSupported:
		s.log.Warn("connections cannot be destroyed here; those whose process is known are shut down instead, where CAP_SYS_PTRACE allows",
			"error", s.caps.Destroy.Err, "remedy", "a kernel with CONFIG_INET_DIAG_DESTROY, and CAP_NET_ADMIN")
	case tcpstate.CouldNotTell:
		s.log.Warn("could not tell whether connections can be destroyed here", "error", s.caps.Destroy.Err)
	}
	return s, nil
}

// Stats reads the counters.
func (s *Supervisor) Stats() Stats {
	c := &s.stats
	return Stats{
		Tracked: c.tracked.Load(), Namespaces: c.namespaces.Load(), Dumps: c.dumps.Load(), DumpErrors: c.dumpErrors.Load(),
		Gets: c.gets.Load(), Steps: c.steps.Load(), Late: c.late.Load(), Probes: c.probes.Load(), SkippedErrands: c.skippedErrands.Load(),
		Reaped: c.reaped.Load(), Spared: c.spared.Load(), Failed: c.failed.Load(), Discovery: time.Duration(c.oldestDump.Load()),
		Attributions: c.attributions.Load(), Unexplained: c.unexplained.Load(), AuditDropped: c.auditDropped.Load(),
		Births: c.births.Load(), BirthsLost: c.birthsLost.Load(),
	}
}

// endPatience is how long the end waits for what is under way.
const endPatience = time.Second

// Run guards until ctx ends, and then returns within a second or so; or it
// returns an error that makes guarding impossible.
func (s *Supervisor) Run(ctx context.Context) error {
	conf := s.config()
	s.audit = openAudit(conf.Audit, s.log, &s.stats.auditDropped, func() { s.figures.succeeded(AuditFile) })
	defer s.audit.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context) error{s.watch, s.discover, s.attribute, s.tune, s.armer} {
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
		s.errands.wait()
		s.looks.wait()
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

// Reconfigure replaces the configuration. It takes effect within a tick.
func (s *Supervisor) Reconfigure(c config.Config) {
	old := s.conf.Swap(&c)
	for _, line := range config.Diff(*old, c) {
		s.log.Info("config changed", "key", line)
	}
	if old.Audit != c.Audit || old.Record != c.Record || old.API != c.API || old.Metrics != c.Metrics {
		s.log.Warn("what [audit], [record], [api] and [metrics] name is opened at the start only", "remedy", "restart redisguard")
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *Supervisor) config() *config.Config { return s.conf.Load() }

// disabled looks at the off switch.
func (s *Supervisor) disabled() bool {
	path := s.opt.DisablePath
	if path == "" {
		path = DisablePath
	}
	// When we cannot tell, somebody may have switched us off.
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// watchMode is how far watching and everything that builds on it may go.
func (s *Supervisor) watchMode(c *config.Config) config.Mode {
	return config.Ceiling(s.ceiling(c), c.Watch.Mode)
}

// monotonic is the clock of all observations.
func monotonic() time.Duration { return sys.Monotonic() }
