// Command bench measures what docs/benchmarks.md shows, on real namespaces, real
// servers and the redisguard binary, and prints it as a Markdown table. Where a
// figure is a comparison, both sides are measured in the same run.
//
// It needs root, redis-server and ss; `make bench` sees to them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redisguard/redisguard/lab"
)

// bench is what the measurements share.
type bench struct {
	ctx   context.Context
	guard string        // the redisguard binary
	other string        // another one to compare it with; may be empty
	quick bool          // fewer runs, to see whether it works at all
	lossy time.Duration // of arm-loss
	log   io.Writer
	rows  []row
}

// row is one line of the table.
type row struct {
	what, measured, goal string
	ok                   bool
}

// add records a measurement against its goal.
func (b *bench) add(ok bool, what, goal, format string, args ...any) {
	r := row{what: what, measured: fmt.Sprintf(format, args...), goal: goal, ok: ok}
	b.rows = append(b.rows, r)
	fmt.Fprintf(b.log, "  %s: %s (goal: %s) %s\n", r.what, r.measured, r.goal, verdictWord(ok))
}

func verdictWord(ok bool) string {
	if ok {
		return "reached"
	}
	return "MISSED"
}

// runs is n, or few of them when only trying.
func (b *bench) runs(n int) int {
	if b.quick {
		return max(1, n/10)
	}
	return n
}

var measurements = []struct {
	name string
	run  func(*bench) error
}{
	{"dump", (*bench).dump},
	{"loss-fast", func(b *bench) error { return b.silentLoss("fast", 700*time.Millisecond) }},
	{"loss-balanced", func(b *bench) error { return b.silentLoss("balanced", 2*time.Second) }},
	{"flow", (*bench).flow},
	{"faults", (*bench).faults},
	{"counterparts", (*bench).counterparts},
	{"spaces", (*bench).spaces},
	{"thousand", (*bench).thousand},
	{"pause", (*bench).pause},
	{"random-loss", func(b *bench) error { return b.noFalseReap("random") }},
	{"burst-loss", func(b *bench) error { return b.noFalseReap("bursts") }},
	{"busy-server", (*bench).busyServer},
	{"memory", (*bench).memory},
	{"cpu", (*bench).cpu},
	{"arm", (*bench).arm},
	{"arm-loss", (*bench).armedLoss},
	{"against", (*bench).against},
	{"api", (*bench).api},
	{"api-soak", (*bench).soak},
}

func main() {
	lab.MaybeChild()
	maybeCrowd()
	maybeHostile()
	guard := flag.String("redisguard", "bin/redisguard", "the redisguard `binary`")
	only := flag.String("run", "", "only measurements whose name matches this `regexp`")
	quick := flag.Bool("quick", false, "a tenth of the runs: shows whether it works, measures little")
	lossy := flag.Duration("lossy", 10*time.Minute, "how long arm-loss loses packets")
	other := flag.String("against", "", "compare with this other redisguard `binary`, of an earlier build")
	out := flag.String("out", "", "write the table to this `file` too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(*only, *out, &bench{ctx: ctx, guard: *guard, other: *other, quick: *quick, lossy: *lossy, log: os.Stderr}); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(only, out string, b *bench) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	for _, m := range measurements {
		if !match.MatchString(m.name) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(b.log, "%s ...\n", m.name)
		if err := m.run(b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Fprintf(b.log, "%s took %v\n", m.name, time.Since(start).Round(time.Second))
	}
	table := b.table()
	fmt.Print(table)
	if out != "" {
		if err := os.WriteFile(out, []byte(table), 0o644); err != nil {
			return err
		}
	}
	for _, r := range b.rows {
		if !r.ok {
			err = errors.Join(err, fmt.Errorf("missed: %s: %s, goal %s", r.what, r.measured, r.goal))
		}
	}
	return err
}

func (b *bench) table() string {
	var s strings.Builder
	s.WriteString("| what | measured | goal | |\n|---|---|---|---|\n")
	for _, r := range b.rows {
		fmt.Fprintf(&s, "| %s | %s | %s | %s |\n", r.what, r.measured, r.goal, verdictWord(r.ok))
	}
	return s.String()
}

// quantile is the q-th quantile of unsorted durations.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// pass lets time pass.
func (b *bench) pass(d time.Duration) error {
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(d):
		return nil
	}
}
