package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/daemon"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/internal/show"
	"github.com/redisguard/redisguard/sysctl"
)

func newTuneCommand() *cobra.Command {
	var (
		alone          daemon.Standalone
		config         string
		dryRun, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "tune --dry-run",
		Short: "Show which sysctls of this node would be set",
		Long: `Tune shows for each network namespace which TCP limits the config would have set,
what they mean in seconds now and then, and which namespaces are left alone and why.
It looks by itself, once, and writes nothing: setting them is the daemon's work. It
does not know who had a connection within the last hour.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dryRun {
				return usageError(errors.New("cannot tune: that is the daemon's work, with [tune] in its config; --dry-run shows what it would do"))
			}
			c, _, err := loadConfig(config)
			if err != nil {
				return err
			}
			alone.Config = c
			plans, unseen, err := alone.PlanTuning(cmd.Context())
			if err != nil {
				return permission(fmt.Errorf("cannot plan: %w", err))
			}
			list := make([]jsonPlan, 0, len(plans))
			for i := range plans {
				list = append(list, newJSONPlan(&plans[i]))
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), list)
			} else {
				writePlans(cmd.OutOrStdout(), list)
			}
			if unseen != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "redisguard: not all namespaces can be seen: %s\n", oneLine(unseen.Error()))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done; there is nothing else yet that tune does")
	jsonFlag(cmd, &asJSON)
	configFlag(cmd, &config)
	stateFlag(cmd, &alone.StateDir)
	return cmd
}

// stateFlag adds --state-dir to a command that looks at it without the daemon.
func stateFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "state-dir", "", "`DIR` with the daemon's state (default "+paths.State+")")
}

// permission gives an error for want of a privilege its exit code.
func permission(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return &exitError{code: ExitNotPermitted, err: err, remedy: "run it as root"}
	}
	return err
}

// jsonPlan is one element of `tune --dry-run --json`. The names stay.
type jsonPlan struct {
	NamespaceID string       `json:"namespace_id"`
	Namespace   string       `json:"namespace"`
	Wanted      bool         `json:"wanted"`
	Why         string       `json:"why,omitempty"` // why it is left alone, or could not be looked at
	Changes     []jsonChange `json:"changes"`
	Now         string       `json:"now,omitempty"` // what the values mean
	Then        string       `json:"then,omitempty"`

	now, then sysctl.Meaning
}

// jsonChange is a sysctl with what is to be done about it.
type jsonChange struct {
	Key    string `json:"key"`
	Action string `json:"action"` // write, restore, release, foreign, drifted, absent or same
	Have   int    `json:"have"`
	Want   int    `json:"want"`
}

func changes(items []sysctl.Item) []jsonChange {
	list := make([]jsonChange, 0, len(items))
	for _, it := range items {
		list = append(list, jsonChange{it.Key.String(), it.Action.String(), it.Have, it.Want})
	}
	return list
}

func newJSONPlan(p *daemon.TunePlan) jsonPlan {
	j := jsonPlan{
		NamespaceID: fmt.Sprint(p.NS.ID.Number()), Namespace: p.NS.String(), Wanted: p.Wanted, Why: p.Why,
		Changes: changes(p.Items), now: p.Now, then: p.Then,
	}
	if p.Err != nil {
		j.Why = p.Err.Error()
		return j
	}
	j.Now, j.Then = p.Now.String(), p.Then.String()
	return j
}

func writePlans(w io.Writer, list []jsonPlan) {
	t := table{cut: []int{0}, end: true}
	t.add("NAMESPACE", "BUSY", "IDLE", "CONNECT", "CHANGES")
	for i := range list {
		p := &list[i]
		if p.Now == "" {
			t.add(show.Plain(p.Namespace), "-", "-", "-", "("+show.Plain(p.Why)+")")
			continue
		}
		what := show.Plain(inShort(p.Changes))
		if what == "" {
			what = "none"
		}
		if p.Why != "" {
			what += " (" + show.Plain(p.Why) + ")"
		}
		t.add(show.Plain(p.Namespace), becomes(p.now.Busy.String(), p.then.Busy.String(), sysctl.Words(p.now.Busy), sysctl.Words(p.then.Busy)),
			becomes(p.now.Idle.String(), p.then.Idle.String(), sysctl.Words(p.now.Idle), sysctl.Words(p.then.Idle)),
			becomes(p.now.Connect.String(), p.then.Connect.String(), sysctl.Words(p.now.Connect), sysctl.Words(p.then.Connect)), what)
	}
	t.write(w)
}

func becomes(now, then, nowWords, thenWords string) string {
	if now == then {
		return nowWords
	}
	return nowWords + " -> " + thenWords
}

// inShort lists what is worth saying of changes.
func inShort(list []jsonChange) string {
	var words []string
	for _, x := range list {
		key := strings.TrimPrefix(x.Key, "net.ipv4.")
		switch x.Action {
		case sysctl.Write.String(), sysctl.Restore.String():
			words = append(words, fmt.Sprintf("%s %d -> %d", key, x.Have, x.Want))
		case sysctl.Foreign.String(), sysctl.Drifted.String():
			words = append(words, fmt.Sprintf("%s left at %d (%s)", key, x.Have, x.Action))
		}
	}
	return strings.Join(words, ", ")
}

func newRestoreCommand() *cobra.Command {
	var (
		alone          daemon.Standalone
		r              daemon.RestoreOptions
		asJSON         bool
		unseen, failed bool
	)
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Give tuned network namespaces their original sysctls back",
		Long: `Restore writes the values back that namespaces had before redisguard tuned them, and
forgets them. It needs no daemon. A value that somebody else has changed since is
left. While a daemon tunes this node it is refused, as the daemon would tune again:
set [tune] mode to "observe" first, or stop the daemon.

The exit code is 0 if everything is as it was, 1 if something could not be restored,
5 for want of a privilege.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, incomplete, err := alone.Restore(cmd.Context(), r)
			switch {
			case errors.Is(err, sysctl.ErrClaimed) && !r.Force:
				return &exitError{code: ExitFailed, err: errors.New("cannot restore: a daemon tunes this node, and would tune again"),
					remedy: `set [tune] mode = "observe" in its config or stop it first; or restore all the same with --force`}
			case err != nil:
				return permission(fmt.Errorf("cannot restore: %w", err))
			}
			out := make([]jsonRestored, 0, len(list))
			denied := false
			for i := range list {
				x := newJSONRestored(&list[i], r.DryRun)
				out = append(out, x)
				unseen = unseen || list[i].Outcome == sysctl.Unknown
				failed = failed || list[i].Err != nil
				denied = denied || errors.Is(list[i].Err, fs.ErrPermission)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), out)
			} else {
				writeRestored(cmd.OutOrStdout(), out)
			}
			if unseen && incomplete != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "redisguard: not all namespaces can be seen: %s\n", oneLine(incomplete.Error()))
			}
			switch {
			case err != nil:
				return err
			case denied:
				return exitCode(ExitNotPermitted)
			case failed:
				return exitCode(ExitFailed)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.DryRun, "dry-run", false, "only say what would be done")
	f.BoolVar(&r.Force, "force", false, "also while a daemon tunes this node")
	jsonFlag(cmd, &asJSON)
	stateFlag(cmd, &alone.StateDir)
	return cmd
}

// jsonRestored is one element of `restore --json`. The names stay.
type jsonRestored struct {
	NamespaceID string       `json:"namespace_id"`
	Namespace   string       `json:"namespace"`
	Outcome     string       `json:"outcome"` // restored, gone, unseen, failed; dry-run for what would be restored
	Why         string       `json:"why,omitempty"`
	Changes     []jsonChange `json:"changes"`
}

func newJSONRestored(r *sysctl.Restoration, dryRun bool) jsonRestored {
	j := jsonRestored{
		NamespaceID: fmt.Sprint(r.Record.ID.Number()), Namespace: r.Record.Name, Outcome: string(r.Outcome), Changes: changes(r.Items),
	}
	if r.Err != nil {
		j.Why = r.Err.Error()
	}
	if dryRun && r.Outcome == sysctl.Restored {
		j.Outcome = string(v1.OutcomeDryRun)
	}
	return j
}

func writeRestored(w io.Writer, list []jsonRestored) {
	t := table{cut: []int{0}, end: true}
	t.add("NAMESPACE", "OUTCOME", "CHANGES")
	for _, x := range list {
		what := or(show.Plain(inShort(x.Changes)), "none")
		if x.Why != "" {
			what = show.Plain(x.Why)
		}
		t.add(show.Plain(x.Namespace), x.Outcome, what)
	}
	t.write(w)
}

// writeValues writes the TCP limits of namespaces: a line for each value.
func writeValues(w io.Writer, list []v1.Namespace) {
	t := table{cut: []int{0}}
	t.add("NAMESPACE", "KEY", "VALUE", "WANT", "ORIGINAL", "OWNER")
	number := func(n *int) string {
		if n == nil {
			return "-"
		}
		return fmt.Sprint(*n)
	}
	for i := range list {
		if list[i].Tune == nil {
			continue
		}
		for _, v := range list[i].Tune.Values {
			t.add(show.Plain(list[i].Name), show.Plain(v.Key), strings.TrimSpace(fmt.Sprint(v.Value, " ", v.Unit)), number(v.Want), number(v.Original), show.Plain(string(v.Owner)))
		}
	}
	t.write(w)
	for i := range list {
		if x := list[i].Tune; x != nil {
			fmt.Fprintf(w, "%s: %s%s\n", show.Plain(list[i].Name), show.Plain(x.Meaning), inBrackets(show.Plain(x.Why)))
		}
	}
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}
