package resolver

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Limits bound what a Table sends and holds. Each field that is 0 has its default.
type Limits struct {
	// Rate is how many queries a second are sent in the long run, by default 0.15, and
	// Burst how many may be saved up, by default 2: A and AAAA of one name, or a server
	// and the next. Why so: see the package comment.
	Rate, Burst float64
	// MinTTL and MaxTTL are between which bounds a TTL is taken, by default 10 s and 60 s.
	// Failures are repeated after MinTTL, and later less often, up to MaxTTL.
	MinTTL, MaxTTL time.Duration
	// Names is how many names are resolved, by default 256: at the default rate each is
	// then asked for every 28 to 57 minutes, and more would make no sense.
	Names int
	// Addresses is how many addresses a name has, by default 1024, for the 1,000 nodes
	// of the largest Redis Cluster behind one headless service. A server that fills all
	// names, with other addresses each time, makes us hold some 65 MB.
	Addresses int
	// Asking is how many queries wait for their answers at a time, by default 4. A
	// server that is silent holds one for 5 s; at the default rate that is one.
	Asking int
}

func (l Limits) withDefaults() Limits {
	l.Rate = cmp.Or(l.Rate, 0.15)
	l.Burst = max(cmp.Or(l.Burst, 2), 1)
	l.MinTTL = cmp.Or(l.MinTTL, 10*time.Second)
	l.MaxTTL = max(cmp.Or(l.MaxTTL, 60*time.Second), l.MinTTL)
	l.Names = cmp.Or(l.Names, 256)
	l.Addresses = cmp.Or(l.Addresses, 1024)
	l.Asking = cmp.Or(l.Asking, 4)
	return l
}

// searchAgain is after what time the candidates before the one that has addresses are
// tried again: an administrator who adds a name to an earlier search domain has
// clients that notice at their next lookup, and it is rare.
const searchAgain = 10 * time.Minute

// Stats are counters since the start.
type Stats struct {
	Queries          uint64 // sent
	Failures         uint64 // of these: without a usable answer
	Retries          uint64 // of these: to the next server, or over TCP
	Ignored          uint64 // messages that were no answer to what was asked
	AddressesLeftOut uint64 // beyond Limits.Addresses, once for each answer
	NamesLeftOut     uint64 // beyond Limits.Names, once for each call of Want
}

// Table holds names and their addresses. It is pure: it has no clock and asks nobody.
// It is for one goroutine at a time.
type Table struct {
	limits  Limits
	rng     *rand.Rand
	conf    ResolvConf
	entries map[string]*entry
	serial  uint64
	asking  int // questions without an answer so far, those of forgotten names too
	stats   Stats

	tokens   float64
	refilled time.Time
}

// NewTable makes a Table without names. It asks nothing before Configure.
func NewTable(limits Limits, rng *rand.Rand) *Table {
	return &Table{limits: limits.withDefaults(), rng: rng, entries: map[string]*entry{}, tokens: rng.Float64()}
}

// Stats are the counters of now.
func (t *Table) Stats() Stats { return t.stats }

// Configure says what resolv.conf says now. Addresses stay; names whose candidates
// have changed are searched for anew.
func (t *Table) Configure(now time.Time, conf ResolvConf) {
	t.conf = conf
	for _, e := range t.entries {
		// What is on its way was sent to a server that may be none any more.
		e.asking, e.pursued = 0, false
		if t.families() == 1 {
			e.families[1] = family{}
		}
		if c := candidates(e.name, conf); !slices.Equal(c, e.candidates) {
			e.candidates, e.home, e.searching = c, -1, true
		}
		if e.searching {
			e.search(now)
		}
	}
	t.forfeit(now)
}

// Want says which names are to be resolved from now on. Others are forgotten. The error
// says which were not taken: those that are no names, and those beyond Limits.Names, the
// last ones.
func (t *Table) Want(now time.Time, names []string) error {
	wanted := map[string]bool{}
	leftOut := 0
	var badErr, limitErr error // about the first of each
	for _, n := range names {
		name := Fold(n)
		if wanted[name] {
			continue
		}
		if err := checkName(name); err != nil {
			if badErr == nil {
				badErr = fmt.Errorf("cannot resolve %q: %w", clip(name), err)
			}
			continue
		}
		if len(wanted) >= t.limits.Names {
			if leftOut++; leftOut == 1 {
				limitErr = fmt.Errorf("cannot resolve %q and all names after it: more than %d are wanted: %w", name, t.limits.Names, ErrLimit)
			}
			continue
		}
		wanted[name] = true
	}
	for name := range t.entries {
		if !wanted[name] {
			delete(t.entries, name)
		}
	}
	added := false
	for name := range wanted {
		if t.entries[name] == nil {
			added = true
			e := &entry{name: name, candidates: candidates(name, t.conf), home: -1, told: State{Name: name}}
			e.search(now)
			t.entries[name] = e
		}
	}
	if added {
		t.forfeit(now)
	}
	t.stats.NamesLeftOut += uint64(leftOut)
	return errors.Join(badErr, limitErr)
}

// clip shortens what is quoted in an error.
func clip(name string) string { return name[:min(len(name), 40)] }

// forfeit gives up saved queries for a random part of one. What makes one node ask may
// make thousands ask in the same second. A part of one that is left is as random as any.
func (t *Table) forfeit(now time.Time) {
	t.refill(now)
	if t.tokens >= 1 {
		t.tokens = t.rng.Float64()
	}
}

func (t *Table) refill(now time.Time) {
	if t.refilled.IsZero() {
		t.refilled = now
	}
	if passed := now.Sub(t.refilled); passed > 0 {
		t.tokens = min(t.limits.Burst, t.tokens+passed.Seconds()*t.limits.Rate)
		t.refilled = now
	}
}

// families is how many are asked for.
func (t *Table) families() int {
	if t.conf.NoAAAA {
		return 1
	}
	return 2
}

// first is the name to ask for next: what is due for longest, and every second time a name
// that was never asked for before others. So new names need not wait for those that are
// overdue, nor can names that come and go keep the others waiting. Nil if there is none.
func (t *Table) first() (best *entry, due time.Time) {
	for _, e := range t.entries {
		if e.asking != 0 {
			continue
		}
		_, d := e.next(t.families())
		if best == nil || t.before(e, d, best, due) {
			best, due = e, d
		}
	}
	return best, due
}

func (t *Table) before(a *entry, aDue time.Time, b *entry, bDue time.Time) bool {
	if a.known != b.known && t.serial%2 == 0 {
		return !a.known // and due, as long as it is not known
	}
	if !aDue.Equal(bDue) {
		return aDue.Before(bDue)
	}
	return a.name < b.name
}

// Next is a query that is to be sent now; ok is false if there is none. For
// each, Observe must be called once.
func (t *Table) Next(now time.Time) (q Question, ok bool) {
	t.refill(now)
	if t.tokens < 1 || t.asking >= t.limits.Asking || len(t.conf.Servers) == 0 {
		return Question{}, false
	}
	e, due := t.first()
	if e == nil || due.After(now) {
		return Question{}, false
	}
	if !e.searching && !e.pursued {
		f, _ := e.next(t.families())
		if f == 0 && e.home > 0 && now.Sub(e.searched) >= searchAgain {
			e.search(now)
		} else {
			e.pursue(f, due)
		}
	}
	if e.tried == 0 && !e.tcp {
		e.start = 0
		if t.conf.Rotate {
			e.start = t.rng.IntN(len(t.conf.Servers))
		}
	}
	t.tokens--
	t.asking++
	t.serial++
	e.asking = t.serial
	t.stats.Queries++
	if e.tried > 0 || e.tcp {
		t.stats.Retries++
	}
	servers := len(t.conf.Servers)
	at := e.home
	if e.searching {
		at = e.at
	}
	return Question{
		Name: e.name, Host: e.candidates[at].host, IPv6: e.family == 1,
		Server: t.conf.Servers[(e.start+e.tried)%servers], TCP: e.tcp || t.conf.UseTCP,
		Timeout: t.conf.timeout(e.tried % servers), serial: t.serial,
	}, true
}

// Wake is when Next will have a query, if nothing else happens. The zero value: not
// before an answer, new names or a new resolv.conf.
func (t *Table) Wake(now time.Time) time.Time {
	t.refill(now)
	e, due := t.first()
	if e == nil || t.asking >= t.limits.Asking || len(t.conf.Servers) == 0 {
		return time.Time{}
	}
	if t.tokens < 1 {
		if paid := now.Add(time.Duration((1 - t.tokens) / t.limits.Rate * float64(time.Second))).Add(1); paid.After(due) {
			return paid
		}
	}
	return due
}

// Snapshot is what is known of all names, in their order.
func (t *Table) Snapshot() []State {
	list := make([]State, 0, len(t.entries))
	for _, e := range t.entries {
		s, _ := e.state()
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b State) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Observe takes in what came of a Question. ok is true if that changed anything.
func (t *Table) Observe(now time.Time, a Answer) (c Change, ok bool) {
	t.asking--
	t.stats.Ignored += uint64(a.Ignored)
	if a.Outcome >= ServFail && a.Outcome != Truncated {
		t.stats.Failures++
	}
	e := t.entries[a.Question.Name]
	if e == nil || e.asking == 0 || e.asking != a.Question.serial {
		return Change{}, false // forgotten, or begun again with another resolv.conf
	}
	e.asking = 0
	if a.Outcome == Truncated && !a.Question.TCP {
		e.tcp, e.due = true, now
		return Change{}, false
	}
	if a.Outcome == Truncated {
		a.Outcome, a.Err = Failed, errors.New("an answer over TCP is truncated")
	}
	if a.Outcome >= ServFail {
		e.tcp = false
		if e.tried++; e.tried < t.conf.Attempts*len(t.conf.Servers) {
			e.due = now
			return Change{}, false
		}
	}
	f := e.family
	e.pursued = false
	if e.searching {
		t.searched(now, e, f, a)
	} else {
		t.asked(now, e, f, a)
	}
	return e.change()
}
