package metrics

import (
	"slices"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/clusterview/reply"
)

// unknown is the word for a role and a state that is not known.
const unknown = "unknown"

// The roles and states of nodes.
var (
	nodeRoles  = []string{string(reply.RolePrimary), string(reply.RoleReplica), unknown}
	nodeStates = []string{string(clusterview.StateOK), string(clusterview.StateFailed), string(clusterview.StateDemoted), string(clusterview.StateReplaced), unknown}
)

// labels are the values of the label target: the targets, and what belongs to none. Each is
// there once, whatever the config calls a target.
func (r *reading) labels() []string {
	list := []string{watchedPort}
	for i := range r.node.Targets {
		if name := r.node.Targets[i].Conf.Name; name != watchedPort {
			list = append(list, name)
		}
	}
	return list
}

// targetMetrics are those of each target.
func targetMetrics() []metric {
	return []metric{
		{
			name: "redisguard_target_up", labels: []string{"target"}, kind: gauge,
			help: "Whether a target is up as a whole: 0 is down (CLUSTERDOWN, or no primary). Missing while that is not known, as when this node has no connection to it.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				for i := range r.node.Targets {
					t := &r.node.Targets[i]
					switch {
					case !t.Topology.Known:
					case t.Topology.State == clusterview.Up:
						say(1, t.Conf.Name)
					case t.Topology.State == clusterview.Down:
						say(0, t.Conf.Name)
					}
				}
			},
		},
		{
			name: "redisguard_target_connections", labels: []string{"target"}, kind: gauge,
			help: "Connections of this node to a target.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				n := map[string]int{}
				for i := range r.node.Connections {
					n[r.node.Connections[i].Target]++
				}
				for i := range r.node.Targets {
					say(float64(n[r.node.Targets[i].Conf.Name]), r.node.Targets[i].Conf.Name)
				}
			},
		},
		{
			name: "redisguard_target_nodes", labels: []string{"target", "role", "state"}, kind: gauge,
			help: "Nodes of a target by role and state, as the cluster view has them.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				for i := range r.node.Targets {
					t := &r.node.Targets[i]
					n := map[[2]string]int{}
					for k := range t.Topology.Nodes {
						x := &t.Topology.Nodes[k]
						n[[2]string{word(nodeRoles, string(x.Role)), word(nodeStates, string(x.State))}]++
					}
					for _, role := range nodeRoles {
						for _, state := range nodeStates {
							say(float64(n[[2]string{role, state}]), t.Conf.Name, role, state)
						}
					}
				}
			},
		},
		{
			name: "redisguard_target_problems", labels: []string{"target"}, kind: gauge,
			help: "What is wrong with a target or with what is told of it, so that its events may come late; see GET /v1/targets.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				for i := range r.node.Targets {
					t := &r.node.Targets[i]
					n := len(t.Topology.Problems)
					if t.Problem != "" {
						n = max(n, 1) // a server that could not be asked
					}
					say(float64(n), t.Conf.Name)
				}
			},
		},
	}
}

// word is w if it is one of a closed set.
func word(set []string, w string) string {
	if slices.Contains(set, w) {
		return w
	}
	return unknown
}
