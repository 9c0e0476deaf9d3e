package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// recordingV1 is a recording of version 1: two connections to an endpoint that is
// silent from 2 s on. extra is added to the step in which that begins, with the names
// of that version.
func recordingV1(extra string) string {
	const tick = 100 * time.Millisecond
	var b strings.Builder
	b.WriteString(`{"redisguard_recording":1,"started":"2025-01-02T03:04:05Z","settings":{"HostNS":1,"DownAfter":700000000,"MinSilence":500000000,` +
		`"Rate":500,"Burst":200,"MaxShare":0.5,"Spread":0,"ProbesPerSecond":2,"Baseline":600000000000,"OnDown":"reap","OnUnresponsive":"signal"}}` + "\n")
	const path = `"path":{"ns":1,"endpoint":"10.9.0.1:6379"}`
	silent := 2 * time.Second
	for now := time.Second; now < 5*time.Second; now += tick {
		fmt.Fprintf(&b, `{"now":%d`, now)
		if now == time.Second {
			b.WriteString(`,"appeared":[{"key":{"ns":1,"cookie":1},"local":"10.0.0.1:1000","remote":"10.9.0.1:6379","permit":1},` +
				`{"key":{"ns":1,"cookie":2},"local":"10.0.0.1:1001","remote":"10.9.0.1:6379","permit":1}]`)
			fmt.Fprintf(&b, `,"probes":[{"id":1,%s,"started":%d,"ended":%d,"outcome":1}]`, path, now-tick, now)
		}
		retrans, sent, ack, timer, unacked := 0, time.Duration(0), time.Duration(0), 0, 0
		if now >= silent {
			for at := 200 * time.Millisecond; at <= now-silent; at *= 2 {
				retrans++
				sent = now - silent - at
			}
			if retrans == 0 {
				sent = now - silent
			}
			ack, timer, unacked = now-silent+tick, 1, 1
			id := now / (500 * time.Millisecond)
			outcome, ended := 0, time.Duration(0)
			if now%(500*time.Millisecond) == 400*time.Millisecond {
				outcome, ended = 2, now
			}
			fmt.Fprintf(&b, `,"probes":[{"id":%d,%s,"started":%d,"ended":%d,"outcome":%d}]`, id, path, id*500*time.Millisecond, ended, outcome)
			fmt.Fprintf(&b, `,"next_hops":[{%s,"at":%d,"gateway":1}]`, path, now)
		}
		b.WriteString(`,"samples":[`)
		for cookie := 1; cookie <= 2; cookie++ {
			if cookie > 1 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"key":{"ns":1,"cookie":%d},"state":2,"timer":%d,"retrans":%d,"unacked":%d,"rtt":1000000,"last_data_sent":%d,`+
				`"last_data_recv":%d,"last_ack_recv":%d,"segs_in":%d,"data_segs_out":%d,"total_retrans":%d,"bytes_received":7}`,
				cookie, timer, retrans, unacked, sent, ack, ack, min(now, silent-tick)/tick, int(now/tick)+retrans, retrans)
		}
		b.WriteString("]")
		if now == silent && extra != "" {
			b.WriteString("," + extra)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// A recording of version 1 is still judged as it was: its old names take effect.
func TestReplayReadsVersion1(t *testing.T) {
	for name, c := range map[string]struct {
		extra string
		want  []uint64 // cookies
	}{
		"nothing else": {"", []uint64{1, 2}},
		"held":         {`"held":[{"key":{"ns":1,"cookie":2},"on":true}]`, []uint64{1}},
		"anew":         {`"anew":true`, nil},
		"others":       {`"others":[{"ns":1,"at":2000000000,"heard":0,"stalled":3,"window":1000000000}]`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			rep, err := replay(strings.NewReader(recordingV1(c.extra)), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := map[uint64]bool{}
			for _, r := range rep.Reaps {
				if r.Evidence.Rule != verdict.RuleDown {
					t.Errorf("reaped by rule %s", r.Evidence.Rule)
				}
				got[r.reap.Key.Cookie] = true
			}
			if len(got) != len(c.want) {
				t.Errorf("reaped %v, want %v", got, c.want)
			}
			for _, cookie := range c.want {
				if !got[cookie] {
					t.Errorf("%d was not reaped", cookie)
				}
			}
		})
	}
	newer := strings.Replace(recordingV1(""), `"redisguard_recording":1`, `"redisguard_recording":3`, 1)
	if _, err := replay(strings.NewReader(newer), nil); err == nil || !strings.Contains(err.Error(), "format 3") {
		t.Errorf("a recording of a newer version: %v", err)
	}
}
