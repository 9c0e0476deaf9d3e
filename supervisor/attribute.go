package supervisor

import (
	"context"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// subject is a connection whose owner is wanted.
type subject struct {
	key   verdict.ConnKey
	ns    netns.Namespace
	id    tcpstate.ID
	inode uint32
	uid   uint32
}

// answer is what was found out about a subject.
type answer struct {
	key verdict.ConnKey
	own ownership
}

const (
	// attributeGather is how long the attributor waits for more to ask in the
	// same pass over /proc: clients open their pools in bursts.
	attributeGather = 100 * time.Millisecond
	// attributeShare is the share of the time that passes over /proc may take:
	// connections that come and go too fast to be found cost a full one each.
	attributeShare = 0.2
	// attributeBudget bounds one pass. 100,000 descriptors take some 100 ms; a
	// node where a pass takes longer is told of the rest at the next try.
	attributeBudget = 2 * time.Second
	// attributeTries is how often an owner is looked for that cannot be found:
	// between connect and the first look the socket may be on its way to
	// another process.
	attributeTries = 3
	attributeRetry = time.Second
)

// attribute finds owners until ctx ends.
func (s *Supervisor) attribute(ctx context.Context) error {
	thread, err := netns.NewThread()
	if err != nil {
		return err
	}
	defer thread.Close()
	a := s.attribution(thread)
	var wait []*subject
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	for {
		var batch []*subject
		select {
		case <-ctx.Done():
			return nil
		case batch = <-s.ask:
		case <-retry.C:
			batch, wait = wait, nil
		}
		gather := time.After(attributeGather)
	more:
		for {
			select {
			case b := <-s.ask:
				batch = append(batch, b...)
			case <-gather:
				break more
			case <-ctx.Done():
				return nil
			}
		}
		began := monotonic()
		answers, again := a.resolve(ctx, batch)
		s.figures.succeeded(Attributor)
		rest := time.After(time.Duration(float64(monotonic()-began) * (1 - attributeShare) / attributeShare))
		select {
		case s.answered <- answers:
		case <-ctx.Done():
			return nil
		}
		if len(again) > 0 {
			if len(wait) == 0 {
				retry.Reset(attributeRetry)
			}
			wait = append(wait, again...)
		}
		select {
		case <-rest:
		case <-ctx.Done():
			return nil
		}
	}
}

type attribution struct {
	s          *Supervisor
	thread     *netns.Thread
	socket     tcpstate.Socket
	attributor *proc.Attributor
	users      users
	tries      map[verdict.ConnKey]int // of those that are tried again
}

func (s *Supervisor) attribution(thread *netns.Thread) *attribution {
	return &attribution{s: s, thread: thread, attributor: proc.NewAttributor(s.opt.Proc), tries: map[verdict.ConnKey]int{}}
}

// listener is a listening socket of a namespace.
type listener struct {
	port  uint16
	inode uint64
}

// resolve looks for the owners of the subjects, in one pass, together with those
// of the listening sockets of their namespaces: a process is taken for Redis by
// what it listens on.
func (a *attribution) resolve(ctx context.Context, batch []*subject) (answers []answer, again []*subject) {
	want := map[proc.NSKey][]uint64{}
	listeners := map[proc.NSKey][]listener{}
	spaces := map[proc.NSKey][]*subject{}
	for _, sub := range batch {
		key := proc.NSKey{Dev: sub.ns.ID.Dev, Ino: sub.ns.ID.Inode}
		spaces[key] = append(spaces[key], sub)
	}
	batch = batch[:0]
	for key, subs := range spaces {
		alive, ls, err := a.survey(subs[0].ns, subs)
		if err != nil {
			// Gone, or without a way in just now: the watcher asks again if
			// the connections are still there.
			a.s.log.Debug("cannot look into a namespace for owners", "namespace", subs[0].ns, "error", err)
			continue
		}
		listeners[key] = ls
		for _, l := range ls {
			want[key] = append(want[key], l.inode)
		}
		for _, sub := range alive {
			want[key] = append(want[key], uint64(sub.inode))
			batch = append(batch, sub)
		}
	}
	if len(batch) == 0 {
		return nil, nil
	}
	budget, cancel := context.WithTimeout(ctx, attributeBudget)
	defer cancel()
	owners, stats := a.attributor.Resolve(budget, want)
	if stats.Denied > 0 {
		a.s.log.Debug("descriptors of some processes may not be listed", "processes", stats.Denied, "remedy", "CAP_SYS_PTRACE, before Linux 5.14 CAP_DAC_READ_SEARCH, too")
	}
	ports := a.s.config().Watch.Ports
	for _, sub := range batch {
		key := proc.NSKey{Dev: sub.ns.ID.Dev, Ino: sub.ns.ID.Inode}
		ls := listeners[key]
		a.s.stats.attributions.Add(1)
		own := ownership{asked: true, listens: a.redisListens(ls, owners, ports), user: a.users.name(sub.uid)}
		if o, ok := owners[uint64(sub.inode)]; ok {
			own.owner = &o
			own.redis = a.redisItself(&o, ls, owners, ports)
			delete(a.tries, sub.key)
		} else {
			if a.tries[sub.key]++; a.tries[sub.key] < attributeTries {
				again = append(again, sub)
			} else {
				a.s.stats.unexplained.Add(1)
				delete(a.tries, sub.key)
			}
		}
		answers = append(answers, answer{key: sub.key, own: own})
	}
	return answers, again
}

// survey lists the listening TCP sockets of ns, and those of its subjects that are
// still there: nobody holds the others, and to look for them costs a full pass.
func (a *attribution) survey(ns netns.Namespace, subs []*subject) (alive []*subject, list []listener, err error) {
	ids := make([]tcpstate.ID, len(subs))
	for i, sub := range subs {
		ids[i] = sub.id
	}
	out := make([]tcpstate.Result, len(ids))
	err = a.thread.Visit(ns, func() error {
		if err := a.socket.Open(); err != nil {
			return err
		}
		defer a.socket.Close()
		if err := a.socket.Peek(ids, out); err != nil {
			return err
		}
		return a.socket.Dump(tcpstate.Filter{States: tcpstate.Mask(tcpstate.Listen)}, func(c *tcpstate.Connection) error {
			list = append(list, listener{c.Local.Port(), uint64(c.Inode)})
			return nil
		})
	})
	for i, sub := range subs {
		if out[i].Err == nil && out[i].Inode != 0 {
			alive = append(alive, sub)
		} else {
			delete(a.tries, sub.key)
		}
	}
	return alive, list, err
}

// redisItself tells why the owner of a connection is taken for a Redis server.
func (a *attribution) redisItself(o *proc.Owner, ls []listener, owners map[uint64]proc.Owner, watched []uint16) string {
	var mine []uint16
	for _, l := range ls {
		// A child of a server holds its connections too, while its listening
		// socket may be found with the parent: same name, same program.
		if x, ok := owners[l.inode]; ok && (x.Process.PID == o.Process.PID || x.Process.Comm == o.Process.Comm && x.Process.Cgroup == o.Process.Cgroup) {
			mine = append(mine, l.port)
		}
	}
	exe, _ := a.s.opt.Proc.Exe(o.Process.PID)
	if is, why := proc.RedisLike(mine, o.Process.Comm, exe, watched); is {
		return why
	}
	return ""
}

// redisListens says whether any listening socket in the namespace may be a Redis
// server's.
func (a *attribution) redisListens(ls []listener, owners map[uint64]proc.Owner, watched []uint16) bool {
	all := make([]uint16, 0, len(ls))
	for _, l := range ls {
		all = append(all, l.port)
		o, ok := owners[l.inode]
		if !ok {
			return true // whose it is we do not know: it may be
		}
		if is, _ := proc.RedisLike([]uint16{l.port}, o.Process.Comm, "", watched); is {
			return true
		}
	}
	is, _ := proc.RedisLike(all, "", "", watched)
	return is
}

// ownerWord names a process for the core.
func ownerWord(o *proc.Owner) string {
	if o == nil {
		return ""
	}
	return proc.Safe(o.Process.Comm) + "[" + itoa(o.Process.PID) + "]"
}

// wanted reports whether c is a connection that the config asks to watch.
func wanted(c *config.Config, k *tcpstate.Connection) bool {
	return c.Watch.Loopback || !k.Remote.Addr().IsLoopback() && k.Local.Addr() != k.Remote.Addr()
}
