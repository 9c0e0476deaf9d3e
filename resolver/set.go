package resolver

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// leastMisses is how many answers in a row must be without an address before it is
	// withdrawn. Three, since a server that is restarted or loaded anew may give one
	// answer with a part, and its copy in a second server another one.
	leastMisses = 3
	// mostMisses bounds what is learned from addresses that come back: 32 answers are
	// five minutes at the shortest TTL. Without a bound, a server that shows an address now
	// and then could keep it in the set for hours after its end.
	mostMisses = 32
)

// family is one address family of a name: its addresses, and how it last went.
type family struct {
	due       time.Time // of the next question, if the name is not searched for
	has       bool      // the last answer had addresses; a failure leaves it
	confirmed time.Time // of the last answer for this family, without failures
	failure   Outcome   // how the last question failed; 0 if it did not
	err       error     // the cause of the failure
	failures  int       // in a row

	seen    map[netip.Addr]sight
	size    int // how many of seen are in the set
	gap     int // the most misses after which an address came back
	steady  int // answers in a row in which none came back
	leftOut int // addresses of the last answer that were not taken
}

// sight is what is known of one address.
type sight struct {
	misses int  // answers in a row without it
	gone   bool // withdrawn; remembered to see whether it comes back
}

// need is how many misses withdraw an address.
func (f *family) need() int { return min(max(leastMisses, 2*f.gap+1), mostMisses) }

// addrs are the addresses of the set, in any order.
func (f *family) addrs() []netip.Addr {
	list := make([]netip.Addr, 0, f.size)
	for a, s := range f.seen {
		if !s.gone {
			list = append(list, a)
		}
	}
	return list
}

// merge takes in an answer: what was missing for long enough goes, what is new
// comes, as long as there are no more than room. Left out are those that are last in
// order, so that all nodes leave out the same.
func (f *family) merge(addrs []netip.Addr, room int) {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	f.steady++
	for _, a := range addrs {
		s, ok := f.seen[a]
		if !ok {
			continue
		}
		if s.misses > 0 {
			f.gap, f.steady = max(f.gap, s.misses), 0
		}
		s.misses = -1 // counted up below
		f.seen[a] = s
	}
	if f.steady >= mostMisses {
		f.gap = 0 // it was a change and its reversal, not a server that shows a part
	}
	remember := len(f.seen) <= 2*room // those that are gone
	for a, s := range f.seen {
		s.misses++
		if !s.gone && s.misses >= f.need() {
			s.gone = true
			f.size--
		}
		f.seen[a] = s
		if s.gone && (s.misses >= mostMisses || !remember) {
			delete(f.seen, a)
		}
	}
	f.leftOut = 0
	for _, a := range addrs {
		if s, ok := f.seen[a]; ok && !s.gone {
			continue
		}
		if f.size >= room {
			f.leftOut++
			continue
		}
		if f.seen == nil {
			f.seen = map[netip.Addr]sight{}
		}
		f.seen[a] = sight{}
		f.size++
	}
}

// fail notes that a question came to nothing.
func (f *family) fail(o Outcome, err error) {
	f.failure, f.err = o, err
	f.failures++
}

// answered notes that a question was answered for this family.
func (f *family) answered(now time.Time, has bool) {
	f.has, f.confirmed = has, now
	f.failure, f.err, f.failures = 0, nil, 0
}
