package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
	"github.com/redisguard/redisguard/internal/show"
)

func newEventsCommand() *cobra.Command {
	var (
		d        daemonAt
		since    string
		endpoint string
		types    []string
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Follow what the daemon sees and does",
		Long: `Events shows what is wrong now (lines marked "now"), and then each event as it
happens, until it is interrupted. If the daemon goes away it waits for it and goes
on where it was, so that no event is missed silently.

With --since it begins after the event with that cursor. Cursors stand in the JSON
lines, and redisguard status shows the latest. With --json every line is an object,
as in GET /v1/events of the API.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			if endpoint != "" {
				var s search // knows how to read one
				if err := s.setEndpoint(endpoint); err != nil {
					return usageError(err)
				}
			}
			wanted := make([]v1.EventType, len(types))
			for i, t := range types {
				wanted[i] = v1.EventType(t)
			}
			c := d.client()
			defer c.Close()
			out, p := cmd.OutOrStdout(), paint(cmd.OutOrStdout())
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			first := true
			for e, err := range c.Events(ctx, since, wanted...) {
				if err != nil {
					answer, answered := errors.AsType[*client.Error](err)
					lost := answered && answer.Status == http.StatusGone
					if first && !lost || answered && answer.Status/100 == 4 && !lost && answer.Status != http.StatusTooManyRequests {
						return d.failed("follow events", err)
					}
					then := "trying again"
					if lost {
						then = "events may be missing here; the present state follows"
					}
					fmt.Fprintf(cmd.ErrOrStderr(), "redisguard: %s; %s\n", oneLine(show.Plain(err.Error())), then)
					continue
				}
				first = false
				if !aboutEndpoint(&e, endpoint) {
					continue
				}
				if asJSON {
					err = enc.Encode(e)
				} else if line := show.Event(&e, p); line != "" {
					_, err = fmt.Fprintln(out, line)
				}
				if err != nil {
					return fmt.Errorf("cannot write events: %w", err)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "begin after the event with this `CURSOR`")
	f.StringSliceVar(&types, "type", nil, "show only events of this `TYPE`, such as endpoint.down, or endpoint.* for all of a kind")
	completeWords(cmd, "type", []string{"endpoint.*", "connection.*", "client.*", "guard.*", "mode.*", "config.*"})
	f.StringVar(&endpoint, "endpoint", "", "show only events about `IP[:PORT]`")
	f.BoolVar(&asJSON, "json", false, "write a JSON object per line")
	d.socketFlag(cmd)
	return cmd
}

// aboutEndpoint reports whether e is about the endpoint, an ip:port or an ip. Lines
// of the stream itself always pass.
func aboutEndpoint(e *v1.Event, endpoint string) bool {
	if endpoint == "" || e.Type == v1.Synced {
		return true
	}
	of := e.Endpoint
	if e.Finding != nil {
		of = e.Finding.Endpoint
	}
	host, _, _ := cutPort(of)
	return of == endpoint || host == endpoint
}

// cutPort splits ip:port.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return strings.Trim(s[:i], "[]"), s[i+1:], true
}
