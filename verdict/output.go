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
	Stall    Kinds = 1 << iota // transmissions of the application's own connections unanswered
	ProbeSay                   // what fresh connections found
	Topology                   // what the cluster view says
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
	RuleAsked        Rule = "asked" // by a person; none of ours
)

// Rules are all rules.
func Rules() []Rule { return []Rule{RuleFlow, RuleDown, RuleUnresponsive, RuleSyn} }

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
	// ProbesAlive and ProbesUnanswered count probes since Since.
	ProbesAlive      int    `json:"probes_alive"`
	ProbesUnanswered int    `json:"probes_unanswered"`
	ProbeDetail      string `json:"probe_detail,omitempty"`
	// Loss and Burst are p and b of the path, Likelihood the natural logarithm
	// of the probability of this silence if all were well.
	Loss       float64 `json:"loss"`
	Burst      float64 `json:"burst"`
	Likelihood float64 `json:"log_likelihood"`
	NextHop    string  `json:"next_hop,omitempty"`
}

func (e Evidence) String() string {
	var b strings.Builder
	switch e.Rule {
	case RuleFlow:
		fmt.Fprintf(&b, "this flow is broken: %d transmissions unanswered for %v while %d fresh connections to the endpoint worked",
			e.Unanswered, ms(e.Silence), e.ProbesAlive)
	case RuleDown:
		fmt.Fprintf(&b, "the endpoint is down: nothing heard for %v, %d transmissions unanswered, of %d waiting connections and %d probes",
			ms(e.Silence), e.Unanswered, e.Waiting, e.ProbesUnanswered)
	case RuleUnresponsive:
		fmt.Fprintf(&b, "the endpoint accepts connections but has not replied for %v, to %d probes", ms(e.Silence), e.ProbesUnanswered)
	case RuleSyn:
		fmt.Fprintf(&b, "connecting for %v to an endpoint that is down", ms(e.Silence))
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

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// Output is what follows from a step. It is valid until the next one.
type Output struct {
	Events []Event
	Reap   []Reap
	// Probe asks for a probe of the endpoint from the namespace.
	Probe []PathKey
	// NextHop asks for a look at the way out of the namespace toward the endpoint.
	NextHop []PathKey
	// Others asks how connections elsewhere fare in the namespace.
	Others []OthersWanted
	// Suspects are the paths whose connections should be looked at every tick.
	Suspects []PathKey
	// Look asks for a look at every connection of these paths now: a verdict
	// waits for it.
	Look []PathKey
	// Wake is when the next step is due even if nothing is observed; 0 is never.
	Wake time.Duration
}

// OthersWanted asks how connections that are not toward the endpoint have fared in
// the namespace since.
type OthersWanted struct {
	Path  PathKey
	Since time.Duration
}

// Reap asks for the end of a connection: after a last look which shows that it
// still has this cookie and has not been heard since Heard.
type Reap struct {
	Key           ConnKey
	Local, Remote netip.AddrPort
	// SegsIn is the socket's counter of segments in at the verdict: one more,
	// and the connection is spared.
	SegsIn uint32
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
		EndpointSuspect, EndpointDown, EndpointUp,
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
