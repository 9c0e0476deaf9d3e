package supervisor

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/probe"
	"github.com/redisguard/redisguard/supervisor/armer"
	"github.com/redisguard/redisguard/supervisor/reaper"
	"github.com/redisguard/redisguard/supervisor/survey"
	"github.com/redisguard/redisguard/supervisor/targets"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// stepsAtOnce bounds the steps in which what was done has its results judged at once.
const stepsAtOnce = 3

// step hands over what was observed and does what follows. Actions have results,
// which are handed over at once, since a verdict may hang on them.
func (w *watcher) step(ctx context.Context) error {
	for range stepsAtOnce {
		w.in.Now = monotonic()
		w.stepped = w.in.Now
		w.rec.Write(&w.in)
		out := w.core.Step(&w.in)
		w.s.figures.Steps.Add(1)
		w.in.Clear()
		w.suspects = append(w.suspects[:0], out.Suspects...)
		w.wake = out.Wake
		for i := range out.Events {
			w.publish(&out.Events[i])
		}
		clear(w.left)
		if err := w.reap(out.Reap); err != nil {
			return err
		}
		w.ask(out.Ask)
		if len(out.Look) > 0 {
			if err := w.poll(w.rounds.paths(&w.table, out.Look)); err != nil {
				return err
			}
		}
		for _, p := range out.NextHop {
			w.nextHop(ctx, p)
		}
		for _, o := range out.Unrelated {
			w.unrelated(ctx, o)
		}
		for _, p := range out.Probe {
			w.probe(ctx, p)
		}
		if len(w.in.Reaped) == 0 && len(w.in.Probes) == 0 && len(w.in.Samples) == 0 {
			break
		}
	}
	w.s.figures.Tracked.Store(int64(len(w.conns)))
	return nil
}

// publish passes an event of the core on.
func (w *watcher) publish(e *verdict.Event) {
	if watched, ok := w.policy.Interest.Of(e.Path.Endpoint); ok && watched.Target != "" && targets.Hint(e.Type) {
		w.s.targets.Suspect(watched.Target, e.Path.Endpoint, string(e.Type))
	}
	w.send(event.Event{Type: e.Type, Text: e.Text, Endpoint: e.Path.Endpoint, Interface: e.Path.Interface, Evidence: e.Evidence, TookMs: e.Took.Milliseconds()},
		verdict.ConnKey{NS: e.Path.NS, Cookie: e.Key.Cookie})
}

// ask has the kernels of connections send a probe each.
func (w *watcher) ask(list []verdict.ConnKey) {
	jobs := make([]*armer.Job, 0, len(list))
	for _, key := range list {
		if t := w.conns[key]; t != nil && t.holder.Owner != nil {
			jobs = append(jobs, t.arm.AskJob(w.policy.Config))
		} else {
			w.in.Asked = append(w.in.Asked, verdict.Asked{Key: key, Unable: "its process is not known"})
		}
	}
	if len(jobs) > 0 && !w.s.asker.Do(jobs) {
		// The asker is behind: the core asks for it again.
		for _, j := range jobs {
			w.in.Asked = append(w.in.Asked, verdict.Asked{Key: j.Key})
		}
	}
}

// lookAfterAsk is for how long a connection that was asked is looked at in each round, unless
// it answers before: a retransmission timeout on most paths.
const lookAfterAsk = 600 * time.Millisecond

// askedFor takes in what became of asks.
func (w *watcher) askedFor(results []armer.Result) {
	for i := range results {
		a := results[i].Asked()
		t := w.conns[a.Key]
		if w.off || t == nil {
			continue
		}
		w.s.figures.Asks.Add(1)
		if a.Unable == "" && a.At != 0 {
			if t.asked == 0 {
				w.asked = append(w.asked, t)
			}
			t.asked = a.At
		}
		w.in.Asked = append(w.in.Asked, a)
	}
}

// reap ends the condemned connections, namespace by namespace. The core has the namespaces
// take turns, which would part those of one verdict, of which one may save the others.
func (w *watcher) reap(list []verdict.Reap) error {
	slices.SortStableFunc(list, func(a, b verdict.Reap) int { return cmp.Compare(a.Key.NS, b.Key.NS) })
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].Key.NS == list[0].Key.NS {
			n++
		}
		if err := w.reapIn(w.byKey[list[0].Key.NS], list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (w *watcher) reapIn(sp *space, list []verdict.Reap) error {
	if w.s.Policy() != w.policy {
		// Whether they may still be reaped is not known before the table is under the
		// policy of now, in the next round: redisguard may have been switched off.
		for i := range list {
			w.in.Reaped = append(w.in.Reaped, verdict.ReapResult{Key: list[i].Key, At: monotonic(), Postponed: true})
		}
		return nil
	}
	var results []reaper.Result
	switch {
	case sp == nil:
		results = reaper.Fail(len(list), netns.ErrGone)
	default:
		targets := make([]reaper.Target, len(list))
		for i, r := range list {
			targets[i].ID = tcpstate.ID{Local: r.Local, Remote: r.Remote, Cookie: r.Key.Cookie}
			if t := w.conns[r.Key]; t != nil {
				targets[i] = t.target()
			}
		}
		var err error
		if results, err = w.end(sp, targets, func(looks []tcpstate.Result, results []reaper.Result) {
			reaper.LastLooks(looks, list, results)
		}); err != nil {
			return err
		}
	}
	now := monotonic()
	for i := range list {
		r := &results[i]
		if errors.Is(r.Why, reaper.ErrBatch) {
			w.in.Reaped = append(w.in.Reaped, verdict.ReapResult{Key: list[i].Key, At: now, Postponed: true})
			continue
		}
		w.reportReap(&list[i], r)
		w.in.Reaped = append(w.in.Reaped, verdict.ReapResult{Key: list[i].Key, At: now, Outcome: r.Outcome, Heard: errors.Is(r.Why, reaper.ErrHeard)})
		if t := w.conns[list[i].Key]; t != nil && (r.Outcome == verdict.ReapDone || r.Outcome == verdict.ReapGone) {
			w.drop(t)
		}
	}
	if sp != nil {
		w.s.discovery.PollSoon(sp.ns.ID)
	}
	return nil
}

// target is how the reaper knows a connection.
func (t *tracked) target() reaper.Target {
	x := reaper.Target{ID: t.conn.ID}
	if t.holder.Owner != nil {
		s := t.arm.Socket()
		x.Socket = &s
	}
	return x
}

// end has connections of a namespace ended, and notes what was found out about it.
func (w *watcher) end(sp *space, targets []reaper.Target, decide reaper.Decide) ([]reaper.Result, error) {
	results, blocked, err := reaper.Reap(&w.worker, sp.ns, targets, decide)
	if blocked != nil {
		var conns []*tracked
		for _, i := range blocked.Targets {
			if t := sp.conns[targets[i].ID.Cookie]; t != nil {
				conns = append(conns, t)
			}
		}
		if len(conns) > 0 {
			w.blockedAt(sp, conns, blocked.Free)
		}
	}
	switch {
	case errors.Is(err, netns.ErrStranded):
		return results, err
	case errors.Is(err, netns.ErrGone):
		w.wayLost(sp)
	}
	return results, nil
}

// reportReap leaves the audit record of a reap.
func (w *watcher) reportReap(r *verdict.Reap, what *reaper.Result) {
	w.s.figures.Reap(r, what.Outcome, monotonic())
	if what.Outcome == verdict.ReapGone {
		return // nothing was done and nothing is wrong
	}
	text := r.Evidence.String()
	if what.Why != nil {
		text = what.Why.Error() + "; the verdict was: " + text
	}
	ev := r.Evidence
	w.send(event.Event{
		Type: verdict.ConnectionReaped, Text: text, Outcome: string(what.Outcome), Evidence: &ev, Endpoint: r.Remote,
		TookMs: (monotonic() - ev.Since).Milliseconds(),
	}, r.Key)
}

// probe starts a probe of an endpoint from a namespace. Its socket is made by the task
// itself: the way into a namespace may be blocked.
func (w *watcher) probe(ctx context.Context, want verdict.ProbeWanted) {
	sp := w.byKey[want.Path.NS]
	if sp == nil {
		return
	}
	w.probeID++
	pr := verdict.Probe{ID: w.probeID, Path: want.Path, Started: monotonic(), Outcome: verdict.CouldNotTell}
	c, ns := &w.policy.Config.Probe, sp.ns
	cfg := probe.Config{Timeout: c.Timeout, Mark: c.Mark, Interface: want.Path.Interface, Source: want.Source}
	if !w.s.probes.Run(func() { w.s.probe(ctx, pr, ns, cfg) }) {
		w.s.figures.TasksSkipped.Add(1)
		pr.Ended, pr.Detail = monotonic(), "too many probes are under way"
		w.s.figures.Probe(pr.Outcome)
		w.in.Probes = append(w.in.Probes, pr)
	}
}

// probe makes a probe, and tells the watcher when its connection request goes out, when
// there is a connection, and how it ended.
func (s *Supervisor) probe(ctx context.Context, pr verdict.Probe, ns netns.Namespace, cfg probe.Config) {
	tell := func(pr verdict.Probe) { s.post(ctx, func(w *watcher) error { w.probed(&pr); return nil }) }
	var sock *probe.Socket
	err := netns.Do(ns, func() (err error) {
		sock, err = probe.Open(pr.Path.Endpoint, cfg)
		return err
	})
	if err != nil {
		if sock != nil {
			sock.Close()
		}
		pr.Ended, pr.Detail = monotonic(), err.Error()
		s.figures.Probe(pr.Outcome)
		tell(pr)
		return
	}
	s.figures.ProbesMade.Add(1)
	// Nothing may come between this time and the request: what waits here looks like an
	// endpoint that does not answer. Where the inbox is full the end of the probe tells.
	pr.Started = monotonic()
	half := pr
	half.Outcome = verdict.Pending
	select {
	case s.inbox <- func(w *watcher) error { w.probed(&half); return nil }:
	default:
	}
	took, failed := sock.Connect(ctx)
	r := probe.Result{}
	if failed != nil {
		r = *failed
	} else {
		connected := half
		connected.Connected = took
		tell(connected)
		r = sock.Exchange(ctx, took)
	}
	pr.Connected = r.Connected
	pr.Ended, pr.Detail, pr.Outcome = monotonic(), r.Detail, outcomes[r.Outcome]
	s.figures.Probe(pr.Outcome)
	s.log.Debug("probe", "endpoint", pr.Path.Endpoint, "namespace", ns.Name, "outcome", r.Outcome.String(), "detail", r.Detail, "took", pr.Ended-pr.Started)
	tell(pr)
}

// probed takes in what a probe tells.
func (w *watcher) probed(pr *verdict.Probe) {
	if w.off {
		return
	}
	if sp := w.byKey[pr.Path.NS]; sp != nil && sp.ns.ID.Cookie != 0 {
		w.baselines.Note(pr)
		w.recalled[pr.Path] = true
	}
	w.in.Probes = append(w.in.Probes, *pr)
}

// outcomes are the probe's in the core's words.
var outcomes = map[probe.Outcome]verdict.Outcome{
	probe.Alive: verdict.Alive, probe.Dead: verdict.Dead, probe.Refused: verdict.Refused,
	probe.Unresponsive: verdict.Unresponsive, probe.CouldNotTell: verdict.CouldNotTell,
}

// nextHop looks at the way out of a namespace.
func (w *watcher) nextHop(ctx context.Context, p verdict.PathKey) {
	sp := w.byKey[p.NS]
	if sp == nil {
		return
	}
	s, ns, host := w.s, sp.ns, sp.key == w.hostNS
	if !s.looks.Run(func() {
		hop := survey.NextHop(ctx, ns, p, host)
		s.post(ctx, func(w *watcher) error { w.in.NextHops = append(w.in.NextHops, hop); return nil })
	}) {
		s.figures.TasksSkipped.Add(1)
	}
}

// unrelated looks how connections fare that are not toward Redis.
func (w *watcher) unrelated(ctx context.Context, o verdict.UnrelatedWanted) {
	sp := w.byKey[o.Path.NS]
	if sp == nil || sp.unrelated.Load() {
		// The last look has not returned: a process in there has a socket's lock.
		return
	}
	s, ns, interest := w.s, sp.ns, w.policy.Interest
	sp.unrelated.Store(true)
	if !s.looks.Run(func() {
		defer sp.unrelated.Store(false)
		res, err := survey.Unrelated(ns, o, interest)
		if err == nil {
			s.post(ctx, func(w *watcher) error { w.in.Unrelated = append(w.in.Unrelated, res); return nil })
		}
	}) {
		sp.unrelated.Store(false)
		s.figures.TasksSkipped.Add(1)
	}
}
