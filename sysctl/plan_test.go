package sysctl

import (
	"testing"

	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	rec := func(original, ours, conflicts int, applying bool) *Record {
		return &Record{Applying: applying, Values: []Kept{{Key: Retries2, Original: original, Ours: []int{ours}, Conflicts: conflicts}}}
	}
	for _, tt := range []struct {
		name string
		have int
		kept *Record
		want int // 0: not wanted
		p    Policy
		act  Action
		conf bool
		gave bool
	}{
		{name: "the kernel's default", have: 15, want: 5, act: Write},
		{name: "as wanted, by somebody else", have: 5, want: 5, act: Same},
		{name: "chosen by somebody", have: 8, want: 5, act: Foreign},
		{name: "chosen by somebody, override", have: 8, want: 5, p: Policy{Override: true}, act: Write},
		{name: "ours", have: 5, kept: rec(15, 5, 0, false), want: 5, act: Same},
		{name: "ours, the config has changed", have: 5, kept: rec(15, 5, 0, false), want: 6, act: Write},
		{name: "a kill before the write", have: 15, kept: rec(15, 5, 0, true), want: 5, act: Write},
		{name: "a kill after the write", have: 5, kept: rec(15, 5, 0, true), want: 5, act: Same},
		{name: "changed after us", have: 9, kept: rec(15, 5, 0, false), want: 5, act: Drifted},
		{name: "set back after us", have: 15, kept: rec(15, 5, 0, false), want: 5, act: Drifted},
		{name: "override does not mean repair", have: 9, kept: rec(15, 5, 0, false), want: 5, p: Policy{Override: true}, act: Drifted},
		{name: "repaired", have: 9, kept: rec(15, 5, 0, false), want: 5, p: Policy{Repair: true}, act: Write, conf: true},
		{name: "repaired once more", have: 9, kept: rec(15, 5, 1, false), want: 5, p: Policy{Repair: true}, act: Write, conf: true},
		{name: "given up", have: 9, kept: rec(15, 5, 2, false), want: 5, p: Policy{Repair: true}, act: Drifted, gave: true},
		{name: "not wanted any more", have: 5, kept: rec(15, 5, 0, false), act: Restore},
		{name: "not wanted any more, and somebody else's", have: 9, kept: rec(15, 5, 0, false), act: Release},
		{name: "not wanted any more, and the original", have: 15, kept: rec(15, 5, 0, true), act: Release},
	} {
		want := Values{}
		if tt.want != 0 {
			want[Retries2] = tt.want
		}
		items := Plan(Values{Retries2: tt.have}, tt.kept, want, tt.p)
		if len(items) != 1 || items[0].Action != tt.act || items[0].Conflict != tt.conf || items[0].GivenUp != tt.gave {
			t.Errorf("%s: %+v, want %v", tt.name, items, tt.act)
		}
		if tt.act == Restore && items[0].Want != 15 {
			t.Errorf("%s: restores %d", tt.name, items[0].Want)
		}
	}
	if items := Plan(Values{}, nil, Values{RTOMax: 5000}, Policy{}); len(items) != 1 || items[0].Action != Absent {
		t.Errorf("a key that the kernel lacks: %+v", items)
	}
	if items := Plan(Values{Retries2: 9, SynRetries: 2}, nil, nil, Policy{Override: true}); len(items) != 0 {
		t.Errorf("nothing is wanted: %+v", items)
	}
}

// Whatever happens: without override, a value that somebody has chosen is not
// written, and an original that is remembered is one that was there before us.
func TestPlanNeverWritesForeignValues(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.IntRange(1, 20)
		have := small.Draw(t, "have")
		var kept *Record
		if rapid.Bool().Draw(t, "tuned") {
			kept = &Record{Applying: rapid.Bool().Draw(t, "applying"), Values: []Kept{{
				Key: Retries2, Original: small.Draw(t, "original"), Ours: rapid.SliceOfN(small, 1, 3).Draw(t, "ours"), Conflicts: rapid.IntRange(0, 3).Draw(t, "conflicts"),
			}}}
		}
		want := Values{Retries2: small.Draw(t, "want")}
		it := Plan(Values{Retries2: have}, kept, want, Policy{})[0]
		if !it.Action.Writes() {
			return
		}
		switch {
		case kept == nil && have != 15:
			t.Fatalf("%+v would be written over a chosen value", it)
		case kept != nil && !it.Ours && !(kept.Applying && have == kept.Values[0].Original):
			t.Fatalf("%+v would be written over a later change", it)
		}
		begun, done := records(kept, &Job{Items: []Item{it}})
		if kept != nil && (begun.Values[0].Original != kept.Values[0].Original || done.Values[0].Original != kept.Values[0].Original) {
			t.Fatalf("the original is lost: %+v, %+v", begun, done)
		}
		// From wherever a kill leaves it, the original is found again.
		for _, h := range []int{have, it.Want} {
			back := Plan(Values{Retries2: h}, &begun, nil, Policy{})[0]
			if h != begun.Values[0].Original && (back.Action != Restore || back.Want != begun.Values[0].Original) {
				t.Fatalf("killed with %d: %+v of %+v", h, back, begun)
			}
		}
	})
}
