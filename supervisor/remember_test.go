package supervisor

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

func TestMemoryOutlivesTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	m, err := openMemory(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := monotonic()
	path := verdict.PathKey{NS: 7, Endpoint: netip.MustParseAddrPort("10.0.0.1:6379")}
	m.note(&verdict.Probe{Path: path, Started: now - time.Second, Ended: now - time.Second + time.Millisecond, Outcome: verdict.Alive})
	m.note(&verdict.Probe{Path: verdict.PathKey{NS: 8}, Started: now, Outcome: verdict.Dead})
	if err := m.save(now+memorySave, time.Minute); err != nil {
		t.Fatal(err)
	}
	again, err := openMemory(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := again.recall(path, now, time.Minute)
	if !ok || p.Outcome != verdict.Alive || p.Started != now-time.Second || p.Ended-p.Started != time.Millisecond || p.ID&remembered == 0 {
		t.Errorf("recalled %+v, %v", p, ok)
	}
	if _, ok := again.recall(path, now+time.Hour, time.Minute); ok {
		t.Error("recalled what is too old")
	}
	if len(again.alive) != 1 {
		t.Errorf("%d successes, want one", len(again.alive))
	}
}

func TestMemoryRefusesWhatItCannotTrust(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"garbage":       "\x00\x01",
		"other version": `{"version":2}`,
		"too large":     strings.Repeat(" ", memoryMax+1),
	} {
		if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openMemory(dir)
		if err == nil || m == nil || len(m.alive) != 0 {
			t.Errorf("%s: %v, %+v", name, err, m)
		}
	}
	// Of another boot: no error, and nothing in it holds.
	text := `{"version":1,"boot":"other","alive":[{"ns":7,"endpoint":"10.0.0.1:6379","at":1,"took":1}]}`
	if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := openMemory(dir); err != nil || len(m.alive) != 0 {
		t.Errorf("%v, %+v", err, m)
	}
}

func FuzzMemory(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","alive":[{"ns":7,"endpoint":"10.0.0.1:6379","at":1,"took":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &memory{boot: "b", alive: map[verdict.PathKey]success{}}
		if m.parse(b, time.Hour) != nil {
			return
		}
		for p, s := range m.alive {
			if !p.Endpoint.IsValid() || s.At > time.Hour {
				t.Errorf("took in %v %+v", p, s)
			}
		}
	})
}
