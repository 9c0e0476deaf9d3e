package armer

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// world is a planner with connections, all idle and of known processes.
type world struct {
	Planner
	in     policy.Inputs
	conns  map[verdict.ConnKey]*Conn
	events []event.Event
}

func (w *world) policy() *policy.Policy { return policy.New(w.in, nil) }

// newWorld has n connections of one namespace to one endpoint.
func newWorld(n int) *world {
	c := config.Default()
	c.Mode, c.Watch.Mode, c.Arm.Mode = config.Enforce, config.Enforce, config.Enforce
	w := &world{in: policy.Inputs{Config: &c, Override: config.Enforce}, conns: map[verdict.ConnKey]*Conn{}}
	w.MayTrace, w.Figures = true, figures.New()
	w.Publish = func(e event.Event) { w.events = append(w.events, e) }
	for i := range n {
		w.add(1, uint64(i+1), 1<<30+i, netip.MustParseAddrPort("10.0.0.1:6379"))
	}
	return w
}

func (w *world) add(ns verdict.NS, cookie uint64, pid int, endpoint netip.AddrPort) *Conn {
	k := &Conn{
		Key: verdict.ConnKey{NS: ns, Cookie: cookie}, NS: &netns.Namespace{Name: fmt.Sprint(ns)},
		Holder: &policy.Holder{Asked: true, Owner: &proc.Owner{Process: proc.Process{PID: pid, Comm: "app"}}},
		TCP:    &tcpstate.Connection{ID: tcpstate.ID{Remote: endpoint}, State: tcpstate.Established, Inode: 1, Timer: tcpstate.TimerKeepalive},
	}
	k.TCP.Info.LastDataRecv = time.Hour
	w.conns[k.Key] = k
	return k
}

// round has the planner ask, and answers by what each socket is said to have.
func (w *world) round(now time.Duration, answer func(*Job) Result) []*Job {
	if !w.Due(now) {
		return nil
	}
	jobs := w.Round(now, w.policy(), maps.Values(w.conns))
	var results []Result
	for _, j := range jobs {
		results = append(results, answer(j))
	}
	w.Apply(now, results)
	return jobs
}

// sockets answers as sockets do.
type sockets map[verdict.ConnKey]keepalive.Options

func (s sockets) set(j *Job) Result {
	r := Result{Job: j, Before: s[j.Key]}
	r.After = j.Memory.Plan(r.Before, j.Want)
	s[j.Key] = r.After
	return r
}

// However many different options there are, a connection that has the wanted ones is left alone.
func TestManyDifferentOptions(t *testing.T) {
	w, have := newWorld(3*maxOptions), sockets{}
	for _, c := range w.conns {
		if c.Key.Cookie%2 == 0 { // stricter ones of its own, each others
			have[c.Key] = keepalive.Options{Keepalive: true, Idle: time.Second, Interval: time.Second, Count: 1, RTOMax: time.Duration(c.Key.Cookie)}
		}
	}
	for i := range 3 {
		w.round(time.Duration(i+1)*time.Second, have.set)
	}
	for i := range 5 {
		if jobs := w.round(time.Duration(i+10)*time.Second, have.set); len(jobs) > 0 {
			t.Fatalf("%d connections are armed again", len(jobs))
		}
	}
	if len(w.options) > maxOptions {
		t.Errorf("%d options are kept", len(w.options))
	}
}

// An application that turns keepalive off is seen to, and is not argued with.
func TestAnApplicationTurnsItOff(t *testing.T) {
	w, have := newWorld(3), sockets{}
	now := time.Second
	round := func() []*Job {
		now += time.Second
		return w.round(now, have.set)
	}
	round()
	one := w.conns[verdict.ConnKey{NS: 1, Cookie: 1}]
	have[one.Key] = keepalive.Options{}
	one.TCP.Timer, one.Seen = tcpstate.TimerNone, now+1
	round()
	if one.state != view.ArmLeft || one.why == "" || have[one.Key].Keepalive {
		t.Errorf("it is %s (%s), and has %v", one.state, one.why, have[one.Key])
	}
	for range 40 {
		round()
	}
	if have[one.Key].Keepalive {
		t.Errorf("later it has %v", have[one.Key])
	}
}

// What was decided by another config, or before the mode was lowered, is not done.
func TestAStaleJobIsNotDone(t *testing.T) {
	w := newWorld(1)
	a := New(Config{Policy: w.policy, Log: slog.New(slog.DiscardHandler)})
	j := w.Round(time.Second, w.policy(), maps.Values(w.conns))[0]
	one := func() Result { return a.one(j, new(*netns.Thread), func() bool { return false }) }
	stale := func(when string) {
		t.Helper()
		r := one()
		if r.Err != ErrStale {
			t.Errorf("%s: %v", when, r.Err)
		}
		w.Apply(time.Second, []Result{r})
	}
	if r := one(); r.Err == nil || r.Err == ErrStale {
		t.Errorf("a socket that is nowhere: %v", r.Err)
	}
	w.in.Override = config.Observe
	stale("the mode is observe")
	w.in.Override, w.in.Switch = config.Enforce, true
	stale("the off switch is there")
	w.in.Switch = false
	other := *w.in.Config
	other.Exclude.Commands = []string{"app"}
	w.in.Config = &other
	stale("there is another config")
	for _, k := range w.conns {
		if k.asked || k.state == view.ArmFailed {
			t.Errorf("it is not asked for again: %+v", k)
		}
	}
}

// That a right is missing is told once, however connections come and go, and that it is
// over when nobody has been denied for a while, or arming is off.
func TestDeniedIsToldOnce(t *testing.T) {
	w := newWorld(3)
	types := func() (list []verdict.EventType) {
		for _, e := range w.events {
			list = append(list, e.Type)
		}
		return list
	}
	denied := true
	now := time.Second
	rounds := func(n int) {
		for range n {
			now += time.Second
			w.round(now, func(j *Job) Result {
				if denied {
					return Result{Job: j, Err: keepalive.ErrNotPermitted}
				}
				return sockets{}.set(j)
			})
			for _, c := range w.conns {
				if c.again = 0; int(now/time.Second)%5 == 0 { // here is another one
					*c = *newWorld(1).conns[verdict.ConnKey{NS: 1, Cookie: 1}]
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
	w.in.Config.Arm.Mode = config.Off
	rounds(1)
	if got := types(); len(got) != 4 || got[3] != event.ArmResumed {
		t.Errorf("denied again, and off: %v", got)
	}
}

// One whose process has the socket's lock is not armed.
func TestABlockedConnectionIsNotArmed(t *testing.T) {
	w, have := newWorld(2), sockets{}
	blocked := w.conns[verdict.ConnKey{NS: 1, Cookie: 1}]
	blocked.Blocked = true
	for i := range 3 {
		w.round(time.Duration(i+1)*time.Second, have.set)
	}
	if state, why := blocked.armable(); state != view.ArmWaiting || why == "" || have[blocked.Key].Keepalive {
		t.Errorf("it is %s (%s), and has %v", state, why, have[blocked.Key])
	}
}

// A round of arming on a node with 10,000 connections in 50 namespaces to 4
// endpoints, all of which are armed.
func BenchmarkNothingNew(b *testing.B) {
	w := newWorld(0)
	o := Options(w.in.Config)
	for i := range 10_000 {
		k := w.add(verdict.NS(i/200+1), uint64(i), i/50+2, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i % 4)}), 6379))
		k.TCP.Timer = tcpstate.TimerNone
		k.state, k.options, k.want, k.memory.Original = view.ArmDone, w.share(o), w.share(o), &keepalive.Options{}
		k.memory.Left = k.options
	}
	now := time.Second
	p := w.policy()
	for _, j := range w.Round(now, p, maps.Values(w.conns)) {
		j.conn.asked, j.conn.want = false, w.share(j.Want)
	}
	b.ReportAllocs()
	for b.Loop() {
		now += roundEvery
		if len(w.Round(now, p, maps.Values(w.conns))) > 0 {
			b.Fatal("there is something new")
		}
	}
}
