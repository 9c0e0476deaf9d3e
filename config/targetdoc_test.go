package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestTargetKeysInDocs: docs/targets.md has each key of a target once, with its default as
// redisguard.toml shows it, and no other.
func TestTargetKeysInDocs(t *testing.T) {
	file, err := os.ReadFile("../redisguard.toml")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/targets.md")
	if err != nil {
		t.Fatal(err)
	}
	_, commented, ok := strings.Cut(string(file), "#[[target]]\n")
	if !ok {
		t.Fatal("redisguard.toml has no #[[target]]")
	}
	want, section := map[string]string{}, ""
	for line := range strings.Lines(commented) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "#[target."); ok {
			section = strings.TrimSuffix(s, "]") + "."
		} else if m := regexp.MustCompile(`^#(\w+) = (.*)$`).FindStringSubmatch(line); m != nil {
			want[section+m[1]] = "`" + m[2] + "`"
		}
	}
	// These have no default; the file shows examples.
	want["name"], want["seeds"] = "none", "none"
	want["allow"] = "`[]`"
	if len(want) < 20 {
		t.Fatalf("only %d keys found", len(want))
	}
	_, table, _ := strings.Cut(string(doc), "## Keys\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for _, m := range regexp.MustCompile("(?m)^\\| `([\\w.]+)` \\| (`[^`]*`|none) \\| .+ \\|$").FindAllStringSubmatch(table, -1) {
		if want[m[1]] != m[2] {
			t.Errorf("docs/targets.md has %s with the default %s, want %q", m[1], m[2], want[m[1]])
		}
		delete(want, m[1])
	}
	for key := range want {
		t.Errorf("docs/targets.md does not have %s", key)
	}
}
