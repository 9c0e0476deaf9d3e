package cli

import (
	"github.com/spf13/cobra"

	"github.com/redisguard/redisguard/internal/show"
)

func newExplainCommand() *cobra.Command {
	var (
		d      daemonAt
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "explain ID",
		Short: "Tell the story of a finding, a connection, an event or a target",
		Long: `Explain tells what was seen, when, by which rule it was judged, what was done about
it and what happened after. ID is that of a finding (redisguard findings), of a
connection (redisguard connections), the cursor or number of an event (redisguard
events --json), or the name of a target (redisguard targets).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := d.client()
			defer c.Close()
			x, err := c.Explain(cmd.Context(), args[0])
			if err != nil {
				return d.failed("explain "+show.Plain(args[0]), err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), x)
			}
			show.Story(cmd.OutOrStdout(), &x, paint(cmd.OutOrStdout()))
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}
