package supervisor

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
)

// tenants is who lives in a namespace, as far as it matters for tuning it.
type tenants struct {
	ns    netns.Namespace
	host  bool
	conns int // watched connections
	// pending says that whose they are is still being found out.
	pending bool
	// excluded is why the namespace is to be left alone.
	excluded string
	names    []string // of Kubernetes namespaces, pods and units
	known    bool     // of one connection at least it is known whose it is
}

// add takes in whose a connection is.
func (t *tenants) add(c *config.Config, o *ownership, uid uint32) {
	t.conns++
	if !o.asked {
		t.pending = true
		return
	}
	if t.excluded == "" && excludes(c) {
		_, t.excluded = excluded(c, o, uid)
	}
	if o.owner == nil {
		return
	}
	t.known = true
	for _, name := range []string{o.owner.PodNamespace, o.owner.PodName, o.owner.Workload.Unit} {
		if name != "" && !slices.Contains(t.names, name) {
			t.names = append(t.names, name)
		}
	}
}

// news is the watcher's part in tuning: it tells who lives where.
type news struct {
	soon bool
	told time.Duration
}

// tellTuner passes on what the tuner should know, when there is something new and
// every now and then.
func (w *watcher) tellTuner(now time.Duration) {
	if age := now - w.news.told; age < newsGap || !w.news.soon && age < newsEvery && w.news.told != 0 {
		return
	}
	if len(w.spaces) == 0 {
		return // not listed yet
	}
	c := w.s.config()
	w.news = news{told: now}
	if c.Tune.Mode == config.Off {
		return
	}
	list := make([]tenants, 0, len(w.spaces))
	for _, sp := range w.spaces {
		x := tenants{ns: sp.ns, host: sp.key == w.hostNS}
		for _, t := range sp.conns {
			if t.conn.Inode != 0 { // an orphan is nobody's
				x.add(c, &t.own, t.conn.UID)
			}
		}
		list = append(list, x)
	}
	w.s.tellTuner(list)
}

// tellTuner has one writer, so there is room after the older list is taken out.
func (s *Supervisor) tellTuner(list []tenants) {
	select {
	case <-s.tenants:
	default:
	}
	s.tenants <- list
}

// wants decides whether a namespace is to be tuned. It is where the promises
// about whom we touch live.
func (t *tuner) wants(c *config.Config, sp *tuned, tuned bool, now time.Duration) (bool, string) {
	switch {
	case sp.excluded != "":
		return false, sp.excluded
	case sp.own != "":
		return false, sp.own
	case sp.redis != "" && !c.Tune.RedisServers:
		return false, "Redis itself is here: a process " + sp.redis
	case sp.pending && !sp.known && !tuned:
		return false, "whose its connections are is not known yet"
	case sp.conns > 0 && !sp.known && len(sp.ownNames) == 0 && excludes(c):
		return false, "whose its connections are is not known, and [exclude] names some"
	}
	switch c.Tune.Scope.Of {
	case config.ScopeHost:
		if sp.host {
			return true, ""
		}
	case config.ScopeAll:
		return true, ""
	case config.ScopeGlobs:
		for _, name := range append(slices.Clone(sp.names), sp.ownNames...) {
			if config.MatchAny(c.Tune.Scope.Globs, name) {
				return true, ""
			}
		}
	default:
		if sp.lastConn != 0 && now-sp.lastConn < tuneFor {
			return true, ""
		}
	}
	return false, "not in tune.scope"
}

// survey finds out what listens in the namespaces, and to whom they belong beside
// their connections.
func (t *tuner) survey(ctx context.Context, c *config.Config, due []*tuned) error {
	want := map[proc.NSKey][]uint64{}
	listeners := map[*tuned][]listener{}
	for _, sp := range due {
		t.identify(c, sp)
		_, ls, err := t.owners.survey(sp.ns, nil)
		switch {
		case errors.Is(err, netns.ErrStranded):
			return err
		case err != nil:
			continue // gone, or said when its values are read
		}
		var h maphash.Hash
		h.SetSeed(t.hash)
		slices.SortFunc(ls, func(a, b listener) int {
			return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.inode, b.inode))
		})
		for _, l := range ls {
			maphash.WriteComparable(&h, l)
		}
		if sum := h.Sum64(); !sp.surveyed || sum != sp.listens {
			sp.listens, sp.surveyed = sum, true
			listeners[sp] = ls
			key := proc.NSKey{Dev: sp.ns.ID.Dev, Ino: sp.ns.ID.Inode}
			for _, l := range ls {
				want[key] = append(want[key], l.inode)
			}
		}
	}
	if len(listeners) == 0 {
		return nil
	}
	var owners map[uint64]proc.Owner
	if len(want) > 0 {
		budget, cancel := context.WithTimeout(ctx, attributeBudget)
		owners, _ = t.owners.attributor.Resolve(budget, want)
		cancel()
	}
	for sp, ls := range listeners {
		sp.redis = t.redisIn(ls, owners, c.Watch.Ports)
	}
	return nil
}

// redisIn tells why a Redis server is taken to be among the listeners of a
// namespace. Where it cannot be told whose a listener is, as without
// CAP_SYS_PTRACE, its port alone decides: tuning must work there too.
func (t *tuner) redisIn(ls []listener, owners map[uint64]proc.Owner, watched []uint16) string {
	byProcess := map[int][]uint16{}
	of := map[int]proc.Process{}
	var all []uint16
	for _, l := range ls {
		all = append(all, l.port)
		if o, ok := owners[l.inode]; ok {
			byProcess[o.Process.PID] = append(byProcess[o.Process.PID], l.port)
			of[o.Process.PID] = o.Process
		}
	}
	for _, pid := range slices.Sorted(maps.Keys(byProcess)) {
		exe, _ := t.s.opt.Proc.Exe(pid)
		if is, why := proc.RedisLike(byProcess[pid], of[pid].Comm, exe, watched); is {
			return why
		}
	}
	if is, why := proc.RedisLike(all, "", "", watched); is {
		return why
	}
	return ""
}

// identify looks at the process by which a namespace was found: it speaks for a
// pod, all of whose processes share one identity. The host's first process speaks
// for nobody else.
func (t *tuner) identify(c *config.Config, sp *tuned) {
	sp.own, sp.ownNames = "", nil
	if sp.host || sp.ns.PID == 0 {
		return
	}
	p, err := t.s.opt.Proc.Process(sp.ns.PID)
	if err != nil || p.NetNS != (proc.NSKey{Dev: sp.ns.ID.Dev, Ino: sp.ns.ID.Inode}) {
		return
	}
	o := ownership{asked: true, owner: &proc.Owner{Process: p, Workload: proc.ParseWorkload(p.Cgroup)}, user: t.owners.users.name(p.UID)}
	o.owner.PodNamespace, o.owner.PodName, _ = t.pods.Lookup(o.owner.Workload.PodUID, time.Now())
	var who tenants
	who.add(c, &o, p.UID)
	sp.own, sp.ownNames = who.excluded, who.names
}
