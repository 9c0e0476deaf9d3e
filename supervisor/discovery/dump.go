package discovery

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
)

const (
	// fullLook is how soon a namespace is dumped again for safety: a dump can miss a
	// socket. Where the kernel tells of connects only what that misses is left to find.
	fullLook     = time.Minute
	fullLookTold = 15 * time.Minute
	// fullLookShare is the share of the budget that such looks may take.
	fullLookShare = 0.2
	// budgetBurst is how much CPU time for dumps may be saved up: enough for the
	// first look at a node with many namespaces to take seconds, not minutes.
	budgetBurst = 5 * time.Second
	// lateDiscovery is how old a view may be before it is complained about.
	lateDiscovery = 30 * time.Second
	// firstLookShare is the share of one core that dumps may use while there are
	// namespaces that were never looked into, as after the start.
	firstLookShare = 0.2
	// dumpsAtOnce is how much of it may be spent in one go: connect events must be
	// read before their rings overflow, and no core be taken for seconds.
	dumpsAtOnce = 200 * time.Millisecond
	// keptBatch is how many connections' memory is kept from one dump to the next: some
	// 400 kB.
	keptBatch = 1024
)

// budget is the CPU time that dumps may take.
type budget struct {
	left  time.Duration
	spare time.Duration // that part of it which full looks may take
	at    time.Duration
}

func newBudget(now time.Duration) budget { return budget{left: budgetBurst, at: now} }

// earn adds what a share of a core gives since the last time.
func (b *budget) earn(share float64, now time.Duration) {
	earned := time.Duration(share * float64(now-b.at))
	b.left = min(budgetBurst, b.left+earned)
	b.spare = min(budgetBurst, b.spare+time.Duration(fullLookShare*float64(earned)))
	b.at = now
}

// spend takes what a dump has cost.
func (b *budget) spend(cost time.Duration, full bool) {
	b.left -= cost
	if full {
		b.spare -= cost
	}
}

// turns are the namespaces that are due for a dump, the hot ones first and then the
// longest waiting. It is pure.
func turns(order []netns.ID, spaces map[netns.ID]*viewed, now time.Duration) (due []*viewed, hot bool) {
	for _, id := range order {
		v := spaces[id]
		if v == nil {
			continue
		}
		hot = hot || v.hot > now
		if v.dirty != 0 {
			due = append(due, v)
		}
	}
	slices.SortStableFunc(due, func(a, b *viewed) int {
		if (a.hot > now) != (b.hot > now) {
			if a.hot > now {
				return -1
			}
			return 1
		}
		return int(a.dirty - b.dirty)
	})
	return due, hot
}

// poll reads the counters of all namespaces and dumps those that may have
// something new, the longest waiting first, as far as the budget goes.
func (d *Loop) poll(ctx context.Context, p *policy.Policy) (hot bool, err error) {
	now := sys.Monotonic()
	share := p.Config.Watch.DumpCPU
	for _, v := range d.spaces {
		if v.dumped == 0 {
			// Connections in it may be hanging unseen: the sooner the better.
			share = max(share, firstLookShare)
			break
		}
	}
	d.budget.earn(share, now)
	for _, id := range d.order {
		if v := d.spaces[id]; v != nil {
			d.gate(v, now)
		}
	}
	due, hot := turns(d.order, d.spaces, now)
	enough := d.budget.left - dumpsAtOnce
	for _, v := range due {
		if d.budget.left <= max(0, enough) {
			break // discovery gets slower, and says so below
		}
		if v.full && d.budget.spare <= 0 {
			continue
		}
		if err := d.dump(ctx, p.Interest, v); err != nil {
			return hot, err
		}
		if ctx.Err() != nil {
			return hot, nil
		}
	}
	var oldest time.Duration
	all := len(d.spaces) > 0
	for _, v := range d.spaces {
		all = all && v.tried
		if v.dirty != 0 && !v.full {
			oldest = max(oldest, sys.Monotonic()-v.dirty)
		}
	}
	if all {
		d.polled(ctx)
	}
	d.Figures.OldestDump.Store(int64(oldest))
	if oldest > lateDiscovery && now-d.toldLate > time.Minute {
		d.toldLate = now
		d.Log.Warn("discovery is late: connections may be there that are not watched yet", "oldest_view", oldest.Round(time.Millisecond).String(),
			"remedy", "a larger watch.dump_cpu, or CAP_PERFMON and tracefs so that the kernel tells of new connections")
	}
	return hot, nil
}

// gate decides by the counters of a namespace whether it is worth a dump. Where the
// kernel tells of connects, counters that move are no reason for one: they move for
// connections to anywhere.
func (d *Loop) gate(v *viewed, now time.Duration) {
	if v.dirty != 0 && !v.full {
		return
	}
	told, every := d.connects.open(), fullLook
	if told {
		every = fullLookTold
		if now-v.dumped < every && v.hot <= now {
			return
		}
	}
	opens, err := d.opens(v)
	switch {
	case errors.Is(err, netns.ErrGone):
		d.broken(v)
	case err != nil, opens != v.opens && (!told || v.hot > now):
		v.dirty, v.full = now, false
	case now-v.dumped >= every && (v.same < 2 || opens != v.opens) && v.dirty == 0:
		// Twice the same and nothing opened since: nothing was missed.
		v.dirty, v.full = now, true
	}
}

// opens reads how many connections were ever opened in the namespace.
func (d *Loop) opens(v *viewed) (uint64, error) {
	if v.ns.PID != 0 && v.ns.Name == "" {
		// Spares a visit. The path is of the process that leads into the
		// namespace; if it has gone to another one since, the next walk will
		// tell, and a wrong count only costs a dump.
		c, err := d.counters.Read(d.procPath(v.ns.PID, "net/snmp"))
		if err == nil {
			return c.ActiveOpens, nil
		}
	}
	var c tcpstate.Counters
	err := d.thread.Visit(v.ns, func() (err error) {
		c, err = d.counters.Read("/proc/thread-self/net/snmp")
		return err
	})
	return c.ActiveOpens, err
}

// dump lists the watched connections of a namespace and passes them on.
func (d *Loop) dump(ctx context.Context, interest *policy.Interest, v *viewed) error {
	v.tried = true
	opens, err := d.opens(v) // before the dump, so that nothing falls in between
	switch {
	case errors.Is(err, netns.ErrGone):
		d.broken(v)
		return nil
	case err == nil && opens == 0:
		// No process in there has ever connected to anything.
		v.opens, v.same, v.dumped, v.dirty, v.full = 0, 2, sys.Monotonic(), 0, false
		return nil
	}
	before := sys.ThreadCPU()
	d.batch = d.batch[:0]
	err = d.socket.In(d.thread, v.ns, func() error {
		// Without TCP_INFO, for which it would wait for the owner of a socket's lock.
		return d.socket.Dump(tcpstate.Filter{RemotePorts: interest.Ports()}, func(k *tcpstate.Connection) error {
			if interest.Wants(k.Local, k.Remote, k.Mark) {
				d.atHome(k, v.ns.ID.Key())
				v.boundTo(k.Interface)
				d.batch = append(d.batch, *k)
			}
			return nil
		})
	})
	var from policy.Origin
	if err == nil && len(d.batch) > 0 {
		from = d.origin(v)
	}
	d.budget.spend(sys.ThreadCPU()-before, v.full)
	d.Figures.Dumps.Add(1)
	switch {
	case errors.Is(err, netns.ErrStranded):
		return err
	case errors.Is(err, netns.ErrGone):
		d.broken(v)
		return nil
	case err != nil:
		d.Figures.DumpErrors.Add(1)
		d.Log.Debug("cannot list connections", "namespace", v.ns, "error", err)
		return nil // dirty as before: tried again at the next turn
	}
	v.same++
	if opens != v.opens {
		v.same = 1
	}
	v.opens, v.dumped, v.dirty, v.full = opens, sys.Monotonic(), 0, false
	d.tell(ctx, v, &from)
	if cap(d.batch) > keptBatch {
		d.batch = nil
	}
	return nil
}
