// Package daemon puts redisguard together: the supervisor, its API and metrics, the config
// file that is followed, and the service manager that is told; and, for one look without a
// daemon, the same parts in another order. It is the one place that knows them all.
package daemon

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor"
)

// keepEvents is how many events the hub keeps.
const keepEvents = 8192

// Version is what runs here.
type Version struct {
	Version, Revision, Kernel string
}

// Options of a daemon. Config and Stderr must be set.
type Options struct {
	Config config.Config
	// File is the config file to follow. If it is empty, the default path is followed,
	// where a missing file is fine. From says where Config came from.
	File, From string
	StateDir   string // see supervisor.Options
	DryRun     bool
	Version    Version
	Stderr     io.Writer
}

// Run guards this node until ctx ends.
func Run(ctx context.Context, opt Options) error {
	if os.Getenv("GOGC") == "" {
		// Steady state makes little garbage, so collecting it earlier costs
		// little CPU and spares a node's memory.
		debug.SetGCPercent(30)
	}
	conf, ver := opt.Config, opt.Version
	level := new(slog.LevelVar)
	level.Set(conf.Log.Level.Slog())
	lines := newLogWriter(opt.Stderr)
	defer lines.close()
	log := newLogger(lines, conf.Log.Format, level)
	hub := event.NewHub(keepEvents)
	files := proc.FS{Stuck: &proc.Stuck{}} // one memory for all that look at processes
	manager := &manager{log: log}
	s, err := supervisor.New(supervisor.Options{
		Config: conf, Log: log, Hub: hub, Proc: files, DryRun: opt.DryRun, StateDir: opt.StateDir, Alive: manager.alive, Ready: manager.ready,
	})
	if err != nil {
		return err
	}
	// The default file need not be there; it counts once it is.
	follow := &follower{guard: s, log: log, level: level, file: cmp.Or(opt.File, paths.Config), optional: opt.File == "", conf: conf}
	server, err := serve(conf, s, hub, files, follow, ver, log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	watching, stopWatching := context.WithCancel(ctx)
	wg.Go(func() { config.Watch(watching, follow.file, follow.changed) })
	if server != nil {
		wg.Go(func() { _ = server.Run(watching) })
	}
	log.Info("redisguard is starting", "version", ver.Version, "revision", ver.Revision, "kernel", ver.Kernel, "config", opt.From, "mode", conf.Mode.String(),
		"watch", conf.Watch.Mode.String(), "reap", conf.Reap.Mode.String(), "down_after", conf.EffectiveDownAfter().String(), "ports", conf.Watch.Ports, "dry_run", opt.DryRun)
	err = s.Run(ctx)
	manager.stopping()
	stopWatching() // the sockets too, so that they say so as long as they can
	wg.Wait()
	if err != nil {
		return fmt.Errorf("cannot guard any longer: %w", err)
	}
	log.Info("redisguard has ended")
	return nil
}

func newLogger(w io.Writer, format config.LogFormat, level slog.Leveler) *slog.Logger {
	opt := &slog.HandlerOptions{Level: level}
	if format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, opt))
	}
	return slog.New(slog.NewTextHandler(w, opt))
}

// manager is the service manager, if one started us. Its methods but stopping are called
// by one goroutine, the watcher's.
type manager struct {
	log      *slog.Logger
	isReady  bool
	watchdog func() // nil if the unit has none
	asked    bool   // whether it has
	extended time.Time
}

// extendBy is how much more time the start is asked to have, again and again while rounds
// are completed: the first look at a node with hundreds of namespaces and a million
// connections has a budget of CPU, and may take minutes.
const extendBy = 30 * time.Second

// alive feeds the watchdog. It is called when a round was completed.
func (m *manager) alive() {
	if !m.asked {
		m.asked = true
		if every, err := daemon.SdWatchdogEnabled(false); err == nil && every != 0 {
			m.watchdog = func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) }
		}
	}
	if m.watchdog != nil {
		m.watchdog()
	}
	if now := time.Now(); !m.isReady && now.Sub(m.extended) > extendBy/3 {
		m.extended = now
		m.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds()))
	}
}

// ready tells that the whole node is guarded.
func (m *manager) ready() {
	m.isReady = true
	m.log.Info("redisguard is ready: the whole node was looked at once")
	m.notify(daemon.SdNotifyReady)
}

func (m *manager) stopping() { m.notify(daemon.SdNotifyStopping) }

func (m *manager) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		m.log.Warn("cannot notify systemd", "state", state, "error", err)
	}
}
