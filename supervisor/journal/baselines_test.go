package journal

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/verdict"
)

func TestBaselinesOutliveTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	m, err := OpenBaselines(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := sys.Monotonic()
	path := verdict.PathKey{NS: 7, Endpoint: netip.MustParseAddrPort("10.0.0.1:6379")}
	m.Note(&verdict.Probe{Path: path, Started: now - time.Second, Ended: now - time.Second + time.Millisecond, Outcome: verdict.Alive})
	bound := path
	bound.Interface = 3
	m.Note(&verdict.Probe{Path: bound, Started: now - 2*time.Second, Ended: now, Outcome: verdict.Alive})
	m.Note(&verdict.Probe{Path: verdict.PathKey{NS: 8}, Started: now, Outcome: verdict.Dead})
	if err := m.Save(now+saveEvery, time.Minute); err != nil {
		t.Fatal(err)
	}
	again, err := OpenBaselines(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := again.Recall(path, now, time.Minute)
	if !ok || p.Outcome != verdict.Alive || p.Started != now-time.Second || p.Ended-p.Started != time.Millisecond || p.ID&remembered == 0 {
		t.Errorf("recalled %+v, %v", p, ok)
	}
	if _, ok := again.Recall(path, now+time.Hour, time.Minute); ok {
		t.Error("recalled what is too old")
	}
	if p, ok := again.Recall(bound, now, time.Minute); !ok || p.Path != bound || p.Started != now-2*time.Second {
		t.Errorf("through an interface: recalled %+v, %v", p, ok)
	}
	if len(again.alive) != 2 {
		t.Errorf("%d successes, want two", len(again.alive))
	}
}

func TestBaselinesRefuseWhatItCannotTrust(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"garbage":       "\x00\x01",
		"other version": `{"version":2}`,
		"too large":     strings.Repeat(" ", maxBaselines+1),
	} {
		if err := os.WriteFile(paths.Baselines(dir), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := OpenBaselines(dir)
		if err == nil || m == nil || len(m.alive) != 0 {
			t.Errorf("%s: %v, %+v", name, err, m)
		}
	}
	// Of another boot: no error, and nothing in it holds.
	text := `{"version":1,"boot":"other","alive":[{"ns":7,"endpoint":"10.0.0.1:6379","at":1,"took":1}]}`
	if err := os.WriteFile(paths.Baselines(dir), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := OpenBaselines(dir); err != nil || len(m.alive) != 0 {
		t.Errorf("%v, %+v", err, m)
	}
}

func FuzzBaselines(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","alive":[{"ns":7,"endpoint":"10.0.0.1:6379","at":1,"took":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &Baselines{boot: "b", alive: map[verdict.PathKey]success{}}
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
