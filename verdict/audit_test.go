package verdict

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// auditor runs a core and holds every answer against the safety promises. It
// knows nothing but what went in and what came out, so it can stand behind the
// simulator as well as behind garbage.
type auditor struct {
	core  *Core
	set   Settings
	known map[ConnKey]*dossier
	now   time.Duration

	tokens   float64 // of an own token bucket, for the rate limit
	tokensAt time.Duration
	oneKind  []size // reaps on one kind of evidence, and how many were tracked then
	// What the cluster view says, who was ever seen at an address, what was judged by
	// that and not taken back, and since when fences are wanted and what became of them.
	facts  map[netip.AddrPort]EndpointFact
	seen   map[netip.AddrPort]map[string]bool // RunIDs and roles
	judged map[ConnKey]factVerdict
	wanted map[PathKey]time.Duration
	fenced map[PathKey]FenceStanding
	// record keeps every input and output as JSON, to run it again.
	record  bool
	inputs  [][]byte
	outputs [][]byte
}

type size struct {
	at      time.Duration
	tracked int
}

// dossier is what the auditor was told about a connection.
type dossier struct {
	permit  Permit
	remote  netip.AddrPort
	iface   uint32
	backend netip.AddrPort
	run     string
	role    Role
	sampled bool
	n       Counters
	state   State
	heard   time.Duration // step at which progress was last seen
	// waits says that something of its own is unanswered: data, a request, a probe of its
	// kernel, or what it was asked.
	waits          bool
	askedAt, ackAt time.Duration // the former is 0 if it is answered
}

func newAuditor(set Settings) *auditor {
	return &auditor{
		core: New(set), set: set, known: map[ConnKey]*dossier{}, tokens: float64(set.Burst),
		facts: map[netip.AddrPort]EndpointFact{}, seen: map[netip.AddrPort]map[string]bool{}, judged: map[ConnKey]factVerdict{},
		wanted: map[PathKey]time.Duration{}, fenced: map[PathKey]FenceStanding{},
	}
}

// step runs one step. The error names the promise that was broken.
func (a *auditor) step(in *Input) (*Output, error) {
	if a.record {
		a.inputs = append(a.inputs, mustJSON(in))
	}
	a.observe(in)
	out := a.core.Step(in)
	if a.record {
		a.outputs = append(a.outputs, mustJSON(out))
	}
	if got := a.core.Tracked(); got != len(a.known) {
		return out, fmt.Errorf("the core tracks %d connections, it was told of %d", got, len(a.known))
	}
	if err := a.fences(out.Fence); err != nil {
		return out, err
	}
	for i := range out.Reap {
		if err := a.reap(&out.Reap[i]); err != nil {
			return out, fmt.Errorf("reap of %+v at %v on %+v: %w", out.Reap[i].Key, a.now, out.Reap[i].Evidence, err)
		}
	}
	if out.Wake != 0 && out.Wake <= a.now {
		return out, fmt.Errorf("asked to be woken at %v, which is not after %v", out.Wake, a.now)
	}
	for _, e := range out.Events {
		if e.Type == ConnectionHeard || e.Type == ConnectionGone {
			delete(a.judged, e.Key)
		}
		if e.Type == ConnectionJudged && e.Evidence.Rule.byTopology() {
			f := factVerdict{rule: e.Evidence.Rule, since: e.Evidence.Since}
			if a.judged[e.Key] == f {
				return out, fmt.Errorf("%v is judged twice for the same fact: %s", e.Key, e.Text)
			}
			a.judged[e.Key] = f
		}
		if e.Type == EndpointDown && (e.Evidence == nil || e.Evidence.String() == "" || e.Text == "") {
			return out, fmt.Errorf("endpoint.down without evidence: %+v", e)
		}
	}
	return out, nil
}

func (a *auditor) observe(in *Input) {
	a.now = min(max(a.now, in.Now), endOfTime)
	for i := range in.Appeared {
		x := &in.Appeared[i]
		d := a.known[x.Key]
		if d == nil {
			d = &dossier{state: SynSent, remote: x.Remote, iface: x.Interface}
			a.known[x.Key] = d
		}
		d.permit = x.Permit
		d.run, d.role = cmp.Or(x.RunID, d.run), cmp.Or(x.Role, d.role)
		if x.Backend.IsValid() {
			d.backend = x.Backend
		}
	}
	for i := range in.Endpoints {
		f := in.Endpoints[i]
		for key, d := range a.known {
			if d.remote == f.Endpoint || d.backend == f.Endpoint {
				delete(a.judged, key) // another fact
			}
		}
		if f.Forget {
			delete(a.facts, f.Endpoint)
			continue
		}
		a.facts[f.Endpoint] = f
		if f.State == StateDemoted {
			f.Role = cmp.Or(f.Role, RoleReplica)
		}
		a.see(f.Endpoint, f.Backend, f.RunID, f.Role)
	}
	for i := range in.Probes {
		p := &in.Probes[i]
		if p.Outcome == Alive {
			if p.Path.Interface != 0 {
				continue // who answers there is another one, perhaps
			}
			a.see(p.Path.Endpoint, p.Backend, p.RunID, p.Role)
		}
	}
	for _, f := range in.Fenced {
		a.fenced[f.Path] = f.State
	}
	for i := range in.Samples {
		s := &in.Samples[i]
		d := a.known[s.Key]
		if d == nil {
			continue
		}
		d.state = s.State
		d.waits = s.State == SynSent || s.Unacked > 0 || s.Retrans > 0
		if s.State == SynSent {
			continue
		}
		if !d.sampled || s.moved(&d.n) {
			d.heard, d.askedAt = a.now, 0
		}
		if s.answered(&d.n, d.ackAt, a.now-s.LastAckRecv, d.askedAt) {
			d.askedAt = 0
		}
		d.sampled, d.n, d.ackAt = true, s.Counters, a.now-s.LastAckRecv
	}
	for i := range in.Asked {
		if d := a.known[in.Asked[i].Key]; d != nil && in.Asked[i].Unable == "" {
			d.askedAt = max(1, min(a.now, in.Asked[i].At))
		}
	}
	for _, k := range in.Gone {
		delete(a.known, k)
	}
	for i := range in.Reaped {
		if r := &in.Reaped[i]; !r.Postponed && (r.Outcome == ReapDone || r.Outcome == ReapGone) {
			delete(a.known, r.Key)
		}
	}
	a.tokens = min(float64(a.set.Burst), a.tokens+(a.now-a.tokensAt).Seconds()*a.set.Rate)
	a.tokensAt = a.now
}

// reap checks one reap against the promises.
func (a *auditor) reap(r *Reap) error {
	d := a.known[r.Key]
	ev := &r.Evidence
	switch {
	case d == nil:
		return fmt.Errorf("it is not among the watched")
	case d.permit != MayReap:
		return fmt.Errorf("it may only be observed")
	case d.state == Closing:
		return fmt.Errorf("it is neither established nor connecting")
	case r.Live != (ev.Rule == RuleRemoved || ev.Rule == RuleDemoted || ev.Rule == RuleReplaced):
		return fmt.Errorf("live is %v", r.Live)
	case ev.Rule.byTopology() && a.policy(ev.Rule, d.backend, d.remote) != PolicyReap:
		return fmt.Errorf("the policy is not to reap")
	case r.Live:
		if err := a.stale(d, ev); err != nil {
			return err
		}
	case ev.Rule == RuleFailed && a.facts[d.remote].State != StateFailed && a.facts[d.backend].State != StateFailed:
		return fmt.Errorf("nobody says that the node has failed")
	case ev.Rule == RuleUnresponsive:
		if d.n.BytesReceived != r.BytesReceived {
			return fmt.Errorf("its peer has replied")
		}
	case d.state == Established && d.n.moved(&r.Counters):
		return fmt.Errorf("the counters are %+v, the verdict was taken at %+v: it made progress", d.n, r.Counters)
	case !d.waits && d.askedAt == 0 && ev.Rule != RuleFailed:
		return fmt.Errorf("nothing of its own is unanswered")
	case d.heard > r.Verdict:
		return fmt.Errorf("it was heard at %v, after the verdict at %v", d.heard, r.Verdict)
	}
	path := PathKey{r.Key.NS, d.remote, d.iface}
	since, wanted := a.wanted[path]
	state := a.fenced[path]
	switch {
	case r.Verdict > a.now:
		return fmt.Errorf("the verdict at %v is not of the past", r.Verdict)
	case ev.Kinds.Count() == 0:
		return fmt.Errorf("no kind of evidence")
	case wanted && a.now-since < fenceWait && state != FenceStands && state != FenceRefused:
		return fmt.Errorf("its fence is wanted since %v and neither stands nor is refused", since)
	}
	least, ok := map[Rule]time.Duration{
		RuleFlow: a.set.MinSilence, RuleDown: a.set.DownAfter, RuleUnresponsive: a.set.DownAfter, RuleSyn: time.Second, RuleConnect: connectSilence,
		RuleFailed: a.set.MinSilence, RuleRemoved: 0, RuleDemoted: 0, RuleReplaced: 0,
	}[ev.Rule]
	if !ok {
		return fmt.Errorf("unknown rule %q", ev.Rule)
	}
	if ev.Silence < least {
		return fmt.Errorf("a silence of %v, the rule demands %v", ev.Silence, least)
	}
	if ev.Since > r.Verdict {
		return fmt.Errorf("the silence begins at %v, after the verdict at %v", ev.Since, r.Verdict)
	}
	if a.tokens--; a.tokens < -1e-6 {
		return fmt.Errorf("faster than %v/s with bursts of %d", a.set.Rate, a.set.Burst)
	}
	if ev.Kinds.Count() == 1 {
		for len(a.oneKind) > 0 && a.now-a.oneKind[0].at >= breakerWindow {
			a.oneKind = a.oneKind[1:]
		}
		a.oneKind = append(a.oneKind, size{a.now, len(a.known)})
		most := 0
		for _, s := range a.oneKind {
			most = max(most, s.tracked)
		}
		if most > BreakerFloor && float64(len(a.oneKind)) > a.set.MaxShare*float64(most) {
			return fmt.Errorf("evidence of one kind alone reaps %d within a minute, of %d connections at most", len(a.oneKind), most)
		}
	}
	return nil
}

// see notes who was seen at an address.
func (a *auditor) see(addr, backend netip.AddrPort, run string, role Role) {
	if backend.IsValid() {
		addr = backend
	}
	if a.seen[addr] == nil {
		a.seen[addr] = map[string]bool{}
	}
	a.seen[addr]["run "+run], a.seen[addr]["role "+string(role)] = true, true
}

// policy is that of the rules that rest on the cluster view.
func (a *auditor) policy(rule Rule, addrs ...netip.AddrPort) Policy {
	of := func(p Policies) Policy {
		return map[Rule]Policy{RuleDown: p.OnDown, RuleFailed: p.OnFailed, RuleRemoved: p.OnRemoved, RuleDemoted: p.OnDemoted, RuleReplaced: p.OnReplaced}[rule]
	}
	for _, addr := range addrs {
		if p := of(a.facts[addr].Policies); p != "" {
			return p
		}
	}
	return of(Policies{OnDown: a.set.OnDown, OnFailed: a.set.OnFailed, OnRemoved: a.set.OnRemoved, OnDemoted: a.set.OnDemoted, OnReplaced: a.set.OnReplaced})
}

// stale checks a reap of a connection that may make progress: that takes a reason.
func (a *auditor) stale(d *dossier, ev *Evidence) error {
	if ev.Kinds&(Topology|ProbeSay) == 0 {
		return fmt.Errorf("it may make progress, and neither the view nor a probe is against that")
	}
	behind := d.remote
	if d.backend.IsValid() {
		behind = d.backend
	}
	seen, others := a.seen[behind], 0
	for s := range seen {
		if strings.HasPrefix(s, "run ") && s != "run " && s != "run "+ev.Was {
			others++
		}
	}
	switch {
	case ev.Rule == RuleRemoved && a.facts[d.remote].State != StateRemoved && a.facts[d.backend].State != StateRemoved:
		return fmt.Errorf("nobody says that the node was removed")
	case ev.Rule == RuleDemoted && (!seen["role "+string(RoleReplica)] || !seen["role "+string(RolePrimary)] && d.role != RolePrimary):
		return fmt.Errorf("it was not opened to a primary, or that is no replica now")
	case ev.Rule == RuleReplaced && (ev.Was == "" || others == 0 || d.run != "" && d.run != ev.Was):
		return fmt.Errorf("nobody else was seen there")
	}
	return nil
}

// fences checks which fences are wanted.
func (a *auditor) fences(list []Fence) error {
	if len(list) > 0 && !a.set.Fence {
		return fmt.Errorf("fences are wanted though they are off: %v", list)
	}
	wanted := map[PathKey]time.Duration{}
	for i, f := range list {
		if i > 0 && list[i-1].Path.Compare(f.Path) >= 0 {
			return fmt.Errorf("fences are not in order: %v", list)
		}
		fact, rule := a.facts[f.Path.Endpoint], f.Evidence.Rule
		state := map[Rule]NodeState{RuleFailed: StateFailed, RuleRemoved: StateRemoved, RuleDemoted: StateDemoted}[rule]
		switch {
		case rule != RuleDown && rule != RuleFailed && rule != RuleRemoved && rule != RuleDemoted, a.policy(rule, f.Path.Endpoint) != PolicyReap,
			state != fact.State && rule != RuleDown, f.Successor != fact.Successor, rule == RuleDemoted && !f.Successor.IsValid(), f.Since > a.now:
			return fmt.Errorf("a fence without a reason: %+v, the view says %+v", f, fact)
		}
		wanted[f.Path] = a.now
		if since, ok := a.wanted[f.Path]; ok {
			wanted[f.Path] = since
		}
	}
	a.wanted = wanted
	return nil
}

// empty says what is left in a core that has lost its last connection.
func (a *auditor) empty() error {
	c := a.core
	spaces := len(c.spaces)
	if c.spaces[c.set.HostNS] != nil {
		spaces-- // the host's stays: others look through it
	}
	if len(c.conns)+len(c.endpoints)+spaces+len(c.queue)+len(c.clients)+len(c.nodes) > 0 {
		return fmt.Errorf("left behind: %d connections, %d endpoints, %d namespaces, %d queued, %d absent clients, %d nodes",
			len(c.conns), len(c.endpoints), spaces, len(c.queue), len(c.clients), len(c.nodes))
	}
	return nil
}

// again runs what was recorded through another core and compares the answers.
func (a *auditor) again() error {
	core := New(a.set)
	for i, raw := range a.inputs {
		var in Input
		if err := json.Unmarshal(raw, &in); err != nil {
			return fmt.Errorf("cannot read a recorded input: %w", err)
		}
		if got := mustJSON(core.Step(&in)); string(got) != string(a.outputs[i]) {
			return fmt.Errorf("step %d of the same observations came out differently:\n%s\n%s\nafter %s", i, a.outputs[i], got, raw)
		}
	}
	return nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// profiles are the settings of the profiles; the other numbers are those of
// redisguard.toml.
func profiles(name string) Settings {
	s := Settings{
		HostNS: 1, DownAfter: 2 * time.Second, MinSilence: 500 * time.Millisecond, Rate: 500, Burst: 200, MaxShare: 0.5,
		Spread: time.Second, ProbesPerSecond: 2, Baseline: 10 * time.Minute, OnDown: PolicyReap, OnUnresponsive: PolicySignal,
	}
	switch name {
	case "fast":
		s.DownAfter = 700 * time.Millisecond
	case "calm":
		s.DownAfter = 5 * time.Second
	}
	return s
}
