// Package figures counts what the daemon does, for its metrics, its status and tests: one
// Set, which all of its parts count in, and Figures, a reading of it.
package figures

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// Component is a part of the daemon that shows signs of life.
type Component string

// The components.
const (
	Watcher    Component = "watcher"
	Discoverer Component = "discoverer"
	Attributor Component = "attributor"
	Tuner      Component = "tuner"
	AuditFile  Component = "audit"
)

// Components are all of them.
func Components() []Component { return []Component{Watcher, Discoverer, Attributor, Tuner, AuditFile} }

// TuneOutcome is what became of tuning a namespace.
type TuneOutcome string

// The outcomes.
const (
	TuneDone     TuneOutcome = "tuned"
	TuneObserved TuneOutcome = "dry_run"
	TuneRestored TuneOutcome = "restored"
	TuneDrifted  TuneOutcome = "drifted" // somebody's change after ours was seen
	TuneFailed   TuneOutcome = "failed"
)

// TuneOutcomes are all of them.
func TuneOutcomes() []TuneOutcome {
	return []TuneOutcome{TuneDone, TuneObserved, TuneRestored, TuneDrifted, TuneFailed}
}

// ArmOutcome is what became of arming a connection.
type ArmOutcome string

// The outcomes.
const (
	ArmSet          ArmOutcome = "armed"
	ArmObserved     ArmOutcome = "dry_run"
	ArmLeftAlone    ArmOutcome = "left" // it had what it was to get, or its application has chosen stricter values
	ArmGone         ArmOutcome = "gone" // the connection, its process or its descriptor
	ArmNotPermitted ArmOutcome = "not_permitted"
	ArmNotSupported ArmOutcome = "not_supported"
	ArmNotTaken     ArmOutcome = "not_taken" // the kernel said yes, and kept another value
	ArmBlocked      ArmOutcome = "blocked"   // its process does not let the socket be reached
	ArmError        ArmOutcome = "error"
)

// ArmOutcomes are all of them.
func ArmOutcomes() []ArmOutcome {
	return []ArmOutcome{ArmSet, ArmObserved, ArmLeftAlone, ArmGone, ArmNotPermitted, ArmNotSupported, ArmNotTaken, ArmBlocked, ArmError}
}

// ReapKind is a rule with what became of a reap by it.
type ReapKind struct {
	Rule    verdict.Rule
	Outcome verdict.ReapOutcome
}

// Figures are counters and distributions since the start, unless they say otherwise.
// Whatever can be a key is there from the start, as zero.
type Figures struct {
	// Tracked and Namespaces are how many there are now.
	Tracked, Namespaces int64
	Dumps, DumpErrors   int64
	// Gets counts exact looks at connections, Steps verdict steps, Late those that came
	// later than they were due by more than a tick.
	Gets, Steps, Late int64
	// TasksSkipped counts probes and looks that were not made because too many were
	// under way, InboxWaits messages to the watcher that had to wait for room.
	TasksSkipped, InboxWaits int64
	// Reaped, Spared and Failed are outcomes of reaps, the requested ones too.
	Reaped, Spared, Failed int64
	// ProbesMade counts probes whose socket was opened.
	ProbesMade int64
	// Asks counts connections that were asked whether their peer is there, or could not be.
	Asks int64
	// Discovery is the age of the oldest view of any namespace that is known to have
	// something new: how late discovery is.
	Discovery time.Duration
	// Attributions counts connections whose owner was looked for, Unexplained those for
	// whom none was found.
	Attributions, Unexplained int64
	// Questions counts listening sockets that were asked whether they are Redis.
	Questions int64
	// AuditDropped counts audit records that could not be written.
	AuditDropped int64
	// ConnectEvents counts new connections that the kernel's tracepoint told of,
	// ConnectEventsLost those that it had no room to tell of.
	ConnectEvents, ConnectEventsLost int64

	// Reaps counts those that were tried.
	Reaps map[ReapKind]int64
	// Withheld counts connections that were judged half-dead by a rule and not
	// reaped, for want of a permit or by policy.
	Withheld map[verdict.Rule]int64
	Probes   map[verdict.Outcome]int64
	// Tunes counts what was done to namespaces, Tuning how many stand how now.
	Tunes  map[TuneOutcome]int64
	Tuning map[view.TuneState]int64
	// Arms counts what was done to connections; those that failed are tried again.
	Arms map[ArmOutcome]int64
	// Detection is how long the silence of a connection had lasted when it was
	// judged half-dead; Wait how long it then waited for its reap; Recovery how
	// long after the first reap its client was back.
	Detection      map[verdict.Rule]Distribution
	Wait, Recovery Distribution
	// Lateness is how much later than planned a round of looks began.
	Lateness Distribution
	// Succeeded is when a component last did what it is there for; zero is
	// never. Watcher and discoverer also succeed while they are off; the others
	// have work only now and then.
	Succeeded map[Component]time.Time
}

// Distribution counts durations by size.
type Distribution struct {
	// Buckets count those of at most Upper each, without those in the buckets
	// before; longer ones are in Count only.
	Upper   []time.Duration
	Buckets []uint64
	Count   uint64
	Sum     time.Duration
}

func (d *Distribution) observe(t time.Duration) {
	t = max(0, t)
	d.Count++
	d.Sum += t
	if i, _ := slices.BinarySearch(d.Upper, t); i < len(d.Upper) {
		d.Buckets[i]++
	}
}

func distribution(upper ...time.Duration) Distribution {
	return Distribution{Upper: upper, Buckets: make([]uint64, len(upper))}
}

// The limits of the distributions. Those of detections lie around the profiles'
// down_after (700 ms, 2 s, 5 s) and end at the kernel's own 15 minutes.
var (
	detectionLimits = []time.Duration{
		250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond, time.Second, 1500 * time.Millisecond, 2 * time.Second,
		2500 * time.Millisecond, 3 * time.Second, 5 * time.Second, 7500 * time.Millisecond, 15 * time.Second, time.Minute, 15 * time.Minute,
	}
	waitLimits = []time.Duration{
		10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
		2 * time.Second, 5 * time.Second, 15 * time.Second, time.Minute,
	}
	recoveryLimits = []time.Duration{
		10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
		2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second,
	}
	latenessLimits = []time.Duration{
		time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
		200 * time.Millisecond, 400 * time.Millisecond, time.Second, 5 * time.Second,
	}
)

// Set is what all loops count in. Make one with New. The plain counters are for all to add
// to; the rest is kept under one lock, which is held for nanoseconds and taken a few
// times a second.
type Set struct {
	Tracked, Namespaces              atomic.Int64
	Dumps, DumpErrors                atomic.Int64
	Gets, Steps, Late                atomic.Int64
	TasksSkipped, InboxWaits         atomic.Int64
	ProbesMade, Asks                 atomic.Int64
	OldestDump                       atomic.Int64 // Figures.Discovery, in ns
	Attributions, Unexplained        atomic.Int64
	Questions                        atomic.Int64
	AuditDropped                     atomic.Int64
	ConnectEvents, ConnectEventsLost atomic.Int64

	mu sync.Mutex
	f  Figures
}

// New is a set in which nothing was counted.
func New() *Set { return &Set{f: None()} }

// None are the figures of a daemon that has done nothing yet.
func None() Figures {
	f := Figures{
		Reaps: map[ReapKind]int64{}, Withheld: map[verdict.Rule]int64{}, Probes: map[verdict.Outcome]int64{},
		Tunes: map[TuneOutcome]int64{}, Tuning: map[view.TuneState]int64{},
		Arms: map[ArmOutcome]int64{}, Detection: map[verdict.Rule]Distribution{}, Succeeded: map[Component]time.Time{},
		Wait: distribution(waitLimits...), Recovery: distribution(recoveryLimits...), Lateness: distribution(latenessLimits...),
	}
	for _, o := range verdict.ReapOutcomes() {
		for _, r := range append(verdict.Rules(), verdict.RuleManual) {
			f.Reaps[ReapKind{r, o}] = 0
		}
	}
	for _, r := range verdict.Rules() {
		f.Withheld[r] = 0
		f.Detection[r] = distribution(detectionLimits...)
	}
	for _, o := range []verdict.Outcome{verdict.Alive, verdict.Dead, verdict.Refused, verdict.Unresponsive, verdict.CouldNotTell} {
		f.Probes[o] = 0
	}
	for _, o := range TuneOutcomes() {
		f.Tunes[o] = 0
	}
	for _, st := range view.TuneStates() {
		f.Tuning[st] = 0
	}
	for _, o := range ArmOutcomes() {
		f.Arms[o] = 0
	}
	for _, c := range Components() {
		f.Succeeded[c] = time.Time{}
	}
	return f
}

// Read reads all of them.
func (g *Set) Read() Figures {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.f
	for to, from := range map[*int64]*atomic.Int64{
		&f.Tracked: &g.Tracked, &f.Namespaces: &g.Namespaces, &f.Dumps: &g.Dumps, &f.DumpErrors: &g.DumpErrors,
		&f.Gets: &g.Gets, &f.Steps: &g.Steps, &f.Late: &g.Late, &f.TasksSkipped: &g.TasksSkipped, &f.InboxWaits: &g.InboxWaits, &f.ProbesMade: &g.ProbesMade, &f.Asks: &g.Asks,
		&f.Attributions: &g.Attributions, &f.Unexplained: &g.Unexplained, &f.Questions: &g.Questions, &f.AuditDropped: &g.AuditDropped,
		&f.ConnectEvents: &g.ConnectEvents, &f.ConnectEventsLost: &g.ConnectEventsLost,
	} {
		*to = from.Load()
	}
	f.Discovery = time.Duration(g.OldestDump.Load())
	f.Reaps, f.Withheld, f.Probes = maps.Clone(f.Reaps), maps.Clone(f.Withheld), maps.Clone(f.Probes)
	f.Tunes, f.Tuning, f.Arms = maps.Clone(f.Tunes), maps.Clone(f.Tuning), maps.Clone(f.Arms)
	f.Succeeded, f.Detection = maps.Clone(f.Succeeded), maps.Clone(f.Detection)
	for r, d := range f.Detection {
		d.Buckets = slices.Clone(d.Buckets)
		f.Detection[r] = d
	}
	for _, d := range []*Distribution{&f.Wait, &f.Recovery, &f.Lateness} {
		d.Buckets = slices.Clone(d.Buckets)
	}
	return f
}

// Reap notes what became of a reap, at a time of the clock of observations.
func (g *Set) Reap(r *verdict.Reap, outcome verdict.ReapOutcome, at time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.f.Reaps[ReapKind{r.Evidence.Rule, outcome}]++
	g.count(outcome)
	if outcome != verdict.ReapDone {
		return
	}
	g.detected(r.Evidence.Rule, r.Verdict-r.Evidence.Since)
	g.f.Wait.observe(at - r.Verdict)
}

// ReapByHand notes what became of a requested reap.
func (g *Set) ReapByHand(outcome verdict.ReapOutcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.f.Reaps[ReapKind{verdict.RuleManual, outcome}]++
	g.count(outcome)
}

// count is under the lock.
func (g *Set) count(outcome verdict.ReapOutcome) {
	switch outcome {
	case verdict.ReapDone:
		g.f.Reaped++
	case verdict.ReapSpared:
		g.f.Spared++
	case verdict.ReapFailed:
		g.f.Failed++
	}
}

// detected notes a verdict about a connection.
func (g *Set) detected(r verdict.Rule, silence time.Duration) {
	d := g.f.Detection[r]
	if d.Buckets == nil {
		d = distribution(detectionLimits...)
	}
	d.observe(silence)
	g.f.Detection[r] = d
}

// Event notes an event.
func (g *Set) Event(e *event.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch e.Type {
	case verdict.ConnectionRecovered:
		g.f.Recovery.observe(time.Duration(e.TookMs) * time.Millisecond)
	case verdict.ConnectionJudged:
		if e.Evidence != nil {
			g.f.Withheld[e.Evidence.Rule]++
			g.detected(e.Evidence.Rule, e.Evidence.Silence)
		}
	}
}

// Tune notes what became of a namespace.
func (g *Set) Tune(o TuneOutcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.f.Tunes[o]++
}

// Arm notes what became of connections.
func (g *Set) Arm(n map[ArmOutcome]int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for o, n := range n {
		g.f.Arms[o] += n
	}
}

// TuneStates notes how many namespaces stand how.
func (g *Set) TuneStates(n map[view.TuneState]int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, st := range view.TuneStates() {
		g.f.Tuning[st] = n[st]
	}
}

// Probe notes how a probe has ended.
func (g *Set) Probe(o verdict.Outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.f.Probes[o]++
}

// Round notes that the watcher went round, and how late it began.
func (g *Set) Round(late time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.f.Lateness.observe(late)
	g.f.Succeeded[Watcher] = time.Now()
}

// Success notes that a component did what it is there for.
func (g *Set) Success(c Component) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.f.Succeeded[c] = time.Now()
}
