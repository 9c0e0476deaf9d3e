package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const example = "../redisguard.toml"

// leaves calls fn for every field of c that is a setting, with its key.
func leaves(c *Config, fn func(name string, field any)) {
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		f, name := v.Field(i), snake(v.Type().Field(i).Name)
		if f.Type() == reflect.TypeFor[[]TargetSection]() {
			continue // see target_test.go
		}
		if f.Kind() != reflect.Struct {
			fn(name, f.Addr().Interface())
			continue
		}
		for j := range f.NumField() {
			fn(name+"."+snake(f.Type().Field(j).Name), f.Field(j).Addr().Interface())
		}
	}
}

// snake is the key of a Go field: OnDown is on_down, DumpCPU is dump_cpu.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		if upper := r >= 'A' && r <= 'Z'; upper {
			// A word begins after a small letter, and before one: TCPRetries2.
			if i > 0 && (s[i-1] >= 'a' || i+1 < len(s) && s[i+1] >= 'a') {
				b.WriteByte('_')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

func TestEveryFieldIsAKey(t *testing.T) {
	var c Config
	want := map[string]any{}
	leaves(&c, func(name string, field any) { want[name] = field })
	for _, k := range c.keys() {
		if want[k.name] != k.field {
			t.Errorf("key %s does not lead to the field of that name", k.name)
		}
		delete(want, k.name)
	}
	for name := range want {
		t.Errorf("field without a key: %s", name)
	}
}

func TestExampleIsTheDefault(t *testing.T) {
	got, err := Load(example)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("redisguard.toml is not the default (-default +file):\n%s", diff)
	}
	empty, err := Parse("empty", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), empty); diff != "" {
		t.Errorf("an empty file is not the default:\n%s", diff)
	}
}

func TestExampleHasEveryKeyAndComment(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	stands := map[string]int{}
	table, before := "", ""
	for _, line := range strings.Split(string(data), "\n") {
		if strings.HasPrefix(line, "#[[target]]") {
			break // see target_test.go
		}
		if strings.HasPrefix(line, "[") {
			table = strings.Trim(line, "[]") + "."
		} else if key, _, ok := strings.Cut(line, " = "); ok && !strings.HasPrefix(line, "#") {
			stands[table+key]++
			if !strings.HasPrefix(before, "#") {
				t.Errorf("%s has no comment above it", table+key)
			}
		}
		before = line
	}
	c := Default()
	leaves(&c, func(name string, _ any) {
		if stands[name] != 1 {
			t.Errorf("%s stands %d times in redisguard.toml", name, stands[name])
		}
		delete(stands, name)
	})
	if len(stands) > 0 {
		t.Errorf("redisguard.toml has keys that are none: %v", stands)
	}
	head := strings.Join(strings.SplitN(string(data), "\n", 24)[:23], "\n")
	if !strings.Contains(head, `Out of the box it only observes: [watch] mode = "observe"`) {
		t.Error("the first screen does not say that redisguard only observes out of the box")
	}
}

// A reader may take out any line. A table's header is the exception: what
// stands below it then belongs to the table above, which must be an error.
func TestExampleWithoutAnyLine(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		rest := strings.Join(append(append([]string{}, lines[:i]...), lines[i+1:]...), "\n")
		got, err := Parse("file", []byte(rest))
		switch {
		case strings.HasPrefix(line, "["):
			if err == nil {
				t.Errorf("without the header %s the file is accepted", line)
			}
		case err != nil:
			t.Errorf("without line %d %q: %v", i+1, line, err)
		case !reflect.DeepEqual(got, Default()):
			t.Errorf("without line %d %q the defaults do not hold", i+1, line)
		}
	}
}

func TestDefaultIsFreshAndValid(t *testing.T) {
	a := Default()
	if err := a.Validate(); err != nil {
		t.Fatal(err)
	}
	a.Watch.Ports[0] = 1
	if Default().Watch.Ports[0] != 6379 {
		t.Error("two defaults share their ports")
	}
}

func TestParseEverything(t *testing.T) {
	got, err := Parse("full", []byte(`
mode = "observe"
profile = "calm"
log.level = "debug"
log.format = "json"
exclude = { namespaces = ["kube-*"], pods = ["a", "b-?"], units = ["x@*.service"], users = ["0"], commands = ["[a-z]*"] }
[watch]
ports = [1, 65535]
mode = "enforce"
loopback = true
servers = ["my-*"]
dump_cpu = 0.5
discovery = "200ms"
tick = "50ms"
tracepoints = "off"
[arm]
mode = "observe"
keepalive_idle = "20s"
keepalive_interval = "4s"
keepalive_count = 6
user_timeout = "1m"
rto_max = "5s"

[tune]
mode = "observe"
scope = ["shop", "cart-*"]
tcp_retries2 = 6
tcp_keepalive_time = 20
tcp_keepalive_intvl = ""
tcp_keepalive_probes = 4
tcp_syn_retries = 2
tcp_rto_max_ms = 5000
tcp_orphan_retries = 0
tcp_fin_timeout = 30
drift = "repair"
override = true
redis_servers = true
restore_on_stop = true
[reap]
mode = "off"
down_after = "1.5s"
rate = 100
burst = 1
max_share = 1
accept_rate = 7
spread = "0s"
min_silence = "1s"
[policy]
on_down = "ignore"
on_unresponsive = "reap"
on_demoted = "ignore"
on_removed = "reap"
on_replaced = "signal"
[audit]
file = "/var/log/a"
max_size = 0x100000
[probe]
timeout = "700ms"
per_second = 0.5
mark = 0
baseline = "24h"
[record]
file = "/var/log/r"
max_size = 65_536
[api]
socket = "/run/a/s"
admin_socket = "/run/b/s"
group = "ops"
max_connections = 100
max_connections_each = 10
max_streams = 200
max_streams_each = 20
[metrics]
listen = "[::1]:9420"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Mode: Observe, Profile: Calm,
		Log: LogSection{Level: LogDebug, Format: LogJSON},
		Watch: WatchSection{Ports: []uint16{1, 65535}, Mode: Enforce, Loopback: true, Servers: []string{"my-*"}, DumpCPU: 0.5,
			Discovery: 200 * time.Millisecond, Tick: 50 * time.Millisecond, Tracepoints: TracepointsOff},
		Exclude: ExcludeSection{Namespaces: []string{"kube-*"}, Pods: []string{"a", "b-?"},
			Units: []string{"x@*.service"}, Users: []string{"0"}, Commands: []string{"[a-z]*"}},
		Tune: TuneSection{
			Mode: Observe, Scope: Scope{Of: ScopeGlobs, Globs: []string{"shop", "cart-*"}}, TCPRetries2: 6, TCPKeepaliveTime: 20, TCPKeepaliveIntvl: Leave,
			TCPKeepaliveProbes: 4, TCPSynRetries: 2, TCPRtoMaxMs: 5000, TCPOrphanRetries: 0, TCPFinTimeout: 30, Drift: DriftRepair, Override: true,
			RedisServers: true, RestoreOnStop: true,
		},
		Arm: ArmSection{Mode: Observe, KeepaliveIdle: 20 * time.Second, KeepaliveInterval: 4 * time.Second, KeepaliveCount: 6,
			UserTimeout: time.Minute, RTOMax: 5 * time.Second},
		Reap:   ReapSection{Mode: Off, DownAfter: 1500 * time.Millisecond, Rate: 100, Burst: 1, MaxShare: 1, AcceptRate: 7, MinSilence: time.Second},
		Policy: PolicySection{OnDown: ReactIgnore, OnUnresponsive: ReactReap, OnDemoted: ReactIgnore, OnRemoved: ReactReap, OnReplaced: ReactSignal},
		Audit:  AuditSection{File: "/var/log/a", MaxSize: 1 << 20},
		Probe:  ProbeSection{Timeout: 700 * time.Millisecond, PerSecond: 0.5, Baseline: 24 * time.Hour},
		Record: RecordSection{File: "/var/log/r", MaxSize: 65536},
		API: APISection{Socket: "/run/a/s", AdminSocket: "/run/b/s", Group: "ops",
			MaxConnections: 100, MaxConnectionsEach: 10, MaxStreams: 200, MaxStreamsEach: 20},
		Metrics: MetricsSection{Listen: "[::1]:9420"},
		Targets: []TargetSection{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// Every key above differs from its default: each is read.
	changed := Diff(Default(), got)
	c := Default()
	if len(changed) != len(c.keys()) {
		t.Errorf("%d of %d keys were read:\n%s", len(changed), len(c.keys()), strings.Join(changed, "\n"))
	}
}

func TestParseErrors(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"misspelled":        {"[reap]\nrte = 5", `f:2: reap.rte: unknown key, did you mean reap.rate?; allowed: in [reap] mode, down_after, rate, burst, max_share, accept_rate, spread, min_silence`},
		"swapped letters":   {"[log]\n\nlevle = 'info'", `f:3: log.levle: unknown key, did you mean log.level?; allowed: in [log] level, format`},
		"wrong case":        {"Mode = 'off'", `f:1: Mode: unknown key, did you mean mode?`},
		"wrong table":       {"[reap]\nports = [1]", `f:2: reap.ports: unknown key, did you mean watch.ports?; allowed: in [reap] mode, down_after, rate, burst, max_share, accept_rate, spread, min_silence`},
		"without its table": {"on_down = 'reap'", `f:1: on_down: unknown key, did you mean policy.on_down?`},
		"misspelled table":  {"[wach]\nmode = 'off'", `f:1: wach: unknown key, did you mean [watch]?`},
		"like nothing":      {"[log]\nsquirrel_count = 1", `f:2: log.squirrel_count: unknown key; allowed: in [log] level, format`},
		"odd characters":    {"\"a\\nb\\u001b\" = 1", `f:1: "a\nb\x1b": unknown key`},

		"part of a second":     {"[arm]\nkeepalive_idle = '1500ms'", `f:2: arm.keepalive_idle: "1.5s" has a part of a second; allowed: a duration with its unit from "1s" to "9h6m7s", in whole seconds`},
		"table to come":        {"[detour]\nmode = 'off'", `f:1: [detour]: this version of redisguard does not know it yet, so it would have no effect; allowed: take it out`},
		"dotted table to come": {"\ndetour.mode = 'off'", `f:2: [detour]: this version of redisguard does not know it yet, so it would have no effect; allowed: take it out`},
		"renamed":              {"[watch]\nbirths = 'off'", `f:2: watch.births: is called watch.tracepoints now; allowed: watch.tracepoints with the same value`},
		"quoted path":          {"'reap.rate' = 5", `f:1: "reap.rate": unknown key, did you mean reap.rate?`},

		"value for a table":    {"watch = 1", `f:1: [watch]: is no table; allowed: one table headed [watch]`},
		"array of tables":      {"[[watch]]\nmode = 'off'", `f:1: [watch]: is no table; allowed: one table headed [watch]`},
		"table for a value":    {"[mode]\na = 1", `f:1: mode: a table is of the wrong type; allowed: "off", "observe", "enforce"`},
		"number for a word":    {"mode = 1", `f:1: mode: 1 is of the wrong type; allowed: "off", "observe", "enforce"`},
		"word for a number":    {"[reap]\nburst = 'many'", `f:2: reap.burst: the string "many" is of the wrong type; allowed: a whole number from 1 to 1000000`},
		"float for a whole":    {"[reap]\nburst = 2.0", `f:2: reap.burst: 2 is of the wrong type; allowed: a whole number from 1 to 1000000`},
		"word for a bool":      {"[watch]\nloopback = 'yes'", `f:2: watch.loopback: the string "yes" is of the wrong type; allowed: true or false`},
		"list for a word":      {"[audit]\nfile = ['/a']", `f:2: audit.file: a list is of the wrong type; allowed: an absolute path, or "" for none`},
		"date for a duration":  {"[watch]\ntick = 2020-01-01", `f:2: watch.tick: a date is of the wrong type; allowed: a duration with its unit from "50ms" to "1s"`},
		"number for a list":    {"[watch]\nports = 6379", `f:2: watch.ports: 6379 is of the wrong type; allowed: a list of at most 1024 different port numbers from 1 to 65535`},
		"word in a list":       {"[watch]\nports = [\n 6379,\n '6380',\n]", `f:2: watch.ports: one of the list: the string "6380" is of the wrong type; allowed: a list of at most 1024 different port numbers from 1 to 65535`},
		"number for a pattern": {"[exclude]\nusers = [0]", `f:2: exclude.users: one of the list: 0 is of the wrong type; allowed: a list of patterns such as "batch-*" (path.Match syntax: * ? [a-z] \x)`},

		"no such mode":                  {"mode = 'on'", `f:1: mode: "on" is none of its values; allowed: "off", "observe", "enforce"`},
		"no such profile":               {"profile = 'faster'", `f:1: profile: "faster" is none of its values; allowed: "fast", "balanced", "calm"`},
		"no such reaction":              {"[policy]\non_down = 'kill'", `f:2: policy.on_down: "kill" is none of its values; allowed: "reap", "signal", "ignore"`},
		"port 0":                        {"[watch]\nports = [6379, 0]", `f:2: watch.ports: 0 is no port; allowed: a list of at most 1024 different port numbers from 1 to 65535`},
		"port 65536":                    {"[watch]\nports = [65536]", `f:2: watch.ports: 65536 is no port; allowed: a list of at most 1024 different port numbers from 1 to 65535`},
		"port below 0":                  {"[watch]\nports = [-1]", `f:2: watch.ports: -1 is no port; allowed: a list of at most 1024 different port numbers from 1 to 65535`},
		"port twice":                    {"[watch]\nports = [1, 2, 1]", `f:2: watch.ports: 1 stands there twice; allowed: a list of at most 1024 different port numbers from 1 to 65535`},
		"negative duration":             {"[reap]\nspread = '-1s'", `f:2: reap.spread: "-1s" is out of range; allowed: a duration with its unit from "0s" to "1m"`},
		"negative down_after":           {"[reap]\ndown_after = '-1s'", `f:2: reap.down_after: "-1s" is out of range; allowed: "", or a duration with its unit from "200ms" to "10m"`},
		"duration without unit":         {"[watch]\ntick = '200'", `f:2: watch.tick: "200" is no duration; allowed: a duration with its unit from "50ms" to "1s"`},
		"duration as number":            {"[watch]\ntick = 200", `f:2: watch.tick: 200 is of the wrong type; allowed: a duration with its unit from "50ms" to "1s"`},
		"huge duration":                 {"[reap]\nspread = '9999999999999h'", `f:2: reap.spread: "9999999999999h" is no duration; allowed: a duration with its unit from "0s" to "1m"`},
		"NaN":                           {"[reap]\nmax_share = nan", `f:2: reap.max_share: NaN is out of range; allowed: a number above 0, at most 1`},
		"infinite":                      {"[reap]\nrate = inf", `f:2: reap.rate: +Inf is out of range; allowed: a number from 0.01 to 1e+06`},
		"share 0":                       {"[reap]\nmax_share = 0", `f:2: reap.max_share: 0 is out of range; allowed: a number above 0, at most 1`},
		"share above 1":                 {"[reap]\nmax_share = 1.01", `f:2: reap.max_share: 1.01 is out of range; allowed: a number above 0, at most 1`},
		"whole out of range":            {"[probe]\nmark = 0x100000000", `f:2: probe.mark: 4294967296 is out of range; allowed: a whole number from 0 to 4294967295`},
		"whole below range":             {"[reap]\nburst = -9223372036854775808", `f:2: reap.burst: -9223372036854775808 is out of range; allowed: a whole number from 1 to 1000000`},
		"no such scope":                 {"[tune]\nscope = 'pods'", `f:2: tune.scope: "pods" is none of its values; allowed: "redis", "host", "all", or a list of patterns such as "batch-*" (path.Match syntax: * ? [a-z] \x)`},
		"empty scope":                   {"[tune]\nscope = []", `f:2: tune.scope: names nothing; allowed: "redis", "host", "all", or a list of patterns such as "batch-*" (path.Match syntax: * ? [a-z] \x)`},
		"sysctl out of range":           {"[tune]\ntcp_syn_retries = 0", `f:2: tune.tcp_syn_retries: 0 is out of range; allowed: "", or a whole number from 1 to 127`},
		"sysctl left alone by number":   {"[tune]\ntcp_fin_timeout = -1", `f:2: tune.tcp_fin_timeout: -1 is out of range; allowed: "", or a whole number from 1 to 32767`},
		"bad pattern":                   {"[exclude]\npods = ['ok', 'a[']", `f:2: exclude.pods: "a[" is no valid pattern; allowed: a list of patterns such as "batch-*" (path.Match syntax: * ? [a-z] \x)`},
		"empty pattern":                 {"[exclude]\npods = ['']", `f:2: exclude.pods: "" matches nothing; allowed: a list of patterns such as "batch-*" (path.Match syntax: * ? [a-z] \x)`},
		"relative path":                 {"[audit]\nfile = 'audit.log'", `f:2: audit.file: "audit.log" is no clean absolute path; allowed: an absolute path, or "" for none`},
		"one directory for two sockets": {"[api]\nadmin_socket = '/run/redisguard/a.sock'", `f:2: api.admin_socket: "/run/redisguard/a.sock" is in the directory of api.socket; allowed: two directories: whoever is given one socket must not get the other with it`},
		"long socket":                   {"[api]\nsocket = '/" + strings.Repeat("a", 90) + "'", `f:2: api.socket: "/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..." is too long for a socket; allowed: an absolute path of at most 90 bytes, or "" for none`},
		"no such group":                 {"[api]\ngroup = 'a b'", `f:2: api.group: "a b" is none; allowed: the name or number of a group, or "" for none`},
		"no address":                    {"[metrics]\nlisten = ':9420'", `f:2: metrics.listen: ":9420" is none; allowed: "ip:port" as in "127.0.0.1:9420", or "" for none`},
		"one file for two":              {"[audit]\nfile = '/a'\n[record]\nfile = '/a'", `f:4: record.file: "/a" is audit.file too; allowed: two different files`},

		"syntax":           {"mode = 'off'\n[log\nlevel=1", `f:3: expected '.' or ']' to end table name, but got '\n' instead`},
		"key twice":        {"mode = 'off'\nmode = 'off'", `f:2: mode: Key 'mode' has already been defined.`},
		"value out of all": {"[reap]\nburst = 99999999999999999999", `f:2: reap.burst: 99999999999999999999 is out of range for int64`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Parse("f", []byte(test.text))
			if err == nil {
				t.Fatal("accepted")
			}
			if got := err.Error(); got != test.want {
				t.Errorf("\ngot  %s\nwant %s", got, test.want)
			}
			if !reflect.DeepEqual(c, Config{}) {
				t.Error("half a config came with the error")
			}
		})
	}
}

// Positions where the text is less tidy than usual.
func TestLines(t *testing.T) {
	text := strings.Join([]string{
		/* 1 */ `# [reap] rate = "a comment"`,
		/* 2 */ `profile = """`,
		/* 3 */ `[reap]`,
		/* 4 */ `rate = 3"""`,
		/* 5 */ `"log" . "level" = 7`,
		/* 6 */ `[ watch ] # the table`,
		/* 7 */ `  ports = [ # all of them`,
		/* 8 */ `    1, [2],`,
		/* 9 */ `  ]`,
		/* 10 */ "\t'mode'=0",
		/* 11 */ `[exclude]`,
		/* 12 */ `mode = "not of this table"`,
		/* 13 */ `[reap]`,
		/* 14 */ `rate = -1`,
		/* 15 */ `mode="x"`,
		/* 16 */ `[probe]` + "\r",
		/* 17 */ `mark = "x"` + "\r",
		"",
	}, "\n")
	_, err := Parse("f", []byte(text))
	var got []string
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("not all mistakes were collected: %v", err)
	}
	for _, e := range joined.Unwrap() {
		bad, _ := errors.AsType[*Error](e)
		if bad.File != "f" {
			t.Errorf("no file in %v", bad)
		}
		got = append(got, strings.TrimSuffix(strings.SplitN(bad.Error(), ": ", 3)[0], ":")+" "+bad.Key)
	}
	want := []string{"f:2 profile", "f:5 log.level", "f:7 watch.ports", "f:10 watch.mode", "f:12 exclude.mode", "f:14 reap.rate", "f:15 reap.mode", "f:17 probe.mark"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("all mistakes at once (-want +got):\n%s", diff)
	}
}

func TestValidateWithoutFile(t *testing.T) {
	c := Default()
	c.Reap.Rate = math.NaN()
	c.Mode = 7
	c.Watch.Ports = []uint16{0}
	err := c.Validate()
	want := "mode: invalid(7) is none of its values; allowed: \"off\", \"observe\", \"enforce\"\n" +
		"watch.ports: 0 is no port; allowed: a list of at most 1024 different port numbers from 1 to 65535\n" +
		"reap.rate: NaN is out of range; allowed: a number from 0.01 to 1e+06"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if err := (Config{}).Validate(); err == nil {
		t.Error("the zero Config is valid")
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(filepath.Join(dir, "none.toml"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "cannot read config: open ") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.HasSuffix(err.Error(), "not a regular file") {
		t.Errorf("directory: %v", err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(fifo); err == nil || !strings.HasSuffix(err.Error(), "not a regular file") {
		t.Errorf("FIFO: %v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxConfig+10), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "too big") {
		t.Errorf("big file: %v", err)
	}
}

func TestHostileNesting(t *testing.T) {
	for _, text := range []string{
		"mode = " + strings.Repeat("[", maxConfig-7),
		"mode = " + strings.Repeat("{a=", (maxConfig-7)/3),
		strings.Repeat("a.", maxConfig/2-3) + "a=1",
		strings.Repeat("a.", maxConfig/2-3) + "a=1",
		"'''\n[[' = \"\\\"\"\n#'\n" + strings.Repeat("[\n", maxConfig/3),
		strings.Repeat("[[target]]\n", maxConfig/11),
		manyKeys(),
		"target = [" + strings.Repeat("{},", maxConfig/3-5) + "]",
		"a" + strings.Repeat(".a", maxNesting) + "=1\n" + strings.Repeat("[[target]]\nname='a'\n", maxConfig/20-2),
	} {
		start := time.Now()
		if _, err := Parse("f", []byte(text)); err == nil {
			t.Errorf("%.20s... was accepted", text)
		} else if len(err.Error()) > 200*maxProblems {
			t.Errorf("%.20s...: an error of %d bytes", text, len(err.Error()))
		}
		t.Logf("%.20s... %v", text, time.Since(start))
	}
}

func manyKeys() string {
	var b strings.Builder
	for i := 0; b.Len() < maxConfig-20; i++ {
		fmt.Fprintf(&b, "k%d=1\n", i)
	}
	return b.String()
}

func TestTooDeep(t *testing.T) {
	deep := strings.Repeat("[", maxNesting+1)
	for text, want := range map[string]int{
		"a = 1\nb = " + deep:                                   2,
		"a = '" + deep + "'":                                   0,
		"a = \"\\\"" + deep + "\"":                             0,
		"# " + deep:                                            0,
		"a = \"\"\"\n\n\"\"\"\nb = " + deep:                    4,
		"a = '''\n\n" + deep + "'''":                           0,
		"a = 'open\nb = " + deep:                               2,
		"a.b.c.d.e.f.g.h.i.j = 1":                              1,
		"a.b = 1.5\nc.d = [1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]": 0,
		"]]]" + deep:                                           1,
	} {
		if got := tooDeep([]byte(text)); got != want {
			t.Errorf("%q: line %d, want %d", text, got, want)
		}
	}
}

func TestCeiling(t *testing.T) {
	for _, test := range []struct {
		modes []Mode
		want  Mode
	}{
		{nil, Off},
		{[]Mode{Enforce}, Enforce},
		{[]Mode{Enforce, Observe, Enforce}, Observe},
		{[]Mode{Observe, Off}, Off},
	} {
		if got := Ceiling(test.modes...); got != test.want {
			t.Errorf("Ceiling(%v) = %v", test.modes, got)
		}
	}
}

func TestEffectiveDownAfter(t *testing.T) {
	c := Default()
	for profile, want := range map[Profile]time.Duration{Fast: 700 * time.Millisecond, Balanced: 2 * time.Second, Calm: 5 * time.Second} {
		c.Profile = profile
		if got := c.EffectiveDownAfter(); got != want {
			t.Errorf("%v: %v", profile, got)
		}
	}
	c.Reap.DownAfter = time.Minute
	if got := c.EffectiveDownAfter(); got != time.Minute {
		t.Errorf("down_after is not used: %v", got)
	}
}

func TestDiff(t *testing.T) {
	a, b := Default(), Default()
	if d := Diff(a, b); len(d) != 0 {
		t.Errorf("equal configs differ: %v", d)
	}
	b.Mode, b.Reap.Rate, b.Watch.Ports, b.Audit.File = Off, 100, []uint16{7000}, "/a"
	b.Exclude.Pods, b.Probe.Baseline = []string{"x"}, time.Hour
	want := []string{
		"mode: enforce -> off",
		"watch.ports: [6379 6380] -> [7000]",
		`exclude.pods: [] -> ["x"]`,
		"reap.rate: 1000 -> 100",
		`audit.file: "" -> "/a"`,
		"probe.baseline: 10m -> 1h",
	}
	if diff := cmp.Diff(want, Diff(a, b)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMatchAny(t *testing.T) {
	globs := []string{"kube-*", "a?"}
	for name, want := range map[string]bool{"kube-system": true, "ab": true, "abc": false, "": false, "kube-a/b": false} {
		if MatchAny(globs, name) != want {
			t.Errorf("%q: not %v", name, want)
		}
	}
	if MatchAny([]string{"*"}, "") {
		t.Error("* matches what is not known")
	}
}

func FuzzParse(f *testing.F) {
	data, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	for _, seed := range []string{"", "mode=1", "[watch]\nports=[0]", "a.b.c=1", "[[target]]\n[[target]]", "[reap]\nrate=nan\nburst=1979-05-27", "exclude={pods=['[']}", "[watch.ports]\nx=1", "\"\"=1", "mode='''\n", "[policy]\n\"on_down\\n\"=[{a=1}]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("f", []byte(text))
		if err == nil {
			if err := c.Validate(); err != nil {
				t.Fatalf("accepted but not valid: %v", err)
			}
			return
		}
		if !reflect.DeepEqual(c, Config{}) {
			t.Fatal("half a config came with the error")
		}
		all := []error{err}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			all = joined.Unwrap()
		}
		for _, e := range all {
			bad, ok := errors.AsType[*Error](e)
			if !ok || bad.File != "f" || bad.Problem == "" {
				t.Fatalf("an error that does not say what is wrong: %#v", e)
			}
			if lines := strings.Count(text, "\n") + 1; bad.Line > lines {
				t.Fatalf("line %d of %d: %v", bad.Line, lines, e)
			}
		}
	})
}
