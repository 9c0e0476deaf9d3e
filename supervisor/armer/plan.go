package armer

import (
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	// roundEvery is how often it is looked whom to arm: new connections have up to two
	// seconds.
	roundEvery = time.Second
	// deniedFor is for how long no process must be denied to us for that to be over:
	// connections come and go.
	deniedFor = time.Minute
	// retryEvery is how soon it is tried again where it failed.
	retryEvery = 30 * time.Second
	// atOnce bounds what is asked for at a time; the rest has its turn a second later.
	// Each takes some 3 us.
	atOnce = 20_000
	// maxOptions bounds the different options that are shared.
	maxOptions = 1000
)

// ErrBlocked says that a process does not let its socket be reached: the kernel waits for
// the socket's lock.
var ErrBlocked = errors.New("its process does not let the socket be reached")

// Conn is a watched connection as arming sees it. Its owner keeps the exported fields
// true; the rest is the planner's.
type Conn struct {
	Key verdict.ConnKey
	NS  *netns.Namespace
	// TCP is what it was when it was last looked at, at Seen.
	TCP    *tcpstate.Connection
	Seen   time.Duration
	Holder *policy.Holder
	// Refusal is why it may not be touched, if so.
	Refusal policy.Refusal
	// Blocked says that its process has the socket's lock.
	Blocked bool

	state   view.ArmState
	why     string
	options *keepalive.Options // as last read, at checked; nil before; shared, see share
	want    *keepalive.Options // as last asked for
	memory  keepalive.Memory   // its options are shared, too
	checked time.Duration
	asked   bool          // under way
	lost    bool          // it is not where its owner had it
	denied  bool          // for want of a right, or of a system call
	again   time.Duration // not before
}

// View is a copy for others.
func (c *Conn) View() view.Arm {
	v := view.Arm{State: c.state, Why: c.why}
	if c.options != nil {
		v.Meaning = c.options.String()
		if c.state == view.ArmPlanned {
			v.Meaning += "; would be " + c.want.String()
		}
	}
	return v
}

// Lost says that it is not where its holder had it: another descriptor, or another
// process, may have it by now. Found takes that back.
func (c *Conn) Lost() bool { return c.lost }

// Found says that its holder was looked for again.
func (c *Conn) Found() { c.lost = false }

// Socket is where its holder, which must be known, has it.
func (c *Conn) Socket() keepalive.Socket {
	o := c.Holder.Owner
	return keepalive.Socket{PID: o.Process.PID, FD: o.FD, Cookie: c.Key.Cookie, Remote: c.TCP.Remote}
}

// armable says why a connection is not to be armed: nothing, if it is.
func (c *Conn) armable() (view.ArmState, string) {
	switch {
	case c.Blocked:
		return view.ArmWaiting, ErrBlocked.Error()
	case c.TCP.State != tcpstate.Established:
		return view.ArmWaiting, "it is not connected yet, or closing"
	case !c.Holder.Asked:
		return view.ArmWaiting, "its process is not known"
	case c.Refusal.Refused():
		return view.ArmExempt, c.Refusal.Why
	case c.Holder.Owner == nil:
		return view.ArmWaiting, "its process is not known"
	}
	return "", ""
}

// unowned says that no process was found that has it.
func (c *Conn) unowned() bool {
	return c.Holder.Asked && c.Holder.Owner == nil && c.TCP.Inode != 0 && c.TCP.State == tcpstate.Established
}

// disarmed says that a look since it was armed shows no timer, which a connection with
// keepalive always has: its application has turned that off.
func (c *Conn) disarmed() bool {
	return c.state == view.ArmDone && c.options.Keepalive && c.Seen > c.checked && c.TCP.Timer == tcpstate.TimerNone
}

// Options are those of the config.
func Options(c *config.Config) keepalive.Options {
	return keepalive.Options{
		Keepalive: true, Idle: c.Arm.KeepaliveIdle, Interval: c.Arm.KeepaliveInterval, Count: c.Arm.KeepaliveCount,
		UserTimeout: c.Arm.UserTimeout, RTOMax: c.Arm.RTOMax,
	}
}

// Planner decides whom to arm, and how. It is for one goroutine at a time, which is
// handed the results of the jobs, too. Its zero value is ready.
type Planner struct {
	// MayTrace says that we have CAP_SYS_PTRACE.
	MayTrace bool
	// Publish passes an event on.
	Publish func(event.Event)
	Figures *figures.Set

	last, next time.Duration
	told       bool                                     // that some cannot be armed
	deniedAt   time.Duration                            // when some could not be
	options    map[keepalive.Options]*keepalive.Options // see share
}

// share returns one place for equal options: thousands of connections have the same.
func (p *Planner) share(o keepalive.Options) *keepalive.Options {
	if x := p.options[o]; x != nil {
		return x
	}
	x := new(keepalive.Options)
	*x = o
	if p.options == nil {
		p.options = map[keepalive.Options]*keepalive.Options{}
	}
	if len(p.options) < maxOptions { // a process that invents more costs a few bytes each
		p.options[o] = x
	}
	return x
}

// Reset forgets all connections; the finding about those that cannot be armed has ended.
func (p *Planner) Reset() {
	p.told = false
}

// Due says whether it is time for a round.
func (p *Planner) Due(now time.Duration) bool { return now >= p.next }

// Round returns what is to be done about the connections now.
func (p *Planner) Round(now time.Duration, pol *policy.Policy, conns iter.Seq[*Conn]) []*Job {
	p.last, p.next = now, now+roundEvery
	if pol.Most(policy.Arm) == config.Off {
		p.publishDenied(0, "", true)
		return nil
	}
	c := pol.Config
	want := p.share(Options(c))
	var jobs []*Job
	denied, why := 0, ""
	for k := range conns {
		switch {
		case k.denied:
			denied, why = denied+1, k.why
		case !p.MayTrace && k.unowned():
			denied++
		}
		if k.asked || now < k.again {
			continue
		}
		if state, why := k.armable(); state != "" {
			k.state, k.why, k.denied = state, why, false
			if k.memory.Original != nil {
				k.why += "; it was armed before"
			}
			continue
		}
		mode, off := pol.ModeAt(policy.Arm, k.TCP.Remote)
		if mode == config.Off {
			k.state, k.why, k.denied = view.ArmExempt, off.Text, false
			continue
		}
		settled := k.want != nil && *k.want == *want &&
			(k.state == view.ArmDone || k.state == view.ArmLeft || k.state == view.ArmPlanned && mode != config.Enforce)
		if settled && k.disarmed() {
			settled, k.again = false, now+retryEvery
		}
		if settled || len(jobs) == atOnce {
			continue
		}
		jobs = append(jobs, k.job(c, *want, mode != config.Enforce))
		k.asked = true
	}
	p.publishDenied(denied, why, false)
	return jobs
}

// NotQueued says that jobs were not taken: their turn comes again.
func (p *Planner) NotQueued(jobs []*Job) {
	for _, j := range jobs {
		j.conn.asked = false
	}
}

// publishDenied tells that connections cannot be armed, and when that is over.
func (p *Planner) publishDenied(denied int, why string, off bool) {
	switch {
	case denied > 0 && !p.told:
		p.told, p.deniedAt = true, p.last
		text := keepalive.Obstacle()
		if why != "" {
			text += " (" + why + ")"
		}
		p.Publish(event.Event{Type: event.ArmFailed, Text: fmt.Sprintf("%d connections cannot be armed: %s", denied, text)})
	case denied > 0:
		p.deniedAt = p.last
	case p.told && (off || p.last-p.deniedAt >= deniedFor):
		p.told = false
		text := "no connection has been without arms for want of a right for a while"
		if off {
			text = "arming is off"
		}
		p.Publish(event.Event{Type: event.ArmResumed, Text: text})
	}
}

// Apply takes in what became of jobs.
func (p *Planner) Apply(now time.Duration, results []Result) {
	n := map[figures.ArmOutcome]int64{}
	for i := range results {
		r := &results[i]
		k := r.Job.conn
		if errors.Is(r.Err, ErrStale) {
			k.asked = false // and is asked for anew
			continue
		}
		state, outcome, why := r.outcome()
		n[outcome]++
		k.asked = false
		k.want, k.state, k.why = p.share(r.Job.Want), state, why
		k.denied = outcome == figures.ArmNotPermitted || outcome == figures.ArmNotSupported
		if r.Err != nil {
			k.again = now + retryEvery
			k.lost = outcome == figures.ArmGone
			continue
		}
		k.options, k.checked = p.share(r.After), now
		own := r.Job.Memory.Own(r.Before)
		k.memory = keepalive.Memory{TurnedOff: r.Job.Memory.Refused(r.Before)}
		if own != r.After {
			k.memory.Left, k.memory.Original = k.options, p.share(own)
		}
	}
	p.Figures.Arm(n)
}

// outcome puts into words what became of a job.
func (r *Result) outcome() (state view.ArmState, outcome figures.ArmOutcome, why string) {
	if r.Err != nil {
		outcome = figures.ArmError
		switch {
		case errors.Is(r.Err, keepalive.ErrGone), errors.Is(r.Err, keepalive.ErrOther):
			outcome = figures.ArmGone
		case errors.Is(r.Err, keepalive.ErrNotPermitted):
			outcome = figures.ArmNotPermitted
		case errors.Is(r.Err, keepalive.ErrNotSupported):
			outcome = figures.ArmNotSupported
		case errors.Is(r.Err, keepalive.ErrNotTaken):
			outcome = figures.ArmNotTaken
		case errors.Is(r.Err, ErrBlocked):
			outcome = figures.ArmBlocked
		}
		return view.ArmFailed, outcome, r.Err.Error()
	}
	j := r.Job
	switch {
	case r.Before != r.After:
		outcome = figures.ArmSet
	case j.Dry && j.Memory.Plan(r.Before, j.Want) != r.Before:
		return view.ArmPlanned, figures.ArmObserved, ""
	default:
		outcome = figures.ArmLeftAlone
	}
	switch {
	case r.After.SameTimes(j.Want):
		return view.ArmDone, outcome, ""
	case j.Memory.Refused(r.Before):
		why = "its application has turned keepalive off again"
	case r.After.Fragile(j.Want):
		why = fmt.Sprintf("with its TCP_USER_TIMEOUT of %v keepalive would end it at the first unanswered probe", r.After.UserTimeout)
	}
	return view.ArmLeft, outcome, why
}
