package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/supervisor/journal"
)

// idleWatcher is a watcher whose loop does not run, with its off switch.
func idleWatcher(t *testing.T) (s *Supervisor, w *watcher, offSwitch string) {
	t.Helper()
	dir := t.TempDir()
	offSwitch = filepath.Join(dir, "disable")
	c := config.Default()
	c.Watch.Mode = config.Enforce
	s, err := New(Options{Config: c, Log: slog.New(slog.DiscardHandler), Hub: event.NewHub(64), StateDir: dir, OffSwitch: offSwitch})
	if err != nil {
		t.Fatal(err)
	}
	s.journal = journal.Open(journal.Config{Hub: s.opt.Hub, Log: s.log, Figures: s.figures})
	t.Cleanup(s.journal.Close)
	return s, newWatcher(s), offSwitch
}

// Settings that changed while redisguard was off count when it is on again.
func TestSettingsChangedWhileOff(t *testing.T) {
	s, w, offSwitch := idleWatcher(t)
	w.in.Now = monotonic()
	w.core.Step(&w.in)
	w.in.Clear()
	if err := os.WriteFile(offSwitch, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.readSwitch()
	w.obey()
	if !w.off {
		t.Fatal("the off switch does not count")
	}
	c := *s.Policy().Config
	c.Reap.MinSilence = 1234 * time.Millisecond
	s.Reconfigure(c)
	w.obey()
	if err := os.Remove(offSwitch); err != nil {
		t.Fatal(err)
	}
	s.readSwitch()
	w.obey()
	if w.off || !w.in.Reset || w.in.Settings == nil || w.in.Settings.MinSilence != c.Reap.MinSilence {
		t.Errorf("off %v; the core is told %+v, want min_silence %v", w.off, w.in.Settings, c.Reap.MinSilence)
	}
}

// A request whose caller has given up is not done later, and what it was to publish is
// published once.
func TestGivenUpRequest(t *testing.T) {
	s, w, _ := idleWatcher(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := false
	// Whether there is room or ctx has ended is chance: several times.
	for range 20 {
		if err := s.request(ctx, func(*watcher) error { done = true; return nil }); !errors.Is(err, context.Canceled) {
			t.Fatalf("a request with a context that has ended: %v", err)
		}
	}
	if err := w.drain(); err != nil || done {
		t.Errorf("the caller was told that it has given up, and it was done: %v; error %v", done, err)
	}
	s.Publish(ctx, event.Event{Type: event.ConfigChanged, Text: "x"})
	if err := w.drain(); err != nil {
		t.Fatal(err)
	}
	if n := s.opt.Hub.Publish(event.Event{Type: event.ConfigChanged}); n != 2 {
		t.Errorf("one event was published %d times", n-1)
	}
}
