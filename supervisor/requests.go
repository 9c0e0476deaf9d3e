package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/supervisor/journal"
	"github.com/redisguard/redisguard/supervisor/reaper"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// What people and programs ask of the guard: to end connections, to hold it to a mode, to
// see what it knows.

// Reap ends connections on request. The permits hold as ever;
// so does the last look, which spares what makes progress unless that is asked for
// too; and no more are ended at once than [reap] rate and burst allow. It returns
// what became of each, none if there is no such connection.
func (s *Supervisor) Reap(ctx context.Context, r view.Reap) ([]view.Reaped, error) {
	got := make(chan []view.Reaped, 1)
	var off error
	s.readSwitch()
	err := s.request(ctx, func(w *watcher) error {
		if w.obey(); w.off {
			off = view.ErrOff
			got <- nil
			return nil
		}
		list, err := w.reapByHand(&r)
		got <- list
		return err
	})
	if err != nil {
		return nil, err
	}
	list := <-got
	return list, off
}

func (w *watcher) reapByHand(r *view.Reap) ([]view.Reaped, error) {
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
	c := &w.policy.Config.Reap
	w.byHand.Refill(monotonic(), c.Rate, float64(c.Burst))
	list := make([]view.Reaped, len(all))
	var batch []int // of one namespace, to be tried
	for i, t := range all {
		list[i] = view.Reaped{Key: t.key, Local: t.conn.Local, Remote: t.conn.Remote, UID: t.conn.UID, Owner: t.holder.Owner}
		switch {
		case t.refusal.Refused():
			list[i].Outcome, list[i].Why = view.Refused, t.refusal.Why
		case t.block != nil || t.space.closed:
			list[i].Outcome, list[i].Why = verdict.ReapFailed, reaper.ErrBlocked.Error()
		default:
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

// reapBatch tries those of one namespace.
func (w *watcher) reapBatch(r *view.Reap, all []*tracked, list []view.Reaped, batch []int) error {
	sp := all[batch[0]].space
	targets := make([]reaper.Target, len(batch))
	for j, i := range batch {
		targets[j] = all[i].target()
	}
	results, err := w.end(sp, targets, func(looks []tcpstate.Result, results []reaper.Result) {
		for j := range looks {
			x := &results[j]
			x.Outcome, x.Why = reaper.ByHand(&looks[j], r)
			// Only what is really ended counts: not what is spared.
			if x.Outcome == "" && !w.byHand.Take() {
				c := &w.policy.Config.Reap
				x.Outcome, x.Why = view.Refused, fmt.Errorf("no more than %d at once and %g a second ([reap] burst and rate): ask again", c.Burst, c.Rate)
			}
		}
	})
	if err != nil {
		return err
	}
	for j, i := range batch {
		t, x := all[i], &results[j]
		list[i].Outcome = x.Outcome
		if x.Why != nil {
			list[i].Why = x.Why.Error()
		}
		if r.DryRun || x.Outcome == view.Refused {
			continue
		}
		w.reportByHand(r, t, x)
		if x.Outcome == verdict.ReapDone || x.Outcome == verdict.ReapGone {
			// What was not ended is none of the core's business: it has its own
			// count of what it tried.
			w.in.Reaped = append(w.in.Reaped, verdict.ReapResult{Key: t.key, At: monotonic(), Outcome: x.Outcome})
			w.drop(t)
		}
	}
	w.s.discovery.PollSoon(sp.ns.ID)
	return nil
}

// reportByHand leaves the audit record.
func (w *watcher) reportByHand(r *view.Reap, t *tracked, x *reaper.Result) {
	w.s.figures.ReapByHand(x.Outcome)
	text := fmt.Sprintf("asked for by %s (pid %d, uid %d)", cmp.Or(r.Peer.Comm, "a process"), r.Peer.PID, r.Peer.UID)
	if x.Why != nil {
		text += ": " + x.Why.Error()
	}
	peer := r.Peer
	w.send(event.Event{Type: verdict.ConnectionReaped, Text: text, Outcome: string(x.Outcome), Endpoint: t.conn.Remote, Peer: &peer}, t.key)
}

// ErrNotKept says that a mode is in force, but that a restart will forget it.
var ErrNotKept = errors.New("the mode is in force, but a restart of redisguard will forget it")

// SetMode sets a ceiling beside that of the config: "off", "observe" or "enforce",
// which takes it away. It is in force when SetMode returns, and kept over a
// restart of the daemon; if it cannot be kept, the error wraps ErrNotKept.
func (s *Supervisor) SetMode(ctx context.Context, word string, peer event.Peer) (event.Mode, error) {
	m, ok := journal.Modes[word]
	if !ok {
		return event.Mode{}, fmt.Errorf("%.32q is no mode: off, observe or enforce", word)
	}
	// One after the other, and to the end once begun: what is in force and what is
	// kept must not differ because a client hung up.
	s.setting.Lock()
	defer s.setting.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	kept := journal.KeepMode(s.opt.StateDir, m)
	got := make(chan event.Mode, 1)
	err := s.request(ctx, func(w *watcher) error {
		w.askedBy = &peer
		s.update(func(in *policy.Inputs) bool { in.Override = m; return true })
		w.obey()
		w.askedBy = nil
		got <- w.mode()
		return nil
	})
	if err != nil {
		return event.Mode{}, err
	}
	mode := <-got
	if kept != nil {
		s.log.Error("the mode that was set cannot be kept over a restart", "mode", word, "error", kept)
		return mode, fmt.Errorf("%w: %w", ErrNotKept, kept)
	}
	return mode, nil
}

// mode is what sets how far the guard goes.
func (w *watcher) mode() event.Mode {
	p := w.policy
	m := event.Mode{Configured: p.Config.Mode.String(), Override: p.Override.String(), Switch: p.Switch, DryRun: p.DryRun, Effective: p.Ceiling().String()}
	if p.Off() { // [watch] mode may be what turned us off
		m.Effective = config.Off.String()
	}
	return m
}

// announce tells of the mode.
func (w *watcher) announce(text string) {
	m := w.mode()
	w.told = m
	w.send(event.Event{Type: event.ModeChanged, Text: text, Mode: &m, Peer: w.askedBy}, verdict.ConnKey{})
}

// viewFor is how long a copy of the watcher's tables serves all requests:
// however many do, the watcher makes no more than two a second.
const viewFor = 500 * time.Millisecond

// View returns what is known of the node, at most half a second old.
func (s *Supervisor) View(ctx context.Context) (*view.Node, error) {
	if n := s.view.Load(); n != nil && time.Since(n.At) < viewFor {
		return n, nil
	}
	// One asks, and the others wait for what it gets.
	select {
	case s.viewing <- struct{}{}:
		defer func() { <-s.viewing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n := s.view.Load(); n != nil && time.Since(n.At) < viewFor {
		return n, nil
	}
	got := make(chan *view.Node, 1)
	if err := s.request(ctx, func(w *watcher) error {
		// Kept here, so that none is kept that is older than what was asked for since.
		n := w.view()
		s.view.Store(n)
		got <- n
		return nil
	}); err != nil {
		return nil, err
	}
	return <-got, nil
}

// view copies the tables. It takes some 0.1 us a connection.
func (w *watcher) view() *view.Node {
	now, clock := monotonic(), time.Now()
	tunes := w.s.tuner.Table()
	n := &view.Node{
		At: clock, Looked: w.looked, Off: w.off,
		Targets: w.s.targets.Table(), Spaces: make([]view.Space, 0, len(w.spaces)), Connections: make([]view.Connection, 0, len(w.conns)),
	}
	for _, sp := range w.spaces {
		at := len(n.Spaces)
		n.Spaces = append(n.Spaces, view.Space{
			NS: sp.key, Name: sp.ns.String(), Host: sp.key == w.hostNS, Key: sp.ns.ID.Key(), Tune: tunes[sp.ns.ID],
			Redis: sp.occupants.View(func(yield func(*policy.Holder) bool) {
				for _, t := range sp.conns {
					if !yield(&t.holder) {
						return
					}
				}
			}),
		})
		for _, t := range sp.conns {
			why := t.refusal.Why
			if t.block != nil {
				why = reaper.ErrBlocked.Error()
			}
			watched, _ := w.policy.Interest.Of(t.conn.Remote)
			n.Connections = append(n.Connections, view.Connection{
				Target: watched.Target, Key: t.key, Space: at, TCP: t.conn, Seen: clock.Add(t.arm.Seen - now), Owner: t.holder.Owner, WhyNot: why, Exempt: string(t.refusal.Exempt), Arm: t.arm.View(),
			})
		}
	}
	return n
}
