package statefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReplace(t *testing.T) {
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
		if err := Replace(path, []byte(content), content != ""); err != nil {
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
	if err := Replace(filepath.Join(dir, "new", "dir", "state"), nil, false); err != nil {
		t.Errorf("its directory is not made: %v", err)
	}
	if err := Replace(filepath.Join(other, "state"), nil, false); err == nil {
		t.Error("a file was written below what is no directory")
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	read := func(want error, says string) {
		t.Helper()
		b, err := Read(path, 10)
		if !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), says) || err == nil && string(b) != "content" {
			t.Errorf("%q, %v, want %v", b, err, want)
		}
	}
	make := func(how func() error) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(path), how()); err != nil {
			t.Fatal(err)
		}
	}
	read(fs.ErrNotExist, "")
	make(func() error { return Replace(path, []byte("content"), true) })
	read(nil, "")
	make(func() error { return os.WriteFile(path, []byte("01234567890"), 0o600) })
	read(ErrUntrusted, "11 bytes are too many")
	make(func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o620)) })
	read(ErrUntrusted, "not a file of ours alone")
	make(func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 65534, -1)) })
	read(ErrUntrusted, "not a file of ours alone")
	make(func() error { return os.Symlink("/etc/hostname", path) })
	read(ErrUntrusted, "symbolic link")
	make(func() error { return unix.Mkfifo(path, 0o600) }) // which would hang an ordinary open
	read(ErrUntrusted, "not a file of ours alone")
	make(func() error { return os.Mkdir(path, 0o700) })
	read(ErrUntrusted, "not a file of ours alone")
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "lock")
	first, err := Lock(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path, 20*time.Millisecond); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second lock: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		l, err := Lock(path, time.Minute)
		if err == nil {
			err = l.Close()
		}
		got <- err
	}()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("one that waits: %v", err)
	}
	for _, bad := range []string{filepath.Join(path, "below a file"), filepath.Dir(path)} {
		if l, err := Lock(bad, 0); err == nil {
			l.Close()
			t.Errorf("%s was locked", bad)
		}
	}
}

func TestBootID(t *testing.T) {
	a, err := BootID()
	b, err2 := BootID()
	if err != nil || err2 != nil || a != b || len(a) != 36 {
		t.Errorf("%q, %q, %v, %v", a, b, err, err2)
	}
}
