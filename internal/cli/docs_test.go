package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCommandsInDocs: whoever follows a runbook at night must not find a command or
// a flag that is not there.
func TestCommandsInDocs(t *testing.T) {
	files, err := filepath.Glob("../../docs/runbooks/*.md")
	if err != nil || len(files) < 20 {
		t.Fatalf("%v: %d runbooks", err, len(files))
	}
	quoted := regexp.MustCompile("`(redisguard [^`]+)`")
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range quoted.FindAllStringSubmatch(string(text), -1) {
			found++
			cmd, rest, err := Root().Find(strings.Fields(m[1])[1:])
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err == nil && cmd.Args != nil {
				err = cmd.Args(cmd, cmd.Flags().Args())
			}
			if err != nil {
				t.Errorf("%s: %s: %v", file, m[1], err)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands found", found)
	}
}
