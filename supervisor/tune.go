package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/sysctl"
	"github.com/redisguard/redisguard/tcpstate"
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
	owners  attribution
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
		owners: attribution{s: s, thread: thread, attributor: proc.NewAttributor(s.opt.Proc), tries: map[verdict.ConnKey]int{}},
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
			t.spaces, t.host, t.broken = map[netns.ID]*tuned{}, nil, ""
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
		t.mend()
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
	t.mend()
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

// mend ends what fail has told.
func (t *tuner) mend() {
	if t.broken != "" && t.host != nil {
		t.broken, t.byState = "", false
		t.send(t.host, event.TuneResumed, "network namespaces can be tuned again", "")
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

// report tells what is new about a namespace, and puts it into the view.
func (t *tuner) report(p *spacePlan, mode config.Mode) {
	sp := p.sp
	if p.err != nil {
		if !errors.Is(p.err, netns.ErrGone) && !errors.Is(p.err, sysctl.ErrChanged) {
			if text := p.err.Error(); text != sp.failed {
				sp.failed = text
				t.send(sp, event.TuneFailed, "this namespace cannot be tuned: "+text, string(verdict.ReapFailed))
				t.s.figures.tuned(TuneFailed)
			}
			sp.view = &view.Tune{State: view.TuneFailed, Why: p.err.Error()}
		}
		return
	}
	writes := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Write })
	backs := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Restore })
	meaning := sysctl.Mean(p.have, 0)
	if p.done && sp.failed != "" {
		sp.failed = ""
		t.send(sp, event.TuneResumed, "this namespace can be tuned again", "")
	}
	switch {
	case p.done && writes != "":
		text := writes + ": " + meaning.String()
		if left := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Foreign }); left != "" {
			text += "; left, since somebody has chosen it: " + left
		}
		t.send(sp, event.NamespaceTuned, text, "")
		t.s.figures.tuned(TuneDone)
	case !p.done && writes != "" && mode == config.Observe && writes != sp.would:
		sp.would = writes
		would := maps.Clone(p.have)
		for _, it := range p.items {
			if it.Action == sysctl.Write {
				would[it.Key] = it.Want
			}
		}
		t.send(sp, event.NamespaceTuned, "would be tuned: "+writes+": "+sysctl.Mean(would, 0).String(), tuneDryRun)
		t.s.figures.tuned(TuneObserved)
	}
	if p.done && backs != "" {
		t.send(sp, event.NamespaceRestored, backs+": "+p.why, "")
		t.s.figures.tuned(TuneRestored)
	}
	drifts := said(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Drifted || it.Conflict && p.done })
	gaveUp := slices.ContainsFunc(p.items, func(it sysctl.Item) bool { return it.GivenUp })
	repaired := !slices.ContainsFunc(p.items, func(it sysctl.Item) bool { return it.Action == sysctl.Drifted })
	switch {
	case drifts == "":
		if sp.drift != "" {
			sp.drift = ""
			t.send(sp, event.NamespaceDriftOver, "the values are as they should be", "")
		}
	case repaired:
		// It is over already, and still worth telling: somebody else sets
		// these values too.
		t.send(sp, event.NamespaceDrift, "somebody has changed values after redisguard; changed back: "+drifts, "")
		t.send(sp, event.NamespaceDriftOver, "it was changed back", "")
		t.s.figures.tuned(TuneDrifted)
	case drifts != sp.drift:
		if sp.drift != "" {
			t.send(sp, event.NamespaceDriftOver, "it was changed again", "")
		}
		sp.drift = drifts
		text := "somebody has changed values after redisguard; left, as tune.drift is \"report\": "
		if gaveUp {
			text = fmt.Sprintf("somebody goes on changing values after redisguard; given up after %d repairs: ", sysctl.MaxConflicts)
		}
		t.send(sp, event.NamespaceDrift, text+drifts, "")
		t.s.figures.tuned(TuneDrifted)
	}
	sp.view = viewOf(p, meaning)
}

// tuneDryRun is the outcome of what was not done; the word of the API.
const tuneDryRun = "dry-run"

// viewOf puts a namespace into words.
func viewOf(p *spacePlan, m sysctl.Meaning) *view.Tune {
	v := &view.Tune{Why: p.why, Busy: m.Busy, Idle: m.Idle, Connect: m.Connect, Meaning: m.String()}
	planned := map[sysctl.Key]sysctl.Item{}
	for _, it := range p.items {
		planned[it.Key] = it
	}
	ours, pending, drifted := false, false, false
	for _, k := range sysctl.Keys() {
		n, ok := p.have[k]
		if !ok {
			continue
		}
		x := view.TuneValue{Key: k.String(), Unit: k.Def().Unit, Value: n, Owner: view.TuneForeign}
		if n == k.Def().Default {
			x.Owner = view.TuneKernel
		}
		if it, ok := planned[k]; ok && p.wanted {
			want := it.Want
			x.Want = &want
		}
		if p.kept != nil {
			if original, ok := p.kept.Original(k); ok {
				x.Original = &original
				x.Owner = view.TuneOurs
				if it := planned[k]; it.Action == sysctl.Drifted {
					x.Owner, drifted = view.TuneDrift, true
				} else {
					ours = true
				}
			}
		}
		if it := planned[k]; it.Action.Writes() && !p.done {
			pending = true
		}
		v.Values = append(v.Values, x)
	}
	switch {
	case drifted:
		v.State = view.TuneDrifted
	case pending:
		v.State = view.TunePlanned
	case ours:
		v.State = view.TuneTuned
	case p.wanted:
		v.State = view.TuneLeft
	default:
		v.State = view.TuneExempt
	}
	return v
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

// TunePlan is what tuning would do to one namespace now.
type TunePlan struct {
	NS     netns.Namespace
	Wanted bool
	Why    string // why it is not tuned
	Items  []sysctl.Item
	// Now and Then are what the values mean, and would mean.
	Now, Then sysctl.Meaning
	Err       error
}

// PlanTuning looks once at this node, without a daemon, and says what tuning
// would do. It knows nothing of the last hour. seen says that namespaces could be
// listed completely.
func PlanTuning(ctx context.Context, opt Options) (plans []TunePlan, seen error, err error) {
	s := &Supervisor{opt: opt, log: cmp.Or(opt.Log, slog.New(slog.DiscardHandler)), figures: newFigures()}
	s.conf.Store(&opt.Config)
	done := make(chan struct{})
	go func() { // a thread of its own, never the main one
		defer close(done)
		plans, seen, err = s.planTuning(ctx)
	}()
	<-done
	return plans, seen, err
}

func (s *Supervisor) planTuning(ctx context.Context) (list []TunePlan, seen error, err error) {
	thread, err := netns.NewThread()
	if err != nil {
		return nil, nil, err
	}
	defer thread.Close()
	t, c := s.newTuner(thread), s.config()
	f := s.finder()
	spaces, seen := f.Find(ctx, thread)
	seen = errors.Join(seen, f.HostErr)
	state, err := t.store.Load()
	if err != nil {
		return nil, seen, err
	}
	var socket tcpstate.Socket
	subjects := map[netns.ID][]*subject{}
	var batch []*subject
	for _, ns := range spaces {
		err := thread.Visit(ns, func() error {
			if err := socket.Open(); err != nil {
				return err
			}
			defer socket.Close()
			return socket.Dump(tcpstate.Filter{RemotePorts: c.Watch.Ports}, func(k *tcpstate.Connection) error {
				if wanted(c, k) && k.Inode != 0 {
					sub := &subject{key: verdict.ConnKey{NS: nsKey(ns.ID), Cookie: k.Cookie}, ns: ns, id: k.ID, inode: k.Inode, uid: k.UID}
					subjects[ns.ID] = append(subjects[ns.ID], sub)
					batch = append(batch, sub)
				}
				return nil
			})
		})
		if errors.Is(err, netns.ErrStranded) {
			return nil, seen, err
		}
		if err != nil && !errors.Is(err, netns.ErrGone) {
			seen = errors.Join(seen, err)
		}
	}
	answers, _ := t.owners.resolve(ctx, batch)
	own := map[verdict.ConnKey]ownership{}
	for _, a := range answers {
		own[a.key] = a.own
	}
	var news []tenants
	for i, ns := range spaces {
		x := tenants{ns: ns, host: i == 0}
		for _, sub := range subjects[ns.ID] {
			o := own[sub.key]
			o.asked = true
			x.add(c, &o, sub.uid)
		}
		news = append(news, x)
	}
	t.take(news)
	var due []*tuned
	for _, x := range news {
		due = append(due, t.spaces[x.ns.ID])
	}
	plans, err := t.plan(ctx, c, due, state, monotonic())
	if err != nil {
		return nil, seen, err
	}
	for _, p := range plans {
		then := maps.Clone(p.have)
		for _, it := range p.items {
			if it.Action.Writes() {
				then[it.Key] = it.Want
			}
		}
		list = append(list, TunePlan{NS: p.sp.ns, Wanted: p.wanted, Why: p.why, Items: p.items, Now: sysctl.Mean(p.have, 0), Then: sysctl.Mean(then, 0), Err: p.err})
	}
	return list, seen, nil
}

// RestoreOptions say how RestoreTuning goes about it.
type RestoreOptions struct {
	DryRun bool
	Force  bool // also while a daemon tunes this node
}

// RestoreTuning gives the tuned namespaces their original values back, without a
// daemon. It is sysctl.ErrHeld while one tunes this node. incomplete says that not
// all namespaces could be seen.
func RestoreTuning(ctx context.Context, opt Options, r RestoreOptions) (list []sysctl.Restoration, incomplete, err error) {
	s := &Supervisor{opt: opt}
	store := TuneStore(opt.StateDir)
	// Nobody's state, nobody's directory: none is made for nothing.
	if state, err := store.Load(); err != nil || len(state.Records) == 0 {
		return nil, nil, err
	}
	if !r.Force && !r.DryRun {
		hold, err := store.Hold()
		if err != nil {
			return nil, nil, err
		}
		defer hold.Close()
	}
	done := make(chan struct{})
	go func() { // a thread of its own, never the main one
		defer close(done)
		var thread *netns.Thread
		if thread, err = netns.NewThread(); err != nil {
			return
		}
		defer thread.Close()
		f := s.finder()
		found, finding := f.Find(ctx, thread)
		incomplete = errors.Join(finding, f.HostErr)
		list, err = store.Restore(thread, sysctl.FS{Root: opt.Sysctls}, found, incomplete == nil, nil, r.DryRun)
	}()
	<-done
	return list, incomplete, err
}
