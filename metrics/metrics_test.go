package metrics

import (
	"context"
	"errors"
	"flag"
	"io"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/redisguard/redisguard/api"
	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

var update = flag.Bool("update", false, "write testdata/scrape.txt anew")

// guard has the same figures every time.
type guard struct {
	f    figures.Figures
	node view.Node
	err  error
}

func (g guard) View(context.Context) (*view.Node, error) {
	if g.err != nil {
		return nil, g.err
	}
	return &g.node, nil
}

func (g guard) Figures() figures.Figures { return g.f }

func newGuard() guard {
	f := figures.None()
	f.Tracked, f.Namespaces, f.Dumps, f.DumpErrors, f.Gets, f.Steps, f.Late = 12, 3, 100, 1, 5000, 600, 2
	f.ProbesMade, f.TasksSkipped, f.InboxWaits, f.Reaped, f.Spared, f.Discovery = 40, 4, 8, 7, 1, 1500*time.Millisecond
	f.Attributions, f.Unexplained, f.Questions, f.AuditDropped, f.ConnectEvents, f.ConnectEventsLost = 20, 3, 2, 5, 30, 6
	f.Reaps[figures.ReapKind{Rule: verdict.RuleDown, Outcome: verdict.ReapDone}] = 7
	f.Withheld[verdict.RuleFlow] = 2
	f.Probes[verdict.CouldNotTell] = 3
	f.Succeeded[figures.Watcher] = time.UnixMilli(1_700_000_000_250)
	d := f.Detection[verdict.RuleDown]
	d.Count, d.Sum, d.Buckets[5], d.Buckets[6] = 8, 100*time.Second, 4, 3
	f.Detection[verdict.RuleDown] = d
	f.Recovery.Count, f.Recovery.Sum, f.Recovery.Buckets[0] = 1, 5*time.Millisecond, 1
	g := guard{f: f}
	for i, k := range []struct {
		state  tcpstate.State
		exempt policy.Exemption
	}{{state: tcpstate.Established}, {state: tcpstate.SynSent, exempt: policy.ExemptRedis}, {state: tcpstate.CloseWait}, {state: tcpstate.Established, exempt: policy.ExemptMode}} {
		c := view.Connection{Key: verdict.ConnKey{NS: verdict.NS(i)}, Exempt: string(k.exempt)}
		c.TCP.Remote, c.TCP.State = endpoint(i/3), k.state
		g.node.Connections = append(g.node.Connections, c)
	}
	c := view.Connection{}
	c.TCP.Remote, c.TCP.State = endpoint(7), tcpstate.Established
	g.node.Connections = append(g.node.Connections, c)
	c.Target, c.TCP.Remote = "orders", endpoint(8)
	g.node.Connections = append(g.node.Connections, c)
	g.node.Targets = []view.Target{
		{Conf: &config.TargetSection{Name: "orders"}, Topology: &clusterview.Topology{
			Known: true, State: clusterview.Up, Problems: []clusterview.Problem{{Kind: clusterview.ProblemTilt}},
			Nodes: []clusterview.Node{
				{Role: reply.RolePrimary, State: clusterview.StateOK}, {Role: reply.RoleReplica, State: clusterview.StateFailed}, {},
			},
		}},
		{Conf: &config.TargetSection{Name: "sessions"}, Topology: &clusterview.Topology{Known: true, State: clusterview.Down}, Problem: "10.0.0.1:6379: it wants a password"},
		// Not known: it is neither up nor down. And it has the name of what belongs to no target.
		{Conf: &config.TargetSection{Name: watchedPort}, Topology: &clusterview.Topology{}},
	}
	return g
}

// endpoint is one of those of these tests.
func endpoint(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 6379)
}

func testConfig() Config {
	hub := event.NewHub(16)
	hub.Publish(event.Event{Type: event.ModeChanged, Mode: &event.Mode{Effective: "observe"}})
	for i, t := range []verdict.EventType{verdict.EndpointDown, verdict.EndpointSuspect, verdict.EndpointSuspect, verdict.EndpointSuspect} {
		// The endpoint is down on one path, and suspect on others; another is suspect.
		hub.Publish(event.Event{Type: t, Time: time.Now(), NS: verdict.NS(i), Endpoint: endpoint(i / 3)})
	}
	counters := func() api.Counters {
		return api.Counters{OpenConnections: 3, OpenStreams: 2, Requests: 50, Lines: 9, Bytes: 999, Left: 1, DroppedSlow: 4, RefusedRights: 5}
	}
	return Config{Guard: newGuard(), Events: hub, API: counters, Version: "v1.2.3", Revision: "abc"}
}

// scrape is what Prometheus would read.
func scrape(t *testing.T, c Config) string {
	t.Helper()
	rec := httptest.NewRecorder()
	New(c).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	body, err := io.ReadAll(rec.Body)
	if err != nil || rec.Code != 200 {
		t.Fatalf("status %d, %v: %s", rec.Code, err, body)
	}
	return string(body)
}

// TestScrape holds a whole scrape against a file: names and labels are a contract
// with dashboards and alerts. After an intended change: go test ./metrics -update
func TestScrape(t *testing.T) {
	var ours strings.Builder
	for line := range strings.Lines(scrape(t, testConfig())) {
		if strings.Contains(line, "redisguard_") {
			ours.WriteString(regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(line, `goversion="-"`))
		}
	}
	const file = "testdata/scrape.txt"
	if *update {
		if err := os.WriteFile(file, []byte(ours.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(ours.String(), "\n")); diff != "" {
		t.Errorf("the scrape is not that of %s (-want +got):\n%s", file, diff)
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(Registry(testConfig()))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestClosedLabels: a daemon that has done nothing yet shows the same series as
// one that has, and none of their labels could be an address, an id or a name.
func TestClosedLabels(t *testing.T) {
	idle := testConfig()
	idle.Guard, idle.Events = guard{f: figures.None(), node: view.Node{Targets: newGuard().node.Targets}}, event.NewHub(1)
	before, after := series(t, idle), series(t, testConfig())
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("series come and go (-idle +busy):\n%s", diff)
	}
	word := regexp.MustCompile(`^[a-z][a-z_.-]*$|^$`)
	perName := map[string]int{}
	for s := range after {
		name, labels, _ := strings.Cut(s, "{")
		perName[name]++
		if name == "redisguard_build_info" {
			continue
		}
		for _, m := range regexp.MustCompile(`="([^"]*)"`).FindAllStringSubmatch(labels, -1) {
			if !word.MatchString(m[1]) {
				t.Errorf("%s: %q is no word from a closed set", s, m[1])
			}
		}
	}
	for name, n := range perName {
		if n > 50 {
			t.Errorf("%s has %d series", name, n)
		}
	}
}

// TestWatcherDoesNotAnswer: what only the watcher knows is left out, and the rest
// is there.
func TestWatcherDoesNotAnswer(t *testing.T) {
	c := testConfig()
	g := newGuard()
	g.err = errors.New("too late")
	g.node = view.Node{}
	c.Guard = g
	got := scrape(t, c)
	if strings.Contains(got, "redisguard_connections{") || strings.Contains(got, "redisguard_target_") || !strings.Contains(got, "redisguard_reaps_total{") {
		t.Errorf("got:\n%s", got)
	}
}

// series are the guard's own, by name and labels.
func series(t *testing.T, c Config) map[string]bool {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(newCollector(c))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	for _, f := range families {
		for _, m := range f.Metric {
			var b strings.Builder
			b.WriteString(f.GetName() + "{")
			for _, l := range m.Label {
				b.WriteString(l.GetName() + `="` + l.GetValue() + `"`)
			}
			set[b.String()] = true
		}
	}
	return set
}
