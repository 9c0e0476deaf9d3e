// Package discovery finds the network namespaces of the node and the watched connections
// in them: by connect events of the kernel where it tells of them, else and for safety by
// dumps within a budget of CPU time.
package discovery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
)

// Found is what a look into a namespace has shown: connections that were opened there, or
// of which that cannot be told yet, or that were accepted. The last are only told of where
// they may have been taken for others before.
type Found struct {
	NS          netns.ID
	Opened      policy.Answer
	Told        bool // the kernel told of their connects
	Connections []tcpstate.Connection
	// From is when the connect of each began, by CLOCK_MONOTONIC, 0 where that is not known;
	// nil if it is of none.
	From []time.Duration
}

// Began is when the connect of the i-th connection began, 0 where that is not known.
func (f *Found) Began(i int) time.Duration {
	if i < len(f.From) {
		return f.From[i]
	}
	return 0
}

const (
	// spacesEvery is how often namespaces are looked for; a walk over 5,000
	// processes takes some 13 ms. Where the kernel tells of connects, the first one
	// in a namespace that is not known has it looked for at once.
	spacesEvery     = 2 * time.Second
	spacesEveryTold = 10 * time.Second
	// tellAgain is how soon a complaint is made again that has merely changed.
	tellAgain = 10 * time.Minute
	// readPause is the pause between two reads of connect events. They cost nothing
	// where there are none.
	readPause = 100 * time.Millisecond
	// hotFor is how long after a reap new connections of a namespace are looked
	// for at every turn, to see its clients come back.
	hotFor = 5 * time.Second
	// hotPause is the pause between such looks.
	hotPause = 100 * time.Millisecond
	// refreshPause is how soon the namespaces are listed again after a way into one broke.
	refreshPause = 50 * time.Millisecond
)

// Config of a Loop. All must be set but for those that say otherwise.
type Config struct {
	Policy  func() *policy.Policy
	Log     *slog.Logger
	Figures *figures.Set
	// Finder looks for namespaces.
	Finder netns.Finder
	// ProcRoot replaces /proc, if it is not empty.
	ProcRoot string
	// Namespaces is handed the list of all, the host's first, Connections what was found
	// in one of them. They may wait.
	Namespaces  func(context.Context, []netns.Namespace)
	Connections func(context.Context, Found)
	// Polled is called after the first look into all namespaces that were found at the
	// start, as far as they can be looked into. It may be nil.
	Polled func(context.Context)
}

// Loop is the discoverer. Make one with New.
type Loop struct {
	Config
	hot     chan netns.ID // namespaces to look into soon
	refresh chan struct{} // a way in is broken; room for one
	restart chan struct{} // forget what was seen; room for one

	thread   *netns.Thread
	socket   tcpstate.Socket
	counters tcpstate.CountersFile
	spaces   map[netns.ID]*viewed
	order    []netns.ID // by inode, for fair turns
	budget   budget
	toldLate time.Duration
	lastErr  string
	lastTold time.Duration // when lastErr was logged
	connects connects
	wanted   uint64                // generation of the interest that the last dumps went by
	batch    []tcpstate.Connection // of one dump, kept for its memory
	accepts  accepts
}

// viewed is a namespace and what was seen of it.
type viewed struct {
	ns     netns.Namespace
	opens  uint64        // ActiveOpens before the last dump
	same   int           // dumps in a row before which opens was the same
	dumped time.Duration // when; 0 is never
	tried  bool          // it was dumped, or could not be
	dirty  time.Duration // since when there may be something new; 0 is not
	full   bool          // dirty only because a full look is due
	hot    time.Duration // until when to look at every turn
	bound  []uint32      // interfaces that sockets in it were bound to
	// accepted are the connections that the last dump has shown to be accepted: their
	// listener may be closed by the next.
	accepted map[uint64]bool
	unsure   bool // it was told of some of which that could not be told
}

// New returns a discoverer that has not started.
func New(c Config) *Loop {
	if c.ProcRoot == "" {
		c.ProcRoot = "/proc"
	}
	return &Loop{
		Config: c, hot: make(chan netns.ID, 256), refresh: make(chan struct{}, 1), restart: make(chan struct{}, 1),
		spaces: map[netns.ID]*viewed{}, budget: newBudget(sys.Monotonic()),
	}
}

// PollSoon has a namespace looked into at the next turns.
func (d *Loop) PollSoon(id netns.ID) {
	select {
	case d.hot <- id:
	default: // all of them are looked at every second anyway
	}
}

// Refresh has the ways into namespaces looked for again, since one is broken.
func (d *Loop) Refresh() { poke(d.refresh) }

// Restart has everything looked for anew.
func (d *Loop) Restart() { poke(d.restart) }

// poke sends what one of is enough.
func poke(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// Run finds namespaces and connections until ctx ends.
func (d *Loop) Run(ctx context.Context) error {
	thread, err := netns.NewThread()
	if err != nil {
		return err
	}
	defer thread.Close()
	d.thread = thread
	defer d.connects.close()
	defer func() { d.accepts.close() }()
	var nextSpaces, nextLook time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.restart:
			d.spaces = map[netns.ID]*viewed{}
			nextSpaces, nextLook = 0, 0
		case <-d.refresh:
			nextSpaces = min(nextSpaces, sys.Monotonic()+refreshPause)
		case id := <-d.hot:
			if v := d.spaces[id]; v != nil {
				v.hot = sys.Monotonic() + hotFor
			}
			nextLook = min(nextLook, sys.Monotonic()+hotPause/4)
		case <-timer.C:
		}
		p := d.Policy()
		c := p.Config
		now := sys.Monotonic()
		if p.Off() {
			d.spaces = map[netns.ID]*viewed{}
			d.connects.close()
			d.accepts.close()
			d.Figures.Success(figures.Discoverer)
			nextSpaces, nextLook = 0, 0
			d.polled(ctx)
			timer.Reset(time.Second)
			continue
		}
		if p.Interest.Generation != d.wanted {
			// No counter moves for connections that are merely wanted now.
			d.wanted = p.Interest.Generation
			for _, v := range d.spaces {
				v.dirty, v.full = now, false
			}
			nextLook = now
		}
		d.openConnects(c, p.Interest.Ports())
		if d.read() {
			nextSpaces = now // a namespace that is not known yet
		}
		if now >= nextSpaces {
			d.findSpaces(ctx)
			d.adopt()
			nextSpaces = now + spacesEvery
			if d.connects.open() {
				nextSpaces = now + spacesEveryTold
			}
		}
		if err := d.peekConnects(func(f Found) { d.Connections(ctx, f) }); err != nil {
			return err
		}
		if now >= nextLook {
			hot, err := d.poll(ctx, p)
			if err != nil {
				return err
			}
			d.Figures.Success(figures.Discoverer)
			nextLook = now + c.Watch.Discovery
			if hot {
				nextLook = now + hotPause
			}
		}
		next := min(nextSpaces, nextLook)
		if d.connects.open() {
			next = min(next, now+readPause)
		}
		timer.Reset(max(time.Millisecond, next-sys.Monotonic()))
	}
}

// polled tells, once, that everything was looked at.
func (d *Loop) polled(ctx context.Context) {
	if d.Polled != nil {
		d.Polled(ctx)
		d.Polled = nil
	}
}

// findSpaces lists the namespaces and passes the list on.
func (d *Loop) findSpaces(ctx context.Context) {
	list, err := d.Finder.Find(ctx, d.thread)
	err = errors.Join(err, d.Finder.HostErr)
	now := sys.Monotonic()
	if err != nil && ctx.Err() == nil && err.Error() != d.lastErr && (d.lastErr == "" || now-d.lastTold >= tellAgain) {
		// It will be the same every time but for the numbers in it, which change
		// with every process that comes and goes.
		d.lastErr, d.lastTold = err.Error(), now
		d.Log.Warn("some network namespaces cannot be seen", "error", err, "remedy", "CAP_SYS_PTRACE and CAP_SYS_ADMIN, and the host's process namespace")
	}
	if len(list) == 0 {
		return
	}
	seen := make(map[netns.ID]*viewed, len(list))
	keys := make(map[netns.Key]bool, len(list))
	d.order = d.order[:0]
	for _, ns := range list {
		v := d.spaces[ns.ID]
		if v == nil {
			v = &viewed{dirty: now}
		}
		v.ns = ns
		seen[ns.ID], keys[ns.ID.Key()] = v, true
		d.order = append(d.order, ns.ID)
	}
	d.spaces = seen
	if d.connects.open() {
		d.connects.tracker.forget(func(ns netns.Key) bool { return !keys[ns] })
	}
	d.Figures.Namespaces.Store(int64(len(list)))
	d.Namespaces(ctx, slices.Clone(list))
}

// broken has the way into a namespace looked for again.
func (d *Loop) broken(v *viewed) {
	d.Finder.Forget(v.ns.ID)
	d.Refresh()
}

// procPath is the path of a file of a process.
func (d *Loop) procPath(pid int, file string) string {
	return d.ProcRoot + "/" + strconv.Itoa(pid) + "/" + file
}
