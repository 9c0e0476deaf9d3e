package resolver

import "time"

// asked takes in what was answered at home: for the candidate that had addresses.
func (t *Table) asked(now time.Time, e *entry, f int, a Answer) {
	fam, other := &e.families[f], &e.families[1-f]
	switch a.Outcome {
	case Addresses:
		fam.answered(now, true)
		t.merge(e, f, a)
		fam.due = t.later(now, a.TTL)
	case NXDomain, NoData:
		if !other.has {
			// No family has addresses: another candidate may have some by now.
			fam.has = false
			if len(e.candidates) > 1 {
				e.search(now)
			} else {
				t.nowhere(now, e, a)
			}
			return
		}
		fam.answered(now, false)
		t.merge(e, f, a)
		fam.due = t.later(now, t.limits.MaxTTL)
		if fam.size > 0 {
			fam.due = t.later(now, 0) // to be sure soon that they are gone
		}
	default:
		fam.fail(a.Outcome, a.Err)
		fam.due = t.again(now, fam.failures)
	}
}

func (t *Table) merge(e *entry, f int, a Answer) {
	e.families[f].merge(a.Addrs, t.limits.Addresses-e.families[1-f].size)
	t.stats.AddressesLeftOut += uint64(e.families[f].leftOut)
}

// searched takes in what was answered in a search, and goes on with it, as
// glibc's res_nsearch.
func (t *Table) searched(now time.Time, e *entry, f int, a Answer) {
	if a.Outcome == Addresses {
		moved := e.home != e.at
		e.home, e.searching, e.known, e.searched = e.at, false, true, now
		if moved {
			e.families[0].has, e.families[1].has = false, false
			e.families[1].due = now
		}
		t.asked(now, e, f, a)
		if f == 1 {
			t.asked(now, e, 0, e.first)
		}
		return
	}
	if a.Outcome > e.worst.Outcome {
		e.worst = a
	}
	if f == 0 && t.families() == 2 && a.Outcome != Failed {
		e.first = a
		e.pursue(1, now)
		return
	}
	// SERVFAIL may concern this candidate only. Where nobody answers glibc leaves out the
	// rest of the search list, but not the name as it is. A CNAME, wherever it leads, is
	// what it has searched for.
	skip := a.Outcome == Failed && e.candidates[e.at].listed
	if a.Alias || e.first.Alias {
		e.at = len(e.candidates)
	}
	for e.at++; e.at < len(e.candidates); e.at++ {
		if !skip || !e.candidates[e.at].listed {
			e.first = Answer{}
			e.pursue(0, now)
			return
		}
	}
	e.known, e.searched = true, now
	if e.worst.Outcome < ServFail || e.home < 0 {
		t.nowhere(now, e, e.worst)
		return
	}
	// Where the addresses came from may answer still.
	e.searching = false
	for i := range e.families {
		e.families[i].fail(e.worst.Outcome, e.worst.Err)
		e.families[i].due = t.again(now, e.families[i].failures)
	}
}

// nowhere notes that no candidate has addresses, or that this could not be found out: the
// next question is a search.
func (t *Table) nowhere(now time.Time, e *entry, a Answer) {
	for i := range e.families {
		e.families[i].has = false
		e.families[i].fail(a.Outcome, a.Err)
	}
	e.home = -1
	e.search(t.again(now, e.families[0].failures))
}

// later is when to ask again after an answer.
func (t *Table) later(now time.Time, ttl time.Duration) time.Time {
	return t.jitter(now, min(max(ttl, t.limits.MinTTL), t.limits.MaxTTL))
}

// again is when to ask again after so many failures in a row.
func (t *Table) again(now time.Time, failures int) time.Time {
	return t.jitter(now, min(t.limits.MinTTL<<min(failures-1, 10), t.limits.MaxTTL))
}

// jitter makes a wait longer by up to a quarter, never shorter: a copy in a caching
// server has run out by then.
func (t *Table) jitter(now time.Time, wait time.Duration) time.Time {
	return now.Add(wait + time.Duration(t.rng.Float64()*float64(wait)/4))
}
