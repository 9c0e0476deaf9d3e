package cli

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write testdata/help anew")

// TestHelp holds the help of every command against a file: what users read is
// part of the contract. After an intended change: go test ./internal/cli -update
func TestHelp(t *testing.T) {
	files := map[string]bool{}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		path := strings.Fields(c.CommandPath())
		name := filepath.Join("testdata/help", strings.Join(path, "-")+".txt")
		files[name] = true
		var got, errs bytes.Buffer
		if code := execute(append(path[1:], "--help"), nil, &got, &errs); code != ExitOK || errs.Len() > 0 {
			t.Errorf("%s --help: exit code %d, stderr %q", c.CommandPath(), code, errs.String())
		}
		if *update {
			if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		if got.String() != string(want) {
			t.Errorf("the help of %q is not that of %s:\n%s", c.CommandPath(), name, got.String())
		}
		for line := range strings.Lines(got.String()) {
			if len([]rune(strings.TrimRight(line, "\n"))) > 120 {
				t.Errorf("the help of %q is too wide: %s", c.CommandPath(), line)
			}
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%q is described by %q", c.CommandPath(), c.Short)
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(Root())
	have, err := filepath.Glob("testdata/help/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range have {
		if !files[name] {
			t.Errorf("%s is of no command", name)
		}
	}
}
