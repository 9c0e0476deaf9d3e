package journal

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/paths"
)

// The mode that was set survives a restart, and when it cannot be read the guard
// is not freer than somebody wanted.
func TestTheModeIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	log := slog.New(slog.DiscardHandler)
	if m := RecallMode(dir, log); m != config.Enforce {
		t.Errorf("without a file the ceiling is %v", m)
	}
	for _, m := range []config.Mode{config.Off, config.Observe, config.Off, config.Enforce} {
		if err := KeepMode(dir, m); err != nil {
			t.Fatal(err)
		}
		if got := RecallMode(dir, log); got != m {
			t.Errorf("recalled %v, want %v", got, m)
		}
	}
	if _, err := os.Stat(paths.Mode(dir)); !os.IsNotExist(err) {
		t.Error("enforce is no ceiling, and its file is still there")
	}
	for _, text := range []string{"", "on", "enforce enforce"} {
		if err := os.WriteFile(paths.Mode(dir), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m := RecallMode(dir, log); m != config.Observe {
			t.Errorf("with %q in the file the ceiling is %v, want observe", text, m)
		}
	}
	// Nor does somebody else's file free it.
	if err := os.WriteFile(paths.Mode(dir), []byte("enforce"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(paths.Mode(dir), 0o666); err != nil {
		t.Fatal(err)
	}
	if m := RecallMode(dir, log); m != config.Observe {
		t.Errorf("with a file that anybody may write the ceiling is %v, want observe", m)
	}
}
