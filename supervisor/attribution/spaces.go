package attribution

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
)

// spaces remembers what listens in the namespaces, so that the processes behind listening
// sockets are looked for only when those have changed.
type spaces struct {
	seed  maphash.Seed
	known map[netns.ID]*space
	pods  proc.PodNames
}

type space struct {
	listens   uint64         // a hash of its listening sockets
	config    *config.Config // of then
	at        time.Duration
	occupants policy.Occupants
}

func newSpaces(files proc.FS) *spaces {
	return &spaces{seed: maphash.MakeSeed(), known: map[netns.ID]*space{}, pods: proc.PodNames{FS: files}}
}

type listener struct {
	addr  netip.AddrPort
	inode uint64
}

// hash is that of a list of listening sockets, in whatever order.
func (s *spaces) hash(ls []policy.Listener) uint64 {
	slices.SortFunc(ls, func(a, b policy.Listener) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Inode, b.Inode))
	})
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, l := range ls {
		maphash.WriteComparable(&h, listener{l.Addr, l.Inode})
	}
	return h.Sum64()
}

const (
	// maxSpaces bounds what is remembered; only time is lost with it.
	maxSpaces = 10_000
	// retryUnknown is how soon the owners of listening sockets are looked for again where it
	// could not be told whether one of them is Redis: a pass over /proc may have run out of
	// its budget, and a right that is missing is so for longer.
	retryUnknown = 30 * time.Second
)

// get returns what is known of a namespace, a new one if nothing is.
func (s *spaces) get(id netns.ID) *space {
	sp := s.known[id]
	if sp == nil {
		for old := range s.known { // any, most of a full table are gone
			if len(s.known) < maxSpaces {
				break
			}
			delete(s.known, old)
		}
		sp = &space{}
		s.known[id] = sp
	}
	return sp
}

// fresh says whether nothing has changed since the owners were looked for.
func (sp *space) fresh(listens uint64, c *config.Config, now time.Duration) bool {
	return sp != nil && sp.listens == listens && sp.config == c && (sp.occupants.Redis != policy.CouldNotTell || now-sp.at < retryUnknown)
}

// listening takes in what listens in a namespace, and says who lives there.
func (s *spaces) listening(id netns.ID, ls []policy.Listener, p *policy.Policy) policy.Occupants {
	sp := s.get(id)
	sum := s.hash(ls)
	same := sp.listens == sum && sp.config == p.Config
	sp.listens, sp.config, sp.at = sum, p.Config, sys.Monotonic()
	next := sp.occupants
	next.Listen(p, ls)
	missing := slices.ContainsFunc(ls, func(l policy.Listener) bool { return l.Owner == nil })
	if !same || !missing || next.Redis != policy.CouldNotTell || sp.occupants.Redis == policy.CouldNotTell {
		sp.occupants = next
	} // else the same sockets, whose owners were found before, and only not this time
	return sp.occupants
}

// Survey finds out who lives in namespaces beside their watched connections: what
// listens there, and whose they are by the process through which each was found; but for
// the host's, whose first process says nothing about the others. One that cannot be looked into
// is left out. An error is one of the thread.
func (l *Loop) Survey(ctx context.Context, t *netns.Thread, list []netns.Namespace, host netns.ID) (map[netns.ID]policy.Occupants, error) {
	p := l.Policy()
	found, news, err := l.survey(ctx, p, t, list, host)
	if err == nil && news && l.Deliver != nil {
		l.Deliver(ctx, Answers{Occupants: found})
	}
	return found, err
}

// survey is Survey. news says that something is not as it was known.
func (l *Loop) survey(ctx context.Context, p *policy.Policy, t *netns.Thread, list []netns.Namespace, host netns.ID) (found map[netns.ID]policy.Occupants, news bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found = make(map[netns.ID]policy.Occupants, len(list))
	changed, spaces := map[netns.ID][]policy.Listener{}, map[netns.ID]netns.Namespace{}
	want := map[netns.Key][]uint64{}
	for _, ns := range list {
		_, ls, err := l.inspect(t, ns, nil)
		switch {
		case errors.Is(err, netns.ErrStranded):
			return nil, false, err
		case err != nil:
			continue // gone; or reported where more than a look is done
		}
		sum := l.spaces.hash(ls)
		if sp := l.spaces.known[ns.ID]; sp.fresh(sum, p.Config, sys.Monotonic()) {
			found[ns.ID] = sp.occupants
			continue
		}
		changed[ns.ID], spaces[ns.ID] = ls, ns
		for _, x := range ls {
			want[ns.ID.Key()] = append(want[ns.ID.Key()], x.Inode)
		}
	}
	var owners map[uint64]proc.Owner
	if len(want) > 0 {
		owners = l.owners(ctx, want, false)
	}
	for _, ls := range changed {
		own(ls, owners)
	}
	if err := l.ask(ctx, t, p, spaces, changed); err != nil {
		return nil, false, err
	}
	for id, ls := range changed {
		found[id] = l.spaces.listening(id, ls, p)
	}
	news = len(changed) > 0
	for _, ns := range list {
		o, ok := found[ns.ID]
		if !ok || ns.ID == host {
			continue
		}
		was := o
		o.Excluded, o.Names = "", nil // the config, or the process, may be another one by now
		l.identify(p, ns, &o)
		news = news || !o.Equal(&was)
		found[ns.ID], l.spaces.get(ns.ID).occupants = o, o
	}
	return found, news, nil
}

// identify looks at the process by which a namespace was found: it speaks for a pod, all
// of whose processes share one identity.
func (l *Loop) identify(p *policy.Policy, ns netns.Namespace, o *policy.Occupants) {
	if ns.PID == 0 {
		return
	}
	x, err := l.Proc.Process(ns.PID)
	if err != nil || x.NetNS != ns.ID.Key() {
		return
	}
	h := policy.Holder{Asked: true, Owner: &proc.Owner{Process: x, Workload: proc.ParseWorkload(x.Cgroup)}, User: l.users.name(x.UID)}
	h.Owner.PodNamespace, h.Owner.PodName, _ = l.spaces.pods.Lookup(h.Owner.Workload.PodUID, time.Now())
	o.AddProcess(p, &h)
}
