package clusterview

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// The load on what is watched. A daemon does not know how many others there are. It knows how
// many of the connections that a server has are of its own node, and takes that share of what
// all daemons together may do: the shares of all nodes add up to one at most. A node with 3
// of 300 connections makes a hundredth of the polls.
const (
	// quietRate and hastyRate are how often all daemons together ask one server, times a second. A
	// poll costs a server some 0.1 ms with its connect (INFO alone 35 us, by redis-benchmark on
	// 7.0): 1 % of its time, and at most 20 % in the minute in which it is not clear who is the
	// primary. With 2,000, a node with one of 1,000 connections looks twice a second then.
	quietRate, hastyRate = 100, 2000
	// connectionShare is how many connections all daemons together hold to a server on average,
	// of those that it has.
	connectionShare = 0.1
	// maxInFlight is how many connections a target has at a time.
	maxInFlight = 2
	// defaultInterval is how often each server is asked while all is quiet and the fleet is small.
	defaultInterval = 10 * time.Second
	// fastest is the shortest time between two polls of a server: half of what is promised as the
	// median from a promotion to its event.
	fastest = 100 * time.Millisecond
	// slowest is the longest one: a safety net that is wider than that is none.
	slowest = 2 * time.Minute
	// hastyFor is how long a hint makes us look more often; unclear how long what is unclear may.
	hastyFor, unclearFor = 10 * time.Second, time.Minute
	// awakeFor is how long a query keeps a target awake that has no local connection, and
	// sleepFor how long it sleeps at least before the next query may wake it.
	awakeFor, sleepFor = time.Minute, 5 * time.Second
	// startSpread is over how long the first polls are spread after a start or a new config: a
	// fleet is restarted at once.
	startSpread = 30 * time.Second
	// lostAfter is when a poll that was never reported on is taken for failed.
	lostAfter = 10 * time.Second
	// unknownClients stands for the number of a server's connections until it is known.
	unknownClients = 1000
)

// turn is when one server is to be asked.
type turn struct {
	addr    netip.AddrPort
	due     time.Duration
	why     string
	asked   time.Duration // the last time it was, 0 is never
	pending bool
	took    time.Duration // how long its connection was held the last time
	failed  int           // in a row
	clients int           // its connected_clients, 0 is unknown
	pace
}

// pace is how a server is asked among others of its target.
type pace struct {
	calm  float64 // how many intervals to wait while all is quiet; less than 1 is 1
	hot   bool    // what it says helps to clear what is unclear
	haste float64 // how many of the shortest times to wait then; less than 1 is 1
}

// schedule says who is asked when. It starts nothing and knows no clock.
type schedule struct {
	random   *rand.Rand
	interval time.Duration
	fleet    int // daemons, by the config; 0 is unknown
	turns    []*turn
	by       map[netip.AddrPort]*turn
	inFlight int
	clients  int           // of all servers that have told
	local    int           // connections of this node to the target
	awake    time.Duration // until then without local connections
	slept    time.Duration // since when it sleeps
	hasty    time.Duration // look more often until then
	unclear  time.Duration // since when who is the primary is not clear; 0 is clear
}

func newSchedule(random *rand.Rand, interval time.Duration, fleet int) *schedule {
	if interval <= 0 {
		interval = defaultInterval
	}
	return &schedule{random: random, interval: interval, fleet: fleet, by: map[netip.AddrPort]*turn{}}
}

// wanted says whether there is a reason to ask at all.
func (s *schedule) wanted(now time.Duration) bool { return s.local > 0 || now < s.awake }

// setLocal tells how many connections this node has to the target.
func (s *schedule) setLocal(now time.Duration, n int) {
	was := s.wanted(now)
	if s.local = max(n, 0); !was && s.wanted(now) {
		// A fleet has its connections at once after a start; later they come one by one, and what
		// leads where is known from the next answer on.
		within := startSpread
		if !s.allNew() {
			within = max(s.interval, s.period(s.share(), quietRate))
		}
		s.spread(now, within, "the target has a local connection")
	} else if was && !s.wanted(now) {
		s.slept = now
	}
}

// wake keeps the target awake since somebody asks about it.
func (s *schedule) wake(now time.Duration) {
	if s.wanted(now) {
		if s.awake > 0 || s.local == 0 {
			s.awake = now + awakeFor
		}
		return
	}
	if s.slept = max(s.slept, s.awake); s.slept > 0 && now < s.slept+sleepFor {
		return
	}
	s.awake = now + awakeFor
	s.spread(now, s.period(s.share(), hastyRate), "somebody asks")
}

// spread makes all servers due within a time, those that are due sooner left as they are.
func (s *schedule) spread(now, within time.Duration, why string) {
	for _, t := range s.turns {
		if due := now + s.part(within); t.due > due || t.due <= now {
			t.due, t.why = due, why
		}
	}
}

// part is a random part of d.
func (s *schedule) part(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(s.random.Int64N(int64(d)))
}

// set says which servers there are, and how each is asked.
func (s *schedule) set(now time.Duration, addrs []netip.AddrPort, paceOf func(netip.AddrPort) pace) {
	wanted := make(map[netip.AddrPort]bool, len(addrs))
	for _, a := range addrs {
		wanted[a] = true
	}
	keep := s.turns[:0]
	for _, t := range s.turns {
		if wanted[t.addr] {
			keep = append(keep, t)
			continue
		}
		if t.pending {
			s.inFlight--
		}
		s.clients -= t.clients
		delete(s.by, t.addr)
	}
	clear(s.turns[len(keep):])
	s.turns = keep
	for _, a := range addrs {
		t := s.by[a]
		if t == nil {
			within := s.hurry(nil)
			if len(s.by) == 0 || s.allNew() {
				within = startSpread
			}
			if now < s.awake || now < s.hasty {
				within = s.period(s.share(), hastyRate)
			}
			t = &turn{addr: a, due: now + s.part(within), why: "it is new"}
			s.by[a], s.turns = t, append(s.turns, t)
		}
		t.pace = paceOf(a)
		t.calm, t.haste = max(1, t.calm), max(1, t.haste)
	}
}

// allNew says whether nobody was asked yet.
func (s *schedule) allNew() bool {
	return !slices.ContainsFunc(s.turns, func(t *turn) bool { return t.asked != 0 })
}

// share is this daemon's part of what all may do to a server, by the connections of this node
// and of the servers.
func (s *schedule) share() float64 {
	if s.fleet > 0 {
		return 1 / float64(s.fleet)
	}
	// Local connections are those to the whole target, so all its servers are counted.
	if s.clients == 0 {
		return 1.0 / unknownClients
	}
	return min(1, float64(max(s.local, 1))/float64(s.clients))
}

// setClients notes how many connections a server says that it has.
func (s *schedule) setClients(addr netip.AddrPort, n int) {
	if t := s.by[addr]; t != nil {
		s.clients += n - t.clients
		t.clients = n
	}
}

// period is the time between two polls of a server, at a rate of all daemons together.
func (s *schedule) period(share float64, rate float64) time.Duration {
	return min(time.Duration(float64(time.Second)/(rate*share)), slowest)
}

// hurry is the time between two polls in haste. It is bounded by the rate, and by how long a
// connection is held: on average all daemons together hold connectionShare.
func (s *schedule) hurry(t *turn) time.Duration {
	d := max(fastest, s.period(s.share(), hastyRate))
	if t != nil {
		d = max(time.Duration(float64(d)*t.haste), s.held(t))
	}
	return min(d, max(slowest, s.interval))
}

// held is how long a server is left alone since our connection to it was held for so long.
func (s *schedule) held(t *turn) time.Duration {
	local := float64(max(s.local, 1))
	if s.fleet > 0 && t.clients > 0 {
		local = max(local, float64(t.clients)/float64(s.fleet))
	}
	return time.Duration(float64(t.took) / (connectionShare * local))
}

// inHaste says whether there is a reason to look more often.
func (s *schedule) inHaste(now time.Duration) bool {
	return now < s.hasty || s.unclear > 0 && now-s.unclear < unclearFor
}

// hint makes all due that can clear it up, and the one at about if there is one, as soon as
// the budget lets them; why is told with the Want.
func (s *schedule) hint(now time.Duration, about netip.AddrPort, why string) {
	s.hasty = max(s.hasty, now+hastyFor)
	for _, t := range s.turns {
		if t.hot || t.addr == about {
			s.hasten(now, t, why)
		}
	}
}

// hasten makes one server due.
func (s *schedule) hasten(now time.Duration, t *turn, why string) {
	// All daemons have the hint at once: they part as far as the rate needs it.
	d := s.hurry(t)
	due := now + s.part(s.period(s.share(), hastyRate))
	if t.asked > 0 {
		due = max(due, t.asked+d)
	}
	if due < t.due {
		t.due, t.why = due, why
	}
}

// done tells that a poll has ended.
func (s *schedule) done(now time.Duration, addr netip.AddrPort, answered bool) {
	t := s.by[addr]
	if t == nil {
		return
	}
	if t.pending {
		t.pending = false
		s.inFlight--
	}
	t.took = max(0, now-t.asked)
	if t.failed++; answered {
		t.failed = 0
	}
	s.plan(now, t)
}

// plan says when a server is asked the next time.
func (s *schedule) plan(now time.Duration, t *turn) {
	quiet := max(s.interval, s.period(s.share(), quietRate), s.held(t))
	quiet = min(time.Duration(float64(quiet)*t.calm), max(slowest, s.interval))
	d, why := quiet, "interval"
	if t.hot && s.inHaste(now) {
		// One that does not answer is asked less and less often, but for a while still.
		if hurry := s.hurry(t) << min(t.failed, 5); hurry < quiet {
			d, why = hurry, "not clear yet"
		}
	}
	if why == "interval" && t.why != why {
		// The first after a start or a hint, which all daemons had at the same time: they part.
		t.due, t.why = now+d/10+s.part(d), why
		return
	}
	t.due, t.why = now+d-d/10+s.part(d/5), why
}

// ready takes out who is to be asked now: those that are due for the longest time first, as
// many as there may be connections.
func (s *schedule) ready(now time.Duration) (out []*turn) {
	for _, t := range s.turns {
		if t.pending && now-t.asked > lostAfter {
			s.done(now, t.addr, false)
		}
	}
	if !s.wanted(now) {
		return nil
	}
	waiting := s.waitsForSilent()
	for s.inFlight < maxInFlight {
		var best *turn
		for _, t := range s.turns {
			if !t.pending && t.due <= now && (best == nil || t.due < best.due) && !(waiting && t.failed > 0) {
				best = t
			}
		}
		if best == nil {
			break
		}
		best.pending, best.asked = true, max(now, 1)
		waiting = waiting || best.failed > 0
		s.inFlight++
		out = append(out, best)
	}
	return out
}

// waitsForSilent says that a connection is held by a server that has not answered before. It is
// waited for to the end of its time: never by all connections, or those that answer would wait for
// it, too.
func (s *schedule) waitsForSilent() bool {
	return slices.ContainsFunc(s.turns, func(t *turn) bool { return t.pending && t.failed > 0 })
}

// next is when ready has something again by itself; false if never.
func (s *schedule) next(now time.Duration) (at time.Duration, ok bool) {
	waiting := s.waitsForSilent()
	for _, t := range s.turns {
		switch {
		case t.pending:
			at, ok = earlier(at, t.asked+lostAfter+1, ok)
		case waiting && t.failed > 0:
		case s.wanted(now) && s.inFlight < maxInFlight:
			at, ok = earlier(at, t.due, ok)
		}
	}
	return max(at, now), ok
}

func earlier(a, b time.Duration, ok bool) (time.Duration, bool) {
	if !ok || b < a {
		return b, true
	}
	return a, true
}
