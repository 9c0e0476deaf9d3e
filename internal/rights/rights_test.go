package rights

import (
	"os"
	"strings"
	"testing"
)

// README's table is for people who give redisguard its capabilities: it has the list's.
func TestREADMEHasTheList(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range List() {
		if !strings.Contains(string(readme), "| `"+r.Name+"` |") {
			t.Errorf("README's table of capabilities lacks %s", r.Name)
		}
		if Of(r.Number) != r {
			t.Errorf("Of(%d) is another right", r.Number)
		}
		if r.Operation == "" || r.Lost == "" || r.Job == "" {
			t.Errorf("%s does not say what it is for", r.Name)
		}
	}
	if strings.Count(string(readme), "| `CAP_") != len(List()) {
		t.Error("README's table has other capabilities than the list")
	}
}

func TestHeld(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	for _, r := range List()[:3] {
		if has, err := r.Held(); err != nil || !has {
			t.Errorf("root does not have %s: %v", r.Name, err)
		}
	}
}
