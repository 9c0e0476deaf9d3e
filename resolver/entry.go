package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// The errors that State.Err wraps.
var (
	// ErrNoAddress says that name servers answer that there is no such name, or that it
	// has no address.
	ErrNoAddress = errors.New("it has no address")
	// ErrNoAnswer says that no name server could or would answer.
	ErrNoAnswer = errors.New("no name server answers")
	// ErrLimit says that there are more names or addresses than Limits allow.
	ErrLimit = errors.New("more than is accepted")
)

// State is what is known of a name.
type State struct {
	Name  string       // folded, see Fold
	Addrs []netip.Addr // in order, IPv4 first; none until there was an answer with some
	// Stale says that some of Addrs were not confirmed when last asked for.
	Stale bool
	// Confirmed is when a name server last answered for Addrs; if IPv4 and IPv6 differ,
	// the earlier. The zero value: never.
	Confirmed time.Time
	// Err is why the set is stale, empty or not complete. It wraps ErrNoAddress,
	// ErrNoAnswer or ErrLimit. Nil before the first question has come to an end.
	Err error
}

// Change says how a State differs from the one before.
type Change struct {
	State
	Added, Removed []netip.Addr // in order
}

// entry is one name of a Table.
type entry struct {
	name       string
	candidates []candidate
	families   [2]family // IPv4, IPv6
	home       int       // the candidate that had addresses; -1: none
	known      bool      // a search has come to its end
	searched   time.Time // when the last one did

	// The search for a candidate with addresses.
	searching bool
	at        int    // the candidate
	first     Answer // for IPv4 at this candidate
	worst     Answer // of all that was answered in this search

	// The question that is pursued: the one of the search, or one that was begun.
	pursued bool
	family  int
	due     time.Time
	tried   int  // servers asked so far
	start   int  // the server that is first
	tcp     bool // the last answer was truncated
	asking  uint64

	told     State
	toldKind error // the one of the three that told.Err wraps
}

// next is the family that is to be asked for next, and when.
func (e *entry) next(families int) (f int, due time.Time) {
	if e.searching || e.pursued {
		return e.family, e.due
	}
	if families == 2 && e.families[1].due.Before(e.families[0].due) {
		f = 1
	}
	return f, e.families[f].due
}

// pursue makes it a question of family f, at once or later.
func (e *entry) pursue(f int, due time.Time) {
	e.pursued, e.family, e.due = true, f, due
	e.tried, e.tcp = 0, false
}

// search begins to look for a candidate with addresses.
func (e *entry) search(due time.Time) {
	e.searching, e.at = true, 0
	e.worst, e.first = Answer{}, Answer{}
	e.pursue(0, due)
}

// state is what is known now, and the kind of its error.
func (e *entry) state() (s State, kind error) {
	s.Name = e.name
	var worst Outcome
	total := e.families[0].size + e.families[1].size
	leftOut := e.families[0].leftOut + e.families[1].leftOut
	for i := range e.families {
		f := &e.families[i]
		s.Addrs = append(s.Addrs, f.addrs()...)
		// A family without addresses says nothing of those of the other.
		if total > 0 && f.size == 0 {
			continue
		}
		if !f.confirmed.IsZero() && (s.Confirmed.IsZero() || f.confirmed.Before(s.Confirmed)) {
			s.Confirmed = f.confirmed
		}
		if f.failure != 0 {
			s.Stale = s.Stale || f.size > 0
			if f.failure > worst {
				worst = f.failure
				s.Err, kind = e.failed(f)
			}
		}
	}
	slices.SortFunc(s.Addrs, netip.Addr.Compare)
	s.Addrs = slices.Compact(s.Addrs)
	if worst == 0 && leftOut > 0 {
		kind = ErrLimit
		s.Err = fmt.Errorf("cannot take all addresses of %q: %d are left out, %d are used: %w", e.name, leftOut, len(s.Addrs), ErrLimit)
	}
	return s, kind
}

// failed says how a family fails.
func (e *entry) failed(f *family) (err, kind error) {
	switch f.failure {
	case NXDomain:
		return fmt.Errorf("cannot resolve %q: no such name (NXDOMAIN), check how it is written: %w", e.name, ErrNoAddress), ErrNoAddress
	case NoData:
		return fmt.Errorf("cannot resolve %q: the name has neither A nor AAAA records: %w", e.name, ErrNoAddress), ErrNoAddress
	}
	return fmt.Errorf("cannot resolve %q: %w: %w", e.name, ErrNoAnswer, f.err), ErrNoAnswer
}

// change is how the state differs from what was told last.
func (e *entry) change() (Change, bool) {
	now, kind := e.state()
	c := Change{State: now, Added: without(now.Addrs, e.told.Addrs), Removed: without(e.told.Addrs, now.Addrs)}
	changed := len(c.Added) > 0 || len(c.Removed) > 0 || now.Stale != e.told.Stale || kind != e.toldKind
	e.told, e.toldKind = now, kind
	c.Addrs = slices.Clone(now.Addrs) // which the receiver may change
	return c, changed
}

// without is what of a is not in b; both are in order.
func without(a, b []netip.Addr) (list []netip.Addr) {
	for _, x := range a {
		if _, found := slices.BinarySearchFunc(b, x, netip.Addr.Compare); !found {
			list = append(list, x)
		}
	}
	return list
}
