// Package event carries what redisguard has judged and done to its readers:
// the log, the audit file, and subscribers.
//
// A [Hub] numbers events and keeps the last ones in a ring, beside the [State]
// that follows from all of them. A subscriber is no more than a place in the
// ring: publishing never blocks, costs the same for one subscriber and
// for ten thousand, and a reader that falls so far behind that the ring has gone round is
// told so instead of missing something silently. What an event looks like on the
// wire is worked out once, when the first one asks, and shared by all.
package event

import (
	"net/netip"
	"sync"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// Event is one fact. Zero fields do not apply.
type Event struct {
	// Seq numbers the events of one run of the daemon, from 1 and without gaps.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	// Type is one of the verdict's types, or one of the daemon's own below.
	Type verdict.EventType `json:"type"`
	// Text says it in words.
	Text     string         `json:"text"`
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
	// Target names the target that it is about, in the words of the config; "" where the
	// endpoint is watched for its port alone.
	Target string `json:"target,omitempty"`
	// NS is the network namespace, and Namespace what people call it.
	NS        verdict.NS `json:"ns,omitempty"`
	Namespace string     `json:"namespace,omitempty"`
	// Interface is that of the path, see verdict.PathKey.
	Interface uint32 `json:"interface,omitempty"`
	// Connection may be missing in an event about a connection that was gone
	// before it could be described; Cookie is there always.
	Connection *Connection       `json:"connection,omitempty"`
	Cookie     uint64            `json:"cookie,omitempty"`
	Evidence   *verdict.Evidence `json:"evidence,omitempty"`
	// TookMs is how long it was: reap to client back, suspicion to up.
	TookMs int64 `json:"took_ms,omitempty"`
	// Outcome is what became of an act.
	Outcome string `json:"outcome,omitempty"`
	// Change says what has become another one, such as the primary of a target.
	Change *Change `json:"change,omitempty"`
	// Peer asked for the act, nil where the guard itself decided.
	Peer *Peer `json:"peer,omitempty"`
	// Mode comes with ModeChanged.
	Mode *Mode `json:"mode,omitempty"`
}

// Path is the path that the event is about, if it is about one.
func (e *Event) Path() verdict.PathKey {
	return verdict.PathKey{NS: e.NS, Endpoint: e.Endpoint, Interface: e.Interface}
}

// The daemon's own types, beside those of package verdict; see kinds for all of them.
const (
	ModeChanged   verdict.EventType = "mode.changed"
	ConfigChanged verdict.EventType = "config.changed"
	ConfigRefused verdict.EventType = "config.refused"

	NamespaceTuned     verdict.EventType = "namespace.tuned"
	NamespaceRestored  verdict.EventType = "namespace.restored"   // it has its original values again
	NamespaceDrift     verdict.EventType = "namespace.drift"      // somebody has changed values after us
	NamespaceDriftOver verdict.EventType = "namespace.drift_over" // they are ours again, or it is gone
	TuneFailed         verdict.EventType = "tune.failed"
	TuneResumed        verdict.EventType = "tune.resumed" // what has failed works, or it is gone
	ArmFailed          verdict.EventType = "arm.failed"   // connections cannot be armed, on the whole node or some
	ArmResumed         verdict.EventType = "arm.resumed"
)

// Change is what something was and is; empty where it was nothing, or is nothing.
type Change struct {
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Connection names a connection and whose it is.
type Connection struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	// Interface is the one that its socket is bound to, by its index in the namespace.
	Interface uint32 `json:"interface,omitempty"`
	Cookie    uint64 `json:"cookie"`
	UID       uint32 `json:"uid"`
	PID       int    `json:"pid,omitempty"`
	// Comm is the process's own word for itself, escaped.
	Comm         string `json:"comm,omitempty"`
	Unit         string `json:"unit,omitempty"`
	PodUID       string `json:"pod_uid,omitempty"`
	PodName      string `json:"pod_name,omitempty"`
	PodNamespace string `json:"pod_namespace,omitempty"`
	ContainerID  string `json:"container_id,omitempty"`
}

// Peer is the client that asked for an act.
type Peer struct {
	PID    int    `json:"pid"`
	UID    uint32 `json:"uid"`
	Comm   string `json:"comm,omitempty"` // escaped
	Cgroup string `json:"cgroup,omitempty"`
}

// Mode is what sets how far the guard may go, in the words of the config.
type Mode struct {
	Configured string `json:"configured"`
	Override   string `json:"override"`
	Switch     bool   `json:"switch"`
	DryRun     bool   `json:"dry_run"`
	Effective  string `json:"effective"`
}

// Form is one of the ways in which an event is written.
type Form int

// The forms.
const (
	ForHost Form = iota // everything
	ForPod              // without what is none of a pod's business
	forms
)

// Record is an event as the hub keeps it. It is immutable.
type Record struct {
	Event
	wire wire
}

// Wire is the event in a form, which encode makes when it is first asked for.
func (r *Record) Wire(f Form, encode func(*Event) []byte) []byte {
	return r.wire.get(f, func() []byte { return encode(&r.Event) })
}

// wire keeps what was encoded.
type wire struct {
	once [forms]sync.Once
	text [forms][]byte
}

func (w *wire) get(f Form, encode func() []byte) []byte {
	w.once[f].Do(func() { w.text[f] = encode() })
	return w.text[f]
}
