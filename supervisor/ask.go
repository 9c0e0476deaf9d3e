package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// progress is how recently a connection was heard that makes progress.
const progress = time.Second

// Reap ends connections because somebody asks for it. The permits hold as ever;
// so does the last look, which spares what makes progress unless that is asked for
// too; and no more are ended at once than [reap] rate and burst allow. It returns
// what became of each, none if there is no such connection.
func (s *Supervisor) Reap(ctx context.Context, r view.Reap) ([]view.Reaped, error) {
	got := make(chan []view.Reaped, 1)
	var off error
	err := s.onWatcher(ctx, func(w *watcher) error {
		if w.checkSwitch(); w.off {
			off = view.ErrOff
			got <- nil
			return nil
		}
		list, err := w.reapAsked(&r)
		got <- list
		return err
	})
	if err != nil {
		return nil, err
	}
	list := <-got
	return list, off
}

func (w *watcher) reapAsked(r *view.Reap) ([]view.Reaped, error) {
	var all []*tracked
	if r.Endpoint == (netip.AddrPort{}) {
		if t := w.conns[r.Connection]; t != nil {
			all = append(all, t)
		}
	} else {
		for _, t := range w.conns {
			if t.conn.Remote == r.Endpoint {
				all = append(all, t)
			}
		}
	}
	slices.SortFunc(all, func(a, b *tracked) int {
		return cmp.Or(cmp.Compare(a.key.NS, b.key.NS), cmp.Compare(a.key.Cookie, b.key.Cookie))
	})
	c := w.s.config()
	now := monotonic()
	if w.asked.at == 0 {
		w.asked.tokens = float64(c.Reap.Burst)
	}
	w.asked.tokens = min(float64(c.Reap.Burst), w.asked.tokens+(now-w.asked.at).Seconds()*c.Reap.Rate)
	w.asked.at = now
	list := make([]view.Reaped, len(all))
	var batch []int // of one namespace, to be tried
	for i, t := range all {
		list[i] = view.Reaped{Key: t.key, Local: t.conn.Local, Remote: t.conn.Remote, UID: t.conn.UID, Owner: t.own.owner}
		// By the config as it is now: the table may be a round behind.
		if permit, _, why := w.s.permit(c, &t.conn, &t.own); permit != verdict.MayReap {
			list[i].Outcome, list[i].Why = view.Refused, cmp.Or(why, "observed only")
		} else if t.hold != nil || t.space.closed {
			list[i].Outcome, list[i].Why = verdict.ReapFailed, errHeld.Error()
		} else {
			batch = append(batch, i)
		}
		if len(batch) > 0 && (i+1 == len(all) || all[i+1].key.NS != t.key.NS) {
			if err := w.reapBatch(r, all, list, batch); err != nil {
				return list, err
			}
			batch = batch[:0]
		}
	}
	return list, nil
}

// allowance bounds the reaps that are asked for.
type allowance struct {
	tokens float64
	at     time.Duration
}

// reapBatch tries those of one namespace.
func (w *watcher) reapBatch(r *view.Reap, all []*tracked, list []view.Reaped, batch []int) error {
	sp := all[batch[0]].space
	ids := make([]tcpstate.ID, len(batch))
	for j, i := range batch {
		ids[j] = all[i].conn.ID
	}
	outcome, why := make([]verdict.ReapOutcome, len(batch)), make([]error, len(batch))
	err := w.lookAndDestroy(sp, ids, func(_ int, now *tcpstate.Result) (verdict.ReapOutcome, error) {
		outcome, why := askedLook(now, r)
		if outcome != "" {
			return outcome, why
		}
		// Only what is really ended counts: not what is spared.
		if w.asked.tokens < 1 {
			c := w.s.config()
			return view.Refused, fmt.Errorf("no more than %d at once and %g a second ([reap] burst and rate): ask again", c.Reap.Burst, c.Reap.Rate)
		}
		w.asked.tokens--
		return "", nil
	}, outcome, why)
	switch {
	case errors.Is(err, netns.ErrStranded):
		return err
	case errors.Is(err, netns.ErrGone):
		sp.lost = true
		w.s.askRefresh()
	}
	for j, i := range batch {
		t := all[i]
		if outcome[j] == "" {
			outcome[j], why[j] = verdict.ReapFailed, err
		}
		if outcome[j] == verdict.ReapFailed && errors.Is(why[j], tcpstate.ErrNotSupported) {
			outcome[j], why[j] = w.shutdown(&verdict.Reap{Key: t.key})
		}
		list[i].Outcome = outcome[j]
		if why[j] != nil {
			list[i].Why = why[j].Error()
		}
		if r.DryRun || outcome[j] == view.Refused {
			continue
		}
		w.reportAsked(r, t, outcome[j], why[j])
		if outcome[j] == verdict.ReapDone || outcome[j] == verdict.ReapGone {
			// What was not ended is none of the core's business: it has its own
			// count of what it tried.
			w.in.Reaped = append(w.in.Reaped, verdict.ReapResult{Key: t.key, At: monotonic(), Outcome: outcome[j]})
			w.drop(t)
		}
	}
	w.s.lookSoon(sp.ns.ID)
	return nil
}

// askedLook decides by the last look at a connection that somebody wants ended.
func askedLook(now *tcpstate.Result, r *view.Reap) (verdict.ReapOutcome, error) {
	if outcome, why := lastState(now); outcome != "" {
		return outcome, why
	}
	if heard, ok := now.Heard(); ok && heard < progress && !r.Force {
		return verdict.ReapSpared, fmt.Errorf("it makes progress: its peer was heard %v ago, and only --force ends it all the same", heard.Round(time.Millisecond))
	}
	if r.DryRun {
		return verdict.ReapDryRun, nil
	}
	return "", nil
}

// reportAsked leaves the audit record.
func (w *watcher) reportAsked(r *view.Reap, t *tracked, outcome verdict.ReapOutcome, why error) {
	w.s.figures.asked(outcome)
	w.s.stats.count(outcome)
	text := fmt.Sprintf("asked for by %s (pid %d, uid %d)", cmp.Or(r.Peer.Comm, "a process"), r.Peer.PID, r.Peer.UID)
	if why != nil {
		text += ": " + why.Error()
	}
	peer := r.Peer
	w.send(event.Event{Type: verdict.ConnectionReaped, Text: text, Outcome: string(outcome), Endpoint: t.conn.Remote, Peer: &peer}, t.key)
}
