package reply

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redisguard/redisguard/resp"
)

// Migration is a move of slots as a whole that is going on (atomic slot migration). It leaves no
// marks in CLUSTER NODES: until the owner changes, nothing else tells of it.
type Migration struct {
	Slots          []SlotRange
	Importing      bool   // as seen by the node that says so
	Source, Target string // node ids; empty if not told
}

// ParseMigrations reads CLUSTER GETSLOTMIGRATIONS, which Valkey knows since 9.0, and CLUSTER
// MIGRATION STATUS ALL of Redis since 8.4. Both list the moves that have ended as well, up to a
// thousand; these are left out.
func ParseMigrations(v resp.Value) ([]Migration, error) {
	const what = "the migrations of slots"
	jobs, err := list(v)
	if err != nil {
		return nil, cannot(what, err)
	}
	var all []Migration
	ranges := 0
	for i, j := range jobs {
		m, over, err := parseMigration(j)
		if err == nil && !over {
			if ranges += len(m.Slots); ranges > MaxRanges {
				err = errors.New("more ranges of slots than there are slots")
			}
			all = append(all, m)
		}
		if err != nil {
			return nil, cannot(what, fmt.Errorf("entry %d: %w", i+1, err))
		}
	}
	return all, nil
}

// parseMigration reads an entry; over says that the move has ended, well or not.
func parseMigration(v resp.Value) (m Migration, over bool, err error) {
	fields, err := pairs(v)
	if err != nil {
		return m, false, err
	}
	var operation, state, slots string
	for i := 0; i < len(fields); i += 2 {
		key, _ := fields[i].Text()
		value, _ := fields[i+1].Text()
		switch key { // Valkey's word, and Redis'
		case "operation":
			operation = value
		case "state":
			state = value
		case "slot_ranges", "slots":
			slots = value
		case "source_node", "source":
			m.Source = id(value)
		case "target_node", "dest":
			m.Target = id(value)
		}
	}
	switch operation {
	case "IMPORT", "import":
		m.Importing = true
	case "EXPORT", "migrate":
	default:
		return m, false, fmt.Errorf("%q is neither an import nor an export", clip(operation))
	}
	switch state {
	case "":
		return m, false, errors.New("it has no state")
	case "success", "failed", "cancelled", "completed", "canceled":
		return m, true, nil
	}
	// The states on the way differ by version, and all mean the same here.
	for s := range strings.FieldsSeq(slots) {
		r, err := parseRange(s)
		if err != nil {
			return m, false, err
		}
		if m.Slots = append(m.Slots, r); len(m.Slots) > MaxRanges {
			return m, false, errors.New("more ranges of slots than there are slots")
		}
	}
	return m, false, nil
}
