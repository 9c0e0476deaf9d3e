package supervisor

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
)

// found is what a dump of a namespace has shown.
type found struct {
	ns    netns.ID
	conns []tcpstate.Connection
}

// spaceList is the list of all namespaces.
type spaceList []netns.Namespace

const (
	// spacesEvery is how often namespaces are looked for; a walk over 5,000
	// processes takes some 13 ms. Where births are heard, the first connection
	// from a namespace that is not known has it looked for at once.
	spacesEvery       = 2 * time.Second
	spacesEveryBirths = 10 * time.Second
	// tellAgain is how soon a complaint is made again that has merely changed.
	tellAgain = 10 * time.Minute
	// fullLook is how soon a namespace is dumped again for safety: a dump can
	// miss a socket. Where births are heard only what they miss is left to find.
	fullLook       = time.Minute
	fullLookBirths = 15 * time.Minute
	// fullLookShare is the share of the budget that such looks may take.
	fullLookShare = 0.2
	// birthPause is the pause between two looks at births. They cost nothing
	// where there are none.
	birthPause = 100 * time.Millisecond
	// switchPause is the pause between two looks at the off switch.
	switchPause = 300 * time.Millisecond
	// hotFor is how long after a reap new connections of a namespace are looked
	// for at every turn, to see its clients come back.
	hotFor = 5 * time.Second
	// hotPause is the pause between such looks.
	hotPause = 100 * time.Millisecond
	// budgetBurst is how much CPU time for dumps may be saved up: enough for the
	// first look at a node with many namespaces to take seconds, not minutes.
	budgetBurst = 5 * time.Second
	// lateDiscovery is how old a view may be before it is complained about.
	lateDiscovery = 30 * time.Second
	// firstLookShare is the share of one core that dumps may use while there are
	// namespaces that were never looked into, as after the start.
	firstLookShare = 0.2
	// dumpsAtOnce is how much of it may be spent in one go: births must be read
	// before their rings overflow, and nobody's core be taken for seconds.
	dumpsAtOnce = 200 * time.Millisecond
)

// discovery is the discoverer's state.
type discovery struct {
	s        *Supervisor
	thread   *netns.Thread
	finder   netns.Finder
	socket   tcpstate.Socket
	counters tcpstate.CountersFile
	spaces   map[netns.ID]*viewed
	order    []netns.ID    // by inode, for fair turns
	budget   time.Duration // CPU time for dumps
	spare    time.Duration // that part of it which full looks may take
	budgetAt time.Duration
	toldLate time.Duration
	lastErr  string
	lastTold time.Duration // when lastErr was logged
	batch    []tcpstate.Connection
	births   births
	ports    []uint16 // what the last dumps have looked for
	loopback bool
}

// viewed is a namespace and what was seen of it.
type viewed struct {
	ns     netns.Namespace
	opens  uint64        // ActiveOpens before the last dump
	same   int           // dumps in a row before which opens was the same
	dumped time.Duration // when; 0 is never
	dirty  time.Duration // since when there may be something new; 0 is not
	full   bool          // dirty only because a full look is due
	hot    time.Duration // until when to look at every turn
}

// discover finds namespaces and connections until ctx ends.
func (s *Supervisor) discover(ctx context.Context) error {
	thread, err := netns.NewThread()
	if err != nil {
		return err
	}
	defer thread.Close()
	d := &discovery{
		s: s, thread: thread, spaces: map[netns.ID]*viewed{}, budget: budgetBurst, budgetAt: monotonic(),
		finder: s.finder(),
	}
	defer d.births.close()
	var nextSpaces, nextLook, nextSwitch time.Duration
	off := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.restart:
			d.spaces = map[netns.ID]*viewed{}
			nextSpaces, nextLook = 0, 0
		case <-s.refresh:
			nextSpaces = min(nextSpaces, monotonic()+50*time.Millisecond)
		case id := <-s.hot:
			if v := d.spaces[id]; v != nil {
				v.hot = monotonic() + hotFor
			}
			nextLook = min(nextLook, monotonic()+hotPause/4)
		case <-timer.C:
		}
		c := s.config()
		now := monotonic()
		if now >= nextSwitch {
			off, nextSwitch = s.disabled(), now+switchPause
		}
		if off || s.watchMode(c) == config.Off {
			d.spaces = map[netns.ID]*viewed{}
			d.births.close()
			s.figures.succeeded(Discoverer)
			nextSpaces, nextLook = 0, 0
			timer.Reset(time.Second)
			continue
		}
		if c.Watch.Loopback != d.loopback || !slices.Equal(c.Watch.Ports, d.ports) {
			// No counter moves for connections that are merely wanted now.
			d.loopback, d.ports = c.Watch.Loopback, slices.Clone(c.Watch.Ports)
			for _, v := range d.spaces {
				v.dirty, v.full = now, false
			}
			nextLook = now
		}
		d.openBirths(c)
		if d.readBirths() {
			nextSpaces = now // a namespace that is not known yet
		}
		if now >= nextSpaces {
			d.findSpaces(ctx)
			d.adopt()
			nextSpaces = now + spacesEvery
			if d.births.open() {
				nextSpaces = now + spacesEveryBirths
			}
		}
		if err := d.takeBirths(ctx, c); err != nil {
			return err
		}
		if now >= nextLook {
			hot, err := d.look(ctx, c)
			if err != nil {
				return err
			}
			s.figures.succeeded(Discoverer)
			nextLook = now + c.Watch.Discovery
			if hot {
				nextLook = now + hotPause
			}
		}
		next := min(nextSpaces, nextLook)
		if d.births.open() {
			next = min(next, now+birthPause)
		}
		timer.Reset(max(time.Millisecond, next-monotonic()))
	}
}

// findSpaces lists the namespaces and passes the list on.
func (d *discovery) findSpaces(ctx context.Context) {
	list, err := d.finder.Find(ctx, d.thread)
	err = errors.Join(err, d.finder.HostErr)
	now := monotonic()
	if err != nil && ctx.Err() == nil && err.Error() != d.lastErr && (d.lastErr == "" || now-d.lastTold >= tellAgain) {
		// It will be the same every time but for the numbers in it, which change
		// with every process that comes and goes.
		d.lastErr, d.lastTold = err.Error(), now
		d.s.log.Warn("some network namespaces cannot be seen", "error", err, "remedy", "CAP_SYS_PTRACE and CAP_SYS_ADMIN, and the host's process namespace")
	}
	if len(list) == 0 {
		return
	}
	seen := make(map[netns.ID]*viewed, len(list))
	d.order = d.order[:0]
	for _, ns := range list {
		v := d.spaces[ns.ID]
		if v == nil {
			v = &viewed{dirty: now}
		}
		v.ns = ns
		seen[ns.ID] = v
		d.order = append(d.order, ns.ID)
	}
	d.spaces = seen
	for a, id := range d.births.homes {
		if seen[id] == nil {
			delete(d.births.homes, a)
		}
	}
	d.s.stats.namespaces.Store(int64(len(list)))
	select {
	case d.s.spaces <- slices.Clone(list):
	case <-ctx.Done():
	}
}

// look reads the counters of all namespaces and dumps those that may have
// something new, the longest waiting first, as far as the budget goes.
func (d *discovery) look(ctx context.Context, c *config.Config) (hot bool, err error) {
	now := monotonic()
	share := c.Watch.DumpCPU
	for _, v := range d.spaces {
		if v.dumped == 0 {
			// Connections in it may be hanging unseen: the sooner the better.
			share = max(share, firstLookShare)
			break
		}
	}
	earned := time.Duration(share * float64(now-d.budgetAt))
	d.budget = min(budgetBurst, d.budget+earned)
	d.spare = min(budgetBurst, d.spare+time.Duration(fullLookShare*float64(earned)))
	d.budgetAt = now
	var turn []*viewed
	for _, id := range d.order {
		v := d.spaces[id]
		d.gate(v, now)
		if v.hot > now {
			hot = true
		}
		if v.dirty != 0 {
			turn = append(turn, v)
		}
	}
	slices.SortStableFunc(turn, func(a, b *viewed) int {
		if (a.hot > now) != (b.hot > now) {
			if a.hot > now {
				return -1
			}
			return 1
		}
		return int(a.dirty - b.dirty)
	})
	enough := d.budget - dumpsAtOnce
	for _, v := range turn {
		if d.budget <= max(0, enough) {
			break // discovery gets slower, and says so below
		}
		if v.full && d.spare <= 0 {
			continue
		}
		if err := d.dump(ctx, c, v); err != nil {
			return hot, err
		}
		if ctx.Err() != nil {
			return hot, nil
		}
	}
	var oldest time.Duration
	for _, v := range d.spaces {
		if v.dirty != 0 && !v.full {
			oldest = max(oldest, monotonic()-v.dirty)
		}
	}
	d.s.stats.oldestDump.Store(int64(oldest))
	if oldest > lateDiscovery && now-d.toldLate > time.Minute {
		d.toldLate = now
		d.s.log.Warn("discovery is late: connections may be there that are not watched yet", "oldest_view", oldest.Round(time.Millisecond).String(),
			"remedy", "a larger watch.dump_cpu, or CAP_PERFMON and tracefs so that births are heard")
	}
	return hot, nil
}

// gate decides by the counters of a namespace whether it is worth a dump. Where
// births are heard, counters that move are no reason for one: they move for
// connections to anywhere.
func (d *discovery) gate(v *viewed, now time.Duration) {
	if v.dirty != 0 && !v.full {
		return
	}
	every := fullLook
	if d.births.open() {
		every = fullLookBirths
		if now-v.dumped < every && v.hot <= now {
			return
		}
	}
	opens, err := d.opens(v)
	switch {
	case errors.Is(err, netns.ErrGone):
		d.broken(v)
	case err != nil, opens != v.opens && (!d.births.open() || v.hot > now):
		v.dirty, v.full = now, false
	case now-v.dumped >= every && (v.same < 2 || opens != v.opens) && v.dirty == 0:
		// Twice the same and nothing opened since: nothing was missed.
		v.dirty, v.full = now, true
	}
}

// opens reads how many connections were ever opened in the namespace.
func (d *discovery) opens(v *viewed) (uint64, error) {
	if v.ns.PID != 0 && v.ns.Name == "" {
		// Spares a visit. The path is of the process that leads into the
		// namespace; if it has gone to another one since, the next walk will
		// tell, and a wrong count only costs a dump.
		c, err := d.counters.Read(d.s.procPath(v.ns.PID, "net/snmp"))
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
func (d *discovery) dump(ctx context.Context, c *config.Config, v *viewed) error {
	opens, err := d.opens(v) // before the dump, so that nothing falls in between
	switch {
	case errors.Is(err, netns.ErrGone):
		d.broken(v)
		return nil
	case err == nil && opens == 0:
		// Nobody in there has ever connected to anything.
		v.opens, v.same, v.dumped, v.dirty, v.full = 0, 2, monotonic(), 0, false
		return nil
	}
	before := sys.ThreadCPU()
	d.batch = d.batch[:0]
	err = d.thread.Visit(v.ns, func() error {
		if err := d.socket.Open(); err != nil {
			return err
		}
		defer d.socket.Close()
		// Without TCP_INFO, for which it would wait for whoever holds a socket's lock.
		return d.socket.Dump(tcpstate.Filter{RemotePorts: c.Watch.Ports}, func(k *tcpstate.Connection) error {
			// Our own probes carry our mark.
			if wanted(c, k) && (c.Probe.Mark == 0 || k.Mark != c.Probe.Mark) {
				d.atHome(k.Local.Addr(), v.ns.ID)
				d.batch = append(d.batch, *k)
			}
			return nil
		})
	})
	cost := sys.ThreadCPU() - before
	d.budget -= cost
	if v.full {
		d.spare -= cost
	}
	d.s.stats.dumps.Add(1)
	switch {
	case errors.Is(err, netns.ErrStranded):
		return err
	case errors.Is(err, netns.ErrGone):
		d.broken(v)
		return nil
	case err != nil:
		d.s.stats.dumpErrors.Add(1)
		d.s.log.Debug("cannot list connections", "namespace", v.ns, "error", err)
		return nil // dirty as before: tried again at the next turn
	}
	v.same++
	if opens != v.opens {
		v.same = 1
	}
	v.opens, v.dumped, v.dirty, v.full = opens, monotonic(), 0, false
	if len(d.batch) == 0 {
		return nil
	}
	select {
	case d.s.found <- found{ns: v.ns.ID, conns: slices.Clone(d.batch)}:
	case <-ctx.Done():
	}
	return nil
}

// broken has the way into a namespace looked for again.
func (d *discovery) broken(v *viewed) {
	d.finder.Forget(v.ns.ID)
	d.s.askRefresh()
}

func (s *Supervisor) askRefresh() {
	select {
	case s.refresh <- struct{}{}:
	default: // asked already
	}
}

// procPath is the path of a file of a process.
func (s *Supervisor) procPath(pid int, file string) string {
	root := s.opt.Proc.Proc
	if root == "" {
		root = "/proc"
	}
	return root + "/" + strconv.Itoa(pid) + "/" + file
}

func itoa(n int) string { return strconv.Itoa(n) }
