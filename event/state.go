package event

import (
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// Finding is a judged fact that lasts. It is immutable: when it ends, another
// takes its place.
type Finding struct {
	// Opened is the event that opened it; its number names the finding.
	Opened *Event
	// Code is Opened's type, except for a reap that failed.
	Code verdict.EventType
	// Until is when it ends by itself, zero if only an event ends it.
	Until time.Time
	// Ended is when it ended, zero while it is open; EndedBy says why, and
	// EndedSeq which event did, 0 if none.
	Ended    time.Time
	EndedBy  string
	EndedSeq uint64
	wire     wire
}

// Wire is the finding in a form, which encode makes when it is first asked for.
func (f *Finding) Wire(form Form, encode func(*Finding) []byte) []byte {
	return f.wire.get(form, func() []byte { return encode(f) })
}

// ReapFailed is the code of a finding about a reap that failed. There is no event
// of this type: it is opened by a ConnectionReaped.
const ReapFailed verdict.EventType = "reap.failed"

const (
	// maxOpen bounds the open findings. A broken network with more stalled
	// connections is described well enough by these. Each topic has its share, see
	// Topic.most.
	maxOpen = 4096
	// maxTargets bounds those about targets, of which a config names a few.
	maxTargets = 256 // as many as a config may have
	// keepEnded is how many findings are remembered after their end.
	keepEnded = 512
)

// State is what follows from the events up to now: the mode and the findings. It
// is a pure fold: the same events give the same state.
type State struct {
	mode   *Mode
	open   []*Finding          // in no order, so that a copy is one move of memory
	shape  uint64              // counts changes of open
	topics [numberOfTopics]int // of open
	at     map[subject]int
	ended  []*Finding // a ring
	next   int        // of ended
	expiry time.Time  // the next one, zero if there is none
	unkept uint64
}

// subject is what a finding is about: there is one open finding about each at a time.
type subject struct {
	topic  Topic
	path   verdict.PathKey // of a namespace, that alone
	number uint64          // a cookie, or that of an event
	name   string          // of a target
}

// subjectOf is what an event's finding is about.
func subjectOf(e *Event) subject {
	switch t := Of(e.Type).Topic; t {
	case AboutPath:
		return subject{topic: t, path: e.Path()}
	case AboutConn:
		return subject{topic: t, path: verdict.PathKey{NS: e.NS}, number: e.Cookie}
	case AboutClient:
		return subject{topic: t, number: e.Seq}
	case AboutDoubt, AboutDrift, AboutTune:
		return subject{topic: t, path: verdict.PathKey{NS: e.NS}}
	case AboutTarget, AboutSplit, AboutProblem:
		return subject{topic: t, name: e.Target}
	default:
		return subject{topic: t} // there is one of it on a node
	}
}

func newState() State { return State{at: map[subject]int{}} }

// Apply takes in the next event.
func (s *State) Apply(r *Record) {
	e := &r.Event
	s.Expire(e.Time)
	effect, key := Of(e.Type).effect(e), subjectOf(e)
	if f := s.about(key); f != nil && effect.Ends && !(effect.Keeps && f.Code == effect.Code) {
		why := effect.Why
		if why == "" {
			why = e.Text
		}
		s.close(key, e.Time, e.Seq, why)
	}
	if effect.Code != "" {
		until := time.Time{}
		if effect.Lasts > 0 {
			until = e.Time.Add(effect.Lasts)
		}
		s.start(key, e, effect.Code, until)
	}
	if e.Type != ModeChanged {
		return
	}
	s.mode = e.Mode
	if e.Mode != nil && e.Mode.Effective == "off" {
		// It is not followed up any more.
		for i := len(s.open) - 1; i >= 0; i-- {
			if key := subjectOf(s.open[i].Opened); key.topic != AboutConfig {
				s.close(key, e.Time, e.Seq, "redisguard was switched off")
			}
		}
	}
}

// about is the open finding about a subject, nil if there is none.
func (s *State) about(key subject) *Finding {
	if i, ok := s.at[key]; ok {
		return s.open[i]
	}
	return nil
}

// start opens a finding, unless there is one about the same.
func (s *State) start(key subject, e *Event, code verdict.EventType, until time.Time) {
	if _, ok := s.at[key]; ok {
		return
	}
	if s.topics[key.topic] >= key.topic.most() {
		s.unkept++
		return
	}
	f := &Finding{Opened: e, Code: code, Until: until}
	s.at[key] = len(s.open)
	s.open = append(s.open, f)
	s.topics[key.topic]++
	s.shape++
	if !until.IsZero() && (s.expiry.IsZero() || until.Before(s.expiry)) {
		s.expiry = until
	}
}

// close ends the finding about a subject, if there is one.
func (s *State) close(key subject, at time.Time, seq uint64, why string) {
	i, ok := s.at[key]
	if !ok {
		return
	}
	f := s.open[i]
	last := len(s.open) - 1
	if i != last {
		moved := s.open[last]
		s.open[i] = moved
		s.at[subjectOf(moved.Opened)] = i
	}
	s.open[last] = nil
	s.open = s.open[:last]
	delete(s.at, key)
	s.topics[key.topic]--
	s.shape++
	done := &Finding{Opened: f.Opened, Code: f.Code, Until: f.Until, Ended: at, EndedBy: why, EndedSeq: seq}
	if len(s.ended) < keepEnded {
		s.ended = append(s.ended, done)
	} else {
		s.ended[s.next] = done
		s.next = (s.next + 1) % keepEnded
	}
}

// Expire ends the findings whose time is over.
func (s *State) Expire(now time.Time) {
	if s.expiry.IsZero() || now.Before(s.expiry) {
		return
	}
	s.expiry = time.Time{}
	var over []*Finding
	for _, f := range s.open {
		switch {
		case f.Until.IsZero():
		case !now.Before(f.Until):
			over = append(over, f)
		case s.expiry.IsZero() || f.Until.Before(s.expiry):
			s.expiry = f.Until
		}
	}
	for _, f := range over {
		s.close(subjectOf(f.Opened), f.Until, 0, "nothing more was seen of it")
	}
}

// endedList is a copy of the ended ones, oldest first.
func (s *State) endedList() []*Finding {
	list := make([]*Finding, 0, len(s.ended))
	return append(append(list, s.ended[s.next:]...), s.ended[:s.next]...)
}
