// Package view is what the guard knows of its node at one moment: values that
// is immutable, which the watcher makes on request, and the words in
// which it is asked to act.
package view

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// Node is the watcher's tables.
type Node struct {
	// At is when this was.
	At time.Time
	// Looked says that the first look at the whole node is over.
	Looked bool
	// Off says that nothing is watched.
	Off    bool
	Spaces []Space
	// Targets are in the order of the config.
	Targets []Target
	// Connections are in no order.
	Connections []Connection
}

// Space is a network namespace.
type Space struct {
	NS   verdict.NS
	Name string // as people call it
	Host bool
	// Key is what /proc/<pid>/ns/net leads to.
	Key netns.Key
	// Tune is what its TCP limits are, nil where they were not read.
	Tune *Tune
	// Redis says whether Redis itself is there.
	Redis Redis
}

// Redis says whether Redis itself, a Sentinel included, lives in a namespace, and by what
// process.
type Redis struct {
	// Answer is yes, no or unknown, and Why what speaks for it, "" if nothing does.
	Answer, Why string
	// Processes are those of which something speaks for it, or was asked.
	Processes []RedisProcess
}

// RedisProcess is what was decided about a process.
type RedisProcess struct {
	PID         int
	Comm        string // escaped
	Port        uint16 // that it listens on, 0 for none that is known
	Answer, Why string
}

// TuneState is how it stands with the tuning of a namespace.
type TuneState string

// The states.
const (
	TuneTuned   TuneState = "tuned"   // it has our values
	TuneLeft    TuneState = "left"    // its values are as wanted, or somebody's own: nothing was written
	TunePlanned TuneState = "planned" // it would be written, but for the mode
	TuneDrifted TuneState = "drifted" // somebody has changed values after us
	TuneExempt  TuneState = "exempt"  // it is not to be tuned; Why says why
	TuneFailed  TuneState = "failed"
)

// TuneStates are all of them.
func TuneStates() []TuneState {
	return []TuneState{TuneTuned, TuneLeft, TunePlanned, TuneDrifted, TuneExempt, TuneFailed}
}

// TuneOwner is whose a value is.
type TuneOwner string

// The owners.
const (
	TuneKernel  TuneOwner = "kernel"     // the kernel's default
	TuneOurs    TuneOwner = "redisguard" // written by us
	TuneForeign TuneOwner = "foreign"    // somebody has chosen it
	TuneDrift   TuneOwner = "drifted"    // somebody has changed it after us
)

// Tune is what the TCP limits of a namespace are and mean. It is immutable.
type Tune struct {
	State  TuneState
	Why    string
	Values []TuneValue
	// Busy, Idle and Connect are after how long the kernel lets a connection
	// fail, and Meaning says it in a sentence; see sysctl.Meaning.
	Busy, Idle, Connect time.Duration
	Meaning             string
}

// TuneValue is one value. Want and Original are nil where there is none.
type TuneValue struct {
	Key, Unit      string
	Value          int
	Want, Original *int
	Owner          TuneOwner
}

// Connection is one watched connection.
type Connection struct {
	Key verdict.ConnKey
	// Space is its index in Node.Spaces.
	Space int
	// TCP is what the kernel said when it was last looked at, at Seen.
	TCP  tcpstate.Connection
	Seen time.Time
	// Owner is nil while, or if, it is not known.
	Owner *proc.Owner
	// Target names the one that its endpoint is of, "" if it is watched for its port.
	Target string
	// WhyNot says why it may not be reaped, empty if it may; Exempt is the kind
	// of reason.
	WhyNot, Exempt string
	// Arm is zero where its options were not read.
	Arm Arm
}

// ArmState is how it stands with the keepalive of a connection.
type ArmState string

// The states.
const (
	ArmDone    ArmState = "armed"   // redisguard has set its options
	ArmLeft    ArmState = "left"    // its application has chosen otherwise
	ArmPlanned ArmState = "planned" // it would be armed, but for the mode
	ArmWaiting ArmState = "waiting" // its process is not known yet, or it is not connected
	ArmExempt  ArmState = "exempt"  // it is not to be touched
	ArmFailed  ArmState = "failed"
)

// ArmStates are all of them.
func ArmStates() []ArmState {
	return []ArmState{ArmDone, ArmLeft, ArmPlanned, ArmWaiting, ArmExempt, ArmFailed}
}

// Arm is how a connection finds out by itself that its peer is gone.
type Arm struct {
	State ArmState
	Why   string // where it is not armed
	// Meaning says in words what its options mean, empty where they are not known.
	Meaning string
}

// Path is the path that it belongs to.
func (c *Connection) Path() verdict.PathKey {
	return verdict.PathKey{NS: c.Key.NS, Endpoint: c.TCP.Remote, Interface: c.TCP.Interface}
}

// Reapable says whether it may be reaped.
func (c *Connection) Reapable() bool { return c.WhyNot == "" }

// ConnID names a connection for people and programs; ParseConnID reads it.
func ConnID(k verdict.ConnKey) string {
	return strconv.FormatUint(uint64(k.NS), 10) + "-" + strconv.FormatUint(k.Cookie, 16)
}

// ParseConnID reads what ConnID has written.
func ParseConnID(s string) (verdict.ConnKey, error) {
	ns, cookie, ok := strings.Cut(s, "-")
	n, err1 := strconv.ParseUint(ns, 10, 64)
	c, err2 := strconv.ParseUint(cookie, 16, 64)
	k := verdict.ConnKey{NS: verdict.NS(n), Cookie: c}
	if !ok || err1 != nil || err2 != nil || n == 0 || c == 0 || ConnID(k) != s {
		return verdict.ConnKey{}, fmt.Errorf("%.64q is no connection id: <namespace id>-<cookie in hexadecimal>", s)
	}
	return k, nil
}

// Reap asks for the end of one connection, or of all to an endpoint.
type Reap struct {
	Connection verdict.ConnKey // zero if Endpoint is set
	Endpoint   netip.AddrPort
	DryRun     bool
	Force      bool // those that make progress, too
	Peer       event.Peer
}

// Refused is the outcome of a connection that was not tried.
const Refused verdict.ReapOutcome = "refused"

// Reaped is what became of one connection.
type Reaped struct {
	Key           verdict.ConnKey
	Local, Remote netip.AddrPort
	UID           uint32
	Owner         *proc.Owner
	Outcome       verdict.ReapOutcome
	Why           string
}

// ErrOff says that nothing is watched, so that nothing can be done.
var ErrOff = errors.New("redisguard is off: it watches nothing and touches nothing")
