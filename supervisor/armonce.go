package supervisor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/redisguard/redisguard/internal/patient"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// ArmPlan is what arming would do to one connection now.
type ArmPlan struct {
	NS    netns.Namespace
	TCP   tcpstate.Connection
	Owner *proc.Owner // nil if it is not known
	// State is armed for one that is by a daemon already, planned for one that
	// would be.
	State  view.ArmState
	Why    string // it would not be
	Canary bool
	// Now and Then are its options, and would be; zero if they could not be read.
	Now, Then keepalive.Options
}

// PlanArming looks once at this node, without a daemon, and says what arming would
// do. Options are read, and nothing is set. seen says that namespaces could be
// listed completely.
func PlanArming(ctx context.Context, opt Options) (plans []ArmPlan, seen error, err error) {
	err = once(opt, func(s *Supervisor, thread *netns.Thread) (err error) {
		plans, seen, err = s.planArming(ctx, thread)
		return err
	})
	return plans, seen, err
}

func (s *Supervisor) planArming(ctx context.Context, thread *netns.Thread) (list []ArmPlan, seen, err error) {
	spaces, seen, err := s.lookOnce(ctx, thread)
	if err != nil {
		return nil, seen, err
	}
	var conns []*tracked
	for i := range spaces {
		conns = append(conns, spaces[i].conns...)
	}
	known := map[verdict.ConnKey]*tracked{}
	for _, t := range conns {
		known[t.key] = t
	}
	c := s.config()
	ordinary, asCanary := armOptions(c), canaryOptions(c)
	var ask []*armResult
	read := map[*tracked]*armResult{}
	for _, t := range conns {
		if state, _ := t.armable(); state == "" {
			read[t] = &armResult{job: t.armJob(c, ordinary, true)}
			ask = append(ask, read[t])
		}
	}
	for i, got := range readOnce(ctx, ask) {
		t := known[ask[i].job.key]
		if ask[i].err = got.err; got.err != nil {
			t.arm.state = view.ArmFailed
			continue
		}
		t.conn.Info = got.info
		r := ask[i]
		r.before, r.after = got.options, got.options
		t.arm.options = &r.before
		t.arm.canary = r.before.SameTimes(canary) // a daemon's
	}
	if c.Arm.Canary {
		new(picker).pick(slices.Values(conns), &asCanary, nil)
	}
	for _, t := range conns {
		p := ArmPlan{NS: t.space.ns, TCP: t.conn, Owner: t.own.owner}
		if r := read[t]; r == nil {
			p.State, p.Why = t.armable()
		} else {
			if t.arm.canary {
				r.job = t.armJob(c, asCanary, true)
			}
			p.State, _, p.Why = r.outcome()
			if r.err == nil {
				p.Canary, p.Now, p.Then = t.arm.canary, r.before, r.job.plan(r.before)
			}
		}
		list = append(list, p)
	}
	return list, seen, nil
}

// onceRead is what was read of a connection.
type onceRead struct {
	info    tcpstate.Info
	options keepalive.Options
	err     error
}

// maxHeldOnce is how many sockets may hold us up before no more are read.
const maxHeldOnce = 8

// readOnce reads TCP_INFO and options, both under the socket's lock, by somebody who can
// be given up.
func readOnce(ctx context.Context, list []*armResult) []onceRead {
	all := make([]onceRead, 0, len(list))
	for held := 0; len(all) < len(list) && ctx.Err() == nil; {
		if held == maxHeldOnce {
			all = append(all, onceRead{err: fmt.Errorf("not read: %d others do not let their sockets be reached", held)})
			continue
		}
		rest := list[len(all):]
		its := make([]onceRead, len(rest))
		var thread *netns.Thread
		r := patient.New(len(rest), func(i int) {
			j, o := rest[i].job, &its[i]
			var k *tcpstate.Connection
			if k, o.err = j.look(&thread, (*tcpstate.Socket).Get); o.err == nil {
				o.info = k.Info
				socket := j.socket
				socket.Remote = netip.AddrPort{} // the look was by it
				o.options, o.err = keepalive.Read(socket)
			}
		})
		go func() {
			r.Do()
			if thread != nil {
				thread.Close()
			}
		}()
		done := r.Await(ctx, armPatience)
		if all = append(all, its[:done]...); done < len(rest) {
			held++
			all = append(all, onceRead{err: errHeld})
		}
	}
	for len(all) < len(list) {
		all = append(all, onceRead{err: ctx.Err()})
	}
	return all
}
