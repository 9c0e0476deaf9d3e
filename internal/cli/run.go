package cli

import (
	"context"
	"io"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/redisguard/redisguard/internal/daemon"
	"github.com/redisguard/redisguard/internal/paths"
)

func newRunCommand() *cobra.Command {
	var path string
	var stateDir string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Guard this node until told to stop",
		Long: `Run watches the connections of this node to Redis and acts as the config says.
Without --config it reads ` + paths.Config + ` if that is there, else
it uses the defaults, which only observe.

The config file is watched: a valid change takes effect at once, an invalid one
is refused with its reason. While ` + paths.OffSwitch + `
exists, everything is off.

SIGTERM and SIGINT end it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return run(ctx, cmd.ErrOrStderr(), path, stateDir, dryRun)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "config `file` (default "+paths.Config+" if it exists)")
	cmd.Flags().StringVar(&stateDir, "state-dir", paths.State, "`directory` for what a restart should not lose")
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
	return daemon.Run(ctx, daemon.Options{
		Config: conf, File: path, From: from, StateDir: stateDir, DryRun: dryRun, Stderr: stderr,
		Version: daemon.Version{Version: ver.Version, Revision: ver.Revision, Kernel: ver.Kernel},
	})
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
