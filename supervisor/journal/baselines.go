package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/internal/statefile"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/verdict"
)

// Only a place whose probes have succeeded before may call an endpoint dead. A
// daemon that is started anew in the middle of an outage cannot have a success of
// its own, so those of its predecessor are kept in a file: which namespace (by
// cookie, which one boot never uses twice) could reach which endpoint, and when.

const (
	baselinesVersion = 1
	// saveEvery is the pause between two writes of the file.
	saveEvery = 5 * time.Second
	// maxBaselines bounds the file: a million paths would be some 100 MiB.
	maxBaselines = 4 << 20
	// remembered marks the ids of probes that a predecessor has made.
	remembered = 1 << 63
)

// Baselines are the probes that have succeeded, which outlive the daemon. They are for
// one goroutine at a time.
type Baselines struct {
	path    string
	boot    string
	alive   map[verdict.PathKey]success
	changed bool
	saved   time.Duration
}

// success is a probe that was answered, by CLOCK_MONOTONIC of this boot.
type success struct {
	At   time.Duration `json:"at"`
	Took time.Duration `json:"took"`
}

// fileJSON is the file.
type fileJSON struct {
	Version int        `json:"version"`
	Boot    string     `json:"boot"`
	Alive   []pathJSON `json:"alive"`
}

type pathJSON struct {
	verdict.PathKey
	success
}

// OpenBaselines reads what a predecessor has left. Whatever is wrong with the file,
// the guard starts without it.
func OpenBaselines(dir string) (*Baselines, error) {
	m := &Baselines{path: paths.Baselines(dir), alive: map[verdict.PathKey]success{}}
	var err error
	if m.boot, err = statefile.BootID(); err != nil {
		return m, err
	}
	b, err := statefile.Read(m.path, maxBaselines)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = m.parse(b, sys.Monotonic())
	}
	if err != nil {
		return m, fmt.Errorf("cannot use %s: %w", m.path, err)
	}
	return m, nil
}

func (m *Baselines) parse(b []byte, now time.Duration) error {
	var f fileJSON
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.Version != baselinesVersion {
		return fmt.Errorf("it has version %d, this redisguard knows %d", f.Version, baselinesVersion)
	}
	if f.Boot != m.boot {
		return nil // of another boot: nothing in it holds
	}
	for _, p := range f.Alive {
		if p.Endpoint.IsValid() && p.At > 0 && p.At <= now && p.Took >= 0 && p.Took < time.Minute {
			m.alive[p.PathKey] = p.success
		}
	}
	return nil
}

// Note remembers a probe that was answered.
func (m *Baselines) Note(p *verdict.Probe) {
	if p.Outcome == verdict.Alive {
		m.alive[p.Path] = success{At: p.Started, Took: p.Ended - p.Started}
		m.changed = true
	}
}

// Recall gives a path's last success as the probe that it was, if it is recent.
func (m *Baselines) Recall(path verdict.PathKey, now, within time.Duration) (verdict.Probe, bool) {
	s, ok := m.alive[path]
	if !ok || now-s.At > within {
		return verdict.Probe{}, false
	}
	return verdict.Probe{ID: remembered | uint64(s.At), Path: path, Started: s.At, Ended: s.At + s.Took, Outcome: verdict.Alive, Detail: "remembered"}, true
}

// Save writes the file if there is something new, now and then. A crash leaves
// the old file or the new one.
func (m *Baselines) Save(now, within time.Duration) error {
	if !m.changed || now-m.saved < saveEvery || m.boot == "" {
		return nil
	}
	m.changed, m.saved = false, now
	f := fileJSON{Version: baselinesVersion, Boot: m.boot}
	for path, s := range m.alive {
		if now-s.At > within {
			delete(m.alive, path)
			continue
		}
		f.Alive = append(f.Alive, pathJSON{PathKey: path, success: s})
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return statefile.Replace(m.path, b, false)
}
