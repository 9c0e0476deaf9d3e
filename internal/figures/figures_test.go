package figures

import (
	"testing"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/verdict"
)

func TestFigures(t *testing.T) {
	g := New()
	before := g.Read()
	r := verdict.Reap{Verdict: 12 * time.Second, Evidence: verdict.Evidence{Rule: verdict.RuleDown, Since: 10 * time.Second, Silence: 2 * time.Second}}
	g.Reap(&r, verdict.ReapDone, 12*time.Second+30*time.Millisecond)
	g.Reap(&r, verdict.ReapSpared, 13*time.Second)
	g.Event(&event.Event{Type: verdict.ConnectionJudged, Evidence: &r.Evidence})
	g.Event(&event.Event{Type: verdict.ConnectionRecovered, TookMs: 60_000})
	g.Probe(verdict.Dead)
	g.Round(-time.Second) // a clock that went back must not spoil the sum
	g.Success(AuditFile)
	f := g.Read()

	if n := f.Reaps[ReapKind{verdict.RuleDown, verdict.ReapDone}]; n != 1 {
		t.Errorf("%d reaps done, want 1", n)
	}
	if n := f.Reaps[ReapKind{verdict.RuleDown, verdict.ReapSpared}]; n != 1 {
		t.Errorf("%d reaps spared, want 1", n)
	}
	if n := f.Withheld[verdict.RuleDown]; n != 1 {
		t.Errorf("%d withheld, want 1", n)
	}
	// 2 s is within the bucket that ends at 2 s.
	d := f.Detection[verdict.RuleDown]
	if d.Count != 2 || d.Sum != 4*time.Second || d.Buckets[5] != 2 || d.Upper[5] != 2*time.Second {
		t.Errorf("detection is %+v, want twice 2 s", d)
	}
	if f.Wait.Count != 1 || f.Wait.Buckets[1] != 1 {
		t.Errorf("waiting is %+v, want once 30 ms", f.Wait)
	}
	// Longer than the last limit: counted, in no bucket.
	if f.Recovery.Count != 1 || f.Recovery.Buckets[len(f.Recovery.Buckets)-1] != 0 {
		t.Errorf("recovery is %+v, want once a minute", f.Recovery)
	}
	if f.Lateness.Count != 1 || f.Lateness.Sum != 0 {
		t.Errorf("lateness is %+v, want once 0", f.Lateness)
	}
	if f.Probes[verdict.Dead] != 1 {
		t.Errorf("probes %v", f.Probes)
	}
	if f.Succeeded[AuditFile].IsZero() || f.Succeeded[Watcher].IsZero() || !f.Succeeded[Attributor].IsZero() {
		t.Errorf("signs of life: %v", f.Succeeded)
	}
	// A reading does not change later.
	if n := before.Reaps[ReapKind{verdict.RuleDown, verdict.ReapDone}] + int64(before.Detection[verdict.RuleDown].Buckets[5]+before.Lateness.Buckets[0]); n != 0 {
		t.Errorf("an earlier reading has changed: %+v", before)
	}
}
