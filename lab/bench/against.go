package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// rounds is how often each comparison is made; their median counts.
const rounds = 5

// against compares the program with another one of an earlier build, on the same machine
// in the same run: both watch the same node at the same time where what they cost is
// measured, and take turns where it is how soon they act. No row may be worse than 1.1
// times the other's.
func (b *bench) against() error {
	if b.other == "" {
		fmt.Fprintln(b.log, "  nothing to compare with: see -against")
		return nil
	}
	return errors.Join(b.againstSoon(), b.againstMemory(), b.againstCPU())
}

// compare adds a row with the median of the ratios of ours to theirs.
func (b *bench) compare(what string, ours, theirs []float64, unit string) {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
	}
	slices.Sort(ratios)
	median := func(list []float64) float64 {
		list = slices.Sorted(slices.Values(list))
		return list[len(list)/2]
	}
	b.add(median(ratios) <= 1.1, "against the other build: "+what, "<= 1.10", "%.2f (%.2f to %.2f; %.2f %s against %.2f %s)",
		median(ratios), ratios[0], ratios[len(ratios)-1], median(ours), unit, median(theirs), unit)
}

// againstSoon compares how soon both act, in turns.
func (b *bench) againstSoon() error {
	own := b.guard
	defer func() { b.guard = own }()
	var flow, first, all [2][]float64
	for range rounds {
		for i, program := range []string{own, b.other} {
			b.guard = program
			took, err := b.brokenFlows("fast", b.runs(200))
			if err != nil {
				return err
			}
			flow[i] = append(flow[i], quantile(took, 0.5).Seconds()*1000)
			f, a, err := b.reapThousand()
			if err != nil {
				return err
			}
			first[i], all[i] = append(first[i], f.Seconds()*1000), append(all[i], a.Seconds()*1000)
		}
	}
	b.compare("flow, error after (p50)", flow[0], flow[1], "ms")
	b.compare("thousand, the first reap after", first[0], first[1], "ms")
	b.compare("thousand, from the first reap to the last", all[0], all[1], "ms")
	return nil
}

// againstMemory compares resident memory at 10,000 connections.
func (b *bench) againstMemory() error {
	var mem [2][]float64
	err := b.tenThousand(func(guards []*guard) error {
		for range rounds {
			for i, g := range guards {
				rss, err := g.rss()
				if err != nil {
					return err
				}
				mem[i] = append(mem[i], rss)
			}
			if err := b.pass(4 * time.Second); err != nil {
				return err
			}
		}
		return nil
	}, b.guard, b.other)
	if err == nil {
		b.compare("resident memory at 10,000 connections", mem[0], mem[1], "MiB")
	}
	return err
}

// againstCPU compares what both cost on the crowded node: quiet, in the noise, and under
// suspicion.
func (b *bench) againstCPU() error {
	n, err := b.crowdedNode()
	if err != nil {
		return err
	}
	defer n.lab.Close()
	guards, stop, err := b.startAll([]string{b.guard, b.other})
	if err != nil {
		return err
	}
	defer stop()
	settle := 3 * time.Minute
	if b.quick {
		settle = 75 * time.Second
	}
	if err := b.pass(settle); err != nil {
		return err
	}
	windows := func(what string, each time.Duration) error {
		var used [2][]float64
		for range rounds {
			var before [2]time.Duration
			for i, g := range guards {
				if before[i], err = g.cpu(); err != nil {
					return err
				}
			}
			start := time.Now()
			if err := b.pass(each); err != nil {
				return err
			}
			for i, g := range guards {
				after, err := g.cpu()
				if err != nil {
					return err
				}
				used[i] = append(used[i], (after-before[i]).Seconds()*1000/time.Since(start).Seconds())
			}
		}
		b.compare(what, used[0], used[1], "ms/s")
		return nil
	}
	if err := windows("cpu, quiet", 20*time.Second); err != nil {
		return err
	}
	quiet, _, err := b.noise(n.lab, n.hosts)
	if err != nil {
		return err
	}
	defer quiet()
	if err := b.pass(10 * time.Second); err != nil {
		return err
	}
	if err := windows("cpu, in the noise of 250 namespaces", 12*time.Second); err != nil {
		return err
	}
	quiet()
	if err := b.pass(10 * time.Second); err != nil {
		return err
	}
	half := n.hosts[:len(n.hosts)/2]
	for _, h := range half {
		if err := h.Vanish(); err != nil {
			return err
		}
	}
	err = b.pass(6 * time.Second) // every client has written by then
	if err == nil {
		err = windows("cpu, 1,000 connections under suspicion", 5*time.Second)
	}
	for _, h := range half {
		err = errors.Join(err, h.Return())
	}
	return err
}
