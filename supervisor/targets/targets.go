// Package targets follows the Redis deployments that the config names: it asks their nodes
// and Sentinels when the view of each wants it, looks their names up, and tells which
// endpoints a target has, what is known of each, and what has changed.
//
// What the replies mean is decided by package clusterview, one View for each target; here are
// the connections, the clock and the config. One goroutine owns all views. What waits for the
// network does so on goroutines of its own, of which there are few: a View wants two
// questions at a time, and one subscription for each Sentinel.
package targets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/clusterview/session"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/resolver"
	"github.com/redisguard/redisguard/resp"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	// obeyEvery is how often it is looked whether the config is another one.
	obeyEvery = 500 * time.Millisecond
	// membersEvery is how often it is told at most that the endpoints are others.
	membersEvery = time.Second
	// membersBurst is how often that may be for one target in a row, and membersSlow how often
	// in the long run: 100,000 connections are some tenths of a second of work each time. A
	// failover or a start takes a few; more is a server, or a DNS, that plays.
	membersBurst, membersSlow = 10, 15 * time.Second
	// The loop works for one of workShare seconds, but for workBurst at once, and rests for
	// longestRest at most: a server that sends without end has each of its messages cost a look
	// through all that is known.
	workShare, workBurst, longestRest = 4, 200 * time.Millisecond, 250 * time.Millisecond
	// inboxRoom is how many messages may wait.
	inboxRoom = 256
	// learnFor is how long a target is asked about after the config has named it, until it is
	// known: the first questions of a fleet are spread over half a minute.
	learnFor = 2 * time.Minute
	// maxClients is how many namespaces of clients are of use.
	maxClients = 2
	// maxProblems is how many of the problems of a target are told at a time.
	maxProblems = 8
	// subscribeAgain is the pause before a subscription that has ended is made again.
	subscribeAgain = 2 * time.Second
	// unprovenFor is for how long what may be the word of a client is taken for it, since the
	// last time, and unprovenTurns how many intervals of asking at least.
	unprovenFor, unprovenTurns = 10 * time.Minute, 3
)

// Hint says whether an event of the decision core is a reason to ask about a target at once.
func Hint(t verdict.EventType) bool {
	switch t {
	case verdict.EndpointSuspect, verdict.EndpointDown, verdict.ConnectionStalled, verdict.ConnectionJudged:
		return true
	}
	return false
}

// ErrNotAsked is what Dialer.Ask wraps where a question did not leave this node, for reasons
// of our own: nothing follows from it about the server.
var ErrNotAsked = errors.New("not asked")

// Dialer makes connections to the servers of a target. It is called from many goroutines.
type Dialer interface {
	// Ask connects, sends commands (words with spaces between), and reads as many replies.
	Ask(ctx context.Context, t *config.TargetSection, s Server, commands []string) ([]resp.Value, error)
	// Subscribe listens to channels until ctx ends or the connection does. ready is called
	// when all are confirmed.
	Subscribe(ctx context.Context, t *config.TargetSection, s Server, channels []string, ready func(), message func(channel, payload string)) error
}

// Server is whom to connect to.
type Server struct {
	Addr     netip.AddrPort
	Name     string // the host name that it announces, for its certificate; may be empty
	Sentinel bool   // it has the credentials of Sentinels
	// Clients are namespaces with connections to the target, from which it may be reached where
	// our own has no route to it: the address of a service may be one of pods alone.
	Clients []netns.Namespace
	// Unproven is called before it is asked from one of Clients without TLS: who answers then
	// may be whoever rules over that namespace. May be nil.
	Unproven func()
}

// Local is what of this node leads to a target.
type Local struct {
	Connections int
	// Clients are some of the namespaces that they are in.
	Clients []netns.Namespace
}

// Config of a Loop. All must be set.
type Config struct {
	Policy func() *policy.Policy
	Log    *slog.Logger
	Dialer Dialer
	// ResolvConf is the file that names the DNS servers, /etc/resolv.conf if it is empty.
	ResolvConf string
	// Members is told the endpoints of all targets, when one has changed.
	Members func([]policy.Members)
	// Facts is told what has changed about endpoints.
	Facts func(context.Context, []verdict.EndpointFact)
	// Publish passes an event on.
	Publish func(event.Event)
}

// Loop follows the targets. Make one with New.
type Loop struct {
	Config
	inbox    chan func()
	table    atomic.Pointer[[]view.Target]
	resolver *resolver.Resolver
	wg       sync.WaitGroup
	ctx      context.Context // of Run, for what it starts

	conf     *config.Config
	targets  []*target // in the order of the config
	local    Locals
	resolved map[string]resolver.State
	wanted   []string // names
	members  []policy.Members
	facts    map[netip.AddrPort]verdict.EndpointFact // as they were told
	told     time.Duration                           // when members were told
	retell   atomic.Bool                             // all facts
}

// target is one of them.
type target struct {
	conf   config.TargetSection
	ctx    context.Context // of its questions: it ends when the target is another one
	cancel context.CancelFunc
	view   *clusterview.View
	local  int // connections, as they were told to the view
	// learnUntil is for how long it is asked about though nobody needs it.
	learnUntil time.Duration
	subs       map[string]*subscription
	seeds      []netip.AddrPort
	names      map[string][]netip.Addr // as they were told to the view
	members    policy.Members          // as they were told
	turns      turns                   // of telling them
	problem    string                  // as it was told
	changed    time.Time               // when anything has changed the last time
	change     string
	// unproven is when a server was asked the last time as Server.Unproven has it; 0 is never.
	unproven atomic.Int64
	// failed is why a server could not be asked, or not be listened to.
	failed map[netip.AddrPort]string
}

// subscription is one that is held, or that waits to be made again.
type subscription struct {
	clusterview.Subscription
	cancel context.CancelFunc
	again  time.Duration // it has ended; not before
}

// Locals are those of all targets, by name.
type Locals map[string]Local

// Counter counts connections by target. Make one with Count.
type Counter struct {
	Locals   Locals
	interest *policy.Interest
	of       map[netip.AddrPort]string // of thousands of connections there are few endpoints
}

// Count returns a counter that has counted nothing.
func Count(i *policy.Interest) *Counter {
	return &Counter{Locals: Locals{}, interest: i, of: map[netip.AddrPort]string{}}
}

// Add counts a connection. Those of one namespace are to be added together. One that is watched
// for its port alone counts for the target that allows its endpoint: that may be a node which
// nobody has named yet, and as long as nothing counts nobody is asked.
func (c *Counter) Add(remote netip.AddrPort, ns netns.Namespace) {
	name, known := c.of[remote]
	if !known {
		w, _ := c.interest.Of(remote)
		if name = w.Target; name == "" {
			name = c.interest.May(remote)
		}
		c.of[remote] = name
	}
	if name == "" {
		return
	}
	x := c.Locals[name]
	x.Connections++
	if n := len(x.Clients); n < maxClients && (n == 0 || x.Clients[n-1].ID != ns.ID) {
		x.Clients = append(x.Clients, ns)
	}
	c.Locals[name] = x
}

// New returns a loop that has not started.
func New(c Config) *Loop {
	l := &Loop{Config: c, inbox: make(chan func(), inboxRoom), resolved: map[string]resolver.State{}, facts: map[netip.AddrPort]verdict.EndpointFact{}}
	l.resolver = resolver.New(resolver.Config{ResolvConf: c.ResolvConf, Changed: func(ch resolver.Change) {
		l.post(func() { l.resolved[ch.Name] = ch.State; l.lookedUp(ch) })
	}})
	return l
}

// Table is what is known of the targets, in the order of the config. It is immutable.
func (l *Loop) Table() []view.Target {
	if t := l.table.Load(); t != nil {
		return *t
	}
	return nil
}

// SetLocal tells what of this node leads to each target, by name.
func (l *Loop) SetLocal(local Locals) {
	l.try(func() {
		l.local = local
		l.setLocal()
	})
}

// Suspect tells of evidence on this node that something has happened to an endpoint.
func (l *Loop) Suspect(name string, endpoint netip.AddrPort, why string) {
	l.try(func() {
		if t := l.target(name); t != nil {
			t.view.Suspect(sys.Monotonic(), endpoint, why)
		}
	})
}

// Retell has all facts told once more: whom they were told has forgotten them.
func (l *Loop) Retell() {
	l.retell.Store(true)
	l.try(func() {})
}

// Wake tells that somebody asks about a target.
func (l *Loop) Wake(name string) {
	l.try(func() {
		if t := l.target(name); t != nil {
			now := sys.Monotonic()
			if t.view.Wake(now); !t.view.Topology().Known {
				// Its first questions are spread over half a minute; who waits is not to.
				t.view.Suspect(now, netip.AddrPort{}, "somebody asks")
			}
		}
	})
}

// try passes a hint on that may be lost where there is no room: the next one says the same.
func (l *Loop) try(fn func()) {
	select {
	case l.inbox <- fn:
	default:
	}
}

// post passes on what must not be lost, while Run runs.
func (l *Loop) post(fn func()) {
	select {
	case l.inbox <- fn:
	case <-l.ctx.Done():
	}
}

func (l *Loop) target(name string) *target {
	i := slices.IndexFunc(l.targets, func(t *target) bool { return t.conf.Name == name })
	if i < 0 {
		return nil
	}
	return l.targets[i]
}

// Run follows the targets until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	l.ctx = ctx
	l.wg.Go(func() { l.resolver.Run(ctx) })
	defer l.wg.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var begun time.Duration
	work := budget{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case fn := <-l.inbox:
			begun = sys.Monotonic()
			fn()
			for range len(l.inbox) {
				(<-l.inbox)()
			}
		case <-timer.C:
			begun = sys.Monotonic()
		}
		l.obey()
		next := l.settle()
		now := sys.Monotonic()
		if rest := work.spend(now, now-begun); rest > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(rest):
			}
		}
		timer.Reset(max(0, next-sys.Monotonic()))
	}
}

// obey brings the targets under the config of now.
func (l *Loop) obey() {
	p := l.Policy()
	// While redisguard is off nobody is asked.
	var want []config.TargetSection
	if !p.Off() {
		for i := range p.Config.Targets {
			w := policy.Watched{Target: p.Config.Targets[i].Name, Mode: p.Config.Targets[i].Mode}
			if m, _ := p.ModeFor(policy.Watch, &w); m != config.Off {
				want = append(want, p.Config.Targets[i])
			}
		}
	}
	l.conf = p.Config
	same := func(t *target, c config.TargetSection) bool { return reflect.DeepEqual(t.conf, c) }
	if slices.EqualFunc(l.targets, want, same) {
		return
	}
	var list []*target
	for _, c := range want {
		if t := l.target(c.Name); t != nil && same(t, c) {
			list = append(list, t)
			continue
		}
		list = append(list, l.add(c))
	}
	for _, t := range l.targets {
		if !slices.Contains(list, t) {
			l.remove(t, slices.ContainsFunc(list, func(o *target) bool { return o.conf.Name == t.conf.Name }))
		}
	}
	l.targets = list
	l.wanted = nil
	for _, t := range list {
		l.wanted = append(l.wanted, t.conf.SeedNames()...)
	}
}

// add begins to follow a target.
func (l *Loop) add(c config.TargetSection) *target {
	t := &target{conf: c, subs: map[string]*subscription{}, failed: map[netip.AddrPort]string{}}
	t.ctx, t.cancel = context.WithCancel(l.ctx)
	own := &t.conf
	t.view = clusterview.New(clusterview.Config{
		Name: c.Name, Type: clusterview.Type(c.Type.String()), MasterName: c.MasterName,
		Allow: own.Allows, Translate: own.Here, TLS: c.TLS.Enabled, Interval: c.Interval, FleetSize: c.FleetSize,
		Random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	})
	t.learnUntil = sys.Monotonic() + learnFor
	return t
}

// setLocal tells the views how many connections lead to their targets. A target is asked about
// once when the config names it: else its nodes were not known, and so no connection to them.
func (l *Loop) setLocal() {
	now := sys.Monotonic()
	for _, t := range l.targets {
		n := l.local[t.conf.Name].Connections
		if now < t.learnUntil && !t.view.Topology().Known {
			n = max(n, 1)
		}
		if n != t.local {
			t.local = n
			t.view.SetLocal(now, n)
		}
	}
}

// remove ends it; again says that one of that name takes its place.
func (l *Loop) remove(t *target, again bool) {
	t.cancel()
	var gone []verdict.EndpointFact
	for a, f := range l.facts {
		if f.Target == t.conf.Name {
			gone = append(gone, verdict.EndpointFact{Endpoint: a, Forget: true})
			delete(l.facts, a)
		}
	}
	l.tell(gone)
	if t.problem != "" && !again {
		l.Publish(event.Event{Type: event.TargetResumed, Target: t.conf.Name, Text: "the config names it no more"})
	}
}

// lookedUp takes in what a name has become. That alone ends no connection: those to withdrawn
// addresses are looked at sooner.
func (l *Loop) lookedUp(ch resolver.Change) {
	for _, t := range l.targets {
		if !slices.ContainsFunc(t.conf.SeedNames(), func(n string) bool { return resolver.Fold(n) == ch.Name }) {
			continue
		}
		if len(ch.Added)+len(ch.Removed) > 0 {
			t.view.Suspect(sys.Monotonic(), netip.AddrPort{}, ch.Name+" has other addresses")
		}
	}
}

// settle does for each target what is due, and says when to come back.
func (l *Loop) settle() (next time.Duration) {
	now := sys.Monotonic()
	next = now + obeyEvery
	names := slices.Clone(l.wanted)
	l.setLocal()
	if l.retell.Swap(false) {
		clear(l.facts)
	}
	for _, t := range l.targets {
		l.setSeeds(t, now)
		wants, again, more := t.view.Wants(now)
		for _, w := range wants {
			l.ask(t, w)
		}
		if more {
			next = min(next, again)
		}
		l.subscribe(t, now)
		l.publish(t)
		names = append(names, l.setNames(t, now)...)
	}
	l.tellFacts()
	next = min(next, l.tellMembers(now))
	l.look(names)
	l.store()
	return next
}

// setNames gives the view the addresses of the names that its nodes announce, if they are
// others, and returns the names.
func (l *Loop) setNames(t *target, now time.Duration) (names []string) {
	names = t.view.Topology().Names
	known := map[string][]netip.Addr{}
	for _, n := range names {
		if addrs := l.resolved[resolver.Fold(n)].Addrs; len(addrs) > 0 {
			known[n] = addrs
		}
	}
	if !maps.EqualFunc(known, t.names, slices.Equal) {
		t.names = known
		t.view.SetResolved(now, known)
	}
	return names
}

// look has the names looked up. The resolver bounds them, and says which it leaves out. What
// became of others is forgotten: nodes may announce new ones without end.
func (l *Loop) look(names []string) {
	wanted := map[string]bool{}
	for _, n := range names {
		wanted[resolver.Fold(n)] = true
	}
	maps.DeleteFunc(l.resolved, func(n string, _ resolver.State) bool { return !wanted[n] })
	slices.Sort(names)
	if err := l.resolver.Want(slices.Compact(names)); err != nil {
		l.Log.Debug("some names are not looked up", "error", err)
	}
}

// setSeeds gives the view the addresses of its seeds, if they are others.
func (l *Loop) setSeeds(t *target, now time.Duration) {
	var seeds []netip.AddrPort
	for _, s := range t.conf.Seeds {
		if a, literal := s.Addr(); literal {
			seeds = append(seeds, a)
			continue
		}
		for _, a := range l.resolved[resolver.Fold(s.Host)].Addrs {
			seeds = append(seeds, netip.AddrPortFrom(a, s.Port))
		}
	}
	if !slices.Equal(seeds, t.seeds) {
		t.seeds = seeds
		t.view.SetSeeds(now, seeds)
	}
}

// ask asks a server, on a goroutine of its own.
func (l *Loop) ask(t *target, w clusterview.Want) {
	s := Server{Addr: w.Addr, Name: w.Name, Sentinel: w.Sentinel, Clients: l.local[t.conf.Name].Clients, Unproven: t.doubt}
	commands := make([]string, len(w.Commands))
	for i, c := range w.Commands {
		commands[i] = string(c)
	}
	l.wg.Go(func() {
		asked := sys.Monotonic()
		replies, err := l.Dialer.Ask(t.ctx, &t.conf, s, commands)
		l.post(func() {
			now := sys.Monotonic()
			if t.ctx.Err() != nil {
				return // it is another target now
			}
			log := l.Log.With("target", t.conf.Name, "server", w.Addr, "why", w.Why, "took", now-asked)
			if err != nil {
				log.Debug("a server of a target was not asked to the end", "error", err)
			} else {
				log.Debug("a server of a target has answered")
			}
			switch {
			case len(replies) > 0:
				delete(t.failed, w.Addr)
				t.view.Answer(now, w, asked, replies)
			case errors.Is(err, ErrNotAsked):
				t.failed[w.Addr] = err.Error()
				t.view.NotAsked(now, w.Addr)
			default:
				// Of servers that are gone the view tells, once it knows the target. Who answers
				// as Redis does not is wrong for another reason.
				if delete(t.failed, w.Addr); !t.view.Topology().Known || errors.Is(err, session.ErrNotRedis) {
					t.failed[w.Addr] = err.Error()
				}
				t.view.Unanswered(now, w.Addr)
			}
		})
	})
}

// doubt notes that a server is asked as Server.Unproven has it.
func (t *target) doubt() { t.unproven.Store(int64(sys.Monotonic())) }

// subscribe holds the subscriptions that the view wants.
func (l *Loop) subscribe(t *target, now time.Duration) {
	wanted := map[string]bool{}
	for _, s := range t.view.Subscriptions(now) {
		key := fmt.Sprint(s.Addr, s.Channels)
		wanted[key] = true
		if have := t.subs[key]; have != nil && (have.again == 0 || now < have.again) {
			continue
		}
		ctx, cancel := context.WithCancel(t.ctx)
		sub := &subscription{Subscription: s, cancel: cancel}
		t.subs[key] = sub
		l.wg.Go(func() {
			defer cancel()
			begun := false
			tell := func(fn func(now time.Duration)) {
				l.post(func() {
					if t.ctx.Err() == nil && t.subs[key] == sub {
						fn(sys.Monotonic())
					}
				})
			}
			err := l.Dialer.Subscribe(ctx, &t.conf, Server{Addr: s.Addr, Sentinel: s.Sentinel}, s.Channels, func() {
				begun = true
				tell(func(now time.Duration) { t.view.Subscribed(now, s.Addr, true) })
			}, func(channel, payload string) {
				tell(func(now time.Duration) { t.view.Message(now, s.Addr, channel, payload) })
			})
			tell(func(now time.Duration) {
				l.Log.Debug("a subscription has ended", "target", t.conf.Name, "server", s.Addr, "error", err)
				if errors.Is(err, ErrNotAsked) {
					t.failed[s.Addr] = err.Error()
				}
				sub.again = now + subscribeAgain
				if begun {
					t.view.Subscribed(now, s.Addr, false)
				}
			})
		})
	}
	for key, s := range t.subs {
		if !wanted[key] {
			s.cancel()
			delete(t.subs, key)
		}
	}
}
