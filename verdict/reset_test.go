package verdict

import (
	"testing"
	"time"
)

// Switching off and other settings are part of the input, so that a replay goes
// through them as well.
func TestInputResetsAndChangesSettings(t *testing.T) {
	w := newPathWorld([]NS{10}, nil)
	w.run(5 * time.Second)
	w.sever(10)
	set := profiles("calm")
	set.HostNS, set.OnDown = 1, PolicySignal
	w.in.Settings = &set
	w.run(20 * time.Second)
	if w.downs[10] != 1 || w.reaped[10] != 0 {
		t.Errorf("with on_down = signal: called down %d times, %d reaped; want once and none", w.downs[10], w.reaped[10])
	}
	if w.core.Tracked() != 1 {
		t.Fatalf("%d connections are known, want 1", w.core.Tracked())
	}
	w.core.Step(&Input{Now: w.now, Reset: true})
	if w.core.Tracked() != 0 || len(w.core.endpoints) != 0 {
		t.Errorf("%d connections are known after beginning anew", w.core.Tracked())
	}
	if w.core.set != set {
		t.Error("beginning anew took the settings back")
	}
}
