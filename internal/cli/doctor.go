package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/doctor"
	"github.com/redisguard/redisguard/internal/daemon"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/view"
)

func newDoctorCommand() *cobra.Command {
	var (
		cfg    doctor.Config
		d      daemonAt
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this node allows redisguard to see and do",
		Long: `Doctor checks kernel, privileges, clocks, namespaces and configuration, and says
for each what was seen and what to do about it. It changes nothing, and needs no
daemon; run it with the privileges that the daemon has.

Of each target it checks whether its names resolve, its servers can be reached from the
host and let us in, the rights of the user suffice, and allow covers what the servers name;
and what the daemon, if it runs, finds wrong with it. A password is sent where the daemon
sends it, and nowhere else.

The exit code is 0, or 1 if a check failed: a job cannot be done then. A warning
means that redisguard works, with less.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Visits to network namespaces happen on the checks' own goroutines.
			cfg.Survey, cfg.Arming = surveyWatched, arming
			cfg.Problems = d.problems
			findings := doctor.Run(cmd.Context(), cfg)
			out := cmd.OutOrStdout()
			if asJSON {
				if err := writeJSON(out, findingsJSON(findings)); err != nil {
					return err
				}
			} else {
				writeFindings(out, findings)
			}
			for _, f := range findings {
				if f.Status == doctor.Fail {
					return exitCode(ExitFailed)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON array")
	configFlag(cmd, &cfg.File)
	d.socketFlag(cmd)
	return cmd
}

// problems are what the daemon finds wrong with its targets, by their names.
func (d *daemonAt) problems(ctx context.Context) (map[string][]string, error) {
	c := d.client()
	defer c.Close()
	list, err := c.Targets(ctx)
	if err != nil {
		return nil, err
	}
	problems := map[string][]string{}
	for i := range list {
		problems[list[i].Name] = list[i].Problems
	}
	return problems, nil
}

// surveyWatched passes on the watched connections of this node.
func surveyWatched(ctx context.Context, c config.Config, finder netns.Finder, each func(netns.Namespace, *tcpstate.Connection)) (looked int, err error) {
	alone := daemon.Standalone{Config: c}
	spaces, err := alone.Watched(ctx, finder)
	for i := range spaces {
		if spaces[i].Err == nil {
			looked++
		}
		for k := range spaces[i].Connections {
			each(spaces[i].NS, &spaces[i].Connections[k])
		}
	}
	return looked, err
}

// arming counts how the connections of this node stand.
func arming(ctx context.Context, c config.Config, files proc.FS, mounts []string) (doctor.Arming, error) {
	alone := daemon.Standalone{Config: c, Proc: files, MountDirs: mounts}
	plans, _, err := alone.PlanArming(ctx)
	a := doctor.Arming{States: map[view.ArmState]int{}}
	for i := range plans {
		p := &plans[i]
		a.States[p.State]++
		if p.Then.Idle != 0 && !p.Now.Keepalive {
			a.Never++
		}
	}
	return a, err
}

// jsonFinding is one element of `doctor --json`. The names stay.
type jsonFinding struct {
	Check    string `json:"check"`
	Status   string `json:"status"` // ok, warn, fail, could not tell
	Evidence string `json:"evidence"`
	Remedy   string `json:"remedy,omitempty"`
}

func findingsJSON(findings []doctor.Finding) []jsonFinding {
	out := make([]jsonFinding, 0, len(findings))
	for _, f := range findings {
		out = append(out, jsonFinding{f.Check, f.Status.String(), f.Evidence, f.Remedy})
	}
	return out
}

// writeFindings writes a line for each check, and one below it for its remedy.
// The colour only repeats the word.
func writeFindings(w io.Writer, findings []doctor.Finding) {
	colours := map[doctor.Status]string{
		doctor.OK: "32", doctor.Warn: "33", doctor.Fail: "31", doctor.CouldNotTell: "36",
	}
	colour := terminalWidth(w) > 0 && os.Getenv("NO_COLOR") == ""
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	const statusWidth = len("could not tell")
	for _, f := range findings {
		status := fmt.Sprintf("%-*s", statusWidth, f.Status)
		if colour {
			status = "\x1b[" + colours[f.Status] + "m" + status + "\x1b[0m"
		}
		fmt.Fprintf(w, "%s  %-*s  %s\n", status, width, f.Check, f.Evidence)
		if f.Remedy != "" {
			fmt.Fprintf(w, "%s  -> %s\n", strings.Repeat(" ", statusWidth+2+width), f.Remedy)
		}
	}
}
