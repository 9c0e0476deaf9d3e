package event

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// A row that contradicts itself would be found by whoever reads the wrong half.
func TestTheTableOfKinds(t *testing.T) {
	seen := map[verdict.EventType]bool{}
	for i := range kinds {
		k := &kinds[i]
		if seen[k.Type] {
			t.Errorf("%s has two rows", k.Type)
		}
		seen[k.Type] = true
		if Of(k.Type) != k || k.Part == "" {
			t.Errorf("%s: row %+v", k.Type, *k)
		}
		for _, e := range k.effects() {
			switch {
			case (e.Code != "") != (e.Severity != ""), e.Code == "" && (e.Lasts != 0 || e.Keeps):
				t.Errorf("%s: half of a finding: %+v", k.Type, e)
			case (e.Code != "" || e.Ends) && k.Topic == NoTopic:
				t.Errorf("%s has an effect on findings about nothing", k.Type)
			case e.Code != "" && SeverityOf(e.Code) != e.Severity:
				t.Errorf("%s: findings of code %s have two severities", k.Type, e.Code)
			}
		}
	}
	for _, typ := range verdict.EventTypes() {
		if !seen[typ] {
			t.Errorf("%s has no row", typ)
		}
	}
	// Whatever opens a finding is ended: by an event about the same topic, by the next
	// of its kind, or by time.
	for i := range kinds {
		for _, e := range kinds[i].effects() {
			ended := e.Lasts > 0 || slices.ContainsFunc(kinds, func(o Kind) bool { return o.Topic == kinds[i].Topic && o.Ends && o.Code == "" })
			if e.Code != "" && !ended {
				t.Errorf("nothing ends a finding of code %s", e.Code)
			}
		}
	}
}

// A type that nobody has heard of does nothing, and no pod sees it.
func TestAnUnknownKind(t *testing.T) {
	k := Of("no.such")
	if k.Access != ForHostOnly || k.Topic != NoTopic || k.effect(&Event{}) != (Effect{}) || SeverityOf("no.such") != "" {
		t.Errorf("%+v", k)
	}
}

// Findings about targets are kept apart by name.
func TestSubjects(t *testing.T) {
	a, b := subject{topic: AboutTarget, name: "orders"}, subject{topic: AboutTarget, name: "carts"}
	s := newState()
	for _, key := range []subject{a, b, a} {
		s.start(key, &Event{Type: "target.example", Target: key.name}, "target.example", time.Time{})
	}
	if len(s.open) != 2 || s.about(a) == nil || s.about(b) == nil || s.about(a) == s.about(b) {
		t.Errorf("%d open", len(s.open))
	}
}

func TestLevel(t *testing.T) {
	reap := Event{Type: verdict.ConnectionReaped}
	if l := reap.Level(); l != slog.LevelWarn {
		t.Errorf("a reap is logged at %v", l)
	}
	// Of the reconnects of an outage there are many.
	reap.Connection, reap.Evidence = &Connection{}, &verdict.Evidence{Rule: verdict.RuleSyn}
	if l := reap.Level(); l != slog.LevelDebug {
		t.Errorf("a connect that is ended is logged at %v", l)
	}
}
