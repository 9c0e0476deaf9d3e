package tui

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
)

var update = flag.Bool("update", false, "write testdata anew")

// noon is when all of it happens.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.Local)

func at(s float64) time.Time { return noon.Add(time.Duration(s * float64(time.Second))) }

// source is a daemon with an endpoint that has died.
type source struct {
	err    error
	asked  []client.ConnectionQuery
	events []v1.Event
	// targets are those of the config; there are none in most tests.
	targets []v1.Target
}

func (s *source) Targets(context.Context) ([]v1.Target, error) { return s.targets, nil }

func (s *source) Status(context.Context) (v1.Status, error) {
	return v1.Status{
		Scope: v1.ScopeHost, Mode: &v1.ModeStatus{Effective: v1.ModeEnforce},
		Counts: &v1.Counts{Connections: 120, Stalled: 3, HalfDead: 1, Namespaces: 4, Endpoints: 3, EndpointsDown: 1, EndpointsSuspect: 1, Findings: 5},
	}, s.err
}

func (s *source) Endpoints(context.Context) ([]v1.Endpoint, error) {
	since := at(-9)
	return []v1.Endpoint{
		{Endpoint: "10.0.0.2:6379", Health: v1.EndpointUp, Connections: 80, Paths: []v1.Path{{Health: v1.EndpointUp}}},
		{Endpoint: "10.0.0.1:6379", Health: v1.EndpointDown, Since: &since, Connections: 30, Waiting: 9, Stalled: 3, Paths: []v1.Path{{Finding: "f7"}}},
		{Endpoint: "[fd00::3]:6379", Health: v1.EndpointSuspect, Since: &since, Connections: 10, Waiting: 1},
	}, nil
}

var pod = v1.Process{PID: 4711, Command: "java", PodUID: "u-1", PodName: "cart-0", PodNamespace: "shop"}

func (s *source) Connections(_ context.Context, q client.ConnectionQuery) ([]v1.Connection, error) {
	s.asked = append(s.asked, q)
	list := []v1.Connection{
		{ID: "12-1", Endpoint: "10.0.0.1:6379", NamespaceID: "12", Namespace: "cni-1", State: v1.StateEstablished, Health: v1.HealthStalled, StalledMs: 1200, LastAckMs: 1300, LastReceivedMs: 1400, Process: &pod},
		{ID: "12-2", Endpoint: "10.0.0.1:6379", NamespaceID: "12", Namespace: "cni-1", State: v1.StateEstablished, Health: v1.HealthHalfDead, StalledMs: 2500, LastAckMs: 2600, LastReceivedMs: 2600, Process: &pod},
		{ID: "1-3", Endpoint: "10.0.0.1:6379", NamespaceID: "1", Namespace: "host", State: v1.StateConnecting, Health: v1.HealthStalled, StalledMs: 4000, Process: &v1.Process{PID: 9, Command: `\x1b[2J`, Unit: "web.service"}},
	}
	if q.Pod != "" {
		list = list[:2]
	}
	return list, nil
}

func (s *source) Explain(_ context.Context, id string) (v1.Explanation, error) {
	if id != "12-2" {
		return v1.Explanation{}, &client.Error{Status: 404, Kind: v1.KindNotFound, Message: "there is no \x1bsuch thing"}
	}
	return v1.Explanation{ID: id, Kind: "connection", Summary: "half-dead", Story: []v1.Step{
		{Part: v1.PartSeen, Time: at(-3), Type: v1.EventConnectionStalled, Text: "data is unacknowledged and retransmitting"},
		{Part: v1.PartJudged, Time: at(-1), Type: v1.EventEndpointDown, Text: "the endpoint is down"},
	}}, nil
}

func (s *source) Events(context.Context, string, ...v1.EventType) iter.Seq2[v1.Event, error] {
	return func(yield func(v1.Event, error) bool) {
		for _, e := range s.events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func someEvents() []v1.Event {
	k := &v1.EventConnection{ID: "12-9", Endpoint: "10.0.0.1:6379", Process: &pod}
	list := []v1.Event{
		{Type: v1.Snapshot, Time: at(-20), Finding: &v1.Finding{ID: "f3", Code: v1.CodeEndpointSuspect, Endpoint: "[fd00::3]:6379", Namespace: "cni-2", Text: "a probe is unanswered"}},
		{Type: v1.Synced, Time: at(-20)},
		{Type: v1.EventEndpointDown, Cursor: "e-7", Time: at(-9), Endpoint: "10.0.0.1:6379", Namespace: "cni-1", NamespaceID: "12", Text: "the endpoint is down: nothing heard for 2s, 9 transmissions unanswered, of 3 waiting connections and 2 probes"},
	}
	for i := range 7 {
		list = append(list, v1.Event{Type: v1.EventConnectionReaped, Time: at(-8.9 + float64(i)/10), Endpoint: "10.0.0.1:6379", Outcome: v1.OutcomeReaped, Connection: k, TookMs: 2100, Text: "the endpoint is down"})
	}
	return append(list,
		v1.Event{Type: v1.EventConnectionReaped, Time: at(-8), Endpoint: "10.0.0.1:6379", Outcome: v1.OutcomeSpared, Connection: k, Text: "its peer was heard since the verdict"},
		v1.Event{Type: v1.EventConnectionRecovered, Time: at(-5), Endpoint: "10.0.0.1:6379", Connection: k, TookMs: 180, Text: "the client java[4711] is back"},
	)
}

// start is a screen of that size with everything on it.
func start(t *testing.T, width, height int) (*model, *source) {
	t.Helper()
	s := &source{}
	m := newModel(t.Context(), Config{Source: s})
	send(m, tea.WindowSizeMsg{Width: width, Height: height})
	m.advance(at(-120))
	refresh(m)
	for _, e := range someEvents() {
		send(m, eventMsg{event: e})
	}
	refresh(m)
	return m, s
}

// refresh looks at noon.
func refresh(m *model) {
	l := m.poll(m.drill, m.turn)
	l.at = noon
	send(m, l)
}

func send(m *model, msg tea.Msg) tea.Cmd {
	_, cmd := m.Update(msg)
	return cmd
}

// press sends keys, and takes in what looks they lead to.
func press(m *model, keys ...string) {
	for _, k := range keys {
		cmd := m.key(keyOf(k))
		if cmd == nil {
			continue
		}
		switch msg := cmd().(type) {
		case polledMsg:
			msg.at = noon
			send(m, msg)
		case storyMsg:
			send(m, msg)
		}
	}
}

func keyOf(name string) tea.KeyPressMsg {
	codes := map[string]rune{"enter": tea.KeyEnter, "esc": tea.KeyEscape, "tab": tea.KeyTab, "up": tea.KeyUp, "down": tea.KeyDown, "backspace": tea.KeyBackspace, "end": tea.KeyEnd, "home": tea.KeyHome}
	if c, ok := codes[name]; ok {
		return tea.KeyPressMsg{Code: c}
	}
	r, _ := utf8.DecodeRuneInString(name)
	return tea.KeyPressMsg{Code: r, Text: name}
}

// golden holds the screen against a file. After an intended change:
// go test ./internal/tui -update
func golden(t *testing.T, name string, m *model) {
	t.Helper()
	lines := m.lines()
	for _, line := range lines {
		if n := utf8.RuneCountInString(line); n > m.width {
			t.Errorf("%s: %d columns on a screen of %d: %s", name, n, m.width, line)
		}
		if strings.ContainsAny(line, "\x1b\r") {
			t.Errorf("%s: a control character: %q", name, line)
		}
	}
	if !m.once && len(lines) > m.height {
		t.Errorf("%s: %d lines on a screen of %d", name, len(lines), m.height)
	}
	got := strings.Join(lines, "\n") + "\n"
	file := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the screen is not that of %s:\n%s", file, got)
	}
}

func TestScreens(t *testing.T) {
	for _, tt := range []struct {
		name          string
		width, height int
		keys          []string
	}{
		{"main", 120, 40, nil},
		{"narrow", 80, 24, nil},
		{"tiny", 40, 8, nil},
		{"sorted", 100, 30, []string{"s", "s", "tab", "s"}},
		{"endpoint", 120, 30, []string{"enter"}},
		{"pod", 120, 30, []string{"tab", "p"}},
		{"back", 120, 30, []string{"tab", "p", "esc"}},
		{"filter", 120, 30, []string{"/", "f", "d", "0", "0", "x", "backspace"}},
		{"filtered", 120, 30, []string{"/", "c", "a", "r", "t", "enter", "tab"}},
		{"story", 120, 20, []string{"tab", "enter"}},
		{"no-story", 120, 20, []string{"tab", "end", "x"}},
		{"well", 120, 20, []string{"end", "x"}},
		{"events", 120, 20, []string{"tab", "tab", "home"}},
		{"help", 100, 30, []string{"?"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, _ := start(t, tt.width, tt.height)
			press(m, tt.keys...)
			golden(t, tt.name, m)
		})
	}
}

// TestTargets: they come first, the worst at the top.
func TestTargets(t *testing.T) {
	changed := at(-12)
	some := []v1.Target{
		{Name: "idle", Type: v1.TargetAuto, State: v1.TargetUnknown},
		{Name: "orders", Type: v1.TargetCluster, State: v1.TargetUp, Covered: 16384, Connections: 80, Changed: &changed, Change: "primary.changed node=ab 10.0.0.1->10.0.0.2", Problems: []string{"command.refused: x"}},
		{Name: "sessions", Type: v1.TargetSentinel, State: v1.TargetDown, Connections: 3, Shards: []v1.Shard{{Primary: "p"}}, Nodes: []v1.Node{{ID: "p", State: v1.NodeFailed, Endpoints: []string{"10.0.0.7:6379"}}}},
		{Name: "pages\x1b", Type: v1.TargetReplication, State: v1.TargetUp, Connections: 9, Shards: []v1.Shard{{Primary: "p"}}, Nodes: []v1.Node{{ID: "p", State: v1.NodeOK, Endpoints: []string{"10.0.0.8:6379"}}}},
		{Name: "lost", Type: v1.TargetReplication, State: v1.TargetDown},
	}
	m, s := start(t, 120, 40)
	s.targets = some
	refresh(m)
	golden(t, "targets", m)
	press(m, "/", "p", "a", "g", "enter")
	golden(t, "targets-filtered", m)

	m, s = start(t, 80, 20)
	s.targets = some
	refresh(m)
	golden(t, "targets-more", m)
	for height := range 40 {
		send(m, tea.WindowSizeMsg{Width: 60, Height: height})
		if n := len(m.lines()); n > height {
			t.Fatalf("%d lines of %d", n, height)
		}
	}

	var b bytes.Buffer
	if err := Once(t.Context(), Config{Source: s}, &b, 100); err != nil || !strings.Contains(b.String(), "targets (5)") || !strings.Contains(b.String(), "idle") {
		t.Errorf("%v:\n%s", err, b.String())
	}
}

func TestDrill(t *testing.T) {
	m, s := start(t, 120, 40)
	for _, tt := range []struct {
		keys []string
		want client.ConnectionQuery
	}{
		{[]string{"enter"}, client.ConnectionQuery{Endpoint: "10.0.0.1:6379"}},
		{[]string{"p"}, client.ConnectionQuery{Pod: "u-1"}},
		{[]string{"esc"}, client.ConnectionQuery{Stalled: true}},
		{[]string{"tab", "down", "p"}, client.ConnectionQuery{Namespace: "1"}}, // of no pod
	} {
		press(m, tt.keys...)
		if got := s.asked[len(s.asked)-1]; got != tt.want {
			t.Errorf("%v asks for %+v, want %+v", tt.keys, got, tt.want)
		}
	}
}

// TestOneChainOfLooks: however often the user drills, one look follows another.
func TestOneChainOfLooks(t *testing.T) {
	m, _ := start(t, 120, 40)
	before := lookMsg{m.turn}
	press(m, "enter")
	if cmd := send(m, before); cmd != nil {
		t.Error("a look from before the drill goes on beside the new one")
	}
	old := polledMsg{turn: before.turn, at: noon, connections: []v1.Connection{{ID: "stale"}}}
	if cmd := send(m, old); cmd != nil || len(m.connections) > 0 && m.connections[0].ID == "stale" {
		t.Error("an answer from before the drill is taken for the new one")
	}
	if cmd := send(m, lookMsg{m.turn}); cmd == nil {
		t.Error("the new chain has ended")
	}
}

func TestTrouble(t *testing.T) {
	m, s := start(t, 120, 30)
	s.err = errors.New("redisguard is not \x1breachable")
	refresh(m)
	send(m, eventMsg{err: errors.New("the event stream broke off")})
	golden(t, "trouble", m)
	s.err = nil
	refresh(m)
	send(m, eventMsg{event: v1.Event{Type: v1.Synced, Time: noon}})
	if m.trouble != "" || m.lost != "" {
		t.Errorf("trouble is over, but: %q, %q", m.trouble, m.lost)
	}
}

func TestHistoryMovesOn(t *testing.T) {
	m, _ := start(t, 120, 30)
	sum := func(h [beats]int) (n int) {
		for _, x := range h {
			n += x
		}
		return n
	}
	if sum(m.reaps) != 7 || sum(m.comebacks) != 1 {
		t.Errorf("%d reaps, %d clients back, want 7 and 1", sum(m.reaps), sum(m.comebacks))
	}
	m.advance(noon.Add(beats * beat / 2))
	if sum(m.reaps) != 7 {
		t.Errorf("%d reaps after a minute, want 7", sum(m.reaps))
	}
	m.advance(noon.Add(beats * beat))
	if sum(m.reaps) != 0 {
		t.Errorf("%d reaps after all columns have passed, want 0", sum(m.reaps))
	}
	m.advance(noon.Add(1000 * time.Hour)) // must not take long
	m.advance(noon)                       // nor go back
	if m.now.Equal(noon) {
		t.Error("time went back")
	}
}

// TestManyEvents: what is kept is bounded, and the tail is followed.
func TestManyEvents(t *testing.T) {
	m, _ := start(t, 80, 24)
	press(m, "tab", "tab", "end")
	for i := range 2 * keepEvents {
		send(m, eventMsg{event: v1.Event{Type: v1.EventModeChanged, Time: noon, Text: fmt.Sprint("number ", i)}})
	}
	if len(m.events) != keepEvents || m.at[eventsPane] != keepEvents-1 {
		t.Errorf("%d events, at %d", len(m.events), m.at[eventsPane])
	}
	press(m, "home")
	send(m, eventMsg{event: v1.Event{Type: v1.EventModeChanged, Time: noon}})
	if m.at[eventsPane] != 0 {
		t.Errorf("at %d: the cursor was taken along", m.at[eventsPane])
	}
}

func TestOnce(t *testing.T) {
	s := &source{events: someEvents()}
	var b bytes.Buffer
	if err := Once(t.Context(), Config{Source: s}, &b, 100); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.0.0.1:6379", "half-dead", "cart-0", "endpoint.suspect", "3 endpoints (1 down, 1 suspect)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "tab pane") || strings.Contains(b.String(), ">") {
		t.Errorf("keys or a cursor where there is no terminal:\n%s", b.String())
	}
	s.err = errors.New("no")
	if err := Once(t.Context(), Config{Source: s}, &b, 100); !errors.Is(err, s.err) {
		t.Errorf("%v", err)
	}
}

// TestSizes: no size of the terminal brings it down, with whatever is selected.
func TestSizes(t *testing.T) {
	m, _ := start(t, 80, 24)
	for width := 0; width < 200; width += 7 {
		for height := range 30 {
			send(m, tea.WindowSizeMsg{Width: width, Height: height})
			for _, line := range m.lines() {
				if n := utf8.RuneCountInString(line); n > max(40, width) {
					t.Fatalf("%d columns of %d: %q", n, width, line)
				}
			}
			if n := len(m.lines()); n > max(height, 0) {
				t.Fatalf("%d lines of %d", n, height)
			}
		}
		press(m, "tab", "down", "end")
	}
}
