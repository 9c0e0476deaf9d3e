package v1

import "time"

// TargetType is how a Redis deployment is built.
type TargetType string

// The types. Auto is one that is not found out yet.
const (
	TargetAuto        TargetType = "auto"
	TargetCluster     TargetType = "cluster"
	TargetSentinel    TargetType = "sentinel"
	TargetReplication TargetType = "replication"
	TargetStandalone  TargetType = "standalone"
)

// TargetState is how a target is as a whole.
type TargetState string

// The states.
const (
	TargetUnknown TargetState = "unknown" // not enough was heard, or nobody needs it: see Target.Why
	TargetUp      TargetState = "up"
	TargetDown    TargetState = "down" // a cluster that answers CLUSTERDOWN, no primary
)

// Role is what a Redis process does.
type Role string

// The roles; empty is unknown.
const (
	RolePrimary  Role = "primary"
	RoleReplica  Role = "replica"
	RoleSentinel Role = "sentinel"
)

// NodeState is how a node is, or an address that was one's.
type NodeState string

// The states; empty is unknown.
const (
	NodeOK       NodeState = "ok"
	NodeFailed   NodeState = "failed"
	NodeDemoted  NodeState = "demoted"
	NodeRemoved  NodeState = "removed"  // of Target.Former
	NodeReplaced NodeState = "replaced" // of Target.Former
)

// Target is a Redis deployment that the config names: an element of GET /v1/targets.
type Target struct {
	Name string     `json:"name"`
	Type TargetType `json:"type"`
	// Mode is the ceiling of all jobs for its connections, by its config.
	Mode  Mode        `json:"mode"`
	State TargetState `json:"state"`
	Why   string      `json:"why,omitempty"` // of State
	// Epoch is the highest config epoch that is agreed upon (Redis Cluster, Sentinel).
	Epoch uint64 `json:"epoch,omitempty"`
	// Voters is from how many views this was merged: of nodes with a vote, or of Sentinels.
	Voters int     `json:"voters"`
	Shards []Shard `json:"shards"`
	// Nodes are sorted by ID.
	Nodes     []Node   `json:"nodes"`
	Sentinels []string `json:"sentinels,omitempty"`
	// Former are addresses that were a node's within the last hour.
	Former []FormerAddress `json:"former,omitempty"`
	Names  []TargetName    `json:"names,omitempty"`
	// Covered is how many of the 16384 slots have an owner that has not failed.
	Covered  int      `json:"covered,omitempty"`
	Problems []string `json:"problems,omitempty"`
	// Connections is how many of them on this node lead there that the peer may see.
	Connections int `json:"connections"`
	// Changed is when its topology has changed the last time since redisguard was started.
	Changed *time.Time `json:"changed,omitempty"`
	Change  string     `json:"change,omitempty"`
}

// Shard is a primary with its replicas.
type Shard struct {
	Primary  string   `json:"primary"` // an ID, empty if there is none
	Replicas []string `json:"replicas"`
	Slots    string   `json:"slots,omitempty"` // as in "0-5460,10923"
}

// Node is a node of a target.
type Node struct {
	// ID is the node id in a Redis Cluster, and elsewhere the address.
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"` // the host name that it announces
	Role      Role      `json:"role,omitempty"`
	State     NodeState `json:"state,omitempty"`
	Endpoints []string  `json:"endpoints"`
	RunID     string    `json:"run_id,omitempty"`
	Primary   string    `json:"primary,omitempty"` // of a replica, an ID
	Slots     string    `json:"slots,omitempty"`
	Moving    string    `json:"moving,omitempty"` // slots on their way, as it says itself
	Loading   bool      `json:"loading,omitempty"`
	// Successor is the ID of the node that took over from it, once that is confirmed.
	Successor   string `json:"successor,omitempty"`
	Detail      string `json:"detail,omitempty"` // what State rests on
	Connections int    `json:"connections"`
}

// FormerAddress is an address that was a node's.
type FormerAddress struct {
	Endpoint  string    `json:"endpoint"`
	State     NodeState `json:"state"`
	Successor string    `json:"successor,omitempty"` // an ID
	Detail    string    `json:"detail,omitempty"`
}

// TargetName is a name among the seeds of a target, looked up.
type TargetName struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	// Stale says that the DNS does not confirm these addresses any more, and Error why.
	Stale bool   `json:"stale,omitempty"`
	Error string `json:"error,omitempty"`
}

// SlotOwner is the answer to GET /v1/targets/{id}/slots.
type SlotOwner struct {
	Key  string `json:"key"`
	Slot int    `json:"slot"`
	// Node owns the slot, nil if nobody does.
	Node *Node `json:"node,omitempty"`
	// Replicas are those of the owner.
	Replicas []Node `json:"replicas"`
}
