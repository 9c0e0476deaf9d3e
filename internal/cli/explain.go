package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/show"
)

func newExplainCommand() *cobra.Command {
	var (
		d      daemonAt
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "explain ID",
		Short: "Tell the story of a finding, a connection or an event",
		Long: `Explain tells what was seen, when, by which rule it was judged, what was done about
it and what happened after. ID is that of a finding (redisguard findings), of a
connection (redisguard connections) or the cursor or number of an event (redisguard
events --json).`,
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
			writeExplanation(cmd.OutOrStdout(), &x)
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}

// parts are the parts of a story in our words.
var parts = map[v1.Part]string{v1.PartSeen: "seen", v1.PartJudged: "judged", v1.PartDone: "done", v1.PartAfter: "after"}

func writeExplanation(w io.Writer, x *v1.Explanation) {
	p := newPaint(w)
	fmt.Fprintf(w, "%s %s: %s\n", show.Plain(x.Kind), show.Plain(x.ID), show.Plain(x.Summary))
	if f := x.Finding; f != nil {
		state := "open since " + f.Since.Local().Format(time.DateTime)
		if !f.Open && f.Ended != nil {
			state = fmt.Sprintf("ended after %s: %s", show.Age(f.Ended.Sub(f.Since)), show.Plain(f.EndedBy))
		}
		fmt.Fprintf(w, "  finding     %s, %s, %s\n", show.Plain(string(f.Code)), p.word(string(f.Severity)), state)
		fmt.Fprintf(w, "  about       %s\n", about(f.Endpoint, f.Namespace, f.Connection))
	}
	if k := x.Connection; k != nil {
		fmt.Fprintf(w, "  connection  %s -> %s in %s, of %s (%s)\n", show.Plain(k.Local), show.Plain(k.Endpoint), show.Plain(k.Namespace), processWords(k.Process), workloadWords(k.Process))
		fmt.Fprintf(w, "  now         %s", p.word(stateWord(k)))
		if k.State != v1.StateConnecting {
			fmt.Fprintf(w, ", heard %s before %s", show.Millis(min(k.LastAckMs, k.LastReceivedMs)), k.AsOf.Local().Format(time.TimeOnly))
		}
		if !k.Reapable && k.WhyNot != "" {
			fmt.Fprintf(w, "; may not be reaped: %s", show.Plain(k.WhyNot))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	if x.Incomplete {
		fmt.Fprintln(w, "  (older events may belong to it, which the daemon no longer has)")
	}
	var before time.Time
	for i, s := range x.Story {
		after := ""
		if i > 0 {
			after = "+" + show.Age(s.Time.Sub(before))
		}
		before = s.Time
		part := parts[s.Part]
		fmt.Fprintf(w, "  %s  %7s  %-6s  %s", s.Time.Local().Format("15:04:05.000"), after, or(part, show.Plain(string(s.Part))),
			p.as(loud[s.Type], show.Plain(string(s.Type))))
		if s.Outcome != "" {
			fmt.Fprintf(w, " (%s)", show.Plain(string(s.Outcome)))
		}
		fmt.Fprintln(w)
		indented(w, s.Text)
		if e := s.Evidence; e != nil {
			if e.Text != s.Text && !strings.Contains(s.Text, e.Text) {
				indented(w, e.Text)
			}
			indented(w, evidenceWords(e))
		}
	}
	if len(x.Story) == 0 {
		fmt.Fprintln(w, "  nothing has happened to it that the daemon remembers")
	}
}

// indented writes a sentence under its step, in lines of a width that reads well.
func indented(w io.Writer, text string) {
	const indent, width = "                                 ", 88
	line := ""
	for _, word := range strings.Fields(show.Plain(text)) {
		if line != "" && len(line)+1+len(word) > width {
			fmt.Fprintln(w, indent+line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	if line != "" {
		fmt.Fprintln(w, indent+line)
	}
}

// evidenceWords are the numbers behind a judgement.
func evidenceWords(e *v1.Evidence) string {
	s := fmt.Sprintf("rule %s", e.Rule)
	if len(e.Kinds) > 0 {
		s += ", by " + strings.Join(e.Kinds, " and ")
	}
	s += fmt.Sprintf(": silent for %s, %d waiting, %d unanswered; probes: %d alive, %d unanswered", show.Millis(e.SilenceMs), e.Waiting, e.Unanswered, e.ProbesAlive, e.ProbesUnanswered)
	if e.LogLikelihood != 0 {
		s += fmt.Sprintf("; loss %.2g, in bursts %.2g: probability e^%.1f", e.Loss, e.Burst, e.LogLikelihood)
	}
	return s
}
