package event

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/redisguard/redisguard/verdict"
)

func TestHubKeepsOrderAndTheLast(t *testing.T) {
	h := NewHub(4)
	if got := h.Last(10); len(got) != 0 {
		t.Errorf("an empty hub has %v", got)
	}
	for range 10 {
		h.Publish(Event{Type: ModeChanged})
	}
	got := h.Last(10)
	if len(got) != 4 || got[0].Seq != 7 || got[3].Seq != 10 {
		t.Errorf("got %v, want 7 to 10", got)
	}
	if got := h.Last(2); len(got) != 2 || got[1].Seq != 10 {
		t.Errorf("got %v, want 9 and 10", got)
	}
	if got, err := h.Read(6, 3, nil); err != nil || len(got) != 3 || got[0].Seq != 7 {
		t.Errorf("got %v, %v, want 7 to 9", got, err)
	}
	if got, err := h.Read(10, 3, nil); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v after the last one, want nothing", got, err)
	}
	for _, after := range []uint64{0, 5, 11} {
		if _, err := h.Read(after, 3, nil); !errors.Is(err, ErrGone) {
			t.Errorf("reading after %d: %v, want ErrGone", after, err)
		}
	}
}

func TestASlowSubscriberIsTold(t *testing.T) {
	h := NewHub(4)
	slow, quick := h.Subscribe(), h.Subscribe()
	defer slow.Close()
	defer quick.Close()
	for range 10 {
		h.Publish(Event{})
		if _, err := quick.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
	h.Publish(Event{})
	if r, err := slow.Next(t.Context()); err != nil || r.Seq != 11 {
		t.Errorf("got %v, %v, want event 11", r, err)
	}
}

func TestNumbersHaveNoGaps(t *testing.T) {
	h := NewHub(1000)
	s := h.Subscribe()
	defer s.Close()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100 {
				h.Publish(Event{})
			}
		})
	}
	wg.Wait()
	for want := uint64(1); want <= 1000; want++ {
		if e, err := s.Next(t.Context()); err != nil || e.Seq != want {
			t.Fatalf("event %v (%v) came where %d was due", e, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func TestAnEventIsEncodedOnce(t *testing.T) {
	h := NewHub(1)
	h.Publish(Event{Text: "x"})
	r := h.Last(1)[0]
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := r.Wire(ForPod, func(e *Event) []byte { made.Add(1); return []byte(e.Text) }); string(got) != "x" {
				t.Errorf("got %q", got)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("encoded %d times", made.Load())
	}
}

// At 1,000 changes a second a hundred readers take a snapshot at random and go on
// from there: what they make of it is always the hub's own state, without a gap
// and without an event twice.
func TestSnapshotsAreExact(t *testing.T) {
	h := NewHub(1 << 14)
	const changes = 2000
	start := time.Unix(1000, 0)
	published := make(chan struct{})
	go func() {
		defer close(published)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		r := rand.New(rand.NewPCG(1, 2))
		for i := range changes {
			h.Publish(change(r, start.Add(time.Duration(i)*time.Millisecond)))
			<-tick.C
		}
	}()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			time.Sleep(rand.N(time.Second))
			snap := h.Snapshot(false)
			mine := newState()
			mine.mode = snap.Mode
			for _, f := range snap.Open {
				mine.at[subjectOf(f.Opened)] = len(mine.open)
				mine.open = append(mine.open, f)
			}
			for seq := snap.Seq; seq < changes; {
				list, err := h.Read(seq, 10, nil)
				if err != nil {
					t.Error(err)
					return
				}
				for _, r := range list {
					if seq++; r.Seq != seq {
						t.Errorf("event %d came where %d was due", r.Seq, seq)
						return
					}
					mine.Apply(r)
				}
				if len(list) == 0 {
					select {
					case <-published:
					case <-time.After(time.Millisecond):
					}
				}
			}
			<-published
			if diff := cmp.Diff(codes(h.state.open), codes(mine.open)); diff != "" {
				t.Errorf("a reader that joined at %d has another state:\n%s", snap.Seq, diff)
			}
		})
	}
	wg.Wait()
}

// Subscribers that join one after another share what they get.
func TestSnapshotsShare(t *testing.T) {
	h := NewHub(16)
	stalled := func(cookie uint64) Event {
		return Event{Type: verdict.ConnectionStalled, Cookie: cookie, Time: time.Now()}
	}
	h.Publish(stalled(1))
	a, b := h.Snapshot(false), h.Snapshot(true)
	if len(a.Open) != 1 || &a.Open[0] != &b.Open[0] || cap(a.Open) != 1 {
		t.Errorf("two copies of the same: %v %v", a.Open, b.Open)
	}
	h.Publish(Event{Type: verdict.ConnectionRecovered, Time: time.Now()}) // about no finding
	if c := h.Snapshot(false); &c.Open[0] != &a.Open[0] || c.Seq != 2 {
		t.Errorf("a copy of what is the same: %v at %d", c.Open, c.Seq)
	}
	h.Publish(stalled(2))
	if d := h.Snapshot(false); len(d.Open) != 2 || len(a.Open) != 1 {
		t.Errorf("%d open after, %d before", len(d.Open), len(a.Open))
	}
	h.Publish(Event{Type: ModeChanged, Mode: &Mode{Effective: "off"}, Time: time.Now()})
	if e := h.Snapshot(false); len(e.Open) != 0 {
		t.Errorf("%d open after the end", len(e.Open))
	}
}

// codes are findings in words, in an order.
func codes(list []*Finding) (words []string) {
	for _, f := range list {
		words = append(words, string(f.Code)+" "+Cursor{"e", f.Opened.Seq}.String())
	}
	slices.Sort(words)
	return words
}

// change is a random event about one of a few things.
func change(r *rand.Rand, at time.Time) Event {
	types := Types()
	e := Event{Time: at, Type: types[r.IntN(len(types))], NS: verdict.NS(1 + r.IntN(3))}
	e.Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(3))}), 6379)
	if strings.HasPrefix(string(e.Type), "connection.") {
		e.Cookie = 1 + r.Uint64N(5)
	}
	outcomes := verdict.ReapOutcomes()
	e.Outcome = string(outcomes[r.IntN(len(outcomes))])
	e.Mode = &Mode{Effective: []string{"observe", "enforce", "enforce", "off"}[r.IntN(4)]}
	return e
}

func TestStateIsAPureFold(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	a, b := newState(), newState()
	at := time.Unix(1000, 0)
	for i := range 20_000 {
		at = at.Add(rand.N(time.Second))
		rec := &Record{Event: change(r, at)}
		rec.Seq = uint64(i + 1)
		a.Apply(rec)
		b.Apply(rec)
		for j, f := range a.open {
			if a.at[subjectOf(f.Opened)] != j {
				t.Fatalf("after %d events finding %d is not where it should be", i, j)
			}
		}
		if len(a.open) != len(a.at) || len(a.ended) > keepEnded {
			t.Fatalf("%d open, %d known, %d ended", len(a.open), len(a.at), len(a.ended))
		}
	}
	opt := cmp.Options{cmpopts.IgnoreUnexported(Finding{}), cmpopts.EquateComparable(netip.AddrPort{})}
	if diff := cmp.Diff(a.open, b.open, opt); diff != "" {
		t.Errorf("the same events gave another state:\n%s", diff)
	}
	if diff := cmp.Diff(a.endedList(), b.endedList(), opt); diff != "" {
		t.Errorf("the same events gave another past:\n%s", diff)
	}
}

func TestFindings(t *testing.T) {
	ep := netip.MustParseAddrPort("10.0.0.1:6379")
	at := time.Unix(1000, 0)
	path := func(t verdict.EventType) Event { return Event{Type: t, NS: 7, Endpoint: ep} }
	conn := func(t verdict.EventType, outcome string) Event {
		return Event{Type: t, NS: 7, Endpoint: ep, Cookie: 5, Outcome: outcome}
	}
	mode := func(m string) Event { return Event{Type: ModeChanged, Mode: &Mode{Effective: m}} }
	for _, tt := range []struct {
		name   string
		events []Event
		after  time.Duration // until the look
		want   string        // codes of the open ones
	}{
		{"suspect", []Event{path("endpoint.suspect")}, 0, "endpoint.suspect"},
		{"suspect, down", []Event{path("endpoint.suspect"), path("endpoint.down")}, 0, "endpoint.down"},
		{"down, suspect", []Event{path("endpoint.down"), path("endpoint.suspect")}, 0, "endpoint.down"},
		{"down, up", []Event{path("endpoint.down"), path("endpoint.up")}, 0, ""},
		{"another path", []Event{path("endpoint.down"), {Type: "endpoint.up", NS: 8, Endpoint: ep}}, 0, "endpoint.down"},
		{"another interface", []Event{path("endpoint.down"), {Type: "endpoint.up", NS: 7, Endpoint: ep, Interface: 3}}, 0, "endpoint.down"},
		{"stalled, heard", []Event{conn("connection.stalled", ""), conn("connection.heard", "")}, 0, ""},
		{"stalled, gone", []Event{conn("connection.stalled", ""), conn("connection.gone", "")}, 0, ""},
		{"stalled, judged", []Event{conn("connection.stalled", ""), conn("connection.judged", "")}, 0, "connection.judged"},
		{"stalled, reaped", []Event{conn("connection.stalled", ""), conn("connection.reaped", "reaped")}, 0, ""},
		{"stalled, spared", []Event{conn("connection.stalled", ""), conn("connection.reaped", "spared")}, 0, "connection.stalled"},
		{"stalled, failed", []Event{conn("connection.stalled", ""), conn("connection.reaped", "failed")}, 0, "reap.failed"},
		{"failed, gone", []Event{conn("connection.reaped", "failed"), conn("connection.gone", "")}, 0, ""},
		{"not back", []Event{path("client.not_back")}, notBackFor - 1, "client.not_back"},
		{"not back, later", []Event{path("client.not_back")}, notBackFor, ""},
		{"doubt", []Event{path("guard.doubt")}, time.Hour, "guard.doubt"},
		{"doubt over", []Event{path("guard.doubt"), {Type: "guard.doubt_over", NS: 7}}, 0, ""},
		{"breaker twice", []Event{{Type: "guard.breaker"}, {Type: "guard.breaker"}}, 0, "guard.breaker"},
		{"breaker over", []Event{{Type: "guard.breaker"}}, breakerFor, ""},
		{"refused", []Event{{Type: ConfigRefused}, mode("off")}, time.Hour, "config.refused"},
		{"refused, changed", []Event{{Type: ConfigRefused}, {Type: ConfigChanged}}, 0, ""},
		{"drift", []Event{{Type: NamespaceDrift, NS: 7}, {Type: NamespaceDrift, NS: 7}}, time.Hour, "namespace.drift"},
		{"drift over", []Event{{Type: NamespaceDrift, NS: 7}, {Type: TuneFailed, NS: 7}, {Type: NamespaceDriftOver, NS: 7}}, 0, "tune.failed"},
		{"tuning works again", []Event{{Type: TuneFailed, NS: 7}, {Type: TuneFailed, NS: 7}, {Type: TuneResumed, NS: 7}}, 0, ""},
		{"off", []Event{path("endpoint.down"), conn("connection.judged", ""), path("guard.doubt"), mode("off")}, 0, ""},
		{"observe", []Event{path("endpoint.down"), mode("observe")}, 0, "endpoint.down"},
	} {
		s := newState()
		for i, e := range tt.events {
			e.Time, e.Seq = at, uint64(i+1)
			s.Apply(&Record{Event: e})
		}
		s.Expire(at.Add(tt.after))
		var got []string
		for _, f := range s.open {
			got = append(got, string(f.Code))
		}
		if g := strings.Join(got, " "); g != tt.want {
			t.Errorf("%s: %q is open, want %q", tt.name, g, tt.want)
		}
	}
}

func TestFindingsAreBounded(t *testing.T) {
	s := newState()
	for i := range 2 * maxOpen {
		s.Apply(&Record{Event: Event{Seq: uint64(i + 1), Type: verdict.ConnectionStalled, Cookie: uint64(i + 1)}})
	}
	if most := AboutConn.most(); len(s.open) != most || s.unkept != uint64(2*maxOpen-most) {
		t.Errorf("%d open, %d not kept", len(s.open), s.unkept)
	}
	// They hide nothing else.
	for _, e := range []Event{{Type: verdict.EndpointDown}, {Type: verdict.GuardDoubt}, {Type: verdict.GuardBreaker}, {Type: ConfigRefused}, {Type: verdict.ClientNotBack}} {
		before := len(s.open)
		s.Apply(&Record{Event: e})
		if len(s.open) != before+1 {
			t.Errorf("%s is not kept beside many stalled connections", e.Type)
		}
	}
	for i := len(s.open) - 1; i >= 0; i-- {
		if k := subjectOf(s.open[i].Opened); k.topic != AboutConn {
			s.close(k, time.Time{}, 0, "")
		}
	}
	sum := 0
	for k := range numberOfTopics {
		sum += k.most()
	}
	if sum > maxOpen+3*maxTargets+3 { // breaker, config and arming have one each
		t.Errorf("all topics together may be %d", sum)
	}
	for i := range 2 * maxOpen {
		s.Apply(&Record{Event: Event{Seq: uint64(i + 1), Type: verdict.ConnectionGone, Cookie: uint64(i + 1)}})
	}
	if len(s.open) != 0 || len(s.at) != 0 || len(s.ended) != keepEnded || s.topics != [numberOfTopics]int{} {
		t.Errorf("%d open, %d known, %d ended", len(s.open), len(s.at), len(s.ended))
	}
}

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"", "e1-2", "-1", "e1-", "e1-01", "E-1", "e1-18446744073709551616", "e-1-2", "é-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCursor(s)
		if err == nil && c.String() != s {
			t.Errorf("%q was read as %q", s, c)
		}
	})
}

// What publishing costs the watcher, with a thousand subscribers behind.
func BenchmarkPublish(b *testing.B) {
	h := NewHub(8192)
	for range 1000 {
		h.Notify(func() {})
	}
	e := Event{Type: verdict.EndpointUp, Endpoint: netip.MustParseAddrPort("10.0.0.1:6379"), Connection: &Connection{}}
	b.ReportAllocs()
	for b.Loop() {
		h.Publish(e)
	}
}
