package clusterview

import (
	"slices"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
)

// A migration of slots as a whole is seen in CLUSTER NODES only when it is done. The nodes that
// take part list it, where the server has such a list and lets us see it; without it the view
// lacks that slots are on their way and nothing else.

// optional says that the view is not poor without the command: who refuses it, by version or by
// rights, is no problem of the target.
func (c Command) optional() bool { return c == askMigrations || c == askMigration }

// optionalRefusedFor is refusedFor for such commands. Each refusal counts in the errors of the
// server, and one for want of rights has a line in its ACL LOG, so it is long. A server that
// was upgraded is another process and is asked at once.
const optionalRefusedFor = 24 * time.Hour

// migrations is what a server has listed.
type migrations struct {
	asked time.Duration     // when; 0 is never
	own   []reply.SlotRange // its slots then
	going []reply.Migration
}

// askForMigrations is the command that a server may know, none or one. The lists have those that
// are done, too, up to a thousand of some 400 bytes, so they are asked for once in an interval,
// however often the server is asked.
func (v *View) askForMigrations(now time.Duration, k *contact) []Command {
	if k.migrations.asked != 0 && now-k.migrations.asked < v.schedule.interval {
		return nil
	}
	for _, c := range []Command{askMigrations, askMigration} {
		if now >= k.refused[c] {
			return []Command{c}
		}
	}
	return nil
}

// move adds the migrations that a node takes part in to the marks in its own line.
func (r *report) move(now time.Duration, k *contact) {
	own := r.by[r.me]
	switch {
	case r.listed:
		k.migrations = migrations{max(now, 1), own.Slots, r.migrations}
	case !slices.Equal(k.migrations.own, own.Slots):
		k.migrations = migrations{} // done, at least in part: ask anew
	}
	for _, m := range k.migrations.going {
		here, there := m.Source, m.Target
		if m.Importing {
			here, there = there, here
		}
		// A replica lists what its primary imports.
		if here != "" && here != r.me {
			continue
		}
		for _, s := range m.Slots {
			own.Moves = append(own.Moves, reply.Move{Slots: s, Importing: m.Importing, Node: there})
		}
	}
}
