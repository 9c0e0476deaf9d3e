package recording

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/redisguard/redisguard/verdict"
)

func TestParseHeader(t *testing.T) {
	for text, want := range map[string]string{
		`{"redisguard_recording":1,"settings":{"HostNS":7}}`: "",
		`{"redisguard_recording":2}`:                         "",
		`{"redisguard_recording":3}`:                         "it has format 3, this redisguard reads 1 to 2",
		`{"redisguard_recording":-1}`:                        "it has format -1",
		`{}`:                                                 "does not begin like a recording",
		``:                                                   "does not begin like a recording",
		"\x00":                                               "does not begin like a recording",
	} {
		h, err := ParseHeader([]byte(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) || err == nil && h.Version == 0 {
			t.Errorf("%q: %+v, %v", text, h, err)
		}
	}
}

// What version 1 said in other words means the same.
func TestVersion1(t *testing.T) {
	h := Header{Version: 1}
	in, err := h.ParseInput([]byte(`{"now":5,"anew":true,"held":[{"key":{"ns":1,"cookie":2},"on":true}],"others":[{"ns":1,"at":2,"heard":0,"stalled":3,"window":4}],
		"appeared":[{"key":{"ns":1,"cookie":2},"why":"mode is observe"},{"key":{"ns":1,"cookie":3},"why":"Redis itself: mode is observe"}]}`))
	if err != nil || !in.Reset || len(in.Blocked) != 1 || !in.Blocked[0].On || len(in.Unrelated) != 1 || in.Unrelated[0].Stalled != 3 || in.Now != 5 {
		t.Fatalf("%+v, %v", in, err)
	}
	if !in.Appeared[0].OnlyMode || in.Appeared[1].OnlyMode {
		t.Errorf("only the mode: %+v", in.Appeared)
	}
}

// What is written is read.
func TestRoundTrip(t *testing.T) {
	in := verdict.Input{Now: 7, Reset: true, Appeared: []verdict.Appeared{{Why: "--dry-run", OnlyMode: true, Interface: 3}}, Probes: []verdict.Probe{{Path: verdict.PathKey{NS: 1, Interface: 3}}}, Blocked: []verdict.Blocked{{On: true}}}
	line, err := json.Marshal(&in)
	if err != nil {
		t.Fatal(err)
	}
	h := Header{Version: Version}
	got, err := h.ParseInput(line)
	if err != nil || got.Now != 7 || !got.Reset || len(got.Blocked) != 1 || len(got.Appeared) != 1 || !got.Appeared[0].OnlyMode ||
		got.Appeared[0].Interface != 3 || got.Probes[0].Path != in.Probes[0].Path {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"redisguard_recording":1}`, `{"now":5,"anew":true}`)
	f.Add(`{"redisguard_recording":2}`, `{"now":5,"appeared":[{"remote":"10.0.0.1:1"}]}`)
	f.Fuzz(func(t *testing.T, head, line string) {
		h, err := ParseHeader([]byte(head))
		if err != nil {
			return
		}
		if h.Version < 1 || h.Version > Version {
			t.Errorf("version %d was taken", h.Version)
		}
		_, _ = h.ParseInput([]byte(line))
	})
}
