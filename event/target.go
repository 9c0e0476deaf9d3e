package event

import (
	"log/slog"

	"github.com/redisguard/redisguard/verdict"
)

// The types of events about targets. Those of a topology have the words of package
// clusterview, as a test compares.
const (
	ClusterDown     verdict.EventType = "cluster.down" // a target as a whole: no primary, or CLUSTERDOWN
	ClusterUp       verdict.EventType = "cluster.up"
	PrimaryChanged  verdict.EventType = "primary.changed"
	SlotsChanged    verdict.EventType = "slots.changed" // slots have another owner, without a failover
	PrimaryFailed   verdict.EventType = "primary.failed"
	PrimaryUp       verdict.EventType = "primary.up"
	ReplicaAdded    verdict.EventType = "replica.added"
	ReplicaRemoved  verdict.EventType = "replica.removed"
	ReplicaFailed   verdict.EventType = "replica.failed"
	ReplicaUp       verdict.EventType = "replica.up"
	NodeDemoted     verdict.EventType = "node.demoted"
	NodeRestarted   verdict.EventType = "node.restarted"
	NodeMoved       verdict.EventType = "node.moved"
	NodeReplaced    verdict.EventType = "node.replaced"
	AddressAdded    verdict.EventType = "address.added"
	AddressRemoved  verdict.EventType = "address.removed"
	SplitBrain      verdict.EventType = "split_brain.began"
	SplitBrainEnded verdict.EventType = "split_brain.ended"
	TargetProblem   verdict.EventType = "target.problem"
	TargetResumed   verdict.EventType = "target.resumed" // nothing is wrong any more
)

// targetKinds are the rows of the events about targets.
func targetKinds() []Kind {
	told := func(t verdict.EventType, level slog.Level) Kind {
		return Kind{Type: t, Level: level, Access: ForTarget, Story: OfTarget, Part: Seen}
	}
	return []Kind{
		{
			Type: ClusterDown, Level: slog.LevelWarn, Access: ForTarget, Story: OfTarget, Part: Judged, Topic: AboutTarget,
			Effect: Effect{Code: ClusterDown, Severity: Critical},
		},
		{Type: ClusterUp, Access: ForTarget, Story: OfTarget, Part: After, Topic: AboutTarget, Effect: Effect{Ends: true}},
		told(PrimaryChanged, slog.LevelWarn), told(SlotsChanged, slog.LevelInfo),
		told(PrimaryFailed, slog.LevelWarn), told(PrimaryUp, slog.LevelInfo),
		told(ReplicaAdded, slog.LevelInfo), told(ReplicaRemoved, slog.LevelInfo), told(ReplicaFailed, slog.LevelWarn), told(ReplicaUp, slog.LevelInfo),
		told(NodeDemoted, slog.LevelWarn), told(NodeRestarted, slog.LevelInfo), told(NodeMoved, slog.LevelInfo), told(NodeReplaced, slog.LevelInfo),
		told(AddressAdded, slog.LevelDebug), told(AddressRemoved, slog.LevelDebug),
		{
			Type: SplitBrain, Level: slog.LevelWarn, Access: ForTarget, Story: OfTarget, Part: Judged, Topic: AboutSplit,
			Effect: Effect{Code: SplitBrain, Severity: Critical},
		},
		{Type: SplitBrainEnded, Access: ForTarget, Story: OfTarget, Part: After, Topic: AboutSplit, Effect: Effect{Ends: true}},
		{
			Type: TargetProblem, Level: slog.LevelWarn, Story: OfTarget, Part: Judged, Topic: AboutProblem,
			Effect: Effect{Ends: true, Why: "something else is wrong", Code: TargetProblem, Severity: Warning},
		},
		{Type: TargetResumed, Story: OfTarget, Part: After, Topic: AboutProblem, Effect: Effect{Ends: true}},
	}
}
