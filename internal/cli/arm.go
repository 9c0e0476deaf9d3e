package cli

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/daemon"
	"github.com/redisguard/redisguard/internal/show"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/view"
)

func newArmCommand() *cobra.Command {
	var (
		alone          daemon.Standalone
		config         string
		dryRun, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "arm --dry-run",
		Short: "Show which connections would get which keepalive",
		Long: `Arm shows for each connection to a watched port after how long its own options let it
notice that its peer is gone, what the config would have them be, and which connections
are left alone and why. It looks by itself, once, reads the options of other processes'
sockets and sets none: that is the daemon's work.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dryRun {
				return usageError(errors.New("cannot arm: that is the daemon's work, with [arm] in its config; --dry-run shows what it would do"))
			}
			c, _, err := loadConfig(config)
			if err != nil {
				return err
			}
			alone.Config = c
			plans, unseen, err := alone.PlanArming(cmd.Context())
			if err != nil {
				return permission(fmt.Errorf("cannot plan: %w", err))
			}
			list := make([]jsonArm, 0, len(plans))
			for i := range plans {
				list = append(list, newJSONArm(&plans[i]))
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), list)
			} else {
				writeArms(cmd.OutOrStdout(), list)
			}
			if unseen != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "redisguard: not all namespaces can be seen: %s\n", oneLine(unseen.Error()))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done; there is nothing else yet that arm does")
	jsonFlag(cmd, &asJSON)
	configFlag(cmd, &config)
	return cmd
}

// jsonArm is one element of `arm --dry-run --json`. The names stay.
type jsonArm struct {
	ID          string      `json:"id"` // of the connection, as elsewhere
	NamespaceID string      `json:"namespace_id"`
	Namespace   string      `json:"namespace"`
	Local       string      `json:"local"`
	Endpoint    string      `json:"endpoint"`
	Process     *v1.Process `json:"process,omitempty"`
	State       v1.ArmState `json:"state"`
	Why         string      `json:"why,omitempty"`
	Now         string      `json:"now,omitempty"` // what its options mean
	Then        string      `json:"then,omitempty"`

	idleNow, idleThen time.Duration
}

func newJSONArm(p *daemon.ArmPlan) jsonArm {
	ns := p.NS.ID.Number()
	j := jsonArm{
		ID: fmt.Sprintf("%d-%x", ns, p.TCP.Cookie), NamespaceID: fmt.Sprint(ns), Namespace: proc.Safe(p.NS.String()),
		Local: p.TCP.Local.String(), Endpoint: p.TCP.Remote.String(), Process: process(p.Owner, p.TCP.UID), State: v1.ArmState(p.State), Why: p.Why,
	}
	if p.Then.Idle != 0 {
		j.Now, j.Then, j.idleNow, j.idleThen = p.Now.String(), p.Then.String(), p.Now.Ends(), p.Then.Ends()
	}
	return j
}

func writeArms(w io.Writer, list []jsonArm) {
	t := table{cut: []int{0, 1}, end: true}
	t.add("NAMESPACE", "PROCESS", "LOCAL", "ENDPOINT", "STATE", "IDLE ENDS", "WHY")
	count := map[v1.ArmState]int{}
	for i := range list {
		j := &list[i]
		ends, state := "-", string(j.State)
		if j.Then != "" {
			ends = becomes(j.Now, j.Then, endsWords(j.idleNow), endsWords(j.idleThen))
		}
		count[j.State]++
		t.add(show.Plain(j.Namespace), show.Process(j.Process), show.Plain(j.Local), show.Plain(j.Endpoint), state, ends, or(show.Plain(j.Why), "-"))
	}
	t.write(w)
	for _, st := range view.ArmStates() {
		if n := count[v1.ArmState(st)]; n > 0 {
			fmt.Fprintf(w, "%d %s\n", n, st)
		}
	}
}

// endsWords puts into words after how long an idle connection ends.
func endsWords(d time.Duration) string {
	if d == 0 {
		return "never"
	}
	return show.Age(d)
}
