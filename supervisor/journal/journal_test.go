package journal

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
)

// A loop that outlives the end, as one that restores sysctls, may still publish: into the
// log and to the subscribers. What was published before is in the file.
func TestPublishAfterClose(t *testing.T) {
	c := config.Default().Audit
	c.File = filepath.Join(t.TempDir(), "audit")
	hub := event.NewHub(1024)
	j := Open(Config{Hub: hub, Log: slog.New(slog.DiscardHandler), Figures: figures.New(), Audit: c})
	const n = 500
	for range n {
		j.Publish(event.Event{Type: event.NamespaceRestored})
	}
	j.Close()
	text, err := os.ReadFile(c.File)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines != n {
		t.Errorf("%d of %d records are in the file", lines, n)
	}
	j.Publish(event.Event{Type: event.NamespaceRestored})
	if seq := hub.Publish(event.Event{Type: event.NamespaceRestored}); seq != n+2 {
		t.Errorf("after the end: number %d, want %d", seq, n+2)
	}
}
