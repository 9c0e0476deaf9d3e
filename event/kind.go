package event

import (
	"log/slog"
	"slices"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// Kind is everything that has to be known about a type of event. To add a type is to
// add a row to kinds; the wire's own lists (api/v1, docs/openapi.yaml, docs/runbooks) are
// the contract, and tests name what is missing there.
type Kind struct {
	Type verdict.EventType
	// Level is that of its line in the log; see Event.Level for the exception.
	Level slog.Level
	// Access says who may see it beside the host.
	Access Access
	// Story says to which stories it belongs beside that of its own connection, and
	// Part where it stands there.
	Story Story
	Part  Part
	// Topic is what the finding is about that it opens or ends.
	Topic Topic
	Effect
	// Outcomes are its effects where those depend on what became of an act; Effect
	// holds for the others.
	Outcomes map[verdict.ReapOutcome]Effect
}

// Effect is what an event does to the finding about its topic. The zero value does
// nothing.
type Effect struct {
	// Ends says that an open finding ends, for the reason Why or, if that is empty, for
	// what the event's own text says.
	Ends bool
	Why  string
	// Code is that of the finding which begins, "" for none. If there is one already and
	// the event does not end it, that one stays.
	Code     verdict.EventType
	Severity Severity
	// Keeps says that a finding of the same code stays as it is, though Ends is set.
	Keeps bool
	// Lasts ends a finding by itself after this time: for what nothing else ends.
	Lasts time.Duration
}

// Access is who may see an event beside the host, who sees them all.
type Access uint8

// The accesses. The zero value is the strictest.
const (
	ForHostOnly  Access = iota
	ForNamespace        // a pod whose network namespace it is about
	ForPath             // those with connections to the endpoint there
	ForOwner            // whose connection it is; without a connection as ForPath
	ForTarget           // those with connections to the target, and whom its config lets see it
	ForAll              // all
)

// Story is to which stories an event belongs.
type Story uint8

// The stories.
const (
	OfItself     Story = iota // of its connection, namespace or endpoint only
	OfPath                    // of all connections on its path
	OfNamespace               // of all in its namespace
	OfProcess                 // of its process, whose new connection it may be about
	OfClients                 // of all on its path, whichever endpoint they moved to
	OfTarget                  // of all on the paths to its target, and of the target itself
	OfEverything              // it held or changed everything
)

// Part is where an event stands in a story, in the words of the API.
type Part string

// The parts.
const (
	Seen   Part = "seen"
	Judged Part = "judged"
	Done   Part = "done"
	After  Part = "after"
)

// Severity is how bad a finding is, in the words of the API.
type Severity string

// The severities.
const (
	Info     Severity = "info"
	Warning  Severity = "warning"
	Critical Severity = "critical"
)

// Topic is a kind of thing that findings are about. There is one open finding at a time
// about each thing.
type Topic uint8

// The topics.
const (
	NoTopic        Topic = iota
	AboutPath            // an endpoint as seen from a namespace
	AboutConn            // a connection
	AboutDoubt           // doubt about a namespace, or the host
	AboutBreaker         // the breaker
	AboutConfig          // the config file
	AboutClient          // a client that was reaped; each event is about another one
	AboutDrift           // sysctls of a namespace that somebody else changed
	AboutTune            // a namespace that cannot be tuned
	AboutArm             // connections that cannot be armed
	AboutTarget          // a target as a whole, by its name
	AboutSplit           // two primaries of a target
	AboutProblem         // what is wrong with a target or its config
	numberOfTopics       // not a topic
)

// most is how many open findings about a topic there may be: a client that makes thousands of
// connections stall must not hide what is wrong elsewhere.
func (t Topic) most() int {
	switch t {
	case AboutConn:
		return maxOpen / 2
	case AboutPath:
		return maxOpen / 4
	case AboutBreaker, AboutConfig, AboutArm:
		return 1 // they are about the node
	case AboutTarget, AboutSplit, AboutProblem:
		return maxTargets
	case NoTopic:
		return 0
	default:
		return maxOpen / 16
	}
}

const (
	// What nothing ends is a finding for so long: a client that does not come back may
	// have ended, and a breaker that held something back does not say when there is
	// nothing to hold back any more.
	notBackFor = 10 * time.Minute
	breakerFor = 2 * time.Minute
)

// kinds is the table of all types of events.
var kinds = append(nodeKinds(), targetKinds()...)

// nodeKinds are the rows of the events about this node.
func nodeKinds() []Kind {
	return []Kind{
		{
			Type: verdict.EndpointSuspect, Level: slog.LevelDebug, Access: ForPath, Story: OfPath, Part: Seen, Topic: AboutPath,
			Effect: Effect{Code: verdict.EndpointSuspect, Severity: Info},
		},
		{
			Type: verdict.EndpointDown, Level: slog.LevelWarn, Access: ForPath, Story: OfPath, Part: Judged, Topic: AboutPath,
			Effect: Effect{Ends: true, Why: "it is down", Keeps: true, Code: verdict.EndpointDown, Severity: Critical},
		},
		{
			Type: verdict.EndpointUp, Access: ForPath, Story: OfPath, Part: After, Topic: AboutPath,
			Effect: Effect{Ends: true},
		},
		{
			Type: verdict.EndpointRefuses, Level: slog.LevelWarn, Access: ForPath, Story: OfPath, Part: Judged, Topic: AboutPath,
			Effect: Effect{Ends: true, Why: "it answers established connections", Keeps: true, Code: verdict.EndpointRefuses, Severity: Warning},
		},
		{
			Type: verdict.EndpointAccepts, Access: ForPath, Story: OfPath, Part: After, Topic: AboutPath,
			Effect: Effect{Ends: true},
		},
		{
			Type: verdict.ConnectionStalled, Level: slog.LevelDebug, Access: ForOwner, Part: Seen, Topic: AboutConn,
			Effect: Effect{Code: verdict.ConnectionStalled, Severity: Info},
		},
		{
			Type: verdict.ConnectionHeard, Access: ForOwner, Part: After, Topic: AboutConn,
			Effect: Effect{Ends: true},
		},
		{
			Type: verdict.ConnectionGone, Access: ForOwner, Part: After, Topic: AboutConn,
			Effect: Effect{Ends: true},
		},
		{
			Type: verdict.ConnectionJudged, Access: ForOwner, Part: Judged, Topic: AboutConn,
			Effect: Effect{Ends: true, Why: "it is half-dead", Code: verdict.ConnectionJudged, Severity: Warning},
		},
		{
			Type: verdict.ConnectionReaped, Level: slog.LevelWarn, Access: ForOwner, Part: Done, Topic: AboutConn,
			Outcomes: map[verdict.ReapOutcome]Effect{
				verdict.ReapDone:   {Ends: true, Why: "it was reaped"},
				verdict.ReapGone:   {Ends: true, Why: "it was reaped"},
				verdict.ReapFailed: {Ends: true, Why: "a reap has failed", Code: ReapFailed, Severity: Critical},
			},
		},
		{Type: verdict.ConnectionRecovered, Access: ForOwner, Story: OfProcess, Part: After},
		{
			Type: verdict.ClientNotBack, Level: slog.LevelWarn, Access: ForNamespace, Story: OfClients, Part: After, Topic: AboutClient,
			Effect: Effect{Code: verdict.ClientNotBack, Severity: Warning, Lasts: notBackFor},
		},
		{
			Type: verdict.GuardDoubt, Level: slog.LevelWarn, Access: ForNamespace, Story: OfNamespace, Part: Judged, Topic: AboutDoubt,
			Effect: Effect{Code: verdict.GuardDoubt, Severity: Warning},
		},
		{
			Type: verdict.GuardDoubtOver, Access: ForNamespace, Story: OfNamespace, Part: Judged, Topic: AboutDoubt,
			Effect: Effect{Ends: true, Why: "the doubt is over"},
		},
		{
			Type: verdict.GuardBreaker, Level: slog.LevelWarn, Story: OfEverything, Part: Judged, Topic: AboutBreaker,
			Effect: Effect{Ends: true, Why: "it held back again", Code: verdict.GuardBreaker, Severity: Critical, Lasts: breakerFor},
		},
		// What is off ends all findings but that about the config; see State.Apply.
		{Type: ModeChanged, Access: ForAll, Story: OfEverything, Part: Done},
		{
			Type: ConfigChanged, Part: Done, Topic: AboutConfig,
			Effect: Effect{Ends: true, Why: "a good config is in force"},
		},
		{
			Type: ConfigRefused, Part: Seen, Topic: AboutConfig,
			Effect: Effect{Ends: true, Why: "another one was refused", Code: ConfigRefused, Severity: Warning},
		},
		{Type: NamespaceTuned, Access: ForNamespace, Story: OfNamespace, Part: Done},
		{Type: NamespaceRestored, Access: ForNamespace, Story: OfNamespace, Part: Done},
		{
			Type: NamespaceDrift, Level: slog.LevelWarn, Access: ForNamespace, Story: OfNamespace, Part: Seen, Topic: AboutDrift,
			Effect: Effect{Code: NamespaceDrift, Severity: Info},
		},
		{
			Type: NamespaceDriftOver, Access: ForNamespace, Story: OfNamespace, Part: After, Topic: AboutDrift,
			Effect: Effect{Ends: true},
		},
		{
			Type: TuneFailed, Level: slog.LevelWarn, Access: ForNamespace, Story: OfNamespace, Part: Judged, Topic: AboutTune,
			Effect: Effect{Ends: true, Why: "something else has failed", Code: TuneFailed, Severity: Warning},
		},
		{
			Type: TuneResumed, Access: ForNamespace, Story: OfNamespace, Part: After, Topic: AboutTune,
			Effect: Effect{Ends: true},
		},
		{
			Type: ArmFailed, Level: slog.LevelWarn, Story: OfEverything, Part: Judged, Topic: AboutArm,
			Effect: Effect{Code: ArmFailed, Severity: Warning},
		},
		{
			Type: ArmResumed, Story: OfEverything, Part: After, Topic: AboutArm,
			Effect: Effect{Ends: true},
		},
	}
}

// byType finds the rows.
var byType = func() map[verdict.EventType]*Kind {
	m := make(map[verdict.EventType]*Kind, len(kinds))
	for i := range kinds {
		m[kinds[i].Type] = &kinds[i]
	}
	return m
}()

// Of is the row of a type of event. It is immutable. Of a type that there is none of
// it is one that only the host sees and that does nothing.
func Of(t verdict.EventType) *Kind {
	if k := byType[t]; k != nil {
		return k
	}
	return &Kind{Type: t}
}

// Types are all types of events, in the order of the table.
func Types() []verdict.EventType {
	list := make([]verdict.EventType, len(kinds))
	for i := range kinds {
		list[i] = kinds[i].Type
	}
	return list
}

// Codes are the codes of findings, each once.
func Codes() []verdict.EventType {
	var list []verdict.EventType
	for i := range kinds {
		for _, e := range kinds[i].effects() {
			if e.Code != "" && !slices.Contains(list, e.Code) {
				list = append(list, e.Code)
			}
		}
	}
	return list
}

// SeverityOf is how bad a finding with this code is, "" if there is none.
func SeverityOf(code verdict.EventType) Severity {
	for i := range kinds {
		for _, e := range kinds[i].effects() {
			if e.Code == code {
				return e.Severity
			}
		}
	}
	return ""
}

// effects are all that a type of event may have.
func (k *Kind) effects() []Effect {
	list := []Effect{k.Effect}
	for _, o := range verdict.ReapOutcomes() {
		if e, ok := k.Outcomes[o]; ok {
			list = append(list, e)
		}
	}
	return list
}

// effect is what e does to the findings.
func (k *Kind) effect(e *Event) Effect {
	if x, ok := k.Outcomes[verdict.ReapOutcome(e.Outcome)]; ok {
		return x
	}
	return k.Effect
}

// Level is that of the event's line in the log.
func (e *Event) Level() slog.Level {
	if e.Connection != nil && e.Evidence != nil && e.Evidence.Rule == verdict.RuleSyn {
		// During an outage clients keep connecting; what becomes of it fills the audit
		// file, not every log.
		return slog.LevelDebug
	}
	return Of(e.Type).Level
}
