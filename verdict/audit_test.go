package verdict

import (
	"encoding/json"
	"fmt"
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
	sampled bool
	segsIn  uint32
	state   State
	heard   time.Duration // step at which segs_in was last seen to change
}

func newAuditor(set Settings) *auditor {
	return &auditor{core: New(set), set: set, known: map[ConnKey]*dossier{}, tokens: float64(set.Burst)}
}

// step runs one step. The error names the promise that was broken.
func (a *auditor) step(in *Input) (*Output, error) {
	if a.record {
		a.inputs = append(a.inputs, mustJSON(in))
	}
	a.takeIn(in)
	out := a.core.Step(in)
	if a.record {
		a.outputs = append(a.outputs, mustJSON(out))
	}
	if got := a.core.Tracked(); got != len(a.known) {
		return out, fmt.Errorf("the core tracks %d connections, it was told of %d", got, len(a.known))
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
		if e.Type == EndpointDown && (e.Evidence == nil || e.Evidence.String() == "" || e.Text == "") {
			return out, fmt.Errorf("endpoint.down without evidence: %+v", e)
		}
	}
	return out, nil
}

func (a *auditor) takeIn(in *Input) {
	a.now = min(max(a.now, in.Now), endOfTime)
	for i := range in.Appeared {
		x := &in.Appeared[i]
		if d := a.known[x.Key]; d != nil {
			d.permit = x.Permit
		} else {
			a.known[x.Key] = &dossier{permit: x.Permit, state: SynSent}
		}
	}
	for i := range in.Samples {
		s := &in.Samples[i]
		d := a.known[s.Key]
		if d == nil {
			continue
		}
		d.state = s.State
		if s.State == SynSent {
			continue
		}
		if !d.sampled || d.segsIn != s.SegsIn {
			d.heard = a.now
		}
		d.sampled, d.segsIn = true, s.SegsIn
	}
	for _, k := range in.Gone {
		delete(a.known, k)
	}
	for i := range in.Reaped {
		if r := &in.Reaped[i]; r.Outcome == ReapDone || r.Outcome == ReapGone {
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
	case d.state == Established && d.segsIn != r.SegsIn:
		return fmt.Errorf("segs_in is %d, the verdict was taken at %d: it made progress", d.segsIn, r.SegsIn)
	case d.heard > r.Verdict:
		return fmt.Errorf("it was heard at %v, after the verdict at %v", d.heard, r.Verdict)
	case r.Verdict > a.now:
		return fmt.Errorf("the verdict at %v is not of the past", r.Verdict)
	case ev.Kinds.Count() == 0:
		return fmt.Errorf("no kind of evidence")
	}
	least, ok := map[Rule]time.Duration{
		RuleFlow: a.set.MinSilence, RuleDown: a.set.DownAfter, RuleUnresponsive: a.set.DownAfter, RuleSyn: time.Second,
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

// empty says what is left in a core that has lost its last connection.
func (a *auditor) empty() error {
	c := a.core
	spaces := len(c.spaces)
	if c.spaces[c.set.HostNS] != nil {
		spaces-- // the host's stays: others look through it
	}
	if len(c.conns)+len(c.endpoints)+spaces+len(c.queue)+len(c.clients) > 0 {
		return fmt.Errorf("left behind: %d connections, %d endpoints, %d namespaces, %d queued, %d absent clients",
			len(c.conns), len(c.endpoints), spaces, len(c.queue), len(c.clients))
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
