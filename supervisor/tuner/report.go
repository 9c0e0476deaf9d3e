package tuner

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// report tells what is new about a namespace, and puts it into the view.
func (t *Loop) report(p *spacePlan, mode config.Mode) {
	sp := p.sp
	if p.err != nil {
		if !errors.Is(p.err, netns.ErrGone) && !errors.Is(p.err, sysctl.ErrChanged) {
			if text := p.err.Error(); text != sp.failed {
				sp.failed = text
				t.send(sp, event.TuneFailed, "this namespace cannot be tuned: "+text, string(verdict.ReapFailed))
				t.Figures.Tune(figures.TuneFailed)
			}
			sp.view = &view.Tune{State: view.TuneFailed, Why: p.err.Error()}
		}
		return
	}
	writes := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Write })
	backs := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Restore })
	meaning := sysctl.Mean(p.have, 0)
	if p.done && sp.failed != "" {
		sp.failed = ""
		t.send(sp, event.TuneResumed, "this namespace can be tuned again", "")
	}
	switch {
	case p.done && writes != "":
		text := writes + ": " + meaning.String()
		if left := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Foreign }); left != "" {
			text += "; left, since somebody has chosen it: " + left
		}
		t.send(sp, event.NamespaceTuned, text, "")
		t.Figures.Tune(figures.TuneDone)
	case !p.done && writes != "" && mode == config.Observe && writes != sp.would:
		sp.would = writes
		would := maps.Clone(p.have)
		for _, it := range p.items {
			if it.Action == sysctl.Write {
				would[it.Key] = it.Want
			}
		}
		t.send(sp, event.NamespaceTuned, "would be tuned: "+writes+": "+sysctl.Mean(would, 0).String(), tuneDryRun)
		t.Figures.Tune(figures.TuneObserved)
	}
	if p.done && backs != "" {
		t.send(sp, event.NamespaceRestored, backs+": "+p.why, "")
		t.Figures.Tune(figures.TuneRestored)
	}
	drifts := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Drifted || it.Conflict && p.done })
	gaveUp := slices.ContainsFunc(p.items, func(it sysctl.Item) bool { return it.GivenUp })
	repaired := !slices.ContainsFunc(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Drifted })
	switch {
	case drifts == "":
		if sp.drift != "" {
			sp.drift = ""
			t.send(sp, event.NamespaceDriftOver, "the values are as they should be", "")
		}
	case repaired:
		// It is over already, and still worth telling: another program sets
		// these values too.
		t.send(sp, event.NamespaceDrift, "somebody has changed values after redisguard; changed back: "+drifts, "")
		t.send(sp, event.NamespaceDriftOver, "it was changed back", "")
		t.Figures.Tune(figures.TuneDrifted)
	case drifts != sp.drift:
		if sp.drift != "" {
			t.send(sp, event.NamespaceDriftOver, "it was changed again", "")
		}
		sp.drift = drifts
		text := "somebody has changed values after redisguard; left, as tune.drift is \"report\": "
		if gaveUp {
			text = fmt.Sprintf("somebody goes on changing values after redisguard; given up after %d repairs: ", sysctl.MaxConflicts)
		}
		t.send(sp, event.NamespaceDrift, text+drifts, "")
		t.Figures.Tune(figures.TuneDrifted)
	}
	sp.view = viewOf(p, meaning)
}

// tuneDryRun is the outcome of what was not done; the word of the API.
const tuneDryRun = "dry-run"

// viewOf puts a namespace into words.
func viewOf(p *spacePlan, m sysctl.Meaning) *view.Tune {
	v := &view.Tune{Why: p.why, Busy: m.Busy, Idle: m.Idle, Connect: m.Connect, Meaning: m.String()}
	planned := map[sysctl.Key]sysctl.Item{}
	for _, it := range p.items {
		planned[it.Key] = it
	}
	ours, pending, drifted := false, false, false
	for _, k := range sysctl.Keys() {
		n, ok := p.have[k]
		if !ok {
			continue
		}
		x := view.TuneValue{Key: k.String(), Unit: k.Def().Unit, Value: n, Owner: view.TuneForeign}
		if n == k.Def().Default {
			x.Owner = view.TuneKernel
		}
		if it, ok := planned[k]; ok && p.wanted {
			want := it.Want
			x.Want = &want
		}
		if p.kept != nil {
			if original, ok := p.kept.Original(k); ok {
				x.Original = &original
				x.Owner = view.TuneOurs
				if it := planned[k]; it.Action == sysctl.Drifted {
					x.Owner, drifted = view.TuneDrift, true
				} else {
					ours = true
				}
			}
		}
		if it := planned[k]; it.Action.Writes() && !p.done {
			pending = true
		}
		v.Values = append(v.Values, x)
	}
	switch {
	case drifted:
		v.State = view.TuneDrifted
	case pending:
		v.State = view.TunePlanned
	case ours:
		v.State = view.TuneTuned
	case p.wanted:
		v.State = view.TuneLeft
	default:
		v.State = view.TuneExempt
	}
	return v
}
