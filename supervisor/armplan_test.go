package supervisor

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

func times(idle, interval time.Duration, count int) keepalive.Options {
	return keepalive.Options{Keepalive: true, Idle: idle * time.Second, Interval: interval * time.Second, Count: count}
}

// Values are changed only where nobody chose them, or where they are ours; and what
// is ours can be taken back.
func TestWhoseKeepaliveItIs(t *testing.T) {
	ordinary, none := times(10, 3, 5), times(7200, 75, 9)
	none.Keepalive = false
	with := func(o keepalive.Options, userTimeout time.Duration) keepalive.Options {
		o.UserTimeout = userTimeout * time.Second
		return o
	}
	off := func(o keepalive.Options) keepalive.Options {
		o.Keepalive = false
		return o
	}
	for name, tc := range map[string]struct {
		have, want, plan keepalive.Options
		left, original   *keepalive.Options
	}{
		"nobody chose any":                        {have: none, want: ordinary, plan: ordinary},
		"nobody chose any, a canary":              {have: none, want: canary, plan: canary},
		"the application's stricter ones":         {have: times(4, 1, 3), want: ordinary, plan: times(4, 1, 3)},
		"the application's lax ones":              {have: times(60, 10, 5), want: ordinary, plan: ordinary},
		"the application's lax ones, a canary":    {have: times(60, 10, 5), want: canary, plan: canary},
		"the application's, no canary any more":   {have: canary, left: &canary, original: ptr(times(15, 15, 9)), want: times(600, 60, 9), plan: times(15, 15, 9)},
		"the application's stricter, to a canary": {have: times(4, 1, 3), want: canary, plan: times(4, 1, 3)},
		"ours, to be a canary":                    {have: ordinary, left: &ordinary, original: &none, want: canary, plan: canary},
		"our canary, no more":                     {have: canary, left: &canary, original: &none, want: ordinary, plan: ordinary},
		"ours, and a slower config":               {have: ordinary, left: &ordinary, original: &none, want: times(60, 10, 5), plan: times(60, 10, 5)},
		"the application's since":                 {have: times(4, 1, 3), left: &canary, original: &none, want: ordinary, plan: times(4, 1, 3)},
		"turned off by the application since":     {have: off(ordinary), left: &ordinary, original: &none, want: ordinary, plan: off(ordinary)},
		"a predecessor's canary":                  {have: canary, want: ordinary, plan: ordinary},
		"a predecessor's ordinary ones":           {have: ordinary, want: times(600, 60, 9), plan: ordinary},
		"a predecessor's, to a canary":            {have: ordinary, want: canary, plan: canary},
		"a user timeout would be fatal":           {have: with(none, 5), want: ordinary, plan: with(none, 5)},
		"a user timeout that is long enough":      {have: with(none, 25), want: ordinary, plan: with(ordinary, 25)},
		"our user timeout, shorter":               {have: with(ordinary, 60), left: ptr(with(ordinary, 60)), original: &none, want: with(ordinary, 30), plan: with(ordinary, 30)},
		"our user timeout, longer":                {have: with(ordinary, 30), left: ptr(with(ordinary, 30)), original: &none, want: with(ordinary, 60), plan: with(ordinary, 60)},
		"our user timeout, no more":               {have: with(ordinary, 30), left: ptr(with(ordinary, 30)), original: &none, want: ordinary, plan: ordinary},
	} {
		j := &armJob{want: tc.want, left: tc.left, original: tc.original}
		got := j.plan(tc.have)
		if got != tc.plan {
			t.Errorf("%s: %v, want %v", name, got, tc.plan)
		}
		// Set, and looked at again, it is as it should be.
		next := &armJob{want: tc.want}
		if own := j.own(tc.have); own != got {
			next.left, next.original = &got, &own
		}
		if again := next.plan(got); again != got && tc.plan != off(ordinary) {
			t.Errorf("%s: %v, and once more %v", name, got, again)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// armWorld is a watcher with n connections of one namespace to one endpoint, all idle
// and of known processes.
func armWorld(n int) *watcher {
	c := config.Default()
	c.Mode, c.Watch.Mode, c.Arm.Mode = config.Enforce, config.Enforce, config.Enforce
	s := &Supervisor{figures: newFigures(), arms: make(chan []*armJob, 1), log: slog.New(slog.DiscardHandler)}
	s.conf.Store(&c)
	s.override.Store(int32(config.Enforce))
	w := &watcher{s: s, conns: map[verdict.ConnKey]*tracked{}, mayTrace: true}
	sp := &space{key: 1, conns: map[uint64]*tracked{}}
	for i := range n {
		t := &tracked{key: verdict.ConnKey{NS: 1, Cookie: uint64(i + 1)}, space: sp, own: ownership{asked: true, owner: &proc.Owner{Process: proc.Process{PID: 1<<30 + i, Comm: "app"}}}}
		t.conn = tcpstate.Connection{ID: tcpstate.ID{Remote: netip.MustParseAddrPort("10.0.0.1:6379")}, State: tcpstate.Established, Inode: 1, Timer: tcpstate.TimerKeepalive}
		t.conn.Info.LastDataRecv = time.Hour
		w.conns[t.key], sp.conns[t.key.Cookie] = t, t
	}
	return w
}

// armRound lets the watcher ask, and answers by what each socket is said to have.
func armRound(w *watcher, now time.Duration, answer func(*armJob) armResult) (jobs []*armJob) {
	w.arm(now)
	select {
	case jobs = <-w.s.arms:
	default:
		return nil
	}
	var results []armResult
	for _, j := range jobs {
		results = append(results, answer(j))
	}
	w.takeArmed(results)
	return jobs
}

// sockets answers as sockets do.
type sockets map[verdict.ConnKey]keepalive.Options

func (s sockets) set(j *armJob) armResult {
	r := armResult{job: j, before: s[j.key]}
	r.after = j.plan(r.before)
	s[j.key] = r.after
	return r
}

func canariesOf(w *watcher) (n int) {
	for _, t := range w.conns {
		if t.arm.canary && t.arm.state == view.ArmDone {
			n++
		}
	}
	return n
}

func TestACanaryThatCannotBeArmedIsReplaced(t *testing.T) {
	w, have := armWorld(10), sockets{}
	broken := map[verdict.ConnKey]bool{}
	for i := range 20 {
		armRound(w, time.Duration(i+1)*time.Second, func(j *armJob) armResult {
			if j.want.SameTimes(canary) && len(broken) < 3 {
				broken[j.key] = true
			}
			if broken[j.key] {
				return armResult{job: j, err: keepalive.ErrGone}
			}
			return have.set(j)
		})
	}
	if n := canariesOf(w); n != 1 || len(broken) != 3 {
		t.Errorf("%d canaries after %d could not be armed", n, len(broken))
	}
}

// However many different options there are, who is as he should be is left in peace.
func TestManyDifferentOptions(t *testing.T) {
	w, have := armWorld(3*maxOptions), sockets{}
	for _, c := range w.conns {
		if c.key.Cookie%2 == 0 { // stricter ones of its own, each others
			have[c.key] = keepalive.Options{Keepalive: true, Idle: time.Second, Interval: time.Second, Count: 1, RTOMax: time.Duration(c.key.Cookie)}
		}
	}
	for i := range 3 { // all; then the canary; then perhaps the one that was one
		armRound(w, time.Duration(i+1)*time.Second, have.set)
	}
	for i := range 5 {
		if jobs := armRound(w, time.Duration(i+10)*time.Second, have.set); len(jobs) > 0 {
			t.Fatalf("%d connections are armed again", len(jobs))
		}
	}
	if len(w.options) > maxOptions {
		t.Errorf("%d options are kept", len(w.options))
	}
}

// An application that turns keepalive off is seen to, is not argued with, and is not
// a canary any more.
func TestAnApplicationTurnsItOff(t *testing.T) {
	w, have := armWorld(3), sockets{}
	now := time.Second
	round := func() []*armJob {
		now += time.Second
		return armRound(w, now, have.set)
	}
	round()
	var one *tracked
	for _, c := range w.conns {
		if c.arm.canary {
			one = c
		}
	}
	if one == nil {
		t.Fatal("there is no canary")
	}
	have[one.key] = keepalive.Options{}
	one.conn.Timer, one.seen = tcpstate.TimerNone, monotonic()
	round()
	if one.arm.state != view.ArmLeft || one.arm.why == "" || have[one.key].Keepalive {
		t.Errorf("it is %s (%s), and has %v", one.arm.state, one.arm.why, have[one.key])
	}
	for range 40 {
		round()
	}
	if n := canariesOf(w); n != 1 || one.arm.canary || have[one.key].Keepalive {
		t.Errorf("%d canaries, that one: %v, it has %v", n, one.arm.canary, have[one.key])
	}
}

// What was decided by another config, or before the mode was lowered, is not done.
func TestAStaleJobIsNotDone(t *testing.T) {
	w := armWorld(1)
	w.s.opt.DisablePath = t.TempDir() + "/disable"
	w.arm(time.Second)
	j := (<-w.s.arms)[0]
	stale := func(when string) {
		t.Helper()
		r := w.s.armOne(j, new(*netns.Thread), func() bool { return false })
		if r.err != errStale {
			t.Errorf("%s: %v", when, r.err)
		}
		w.takeArmed([]armResult{r})
	}
	if r := w.s.armOne(j, new(*netns.Thread), func() bool { return false }); r.err == nil || r.err == errStale {
		t.Errorf("a socket that is nowhere: %v", r.err)
	}
	w.s.override.Store(int32(config.Observe))
	stale("the mode is observe")
	w.s.override.Store(int32(config.Enforce))
	other := *w.s.config()
	other.Exclude.Commands = []string{"app"}
	w.s.conf.Store(&other)
	stale("there is another config")
	for _, c := range w.conns {
		if c.arm.asked || c.arm.state == view.ArmFailed {
			t.Errorf("it is not asked for again: %+v", c.arm)
		}
	}
}

// That a right is missing is told once, however connections come and go, and that it is
// over when nobody has been denied for a while, or arming is off.
func TestDeniedIsToldOnce(t *testing.T) {
	w := armWorld(3)
	hub := event.NewHub(100)
	w.s.opt.Hub = hub
	types := func() (list []verdict.EventType) {
		for _, r := range hub.Last(100) {
			list = append(list, r.Type)
		}
		return list
	}
	denied := true
	now := time.Second
	rounds := func(n int) {
		for range n {
			now += time.Second
			armRound(w, now, func(j *armJob) armResult {
				if denied {
					return armResult{job: j, err: keepalive.ErrNotPermitted}
				}
				return sockets{}.set(j)
			})
			for _, c := range w.conns {
				if c.arm.again = 0; int(now/time.Second)%5 == 0 { // here is another one
					c.arm = armed{}
				}
			}
		}
	}
	rounds(100)
	if got := types(); len(got) != 1 || got[0] != event.ArmFailed {
		t.Errorf("told: %v", got)
	}
	denied = false
	rounds(30)
	if got := types(); len(got) != 1 {
		t.Errorf("half a minute later: %v", got)
	}
	rounds(60)
	if got := types(); len(got) != 2 || got[1] != event.ArmResumed {
		t.Errorf("a minute and a half later: %v", got)
	}
	denied = true
	rounds(10)
	off := *w.s.config()
	off.Arm.Mode = config.Off
	w.s.conf.Store(&off)
	rounds(1)
	if got := types(); len(got) != 4 || got[3] != event.ArmResumed {
		t.Errorf("denied again, and off: %v", got)
	}
}
