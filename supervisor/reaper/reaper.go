// Package reaper ends connections: after a last look, and only what that look allows.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/redisguard/redisguard/internal/abandon"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// patience is how long a call about one socket may take before it is abandoned: as long
// as the watcher waits for a namespace.
const patience = 200 * time.Millisecond

// progress is how recently a connection was heard that makes progress.
const progress = time.Second

// ErrBlocked says that the process of a connection does not let its socket be reached.
var ErrBlocked = errors.New("its process does not let the socket be reached")

// Target is a connection that is to be ended.
type Target struct {
	ID tcpstate.ID
	// Socket is where its process has it, nil if that is not known. It is the way out
	// where the kernel cannot destroy.
	Socket *keepalive.Socket
}

// The reasons to spare a connection that the core has to know of.
var (
	// ErrHeard: it has made progress.
	ErrHeard = errors.New("its peer was heard since the verdict")
	// ErrBatch: another one that was to be ended by the same verdict has.
	ErrBatch = errors.New("another connection of the same verdict was heard since")
)

// Decide says by the last looks at the targets what becomes of them, in results, which are
// empty. One whose outcome stays so is ended.
type Decide func(looks []tcpstate.Result, results []Result)

// Result is what became of a target. Why is nil where there is nothing to say.
type Result struct {
	Outcome verdict.ReapOutcome
	Why     error
}

// Blocked are targets, by their indices, that could not be reached because a process has
// the lock of one of their sockets, until Free is closed.
type Blocked struct {
	Targets []int
	Free    <-chan struct{}
}

// Reap looks at each of the targets, all in one namespace, once more, and ends those that
// decide lets be ended. Between the look and the end lie some ten microseconds each. No
// call is made after one that did not return, whatever was decided. An error is about the
// namespace or the thread; the results of those that were not reached are failures with
// it. blocked is nil if none was.
func Reap(w *tcpstate.Worker, ns netns.Namespace, targets []Target, decide Decide) (results []Result, blocked *Blocked, err error) {
	results = make([]Result, len(targets))
	ids := make([]tcpstate.ID, len(targets))
	for i := range targets {
		ids[i] = targets[i].ID
	}
	looks := make([]tcpstate.Result, len(ids))
	visits := []tcpstate.Visit{{NS: ns, IDs: ids, Results: looks}}
	if _, free := w.Make(visits, patience); free != nil {
		all := make([]int, len(targets))
		for i := range all {
			all[i] = i
		}
		return fail(results, ErrBlocked), &Blocked{all, free}, nil
	}
	if err := visits[0].Err; err != nil {
		return fail(results, err), nil, err
	}
	var at []int
	visits = nil
	decide(looks, results)
	for i := range looks {
		if results[i].Outcome == "" {
			at = append(at, i)
			visits = append(visits, tcpstate.Visit{NS: ns, Do: func(s *tcpstate.Socket) error { return destroy(s, ids[i]) }})
		}
	}
	done, free := w.Make(visits, patience)
	for j, i := range at {
		r := &results[i]
		switch {
		case j >= done:
			r.Outcome, r.Why = verdict.ReapFailed, ErrBlocked
		case visits[j].Err == nil:
			r.Outcome = verdict.ReapDone
		case errors.Is(visits[j].Err, tcpstate.ErrGone):
			r.Outcome = verdict.ReapGone
		case errors.Is(visits[j].Err, tcpstate.ErrNotSupported):
			r.Outcome, r.Why = shutdown(targets[i].Socket)
		default:
			r.Outcome, r.Why = verdict.ReapFailed, visits[j].Err
			if errors.Is(r.Why, netns.ErrStranded) || errors.Is(r.Why, netns.ErrGone) {
				err = r.Why
			}
		}
	}
	if free != nil {
		blocked = &Blocked{at[done : done+1], free}
	}
	return results, blocked, err
}

// destroy ends one connection.
func destroy(s *tcpstate.Socket, id tcpstate.ID) error {
	var err [1]error
	if serr := s.Destroy([]tcpstate.ID{id}, err[:]); serr != nil {
		return serr
	}
	return err[0]
}

// fail makes failures of what has no outcome.
func fail(results []Result, why error) []Result {
	for i := range results {
		if results[i].Outcome == "" {
			results[i] = Result{verdict.ReapFailed, why}
		}
	}
	return results
}

// Fail is what becomes of n targets when nothing can be done.
func Fail(n int, why error) []Result { return fail(make([]Result, n), why) }

// shutdown is the way out where the kernel has no SOCK_DESTROY.
func shutdown(s *keepalive.Socket) (verdict.ReapOutcome, error) {
	if s == nil {
		return verdict.ReapFailed, fmt.Errorf("%w, and its process is not known", tcpstate.ErrNotSupported)
	}
	socket := *s
	socket.Remote = netip.AddrPort{} // the last look was by it
	var err error
	call := abandon.New(1, func(int) { err = keepalive.Shutdown(socket) })
	go call.Do()
	if call.Await(context.Background(), patience) == 0 {
		return verdict.ReapFailed, ErrBlocked // err is the call's
	}
	if err != nil {
		return verdict.ReapFailed, err
	}
	return verdict.ReapDone, nil
}

// LastLooks decides by looks right before reaps that the core has asked for, all in one
// namespace. One that makes progress is a witness against the verdict that its endpoint is
// down, and saves all that were condemned by that.
func LastLooks(looks []tcpstate.Result, list []verdict.Reap, results []Result) {
	now := sys.Monotonic()
	heard := map[netip.AddrPort]bool{}
	for i := range looks {
		r := &results[i]
		r.Outcome, r.Why = lastLook(&looks[i], &list[i], now)
		if errors.Is(r.Why, ErrHeard) && list[i].Evidence.Rule == verdict.RuleDown {
			heard[list[i].Remote] = true
		}
	}
	for i := range looks {
		if r := &results[i]; r.Outcome == "" && heard[list[i].Remote] && list[i].Evidence.Rule == verdict.RuleDown {
			*r = Result{verdict.ReapSpared, ErrBatch}
		}
	}
}

// lastLook decides by a look at now.
func lastLook(look *tcpstate.Result, r *verdict.Reap, now time.Duration) (verdict.ReapOutcome, error) {
	if outcome, why := lastState(look); outcome != "" {
		return outcome, why
	}
	if !r.Live && look.State == tcpstate.Established && r.Heard(Counters(&look.Info), now, look.Info.LastAckRecv) {
		return verdict.ReapSpared, ErrHeard
	}
	return "", nil
}

// Counters are those by which the core tells progress from mere hearing.
func Counters(i *tcpstate.Info) verdict.Counters {
	return verdict.Counters{
		SegsIn: i.SegsIn, DataSegsIn: i.DataSegsIn, Delivered: i.Delivered, BytesReceived: i.BytesReceived, BytesAcked: i.BytesAcked,
	}
}

// ByHand decides by the last look at a connection that a person wants ended.
func ByHand(now *tcpstate.Result, r *view.Reap) (verdict.ReapOutcome, error) {
	if outcome, why := lastState(now); outcome != "" {
		return outcome, why
	}
	// What answers only when it is asked makes no progress: it is idle.
	i := &now.Info
	if heard := min(i.LastDataRecv, max(i.LastDataSent, i.LastAckRecv)); now.State == tcpstate.Established && heard < progress && !r.Force {
		return verdict.ReapSpared, fmt.Errorf("it makes progress: its peer was heard %v ago, and only --force ends it all the same", heard.Round(time.Millisecond))
	}
	if r.DryRun {
		return verdict.ReapDryRun, nil
	}
	return "", nil
}

// lastState is what of the last look holds for every reap.
func lastState(now *tcpstate.Result) (verdict.ReapOutcome, error) {
	switch {
	case errors.Is(now.Err, tcpstate.ErrGone):
		return verdict.ReapGone, nil
	case now.Err != nil:
		return verdict.ReapFailed, now.Err
	case !now.HasInfo:
		return verdict.ReapFailed, errors.New("the kernel tells too little about it")
	case now.State != tcpstate.Established && now.State != tcpstate.SynSent:
		return verdict.ReapSpared, fmt.Errorf("it is in state %v", now.State)
	case now.Inode == 0:
		return verdict.ReapSpared, errors.New("no application holds it any more")
	case now.MPTCP:
		return verdict.ReapSpared, errors.New("it is an MPTCP subflow")
	}
	return "", nil
}
