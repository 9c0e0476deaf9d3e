package session

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
)

func readText(path string) ([]byte, error) { return os.ReadFile(path) }

// TestPasswordDoesNotPrint tries whatever a careless line might do with a password, and
// with what holds one.
func TestPasswordDoesNotPrint(t *testing.T) {
	p := NewPassword("hunter2")
	conn := &Conn{cfg: Config{Password: p}}
	secret := &Secret{have: p}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%t", "%p", "%T", "%U", "%c", "%e"} {
		for _, v := range []any{p, &p, conn.cfg, &conn.cfg, conn, secret, []Password{p}, map[string]Password{"a": p}, struct{ p Password }{p}, Backoff{refused: p}, &Socket{cfg: conn.cfg}} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	log := slog.New(slog.NewTextHandler(&out, nil))
	log.Info("x", "p", p, "cfg", conn.cfg, "conn", conn, "list", []Password{p})
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "p", p, "struct", struct{ P Password }{p})
	enc := labtest.Must2(json.Marshal(map[string]any{"p": p, "of": struct{ P Password }{p}}))(t)
	out.Write(enc)
	for _, bad := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2"), "[104 117 110"} {
		if i := strings.Index(out.String(), bad); i >= 0 {
			t.Errorf("the password is printed: %q", out.String()[max(0, i-80):i+len(bad)])
		}
	}
	if !strings.Contains(string(enc), placeholder) || p.String() != placeholder || p.GoString() != placeholder {
		t.Errorf("no placeholder: %s", enc)
	}
}

func TestLoadPassword(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		write(t, path, text, mode)
		return path
	}
	link := filepath.Join(dir, "link")
	labtest.Must(t, os.Symlink(file("target", "linked\n", 0o600), link))
	fifo := filepath.Join(dir, "fifo")
	labtest.Must(t, unix.Mkfifo(fifo, 0o600))
	// As systemd lays out $CREDENTIALS_DIRECTORY: a mode of 0400, or with an ACL for the
	// service's user, which shows as the group's, 0440.
	for _, tt := range []struct{ path, want string }{
		{file("plain", "hunter2", 0o600), "hunter2"},
		{file("line", "hunter2\n", 0o400), "hunter2"},
		{file("windows", "hunter2\r\n", 0o440), "hunter2"},
		{file("spaces", " two words \n", 0o640), " two words "},
		{file("long", strings.Repeat("x", maxPassword), 0o600), strings.Repeat("x", maxPassword)},
		{link, "linked"},
	} {
		p, err := LoadPassword(tt.path)
		if err != nil || p.reveal() != tt.want {
			t.Errorf("%s: %q, %v", tt.path, p.reveal(), err)
		}
	}
	for _, tt := range []struct{ path, says string }{
		{file("world", "hunter2\n", 0o644), "chmod 600"},
		{file("group", "hunter2\n", 0o660), "its mode is 0660"},
		{file("write", "hunter2\n", 0o602), "chmod 600"},
		{file("empty", "", 0o600), "it is empty"},
		{file("newline", "\n", 0o600), "it is empty"},
		{file("two", "a\nb\n", 0o600), "one line"},
		{file("nul", "a\x00b\n", 0o600), "one line"},
		{file("large", strings.Repeat("x", maxPassword+1), 0o600), "more than 16384 bytes"},
		{fifo, "no regular file"},
		{dir, "no regular file"},
		{filepath.Join(dir, "none"), "no such file"},
	} {
		p, err := LoadPassword(tt.path)
		if !p.IsZero() {
			t.Errorf("%s gave %q", tt.path, p.reveal())
		}
		contains(t, err, "cannot read password file "+tt.path, tt.says)
		if strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("the password is in the error: %v", err)
		}
	}
	if _, err := LoadPassword(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	s := NewSecret(path)
	if _, err := s.Password(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file yet: %v", err)
	}
	check := func(want string) {
		t.Helper()
		if p, err := s.Password(); err != nil || p.reveal() != want {
			t.Errorf("%q, %v, want %q", p.reveal(), err, want)
		}
	}
	// Replaced, and written over so soon that no time of the file need have changed.
	write(t, path, "one\n", 0o600)
	check("one")
	write(t, path, "two\n", 0o600)
	check("two")
	labtest.Must(t, os.WriteFile(path, []byte("six\n"), 0o600))
	check("six")
	labtest.Must(t, os.Chmod(path, 0o644))
	if _, err := s.Password(); err == nil {
		t.Error("a file that everybody may read by now is believed")
	}
	labtest.Must(t, os.Chmod(path, 0o600))
	check("six")
	labtest.Must(t, os.Remove(path))
	if _, err := s.Password(); err == nil {
		t.Error("there is a password without a file")
	}
}

// TestSecretUnchanged has a file that is what was read long ago, so that it is not read.
func TestSecretUnchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	write(t, path, "in the file\n", 0o600)
	var st unix.Stat_t
	labtest.Must(t, unix.Stat(path, &st))
	s := &Secret{path: path, have: NewPassword("in memory"), at: versionOf(&st)}
	if p, err := s.Password(); err != nil || p.reveal() != "in memory" {
		t.Errorf("%q, %v", p.reveal(), err)
	}
	write(t, path, "next\n", 0o600)
	if p, err := s.Password(); err != nil || p.reveal() != "next" {
		t.Errorf("%q, %v", p.reveal(), err)
	}
}

// TestVersion has a file that has been left alone for long enough to be known by its times.
func TestVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "x", 0o600)
	if _, v, err := readFile(path, 10, private); err != nil || v != (version{}) {
		t.Errorf("a new file has version %v, %v", v, err)
	}
	var st unix.Stat_t
	labtest.Must(t, unix.Stat(path, &st))
	v := versionOf(&st)
	if !v.holds(path) {
		t.Error("nothing has changed")
	}
	write(t, path, "x", 0o600)
	if v.holds(path) {
		t.Error("the file was replaced")
	}
	if (version{}).holds(path) {
		t.Error("the zero version holds")
	}
}

func TestBackoff(t *testing.T) {
	var b Backoff
	p, q := NewPassword("a"), NewPassword("b")
	now := time.Unix(1000, 0)
	if b.Wait(p, now) != 0 {
		t.Error("it waits for nothing")
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		b.Refused(p, now)
		want *= time.Second
		if got := b.Wait(p, now); got != want {
			t.Errorf("after %d: %v, want %v", i+1, got, want)
		}
		if b.Wait(q, now) != 0 {
			t.Error("another password waits, too")
		}
		if got := b.Wait(NewPassword("a"), now.Add(want-1)); got != 1 {
			t.Errorf("at the end: %v", got)
		}
		now = now.Add(want)
		if b.Wait(p, now) != 0 {
			t.Error("it does not end")
		}
	}
	b.Refused(q, now)
	if b.Wait(q, now) != time.Second || b.Wait(p, now) != 0 {
		t.Error("another password that is refused does not begin anew")
	}
	b.Accepted()
	if b.Wait(q, now) != 0 {
		t.Error("what is accepted waits")
	}
}
