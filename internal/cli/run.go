package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor"
)

// keepEvents is how many events the hub keeps.
const keepEvents = 8192

func newRunCommand() *cobra.Command {
	var path string
	var stateDir string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Guard this node until told to stop",
		Long: `Run watches the connections of this node to Redis and acts as the config says.
Without --config it reads ` + config.DefaultPath + ` if that is there, else
it uses the defaults, which only observe.

The config file is watched: a valid change takes effect at once, an invalid one
is refused with its reason. While ` + supervisor.DisablePath + `
exists, everything is off.

SIGTERM and SIGINT end it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return run(ctx, cmd.ErrOrStderr(), path, stateDir, dryRun)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "config `file` (default "+config.DefaultPath+" if it exists)")
	cmd.Flags().StringVar(&stateDir, "state-dir", supervisor.StateDir, "`directory` for what a restart should not lose")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "do everything but act, and say what would have been done")
	return cmd
}

func run(ctx context.Context, stderr io.Writer, path, stateDir string, dryRun bool) error {
	conf, from, err := loadConfig(path)
	if err != nil {
		return err
	}
	ver, err := version()
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		// Steady state makes little garbage, so collecting it earlier costs
		// little CPU and spares a node's memory.
		debug.SetGCPercent(30)
	}
	level := new(slog.LevelVar)
	level.Set(conf.Log.Level.Slog())
	lines := newLogWriter(stderr)
	defer lines.close()
	log := newLogger(lines, conf.Log.Format, level)
	hub := event.NewHub(keepEvents)
	files := proc.FS{Held: &proc.Held{}} // one memory for all who look at processes
	s, err := supervisor.New(supervisor.Options{
		Config: conf, Log: log, Hub: hub, Proc: files, DryRun: dryRun, StateDir: stateDir, Alive: watchdog(),
	})
	if err != nil {
		return err
	}
	file := or(path, config.DefaultPath)
	// The default file need not be there; it counts once it is.
	follow := &follower{guard: s, log: log, level: level, file: file, optional: path == "", conf: conf}
	server, err := serve(conf, s, hub, files, follow, ver, log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	watching, stopWatching := context.WithCancel(ctx)
	wg.Go(func() { config.Watch(watching, file, follow.changed) })
	if server != nil {
		wg.Go(func() { _ = server.Run(watching) })
	}
	log.Info("redisguard is starting", "version", ver.Version, "revision", ver.Revision, "kernel", ver.Kernel, "config", from, "mode", conf.Mode.String(),
		"watch", conf.Watch.Mode.String(), "reap", conf.Reap.Mode.String(), "down_after", conf.EffectiveDownAfter().String(), "ports", conf.Watch.Ports, "dry_run", dryRun)
	notify(log, daemon.SdNotifyReady)
	err = s.Run(ctx)
	notify(log, daemon.SdNotifyStopping)
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

// watchdog feeds systemd's watchdog, if the unit has one.
func watchdog() func() {
	if every, err := daemon.SdWatchdogEnabled(false); err != nil || every == 0 {
		return nil
	}
	return func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) }
}

// notify tells systemd, if it started us.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "state", state, "error", err)
	}
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
