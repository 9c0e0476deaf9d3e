// Package attribution finds out who holds a connection, and who lives in a network
// namespace. Both are decided here only, and all jobs are handed the same
// answers.
package attribution

import (
	"context"
	"errors"
	"log/slog"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// Subject is a connection whose holder is wanted.
type Subject struct {
	Key   verdict.ConnKey
	NS    netns.Namespace
	ID    tcpstate.ID
	Inode uint32
	UID   uint32

	counted bool // that it was looked for
}

// Answer is what was found out about a subject.
type Answer struct {
	Key    verdict.ConnKey
	Holder policy.Holder

	subject *Subject
}

// Answers are what one pass has found out.
type Answers struct {
	Holders []Answer
	// Occupants are those of the namespaces that were looked into, without what their
	// connections say.
	Occupants map[netns.ID]policy.Occupants
}

const (
	// gather is how long is waited for more subjects to be looked for in the same pass
	// over /proc: clients open their pools in bursts.
	gather = 100 * time.Millisecond
	// share is the share of the time that passes over /proc may take: connections that
	// come and go too fast to be found cost a full one each.
	share = 0.2
	// budget bounds one pass. 100,000 descriptors take some 100 ms; a node where a pass
	// takes longer is told of the rest at the next try.
	budget = 2 * time.Second
	// fullShare is the share of the time that passes may take that ask every process, to
	// know all that have a connection, and fullBudget bounds one of them: a node of 250 pods
	// with 250,000 descriptors takes 0.7 s, and so has one every 35 s at most. Until then
	// the first holder is known, and policy says for whom that is enough.
	fullShare  = 0.02
	fullBudget = 5 * time.Second
	// tries is how often a holder is looked for that cannot be found, retryEvery apart:
	// between connect and the first look the socket may be on its way to another process.
	tries      = 3
	retryEvery = time.Second
	// room is how many batches of subjects may wait.
	room = 64
)

// Config of a Loop. All must be set but for Deliver, without which only Resolve and
// Survey are of use.
type Config struct {
	Policy  func() *policy.Policy
	Proc    proc.FS
	Log     *slog.Logger
	Figures *figures.Set
	// Deliver hands on what was found out.
	Deliver func(context.Context, Answers)
}

// Loop is the attributor. Make one with New. Its methods are safe for concurrent use.
type Loop struct {
	Config
	asked chan []*Subject

	// mu is held for a pass over /proc: two at the same time would cost twice, and find
	// the same.
	mu         sync.Mutex
	socket     tcpstate.Socket
	attributor *proc.Attributor
	users      users
	tried      map[verdict.ConnKey]int // how often, of those that are tried again
	spaces     *spaces
	known      map[listening]asked
	shared     shared
	nextFull   time.Duration // when every process may be asked again
}

// New returns an attributor that has not started.
func New(c Config) *Loop {
	return &Loop{
		Config: c, asked: make(chan []*Subject, room), attributor: proc.NewAttributor(c.Proc), tried: map[verdict.ConnKey]int{},
		spaces: newSpaces(c.Proc), known: map[listening]asked{},
	}
}

// Request has the holders of the subjects looked for. It returns false if too many wait.
func (l *Loop) Request(list []*Subject) bool {
	select {
	case l.asked <- list:
		return true
	default:
		return false
	}
}

// Run looks for holders until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	thread, err := netns.NewThread()
	if err != nil {
		return err
	}
	defer thread.Close()
	var wait []*Subject // to be tried again
	retry, full := time.NewTimer(time.Hour), time.NewTimer(time.Hour)
	retry.Stop()
	full.Stop()
	for {
		var batch []*Subject
		select {
		case <-ctx.Done():
			return nil
		case batch = <-l.asked:
		case <-retry.C:
			batch, wait = wait, nil
		case <-full.C:
		}
		gathered := time.After(gather)
	more:
		for {
			select {
			case b := <-l.asked:
				batch = append(batch, b...)
			case <-gathered:
				break more
			case <-ctx.Done():
				return nil
			}
		}
		// What is waited for the lock, while the tuner has a pass made, costs nothing.
		l.mu.Lock()
		began := sys.Monotonic()
		all := began >= l.nextFull
		if all {
			batch = l.shared.due(batch, began)
		}
		answers, again, err := l.resolve(ctx, thread, batch, all)
		took := sys.Monotonic() - began
		l.mu.Unlock()
		if err != nil {
			return err
		}
		l.Figures.Success(figures.Attributor)
		rest := time.After(time.Duration(float64(took) * (1 - share) / share))
		l.Deliver(ctx, answers)
		if len(again) > 0 {
			if len(wait) == 0 {
				retry.Reset(retryEvery)
			}
			wait = append(wait, again...)
		}
		l.shared.note(answers.Holders, l.Policy().Excludes(), sys.Monotonic())
		if at, ok := l.shared.next(); ok {
			full.Reset(max(0, max(at, l.nextFull)-sys.Monotonic()))
		}
		select {
		case <-rest:
		case <-ctx.Done():
			return nil
		}
	}
}

// Resolve looks for the holders of the subjects, in one pass over /proc, together with
// those of the listening sockets of their namespaces: a process is taken for Redis by
// what it listens on. Every process is asked, so that all holders are known. again are
// those that may be found a little later. An error is one of the thread.
func (l *Loop) Resolve(ctx context.Context, t *netns.Thread, batch []*Subject) (found Answers, again []*Subject, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.resolve(ctx, t, batch, true)
}

func (l *Loop) resolve(ctx context.Context, t *netns.Thread, batch []*Subject, all bool) (found Answers, again []*Subject, err error) {
	want := map[netns.Key][]uint64{}
	in := map[netns.ID][]*Subject{}
	for _, sub := range batch {
		in[sub.NS.ID] = append(in[sub.NS.ID], sub)
	}
	batch = batch[:0:0]
	listeners, spaces := map[netns.ID][]policy.Listener{}, map[netns.ID]netns.Namespace{}
	for id, subs := range in {
		alive, ls, err := l.inspect(t, subs[0].NS, subs)
		switch {
		case errors.Is(err, netns.ErrStranded):
			return Answers{}, nil, err
		case err != nil:
			// Gone, or without a way in just now: it is asked again if the connections
			// are still there.
			l.Log.Debug("cannot look into a namespace for owners", "namespace", subs[0].NS, "error", err)
			continue
		}
		listeners[id], spaces[id] = ls, subs[0].NS
		key := id.Key()
		for _, x := range ls {
			want[key] = append(want[key], x.Inode)
		}
		for _, sub := range alive {
			want[key] = append(want[key], uint64(sub.Inode))
			batch = append(batch, sub)
		}
	}
	if len(batch) == 0 {
		return Answers{}, nil, nil
	}
	owners := l.owners(ctx, want, all)
	p := l.Policy()
	found.Occupants = map[netns.ID]policy.Occupants{}
	for _, ls := range listeners {
		own(ls, owners)
	}
	if err := l.ask(ctx, t, p, spaces, listeners); err != nil {
		return Answers{}, nil, err
	}
	for id, ls := range listeners {
		found.Occupants[id] = l.spaces.listening(id, ls, p)
	}
	for _, sub := range batch {
		if !sub.counted {
			sub.counted = true
			l.Figures.Attributions.Add(1)
		}
		h := policy.Holder{Asked: true, User: l.users.name(sub.UID)}
		if o, ok := owners[uint64(sub.Inode)]; ok {
			h.Owner = &o
			pending := false
			for x := range h.Processes() {
				is, why, wait := p.IsRedis(&x.Process, listeners[sub.NS.ID])
				if pending = pending || wait; is == policy.Yes && h.Redis == "" {
					h.Redis = why
				}
				if uid := x.Process.UID; uid != sub.UID {
					if h.Users == nil {
						h.Users = map[uint32]string{}
					}
					h.Users[uid] = l.users.name(uid)
				}
			}
			delete(l.tried, sub.Key)
			if pending && h.Redis == "" {
				again = append(again, sub) // until then nobody knows whose it is
				continue
			}
		} else if l.tried[sub.Key]++; l.tried[sub.Key] < tries {
			again = append(again, sub)
		} else {
			l.Figures.Unexplained.Add(1)
			delete(l.tried, sub.Key)
		}
		found.Holders = append(found.Holders, Answer{Key: sub.Key, Holder: h, subject: sub})
	}
	return found, again, nil
}

// owners looks for the holders of sockets, within the budget: for one of each, or for all.
func (l *Loop) owners(ctx context.Context, want map[netns.Key][]uint64, all bool) map[uint64]proc.Owner {
	limit, look := budget, l.attributor.Resolve
	if all {
		limit, look = fullBudget, l.attributor.ResolveAll
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := sys.Monotonic()
	owners, stats := look(ctx, want)
	if now := sys.Monotonic(); all {
		l.nextFull = now + time.Duration(float64(now-began)*(1-fullShare)/fullShare)
	}
	if stats.Denied > 0 {
		l.Log.Debug("descriptors of some processes may not be listed", "processes", stats.Denied, "remedy", "CAP_SYS_PTRACE, before Linux 5.14 CAP_DAC_READ_SEARCH, too")
	}
	return owners
}

// own completes listeners with their processes.
func own(ls []policy.Listener, owners map[uint64]proc.Owner) {
	for i := range ls {
		if o, ok := owners[ls[i].Inode]; ok {
			ls[i].Owner = &o
		}
	}
}

// inspect lists the listening TCP sockets of ns, and those of its subjects that are still
// there: the others have no holder, and to look for them costs a full pass.
func (l *Loop) inspect(t *netns.Thread, ns netns.Namespace, subs []*Subject) (alive []*Subject, list []policy.Listener, err error) {
	ids := make([]tcpstate.ID, len(subs))
	for i, sub := range subs {
		ids[i] = sub.ID
	}
	out := make([]tcpstate.Result, len(ids))
	err = l.socket.In(t, ns, func() error {
		if err := l.socket.Peek(ids, out); err != nil {
			return err
		}
		return l.socket.Dump(tcpstate.Filter{States: tcpstate.Mask(tcpstate.Listen)}, func(c *tcpstate.Connection) error {
			list = append(list, policy.Listener{Addr: c.Local, Inode: uint64(c.Inode)})
			return nil
		})
	})
	for i, sub := range subs {
		if out[i].Err == nil && out[i].Inode != 0 {
			alive = append(alive, sub)
		} else {
			delete(l.tried, sub.Key)
		}
	}
	return alive, list, err
}

// users caches the names of users.
type users struct{ names map[uint32]string }

// maxUsers bounds the cache; only speed is lost with it.
const maxUsers = 10_000

// name is the login name of a user of the host, empty if it has none.
func (u *users) name(uid uint32) string {
	if n, ok := u.names[uid]; ok {
		return n
	}
	if u.names == nil || len(u.names) >= maxUsers {
		u.names = map[uint32]string{}
	}
	n := ""
	if found, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		n = found.Username
	}
	u.names[uid] = n
	return n
}
