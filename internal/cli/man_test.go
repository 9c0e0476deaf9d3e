package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestMan writes the pages: one for each command, with all its flags, and nothing
// in them that roff would take for a request of its own.
func TestMan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if code, out, errs := redisguard(t, "man", dir); code != ExitOK || out+errs != "" {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	pages := 0
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		pages++
		data, err := os.ReadFile(filepath.Join(dir, manName(c)+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		text := string(data)
		for _, want := range []string{".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH EXIT STATUS"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %s", manName(c), want)
			}
		}
		if c.Flags().Lookup("json") != nil && !strings.Contains(text, `\-\-json`) {
			t.Errorf("%s does not tell of --json", manName(c))
		}
		for line := range strings.Lines(text) {
			request, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.HasPrefix(line, ".") && !strings.Contains(".TH .SH .PP .TP .B .BR .I", request) || strings.HasPrefix(line, "'") {
				t.Errorf("%s: %q is no request that we make", manName(c), line)
			}
		}
		for _, sub := range manned(c) {
			visit(sub)
		}
	}
	root := Root()
	root.InitDefaultCompletionCmd()
	visit(root)
	if pages < 19 {
		t.Errorf("only %d pages", pages)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != pages {
		t.Errorf("%v: %d files, want %d", err, len(files), pages)
	}
	if got := roff(`.a\b-c`); got != `\&.a\eb\-c` {
		t.Errorf("roff gives %s", got)
	}
}
