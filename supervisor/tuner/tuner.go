// Package tuner keeps the TCP limits of network namespaces: those of Redis' clients get
// sane ones, their originals are kept, and a drift is seen.
package tuner

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	// compareEvery is how often the values of a namespace are compared again.
	compareEvery = 30 * time.Second
	// keepFor is how long a namespace stays in scope "redis" after its last watched
	// connection: clients that reconnect only now and then keep it.
	keepFor = time.Hour
	// retryEvery is the pause before a namespace that could not be tuned is tried again.
	retryEvery = 5 * time.Minute
)

// Store is where the original sysctls are kept, in a state directory.
func Store(state string) sysctl.Store { return sysctl.Store{Path: paths.Tuned(state)} }

// Report is what is known of a namespace by its watched connections.
type Report struct {
	NS   netns.Namespace
	Host bool
	// Mode is how far tuning may go there, by what its connections lead to.
	Mode      config.Mode
	Occupants policy.Occupants
}

// Config of a Loop. All must be set but for those that say otherwise.
type Config struct {
	Policy  func() *policy.Policy
	Log     *slog.Logger
	Figures *figures.Set
	State   string // the state directory
	Sysctls string // see sysctl.FS; may be empty
	// Finder looks for namespaces.
	Finder netns.Finder
	// Survey finds out who lives in namespaces, of which host is the host's.
	Survey func(ctx context.Context, t *netns.Thread, list []netns.Namespace, host netns.ID) (map[netns.ID]policy.Occupants, error)
	// Publish passes an event on.
	Publish func(event.Event)
	// Missing is told of what is needed for writing and not there, "" if it may have been
	// given meanwhile.
	Missing func(what string)
}

// Loop is the tuner. Make one with New.
type Loop struct {
	Config
	reports chan []Report // room for one
	table   atomic.Pointer[map[netns.ID]*view.Tune]

	thread  *netns.Thread
	sysctls sysctl.FS
	store   sysctl.Store
	spaces  map[netns.ID]*space
	claim   io.Closer // the right to tune on this node; nil while we do not have it
	conf    *config.Config
	mode    config.Mode
	forget  time.Duration // when records of namespaces that are gone are dropped
	// What was told to keep us from tuning at all, and whether it is the state file.
	broken  string
	byState bool
	host    *space
}

// space is a namespace in the tuner's table.
type space struct {
	Report
	base     policy.Occupants // who lives there by what listens and by its process
	lastConn time.Duration    // when it had a watched connection, 0 if never
	due      time.Duration    // when its values are compared again
	view     *view.Tune
	// What was told, so that it is told once.
	drift, failed, would string
}

// New returns a tuner that has not started.
func New(c Config) *Loop {
	return &Loop{
		Config: c, reports: make(chan []Report, 1), sysctls: sysctl.FS{Root: c.Sysctls}, store: Store(c.State), spaces: map[netns.ID]*space{},
	}
}

// Report tells of all namespaces of the node. It is for one goroutine at a time, and
// never waits: a report that was not taken in yet is replaced.
func (t *Loop) Report(list []Report) {
	select {
	case <-t.reports:
	default:
	}
	t.reports <- list
}

// Table is how it stands with each namespace. It is immutable.
func (t *Loop) Table() map[netns.ID]*view.Tune {
	if m := t.table.Load(); m != nil {
		return *m
	}
	return nil
}

// Run keeps namespaces tuned until ctx ends.
func (t *Loop) Run(ctx context.Context) error {
	thread, err := netns.NewThread()
	if err != nil {
		return err
	}
	defer thread.Close()
	t.thread = thread
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return t.stop()
		case list := <-t.reports:
			t.update(list)
		case <-tick.C:
		}
		if err := t.turn(ctx); err != nil {
			return err
		}
	}
}

// update brings the table up to date.
func (t *Loop) update(list []Report) {
	now := sys.Monotonic()
	seen := make(map[netns.ID]bool, len(list))
	for _, x := range list {
		seen[x.NS.ID] = true
		sp := t.spaces[x.NS.ID]
		if sp == nil {
			sp = &space{}
			t.spaces[x.NS.ID] = sp
		}
		if x.Host {
			t.host = sp
		}
		was, is := sp.Occupants, x.Occupants
		if was.Connections > 0 && is.Connections > 0 {
			was.Connections = is.Connections // how many there are is of no interest
		}
		if !was.Equal(&is) {
			sp.due = now
		}
		sp.Report = x
		if is.Connections > 0 {
			sp.lastConn = now
		}
	}
	for id, sp := range t.spaces {
		if !seen[id] {
			t.lost(sp)
			delete(t.spaces, id)
		}
	}
}

// lost ends what was said about a namespace that is no more.
func (t *Loop) lost(sp *space) {
	t.settle(sp, "the namespace is gone")
	if sp == t.host {
		t.host = nil
	}
}

// settle ends the findings about a namespace.
func (t *Loop) settle(sp *space, why string) {
	if sp.drift != "" {
		sp.drift = ""
		t.send(sp, event.NamespaceDriftOver, why, "")
	}
	if sp.failed != "" {
		sp.failed = ""
		t.send(sp, event.TuneResumed, why, "")
	}
}

// turn does what is due.
func (t *Loop) turn(ctx context.Context) error {
	now, p := sys.Monotonic(), t.Policy()
	c := p.Config
	mode := p.Most(policy.Tune)
	if mode == config.Off {
		if t.mode != config.Off {
			t.release()
			for _, sp := range t.spaces {
				t.settle(sp, "tuning is off")
			}
			t.mend("tuning is off")
			t.spaces, t.host = map[netns.ID]*space{}, nil
			t.Missing("")
			t.publish()
		}
		t.mode, t.conf = mode, c
		return nil
	}
	if mode != t.mode || c != t.conf {
		if c != t.conf {
			t.Missing("") // it may have been given meanwhile
		}
		for _, sp := range t.spaces {
			sp.due, sp.would = now, ""
		}
		t.mode, t.conf = mode, c
	}
	var due []*space
	for _, sp := range t.spaces {
		if sp.due <= now {
			due = append(due, sp)
		}
	}
	if len(due) == 0 {
		return nil
	}
	slices.SortFunc(due, func(a, b *space) int { return cmp.Compare(a.NS.ID.Inode, b.NS.ID.Inode) })
	state, err := t.store.Load()
	if err != nil {
		t.byState = true
		t.fail(err, "move the file away once you have looked at it; namespaces keep the values they have")
		for _, sp := range due {
			sp.due = now + compareEvery
		}
		return nil
	}
	if t.byState {
		t.mend(mended)
	}
	plans, err := t.plan(ctx, p, due, state, now)
	if err != nil {
		return err
	}
	if mode == config.Enforce {
		if err := t.apply(plans, state); err != nil {
			return err
		}
		t.forgetGone(ctx, state, now)
	} else {
		t.release()
	}
	for _, p := range plans {
		t.report(p, min(mode, p.sp.Mode))
	}
	t.publish()
	t.Figures.Success(figures.Tuner)
	return nil
}

// fail tells, once, what keeps all namespaces from being tuned.
func (t *Loop) fail(err error, remedy string) {
	if err.Error() == t.broken || t.host == nil {
		return
	}
	t.broken = err.Error()
	t.Log.Error("network namespaces cannot be tuned, only observed", "error", err, "remedy", remedy)
	t.send(t.host, event.TuneFailed, "network namespaces cannot be tuned: "+err.Error()+"; remedy: "+remedy, string(verdict.ReapFailed))
	t.Figures.Tune(figures.TuneFailed)
}

const mended = "network namespaces can be tuned again"

// mend ends what fail has told.
func (t *Loop) mend(why string) {
	if t.broken != "" && t.host != nil {
		t.broken, t.byState = "", false
		t.send(t.host, event.TuneResumed, why, "")
	}
}

// release gives up the right to tune.
func (t *Loop) release() {
	if t.claim != nil {
		t.claim.Close()
		t.claim = nil
	}
}

// forgetGone drops the records of namespaces that are no more, now and then.
func (t *Loop) forgetGone(ctx context.Context, state *sysctl.State, now time.Duration) {
	if now < t.forget || !slices.ContainsFunc(state.Records, func(r sysctl.Record) bool { return t.spaces[r.ID] == nil }) {
		return
	}
	t.forget = now + compareEvery
	list, all := t.find(ctx)
	if !all {
		return
	}
	there := map[netns.ID]bool{}
	for _, ns := range list {
		there[ns.ID] = true
	}
	if _, err := t.store.Forget(func(r *sysctl.Record) bool { return !there[r.ID] }); err != nil {
		t.Log.Warn("cannot forget what namespaces had before that are gone", "error", err)
	}
}

// find lists the namespaces anew; all says that there are no others.
func (t *Loop) find(ctx context.Context) (list []netns.Namespace, all bool) {
	var err error
	list, err = t.Finder.Find(ctx, t.thread)
	return list, err == nil && t.Finder.HostErr == nil
}

// stop ends the loop.
func (t *Loop) stop() error {
	defer t.release()
	if t.claim == nil || !t.Policy().Config.Tune.RestoreOnStop {
		return nil
	}
	// The context is over; a walk over a node's processes takes milliseconds.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	list, all := t.find(ctx)
	done, err := t.store.Restore(t.thread, t.sysctls, list, all, nil, false)
	if err != nil {
		t.Log.Error("the original sysctls cannot be restored", "error", err, "remedy", "redisguard restore")
		return nil
	}
	for _, r := range done {
		switch sp := t.spaces[r.Record.ID]; {
		case r.Err != nil:
			t.Log.Error("the original sysctls of a namespace cannot be restored", "namespace", r.Record.Name, "error", r.Err, "remedy", "redisguard restore")
		case r.Outcome == sysctl.Restored && sp != nil:
			t.send(sp, event.NamespaceRestored, "redisguard stops: "+said(r.Items, func(it sysctl.Item) bool { return it.Action == sysctl.Restore }), "")
			t.Figures.Tune(figures.TuneRestored)
		}
	}
	return nil
}

// said lists changes.
func said(items []sysctl.Item, which func(sysctl.Item) bool) string {
	var words []string
	for _, it := range items {
		if which(it) {
			words = append(words, fmt.Sprintf("%s %d -> %d", it.Key.Short(), it.Have, it.Want))
		}
	}
	return strings.Join(words, ", ")
}

// publish makes the table visible.
func (t *Loop) publish() {
	table := make(map[netns.ID]*view.Tune, len(t.spaces))
	count := map[view.TuneState]int64{}
	for id, sp := range t.spaces {
		if sp.view != nil {
			table[id] = sp.view
			count[sp.view.State]++
		}
	}
	t.table.Store(&table)
	t.Figures.TuneStates(count)
}

// send tells of a namespace.
func (t *Loop) send(sp *space, typ verdict.EventType, text, outcome string) {
	t.Publish(event.Event{Type: typ, NS: verdict.NS(sp.NS.ID.Number()), Namespace: sp.NS.String(), Text: text, Outcome: outcome})
}
