package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/redisguard/redisguard/internal/recording"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/verdict"
)

func newReplayCommand() *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "replay FILE",
		Short: "Judge recorded observations under another config",
		Long: `Replay runs a recording (see [record] in the config) through the verdicts again:
with the settings that it was recorded under, or with those of --config. It says
which connections would have been reaped, when and why, and which of them were
heard again later, so that the reap would have been wrong.

What a reap would have changed cannot be known: after it, the recorded
connection goes on as it did. Record in mode observe for the plainest picture.
The exit code is 3 if any reap would have been wrong.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("cannot replay: %w", err)
			}
			defer f.Close()
			var override func(verdict.Settings) verdict.Settings
			if path != "" {
				conf, _, err := loadConfig(path)
				if err != nil {
					return err
				}
				override = func(s verdict.Settings) verdict.Settings { return policy.Settings(&conf, s.HostNS) }
			}
			rep, err := replay(f, override)
			if err != nil {
				return fmt.Errorf("cannot replay %s: %w", args[0], err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), rep)
			} else {
				err = rep.print(cmd.OutOrStdout())
			}
			if err == nil && rep.Wrong > 0 {
				return exitCode(ExitFindings)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "judge with the settings of this config `file`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// replayReport is what a replay found out.
type replayReport struct {
	Started    time.Time      `json:"started"`
	DurationMs int64          `json:"duration_ms"`
	Steps      int            `json:"steps"`
	Reaps      []replayedReap `json:"reaps"`
	// Wrong counts reaps of connections that were heard again later.
	Wrong int `json:"wrong"`
	// Truncated says that the recording ends in the middle of a line.
	Truncated bool `json:"truncated,omitempty"`
}

type replayedReap struct {
	Time       time.Time        `json:"time"`
	AtMs       int64            `json:"at_ms"`
	Local      string           `json:"local"`
	Remote     string           `json:"remote"`
	Evidence   verdict.Evidence `json:"evidence"`
	Text       string           `json:"text"`
	HeardAgain bool             `json:"heard_again"`

	reap verdict.Reap
}

// maxRecordLine bounds a line of a recording: a step with a look at every one of
// 100,000 connections is some 30 MiB.
const maxRecordLine = 64 << 20

func replay(r io.Reader, override func(verdict.Settings) verdict.Settings) (*replayReport, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 1<<20), maxRecordLine)
	if !lines.Scan() {
		return nil, errors.Join(errors.New("it is empty"), lines.Err())
	}
	head, err := recording.ParseHeader(lines.Bytes())
	if err != nil {
		return nil, err
	}
	if override == nil {
		override = func(s verdict.Settings) verdict.Settings { return s }
	}
	adapt := func(s verdict.Settings) verdict.Settings {
		s = override(s)
		s.Blind = true
		return s
	}
	core := verdict.New(adapt(head.Settings))
	rep := &replayReport{Started: head.Started, Reaps: []replayedReap{}}
	open := map[verdict.ConnKey]int{} // reaps whose connection goes on
	var first, last time.Duration
	var bad error
	for lines.Scan() {
		if bad != nil {
			return nil, fmt.Errorf("line %d: %w", rep.Steps+2, bad)
		}
		in, err := head.ParseInput(lines.Bytes())
		if err != nil {
			bad = err // fine in the last line, which a crash may have cut
			continue
		}
		if rep.Steps == 0 {
			first = in.Now
		}
		last = in.Now
		rep.Steps++
		if in.Settings != nil {
			s := adapt(*in.Settings)
			in.Settings = &s
		}
		if in.Reset {
			clear(open) // what became of them is not known
		}
		// What was done then is no part of what is judged now.
		in.Reaped = nil
		for i := range in.Appeared {
			// Neither is what was not permitted then for reasons of mode.
			if a := &in.Appeared[i]; a.Permit == verdict.ObserveOnly && a.OnlyMode {
				a.Permit, a.Why = verdict.MayReap, ""
			}
		}
		for i := range in.Samples {
			s := &in.Samples[i]
			at := s.At
			if at == 0 {
				at = in.Now
			}
			if j, ok := open[s.Key]; ok && rep.Reaps[j].reap.Heard(s.Counters, at, s.LastAckRecv) {
				rep.Reaps[j].HeardAgain = true
				rep.Wrong++
				delete(open, s.Key)
			}
		}
		for _, k := range in.Gone {
			delete(open, k)
		}
		out := core.Step(&in)
		for _, x := range out.Reap {
			at := in.Now - first
			if !x.Live { // which may be heard
				open[x.Key] = len(rep.Reaps)
			}
			rep.Reaps = append(rep.Reaps, replayedReap{
				Time: head.Started.Add(at), AtMs: at.Milliseconds(), Local: x.Local.String(), Remote: x.Remote.String(),
				Evidence: x.Evidence, Text: x.Evidence.String(), reap: x,
			})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", rep.Steps+2, err)
	}
	rep.Truncated = bad != nil
	rep.DurationMs = (last - first).Milliseconds()
	return rep, nil
}

func (r *replayReport) print(w io.Writer) error {
	fmt.Fprintf(w, "%d steps over %v from %s: %d reaps, %d of them of connections that were heard again later\n",
		r.Steps, (time.Duration(r.DurationMs) * time.Millisecond).Round(time.Second), r.Started.Format(time.RFC3339), len(r.Reaps), r.Wrong)
	if r.Truncated {
		fmt.Fprintln(w, "the last line is cut off and was left out")
	}
	if len(r.Reaps) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "AT\tLOCAL\tREMOTE\tHEARD AGAIN\tWHY")
	for _, x := range r.Reaps {
		again := "no"
		if x.HeardAgain {
			again = "YES"
		}
		fmt.Fprintf(t, "+%.3fs\t%s\t%s\t%s\t%s\n", float64(x.AtMs)/1000, x.Local, x.Remote, again, x.Text)
	}
	return t.Flush()
}
