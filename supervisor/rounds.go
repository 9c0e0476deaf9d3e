package supervisor

import (
	"math/rand/v2"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

const (
	// allWithin is within how long each connection is looked at, and allWithinTold where the
	// kernel tells of retransmissions, so that the look is left for what makes none:
	// replies, keepalive, ends; and for what it does not tell, see tcpstate.Retransmits.
	allWithin     = time.Second
	allWithinTold = 3 * time.Second
	// perTick is how many connections are looked at at every tick in quiet times, all of
	// them if there are no more. 500 looks are some 0.8 ms.
	perTick = 500
	// suspectsPerTick bounds the looks at suspect paths per tick, where there are more
	// connections than perTick; suspectsPerPath those at one path. The paths take turns.
	suspectsPerTick = 100
	suspectsPerPath = 4
	// suspectsPerTickTold is as much where the kernel tells of retransmissions: then those
	// that go on being silent are looked at for it.
	suspectsPerTickTold = 20
	// representatives are how many connections of each endpoint show its silence first.
	representatives = 4
)

// rounds decides which connections are looked at in each round. It is pure: the table,
// the time and what is suspect come in, with a source of chance.
type rounds struct {
	chance *rand.Rand
	n      uint64     // of the round
	reps   []*tracked // representatives, those that received most
	repsAt time.Duration
	turn   []*space // with connections to be looked at, in each space's turn
}

// situation is what a round depends on beside the table.
type situation struct {
	now      time.Duration
	suspects []verdict.PathKey
	// told says that the kernel tells of retransmissions, and retransmitted are those that
	// it told of.
	told          bool
	retransmitted []*tracked
	fresh         []*tracked // not looked at yet
	asked         []*tracked // asked a moment ago, and not known to have answered
}

// next returns the namespaces with connections to be looked at in this round, with
// their turns: all if they are few, else those that are new or that retransmit, some
// of each endpoint and of each suspect path, and all now and then.
func (r *rounds) next(t *table, s *situation) []*space {
	r.begin()
	for _, x := range s.retransmitted {
		r.enqueue(x)
	}
	for _, x := range s.fresh {
		r.enqueue(x)
	}
	for _, x := range s.asked {
		r.enqueue(x)
	}
	every, most := allWithin, suspectsPerTick
	if s.told {
		every, most = allWithinTold, suspectsPerTickTold
	}
	all := len(t.conns) <= perTick
	if !all {
		chosen := s.now-r.repsAt >= allWithin
		if chosen {
			r.represent(t)
			r.repsAt = s.now
		}
		// Where a silence tells of itself they need not be looked at to see one.
		if chosen || !s.told || len(s.suspects) > 0 {
			for _, x := range r.reps {
				r.enqueue(x)
			}
		}
		r.enqueueSuspects(t, s.suspects, most)
	}
	for _, sp := range t.spaces {
		pause := every
		if sp.suspect == r.n {
			pause = allWithin
		}
		if all || s.now-sp.looked >= pause {
			// Chance keeps the namespaces from falling into step with each other.
			sp.looked = s.now - time.Duration(r.chance.Int64N(int64(pause/8)))
			for _, x := range sp.conns {
				r.enqueue(x)
			}
		}
	}
	return r.turn
}

// paths returns the namespaces with the turns of all connections of these paths.
func (r *rounds) paths(t *table, paths []verdict.PathKey) []*space {
	r.begin()
	for _, p := range paths {
		if sp := t.byKey[p.NS]; sp != nil {
			for _, x := range sp.conns {
				if x.on(&p) {
					r.enqueue(x)
				}
			}
		}
	}
	return r.turn
}

// begin begins a round.
func (r *rounds) begin() {
	r.n++
	for _, sp := range r.turn {
		sp.turn = sp.turn[:0]
	}
	r.turn = r.turn[:0]
}

// enqueue has a connection looked at in this round.
func (r *rounds) enqueue(x *tracked) {
	if x.round == r.n || x.forgotten || x.block != nil || x.space.closed {
		return
	}
	x.round = r.n
	sp := x.space
	if len(sp.turn) == 0 {
		r.turn = append(r.turn, sp)
	}
	sp.turn = append(sp.turn, x)
}

// represent picks a few connections of each endpoint, those that received most, since
// those show a silence first.
func (r *rounds) represent(t *table) {
	best := map[verdict.PathKey][representatives]*tracked{} // of no namespace
	for _, x := range t.conns {
		key := verdict.PathKey{Endpoint: x.conn.Remote, Interface: x.conn.Interface}
		b := best[key]
		for i := range b {
			if b[i] == nil || x.conn.Info.BytesReceived > b[i].conn.Info.BytesReceived {
				copy(b[i+1:], b[i:])
				b[i] = x
				best[key] = b
				break
			}
		}
	}
	r.reps = r.reps[:0]
	for _, b := range best {
		for _, x := range b {
			if x != nil {
				r.reps = append(r.reps, x)
			}
		}
	}
}

// enqueueSuspects enqueues at most about so many connections of suspect paths, which take
// turns, and marks their namespaces.
func (r *rounds) enqueueSuspects(t *table, suspects []verdict.PathKey, most int) {
	for _, p := range suspects {
		if sp := t.byKey[p.NS]; sp != nil {
			sp.suspect = r.n
		}
	}
	left := most
	for i := range suspects {
		p := suspects[(int(r.n)*most/suspectsPerPath+i)%len(suspects)]
		sp := t.byKey[p.NS]
		if sp == nil {
			continue
		}
		n := 0
		for _, silent := range []bool{true, false} { // those first that wait for something
			for _, x := range sp.conns {
				if n < suspectsPerPath && x.on(&p) && silent == (x.conn.Info.Unacked > 0) {
					r.enqueue(x)
					n++
				}
			}
		}
		if left -= n; left <= 0 {
			return
		}
	}
}
