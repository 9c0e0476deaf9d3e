package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	// armEvery is how often it is looked whom to arm, and for canaries that are
	// gone: new connections have up to two seconds.
	armEvery = time.Second
	// armAgain is how soon it is tried again where it failed.
	armAgain = 30 * time.Second
	// armAtOnce bounds what is asked for at a time; the rest has its turn a second
	// later. Each takes some 3 us.
	armAtOnce = 20_000
	// speaking is how long before the look at it a connection has received
	// something at most, to show by itself that its endpoint lives: then no canary
	// is needed. One that there is stays until somebody has been speaking for
	// speakingLong rounds, so that they do not change with each message.
	speaking     = 2 * time.Second
	speakingLong = 5
)

// canary is what the options of a canary are: it asks every two seconds (TCP's
// keepalive counts in seconds), and so long that the kernel does not end it before
// a verdict could.
var canary = keepalive.Options{Keepalive: true, Idle: 2 * time.Second, Interval: 2 * time.Second, Count: 30}

// armed is how it stands with the options of a connection.
type armed struct {
	state   view.ArmState
	why     string
	options *keepalive.Options // as last read, nil before; shared, see share
	want    *keepalive.Options // as last asked for, likewise
	// ours says that we have turned keepalive on, so that its values are ours to
	// change again.
	ours   bool
	canary bool          // it is, or is to be, one
	spoke  int           // for how many rounds it has been speaking
	asked  bool          // under way
	lost   bool          // it is not where its owner had it
	again  time.Duration // not before
}

// share returns one place for equal options: thousands of connections have the same.
func (w *watcher) share(o keepalive.Options) *keepalive.Options {
	if p := w.options[o]; p != nil {
		return p
	}
	if w.options == nil || len(w.options) >= maxOptions {
		w.options = map[keepalive.Options]*keepalive.Options{}
	}
	w.options[o] = &o
	return &o
}

// maxOptions bounds the different options that are shared; beyond it is begun anew,
// and connections are merely looked at once more.
const maxOptions = 1000

// view is a copy for others.
func (a *armed) view() view.Arm {
	v := view.Arm{State: a.state, Why: a.why}
	if a.state == view.ArmDone || a.state == view.ArmLeft || a.state == view.ArmPlanned {
		v.Canary, v.Meaning = a.canary && a.state == view.ArmDone, a.options.String()
	}
	return v
}

// armJob is a connection that is to be armed.
type armJob struct {
	key    verdict.ConnKey
	socket keepalive.Socket
	want   keepalive.Options
	// left is what we have left there before, nil if nothing; ordinary is what we
	// would have, had we been another run of the daemon.
	left     *keepalive.Options
	ordinary keepalive.Options
	canary   bool
	dry      bool
}

// armResult is what became of it.
type armResult struct {
	job           *armJob
	before, after keepalive.Options
	err           error
}

// armOptions are the ordinary ones, from the config.
func armOptions(c *config.Config) keepalive.Options {
	return keepalive.Options{
		Keepalive: true, Idle: c.Arm.KeepaliveIdle, Interval: c.Arm.KeepaliveInterval, Count: c.Arm.KeepaliveCount,
		UserTimeout: c.Arm.UserTimeout, RTOMax: c.Arm.RTOMax,
	}
}

// ArmMode is how far arming may go.
func (s *Supervisor) ArmMode() config.Mode {
	c := s.config()
	return config.Ceiling(s.watchMode(c), c.Arm.Mode)
}

// arm has the connections armed that are not, and picks canaries. The watcher calls
// it, the armer does it.
func (w *watcher) arm(now time.Duration) {
	if now < w.nextArm {
		return
	}
	w.nextArm = now + armEvery
	mode := w.s.ArmMode()
	c := w.s.config()
	if mode == config.Off {
		return
	}
	ordinary := armOptions(c)
	chosen := map[*tracked]bool{}
	if c.Arm.Canary {
		chosen = w.canaries(c)
	}
	var jobs []*armJob
	for _, t := range w.conns {
		a := &t.arm
		if a.asked || now < a.again {
			continue
		}
		if state, why := w.s.armable(c, t); state != "" {
			a.state, a.why = state, why
			continue
		}
		want := ordinary
		a.canary = chosen[t]
		if a.canary {
			want.Idle, want.Interval, want.Count = canary.Idle, canary.Interval, canary.Count
		}
		if a.want == w.share(want) && (a.state == view.ArmDone || a.state == view.ArmLeft || a.state == view.ArmPlanned && mode != config.Enforce) {
			continue
		}
		if len(jobs) == armAtOnce {
			break
		}
		o := t.own.owner
		jobs = append(jobs, &armJob{
			key: t.key, socket: keepalive.Socket{PID: o.Process.PID, FD: o.FD, Cookie: t.key.Cookie},
			want: want, left: a.left(), ordinary: ordinary, canary: a.canary, dry: mode != config.Enforce,
		})
		a.asked = true
	}
	if len(jobs) == 0 {
		return
	}
	select {
	case w.s.arms <- jobs:
	default: // the armer is behind: the next time
		for _, j := range jobs {
			w.conns[j.key].arm.asked = false
		}
	}
}

// armable says why a connection is not to be armed: nothing, if it is.
func (s *Supervisor) armable(c *config.Config, t *tracked) (view.ArmState, string) {
	if t.conn.State != tcpstate.Established {
		return view.ArmWaiting, "it is not connected yet, or closing"
	}
	if !t.own.asked || t.own.owner == nil && !t.own.listens {
		return view.ArmWaiting, "its process is not known"
	}
	if x, why := s.touchable(c, &t.conn, &t.own); x != NotExempt {
		return view.ArmExempt, why
	}
	if t.own.owner == nil {
		return view.ArmWaiting, "its process is not known"
	}
	return "", ""
}

// canaries picks one connection of each path on which nobody speaks. One that is a
// canary already stays one.
func (w *watcher) canaries(c *config.Config) map[*tracked]bool {
	type path struct {
		spoke  int // rounds, of whoever has been speaking longest and is not the canary
		canary *tracked
		best   *tracked
	}
	paths := map[verdict.PathKey]*path{}
	for _, t := range w.conns {
		if state, _ := w.s.armable(c, t); state != "" {
			continue
		}
		k := verdict.PathKey{NS: t.key.NS, Endpoint: t.conn.Remote}
		p := paths[k]
		if p == nil {
			p = &path{}
			paths[k] = p
		}
		if t.conn.Info.LastDataRecv < speaking {
			t.arm.spoke++
		} else {
			t.arm.spoke = 0
		}
		switch {
		case t.arm.canary:
			p.canary = t
		case t.arm.spoke > 0:
			p.spoke = max(p.spoke, t.arm.spoke)
		case t.arm.options != nil && t.arm.options.Keepalive && !t.arm.ours:
			// The application has chosen its own times, which are not ours to
			// lengthen.
		case t.arm.state == view.ArmFailed:
		case p.best == nil || t.key.Cookie < p.best.key.Cookie:
			p.best = t // the oldest: it is the least likely to go
		}
	}
	chosen := map[*tracked]bool{}
	for _, p := range paths {
		switch {
		case p.canary != nil && p.spoke < speakingLong:
			chosen[p.canary] = true
		case p.spoke > 0:
		case p.best != nil:
			chosen[p.best] = true
		}
	}
	return chosen
}

// takeArmed takes in what became of arming.
func (w *watcher) takeArmed(results []armResult) {
	now := monotonic()
	for i := range results {
		r := &results[i]
		t := w.conns[r.job.key]
		if t == nil {
			continue
		}
		a := &t.arm
		a.asked = false
		a.want = w.share(r.job.want)
		if r.err != nil {
			a.state, a.why, a.again = view.ArmFailed, r.err.Error(), now+armAgain
			// Another descriptor, or another process, may have it by now.
			a.lost = errors.Is(r.err, keepalive.ErrGone) || errors.Is(r.err, keepalive.ErrOther)
			if errors.Is(r.err, keepalive.ErrNotPermitted) && !w.toldArm {
				w.toldArm = true
				w.s.log.Warn("connections cannot be armed", "error", r.err, "remedy", "CAP_SYS_PTRACE, Yama's ptrace_scope below 3, and no seccomp filter against pidfd_getfd")
			}
			w.s.stats.armFailed.Add(1)
			continue
		}
		a.options, a.why = w.share(r.after), ""
		a.ours = r.job.ours(r.before) || !r.before.Keepalive && r.after.Keepalive
		switch {
		case r.before == r.after && r.job.dry:
			a.state = view.ArmPlanned
		case r.before == r.after:
			a.state = view.ArmLeft
			if a.ours {
				a.state = view.ArmDone
			}
		default:
			a.state = view.ArmDone
			w.s.stats.armed.Add(1)
		}
		if a.canary && !a.ours && !r.job.dry {
			a.canary = false // its application has chosen for itself: another is picked
		}
	}
}

// armer sets options until ctx ends.
func (s *Supervisor) armer(ctx context.Context) error {
	for {
		var jobs []*armJob
		select {
		case <-ctx.Done():
			return nil
		case jobs = <-s.arms:
		}
		results := make([]armResult, 0, len(jobs))
		for _, j := range jobs {
			if ctx.Err() != nil {
				return nil
			}
			r := armResult{job: j}
			if j.dry || s.disabled() {
				r.before, r.err = keepalive.Read(j.socket)
				r.after = r.before
			} else {
				r.before, r.after, r.err = keepalive.Set(j.socket, j.plan)
			}
			results = append(results, r)
		}
		select {
		case s.armResults <- results:
		case <-ctx.Done():
			return nil
		}
	}
}

// left is what we have left on the socket, nil if its values are not ours.
func (a *armed) left() *keepalive.Options {
	if !a.ours {
		return nil
	}
	return a.options
}

// ours says whether the values that a socket has were set by us: they are what we
// left, not what its application has put there since; or they are what an earlier
// run of the daemon, which nobody remembers, has set.
func (j *armJob) ours(have keepalive.Options) bool {
	if j.left != nil {
		return have == *j.left
	}
	same := func(o keepalive.Options) bool {
		return have.Keepalive && have.Idle == o.Idle && have.Interval == o.Interval && have.Count == o.Count
	}
	return same(canary) || same(j.ordinary)
}

// plan is what the socket is to get.
func (j *armJob) plan(have keepalive.Options) keepalive.Options {
	if !j.ours(have) {
		if j.canary && have.Keepalive {
			return have // its application has chosen for itself; another is picked
		}
		return keepalive.Plan(have, j.want)
	}
	plan := keepalive.Plan(have, keepalive.Options{UserTimeout: j.want.UserTimeout, RTOMax: j.want.RTOMax})
	plan.Keepalive, plan.Idle, plan.Interval, plan.Count = true, j.want.Idle, j.want.Interval, j.want.Count
	return plan
}
