package targets

// What is told to people and programs: events, and the table that the API reads.

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/resolver"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// publish tells what has changed.
func (l *Loop) publish(t *target) {
	changes, lost := t.view.Changes()
	top := t.view.Topology()
	for _, c := range changes {
		e := event.Event{Type: verdict.EventType(c.Kind), Target: t.conf.Name, Endpoint: c.Endpoint, Text: c.String()}
		if c.Evidence != "" {
			e.Text += ": " + c.Evidence
		}
		if c.Old != "" || c.New != "" {
			e.Change = &event.Change{From: name(top, c.Old), To: name(top, c.New)}
		}
		t.changed, t.change = time.Now(), c.String()
		l.Publish(e)
	}
	if lost > 0 {
		l.Log.Warn("more has changed than can be told; take a snapshot", "target", t.conf.Name, "lost", lost)
	}
	var words []string
	for _, p := range top.Problems {
		words = append(words, p.Kind+": "+p.Detail)
	}
	known := t.endpoints()
	for _, a := range slices.SortedFunc(maps.Keys(t.failed), netip.AddrPort.Compare) {
		if _, still := slices.BinarySearchFunc(known, a, netip.AddrPort.Compare); !still {
			delete(t.failed, a) // nobody asks it any more
			continue
		}
		if why := t.failed[a]; len(words) < maxProblems {
			words = append(words, fmt.Sprintf("%v: %s", a, why))
		}
	}
	problem := strings.Join(words, "; ")
	if problem == t.problem {
		return
	}
	if t.problem = problem; problem == "" {
		l.Publish(event.Event{Type: event.TargetResumed, Target: t.conf.Name, Text: "nothing is wrong with it any more"})
	} else {
		l.Publish(event.Event{Type: event.TargetProblem, Target: t.conf.Name, Text: problem})
	}
}

// name is how people know what a change is about: a node by its first address.
func name(top *clusterview.Topology, id string) string {
	if n := top.Node(id); n != nil && len(n.Endpoints) > 0 {
		return n.Endpoints[0].Addr.String()
	}
	return id
}

// store keeps what is known where Table finds it.
func (l *Loop) store() {
	list := make([]view.Target, len(l.targets))
	for i, t := range l.targets {
		list[i] = view.Target{Conf: &t.conf, Topology: t.view.Topology(), Seeds: t.seeds, Changed: t.changed, Change: t.change, Problem: t.problem}
		for _, name := range t.conf.SeedNames() {
			if s, ok := l.resolved[resolver.Fold(name)]; ok {
				list[i].Names = append(list[i].Names, s)
			}
		}
	}
	l.table.Store(&list)
}
