package verdict

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Kinds is a set of independent kinds of evidence.
type Kinds uint8

// The kinds of evidence. The breaker counts them.
const (
	// Stall: transmissions of established connections are unanswered, the application's
	// own or what they were asked.
	Stall Kinds = 1 << iota
	// ProbeSay is what fresh connections found: probes, and connects of applications. Both
	// observe the same, and a reap brings about the latter.
	ProbeSay
	Topology // what the cluster view says
)

// Count returns how many kinds are in k.
func (k Kinds) Count() int {
	n := 0
	for ; k != 0; k &= k - 1 {
		n++
	}
	return n
}

func (k Kinds) String() string {
	var s []string
	for i, name := range []string{"stall", "probe", "topology"} {
		if k&(1<<i) != 0 {
			s = append(s, name)
		}
	}
	return strings.Join(s, "+")
}

// Rule names the rule of a decision.
type Rule string

// The rules.
const (
	RuleFlow         Rule = "flow"
	RuleDown         Rule = "down"
	RuleUnresponsive Rule = "unresponsive"
	RuleSyn          Rule = "connecting-to-down"
	RuleConnect      Rule = "connecting" // unanswered, while other connects work
	RuleFailed       Rule = "failed"
	RuleRemoved      Rule = "removed"
	RuleDemoted      Rule = "demoted"
	RuleReplaced     Rule = "replaced"
	RuleManual       Rule = "manual" // a reap that a person requested; the core judges none
)

// Rules are all rules by which the core judges.
func Rules() []Rule {
	return []Rule{RuleFlow, RuleDown, RuleUnresponsive, RuleSyn, RuleConnect, RuleFailed, RuleRemoved, RuleDemoted, RuleReplaced}
}

// Evidence is why a decision was taken, in numbers; String puts it in words.
type Evidence struct {
	Rule  Rule  `json:"rule"`
	Kinds Kinds `json:"kinds"`
	// Since is when the silence began, Silence how long it had lasted.
	Since   time.Duration `json:"since"`
	Silence time.Duration `json:"silence"`
	// Waiting counts the connections with something unanswered, Unanswered
	// their unanswered transmissions and those of the probes.
	Waiting    int `json:"waiting"`
	Unanswered int `json:"unanswered"`
	// Asks are those of the transmissions that were asked for by us.
	Asks int `json:"asks,omitempty"`
	// Siblings says that other connections of the namespace to the endpoint were answered
	// meanwhile.
	Siblings bool `json:"siblings,omitempty"`
	// ProbesAlive and ProbesUnanswered count probes since Since.
	ProbesAlive      int    `json:"probes_alive"`
	ProbesUnanswered int    `json:"probes_unanswered"`
	ProbeDetail      string `json:"probe_detail,omitempty"`
	// DownElsewhere counts the namespaces for which the endpoint was down already, where
	// that took the place of probes.
	DownElsewhere int `json:"down_elsewhere,omitempty"`
	// Loss and Burst are p and b of the path, Likelihood the natural logarithm
	// of the probability of this silence if all were well.
	Loss       float64 `json:"loss"`
	Burst      float64 `json:"burst"`
	Likelihood float64 `json:"log_likelihood"`
	NextHop    string  `json:"next_hop,omitempty"`
	// What the cluster view says, in the rules that rest on it: the name of the target,
	// the origin and its words, the successor if there is one, and the role or
	// RunID when the connection was opened and now. Silence is then the time since Since.
	Target    string         `json:"target,omitempty"`
	View      string         `json:"view,omitempty"`
	Successor netip.AddrPort `json:"successor,omitzero"`
	Was       string         `json:"was,omitempty"`
	Is        string         `json:"is,omitempty"`
}

func (e Evidence) String() string {
	var b strings.Builder
	switch e.Rule {
	case RuleFlow:
		fmt.Fprintf(&b, "this flow is broken: %d transmissions unanswered for %v%s while ", e.Unanswered, ms(e.Silence), e.asked())
		switch {
		case e.ProbesAlive > 0:
			fmt.Fprintf(&b, "%d fresh connections to the endpoint worked", e.ProbesAlive)
		case e.Siblings:
			b.WriteString("other connections to the endpoint were answered")
		default:
			b.WriteString("fresh connections were accepted, by the endpoint or by something on the way to it")
		}
	case RuleConnect:
		fmt.Fprintf(&b, "this connect hangs: %d requests unanswered for %v while %d fresh connections to the endpoint worked",
			e.Unanswered, ms(e.Silence), e.ProbesAlive)
	case RuleDown:
		fmt.Fprintf(&b, "the endpoint is down: nothing heard for %v, %d transmissions of %d established connections unanswered%s, and %d fresh connections",
			ms(e.Silence), e.Unanswered, e.Waiting, e.asked(), e.ProbesUnanswered)
		if e.DownElsewhere > 0 {
			fmt.Fprintf(&b, "; it is down for %d other namespaces", e.DownElsewhere)
		}
	case RuleUnresponsive:
		fmt.Fprintf(&b, "the endpoint accepts connections but has not replied for %v, to %d probes", ms(e.Silence), e.ProbesUnanswered)
	case RuleSyn:
		fmt.Fprintf(&b, "connecting for %v to an endpoint that is down", ms(e.Silence))
	}
	if e.Rule.byTopology() {
		e.describeTopology(&b)
	}
	if e.ProbeDetail != "" {
		fmt.Fprintf(&b, "; last probe: %s", e.ProbeDetail)
	}
	if e.NextHop != "" {
		fmt.Fprintf(&b, "; next hop: %s", e.NextHop)
	}
	if e.Likelihood != 0 {
		fmt.Fprintf(&b, "; on a path with %.2g loss and %.2g burst this silence has a probability of e^%.1f", e.Loss, e.Burst, e.Likelihood)
	}
	return b.String()
}

// asked says how many transmissions are asks.
func (e *Evidence) asked() string {
	if e.Asks == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d of them asked for)", e.Asks)
}

// describeTopology puts into words what rests on the cluster view.
func (e *Evidence) describeTopology(b *strings.Builder) {
	of := ""
	if e.Target != "" {
		of = " of target " + e.Target
	}
	switch e.Rule {
	case RuleFailed:
		fmt.Fprintf(b, "the node%s has failed, says the cluster view, and nothing was heard here for %v since", of, ms(e.Silence))
		if e.Unanswered > 0 {
			fmt.Fprintf(b, " (%d transmissions unanswered)", e.Unanswered)
		}
	case RuleRemoved:
		fmt.Fprintf(b, "the node%s was removed from its deployment %v ago", of, ms(e.Silence))
	case RuleDemoted:
		fmt.Fprintf(b, "the node%s was demoted to a replica %v ago", of, ms(e.Silence))
		if e.Was != "" {
			fmt.Fprintf(b, ", and this connection was opened while it was the %s", e.Was)
		}
	case RuleReplaced:
		fmt.Fprintf(b, "another process has answered at this address for %v (run_id %s), while this connection leads to the one before it (run_id %s)",
			ms(e.Silence), short(e.Is), short(e.Was))
	}
	if e.Successor.IsValid() {
		fmt.Fprintf(b, "; its successor is %v", e.Successor)
	}
	if e.Kinds&ProbeSay != 0 {
		b.WriteString("; a probe of our own shows it")
	}
	if e.View != "" {
		fmt.Fprintf(b, "; according to %s", e.View)
	}
}

// short is the beginning of a run_id, which has 40 characters.
func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// ProbeWanted asks for a probe of the endpoint from the namespace.
type ProbeWanted struct {
	Path PathKey
	// Source is the local address of a connection that the probe is to speak for: rules of
	// routing and filters may let one address of a namespace pass and not another.
	Source netip.Addr
}

// Output is what follows from a step. It is valid until the next one.
type Output struct {
	Events []Event
	Reap   []Reap
	// Ask has the kernels of these connections send one empty probe each, now, which the
	// peer's kernel answers and Redis never notices. Each is to be looked at a moment later.
	Ask []ConnKey
	// Probe asks for probes.
	Probe []ProbeWanted
	// NextHop asks for a look at the way out of the namespace toward the endpoint.
	NextHop []PathKey
	// Unrelated asks how the namespace's connections to elsewhere fare.
	Unrelated []UnrelatedWanted
	// Suspects are the paths whose connections should be looked at every tick.
	Suspects []PathKey
	// Look asks for a look at every connection of these paths now: a verdict
	// waits for it.
	Look []PathKey
	// Fence are all fences that should stand now, by endpoint and namespace; none if
	// Settings.Fence is off.
	Fence []Fence
	// Wake is when the next step is due even if nothing is observed; 0 is never.
	Wake time.Duration
}

// UnrelatedWanted asks how the connections of a namespace that are not toward Redis have
// fared since.
type UnrelatedWanted struct {
	Path  PathKey
	Since time.Duration
}

// Reap asks for the end of a connection: after a last look which shows that it
// still has this cookie and, unless Live is set, that it has not been heard since.
type Reap struct {
	Key           ConnKey
	Local, Remote netip.AddrPort
	// Counters are those of the last look before the verdict, AckAt is when the last
	// acknowledgement had come in by then, and Asked when the connection was last asked, 0
	// if it is not waiting for an answer to that. See Heard: progress since spares it.
	Counters
	AckAt, Asked time.Duration
	// Live says that the policy wants it ended though it makes progress: the last look
	// does not spare it for being heard. All the other reasons to spare it hold.
	Live bool
	// Verdict is when it was decided; the reap may be later by the spread.
	Verdict  time.Duration
	Evidence Evidence
}

// EventType says what an event is about, in the words of the API.
type EventType string

// The events of this package.
const (
	EndpointSuspect     EventType = "endpoint.suspect"
	EndpointDown        EventType = "endpoint.down"
	EndpointUp          EventType = "endpoint.up"
	EndpointRefuses     EventType = "endpoint.not_accepting" // new connections fail, established ones live
	EndpointAccepts     EventType = "endpoint.accepting"     // that is over
	ConnectionStalled   EventType = "connection.stalled"
	ConnectionHeard     EventType = "connection.heard"  // a stalled or half-dead one is fine
	ConnectionGone      EventType = "connection.gone"   // a stalled or half-dead one has ended
	ConnectionJudged    EventType = "connection.judged" // would have been reaped, were it permitted
	ConnectionReaped    EventType = "connection.reaped"
	ConnectionRecovered EventType = "connection.recovered" // its client is back
	ClientNotBack       EventType = "client.not_back"
	GuardDoubt          EventType = "guard.doubt"
	GuardDoubtOver      EventType = "guard.doubt_over"
	GuardBreaker        EventType = "guard.breaker"
)

// EventTypes are all types of events of this package.
func EventTypes() []EventType {
	return []EventType{
		EndpointSuspect, EndpointDown, EndpointUp, EndpointRefuses, EndpointAccepts,
		ConnectionStalled, ConnectionHeard, ConnectionGone, ConnectionJudged, ConnectionReaped, ConnectionRecovered,
		ClientNotBack, GuardDoubt, GuardDoubtOver, GuardBreaker,
	}
}

// Event is a judged fact.
type Event struct {
	Type EventType
	At   time.Duration
	Path PathKey
	// Key is the connection, zero in events about paths and namespaces.
	Key      ConnKey
	Text     string
	Evidence *Evidence
	// Took is how long it was, where that makes sense: suspicion to up, reap to
	// client back.
	Took time.Duration
}
