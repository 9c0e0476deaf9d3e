package sysctl

import "slices"

// Action is what is to be done about a key.
type Action uint8

// The actions. The zero value does nothing.
const (
	Same    Action = iota // it is as it should be
	Write                 // to be written
	Restore               // no longer wanted: the original is to be written
	Release               // no longer wanted, and not ours any more: to be forgotten
	Foreign               // somebody has chosen it before us: left
	Drifted               // somebody has changed it after us: left
	Absent                // the kernel does not have it
)

func (a Action) String() string {
	names := [...]string{"same", "write", "restore", "release", "foreign", "drifted", "absent"}
	if int(a) >= len(names) {
		return "invalid"
	}
	return names[a]
}

// Writes says whether the action changes the namespace.
func (a Action) Writes() bool { return a == Write || a == Restore }

// Item is the plan for one key of a namespace.
type Item struct {
	Key    Key
	Action Action
	Have   int // what is
	Want   int // what should be; of Restore, the original
	// Ours says that what is was written by us.
	Ours bool
	// Conflict says that a write undoes what another program did after us; GivenUp that
	// it was undone MaxConflicts times and is left now.
	Conflict, GivenUp bool
}

// MaxConflicts is how often somebody else's change is undone, before it is taken
// for that of a program that goes on.
const MaxConflicts = 2

// Policy is what the config says about other people's values.
type Policy struct {
	Override bool // write over a value that somebody has chosen before us
	Repair   bool // undo changes that somebody has made after us
}

// Plan compares the values that a namespace has with those that are wanted. kept
// is what is remembered of it, nil if it was never tuned.
func Plan(have Values, kept *Record, want Values, p Policy) []Item {
	var items []Item
	for _, k := range Keys() {
		w, wanted := want[k]
		var was *Kept
		if kept != nil {
			was = kept.of(k)
		}
		if !wanted && was == nil {
			continue
		}
		h, there := have[k]
		it := Item{Key: k, Have: h, Want: w}
		switch {
		case !there:
			it.Action = Absent
		case was == nil:
			switch {
			case h == w:
			case h == k.Def().Default || p.Override:
				it.Action = Write
			default:
				it.Action = Foreign
			}
		default:
			it.Ours = h == was.last() || kept.Applying && slices.Contains(was.Ours, h)
			// A kill in the middle leaves originals beside ours.
			untouched := kept.Applying && h == was.Original
			switch {
			case !wanted && it.Ours && h != was.Original:
				it.Action, it.Want = Restore, was.Original
			case !wanted:
				it.Action = Release
			case h == w:
			case it.Ours, untouched:
				it.Action = Write
			case p.Repair && was.Conflicts < MaxConflicts:
				it.Action, it.Conflict = Write, true
			default:
				it.Action, it.GivenUp = Drifted, p.Repair
			}
		}
		items = append(items, it)
	}
	return items
}

// Changes says whether a plan has anything to write, or to write down.
func Changes(items []Item, kept *Record) bool {
	return kept != nil && kept.Applying || slices.ContainsFunc(items, func(it Item) bool { return it.Action.Writes() || it.Action == Release })
}
