package tui

import (
	"cmp"
	"fmt"
	"slices"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/show"
)

// targetRank puts what is wrong first.
var targetRank = map[v1.TargetState]int{v1.TargetDown: 0, v1.TargetUnknown: 1}

func (m *model) visibleTargets() []v1.Target {
	var list []v1.Target
	for _, t := range m.targets {
		if m.filter == "" || m.passes(t.Name, string(t.Type), string(t.State)) {
			list = append(list, t)
		}
	}
	rank := func(t *v1.Target) int {
		if r, ok := targetRank[t.State]; ok && (t.State == v1.TargetDown || t.Connections > 0) {
			return r
		}
		return len(targetRank)
	}
	slices.SortStableFunc(list, func(a, b v1.Target) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), cmp.Compare(b.Connections, a.Connections), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// drawTargets draws a line for each target, above the panes; nothing where there is none. On a
// screen they have a quarter of it at most, the worst first.
func (m *model) drawTargets(s *screen) {
	list := m.visibleTargets()
	room := max(0, m.height/4-2)
	if m.once {
		room = len(list)
	}
	if len(list) == 0 || room == 0 {
		return
	}
	s.rule("-- ", fmt.Sprintf("targets (%d)", len(list)))
	rows := [][]cell{{{" ", "", 1}, {"TARGET", "", 24}, {"TYPE", "", 11}, {"STATE", "", 22}, {"CONNS", "", -6}, {"PRIMARY", "", 47}, {"LAST CHANGE", "", 0}}}
	shown := list
	if len(list) > room {
		shown = list[:room-1]
	}
	for i := range shown {
		t := &shown[i]
		state := string(t.State)
		if n := len(t.Problems); n > 0 {
			state += " (" + plural(n, "problem") + ")"
		}
		rows = append(rows, []cell{
			{text: " "}, {text: show.Plain(t.Name)}, {text: show.Plain(string(t.Type))}, {text: show.Plain(state), as: string(t.State)},
			{text: fmt.Sprint(t.Connections)}, {text: primary(t)}, {text: m.lastChange(t)},
		})
	}
	s.table(rows)
	if more := len(list) - len(shown); more > 0 {
		s.text("   and %d more", more)
	}
}

// primary is who it is or, in a Redis Cluster, how much of it is served.
func primary(t *v1.Target) string {
	if t.State == v1.TargetUnknown {
		return "-"
	}
	if t.Type == v1.TargetCluster {
		return fmt.Sprintf("%d of 16384 slots", t.Covered)
	}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		if len(t.Shards) == 1 && n.ID == t.Shards[0].Primary && len(n.Endpoints) > 0 {
			at := n.Endpoints[0]
			if n.State != v1.NodeOK && n.State != "" {
				at += " " + string(n.State)
			}
			return show.Plain(at)
		}
	}
	return "none"
}

func (m *model) lastChange(t *v1.Target) string {
	if t.Changed == nil {
		return "-"
	}
	return show.Age(m.now.Sub(*t.Changed)) + " ago: " + show.Plain(t.Change)
}
