package targets

// What is told to the policy and to the decision core: members and facts.

import (
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/verdict"
)

// typeOf is the type of a target as far as it is known, in the words of the config.
func typeOf(top *clusterview.Topology) config.TargetType {
	for _, t := range []config.TargetType{config.TypeCluster, config.TypeSentinel, config.TypeReplication, config.TypeStandalone} {
		if string(top.Type) == t.String() {
			return t
		}
	}
	return config.TypeAuto
}

// endpoints are those of a target, sorted.
func (t *target) endpoints() (all []netip.AddrPort) {
	top := t.view.Topology()
	all = append(all, t.seeds...)
	for i := range top.Nodes {
		for _, e := range top.Nodes[i].Endpoints {
			all = append(all, e.Addr)
		}
	}
	all = append(all, top.Sentinels...)
	// Connections to an address that was a node's are its connections still.
	for _, f := range top.Former {
		all = append(all, f.Addr)
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// tellMembers tells the endpoints of all targets, if they are others, and says when to come
// back if that is too soon: each time all connections are looked through, and a server may
// name other nodes with every answer.
func (l *Loop) tellMembers(now time.Duration) (again time.Duration) {
	again = now + obeyEvery
	if l.told != 0 && now-l.told < membersEvery {
		return min(again, l.told+membersEvery)
	}
	list := make([]policy.Members, 0, len(l.targets))
	for _, t := range l.targets {
		m := policy.Members{Target: t.conf.Name, Type: typeOf(t.view.Topology()), Endpoints: t.endpoints()}
		if !reflect.DeepEqual(m, t.members) && t.turns.take(now) {
			t.members = m
		}
		list = append(list, t.members)
	}
	if !reflect.DeepEqual(list, l.members) {
		l.members, l.told = list, now
		l.Members(list)
	}
	return again
}

// turns bound how often something may be done: membersBurst times in a row, and once each
// membersSlow in the long run.
type turns struct {
	taken float64
	at    time.Duration
}

func (b *turns) take(now time.Duration) bool {
	b.taken = max(0, b.taken-float64(now-b.at)/float64(membersSlow))
	b.at = now
	if b.taken > membersBurst-1 {
		return false
	}
	b.taken++
	return true
}

// budget bounds the time that the loop works to a share of all time.
type budget struct {
	spent, at time.Duration
}

// spend takes down that the loop has worked for took until now, and says for how long it is to
// rest: not at all after workBurst at once.
func (b *budget) spend(now, took time.Duration) (rest time.Duration) {
	b.spent = max(0, b.spent-(now-b.at)/workShare) + took
	b.at = now
	return min(max(0, (b.spent-workBurst)*workShare), longestRest)
}

// tellFacts tells what has changed of what is known about the endpoints of all targets. Of two
// targets with one endpoint it is the first's, as in policy.Interest.
func (l *Loop) tellFacts() {
	now := map[netip.AddrPort]verdict.EndpointFact{}
	for _, t := range l.targets {
		for _, f := range l.factsOf(t) {
			if _, taken := now[f.Endpoint]; !taken {
				now[f.Endpoint] = f
			}
		}
	}
	var changed []verdict.EndpointFact
	for a, f := range now {
		if was, told := l.facts[a]; !told || was != f {
			changed = append(changed, f)
		}
	}
	for a := range l.facts {
		if _, still := now[a]; !still {
			changed = append(changed, verdict.EndpointFact{Endpoint: a, Forget: true})
		}
	}
	l.facts = now
	l.tell(changed)
}

// factsOf are the facts about the endpoints of a target, one for each: its policies hold before
// anything is known of its nodes.
func (l *Loop) factsOf(t *target) map[netip.AddrPort]verdict.EndpointFact {
	is := t.conf.Type
	if is == config.TypeAuto {
		is = typeOf(t.view.Topology())
	}
	policies := policy.Policies(l.conf.PolicyOf(&t.conf, is))
	if l.hearsay(t) {
		for _, p := range []*verdict.Policy{&policies.OnFailed, &policies.OnRemoved, &policies.OnDemoted, &policies.OnReplaced} {
			if *p == verdict.PolicyReap {
				*p = verdict.PolicySignal
			}
		}
	}
	facts := map[netip.AddrPort]verdict.EndpointFact{}
	for _, a := range t.endpoints() {
		if t.conf.Allows(a) {
			facts[a] = verdict.EndpointFact{Endpoint: a, Target: t.conf.Name, Policies: policies}
		}
	}
	for _, f := range t.view.Facts() {
		if _, ok := facts[f.Endpoint]; !ok {
			continue
		}
		facts[f.Endpoint] = verdict.EndpointFact{
			Endpoint: f.Endpoint, Target: t.conf.Name, Policies: policies, State: verdict.NodeState(f.State), Since: f.Since,
			Role: verdict.Role(f.Role), RunID: f.RunID, At: f.At, Single: f.Single, Clients: f.Clients, Successor: f.Successor, Source: f.Source, Detail: f.Detail,
		}
	}
	return facts
}

// tell passes facts on, in the order of their endpoints.
func (l *Loop) tell(facts []verdict.EndpointFact) {
	if len(facts) > 0 {
		slices.SortFunc(facts, func(a, b verdict.EndpointFact) int { return a.Endpoint.Compare(b.Endpoint) })
		l.Facts(l.ctx, facts)
	}
}

// hearsay says that what the view of a target says may be the word of one of its clients, while
// there are others: no workload may have the connections of another ended. Where all
// connections are in one namespace it is nobody else's.
func (l *Loop) hearsay(t *target) bool {
	at := time.Duration(t.unproven.Load())
	return at != 0 && sys.Monotonic()-at < max(unprovenFor, unprovenTurns*t.conf.Interval) && len(l.local[t.conf.Name].Clients) > 1
}
