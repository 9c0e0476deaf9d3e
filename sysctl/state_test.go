package sysctl

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/statefile"
	"github.com/redisguard/redisguard/netns"
)

func someState() *State {
	return &State{Records: []Record{{
		ID: netns.ID{Dev: 4, Inode: 4026532000, Cookie: 77}, Name: "cni-1", At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Applying: true,
		Values: []Kept{{Key: Retries2, Original: 15, Ours: []int{6, 5}, Conflicts: 1}, {Key: KeepaliveTime, Original: 7200, Ours: []int{15}}},
	}}}
}

func TestStateOutlivesTheProcess(t *testing.T) {
	s := Store{Path: filepath.Join(t.TempDir(), "tuned.json"), Boot: "b"}
	if st, err := s.Load(); err != nil || len(st.Records) != 0 {
		t.Fatalf("without a file: %+v, %v", st, err)
	}
	want := someState()
	if err := s.save(want); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, err = (Store{Path: s.Path, Boot: "another"}).Load(); err != nil || len(got.Records) != 0 {
		t.Errorf("of another boot: %+v, %v", got, err)
	}
}

func TestAStateFileThatIsNotOursIsLeftAsItIs(t *testing.T) {
	dir := t.TempDir()
	good := Store{Path: filepath.Join(dir, "good"), Boot: "b"}
	if err := good.save(someState()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(good.Path)
	if err != nil {
		t.Fatal(err)
	}
	ok := string(b)
	path := filepath.Join(dir, "tuned.json")
	write := func(text string) func() error { return func() error { return os.WriteFile(path, []byte(text), 0o600) } }
	for name, tt := range map[string]struct {
		make func() error
		says string
	}{
		"empty":        {write(""), "damaged"},
		"cut short":    {write(ok[:len(ok)/2]), "damaged"},
		"newer":        {write(strings.Replace(ok, `"version":1`, `"version":2,"more":{}`, 1)), "version 2"},
		"no version":   {write(`{"boot":"b"}`), "version 0"},
		"other format": {write(`[1,2]`), "damaged"},
		"unknown key":  {write(strings.Replace(ok, "tcp_retries2", "tcp_mem", 1)), "tcp_mem"},
		"negative":     {write(strings.Replace(ok, `"original":15`, `"original":-15`, 1)), "tcp_retries2"},
		"twice":        {write(strings.Replace(ok, "tcp_keepalive_time", "tcp_retries2", 1)), "tcp_retries2"},
		"a link":       {func() error { return os.Symlink(good.Path, path) }, "symbolic link"},
		"others write": {func() error { return errors.Join(write(ok)(), os.Chmod(path, 0o666)) }, "ours alone"},
		"other's":      {func() error { return errors.Join(write(ok)(), os.Chown(path, 1234, 0)) }, "ours alone"},
		"a directory":  {func() error { return os.Mkdir(path, 0o700) }, "ours alone"},
		"a pipe":       {func() error { return unix.Mkfifo(path, 0o600) }, "ours alone"},
	} {
		if err := tt.make(); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(path)
		s := Store{Path: path, Boot: "b"}
		_, err := s.Load()
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		onThread(t, func(th *netns.Thread) error {
			if _, err := s.Apply(th, FS{}, nil); !errors.Is(err, ErrRefused) {
				t.Errorf("%s: apply says %v", name, err)
			}
			if _, err := s.Restore(th, FS{}, nil, true, nil, false); !errors.Is(err, ErrRefused) {
				t.Errorf("%s: restore says %v", name, err)
			}
			return nil
		})
		after, err := os.Lstat(path)
		if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
			t.Errorf("%s: the file was touched", name)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneTunesAtATime(t *testing.T) {
	s := Store{Path: filepath.Join(t.TempDir(), "state", "tuned.json")}
	first, err := s.Claim()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(); !errors.Is(err, ErrClaimed) {
		t.Errorf("a second one: %v", err)
	}
	first.Close()
	again, err := s.Claim()
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	// One that was stopped while it had the state file keeps nobody for ever.
	lock, err := statefile.Lock(s.Path+".lock", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := s.Forget(func(*Record) bool { return true }); !errors.Is(err, ErrClaimed) {
		t.Errorf("while another has the state file: %v", err)
	}
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","namespaces":[{"dev":4,"inode":5,"cookie":6,"at":"2026-01-02T03:04:05Z","values":[{"key":"net.ipv4.tcp_retries2","original":15,"ours":[5]}]}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"boot":"b","namespaces":[{"inode":5,"values":[{"key":"net.ipv4.tcp_retries2","ours":[]}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, boot, err := parseState(b)
		if err != nil {
			return
		}
		// What is read can be worked with, and written so that it is read as the same.
		for i := range st.Records {
			Plan(Values{Retries2: 15}, &st.Records[i], profile, Policy{Repair: true})
		}
		s := Store{Path: filepath.Join(t.TempDir(), "f"), Boot: boot}
		if err := s.save(st); err != nil {
			return // a time beyond what JSON can say
		}
		again, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		if len(again.Records) != len(st.Records) {
			t.Fatalf("%d records became %d", len(st.Records), len(again.Records))
		}
	})
}

func FuzzParseValue(f *testing.F) {
	f.Add([]byte("15\n"))
	f.Add([]byte("-1"))
	f.Add([]byte("99999999999999999999\t1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := parseValue(b); err == nil && int(int32(n)) != n {
			t.Errorf("%q is %d", b, n)
		}
	})
}
