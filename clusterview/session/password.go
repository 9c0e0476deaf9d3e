package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Password holds a password and never shows it: formatted, logged or marshalled in
// whatever way it is a placeholder. The zero value is none.
type Password struct {
	// A pointer, since fmt does not call methods on what stands in another package's
	// unexported field, and would print a string there.
	text *string
}

// placeholder stands where a password would.
const placeholder = "[redacted]"

// NewPassword makes a password of its text.
func NewPassword(text string) Password {
	if text == "" {
		return Password{}
	}
	return Password{&text}
}

// IsZero reports whether there is no password.
func (p Password) IsZero() bool { return p.text == nil }

// Equal reports whether both are the same.
func (p Password) Equal(other Password) bool { return p.reveal() == other.reveal() }

// reveal is for the one place that sends it.
func (p Password) reveal() string {
	if p.text == nil {
		return ""
	}
	return *p.text
}

// String is a placeholder.
func (Password) String() string { return placeholder }

// GoString is a placeholder.
func (Password) GoString() string { return placeholder }

// Format writes a placeholder for every verb: String would be asked for some only.
func (Password) Format(f fmt.State, _ rune) { io.WriteString(f, placeholder) }

// LogValue is a placeholder.
func (Password) LogValue() slog.Value { return slog.StringValue(placeholder) }

// MarshalText is a placeholder, in JSON and TOML as well.
func (Password) MarshalText() ([]byte, error) { return []byte(placeholder), nil }

// maxPassword is the most bytes of a password file. Tokens of cloud providers, which take
// the place of passwords, have some thousands.
const maxPassword = 16 << 10

// LoadPassword reads a password from a file: its one line, with or without a line feed at
// the end. Links are followed, as Kubernetes and systemd lay them. A file that everybody
// may read, or that others than its owner may write, is refused. Those in systemd's
// $CREDENTIALS_DIRECTORY are neither.
func LoadPassword(path string) (Password, error) {
	p, _, err := loadPassword(path)
	return p, err
}

func loadPassword(path string) (Password, version, error) {
	b, v, err := readFile(path, maxPassword, private)
	if err == nil {
		b = bytes.TrimSuffix(b, []byte("\n"))
		b = bytes.TrimSuffix(b, []byte("\r"))
		switch {
		case len(b) == 0:
			err = errors.New("it is empty")
		case bytes.ContainsAny(b, "\r\n\x00"):
			err = errors.New("it must have one line, the password, and nothing else")
		}
	}
	if err != nil {
		return Password{}, version{}, fmt.Errorf("cannot read password file %s: %w", path, err)
	}
	return NewPassword(string(b)), v, nil
}

// Secret is a password in a file that may change. It is safe for use by several goroutines.
type Secret struct {
	path string

	mu   sync.Mutex
	have Password
	at   version // of have
}

// NewSecret names the file; nothing is read yet.
func NewSecret(path string) *Secret { return &Secret{path: path} }

// Password is what the file says now. It is read again only if it has changed.
func (s *Secret) Password() (Password, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.holds(s.path) {
		return s.have, nil
	}
	p, v, err := loadPassword(s.path)
	if err != nil {
		return Password{}, err
	}
	s.have, s.at = p, v
	return p, nil
}

// version says by what stat(2) tells which content a file had. The zero value holds for no
// file.
type version struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
	mode         uint32
}

func versionOf(st *unix.Stat_t) version {
	return version{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim, mode: st.Mode}
}

// holds says whether the file at path is the same still.
func (v version) holds(path string) bool {
	var st unix.Stat_t
	return v != version{} && unix.Stat(path, &st) == nil && versionOf(&st) == v
}

// access says who may have access to a file that is read.
type access struct {
	forbidden uint32 // permission bits
	remedy    string
}

// private is for secrets, trusted for what everybody may know and nobody else change.
var (
	private = access{0o026, "its mode is %#o, so that others may read or change it: chmod 600 it (in Kubernetes: defaultMode: 0400)"}
	trusted = access{0o022, "its mode is %#o, so that others may change it: chmod go-w it"}
)

// settled is the age from which a file's times tell two contents apart: the kernel stamps
// them with the time of its last tick, of up to 10 ms, network file systems with a second
// or two.
const settled = 3 * time.Second

// readFile reads a regular file of at most limit bytes. Its version is zero, which has it
// read again the next time, if it was changed so shortly ago that a further change might
// not show.
func readFile(path string, limit int64, who access) ([]byte, version, error) {
	// O_NONBLOCK: opening a FIFO must not hang the daemon.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, version{}, errors.Unwrap(err) // the caller names the file
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, version{}, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, version{}, errors.New("it is no regular file")
	case st.Mode&who.forbidden != 0:
		return nil, version{}, fmt.Errorf(who.remedy, st.Mode&0o777)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, version{}, err
	case int64(len(b)) > limit:
		return nil, version{}, fmt.Errorf("it has more than %d bytes", limit)
	}
	v := versionOf(&st)
	if age := time.Since(time.Unix(st.Ctim.Unix())); age < settled {
		v = version{}
	}
	return b, v, nil
}

// clean makes words of a stranger fit for a line of text.
func clean(s string, most int) string {
	s = strings.ToValidUTF8(s[:min(len(s), most)], "?")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
