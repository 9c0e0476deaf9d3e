package sysctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/redisguard/redisguard/internal/statefile"
	"github.com/redisguard/redisguard/netns"
)

const (
	stateVersion = 1
	// maxState bounds the file: a namespace takes some 800 bytes.
	maxState = 32 << 20
	// maxOurs bounds what was written to one key and may still be there.
	maxOurs = 16
)

// ErrRefused says that the state file is not one that can be worked with. It is
// left as it is: what it knows of the originals may be all that is known.
var ErrRefused = errors.New("the state file is refused and left as it is")

// Record is what is remembered of a namespace that was tuned.
type Record struct {
	// ID names it; another namespace that was given the same inode later has
	// another cookie.
	ID   netns.ID
	Name string // as people called it
	At   time.Time
	// Applying says that a write has begun and was not seen to its end.
	Applying bool
	Values   []Kept
}

// Kept is what is remembered of one key.
type Kept struct {
	Key      Key
	Original int // before our first write
	// Ours are the values that we have written, or were about to, the last one
	// being the one that is wanted.
	Ours      []int
	Conflicts int // how often somebody else's change was undone
}

func (k *Kept) last() int { return k.Ours[len(k.Ours)-1] }

// of is what is remembered of a key, nil if nothing.
func (r *Record) of(k Key) *Kept {
	for i := range r.Values {
		if r.Values[i].Key == k {
			return &r.Values[i]
		}
	}
	return nil
}

// Original is the value that a key had before we came.
func (r *Record) Original(k Key) (int, bool) {
	if v := r.of(k); v != nil {
		return v.Original, true
	}
	return 0, false
}

func (r *Record) clone() Record {
	c := *r
	c.Values = slices.Clone(r.Values)
	for i := range c.Values {
		c.Values[i].Ours = slices.Clone(c.Values[i].Ours)
	}
	return c
}

// State is everything that is remembered.
type State struct {
	Records []Record
}

// Of is the record of a namespace, nil if it was never tuned.
func (s *State) Of(id netns.ID) *Record {
	for i := range s.Records {
		if s.Records[i].ID == id {
			return &s.Records[i]
		}
	}
	return nil
}

// set replaces the record of a namespace; one without values is dropped.
func (s *State) set(r Record) {
	s.Records = slices.DeleteFunc(s.Records, func(old Record) bool { return old.ID == r.ID })
	if len(r.Values) > 0 {
		s.Records = append(s.Records, r)
	}
}

// Store is the state file. Its zero value is of no use: Path must be set.
type Store struct {
	// Path of the file. Its directory is made if it is missing.
	Path string
	// Boot replaces the id of the running boot, for tests.
	Boot string
}

// The file's form. Names stay: a newer program reads what an older one wrote.
type fileJSON struct {
	Version    int          `json:"version"`
	Boot       string       `json:"boot"`
	Namespaces []recordJSON `json:"namespaces"`
}

type recordJSON struct {
	Dev      uint64      `json:"dev"`
	Inode    uint64      `json:"inode"`
	Cookie   uint64      `json:"cookie"`
	Name     string      `json:"name,omitempty"`
	At       time.Time   `json:"at"`
	Applying bool        `json:"applying,omitempty"`
	Values   []valueJSON `json:"values"`
}

type valueJSON struct {
	Key       string `json:"key"`
	Original  int    `json:"original"`
	Ours      []int  `json:"ours"`
	Conflicts int    `json:"conflicts,omitempty"`
}

func (s Store) boot() (string, error) {
	if s.Boot != "" {
		return s.Boot, nil
	}
	return statefile.BootID()
}

// Load reads the file. Without one, and with one of another boot, whose
// namespaces are all gone, the state is empty. Anything else that is wrong with
// it is ErrRefused.
func (s Store) Load() (*State, error) {
	boot, err := s.boot()
	if err != nil {
		return nil, err
	}
	refuse := func(err error) (*State, error) {
		return nil, fmt.Errorf("cannot use %s: %w: %w", s.Path, ErrRefused, err)
	}
	b, err := statefile.Read(s.Path, maxState)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &State{}, nil
	case errors.Is(err, statefile.ErrUntrusted):
		return refuse(err)
	case err != nil:
		return nil, fmt.Errorf("cannot read the state of tuned namespaces: %w", err)
	}
	state, of, err := parseState(b)
	if err != nil {
		return refuse(err)
	}
	if of != boot {
		return &State{}, nil
	}
	return state, nil
}

// parseState reads a file, and tells of which boot it is.
func parseState(b []byte) (*State, string, error) {
	// The version first: a newer file may have fields that we do not know.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, "", fmt.Errorf("it is damaged: %w", err)
	}
	if head.Version != stateVersion {
		return nil, "", fmt.Errorf("it has version %d, this redisguard knows %d", head.Version, stateVersion)
	}
	var f fileJSON
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, "", fmt.Errorf("it is damaged: %w", err)
	}
	if f.Boot == "" {
		return nil, "", errors.New("it is damaged: it does not say of which boot it is")
	}
	state := &State{}
	for _, r := range f.Namespaces {
		rec := Record{ID: netns.ID{Dev: r.Dev, Inode: r.Inode, Cookie: r.Cookie}, Name: r.Name, At: r.At, Applying: r.Applying}
		if r.Inode == 0 || len(r.Values) == 0 || state.Of(rec.ID) != nil {
			return nil, "", fmt.Errorf("it is damaged: namespace %s", rec.ID)
		}
		for _, v := range r.Values {
			k, err := ParseKey(v.Key)
			if err != nil {
				return nil, "", fmt.Errorf("it is damaged: %w", err)
			}
			bad := func(n int) bool { return n < 0 || n > math.MaxInt32 }
			if bad(v.Original) || len(v.Ours) == 0 || len(v.Ours) > maxOurs || slices.ContainsFunc(v.Ours, bad) || bad(v.Conflicts) || rec.of(k) != nil {
				return nil, "", fmt.Errorf("it is damaged: %s of namespace %s", k, rec.ID)
			}
			rec.Values = append(rec.Values, Kept{Key: k, Original: v.Original, Ours: v.Ours, Conflicts: v.Conflicts})
		}
		state.Records = append(state.Records, rec)
	}
	return state, f.Boot, nil
}

// save writes the file so that a crash at any moment leaves the old one or the
// new one, and nothing that is written after it is on the disk before it.
func (s Store) save(state *State) error {
	boot, err := s.boot()
	if err != nil {
		return err
	}
	f := fileJSON{Version: stateVersion, Boot: boot, Namespaces: []recordJSON{}}
	for _, r := range state.Records {
		j := recordJSON{Dev: r.ID.Dev, Inode: r.ID.Inode, Cookie: r.ID.Cookie, Name: r.Name, At: r.At.UTC(), Applying: r.Applying}
		for _, v := range r.Values {
			j.Values = append(j.Values, valueJSON{Key: v.Key.String(), Original: v.Original, Ours: v.Ours, Conflicts: v.Conflicts})
		}
		f.Namespaces = append(f.Namespaces, j)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := statefile.Replace(s.Path, b, true); err != nil {
		return fmt.Errorf("cannot write down what the tuned namespaces had before: %w", err)
	}
	return nil
}

// locked runs fn on the state while no other process can change it. The kernel
// takes the lock from a process that dies.
func (s Store) locked(fn func(*State) error) error {
	lock, err := statefile.Lock(s.Path+".lock", lockWithin)
	if err != nil {
		return err
	}
	defer lock.Close()
	state, err := s.Load()
	if err != nil {
		return err
	}
	return fn(state)
}

// ErrClaimed says that another process has the lock, or the right to tune.
var ErrClaimed = statefile.ErrLocked

// Claim takes the right to tune on this node until the returned closer is closed. It is
// ErrClaimed while another process has it.
func (s Store) Claim() (io.Closer, error) { return statefile.Lock(s.Path+".owner", 0) }

// lockWithin is how long to wait for the state file. Others hold it for
// milliseconds; one that was stopped in the middle must not stop the daemon.
const lockWithin = 2 * time.Second

// Forget drops the records of namespaces that gone says are no more.
func (s Store) Forget(gone func(*Record) bool) (n int, err error) {
	err = s.locked(func(state *State) error {
		before := len(state.Records)
		state.Records = slices.DeleteFunc(state.Records, func(r Record) bool { return gone(&r) })
		if n = before - len(state.Records); n == 0 {
			return nil
		}
		return s.save(state)
	})
	return n, err
}
