package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/verdict"
)

// Only a place whose probes have succeeded before may call an endpoint dead. A
// daemon that is started anew in the middle of an outage cannot have a success of
// its own, so those of its predecessor are kept in a file: which namespace (by
// cookie, which one boot never uses twice) could reach which endpoint, and when.

// StateDir is where the daemon keeps what a restart should not lose. It is on a
// file system that a reboot empties, and nobody else's: not the directory of the
// socket, which pods may mount.
const StateDir = "/run/redisguard-state"

const (
	memoryFile    = "probes.json"
	memoryVersion = 1
	// memorySave is the pause between two writes of the file.
	memorySave = 5 * time.Second
	// memoryMax bounds the file: a million paths would be some 100 MiB.
	memoryMax = 4 << 20
	// remembered marks the ids of probes that were not made by this process.
	remembered = 1 << 63
)

// memory is what is kept, and where.
type memory struct {
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

// memoryJSON is the file.
type memoryJSON struct {
	Version int          `json:"version"`
	Boot    string       `json:"boot"`
	Alive   []memoryPath `json:"alive"`
}

type memoryPath struct {
	NS       verdict.NS     `json:"ns"`
	Endpoint netip.AddrPort `json:"endpoint"`
	success
}

// openMemory reads what a predecessor has left. Whatever is wrong with the file,
// the guard starts without it.
func openMemory(dir string) (*memory, error) {
	m := &memory{path: filepath.Join(dir, memoryFile), alive: map[verdict.PathKey]success{}}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return m, fmt.Errorf("cannot tell this boot from others: %w", err)
	}
	m.boot = strings.TrimSpace(string(boot))
	st, err := os.Lstat(m.path)
	if os.IsNotExist(err) {
		return m, nil
	}
	switch {
	case err != nil:
	case !st.Mode().IsRegular() || st.Mode().Perm()&0o022 != 0 || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()):
		err = errors.New("it is not a file of ours alone")
	case st.Size() > memoryMax:
		err = fmt.Errorf("%d bytes are too many", st.Size())
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(m.path)
	}
	if err == nil {
		err = m.parse(b, monotonic())
	}
	if err != nil {
		return m, fmt.Errorf("cannot use %s: %w", m.path, err)
	}
	return m, nil
}

func (m *memory) parse(b []byte, now time.Duration) error {
	var f memoryJSON
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.Version != memoryVersion {
		return fmt.Errorf("it has version %d, this redisguard knows %d", f.Version, memoryVersion)
	}
	if f.Boot != m.boot {
		return nil // of another boot: nothing in it holds
	}
	for _, p := range f.Alive {
		if p.Endpoint.IsValid() && p.At > 0 && p.At <= now && p.Took >= 0 && p.Took < time.Minute {
			m.alive[verdict.PathKey{NS: p.NS, Endpoint: p.Endpoint}] = p.success
		}
	}
	return nil
}

// note remembers a probe that was answered.
func (m *memory) note(p *verdict.Probe) {
	if p.Outcome == verdict.Alive {
		m.alive[p.Path] = success{At: p.Started, Took: p.Ended - p.Started}
		m.changed = true
	}
}

// recall gives a path's last success as the probe that it was, if it is recent.
func (m *memory) recall(path verdict.PathKey, now, within time.Duration) (verdict.Probe, bool) {
	s, ok := m.alive[path]
	if !ok || now-s.At > within {
		return verdict.Probe{}, false
	}
	return verdict.Probe{ID: remembered | uint64(s.At), Path: path, Started: s.At, Ended: s.At + s.Took, Outcome: verdict.Alive, Detail: "remembered"}, true
}

// save writes the file if there is something new, now and then. A crash leaves
// the old file or the new one.
func (m *memory) save(now, within time.Duration) error {
	if !m.changed || now-m.saved < memorySave || m.boot == "" {
		return nil
	}
	m.changed, m.saved = false, now
	f := memoryJSON{Version: memoryVersion, Boot: m.boot}
	for path, s := range m.alive {
		if now-s.At > within {
			delete(m.alive, path)
			continue
		}
		f.Alive = append(f.Alive, memoryPath{NS: path.NS, Endpoint: path.Endpoint, success: s})
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return err
	}
	return sys.ReplaceFile(m.path, b, false)
}
