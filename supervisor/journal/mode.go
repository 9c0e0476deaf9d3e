package journal

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/internal/statefile"
)

// Modes are the words of the config.
var Modes = map[string]config.Mode{"off": config.Off, "observe": config.Observe, "enforce": config.Enforce}

// RecallMode takes over the ceiling that was set in a predecessor, so that a daemon which
// is started again is not freer than the one before.
func RecallMode(state string, log *slog.Logger) config.Mode {
	path := paths.Mode(state)
	b, err := statefile.Read(path, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return config.Enforce
	}
	m, ok := Modes[strings.TrimSpace(string(b))]
	if err != nil || !ok {
		// An operator wanted us to do less, and we cannot tell how much.
		m = config.Observe
		log.Error("cannot read the mode that was set before the restart, only observing", "file", path, "error", err,
			"remedy", "redisguard mode enforce, or off")
	}
	if m != config.Enforce {
		log.Warn("the mode that was set before the restart still holds", "mode", m.String(), "remedy", "redisguard mode enforce")
	}
	return m
}

// KeepMode writes the ceiling down.
func KeepMode(state string, m config.Mode) error {
	path := paths.Mode(state)
	if m != config.Enforce {
		return statefile.Replace(path, []byte(m.String()+"\n"), true)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
