package supervisor_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
)

// An audit file that cannot be written costs records and nothing else.
func TestTheAuditDiskIsFull(t *testing.T) {
	w := newWorld(t)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 5)
	for _, file := range []string{"/dev/full", "/nonexistent/redisguard/audit.json"} {
		t.Run(file, func(t *testing.T) {
			c := base()
			c.Audit.File = file
			g := startGuard(t, c, false)
			g.ready(5)
			labtest.Must(t, w.server.Vanish())
			lost := time.Now()
			if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
				t.Errorf("got %s after %v", e.Errno, e.Time().Sub(lost))
			}
			labtest.Within(t, 3*time.Second, "all are reaped, and records of it dropped", func() bool {
				s := g.Figures()
				return s.Reaped >= 5 && s.AuditDropped >= 5
			})
			labtest.Must(t, w.server.Return())
			w.allAnswered(busy, 5, time.Now())
			if l := g.log.lines("cannot write the audit file"); len(l) != 1 {
				t.Errorf("%d complaints, want one a minute: %v", len(l), l)
			}
			if l := g.log.lines(string(verdict.ConnectionReaped)); len(l) < 5 {
				t.Errorf("the log has %d reaps, want all", len(l))
			}
		})
	}
}

// records reads a file of JSON lines.
func records(t *testing.T, path string) (list []event.Event) {
	t.Helper()
	b, err := os.ReadFile(path)
	labtest.Must(t, err)
	for line := range bytes.Lines(b) {
		var e event.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Errorf("%s has the line %s: %v", path, line, err)
		}
		list = append(list, e)
	}
	return list
}

func TestTheAuditFile(t *testing.T) {
	w := newWorld(t)
	c := base()
	c.Audit.File = filepath.Join(t.TempDir(), "audit.json")
	c.Audit.MaxSize = 12 << 10 // less than the config allows: half of what comes here
	var reaped int64
	t.Run("guard", func(t *testing.T) {
		g := startGuard(t, c, false)
		busy := w.run(w.client, lab.Writer, w.redis.Addr(), 10)
		g.ready(10)
		labtest.Must(t, w.server.Vanish())
		labtest.Within(t, 4*time.Second, "all are reaped", func() bool { return g.Figures().Reaped >= 10 })
		labtest.Must(t, w.server.Return())
		w.allAnswered(busy, 10, time.Now())
		g.wait(10*time.Second, "endpoint.up", ofType(verdict.EndpointUp))
		reaped = g.Figures().Reaped
		if n := g.Figures().AuditDropped; n > 0 {
			t.Errorf("%d records dropped", n)
		}
	}) // and the guard has ended, and its file is complete
	old, now := records(t, c.Audit.File+".1"), records(t, c.Audit.File)
	for _, path := range []string{c.Audit.File, c.Audit.File + ".1"} {
		st, err := os.Stat(path)
		labtest.Must(t, err)
		if st.Size() > c.Audit.MaxSize || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has %d bytes and mode %v", path, st.Size(), st.Mode())
		}
	}
	if last, first := old[len(old)-1], now[0]; first.Seq != last.Seq+1 {
		t.Errorf("the old file ends with record %d, the new one begins with %d", last.Seq, first.Seq)
	}
	var reaps int64
	seen := map[uint64]bool{}
	for _, e := range append(old, now...) {
		if e.Type != verdict.ConnectionReaped || e.Outcome != string(verdict.ReapDone) {
			continue
		}
		reaps++
		if e.Evidence == nil || e.Evidence.Silence == 0 || e.Connection == nil || e.Connection.Comm != "lab-writer" || e.Text == "" || e.Namespace == "" {
			t.Errorf("a record says only %+v", e)
			continue
		}
		if seen[e.Connection.Cookie] {
			t.Errorf("two records of the reap of %v", e.Connection.Local)
		}
		seen[e.Connection.Cookie] = true
	}
	if reaps != reaped && old[0].Seq == 1 || reaps == 0 {
		t.Errorf("%d records of %d reaps", reaps, reaped)
	}
}

// replayed is what `redisguard replay --json` says.
type replayed struct {
	Steps int `json:"steps"`
	Reaps []struct {
		Local    string           `json:"local"`
		Evidence verdict.Evidence `json:"evidence"`
	} `json:"reaps"`
	Wrong     int  `json:"wrong"`
	Truncated bool `json:"truncated"`
}

func replay(t *testing.T, args ...string) (r replayed) {
	t.Helper()
	out, err := exec.Command(built(t), append([]string{"replay", "--json"}, args...)...).Output()
	if err != nil {
		t.Fatalf("replay %v: %v, %s", args, err, out)
	}
	labtest.Must(t, json.Unmarshal(out, &r))
	return r
}

func TestRecordAndReplay(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "recording")
	d := startDaemon(t, daemonConfig{lines: []string{`record.file = "` + file + `"`}})
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	d.probed(w.redis.Addr().String())
	want := map[string]bool{}
	for _, a := range locals(busy, 3) {
		want[a.String()] = true
	}
	pass(time.Second) // some clean traffic
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	w.failure(busy, lost)
	labtest.Within(t, 3*time.Second, "all three are reaped", func() bool { return busy.Totals().Errors["ECONNABORTED"] >= 3 })
	labtest.Must(t, w.server.Return())
	w.allAnswered(busy, 3, time.Now())
	d.terminate()

	r := replay(t, file)
	got := map[string]bool{}
	for _, x := range r.Reaps {
		if x.Evidence.Rule == verdict.RuleDown {
			got[x.Local] = true
		}
	}
	for local := range want {
		if !got[local] {
			t.Errorf("the replay does not find the reap of %s, but %v", local, got)
		}
	}
	if r.Wrong > 0 || r.Truncated || r.Steps < 10 {
		t.Errorf("the replay says %+v", r)
	}
	if r := replay(t, "--config", configFile(t, `reap.down_after = "5s"`), file); len(r.Reaps) > 0 {
		t.Errorf("a calmer guard would have reaped too: %+v", r.Reaps)
	}

	b, err := os.ReadFile(file)
	labtest.Must(t, err)
	again := startDaemon(t, daemonConfig{lines: []string{`record.file = "` + file + `"`}})
	labtest.Within(t, 10*time.Second, "another recording is begun", func() bool {
		st, err := os.Stat(file)
		return err == nil && st.Size() < int64(len(b))
	})
	again.terminate()
	if kept, err := os.ReadFile(file + ".1"); err != nil || !bytes.Equal(kept, b) {
		t.Errorf("the first recording is not kept (%v)", err)
	}
	cut := file + ".cut"
	labtest.Must(t, os.WriteFile(cut, b[:len(b)-20], 0o600))
	// The record that is cut off may be that of the last reap.
	if r := replay(t, cut); !r.Truncated || len(r.Reaps) < 2 {
		t.Errorf("the replay of a recording that was cut off says %+v", r)
	}
	out, err := exec.Command(built(t), "replay", cut).Output()
	if err != nil || !strings.Contains(string(out), "cut off") {
		t.Errorf("and in words %q, %v", out, err)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	for name, content := range map[string][]byte{
		"nothing":       nil,
		"text":          []byte("this is no recording\nat all\n"),
		"zeros":         make([]byte, 4096),
		"another JSON":  []byte("{}\n{}\n"),
		"broken inside": bytes.Join([][]byte{lines[0], []byte("garbage\n"), lines[1], lines[2]}, nil),
	} {
		bad := filepath.Join(t.TempDir(), "bad")
		labtest.Must(t, os.WriteFile(bad, content, 0o600))
		out, err := exec.Command(built(t), "replay", bad).CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != 1 || !strings.Contains(string(out), "cannot replay "+bad+": ") || strings.Contains(string(out), "goroutine") {
			t.Errorf("%s: %v, %q", name, err, out)
		}
	}
}
