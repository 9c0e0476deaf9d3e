package event

import (
	"net/netip"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// Finding is a judged fact that lasts. Nobody changes one: when it ends, another
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

// Codes are the codes of findings.
func Codes() []verdict.EventType {
	return []verdict.EventType{
		verdict.EndpointSuspect, verdict.EndpointDown, verdict.ConnectionStalled, verdict.ConnectionJudged, ReapFailed,
		verdict.ClientNotBack, verdict.GuardDoubt, verdict.GuardBreaker, ConfigRefused,
		NamespaceDrift, TuneFailed, ArmFailed,
	}
}

const (
	// maxOpen bounds the open findings. A broken network with more stalled
	// connections is described well enough by these. Each kind has its share, see
	// kind.most.
	maxOpen = 4096
	// keepEnded is how many findings are remembered after their end.
	keepEnded = 512
	// What nothing ends is a finding for so long: a client that does not come
	// back may have ended, and a breaker that held something back does not say
	// when there is nothing to hold back any more.
	notBackFor = 10 * time.Minute
	breakerFor = 2 * time.Minute
)

// State is what follows from the events up to now: the mode and the findings. It
// is a pure fold: the same events give the same state.
type State struct {
	mode   *Mode
	open   []*Finding // in no order, so that a copy is one move of memory
	shape  uint64     // counts changes of open
	kinds  [kinds]int // of open
	at     map[subject]int
	ended  []*Finding // a ring
	next   int        // of ended
	expiry time.Time  // the next one, zero if there is none
	unkept uint64
}

// subject is what a finding is about: there is one open finding about each at a
// time.
type subject struct {
	kind     kind
	ns       verdict.NS
	endpoint netip.AddrPort
	number   uint64 // a cookie, or that of an event
}

type kind uint8

const (
	ofPath kind = iota
	ofConnection
	ofNamespace
	ofBreaker
	ofConfig
	ofClient
	ofDrift
	ofTune
	ofArm
	kinds
)

// most is how many open findings of a kind there may be: whoever makes thousands of
// connections stall must not hide what is wrong elsewhere.
func (k kind) most() int {
	switch k {
	case ofConnection:
		return maxOpen / 2
	case ofPath:
		return maxOpen / 4
	case ofBreaker, ofConfig, ofArm:
		return 1 // they are about the node
	default:
		return maxOpen / 16
	}
}

func newState() State { return State{at: map[subject]int{}} }

// Apply takes in the next event.
func (s *State) Apply(r *Record) {
	e := &r.Event
	s.Expire(e.Time)
	path := subject{kind: ofPath, ns: e.NS, endpoint: e.Endpoint}
	conn := subject{kind: ofConnection, ns: e.NS, number: e.Cookie}
	space := subject{kind: ofNamespace, ns: e.NS}
	switch e.Type {
	case verdict.EndpointSuspect:
		s.start(path, e, time.Time{})
	case verdict.EndpointDown:
		if f := s.about(path); f == nil || f.Code != e.Type {
			s.end(path, e, "it is down")
			s.start(path, e, time.Time{})
		}
	case verdict.EndpointUp:
		s.end(path, e, e.Text)
	case verdict.ConnectionStalled:
		s.start(conn, e, time.Time{})
	case verdict.ConnectionJudged:
		s.end(conn, e, "it is half-dead")
		s.start(conn, e, time.Time{})
	case verdict.ConnectionHeard, verdict.ConnectionGone:
		s.end(conn, e, e.Text)
	case verdict.ConnectionReaped:
		switch verdict.ReapOutcome(e.Outcome) {
		case verdict.ReapDone, verdict.ReapGone:
			s.end(conn, e, "it was reaped")
		case verdict.ReapFailed:
			s.end(conn, e, "a reap has failed")
			s.start(conn, e, time.Time{})
		}
	case verdict.ClientNotBack:
		s.start(subject{kind: ofClient, number: e.Seq}, e, e.Time.Add(notBackFor))
	case verdict.GuardDoubt:
		s.start(space, e, time.Time{})
	case verdict.GuardDoubtOver:
		s.end(space, e, "the doubt is over")
	case verdict.GuardBreaker:
		breaker := subject{kind: ofBreaker}
		s.end(breaker, e, "it held back again")
		s.start(breaker, e, e.Time.Add(breakerFor))
	case ConfigRefused:
		s.end(subject{kind: ofConfig}, e, "another one was refused")
		s.start(subject{kind: ofConfig}, e, time.Time{})
	case ConfigChanged:
		s.end(subject{kind: ofConfig}, e, "a good config is in force")
	case NamespaceDrift:
		s.start(subject{kind: ofDrift, ns: e.NS}, e, time.Time{})
	case NamespaceDriftOver:
		s.end(subject{kind: ofDrift, ns: e.NS}, e, e.Text)
	case TuneFailed:
		s.end(subject{kind: ofTune, ns: e.NS}, e, "something else has failed")
		s.start(subject{kind: ofTune, ns: e.NS}, e, time.Time{})
	case TuneResumed:
		s.end(subject{kind: ofTune, ns: e.NS}, e, e.Text)
	case ArmFailed:
		s.start(subject{kind: ofArm}, e, time.Time{})
	case ArmResumed:
		s.end(subject{kind: ofArm}, e, e.Text)
	case ModeChanged:
		s.mode = e.Mode
		if e.Mode != nil && e.Mode.Effective == "off" {
			for i := len(s.open) - 1; i >= 0; i-- {
				if key := subjectOf(s.open[i]); key.kind != ofConfig {
					s.end(key, e, "redisguard was switched off")
				}
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
func (s *State) start(key subject, e *Event, until time.Time) {
	if _, ok := s.at[key]; ok {
		return
	}
	if len(s.open) >= maxOpen || s.kinds[key.kind] >= key.kind.most() {
		s.unkept++
		return
	}
	f := &Finding{Opened: e, Code: e.Type, Until: until}
	if e.Type == verdict.ConnectionReaped {
		f.Code = ReapFailed
	}
	s.at[key] = len(s.open)
	s.open = append(s.open, f)
	s.kinds[key.kind]++
	s.shape++
	if !until.IsZero() && (s.expiry.IsZero() || until.Before(s.expiry)) {
		s.expiry = until
	}
}

// end ends the finding about a subject, if there is one.
func (s *State) end(key subject, e *Event, why string) {
	s.close(key, e.Time, e.Seq, why)
}

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
		s.at[subjectOf(moved)] = i
	}
	s.open[last] = nil
	s.open = s.open[:last]
	delete(s.at, key)
	s.kinds[key.kind]--
	s.shape++
	done := &Finding{Opened: f.Opened, Code: f.Code, Until: f.Until, Ended: at, EndedBy: why, EndedSeq: seq}
	if len(s.ended) < keepEnded {
		s.ended = append(s.ended, done)
	} else {
		s.ended[s.next] = done
		s.next = (s.next + 1) % keepEnded
	}
}

// subjectOf is what an open finding is about.
func subjectOf(f *Finding) subject {
	e := f.Opened
	switch f.Code {
	case verdict.EndpointSuspect, verdict.EndpointDown:
		return subject{kind: ofPath, ns: e.NS, endpoint: e.Endpoint}
	case verdict.GuardDoubt:
		return subject{kind: ofNamespace, ns: e.NS}
	case verdict.GuardBreaker:
		return subject{kind: ofBreaker}
	case ConfigRefused:
		return subject{kind: ofConfig}
	case verdict.ClientNotBack:
		return subject{kind: ofClient, number: e.Seq}
	case NamespaceDrift:
		return subject{kind: ofDrift, ns: e.NS}
	case TuneFailed:
		return subject{kind: ofTune, ns: e.NS}
	case ArmFailed:
		return subject{kind: ofArm}
	default:
		return subject{kind: ofConnection, ns: e.NS, number: e.Cookie}
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
		s.close(subjectOf(f), f.Until, 0, "nothing more was seen of it")
	}
}

// endedList is a copy of the ended ones, oldest first.
func (s *State) endedList() []*Finding {
	list := make([]*Finding, 0, len(s.ended))
	return append(append(list, s.ended[s.next:]...), s.ended[:s.next]...)
}
