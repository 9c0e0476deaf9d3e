package supervisor

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/rights"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/supervisor/armer"
	"github.com/redisguard/redisguard/supervisor/journal"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

const (
	// suspectTick is the pause between looks while anything is suspect, and
	// suspectTickEach what every suspect path adds to it, up to the usual tick:
	// a single broken flow is found fastest, a thousand cost no more than one.
	suspectTick     = 100 * time.Millisecond
	suspectTickEach = time.Millisecond
	// stepEach and stepsApart keep steps apart while many paths are suspect, each
	// of which they look at: results of probes wait so long for the next one.
	stepEach   = 800 * time.Microsecond
	stepsApart = 100 * time.Millisecond
	// offPause is the pause between two looks while redisguard is off.
	offPause = 500 * time.Millisecond
	// choresEvery is how often what need not be done at each round is done.
	choresEvery = time.Second
)

// watcher is the state of the watching loop.
type watcher struct {
	table
	s       *Supervisor
	policy  *policy.Policy // by which the table is
	core    *verdict.Core
	set     verdict.Settings
	in      verdict.Input
	rec     *journal.Recorder
	worker  tcpstate.Worker
	rounds  rounds
	retrans retransmits
	planner armer.Planner

	hostNS   verdict.NS
	suspects []verdict.PathKey
	wake     time.Duration // when the core wants the next step, at the latest
	probeID  uint64
	stepped  time.Duration                // when the last step was made
	left     map[verdict.ConnKey]*tracked // gone since the last step, which may speak of them
	fresh    []*tracked                   // not looked at yet
	asked    []*tracked                   // asked a moment ago
	blocked  []*tracked                   // that cannot be looked at

	baselines *journal.Baselines
	recalled  map[verdict.PathKey]bool // paths whose baseline was handed over

	off     bool
	looked  bool           // the whole node was looked at once
	ready   bool           // and that was told
	told    event.Mode     // as published last
	askedBy *event.Peer    // the peer that has asked for what is being done; nil is none
	unasked bool           // the attributor had no room for some connections
	byHand  verdict.Bucket // bounds the reaps that are asked for

	reportSoon bool
	reported   time.Duration // to the tuner

	// Kept for their memory.
	ids     []tcpstate.ID
	results []tcpstate.Result
	visits  []tcpstate.Visit
	visited []visited
}

// newWatcher has a watcher that knows nothing yet.
func newWatcher(s *Supervisor) *watcher {
	w := &watcher{
		s: s, table: newTable(), policy: s.Policy(), left: map[verdict.ConnKey]*tracked{}, recalled: map[verdict.PathKey]bool{},
		rounds: rounds{chance: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))},
	}
	w.planner.Publish, w.planner.Figures = s.publish, s.figures
	w.set = policy.Settings(w.policy.Config, 0)
	w.core = verdict.New(w.set)
	return w
}

// watch looks, judges and acts until ctx ends.
func (s *Supervisor) watch(ctx context.Context) error {
	w := newWatcher(s)
	defer w.worker.Close()
	defer w.retrans.close()
	var err error
	if w.baselines, err = journal.OpenBaselines(s.opt.StateDir); err != nil {
		s.log.Warn("starting without what earlier probes have found", "error", err)
	}
	w.rec = journal.OpenRecorder(w.policy.Config.Record, s.log)
	defer w.rec.Close()
	if w.planner.MayTrace, err = rights.Of(unix.CAP_SYS_PTRACE).Held(); err != nil {
		s.log.Debug("cannot tell whether other processes' sockets can be reached", "error", err)
		w.planner.MayTrace = true
	}
	w.announce("redisguard has started with mode " + w.policy.Ceiling().String())
	return w.loop(ctx)
}

func (w *watcher) loop(ctx context.Context) error {
	s := w.s
	timer := time.NewTimer(0)
	defer timer.Stop()
	var nextTick, nextChores, nextAsk time.Duration
	for {
		ticked := false
		select {
		case <-ctx.Done():
			return nil
		case m := <-s.inbox:
			if err := m(w); err != nil {
				return err
			}
		case <-timer.C:
			ticked = true
		}
		if err := w.drain(); err != nil {
			return err
		}
		w.obey()
		now := monotonic()
		c := w.policy.Config
		if w.off {
			w.completed(true)
			timer.Reset(offPause)
			nextTick = 0
			continue
		}
		w.report(now)
		w.arm(now)
		tick := c.Watch.Tick
		if n := len(w.suspects); n > 0 {
			tick = min(tick, suspectTick+time.Duration(n)*suspectTickEach)
		}
		// Whatever it was woken by: while messages come in, the timer may wait for long.
		if now >= nextTick {
			late := time.Duration(0)
			if nextTick != 0 {
				late = now - nextTick
			}
			// Late by more than the time between two ticks is worth knowing.
			if late > tick {
				w.in.Late = late
				s.figures.Late.Add(1)
			}
			if err := w.round(); err != nil {
				return err
			}
			s.figures.Round(late)
			if chores := now >= nextChores; chores {
				nextChores = now + choresEvery
				w.unblock(now)
				w.countLocal()
				if now >= nextAsk {
					nextAsk = now + askAgain
					w.requestHolders(false)
				} else if w.unasked {
					w.requestHolders(true)
				}
				if err := w.baselines.Save(now, c.Probe.Baseline); err != nil {
					s.log.Debug("cannot keep what probes have found for the next start", "error", err)
				}
				w.completed(true)
			} else {
				w.completed(false)
			}
			nextTick = now + tick
		}
		if gap := min(stepsApart, time.Duration(len(w.suspects))*stepEach); !ticked && now < w.stepped+gap {
			timer.Reset(max(0, min(w.stepped+gap, nextTick)-now))
			continue
		}
		if err := w.step(ctx); err != nil {
			return err
		}
		if n := len(w.suspects); n > 0 {
			nextTick = min(nextTick, now+suspectTick+time.Duration(n)*suspectTickEach)
		}
		next := nextTick
		if w.wake != 0 {
			next = min(next, w.wake)
		}
		timer.Reset(max(0, next-monotonic()))
	}
}

// drain takes in what else has come, so that one step serves it all; no more than was
// there, so that no process can keep the watcher from its rounds.
func (w *watcher) drain() error {
	for range len(w.s.inbox) {
		m := <-w.s.inbox
		if err := m(w); err != nil {
			return err
		}
	}
	return nil
}

// completed tells that a round was completed: alive is for the watchdog of a service
// manager, about once a second, and after the first look at the whole node it is told
// that the guard is ready.
func (w *watcher) completed(alive bool) {
	if w.off {
		w.s.figures.Success(figures.Watcher)
	}
	if alive && w.s.opt.Alive != nil {
		w.s.opt.Alive()
	}
	if w.looked && !w.ready {
		w.ready = true
		if w.s.opt.Ready != nil {
			w.s.opt.Ready()
		}
	}
}

// round looks at every connection whose turn it is.
func (w *watcher) round() error {
	retransmitted, told := w.retrans.hear(w)
	now := monotonic()
	w.asked = slices.DeleteFunc(w.asked, func(t *tracked) bool {
		if t.asked != 0 && now-t.asked < lookAfterAsk && !t.forgotten {
			return false
		}
		t.asked = 0
		return true
	})
	turn := w.rounds.next(&w.table, &situation{
		now: now, suspects: w.suspects, told: told, retransmitted: retransmitted, fresh: w.fresh, asked: w.asked,
	})
	w.fresh = w.fresh[:0]
	return w.poll(turn)
}

// arm has the connections armed that are not.
func (w *watcher) arm(now time.Duration) {
	if !w.planner.Due(now) {
		return
	}
	jobs := w.planner.Round(now, w.policy, func(yield func(*armer.Conn) bool) {
		for _, t := range w.conns {
			if !yield(&t.arm) {
				return
			}
		}
	})
	if len(jobs) > 0 && !w.s.armer.Do(jobs) {
		w.planner.NotQueued(jobs) // the armer is behind: the next time
	}
}

// obey brings the table under the policy of now, if that is another one.
func (w *watcher) obey() {
	p := w.s.Policy()
	if p == w.policy {
		return
	}
	before := w.policy
	w.policy = p
	if w.set = policy.Settings(p.Config, w.hostNS); p.Config != before.Config {
		w.in.Settings = &w.set
	}
	w.reportSoon = true
	anew := p.AttributesAnew(before)
	for _, t := range w.conns {
		if anew {
			t.holder, w.unasked = t.holder.Stale(), true
		}
		if !p.Interest.Wants(t.conn.Local, t.conn.Remote, t.conn.Mark) {
			w.forget(t)
			continue
		}
		w.introduce(t)
	}
	if p.Interest.Generation != before.Interest.Generation {
		for _, sp := range w.spaces {
			w.s.discovery.PollSoon(sp.ns.ID)
		}
	}
	if off := p.Off(); off != w.off {
		w.switchOff(off)
	}
	if m := w.mode(); m != w.told {
		w.announce("the mode is now " + m.Effective)
	}
}

// switchOff forgets everything, or begins anew.
func (w *watcher) switchOff(off bool) {
	w.off = off
	w.table = newTable()
	w.in.Clear()
	w.in.Reset = true
	w.in.Settings = &w.set                  // they may have changed just now, or while it was off
	w.recalled = map[verdict.PathKey]bool{} // the core is to be told once more
	w.suspects, w.wake, w.fresh, w.asked, w.blocked = nil, 0, nil, nil, nil
	w.rounds = rounds{chance: w.rounds.chance, n: w.rounds.n}
	w.planner.Reset()
	w.s.figures.Tracked.Store(0)
	w.reportSoon, w.reported = false, 0
	text := "redisguard is on"
	if off {
		text = "redisguard is off: nothing is watched and nothing touched"
	} else {
		// It goes on looking while it still believes to be off: once more.
		w.s.discovery.Restart()
		w.s.targets.Retell()
	}
	w.announce(text)
}
