package supervisor

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/redisguard/redisguard/config"
)

// The mode that was set survives a restart, and when it cannot be read the guard
// is not freer than somebody wanted.
func TestTheModeIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	recall := func() config.Mode {
		s := &Supervisor{opt: Options{StateDir: dir}, log: slog.New(slog.DiscardHandler)}
		s.recallMode()
		return config.Mode(s.override.Load())
	}
	if m := recall(); m != config.Enforce {
		t.Errorf("without a file the ceiling is %v", m)
	}
	s := &Supervisor{opt: Options{StateDir: dir}, log: slog.New(slog.DiscardHandler)}
	for _, m := range []config.Mode{config.Off, config.Observe, config.Off, config.Enforce} {
		if err := s.keepMode(m); err != nil {
			t.Fatal(err)
		}
		if got := recall(); got != m {
			t.Errorf("recalled %v, want %v", got, m)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, modeFile)); !os.IsNotExist(err) {
		t.Error("enforce is no ceiling, and its file is still there")
	}
	for _, text := range []string{"", "on", "enforce enforce"} {
		if err := os.WriteFile(filepath.Join(dir, modeFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m := recall(); m != config.Observe {
			t.Errorf("with %q in the file the ceiling is %v, want observe", text, m)
		}
	}
	c := config.Default()
	s.override.Store(int32(config.Observe))
	if m := s.ceiling(&c); m != config.Observe {
		t.Errorf("the ceiling is %v", m)
	}
	c.Watch.Mode = config.Enforce
	if m := s.watchMode(&c); m != config.Observe {
		t.Errorf("watching goes as far as %v", m)
	}
}

// Whatever turned us off, the event says so: it ends the findings, which nobody
// follows up any more.
func TestOffIsOff(t *testing.T) {
	c := config.Default()
	c.Mode, c.Watch.Mode = config.Enforce, config.Off
	s := &Supervisor{log: slog.New(slog.DiscardHandler)}
	s.conf.Store(&c)
	s.override.Store(int32(config.Enforce))
	for off, want := range map[bool]string{false: "enforce", true: "off"} {
		if m := (&watcher{s: s, off: off}).mode(); m.Effective != want || m.Configured != "enforce" {
			t.Errorf("off %v: %+v", off, m)
		}
	}
}
