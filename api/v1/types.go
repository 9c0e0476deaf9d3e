package v1

import "time"

// Where the sockets are unless the config says otherwise.
const (
	DefaultSocket      = "/run/redisguard/redisguard.sock"
	DefaultAdminSocket = "/run/redisguard-admin/admin.sock"
)

// Scope is how much of the node an answer shows, by who asks.
type Scope string

// The scopes.
const (
	ScopeHost    Scope = "host"    // everything
	ScopePod     Scope = "pod"     // the asking pod's or container's own connections, and what they lead to
	ScopeMinimal Scope = "minimal" // who asks could not be decided: only that the daemon runs
)

// Mode is how far the guard may go.
type Mode string

// The modes, the strictest first.
const (
	ModeOff     Mode = "off"
	ModeObserve Mode = "observe"
	ModeEnforce Mode = "enforce"
)

// ModeStatus is what sets how far the guard goes.
type ModeStatus struct {
	// Configured is the mode of the config.
	Configured Mode `json:"configured"`
	// Override is the ceiling set by PUT /v1/mode; enforce is none.
	Override Mode `json:"override"`
	// Switch tells whether the off switch (a file) is there.
	Switch bool `json:"switch"`
	// DryRun tells that the daemon was started with --dry-run.
	DryRun bool `json:"dry_run"`
	// Effective is the least of all these.
	Effective Mode `json:"effective"`
}

// Job is one of the guard's jobs and how far it goes now.
type Job struct {
	Name string `json:"name"` // "watch", "tune", "arm" or "reap"
	Mode Mode   `json:"mode"`
	Why  string `json:"why,omitempty"` // what keeps it from enforce
}

// Status is the answer to GET /v1/status. With ScopeMinimal it has Scope, Version
// and Now only; with ScopePod the numbers are the pod's own.
type Status struct {
	Scope   Scope     `json:"scope"`
	Version string    `json:"version"`
	Now     time.Time `json:"now"`

	Revision string     `json:"revision,omitempty"`
	Kernel   string     `json:"kernel,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
	// Cursor is that of the latest event: what comes after it is news.
	Cursor string      `json:"cursor,omitempty"`
	Mode   *ModeStatus `json:"mode,omitempty"`
	Jobs   []Job       `json:"jobs,omitempty"`
	// Profile and DownAfterMs are the patience of the verdicts.
	Profile     string  `json:"profile,omitempty"`
	DownAfterMs int64   `json:"down_after_ms,omitempty"`
	Ports       []int   `json:"ports,omitempty"`
	Counts      *Counts `json:"counts,omitempty"`
	// Capabilities is what this kernel and these privileges allow.
	Capabilities []Capability `json:"capabilities,omitempty"`
	// Counters is for the host only.
	Counters *Counters `json:"counters,omitempty"`
}

// Counts is how many there are now.
type Counts struct {
	Connections      int `json:"connections"`
	Waiting          int `json:"waiting"` // with something unanswered
	Stalled          int `json:"stalled"` // that retransmit without an answer
	HalfDead         int `json:"half_dead"`
	Reapable         int `json:"reapable"` // that may be reaped if they are found half-dead
	Namespaces       int `json:"namespaces"`
	Endpoints        int `json:"endpoints"`
	EndpointsSuspect int `json:"endpoints_suspect"`
	EndpointsDown    int `json:"endpoints_down"`
	Findings         int `json:"findings"` // open ones
}

// Support is whether something works here.
type Support string

// The kinds of support.
const (
	Supported    Support = "supported"
	NotSupported Support = "not_supported"
	CouldNotTell Support = "could_not_tell"
)

// Capability is one thing that the kernel or our privileges may not allow.
type Capability struct {
	Name    string  `json:"name"`
	Support Support `json:"support"`
	Detail  string  `json:"detail,omitempty"`
}

// Counters count since the start of the daemon, unless they say otherwise.
type Counters struct {
	Reaped  int64 `json:"reaped"`
	Spared  int64 `json:"spared"`
	Failed  int64 `json:"failed"`
	Probes  int64 `json:"probes"`
	Dumps   int64 `json:"dumps"`
	Gets    int64 `json:"gets"` // exact looks at connections
	Steps   int64 `json:"steps"`
	Late    int64 `json:"late"` // steps that came late
	Events  int64 `json:"events"`
	Streams int64 `json:"streams"` // open now
	// StreamsDropped were closed for being too slow, Refused are requests and
	// connections beyond a limit or without the right.
	StreamsDropped int64 `json:"streams_dropped"`
	Refused        int64 `json:"refused"`
	// DiscoveryMs is how old the oldest view of a namespace with news is, now.
	DiscoveryMs int64 `json:"discovery_ms"`
	// ViewAgeMs is how old the table behind this answer is, now.
	ViewAgeMs int64 `json:"view_age_ms"`
}

// ConnectionState is the state of a connection's TCP socket.
type ConnectionState string

// The states that are told apart.
const (
	StateEstablished ConnectionState = "established"
	StateConnecting  ConnectionState = "connecting"
	StateClosing     ConnectionState = "closing"
)

// ConnectionHealth is what we think of a connection.
type ConnectionHealth string

// The kinds of health, the best first.
const (
	HealthOK       ConnectionHealth = "ok"
	HealthWaiting  ConnectionHealth = "waiting"   // something it sent is unanswered, so far not for long
	HealthStalled  ConnectionHealth = "stalled"   // it retransmits without an answer
	HealthHalfDead ConnectionHealth = "half_dead" // we judge that its peer will never answer
)

// Connection is one TCP connection of a local process toward an endpoint.
type Connection struct {
	ID          string `json:"id"`
	Endpoint    string `json:"endpoint"`         // ip:port
	Target      string `json:"target,omitempty"` // whose endpoint it is; absent: watched for its port
	Local       string `json:"local"`            // ip:port
	NamespaceID string `json:"namespace_id"`
	Namespace   string `json:"namespace"` // as people call it
	// Interface is the index, in its namespace, of the network interface that its socket
	// is bound to: by SO_BINDTODEVICE, to a VRF, or for a link-local address.
	Interface uint32           `json:"interface,omitempty"`
	State     ConnectionState  `json:"state"`
	Health    ConnectionHealth `json:"health"`
	// StalledMs is for how long it has been stalled or half-dead.
	StalledMs int64 `json:"stalled_ms,omitempty"`
	// Reapable says whether it may be reaped, WhyNot why not.
	Reapable bool     `json:"reapable"`
	WhyNot   string   `json:"why_not,omitempty"`
	Process  *Process `json:"process,omitempty"` // left out while it is not known
	// Ages at the time of AsOf.
	AsOf              time.Time `json:"as_of"`
	LastSentMs        int64     `json:"last_sent_ms"`
	LastReceivedMs    int64     `json:"last_received_ms"`
	LastAckMs         int64     `json:"last_ack_ms"`
	Unacked           int64     `json:"unacked"`     // segments
	Retransmits       int64     `json:"retransmits"` // of the present segment, or unanswered probes of the kernel
	RetransmitsTotal  int64     `json:"retransmits_total"`
	RTTMicros         int64     `json:"rtt_us"`
	ReceivedBytes     int64     `json:"received_bytes"`
	SegmentsIn        int64     `json:"segments_in"`
	SegmentsOutOfData int64     `json:"data_segments_out"`
	MPTCP             bool      `json:"mptcp,omitempty"`
	// Arm is left out where its options were not read.
	Arm *Arm `json:"arm,omitempty"`
}

// ArmState is how it stands with the keepalive of a connection.
type ArmState string

// The states.
const (
	ArmDone    ArmState = "armed"   // redisguard has set it
	ArmLeft    ArmState = "left"    // its application has chosen otherwise; Why says more
	ArmPlanned ArmState = "planned" // it would be set, but for the mode
	ArmWaiting ArmState = "waiting" // its process is not known yet, or it is not connected
	ArmExempt  ArmState = "exempt"  // not to be touched
	ArmFailed  ArmState = "failed"
)

// Arm is how a connection finds out by itself that its peer is gone.
type Arm struct {
	State   ArmState `json:"state"`
	Why     string   `json:"why,omitempty"`     // where it is not armed
	Meaning string   `json:"meaning,omitempty"` // of its options, in words
}

// Process is a process and what it belongs to. Its words about itself (Command,
// and what a pod is called) are escaped, and still its own: display only.
type Process struct {
	PID          int    `json:"pid,omitempty"`
	Command      string `json:"command,omitempty"`
	UID          uint32 `json:"uid"`
	Unit         string `json:"unit,omitempty"`
	PodUID       string `json:"pod_uid,omitempty"`
	PodName      string `json:"pod_name,omitempty"`
	PodNamespace string `json:"pod_namespace,omitempty"` // the Kubernetes namespace
	ContainerID  string `json:"container_id,omitempty"`
}

// EndpointHealth is the health of an endpoint as local connections see it.
type EndpointHealth string

// The kinds of health, the best first.
const (
	EndpointUp           EndpointHealth = "up"
	EndpointUnknown      EndpointHealth = "unknown"       // nothing was ever heard of it
	EndpointNotAccepting EndpointHealth = "not_accepting" // new connections fail, established ones live
	EndpointSuspect      EndpointHealth = "suspect"
	EndpointDown         EndpointHealth = "down"
)

// Endpoint is one ip:port of Redis that local processes are connected to, or were
// when it went down.
type Endpoint struct {
	Endpoint string `json:"endpoint"`
	Target   string `json:"target,omitempty"` // whose endpoint it is; absent: watched for its port
	// Health is the worst of its paths.
	Health      EndpointHealth `json:"health"`
	Since       *time.Time     `json:"since,omitempty"` // of a health other than up
	Connections int            `json:"connections"`
	Waiting     int            `json:"waiting"`
	Stalled     int            `json:"stalled"`
	Paths       []Path         `json:"paths"`
}

// Path is the connections of one network namespace to one endpoint.
type Path struct {
	NamespaceID string `json:"namespace_id"`
	Namespace   string `json:"namespace"`
	// Interface is the one that they are bound to, see Connection. Behind another one the
	// same address may be another server, so they are a path of their own.
	Interface   uint32         `json:"interface,omitempty"`
	Health      EndpointHealth `json:"health"`
	Finding     string         `json:"finding,omitempty"` // id of what is wrong
	Connections int            `json:"connections"`
	Waiting     int            `json:"waiting"`
	Stalled     int            `json:"stalled"`
}

// Namespace is a network namespace of this node.
type Namespace struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Host        bool   `json:"host"`
	Connections int    `json:"connections"`
	Stalled     int    `json:"stalled"`
	// Pods names the pods and containers that have connections in it.
	Pods []string `json:"pods,omitempty"`
	// Doubt is why reaping is held back in it.
	Doubt      string     `json:"doubt,omitempty"`
	DoubtSince *time.Time `json:"doubt_since,omitempty"`
	// Tune is what its TCP limits are, left out where they were not read.
	Tune *Tune `json:"tune,omitempty"`
	// Redis says whether Redis itself, a Sentinel included, lives in it.
	Redis *Redis `json:"redis,omitempty"`
}

// RedisAnswer is yes, no, or that it cannot be told.
type RedisAnswer string

// The answers.
const (
	RedisYes     RedisAnswer = "yes"
	RedisNo      RedisAnswer = "no"
	RedisUnknown RedisAnswer = "unknown"
)

// Redis says whether Redis itself lives in a namespace: its connections are never touched,
// and the namespace is not tuned unless asked for.
type Redis struct {
	Answer RedisAnswer `json:"answer"`
	Why    string      `json:"why,omitempty"` // what speaks for it
	// Processes are those that are taken for Redis, and those that were asked.
	Processes []RedisProcess `json:"processes,omitempty"`
}

// RedisProcess is what was decided about a process, and why.
type RedisProcess struct {
	PID     int         `json:"pid"`
	Command string      `json:"command"`
	Port    int         `json:"port,omitempty"` // one that it listens on
	Answer  RedisAnswer `json:"answer"`
	Why     string      `json:"why"`
}

// TuneState is how it stands with the TCP limits of a namespace.
type TuneState string

// The states.
const (
	TuneTuned   TuneState = "tuned"
	TuneLeft    TuneState = "left"    // they are as wanted, or somebody's own: nothing was written
	TunePlanned TuneState = "planned" // they would be written, but for the mode
	TuneDrifted TuneState = "drifted" // somebody has changed some after redisguard
	TuneExempt  TuneState = "exempt"  // not to be tuned
	TuneFailed  TuneState = "failed"
)

// Tune is what the TCP limits of a namespace are, and mean.
type Tune struct {
	State  TuneState   `json:"state"`
	Why    string      `json:"why,omitempty"` // why it is exempt, or has failed
	Values []TuneValue `json:"values"`
	// After how long the kernel by itself lets a connection fail: one that waits
	// for an answer, an idle one with keepalive, and a connect.
	BusyMs    int64 `json:"busy_ms"`
	IdleMs    int64 `json:"idle_ms"`
	ConnectMs int64 `json:"connect_ms"`
	// Meaning says so in a sentence.
	Meaning string `json:"meaning"`
}

// TuneOwner is whose a value is.
type TuneOwner string

// The owners.
const (
	OwnerKernel     TuneOwner = "kernel"     // the kernel's default
	OwnerRedisguard TuneOwner = "redisguard" // written by redisguard
	OwnerForeign    TuneOwner = "foreign"    // somebody has chosen it
	OwnerDrifted    TuneOwner = "drifted"    // somebody has changed it after redisguard
)

// TuneValue is one sysctl.
type TuneValue struct {
	Key   string    `json:"key"`
	Unit  string    `json:"unit,omitempty"`
	Value int       `json:"value"`
	Owner TuneOwner `json:"owner"`
	// Want is what it should be, Original what it was before redisguard; each is
	// left out where there is none.
	Want     *int `json:"want,omitempty"`
	Original *int `json:"original,omitempty"`
}

// Severity is how much a finding matters.
type Severity string

// The severities.
const (
	Info     Severity = "info"
	Warning  Severity = "warning"
	Critical Severity = "critical"
)

// Code names a kind of finding; it is the type of the event that opens one.
// docs/runbooks has a page for each.
type Code string

// The codes.
const (
	CodeEndpointSuspect   Code = "endpoint.suspect"
	CodeEndpointDown      Code = "endpoint.down"
	CodeEndpointRefuses   Code = "endpoint.not_accepting" // new connections fail, established ones live
	CodeConnectionStalled Code = "connection.stalled"
	CodeConnectionJudged  Code = "connection.judged" // half-dead, and not reaped
	CodeReapFailed        Code = "reap.failed"
	CodeClientNotBack     Code = "client.not_back"
	CodeGuardDoubt        Code = "guard.doubt"
	CodeGuardBreaker      Code = "guard.breaker"
	CodeConfigRefused     Code = "config.refused"
	CodeNamespaceDrift    Code = "namespace.drift" // somebody has changed sysctls after redisguard
	CodeTuneFailed        Code = "tune.failed"
	CodeArmFailed         Code = "arm.failed"
	CodeClusterDown       Code = "cluster.down"
	CodeSplitBrain        Code = "split_brain.began"
	CodeTargetProblem     Code = "target.problem"
)

// Codes lists all codes.
func Codes() []Code {
	return []Code{
		CodeEndpointSuspect, CodeEndpointDown, CodeEndpointRefuses, CodeConnectionStalled, CodeConnectionJudged, CodeReapFailed,
		CodeClientNotBack, CodeGuardDoubt, CodeGuardBreaker, CodeConfigRefused,
		CodeNamespaceDrift, CodeTuneFailed, CodeArmFailed, CodeClusterDown, CodeSplitBrain, CodeTargetProblem,
	}
}

// Finding is a judged fact that lasts: it is opened by one event, may be changed
// by others, and is ended by one or after a time.
type Finding struct {
	ID       string    `json:"id"`
	Code     Code      `json:"code"`
	Severity Severity  `json:"severity"`
	Text     string    `json:"text"`
	Since    time.Time `json:"since"`
	// Open is false once it has ended: then Ended is when and EndedBy why.
	Open bool `json:"open"`
	// Until is when it ends by itself, left out if only an event ends it.
	Until       *time.Time       `json:"until,omitempty"`
	Ended       *time.Time       `json:"ended,omitempty"`
	EndedBy     string           `json:"ended_by,omitempty"`
	Endpoint    string           `json:"endpoint,omitempty"`
	NamespaceID string           `json:"namespace_id,omitempty"`
	Namespace   string           `json:"namespace,omitempty"`
	Interface   uint32           `json:"interface,omitempty"` // of the path or the connection
	Connection  *EventConnection `json:"connection,omitempty"`
	Evidence    *Evidence        `json:"evidence,omitempty"`
}

// Evidence is why something was judged, in numbers.
type Evidence struct {
	Rule  string   `json:"rule"`  // "flow", "connecting", "down", "unresponsive", "connecting-to-down", "failed", "removed", "demoted", "replaced", "manual"
	Kinds []string `json:"kinds"` // of "stall", "probe", "topology"
	// SilenceMs is how long nothing had been heard, Waiting how many connections
	// had something unanswered, Unanswered their transmissions and probes.
	SilenceMs  int64 `json:"silence_ms"`
	Waiting    int   `json:"waiting"`
	Unanswered int   `json:"unanswered"`
	// Asks are those of the transmissions that redisguard asked for, Siblings that other
	// connections to the endpoint were answered meanwhile.
	Asks             int     `json:"asks,omitempty"`
	Siblings         bool    `json:"siblings,omitempty"`
	ProbesAlive      int     `json:"probes_alive"`
	ProbesUnanswered int     `json:"probes_unanswered"`
	ProbeDetail      string  `json:"probe_detail,omitempty"`
	Loss             float64 `json:"loss"`
	Burst            float64 `json:"burst"`
	LogLikelihood    float64 `json:"log_likelihood"`
	NextHop          string  `json:"next_hop,omitempty"`
	Text             string  `json:"text"`
}

// EventType says what a line of the event stream is.
type EventType string

// The types of lines that make up the stream itself. They carry no Seq.
const (
	// Hello comes first: Version, Scope, HeartbeatMs.
	Hello EventType = "hello"
	// Snapshot tells the state at the beginning, one line for the mode and one
	// for each open finding. A stream that resumes has none.
	Snapshot EventType = "snapshot"
	// Synced says that what came up to here is the state at Cursor; news follow.
	Synced EventType = "synced"
	// Heartbeat says that there is no news up to Cursor.
	Heartbeat EventType = "heartbeat"
	// Bye comes last if the daemon ends the stream; Text says why.
	Bye EventType = "bye"
)

// The types of events.
const (
	EventEndpointSuspect     EventType = "endpoint.suspect"
	EventEndpointDown        EventType = "endpoint.down"
	EventEndpointUp          EventType = "endpoint.up"
	EventEndpointRefuses     EventType = "endpoint.not_accepting"
	EventEndpointAccepts     EventType = "endpoint.accepting" // that is over
	EventConnectionStalled   EventType = "connection.stalled"
	EventConnectionHeard     EventType = "connection.heard" // a stalled or half-dead one is fine
	EventConnectionGone      EventType = "connection.gone"  // a stalled or half-dead one has ended
	EventConnectionJudged    EventType = "connection.judged"
	EventConnectionReaped    EventType = "connection.reaped"
	EventConnectionRecovered EventType = "connection.recovered"
	EventClientNotBack       EventType = "client.not_back"
	EventGuardDoubt          EventType = "guard.doubt"
	EventGuardDoubtOver      EventType = "guard.doubt_over"
	EventGuardBreaker        EventType = "guard.breaker"
	EventModeChanged         EventType = "mode.changed"
	EventConfigChanged       EventType = "config.changed"
	EventConfigRefused       EventType = "config.refused"
	EventNamespaceTuned      EventType = "namespace.tuned"
	EventNamespaceRestored   EventType = "namespace.restored" // it has its original sysctls again
	EventNamespaceDrift      EventType = "namespace.drift"
	EventNamespaceDriftOver  EventType = "namespace.drift_over"
	EventTuneFailed          EventType = "tune.failed"
	EventTuneResumed         EventType = "tune.resumed" // what has failed works, or is gone
	EventArmFailed           EventType = "arm.failed"   // connections cannot be armed for want of a right
	EventArmResumed          EventType = "arm.resumed"
	EventClusterDown         EventType = "cluster.down" // a target as a whole
	EventClusterUp           EventType = "cluster.up"
	EventPrimaryChanged      EventType = "primary.changed"
	EventSlotsChanged        EventType = "slots.changed"
	EventPrimaryFailed       EventType = "primary.failed"
	EventPrimaryUp           EventType = "primary.up"
	EventReplicaAdded        EventType = "replica.added"
	EventReplicaRemoved      EventType = "replica.removed"
	EventReplicaFailed       EventType = "replica.failed"
	EventReplicaUp           EventType = "replica.up"
	EventNodeDemoted         EventType = "node.demoted"
	EventNodeRestarted       EventType = "node.restarted"
	EventNodeMoved           EventType = "node.moved"    // the same node at another address
	EventNodeReplaced        EventType = "node.replaced" // another node at the same address
	EventAddressAdded        EventType = "address.added"
	EventAddressRemoved      EventType = "address.removed"
	EventSplitBrain          EventType = "split_brain.began"
	EventSplitBrainEnded     EventType = "split_brain.ended"
	EventTargetProblem       EventType = "target.problem"
	EventTargetResumed       EventType = "target.resumed" // nothing is wrong with it any more
)

// Event is one line of GET /v1/events.
type Event struct {
	Type EventType `json:"type"`
	// Cursor resumes after this line.
	Cursor string    `json:"cursor,omitempty"`
	Seq    uint64    `json:"seq,omitempty"`
	Time   time.Time `json:"time"`
	// Level is how loud it is: that of its line in the daemon's log.
	Level Level `json:"level,omitempty"`
	// Text says it in words.
	Text string `json:"text,omitempty"`
	// Target names the target that it is about, in the words of the config.
	Target      string           `json:"target,omitempty"`
	Endpoint    string           `json:"endpoint,omitempty"`
	NamespaceID string           `json:"namespace_id,omitempty"`
	Namespace   string           `json:"namespace,omitempty"`
	Interface   uint32           `json:"interface,omitempty"` // of the path or the connection
	Connection  *EventConnection `json:"connection,omitempty"`
	Evidence    *Evidence        `json:"evidence,omitempty"`
	// TookMs is how long it was: suspicion to up, reap to client back.
	TookMs int64 `json:"took_ms,omitempty"`
	// Outcome is what became of an act: see ReapOutcome.
	Outcome ReapOutcome `json:"outcome,omitempty"`
	// Change is what has become another one, such as the primary of a target.
	Change *Change `json:"change,omitempty"`
	// Peer is who asked for an act, left out where the guard itself decided, and
	// for peers that are not of the host.
	Peer *Peer `json:"peer,omitempty"`

	// Finding and Mode are for snapshot lines; Mode also for mode.changed.
	Finding *Finding    `json:"finding,omitempty"`
	Mode    *ModeStatus `json:"mode,omitempty"`
	// Of a hello.
	Version     string `json:"version,omitempty"`
	Scope       Scope  `json:"scope,omitempty"`
	HeartbeatMs int64  `json:"heartbeat_ms,omitempty"`
}

// Level is how loud an event is.
type Level string

// The levels.
const (
	LevelDebug Level = "debug"
	LevelInfo  Level = "info"
	LevelWarn  Level = "warn"
)

// Change is what something was and is; empty where it was nothing, or is nothing.
type Change struct {
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// EventConnection names a connection in an event.
type EventConnection struct {
	ID       string   `json:"id"`
	Local    string   `json:"local"`
	Endpoint string   `json:"endpoint"`
	Process  *Process `json:"process,omitempty"`
}

// Peer is the process at the other end of the admin socket.
type Peer struct {
	PID     int    `json:"pid"`
	UID     uint32 `json:"uid"`
	Command string `json:"command,omitempty"`
	Cgroup  string `json:"cgroup,omitempty"`
}

// Explanation is the answer to GET /v1/explain/{id}: a finding, a connection or an
// event as a story.
type Explanation struct {
	ID         string      `json:"id"`
	Kind       string      `json:"kind"` // "finding", "connection", "event" or "target"
	Summary    string      `json:"summary"`
	Target     *Target     `json:"target,omitempty"`
	Finding    *Finding    `json:"finding,omitempty"`
	Connection *Connection `json:"connection,omitempty"`
	Story      []Step      `json:"story"` // by time
	// Kernel says what the kernel would do by itself with a connection that is
	// lost, left out where the limits of its namespace are not known.
	Kernel string `json:"kernel,omitempty"`
	// Incomplete says that older events may belong to it which are forgotten.
	Incomplete bool `json:"incomplete,omitempty"`
}

// Part is where a step stands in a story.
type Part string

// The parts of a story.
const (
	PartSeen   Part = "seen"
	PartJudged Part = "judged"
	PartDone   Part = "done"
	PartAfter  Part = "after"
)

// Step is one step of a story.
type Step struct {
	Part   Part      `json:"part"`
	Time   time.Time `json:"time"`
	Type   EventType `json:"type"`
	Level  Level     `json:"level,omitempty"`
	Text   string    `json:"text"`
	Cursor string    `json:"cursor,omitempty"`
	// Evidence is behind a judgement.
	Evidence *Evidence   `json:"evidence,omitempty"`
	Outcome  ReapOutcome `json:"outcome,omitempty"`
	TookMs   int64       `json:"took_ms,omitempty"`
}

// ReapRequest is the body of POST /v1/reap. Exactly one of Connection and Endpoint
// is set.
type ReapRequest struct {
	Connection string `json:"connection,omitempty"` // an id
	Endpoint   string `json:"endpoint,omitempty"`   // ip:port: all connections to it
	// DryRun asks what would be done.
	DryRun bool `json:"dry_run,omitempty"`
	// Force ends connections that make progress, too. What the permits forbid
	// stays forbidden.
	Force bool `json:"force,omitempty"`
}

// ReapOutcome is what became of a reap.
type ReapOutcome string

// The outcomes.
const (
	OutcomeReaped  ReapOutcome = "reaped"
	OutcomeSpared  ReapOutcome = "spared" // the last look saw that it makes progress
	OutcomeGone    ReapOutcome = "gone"   // it had ended by itself
	OutcomeFailed  ReapOutcome = "failed"
	OutcomeRefused ReapOutcome = "refused" // it may not be reaped, or not so many at once
	OutcomeDryRun  ReapOutcome = "dry-run" // it would be reaped
)

// ReapResponse is the answer to POST /v1/reap.
type ReapResponse struct {
	DryRun  bool         `json:"dry_run"`
	Results []ReapResult `json:"results"` // one for each connection asked for
}

// ReapResult is what became of one connection.
type ReapResult struct {
	Connection string      `json:"connection"`
	Endpoint   string      `json:"endpoint"`
	Local      string      `json:"local"`
	Process    *Process    `json:"process,omitempty"`
	Outcome    ReapOutcome `json:"outcome"`
	Why        string      `json:"why,omitempty"`
}

// ModeRequest is the body of PUT /v1/mode; the answer is a ModeStatus.
type ModeRequest struct {
	// Mode is a ceiling beside that of the config; enforce takes it away.
	Mode Mode `json:"mode"`
}

// ReloadResponse is the answer to POST /v1/reload.
type ReloadResponse struct {
	File string `json:"file"`
	// Changed has a line for each setting that is different now.
	Changed []string `json:"changed"`
}

// Ready is the answer to GET /readyz and GET /healthz.
type Ready struct {
	OK  bool   `json:"ok"`
	Why string `json:"why,omitempty"` // what is missing
}

// ErrorKind says what kind of mistake an error is about.
type ErrorKind string

// The kinds of errors, each with its status.
const (
	KindBadRequest       ErrorKind = "bad_request"        // 400
	KindForbidden        ErrorKind = "forbidden"          // 403
	KindNotFound         ErrorKind = "not_found"          // 404
	KindMethodNotAllowed ErrorKind = "method_not_allowed" // 405
	KindCursorGone       ErrorKind = "cursor_gone"        // 410: take a snapshot
	KindTooLarge         ErrorKind = "too_large"          // 413
	KindUnprocessable    ErrorKind = "unprocessable"      // 422
	KindTooMany          ErrorKind = "too_many"           // 429
	KindInternal         ErrorKind = "internal"           // 500
	KindUnavailable      ErrorKind = "unavailable"        // 503
)

// ErrorBody is the body of every answer that is no success.
type ErrorBody struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail says what is wrong.
type ErrorDetail struct {
	Kind    ErrorKind `json:"kind"`
	Message string    `json:"message"`
}
