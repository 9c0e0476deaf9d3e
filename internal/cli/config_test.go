package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
)

// TestWriteConfig writes and reads back a config in which nothing is a default.
func TestWriteConfig(t *testing.T) {
	changed := config.Config{
		Mode: config.Off, Profile: config.Calm,
		Log: config.LogSection{Level: config.LogError, Format: config.LogJSON},
		Watch: config.WatchSection{Ports: []uint16{1, 65535}, Mode: config.Enforce, Loopback: true, DumpCPU: 0.125,
			Discovery: 1500 * time.Millisecond, Tick: 55 * time.Millisecond, Tracepoints: config.TracepointsOff},
		Exclude: config.ExcludeSection{Namespaces: []string{"kube-*", `a"\\b`}, Pods: []string{"é\t"}, Units: []string{}, Users: []string{"0"}, Commands: []string{"[a-z]*"}},
		Tune: config.TuneSection{Mode: config.Observe, Scope: config.Scope{Of: config.ScopeGlobs, Globs: []string{"shop", `a"b`}}, TCPRetries2: config.Leave,
			TCPKeepaliveTime: 1, TCPKeepaliveIntvl: 2, TCPKeepaliveProbes: 4, TCPSynRetries: 5, TCPRtoMaxMs: 1000, TCPOrphanRetries: 0, TCPFinTimeout: 7,
			Drift: config.DriftRepair, Override: true, RedisServers: true, RestoreOnStop: true},
		Arm: config.ArmSection{Mode: config.Off, KeepaliveIdle: 2 * time.Second, KeepaliveInterval: time.Second, KeepaliveCount: 127,
			UserTimeout: 200500 * time.Millisecond, RTOMax: 2 * time.Minute},
		Reap:   config.ReapSection{Mode: config.Observe, DownAfter: 90 * time.Minute / 10, Rate: 3, Burst: 1000000, MaxShare: 1e-7, AcceptRate: 0.5, Spread: 0, MinSilence: time.Minute},
		Policy: config.PolicySection{OnDown: config.ReactIgnore, OnUnresponsive: config.ReactReap},
		Audit:  config.AuditSection{File: "/a b", MaxSize: 1 << 40},
		Probe:  config.ProbeSection{Timeout: 123 * time.Microsecond * 1000, PerSecond: 0.01, Mark: 1<<32 - 1, Baseline: 24 * time.Hour},
		Record: config.RecordSection{File: "/c", MaxSize: 65536},
		API: config.APISection{Socket: "/run/a b/s", AdminSocket: "", Group: "0", MaxConnections: 9, MaxConnectionsEach: 5,
			MaxStreams: 10, MaxStreamsEach: 2},
		Metrics: config.MetricsSection{Listen: "[::1]:9420"},
	}
	withTarget, err := config.Parse("f", []byte(`[[target]]
name = "a.b"
type = "sentinel"
master_name = 'm"x'
seeds = ["s:26379", "[2001:db8::1]:26380"]
allow = ["10.0.0.0/8", "2001:db8::/32"]
allow_ports = ["6379", "26379-26380"]
mode = "observe"
username = "u"
password_file = "/p"
interval = "20s"
fleet_size = 7
address_map = ["10.0.0.1:1=10.0.0.2:2"]
tls = { enabled = true, sentinels = true, ca = "/ca", cert = "/c", key = "/k", server_name = "announced" }
visible_to = { pods = ["p-*"] }
readers = { commands = ["r"] }
policy = { on_demoted = "ignore" }
[[target]]
name = "c"
seeds = ["192.0.2.1:6379"]
`))
	if err != nil {
		t.Fatal(err)
	}
	changed.Targets = withTarget.Targets
	for name, c := range map[string]config.Config{"defaults": config.Default(), "changed": changed} {
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		writeConfig(&b, c)
		back, err := config.Parse(name, b.Bytes())
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, b.String())
			continue
		}
		if diff := config.Diff(c, back); len(diff) > 0 {
			t.Errorf("%s: came back with other settings: %s\n%s", name, strings.Join(diff, ", "), b.String())
		}
	}
	if diff := config.Diff(config.Default(), changed); len(diff) < 44 {
		t.Errorf("only %d settings differ from their defaults: give the new ones values here", len(diff))
	}
}
