package attribution

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/probe"
	"github.com/redisguard/redisguard/proc"
)

const (
	// askTimeout bounds a connect, and then a reply: both stay within the node.
	askTimeout = 250 * time.Millisecond
	// maxAsks is how many listening sockets are asked in one pass, all at once; the rest
	// waits for the next one. Passes take a fifth of the time at most, with what is
	// waited for here.
	maxAsks = 16
	// askTries is how often one is asked that does not answer, a second and more apart: a
	// server may be busy. After that it could not be told, as for one that withholds its
	// answer, and it is asked again after askLater.
	askTries = 3
	askLater = 10 * time.Minute
	// maxAsked bounds what is remembered; only time is lost with it.
	maxAsked = 10_000
)

// listening names a listening socket, with the process that was found to have it.
type listening struct {
	ns    netns.ID
	inode uint64
	pid   int
	start uint64
}

// asked is what came of asking one.
type asked struct {
	reply policy.Reply
	tries int
	at    time.Duration
}

// question is one that is to be asked.
type question struct {
	key      listening
	l        *policy.Listener
	suggests string
	ns       netns.Namespace
}

// due says whether a listening socket is to be asked now.
func (a *asked) due(now time.Duration) bool {
	switch {
	case a.tries == 0 || a.reply.Pending:
		return true
	case a.reply.Redis == policy.CouldNotTell:
		return now-a.at >= askLater
	}
	return false
}

// note takes in an answer, of a process that is so old. It is pure.
func (a *asked) note(answer probe.Answer, id *probe.Identity, q *question, age time.Duration, now time.Duration) {
	a.tries, a.at = a.tries+1, now
	r := policy.Reply{Asked: true, Redis: policy.CouldNotTell}
	switch answer {
	case probe.Told:
		said := policy.Said{Executable: id.Executable, PID: id.PID, Uptime: id.Uptime}
		r.Redis, r.Why = policy.Identify(&said, &q.l.Owner.Process, age)
	case probe.OtherSpeech:
		r.Redis, r.Why = policy.No, "speaks another protocol"
	case probe.Withheld:
		r.Why = "answers as Redis, but wants a password before it says who it is"
		if proc.ParseTitle(q.l.Owner.Process.Title).Port == q.l.Addr.Port() {
			// Its title has the form that only Redis sets, and names this very port.
			r.Redis, r.Why = policy.Yes, "answers as Redis, and has the title "+proc.Safe(q.l.Owner.Process.Title)
		}
	case probe.HungUp:
		r.Why = "hung up when asked, as TLS servers do"
	case probe.Unanswered:
		r.Why, r.Pending = "did not answer when asked", a.tries%askTries != 0
	default:
		r.Why, r.Pending = "could not be asked", a.tries%askTries != 0
	}
	r.Why += " and " + q.suggests
	a.reply = r
}

// ask completes listeners with what came of asking them, where something suggests Redis:
// at most maxAsks are asked anew. An error is one of the thread.
func (l *Loop) ask(ctx context.Context, t *netns.Thread, p *policy.Policy, spaces map[netns.ID]netns.Namespace, listeners map[netns.ID][]policy.Listener) error {
	now := sys.Monotonic()
	var list []*question
	for id, all := range listeners {
		for i := range all {
			x := &all[i]
			suggests := p.Asks(x, all)
			if suggests == "" {
				continue
			}
			if r, leave := p.LeaveUnasked(x); leave {
				r.Why += ", and " + suggests
				x.Reply = r
				continue
			}
			o := &x.Owner.Process
			q := &question{key: listening{id, x.Inode, o.PID, o.StartTime}, l: x, suggests: suggests, ns: spaces[id]}
			if a := l.known[q.key]; !a.due(now) {
				x.Reply = a.reply
				continue
			}
			if x.Reply = (policy.Reply{Pending: true, Why: "is being asked whether it is Redis and " + suggests}); len(list) < maxAsks {
				list = append(list, q)
			}
		}
	}
	answers := make([]probe.Answer, len(list))
	ids := make([]probe.Identity, len(list))
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, q := range list {
		s, err := probe.In(t, q.ns, reach(q.l.Addr, l.known[q.key].tries), probe.Config{Timeout: askTimeout, Mark: p.Config.Probe.Mark})
		switch {
		case errors.Is(err, netns.ErrStranded):
			return err
		case err != nil:
			continue
		}
		wg.Go(func() { answers[i], ids[i] = s.Identify(ctx) })
	}
	wg.Wait()
	for i, q := range list {
		l.Figures.Questions.Add(1)
		a := l.known[q.key]
		a.note(answers[i], &ids[i], q, age(q.l.Owner.Process.StartTime), now)
		q.l.Reply = a.reply
		if len(l.known) >= maxAsked {
			clear(l.known)
		}
		l.known[q.key] = a
		l.Log.Debug("asked a listening socket who it is", "namespace", q.ns, "address", q.l.Addr, "process", proc.Safe(q.l.Owner.Process.Comm), "pid", q.l.Owner.Process.PID, "redis", a.reply.Redis.String(), "why", a.reply.Why)
	}
	return nil
}

// reach is where a listening socket can be reached from within its namespace. A wildcard of
// IPv6 may be of that alone, or in a namespace that has no address of it: in turns.
func reach(at netip.AddrPort, tries int) netip.AddrPort {
	switch {
	case at.Addr() == netip.IPv4Unspecified(), at.Addr().IsUnspecified() && tries%2 == 1:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	case at.Addr().IsUnspecified():
		return netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
	}
	return at
}

// ticks is USER_HZ, in which /proc counts, on all architectures of today.
const ticks = 100

// age is how old a process is that was started so many ticks after boot.
func age(start uint64) time.Duration {
	return sys.Boottime() - time.Duration(start)*(time.Second/ticks)
}
