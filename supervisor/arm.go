package supervisor

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	// armEvery is how often it is looked whom to arm, and for canaries that are
	// gone: new connections have up to two seconds.
	armEvery = time.Second
	// armSoon is how soon it is looked again when a canary is gone: its successor
	// is to be there within a second.
	armSoon = 250 * time.Millisecond
	// canaryLook is how often canaries are looked at, on nodes with so many
	// connections that not everyone is at each tick: two probes without an answer
	// are to be seen soon, and that a canary is gone.
	canaryLook = 500 * time.Millisecond
	// deniedFor is for how long nobody must be denied to us for that to be over:
	// connections come and go.
	deniedFor = time.Minute
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
// keepalive counts in seconds), and is ended by the kernel after 24 s, long after a
// verdict could be there, and as soon as the others where the guard is gone. Eleven
// unanswered probes in a row are no accident: at 10 % loss each way one in 10^8.
var canary = keepalive.Options{Keepalive: true, Idle: 2 * time.Second, Interval: 2 * time.Second, Count: 11}

// armed is how it stands with the options of a connection.
type armed struct {
	state    view.ArmState
	why      string
	options  *keepalive.Options // as last read, at checked; nil before; shared, see share
	original *keepalive.Options // as its application had them before we changed any; nil if we have not
	want     *keepalive.Options // as last asked for
	checked  time.Duration
	canary   bool          // it is, or is to be, one
	spoke    int           // for how many rounds it has been speaking
	path     *canaryPath   // see picker
	asked    bool          // under way
	lost     bool          // it is not where its owner had it
	denied   bool          // for want of a right, or of a system call
	refused  bool          // its application has turned off what we had turned on
	again    time.Duration // not before
}

// share returns one place for equal options: thousands of connections have the same.
func (w *watcher) share(o keepalive.Options) *keepalive.Options {
	if p := w.options[o]; p != nil {
		return p
	}
	p := new(keepalive.Options)
	*p = o
	if w.options == nil {
		w.options = map[keepalive.Options]*keepalive.Options{}
	}
	if len(w.options) < maxOptions { // whoever invents more pays with a few bytes each
		w.options[o] = p
	}
	return p
}

// maxOptions bounds the different options that are shared.
const maxOptions = 1000

// view is a copy for others.
func (a *armed) view() view.Arm {
	v := view.Arm{State: a.state, Why: a.why, Canary: a.canary && a.state == view.ArmDone}
	if a.options != nil {
		v.Meaning = a.options.String()
		if a.state == view.ArmPlanned {
			v.Meaning += "; would be " + a.want.String()
		}
	}
	return v
}

// armJob is a connection that is to be armed.
type armJob struct {
	key    verdict.ConnKey
	ns     netns.Namespace
	id     tcpstate.ID
	socket keepalive.Socket
	want   keepalive.Options
	// left is what we have left there, and original what its application had before;
	// both nil if we have changed nothing.
	left, original *keepalive.Options
	refused        bool           // see armed
	conf           *config.Config // by which it was decided
	dry            bool
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
	if s.disabled() {
		return config.Off
	}
	c := s.config()
	return config.Ceiling(s.watchMode(c), c.Arm.Mode)
}

// arm has the connections armed that are not, and picks canaries. The watcher calls
// it, the armer does it.
func (w *watcher) arm(now time.Duration) {
	if now < w.nextArm {
		return
	}
	w.armed, w.nextArm = now, now+armEvery
	mode := w.s.ArmMode()
	c := w.s.config()
	w.canaries = w.canaries[:0]
	if mode == config.Off {
		w.tellArm(0, "", true)
		return
	}
	wants := [2]*keepalive.Options{w.share(armOptions(c)), w.share(canaryOptions(c))}
	if c.Arm.Canary {
		w.canaries = w.picker.pick(maps.Values(w.conns), wants[1], w.canaries)
	} else {
		for _, t := range w.conns {
			t.arm.canary = false
		}
	}
	var jobs []*armJob
	denied, why := 0, ""
	for _, t := range w.conns {
		a := &t.arm
		switch {
		case a.denied:
			denied, why = denied+1, a.why
		case !w.mayTrace && t.unowned():
			denied++
		}
		if a.asked || now < a.again {
			continue
		}
		if state, why := t.armable(); state != "" {
			a.state, a.why, a.denied = state, why, false
			if a.original != nil {
				a.why += "; it was armed before"
			}
			continue
		}
		want := wants[0]
		if a.canary {
			want = wants[1]
		}
		settled := a.want != nil && *a.want == *want &&
			(a.state == view.ArmDone || a.state == view.ArmLeft || a.state == view.ArmPlanned && mode != config.Enforce)
		if settled && t.disarmed() {
			settled, a.again = false, now+armAgain
		}
		if settled || len(jobs) == armAtOnce {
			continue
		}
		jobs = append(jobs, t.armJob(c, *want, mode != config.Enforce))
		a.asked = true
	}
	w.tellArm(denied, why, false)
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

// tellArm tells that connections cannot be armed, and when that is over.
func (w *watcher) tellArm(denied int, why string, off bool) {
	switch {
	case denied > 0 && !w.toldArm:
		w.toldArm, w.deniedAt = true, w.armed
		text := keepalive.Obstacle()
		if why != "" {
			text += " (" + why + ")"
		}
		w.send(event.Event{Type: event.ArmFailed, Text: fmt.Sprintf("%d connections cannot be armed: %s", denied, text)}, verdict.ConnKey{})
	case denied > 0:
		w.deniedAt = w.armed
	case w.toldArm && (off || w.armed-w.deniedAt >= deniedFor):
		w.toldArm = false
		text := "no connection has been without arms for want of a right for a while"
		if off {
			text = "arming is off"
		}
		w.send(event.Event{Type: event.ArmResumed, Text: text}, verdict.ConnKey{})
	}
}

// unowned says that nobody was found who holds it.
func (t *tracked) unowned() bool {
	return t.own.asked && t.own.owner == nil && t.conn.Inode != 0 && t.conn.State == tcpstate.Established
}

// armable says why a connection is not to be armed: nothing, if it is.
func (t *tracked) armable() (view.ArmState, string) {
	if t.hold != nil {
		return view.ArmWaiting, errHeld.Error()
	}
	if t.conn.State != tcpstate.Established {
		return view.ArmWaiting, "it is not connected yet, or closing"
	}
	if !t.own.asked || t.own.owner == nil && !t.own.listens {
		return view.ArmWaiting, "its process is not known"
	}
	if t.untouchable != NotExempt {
		return view.ArmExempt, t.untouchableWhy
	}
	if t.own.owner == nil {
		return view.ArmWaiting, "its process is not known"
	}
	return "", ""
}

// disarmed says that a look since it was armed shows no timer, which a connection
// with keepalive always has: its application has turned that off.
func (t *tracked) disarmed() bool {
	a := &t.arm
	return a.state == view.ArmDone && a.options.Keepalive && t.seen > a.checked && t.conn.Timer == tcpstate.TimerNone
}

// canaryOptions are those of a canary where the others have the ordinary ones.
func canaryOptions(c *config.Config) keepalive.Options {
	o := armOptions(c)
	o.SetTimes(canary)
	return o
}

// socket is where its owner, which must be known, has it.
func (t *tracked) socket() keepalive.Socket {
	o := t.own.owner
	return keepalive.Socket{PID: o.Process.PID, FD: o.FD, Cookie: t.key.Cookie, Remote: t.conn.Remote}
}

func (t *tracked) armJob(c *config.Config, want keepalive.Options, dry bool) *armJob {
	a := &t.arm
	j := &armJob{
		key: t.key, ns: t.space.ns, id: t.conn.ID, socket: t.socket(),
		want: want, refused: a.refused, conf: c, dry: dry,
	}
	if a.original != nil {
		j.left, j.original = a.options, a.original
	}
	return j
}

// fit says whether a connection can be a canary, as far as its options are known:
// times that its application has chosen, and that are as strict, are not ours to
// change.
func (a *armed) fit(want *keepalive.Options) bool {
	if a.state == view.ArmFailed {
		return false
	}
	if a.options == nil {
		return true
	}
	j := armJob{want: *want, refused: a.refused}
	if a.original != nil {
		j.left, j.original = a.options, a.original
	}
	return j.plan(*a.options).SameTimes(canary)
}

// canaryPath is what a path shows in a round of picking canaries.
type canaryPath struct {
	round  uint64
	gone   bool     // out of the picker's paths
	spoke  int      // rounds, of whoever has been speaking longest
	canary *tracked // that there is
	best   *tracked // that there could be
}

// picker picks canaries. It keeps the paths from round to round, to save looking
// them up.
type picker struct {
	round uint64
	paths map[verdict.PathKey]*canaryPath
}

// pick marks one connection of each path on which nobody speaks, and returns them. One
// that is a canary already stays one.
func (k *picker) pick(conns iter.Seq[*tracked], want *keepalive.Options, chosen []*tracked) []*tracked {
	k.round++
	for t := range conns {
		a := &t.arm
		if state, _ := t.armable(); state != "" {
			a.canary = false
			continue
		}
		p := k.path(t)
		if t.conn.Info.LastDataRecv < speaking {
			a.spoke++
		} else {
			a.spoke = 0
		}
		p.spoke = max(p.spoke, a.spoke)
		switch {
		case a.canary && p.canary == nil && a.fit(want):
			p.canary = t
		case a.spoke > 0, p.best != nil && t.key.Cookie > p.best.key.Cookie:
		case a.fit(want):
			p.best = t // the oldest: it is the least likely to go
		}
		a.canary = false
	}
	for key, p := range k.paths {
		t := p.best
		switch {
		case p.round != k.round:
			p.gone = true
			delete(k.paths, key)
			continue
		case p.canary != nil && p.spoke < speakingLong:
			t = p.canary
		case p.spoke > 0:
			continue
		}
		if t != nil {
			t.arm.canary = true
			chosen = append(chosen, t)
		}
	}
	return chosen
}

// path is the path of a connection, as of this round.
func (k *picker) path(t *tracked) *canaryPath {
	p := t.arm.path
	if p == nil || p.gone {
		key := verdict.PathKey{NS: t.key.NS, Endpoint: t.conn.Remote}
		if p = k.paths[key]; p == nil {
			if k.paths == nil {
				k.paths = map[verdict.PathKey]*canaryPath{}
			}
			p = &canaryPath{}
			k.paths[key] = p
		}
		t.arm.path = p
	}
	if p.round != k.round {
		*p = canaryPath{round: k.round}
	}
	return p
}

// takeArmed takes in what became of arming.
func (w *watcher) takeArmed(results []armResult) {
	now := monotonic()
	n := map[ArmOutcome]int64{}
	for i := range results {
		r := &results[i]
		t := w.conns[r.job.key]
		if errors.Is(r.err, errStale) {
			if t != nil {
				t.arm.asked = false // and is asked for anew
			}
			continue
		}
		state, outcome, why := r.outcome()
		n[outcome]++
		if t == nil {
			continue
		}
		a := &t.arm
		a.asked = false
		a.want, a.state, a.why = w.share(r.job.want), state, why
		a.denied = outcome == ArmNotPermitted || outcome == ArmNotSupported
		if r.err != nil {
			a.again = now + armAgain
			// Another descriptor, or another process, may have it by now.
			a.lost = outcome == ArmGone
			continue
		}
		a.options, a.checked, a.original = w.share(r.after), now, nil
		a.refused = r.job.turnedOff(r.before)
		if own := r.job.own(r.before); own != r.after {
			a.original = w.share(own)
		}
	}
	w.s.figures.armed(n)
}

// outcome puts into words what became of a job.
func (r *armResult) outcome() (state view.ArmState, outcome ArmOutcome, why string) {
	if r.err != nil {
		outcome = ArmError
		switch {
		case errors.Is(r.err, keepalive.ErrGone), errors.Is(r.err, keepalive.ErrOther):
			outcome = ArmGone
		case errors.Is(r.err, keepalive.ErrNotPermitted):
			outcome = ArmNotPermitted
		case errors.Is(r.err, keepalive.ErrNotSupported):
			outcome = ArmNotSupported
		case errors.Is(r.err, keepalive.ErrNotTaken):
			outcome = ArmNotTaken
		case errors.Is(r.err, errHeld):
			outcome = ArmHeld
		}
		return view.ArmFailed, outcome, r.err.Error()
	}
	switch {
	case r.before != r.after:
		outcome = ArmSet
	case r.job.dry && r.job.plan(r.before) != r.before:
		return view.ArmPlanned, ArmObserved, ""
	default:
		outcome = ArmLeftAlone
	}
	switch {
	case r.after.SameTimes(r.job.want):
		return view.ArmDone, outcome, ""
	case r.job.turnedOff(r.before):
		why = "its application has turned keepalive off again"
	case r.after.Fragile(r.job.want):
		why = fmt.Sprintf("with its TCP_USER_TIMEOUT of %v keepalive would end it at the first unanswered probe", r.after.UserTimeout)
	}
	return view.ArmLeft, outcome, why
}

// turnedOff says that the application has turned off what we had turned on.
func (j *armJob) turnedOff(have keepalive.Options) bool {
	return j.refused || j.left != nil && j.left.Keepalive && !have.Keepalive
}

// own is what the application has chosen: what is there, but for what we have put
// there. Nobody remembers what an earlier run of the daemon has set, but what is a
// canary's is ours.
func (j *armJob) own(have keepalive.Options) keepalive.Options {
	own := have
	if j.left == nil {
		own.Keepalive = have.Keepalive && !have.SameTimes(canary)
		return own
	}
	if have.SameTimes(*j.left) {
		own.SetTimes(*j.original)
	}
	if have.UserTimeout == j.left.UserTimeout {
		own.UserTimeout = j.original.UserTimeout
	}
	if have.RTOMax == j.left.RTOMax {
		own.RTOMax = j.original.RTOMax
	}
	return own
}

// plan is what the socket is to get: what follows from what its application has
// chosen.
func (j *armJob) plan(have keepalive.Options) keepalive.Options {
	if j.turnedOff(have) {
		return have // so be it
	}
	plan := keepalive.Plan(j.own(have), j.want)
	if !plan.Keepalive { // then its times mean nothing, and stay
		plan.Idle, plan.Interval, plan.Count = have.Idle, have.Interval, have.Count
	}
	return plan
}
