package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	// tuneFile in the state directory keeps the original sysctls.
	tuneFile = "tuned.json"
	// tuneEvery is how often the values of a namespace are compared again.
	tuneEvery = 30 * time.Second
	// tuneFor is how long a namespace stays in scope "redis" after its last
	// watched connection: clients that reconnect only now and then keep it.
	tuneFor = time.Hour
	// newsEvery is how often the watcher tells of all namespaces, newsGap the
	// least pause between two such reports when something has changed.
	newsEvery = 15 * time.Second
	newsGap   = 500 * time.Millisecond
	// tuneRetry is the pause before a namespace that could not be tuned is tried
	// again.
	tuneRetry = 5 * time.Minute
)

// TuneStore is where the original sysctls are kept, below a state directory, or
// StateDir if it is empty.
func TuneStore(dir string) sysctl.Store {
	return sysctl.Store{Path: filepath.Join(cmp.Or(dir, StateDir), tuneFile)}
}

// TuneValues are the sysctls that the config asks for.
func TuneValues(c *config.Config) sysctl.Values {
	v := sysctl.Values{}
	t := &c.Tune
	for k, n := range map[sysctl.Key]int{
		sysctl.Retries2: t.TCPRetries2, sysctl.KeepaliveTime: t.TCPKeepaliveTime, sysctl.KeepaliveIntvl: t.TCPKeepaliveIntvl,
		sysctl.KeepaliveProbes: t.TCPKeepaliveProbes, sysctl.SynRetries: t.TCPSynRetries, sysctl.RTOMax: t.TCPRtoMaxMs,
		sysctl.OrphanRetries: t.TCPOrphanRetries, sysctl.FinTimeout: t.TCPFinTimeout,
	} {
		if n != config.Leave {
			v[k] = n
		}
	}
	return v
}

// tuned is a namespace in the tuner's table.
type tuned struct {
	tenants
	key      verdict.NS
	lastConn time.Duration // when it had a watched connection, 0 if never
	listens  uint64        // a hash of its listening sockets
	surveyed bool
	redis    string        // why Redis is taken to listen in it
	own      string        // why its own process forbids to touch it
	ownNames []string      // as tenants.names
	due      time.Duration // when its values are compared again
	view     *view.Tune
	// What was told, so that it is told once.
	drift, failed, would string
}

// tuner is the state of the tuning loop.
type tuner struct {
	s       *Supervisor
	thread  *netns.Thread
	owners  *attribution
	pods    proc.PodNames
	sysctls sysctl.FS
	store   sysctl.Store
	spaces  map[netns.ID]*tuned
	hold    io.Closer // the right to tune on this node; nil while we do not have it
	conf    *config.Config
	mode    config.Mode
	hash    maphash.Seed
	forget  time.Duration // when records of namespaces that are gone are dropped
	// What was told to keep us from tuning at all, and whether it is the state
	// file.
	broken  string
	byState bool
	host    *tuned
}

func (s *Supervisor) newTuner(thread *netns.Thread) *tuner {
	t := &tuner{
		s: s, thread: thread, sysctls: sysctl.FS{Root: s.opt.Sysctls}, store: TuneStore(s.opt.StateDir), spaces: map[netns.ID]*tuned{},
		owners: s.attribution(thread),
		pods:   proc.PodNames{FS: s.opt.Proc}, hash: maphash.MakeSeed(),
	}
	return t
}

// tune keeps namespaces tuned until ctx ends.
func (s *Supervisor) tune(ctx context.Context) error {
	thread, err := netns.NewThread()
	if err != nil {
		return err
	}
	defer thread.Close()
	t := s.newTuner(thread)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return t.stop()
		case list := <-s.tenants:
			t.take(list)
		case <-tick.C:
		}
		if err := t.turn(ctx); err != nil {
			return err
		}
	}
}

// TuneMode is how far tuning goes.
func (s *Supervisor) TuneMode() config.Mode {
	c := s.config()
	m := config.Ceiling(s.watchMode(c), c.Tune.Mode)
	if s.disabled() {
		m = config.Off
	}
	if s.cannotTune.Load() {
		m = config.Ceiling(m, config.Observe)
	}
	return m
}

// take brings the table up to date.
func (t *tuner) take(list []tenants) {
	now := monotonic()
	seen := make(map[netns.ID]bool, len(list))
	for _, x := range list {
		seen[x.ns.ID] = true
		sp := t.spaces[x.ns.ID]
		if sp == nil {
			sp = &tuned{key: nsKey(x.ns.ID)}
			t.spaces[x.ns.ID] = sp
		}
		if x.host {
			t.host = sp
		}
		first := x.conns > 0 && sp.conns == 0
		if first || x.excluded != sp.excluded || x.pending != sp.pending || !slices.Equal(x.names, sp.names) {
			sp.due = now
		}
		sp.tenants = x
		if x.conns > 0 {
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
func (t *tuner) lost(sp *tuned) {
	t.settle(sp, "the namespace is gone")
	if sp == t.host {
		t.host = nil
	}
}

// settle ends the findings about a namespace.
func (t *tuner) settle(sp *tuned, why string) {
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
func (t *tuner) turn(ctx context.Context) error {
	now, c := monotonic(), t.s.config()
	mode := t.s.TuneMode()
	if mode == config.Off {
		if t.mode != config.Off {
			t.release()
			for _, sp := range t.spaces {
				t.settle(sp, "tuning is off")
			}
			t.mend("tuning is off")
			t.spaces, t.host = map[netns.ID]*tuned{}, nil
			t.s.cannotTune.Store(false)
			t.publish()
		}
		t.mode, t.conf = mode, c
		return nil
	}
	if mode != t.mode || c != t.conf {
		if c != t.conf {
			t.s.cannotTune.Store(false) // it may have been given meanwhile
		}
		for _, sp := range t.spaces {
			sp.due, sp.would, sp.surveyed = now, "", false
		}
		t.mode, t.conf = mode, c
	}
	var due []*tuned
	for _, sp := range t.spaces {
		if sp.due <= now {
			due = append(due, sp)
		}
	}
	if len(due) == 0 {
		return nil
	}
	slices.SortFunc(due, func(a, b *tuned) int { return cmp.Compare(a.ns.ID.Inode, b.ns.ID.Inode) })
	state, err := t.store.Load()
	if err != nil {
		t.byState = true
		t.fail(err, "move the file away once you have looked at it; namespaces keep the values they have")
		for _, sp := range due {
			sp.due = now + tuneEvery
		}
		return nil
	}
	if t.byState {
		t.mend(mended)
	}
	plans, err := t.plan(ctx, c, due, state, now)
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
		t.report(p, mode)
	}
	t.publish()
	t.s.figures.succeeded(Tuner)
	return nil
}

// spacePlan is what is found and planned for one namespace.
type spacePlan struct {
	sp     *tuned
	wanted bool
	why    string // why it is not
	have   sysctl.Values
	items  []sysctl.Item
	kept   *sysctl.Record
	err    error
	done   bool // the items were carried out
}

// plan looks at the namespaces.
func (t *tuner) plan(ctx context.Context, c *config.Config, due []*tuned, state *sysctl.State, now time.Duration) ([]*spacePlan, error) {
	if err := t.survey(ctx, c, due); err != nil {
		return nil, err
	}
	want := TuneValues(c)
	policy := sysctl.Policy{Override: c.Tune.Override, Repair: c.Tune.Drift == config.DriftRepair}
	var plans []*spacePlan
	for _, sp := range due {
		p := &spacePlan{sp: sp, kept: state.Of(sp.ns.ID)}
		if p.kept != nil && sp.lastConn == 0 {
			sp.lastConn = now // a predecessor has tuned it: it gets its hour
		}
		sp.due = now + tuneEvery
		p.wanted, p.why = t.wants(c, sp, p.kept != nil, now)
		if !p.wanted && p.kept == nil && sp.conns == 0 && !sp.host {
			sp.view = nil
			continue
		}
		p.have, p.err = t.sysctls.ReadIn(t.thread, sp.ns)
		switch {
		case errors.Is(p.err, netns.ErrStranded):
			return nil, p.err
		case errors.Is(p.err, netns.ErrGone):
			continue // the next list will be without it
		case p.err != nil:
			plans = append(plans, p)
			continue
		}
		if p.wanted {
			p.items = sysctl.Plan(p.have, p.kept, want, policy)
		} else {
			p.items = sysctl.Plan(p.have, p.kept, nil, policy)
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// apply carries out the plans.
func (t *tuner) apply(plans []*spacePlan, state *sysctl.State) error {
	var jobs []sysctl.Job
	var of []*spacePlan
	for _, p := range plans {
		if p.err == nil && sysctl.Changes(p.items, p.kept) {
			jobs = append(jobs, sysctl.Job{NS: p.sp.ns, Items: p.items})
			of = append(of, p)
		}
	}
	if len(jobs) == 0 {
		return nil
	}
	unable := func(err error, remedy string) error {
		t.fail(err, remedy)
		for _, p := range of {
			p.sp.due = monotonic() + tuneEvery
		}
		return nil
	}
	if err := t.sysctls.Writable(); err != nil {
		t.s.cannotTune.Store(true)
		return unable(err, "give redisguard CAP_NET_ADMIN and a /proc/sys that is not read-only; in a container mount the host's /proc/sys/net at /host/proc/sys/net")
	}
	if t.hold == nil {
		hold, err := t.store.Hold()
		if err != nil {
			return unable(err, "let one redisguard run on a node")
		}
		t.hold = hold
	}
	errs, err := t.store.Apply(t.thread, t.sysctls, jobs)
	if errors.Is(err, netns.ErrStranded) {
		return err
	}
	if err != nil {
		return unable(err, "let redisguard write "+filepath.Dir(t.store.Path))
	}
	t.mend(mended)
	if now, err := t.store.Load(); err == nil {
		*state = *now
	}
	for i, p := range of {
		if err := errs[i]; err != nil {
			p.err = err
			p.sp.due = monotonic() + tuneRetry
			if errors.Is(err, sysctl.ErrChanged) {
				p.sp.due = monotonic() // somebody is at it: look again
			}
			continue
		}
		p.done = true
		for _, it := range p.items {
			if it.Action.Writes() {
				p.have[it.Key] = it.Want
			}
		}
	}
	for _, p := range plans {
		p.kept = state.Of(p.sp.ns.ID)
	}
	return nil
}

// fail tells, once, what keeps all namespaces from being tuned.
func (t *tuner) fail(err error, remedy string) {
	if err.Error() == t.broken || t.host == nil {
		return
	}
	t.broken = err.Error()
	t.s.log.Error("network namespaces cannot be tuned, only observed", "error", err, "remedy", remedy)
	t.send(t.host, event.TuneFailed, "network namespaces cannot be tuned: "+err.Error()+"; remedy: "+remedy, string(verdict.ReapFailed))
	t.s.figures.tuned(TuneFailed)
}

const mended = "network namespaces can be tuned again"

// mend ends what fail has told.
func (t *tuner) mend(why string) {
	if t.broken != "" && t.host != nil {
		t.broken, t.byState = "", false
		t.send(t.host, event.TuneResumed, why, "")
	}
}

// release gives up the right to tune.
func (t *tuner) release() {
	if t.hold != nil {
		t.hold.Close()
		t.hold = nil
	}
}

// forgetGone drops the records of namespaces that are no more, now and then.
func (t *tuner) forgetGone(ctx context.Context, state *sysctl.State, now time.Duration) {
	if now < t.forget || !slices.ContainsFunc(state.Records, func(r sysctl.Record) bool { return t.spaces[r.ID] == nil }) {
		return
	}
	t.forget = now + tuneEvery
	list, all := t.find(ctx)
	if !all {
		return
	}
	there := map[netns.ID]bool{}
	for _, ns := range list {
		there[ns.ID] = true
	}
	if _, err := t.store.Forget(func(r *sysctl.Record) bool { return !there[r.ID] }); err != nil {
		t.s.log.Warn("cannot forget what namespaces had before that are gone", "error", err)
	}
}

// find lists the namespaces anew; all says that there are no others.
func (t *tuner) find(ctx context.Context) (list []netns.Namespace, all bool) {
	f := t.s.finder()
	list, err := f.Find(ctx, t.thread)
	return list, err == nil && f.HostErr == nil
}

// stop ends the loop.
func (t *tuner) stop() error {
	defer t.release()
	if c := t.s.config(); t.hold == nil || !c.Tune.RestoreOnStop {
		return nil
	}
	// The context is over; a walk over a node's processes takes milliseconds.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	list, all := t.find(ctx)
	done, err := t.store.Restore(t.thread, t.sysctls, list, all, nil, false)
	if err != nil {
		t.s.log.Error("the original sysctls cannot be restored", "error", err, "remedy", "redisguard restore")
		return nil
	}
	for _, r := range done {
		switch sp := t.spaces[r.Record.ID]; {
		case r.Err != nil:
			t.s.log.Error("the original sysctls of a namespace cannot be restored", "namespace", r.Record.Name, "error", r.Err, "remedy", "redisguard restore")
		case r.Outcome == sysctl.Restored && sp != nil:
			t.send(sp, event.NamespaceRestored, "redisguard stops: "+said(r.Items, func(it sysctl.Item) bool { return it.Action == sysctl.Restore }), "")
			t.s.figures.tuned(TuneRestored)
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
func (t *tuner) publish() {
	table := make(map[netns.ID]*view.Tune, len(t.spaces))
	count := map[view.TuneState]int64{}
	for id, sp := range t.spaces {
		if sp.view != nil {
			table[id] = sp.view
			count[sp.view.State]++
		}
	}
	t.s.tuning.Store(&table)
	t.s.figures.tuning(count)
}

// send completes an event and gives it to the hub, the audit file and the log.
func (t *tuner) send(sp *tuned, typ verdict.EventType, text, outcome string) {
	e := event.Event{Time: time.Now().UTC(), Type: typ, NS: sp.key, Namespace: sp.ns.String(), Text: text, Outcome: outcome}
	e.Seq = t.s.opt.Hub.Publish(e)
	t.s.audit.add(e)
	level := slog.LevelInfo
	if typ == event.TuneFailed || typ == event.NamespaceDrift {
		level = slog.LevelWarn
	}
	t.s.log.Log(context.Background(), level, string(typ), "seq", e.Seq, "namespace", e.Namespace, "outcome", outcome, "text", text)
}

// finder looks for namespaces as the discoverer does.
func (s *Supervisor) finder() netns.Finder {
	f := netns.Finder{MountDirs: s.opt.MountDirs, Walk: s.opt.Proc.WalkNetNS}
	if s.opt.Proc.Proc != "" {
		f.HostPath = filepath.Join(s.opt.Proc.Proc, "1/ns/net")
	}
	return f
}
