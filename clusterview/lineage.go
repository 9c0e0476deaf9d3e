package clusterview

import (
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// maxIdentities is how many processes behind one virtual address are remembered, the latest.
const maxIdentities = 8

// identity is a process that has answered behind a virtual address.
type identity struct {
	run             string
	role            reply.Role
	replID, replID2 string
	since, at       time.Duration // seen first, seen last
}

// behind is who was met behind one virtual address. That another process answers proves
// nothing by itself: a load balancer leads every connection elsewhere.
type behind struct {
	seen []identity // the latest is the last
	many bool       // one that was met before another is back: they alternate
	// stale: the process that was met before has been succeeded, by proof of lineage.
	stale  NodeState
	since  time.Duration
	detail string
}

// meet evaluates that a process answered behind the address at now.
func (b *behind) meet(now time.Duration, info *reply.Info) {
	if info.RunID == "" {
		return // a proxy, or a user without the right to INFO: there is no lineage to be had
	}
	x := identity{info.RunID, info.Role, info.ReplID, info.ReplID2, now, now}
	if len(b.seen) == 0 {
		b.seen = append(b.seen, x)
		return
	}
	last := b.seen[len(b.seen)-1]
	if last.run == x.run {
		b.again(now, last, x)
		return
	}
	if i := slices.IndexFunc(b.seen, func(y identity) bool { return y.run == x.run }); i >= 0 {
		// A virtual IP that moves back does the same: then nothing is stale any more either.
		b.many, b.stale, b.detail = true, "", ""
		x.since = b.seen[i].since
		b.seen = slices.Delete(b.seen, i, i+1)
	} else if !b.many && last.role == reply.RolePrimary && last.replID != "" && x.role == reply.RolePrimary && x.replID2 == last.replID {
		// A primary has another's history as its second only if it was promoted from it.
		b.stale, b.since = StateReplaced, now
		b.detail = "a primary answers that was promoted from the history of the one before (master_replid2 " + short(last.replID) + ")"
	} else {
		b.stale, b.detail = "", ""
	}
	b.seen = append(b.seen, x)
	if len(b.seen) > maxIdentities {
		b.seen = slices.Delete(b.seen, 0, 1)
	}
}

// again evaluates that the same process answered as the last time.
func (b *behind) again(now time.Duration, last, x identity) {
	x.since = last.since
	b.seen[len(b.seen)-1] = x
	switch {
	case last.role == reply.RolePrimary && x.role == reply.RoleReplica && !b.many:
		b.stale, b.since, b.detail = StateDemoted, now, "the same process says that it is a replica now"
	case x.role == reply.RolePrimary && b.stale == StateDemoted:
		b.stale, b.detail = "", ""
	}
}
