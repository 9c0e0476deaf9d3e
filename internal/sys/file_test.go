package sys

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "state"), filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("not ours"), 0o644); err != nil {
		t.Fatal(err)
	}
	// What a crash, or somebody else, has left where the new content is written.
	if err := os.Symlink(other, path+".new"); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "two, which is longer", ""} {
		if err := ReplaceFile(path, []byte(content), content != ""); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("the file has %q (%v), want %q", got, err, content)
		}
	}
	if got, err := os.ReadFile(other); err != nil || string(got) != "not ours" {
		t.Errorf("a link was followed: %q, %v", got, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", st.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.new")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := ReplaceFile(filepath.Join(dir, "no", "where"), nil, false); err == nil {
		t.Error("a file without a directory was written")
	}
}
