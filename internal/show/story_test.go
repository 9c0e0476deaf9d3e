package show

import (
	"bytes"
	"flag"
	"os"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
)

var update = flag.Bool("update", false, "write testdata anew")

// golden holds got against a file. After an intended change: go test -update
func golden(t *testing.T, file, got string) {
	t.Helper()
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
		t.Errorf("not as in %s:\n%s", file, got)
	}
}

// at is so many seconds after the story began.
func at(s float64) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local).Add(time.Duration(s * float64(time.Second)))
}

func TestStory(t *testing.T) {
	p := &v1.Process{PID: 4711, Command: "java", PodUID: "u", PodName: "cart-0", PodNamespace: "shop"}
	k := &v1.EventConnection{ID: "12-ab", Local: "10.0.0.7:40000", Endpoint: "10.0.0.1:6379", Process: p}
	ended := at(9)
	ev := &v1.Evidence{
		Rule: "down", Kinds: []string{"stall", "probe"}, SilenceMs: 2010, Waiting: 3, Unanswered: 9, ProbesUnanswered: 2,
		Loss: 0.001, Burst: 0.25, LogLikelihood: -21.4, Text: "the endpoint is down: nothing heard for 2.01s",
	}
	var b bytes.Buffer
	Story(&b, &v1.Explanation{
		ID: "f7", Kind: "finding", Summary: "10.0.0.1:6379 was down for 9.0s",
		Finding: &v1.Finding{ID: "f7", Code: v1.CodeEndpointDown, Severity: v1.Critical, Since: at(0), Ended: &ended, EndedBy: "answers again", Endpoint: "10.0.0.1:6379", Namespace: "cni-1"},
		Story: []v1.Step{
			{Part: v1.PartSeen, Time: at(-1.5), Type: v1.EventEndpointSuspect, Text: "a probe is unanswered: no answer for 100ms"},
			{Part: v1.PartJudged, Time: at(0), Type: v1.EventEndpointDown, Text: ev.Text, Evidence: ev},
			{Part: v1.PartDone, Time: at(0.03), Type: v1.EventConnectionReaped, Level: v1.LevelWarn, Text: ev.Text + " and that is a long sentence which has to go on in the next line of the story", Outcome: v1.OutcomeReaped, Evidence: ev},
			{Part: v1.PartAfter, Time: at(0.2), Type: v1.EventConnectionRecovered, Text: "the client java[4711] is back", TookMs: 170},
		},
	}, false)
	Story(&b, &v1.Explanation{
		ID: "12-ab", Kind: "connection", Summary: "stalled", Incomplete: true,
		Connection: &v1.Connection{ID: "12-ab", Local: k.Local, Endpoint: k.Endpoint, Namespace: "cni-1", State: v1.StateEstablished, Health: v1.HealthStalled, WhyNot: "mode is observe", Process: p, AsOf: at(1), LastAckMs: 900, LastReceivedMs: 800},
	}, true)
	golden(t, "testdata/story.txt", b.String())
}

func TestEvent(t *testing.T) {
	p := &v1.Process{PID: 4711, Command: "java"}
	k := &v1.EventConnection{ID: "12-ab", Endpoint: "10.0.0.1:6379", Process: p}
	var b bytes.Buffer
	for _, e := range []v1.Event{
		{Type: v1.Snapshot, Time: at(0), Mode: &v1.ModeStatus{Configured: v1.ModeEnforce, Override: v1.ModeObserve, Switch: true, DryRun: true, Effective: v1.ModeOff}},
		{Type: v1.Snapshot, Time: at(0), Finding: &v1.Finding{Code: v1.CodeEndpointDown, Endpoint: "10.0.0.1:6379", Namespace: "cni-1", Text: "the endpoint is down"}},
		{Type: v1.Synced, Time: at(0)},
		{Type: v1.EventConnectionReaped, Level: v1.LevelWarn, Time: at(1), Connection: k, Namespace: "cni-1", Outcome: v1.OutcomeReaped, TookMs: 2010, Text: "this flow is broken", Peer: &v1.Peer{PID: 7, UID: 0, Command: "bash"}},
		{Type: v1.EventModeChanged, Time: at(2), Text: "redisguard is on"},
		{Type: v1.EventEndpointUp, Time: at(3), Endpoint: "10.0.0.1:6379", TookMs: 9000},
	} {
		if line := Event(&e, true); line != "" {
			b.WriteString(line + "\n")
		}
	}
	golden(t, "testdata/events.txt", b.String())
}
