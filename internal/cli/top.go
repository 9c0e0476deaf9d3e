package cli

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/redisguard/redisguard/internal/tui"
)

// onceWidth is how wide the screen is where there is none.
const onceWidth = 120

func newTopCommand() *cobra.Command {
	var (
		d    daemonAt
		once bool
	)
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch targets, endpoints, stalled connections and events live",
		Long: `Top shows how the targets are, if the config names any, the health of the endpoints,
the stalled connections with their age, how many reaps and returning clients there were
in the last minutes, and the latest events. One can sort and filter, go into an endpoint or a pod, and have a line
explained; ? shows the keys.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := d.client()
			defer c.Close()
			out := cmd.OutOrStdout()
			conf := tui.Config{Source: c, Paint: paint(out)}
			if once {
				width := terminalWidth(out)
				if width == 0 {
					width = onceWidth
				}
				if err := tui.Once(cmd.Context(), conf, out, width); err != nil {
					return d.failed("show top", err)
				}
				return nil
			}
			screen, isFile := out.(*os.File)
			keys, areFile := cmd.InOrStdin().(*os.File)
			if !isFile || !areFile || terminalWidth(screen) == 0 || terminalWidth(keys) == 0 {
				return &exitError{code: ExitUsage, err: errors.New("cannot show top: this is no terminal"), remedy: "use top --once"}
			}
			if err := tui.Run(cmd.Context(), conf, keys, screen); err != nil {
				return d.failed("show top", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "write it once, where there is no terminal")
	d.socketFlag(cmd)
	return cmd
}
