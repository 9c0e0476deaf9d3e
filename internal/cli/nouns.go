package cli

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/show"
)

func newStatusCommand() *cobra.Command {
	var (
		d      daemonAt
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the daemon is, and how far it may go",
		Long: `Status shows whether the daemon runs, how far each job goes and what keeps it from
going further, and how many connections, endpoints and findings there are.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := d.client()
			defer c.Close()
			s, err := c.Status(cmd.Context())
			if err != nil {
				return d.failed("show the status", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			writeStatus(cmd.OutOrStdout(), &s)
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}

func writeStatus(w io.Writer, s *v1.Status) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	p := paint(w)
	line("redisguard", "%s", or(show.Plain(s.Version), "unknown version"))
	if s.Started != nil {
		line("running", "for %s, since %s", show.Age(s.Now.Sub(*s.Started)), s.Started.Local().Format(time.DateTime))
	}
	switch s.Scope {
	case v1.ScopePod:
		line("scope", "this pod's or container's own connections")
	case v1.ScopeMinimal:
		line("scope", "who asks could not be told: no more is shown")
	}
	if m := s.Mode; m != nil {
		line("mode", "%s (%s)", p.Word(string(m.Effective)), show.ModeReasons(m))
	}
	for _, j := range s.Jobs {
		why := ""
		if j.Why != "" {
			why = ": " + show.Plain(j.Why)
		}
		line("job "+show.Plain(j.Name), "%s%s", p.Word(string(j.Mode)), why)
	}
	if s.DownAfterMs > 0 {
		line("profile", "%s: down after %v of silence", show.Plain(s.Profile), time.Duration(s.DownAfterMs)*time.Millisecond)
	}
	if len(s.Ports) > 0 {
		line("ports", "%s", strings.Trim(fmt.Sprint(s.Ports), "[]"))
	}
	if n := s.Counts; n != nil {
		line("connections", "%d: %d waiting, %d stalled, %d half-dead; %d may be reaped", n.Connections, n.Waiting, n.Stalled, n.HalfDead, n.Reapable)
		line("endpoints", "%d: %d suspect, %d down", n.Endpoints, n.EndpointsSuspect, n.EndpointsDown)
		line("namespaces", "%d", n.Namespaces)
		line("findings", "%d open", n.Findings)
	}
	if n := s.Counters; n != nil {
		line("reaps", "%d done, %d spared at the last look, %d failed", n.Reaped, n.Spared, n.Failed)
		line("streams", "%d open, %d dropped for being slow, %d requests refused", n.Streams, n.StreamsDropped, n.Refused)
		line("freshness", "discovery %s, view %s", show.Millis(n.DiscoveryMs), show.Millis(n.ViewAgeMs))
	}
	for _, c := range s.Capabilities {
		if c.Support != v1.Supported {
			line("lacking", "%s: %s: %s", show.Plain(c.Name), strings.ReplaceAll(string(c.Support), "_", " "), show.Plain(c.Detail))
		}
	}
	if s.Cursor != "" {
		line("cursor", "%s", show.Plain(s.Cursor))
	}
}

func newEndpointsCommand() *cobra.Command {
	var (
		d             daemonAt
		asJSON, paths bool
	)
	cmd := &cobra.Command{
		Use:   "endpoints",
		Short: "List the endpoints that local processes are connected to, and their health",
		Long: `Endpoints lists each ip:port of Redis that processes of this node are connected to.
Its health is the worst of what is seen on its paths; a path is all connections of
one network namespace to it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := d.client()
			defer c.Close()
			list, err := c.Endpoints(cmd.Context())
			if err != nil {
				return d.failed("list endpoints", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			writeEndpoints(cmd.OutOrStdout(), list, paths, time.Now())
			return nil
		},
	}
	cmd.Flags().BoolVar(&paths, "paths", false, "show each path, too")
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}

func writeEndpoints(w io.Writer, list []v1.Endpoint, paths bool, now time.Time) {
	t := table{cut: []int{0}}
	t.add("ENDPOINT", "TARGET", "HEALTH", "FOR", "CONNECTIONS", "WAITING", "STALLED", "PATHS")
	for _, e := range list {
		since := "-"
		if e.Since != nil {
			since = show.Age(now.Sub(*e.Since))
		}
		t.add(show.Plain(e.Endpoint), show.Plain(e.Target), string(e.Health), since, fmt.Sprint(e.Connections), fmt.Sprint(e.Waiting), fmt.Sprint(e.Stalled), fmt.Sprint(len(e.Paths)))
		if !paths {
			continue
		}
		for _, p := range e.Paths {
			t.add("  "+show.Plain(p.Namespace), "", string(p.Health), "", fmt.Sprint(p.Connections), fmt.Sprint(p.Waiting), fmt.Sprint(p.Stalled), show.Plain(p.Finding))
		}
	}
	t.optional(1) // TARGET
	t.write(w)
}

func newNamespacesCommand() *cobra.Command {
	var (
		d                     daemonAt
		values, redis, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "namespaces",
		Short: "List the network namespaces with connections to Redis",
		Long: `Namespaces lists the host's network namespace and those in which somebody is
connected to Redis or redisguard looks at the TCP limits, with the pods they belong
to, and why reaping is held back in them, if it is.

LIMITS tells how it stands with the sysctls of [tune]: tuned; left (as wanted already,
or somebody's own), planned (but for the mode), drifted (changed by somebody after
redisguard), exempt, failed. BUSY, IDLE and CONNECT are after how long the kernel by
itself lets a connection fail that waits for an answer, an idle one with keepalive,
and a connect.

REDIS says whether Redis itself, a Sentinel included, lives there: yes, no, or unknown.
Its connections are never touched. --redis lists the processes that are taken for it,
or were asked whether they are, and why.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := d.client()
			defer c.Close()
			list, err := c.Namespaces(cmd.Context())
			if err != nil {
				return d.failed("list namespaces", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			if values {
				writeValues(cmd.OutOrStdout(), list)
				return nil
			}
			if redis {
				writeRedis(cmd.OutOrStdout(), list)
				return nil
			}
			t := table{cut: []int{1, 9}, end: true}
			t.add("ID", "NAME", "CONNECTIONS", "STALLED", "REDIS", "LIMITS", "BUSY", "IDLE", "CONNECT", "PODS", "DOUBT")
			for _, n := range list {
				limits := []string{"-", "-", "-", "-"}
				if x := n.Tune; x != nil {
					limits = []string{show.Plain(string(x.State)), "-", "-", "-"}
					if x.Meaning != "" {
						limits = []string{limits[0], show.Millis(x.BusyMs), show.Millis(x.IdleMs), show.Millis(x.ConnectMs)}
					}
				}
				t.add(n.ID, show.Plain(n.Name), fmt.Sprint(n.Connections), fmt.Sprint(n.Stalled), redisAnswer(n.Redis), limits[0], limits[1], limits[2], limits[3], or(show.Plain(strings.Join(n.Pods, ",")), "-"), or(show.Plain(n.Doubt), "-"))
			}
			t.write(cmd.OutOrStdout())
			return nil
		},
	}
	cmd.Flags().BoolVar(&values, "values", false, "show each TCP limit: its value, what it should be, what it was, and whose it is")
	cmd.Flags().BoolVar(&redis, "redis", false, "show each process that is taken for Redis itself, or was asked, and why")
	cmd.MarkFlagsMutuallyExclusive("values", "redis")
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}

// redisAnswer says in a word whether Redis itself is in a namespace.
func redisAnswer(r *v1.Redis) string {
	if r == nil {
		return "-"
	}
	return show.Plain(string(r.Answer))
}

// writeRedis writes what was decided about processes: a line for each, and one for a
// namespace where something else speaks for Redis.
func writeRedis(w io.Writer, list []v1.Namespace) {
	t := table{cut: []int{0}, end: true}
	t.add("NAMESPACE", "PROCESS", "PORT", "REDIS", "WHY")
	for _, n := range list {
		if n.Redis == nil {
			continue
		}
		told := false
		for _, p := range n.Redis.Processes {
			port := "-"
			if p.Port != 0 {
				port = fmt.Sprint(p.Port)
			}
			t.add(show.Plain(n.Name), fmt.Sprintf("%s[%d]", show.Plain(p.Command), p.PID), port, show.Plain(string(p.Answer)), show.Plain(p.Why))
			told = told || p.Why == n.Redis.Why
		}
		if n.Redis.Why != "" && !told {
			t.add(show.Plain(n.Name), "-", "-", redisAnswer(n.Redis), show.Plain(n.Redis.Why))
		}
	}
	t.write(w)
}

func newFindingsCommand() *cobra.Command {
	var (
		d           daemonAt
		all, asJSON bool
		codes       []string
	)
	cmd := &cobra.Command{
		Use:   "findings",
		Short: "List what is wrong now",
		Long: `Findings lists judged facts that last: endpoints that are down, connections that are
stalled or half-dead, doubts. docs/runbooks has a page for each code; redisguard
explain ID tells how it came to one.

The exit code is 0, or 3 if any is open.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, code := range codes {
				if _, err := path.Match(code, ""); err != nil {
					return usageError(fmt.Errorf("cannot use --code %q: %w", code, err))
				}
			}
			c := d.client()
			defer c.Close()
			list, err := c.Findings(cmd.Context(), all)
			if err != nil {
				return d.failed("list findings", err)
			}
			list = slices.DeleteFunc(list, func(f v1.Finding) bool { return !matchesAny(codes, string(f.Code)) })
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), list)
			} else {
				writeFindingsTable(cmd.OutOrStdout(), list, time.Now())
			}
			if err != nil {
				return err
			}
			if slices.ContainsFunc(list, func(f v1.Finding) bool { return f.Open }) {
				return exitCode(ExitFindings)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list those that have ended and are still remembered, too")
	cmd.Flags().StringSliceVar(&codes, "code", nil, "list only those whose code matches a `GLOB`, such as endpoint.*")
	completeWords(cmd, "code", v1.Codes())
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}

// matchesAny reports whether word matches one of the globs, or there are none.
func matchesAny(globs []string, word string) bool {
	return len(globs) == 0 || slices.ContainsFunc(globs, func(g string) bool { ok, _ := path.Match(g, word); return ok })
}

func writeFindingsTable(w io.Writer, list []v1.Finding, now time.Time) {
	t := table{cut: []int{4}, end: true}
	t.add("ID", "SEVERITY", "CODE", "AGE", "ABOUT", "TEXT")
	for _, f := range list {
		age := show.Age(now.Sub(f.Since))
		text := show.Plain(f.Text)
		if !f.Open {
			age = "ended"
			if f.Ended != nil {
				age += " " + show.Age(now.Sub(*f.Ended))
			}
			text = "(" + show.Plain(f.EndedBy) + ") " + text
		}
		t.add(show.Plain(f.ID), string(f.Severity), show.Plain(string(f.Code)), age, show.About(f.Endpoint, f.Namespace, f.Connection), text)
	}
	t.write(w)
}
