package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/show"
)

func newReapCommand() *cobra.Command {
	var (
		d      daemonAt
		req    v1.ReapRequest
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "reap {CONNECTION | --endpoint IP:PORT}",
		Short: "End a connection, or all to an endpoint",
		Long: `Reap has the daemon abort a connection, given by its ID in redisguard connections, or
all connections of this node to an endpoint. Their clients get an error at once and
connect anew.

A connection that makes progress is left alone unless --force is given. What may
never be touched (Redis itself, what [exclude] names) is refused in any case. Each
reap is written down with who asked for it.

The exit code is 0 if each connection was reaped or had ended by itself, or 1.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return errors.New("cannot reap: one connection at a time")
			case len(args) == 1 && req.Endpoint != "":
				return errors.New("cannot reap: name a connection or --endpoint, not both")
			case len(args) == 0 && req.Endpoint == "":
				return errors.New("cannot reap: name a connection, or --endpoint")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				req.Connection = args[0]
			}
			c := d.client()
			defer c.Close()
			res, err := c.Reap(cmd.Context(), req)
			if err != nil {
				return d.failed("reap", err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), res)
			} else {
				writeReaps(cmd.OutOrStdout(), res.Results)
			}
			if err != nil {
				return err
			}
			for _, r := range res.Results {
				if r.Outcome != v1.OutcomeReaped && r.Outcome != v1.OutcomeGone && r.Outcome != v1.OutcomeDryRun {
					return exitCode(ExitFailed)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Endpoint, "endpoint", "", "end all connections to `IP:PORT`")
	f.BoolVar(&req.DryRun, "dry-run", false, "only say what would be done")
	f.BoolVar(&req.Force, "force", false, "end connections that make progress, too")
	jsonFlag(cmd, &asJSON)
	d.adminFlag(cmd)
	return cmd
}

func writeReaps(w io.Writer, list []v1.ReapResult) {
	t := table{cut: []int{2, 3}, end: true}
	t.add("CONNECTION", "OUTCOME", "PROCESS", "WORKLOAD", "LOCAL", "ENDPOINT", "WHY")
	for _, r := range list {
		t.add(show.Plain(r.Connection), show.Plain(string(r.Outcome)), show.Process(r.Process), show.Workload(r.Process),
			show.Plain(r.Local), show.Plain(r.Endpoint), or(show.Plain(r.Why), "-"))
	}
	t.write(w)
}

func newModeCommand() *cobra.Command {
	var (
		d              daemonAt
		dryRun, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "mode [off | observe | enforce]",
		Short: "Show or set how far the daemon may go",
		Long: `Mode shows what sets how far every job may go, or sets a ceiling beside that of the
config: the lesser of the two holds. It is in force within two seconds and survives a
restart of the daemon. "enforce" takes the ceiling away; it never goes beyond the
config.`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{string(v1.ModeOff), string(v1.ModeObserve), string(v1.ModeEnforce)},
		RunE: func(cmd *cobra.Command, args []string) error {
			c := d.client()
			defer c.Close()
			var m v1.ModeStatus
			if len(args) == 1 && !dryRun {
				d.acts = true
				var err error
				if m, err = c.SetMode(cmd.Context(), v1.Mode(args[0])); err != nil {
					return d.failed("set the mode", err)
				}
			} else {
				d.acts = false
				s, err := c.Status(cmd.Context())
				if err == nil && s.Mode == nil {
					err = errors.New("it is not shown to who asks from here")
				}
				if err != nil {
					return d.failed("show the mode", err)
				}
				m = *s.Mode
			}
			if len(args) == 1 && dryRun {
				m.Override = v1.Mode(args[0])
				m.Effective = least(m)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), m)
			}
			would := ""
			if dryRun {
				would = "would be "
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s%s (%s)\n", would, m.Effective, show.ModeReasons(&m))
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what the mode would be")
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	d.adminFlag(cmd)
	return cmd
}

// least is the mode that follows from everything that sets it.
func least(m v1.ModeStatus) v1.Mode {
	rank := map[v1.Mode]int{v1.ModeOff: 0, v1.ModeObserve: 1, v1.ModeEnforce: 2}
	mode := v1.ModeEnforce
	set := []v1.Mode{m.Configured, m.Override}
	if m.Switch {
		set = append(set, v1.ModeOff)
	}
	if m.DryRun {
		set = append(set, v1.ModeObserve)
	}
	for _, x := range set {
		if r, ok := rank[x]; ok && r < rank[mode] {
			mode = x
		}
	}
	return mode
}

func newConfigReloadCommand() *cobra.Command {
	var (
		d      daemonAt
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its config file now",
		Long: `Reload has the daemon read its config file now, and says which settings have changed.
The daemon follows the file by itself; this is for whoever wants to know at once
whether a change was taken. A file with a mistake is refused with the reason, and the
settings before it stay in force.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := d.client()
			defer c.Close()
			res, err := c.Reload(cmd.Context())
			if err != nil {
				return d.failed("reload the config", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), res)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d changes\n", show.Plain(res.File), len(res.Changed))
			for _, line := range res.Changed {
				fmt.Fprintln(cmd.OutOrStdout(), "  "+show.Plain(line))
			}
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	d.adminFlag(cmd)
	return cmd
}
