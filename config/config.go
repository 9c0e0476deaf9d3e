// Package config turns redisguard.toml into a validated Config.
//
// A file is read as a whole or not at all: Parse collects every mistake it can
// find, and a file with one mistake yields no Config. Unknown keys are
// mistakes too, since a misspelled safety setting that is silently ignored is
// worse than a refusal to start. Watch follows a file as it changes.
//
// A Config is a value that nobody changes after Parse or Default: pass it by
// value, treat its slices as read-only, and compare two of them with Diff.
package config

import (
	"fmt"
	"log/slog"
	"math"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// DefaultPath is where the daemon looks for its config when it is not told.
const DefaultPath = "/etc/redisguard/redisguard.toml"

// Mode says how far a job may go. The order is that of power, so the lesser of
// two modes is the stricter one; see Ceiling.
type Mode int

// The modes. The zero value does nothing at all.
const (
	Off     Mode = iota // the job does not run
	Observe             // everything but acting; says what it would have done
	Enforce             // acts
)

func (m Mode) String() string { return enumName(m, "off", "observe", "enforce") }

// Ceiling returns the least of modes: a job may go as far as the strictest of
// the settings that speak about it. Of no modes it is Off.
func Ceiling(modes ...Mode) Mode {
	if len(modes) == 0 {
		return Off
	}
	least := modes[0]
	for _, m := range modes[1:] {
		least = min(least, m)
	}
	return least
}

// Profile is how long an endpoint has to be silent before it is called down.
type Profile int

// The profiles; see Profile.DownAfter. The zero value is the default.
const (
	Balanced Profile = iota
	Fast
	Calm
)

func (p Profile) String() string { return enumName(p, "balanced", "fast", "calm") }

// DownAfter is the profile's down_after. The figures are those of the design:
// balanced lets a live migration's pause pass, fast does not.
func (p Profile) DownAfter() time.Duration {
	switch p {
	case Fast:
		return 700 * time.Millisecond
	case Calm:
		return 5 * time.Second
	default:
		return 2 * time.Second
	}
}

// LogLevel is the least important level that is logged.
type LogLevel int

// The log levels. The zero value is the default.
const (
	LogInfo LogLevel = iota
	LogDebug
	LogWarn
	LogError
)

func (l LogLevel) String() string { return enumName(l, "info", "debug", "warn", "error") }

// Slog is the level in the words of log/slog.
func (l LogLevel) Slog() slog.Level {
	switch l {
	case LogDebug:
		return slog.LevelDebug
	case LogWarn:
		return slog.LevelWarn
	case LogError:
		return slog.LevelError
	default:
		return slog.LevelInfo
	}
}

// LogFormat is how a log line is written.
type LogFormat int

// The log formats.
const (
	LogText LogFormat = iota
	LogJSON
)

func (f LogFormat) String() string { return enumName(f, "text", "json") }

// Births says whether the kernel's tracepoint for new connections is used.
type Births int

// The settings of watch.births.
const (
	BirthsAuto Births = iota // where the kernel offers it
	BirthsOff                // never
)

func (b Births) String() string { return enumName(b, "auto", "off") }

// Reaction is what a policy asks for. The zero value asks for nothing.
type Reaction int

// The reactions.
const (
	ReactIgnore Reaction = iota // no action and no event
	ReactSignal                 // tell, touch nothing
	ReactReap                   // abort the connections
)

func (r Reaction) String() string { return enumName(r, "ignore", "signal", "reap") }

// Scope says which network namespaces are tuned.
type Scope struct {
	Of ScopeOf
	// Globs of Kubernetes namespaces, pods and units, of ScopeGlobs.
	Globs []string
}

// ScopeOf is a kind of scope. The zero value is the default.
type ScopeOf int

// The scopes.
const (
	ScopeRedis ScopeOf = iota // with a watched connection, now or within the last hour
	ScopeHost                 // the host's alone
	ScopeAll                  // all
	ScopeGlobs                // of what the globs name
)

func (s ScopeOf) String() string { return enumName(s, "redis", "host", "all", "globs") }

// Drift is what is done about a sysctl that somebody changes after us.
type Drift int

// The ways. The zero value is the default.
const (
	DriftReport Drift = iota // leave it, and tell
	DriftRepair              // change it back
)

func (d Drift) String() string { return enumName(d, "report", "repair") }

// Leave is the value of a sysctl that is not to be touched.
const Leave = -1

// Config is all of redisguard.toml. Field names are the keys of the file in
// Go's spelling; what each means stands beside it there.
type Config struct {
	Mode    Mode    // ceiling for every job
	Profile Profile // sets down_after where reap.down_after does not
	Log     LogSection
	Watch   WatchSection
	Exclude ExcludeSection
	Tune    TuneSection
	Arm     ArmSection
	Reap    ReapSection
	Policy  PolicySection
	Audit   AuditSection
	Probe   ProbeSection
	Record  RecordSection
	API     APISection
	Metrics MetricsSection
}

// LogSection is [log].
type LogSection struct {
	Level  LogLevel
	Format LogFormat
}

// WatchSection is [watch].
type WatchSection struct {
	Ports     []uint16      // remote ports taken for Redis; no duplicates, never 0
	Mode      Mode          // ceiling for connections to those ports
	Loopback  bool          // whether connections over loopback count
	DumpCPU   float64       // share of one core that table dumps may use
	Discovery time.Duration // pause between two looks for new connections
	Tick      time.Duration // pause between two looks at known connections
	Births    Births
}

// ExcludeSection is [exclude]: lists of path.Match globs. What any of them
// matches is never touched; MatchAny does the matching.
type ExcludeSection struct {
	Namespaces []string // Kubernetes namespaces
	Pods       []string // pod names
	Units      []string // systemd units
	Users      []string // login names or decimal uids
	Commands   []string // comm of the process
}

// TuneSection is [tune]. The sysctls have the kernel's names and units; Leave
// leaves one alone.
type TuneSection struct {
	Mode               Mode
	Scope              Scope
	TCPRetries2        int
	TCPKeepaliveTime   int // seconds
	TCPKeepaliveIntvl  int // seconds
	TCPKeepaliveProbes int
	TCPSynRetries      int
	TCPRtoMaxMs        int
	TCPOrphanRetries   int
	TCPFinTimeout      int // seconds
	Drift              Drift
	Override           bool // write over values that somebody has chosen
	RedisServers       bool // also where Redis itself listens
	RestoreOnStop      bool
}

// ArmSection is [arm]. 0 leaves UserTimeout and RTOMax alone.
type ArmSection struct {
	Mode              Mode
	KeepaliveIdle     time.Duration // whole seconds
	KeepaliveInterval time.Duration // whole seconds
	KeepaliveCount    int
	Canary            bool
	UserTimeout       time.Duration
	RTOMax            time.Duration
}

// ReapSection is [reap].
type ReapSection struct {
	Mode       Mode
	DownAfter  time.Duration // 0: that of the profile; see Config.EffectiveDownAfter
	Rate       float64       // reaps per second
	Burst      int           // reaps that may come at once
	MaxShare   float64       // share of the tracked connections a minute, on evidence of one kind
	Spread     time.Duration // widest window over which one endpoint's reaps are spread
	MinSilence time.Duration // no connection is reaped before it was silent for so long
}

// PolicySection is [policy].
type PolicySection struct {
	OnDown         Reaction // the endpoint is gone
	OnUnresponsive Reaction // it accepts or acknowledges but does not answer
}

// AuditSection is [audit].
type AuditSection struct {
	File    string // absolute path, "" for none
	MaxSize int64  // bytes
}

// ProbeSection is [probe].
type ProbeSection struct {
	Timeout   time.Duration
	PerSecond float64       // cap for each endpoint
	Mark      uint32        // SO_MARK of our own probes; 0 sets none
	Baseline  time.Duration // pause between two probes of a healthy endpoint
}

// RecordSection is [record].
type RecordSection struct {
	File    string // absolute path, "" for none
	MaxSize int64  // bytes
}

// APISection is [api].
type APISection struct {
	Socket      string // absolute path, "" for none
	AdminSocket string // the same
	Group       string // name or number of who may act beside root, "" for nobody
	// Connections and Streams bound those that are open, the others those of one
	// pod, container or user.
	MaxConnections     int
	MaxConnectionsEach int
	MaxStreams         int
	MaxStreamsEach     int
}

// MetricsSection is [metrics].
type MetricsSection struct {
	Listen string // TCP address "ip:port", "" for none
}

// Default returns what holds without a file. Each call returns fresh slices.
func Default() Config {
	return Config{
		Mode:    Enforce,
		Profile: Balanced,
		Log:     LogSection{Level: LogInfo, Format: LogText},
		Watch: WatchSection{
			Ports:     []uint16{6379, 6380},
			Mode:      Observe,
			DumpCPU:   0.02,
			Discovery: time.Second,
			Tick:      200 * time.Millisecond,
			Births:    BirthsAuto,
		},
		Exclude: ExcludeSection{
			Namespaces: []string{}, Pods: []string{}, Units: []string{}, Users: []string{}, Commands: []string{},
		},
		Tune: TuneSection{
			Mode: Enforce, TCPRetries2: 5, TCPKeepaliveTime: 15, TCPKeepaliveIntvl: 5, TCPKeepaliveProbes: 3, TCPSynRetries: 3,
			TCPRtoMaxMs: Leave, TCPOrphanRetries: Leave, TCPFinTimeout: Leave,
		},
		Arm: ArmSection{Mode: Enforce, KeepaliveIdle: 10 * time.Second, KeepaliveInterval: 3 * time.Second, KeepaliveCount: 5, Canary: true},
		Reap: ReapSection{
			Mode:       Enforce,
			Rate:       500,
			Burst:      200,
			MaxShare:   0.5,
			Spread:     time.Second,
			MinSilence: 500 * time.Millisecond,
		},
		Policy: PolicySection{OnDown: ReactReap, OnUnresponsive: ReactSignal},
		Audit:  AuditSection{MaxSize: 64 << 20},
		Probe: ProbeSection{
			Timeout:   time.Second,
			PerSecond: 2,
			Mark:      0x5264, // "Rd"
			Baseline:  10 * time.Minute,
		},
		Record: RecordSection{MaxSize: 256 << 20},
		API: APISection{
			Socket:         "/run/redisguard/redisguard.sock",
			AdminSocket:    "/run/redisguard-admin/admin.sock",
			MaxConnections: 512, MaxConnectionsEach: 64, MaxStreams: 2048, MaxStreamsEach: 256,
		},
	}
}

// EffectiveDownAfter is reap.down_after, or the profile's where that is 0.
func (c Config) EffectiveDownAfter() time.Duration {
	if c.Reap.DownAfter > 0 {
		return c.Reap.DownAfter
	}
	return c.Profile.DownAfter()
}

// Validate reports every setting that is impossible, joined with errors.Join;
// each part is an *Error. Parse has done it already for what it returns.
func (c Config) Validate() error {
	var found problems
	for _, k := range c.keys() {
		if problem := k.check(); problem != "" {
			found.add(&Error{Key: k.name, Problem: problem, Allowed: k.allowed})
		}
	}
	found.cross(&c)
	return found.join()
}

// Diff lists the settings in which b differs from a, in the order of the file
// and in words for a log: "reap.rate: 500 -> 100".
func Diff(a, b Config) []string {
	var out []string
	kb := b.keys()
	for i, k := range a.keys() {
		if was, is := k.show(), kb[i].show(); was != is {
			out = append(out, k.name+": "+was+" -> "+is)
		}
	}
	return out
}

// MatchAny reports whether one of globs (path.Match syntax, valid by Validate)
// matches the whole of name. An empty name matches nothing: it stands for "not
// known", which no pattern speaks about.
func MatchAny(globs []string, name string) bool {
	if name == "" {
		return false
	}
	for _, g := range globs {
		if ok, err := path.Match(g, name); err == nil && ok {
			return true
		}
	}
	return false
}

// The limits of the settings. They are there to catch mistakes (a missing
// unit, a zero too many), so they are wide.
const (
	maxPorts   = 64   // more conditions make the kernel's filter slower than none
	maxGlobs   = 1000 // for each list
	maxGlobLen = 256
	minFile    = 64 << 10
	maxFile    = 1 << 40
)

// keys lists every setting with the place in c where it lives. Parsing,
// validation, Diff and the tests of redisguard.toml all go by this one list.
func (c *Config) keys() []key {
	modes := []Mode{Off, Observe, Enforce}
	reactions := []Reaction{ReactReap, ReactSignal, ReactIgnore}
	return []key{
		enumKey("mode", &c.Mode, modes...),
		enumKey("profile", &c.Profile, Fast, Balanced, Calm),

		enumKey("log.level", &c.Log.Level, LogDebug, LogInfo, LogWarn, LogError),
		enumKey("log.format", &c.Log.Format, LogText, LogJSON),

		portsKey("watch.ports", &c.Watch.Ports),
		enumKey("watch.mode", &c.Watch.Mode, modes...),
		boolKey("watch.loopback", &c.Watch.Loopback),
		floatKey("watch.dump_cpu", &c.Watch.DumpCPU, 0.001, 0.5),
		durationKey("watch.discovery", &c.Watch.Discovery, 200*time.Millisecond, time.Minute),
		durationKey("watch.tick", &c.Watch.Tick, 50*time.Millisecond, time.Second),
		enumKey("watch.births", &c.Watch.Births, BirthsAuto, BirthsOff),

		globsKey("exclude.namespaces", &c.Exclude.Namespaces),
		globsKey("exclude.pods", &c.Exclude.Pods),
		globsKey("exclude.units", &c.Exclude.Units),
		globsKey("exclude.users", &c.Exclude.Users),
		globsKey("exclude.commands", &c.Exclude.Commands),

		enumKey("tune.mode", &c.Tune.Mode, modes...),
		scopeKey("tune.scope", &c.Tune.Scope),
		// The ranges are those of package sysctl, as a test has it.
		orLeave(intKey("tune.tcp_retries2", &c.Tune.TCPRetries2, 1, 255), &c.Tune.TCPRetries2),
		orLeave(intKey("tune.tcp_keepalive_time", &c.Tune.TCPKeepaliveTime, 1, 32767), &c.Tune.TCPKeepaliveTime),
		orLeave(intKey("tune.tcp_keepalive_intvl", &c.Tune.TCPKeepaliveIntvl, 1, 32767), &c.Tune.TCPKeepaliveIntvl),
		orLeave(intKey("tune.tcp_keepalive_probes", &c.Tune.TCPKeepaliveProbes, 1, 127), &c.Tune.TCPKeepaliveProbes),
		orLeave(intKey("tune.tcp_syn_retries", &c.Tune.TCPSynRetries, 1, 127), &c.Tune.TCPSynRetries),
		orLeave(intKey("tune.tcp_rto_max_ms", &c.Tune.TCPRtoMaxMs, 1000, 120_000), &c.Tune.TCPRtoMaxMs),
		orLeave(intKey("tune.tcp_orphan_retries", &c.Tune.TCPOrphanRetries, 0, 255), &c.Tune.TCPOrphanRetries),
		orLeave(intKey("tune.tcp_fin_timeout", &c.Tune.TCPFinTimeout, 1, 32767), &c.Tune.TCPFinTimeout),
		enumKey("tune.drift", &c.Tune.Drift, DriftReport, DriftRepair),
		boolKey("tune.override", &c.Tune.Override),
		boolKey("tune.redis_servers", &c.Tune.RedisServers),
		boolKey("tune.restore_on_stop", &c.Tune.RestoreOnStop),

		enumKey("arm.mode", &c.Arm.Mode, modes...),
		wholeSeconds(durationKey("arm.keepalive_idle", &c.Arm.KeepaliveIdle, time.Second, 32767*time.Second), &c.Arm.KeepaliveIdle),
		wholeSeconds(durationKey("arm.keepalive_interval", &c.Arm.KeepaliveInterval, time.Second, 32767*time.Second), &c.Arm.KeepaliveInterval),
		intKey("arm.keepalive_count", &c.Arm.KeepaliveCount, 1, 127),
		boolKey("arm.canary", &c.Arm.Canary),
		orZero(durationKey("arm.user_timeout", &c.Arm.UserTimeout, time.Second, time.Hour), &c.Arm.UserTimeout),
		orZero(durationKey("arm.rto_max", &c.Arm.RTOMax, time.Second, 2*time.Minute), &c.Arm.RTOMax),

		enumKey("reap.mode", &c.Reap.Mode, modes...),
		orZero(durationKey("reap.down_after", &c.Reap.DownAfter, 200*time.Millisecond, 10*time.Minute), &c.Reap.DownAfter),
		floatKey("reap.rate", &c.Reap.Rate, 0.01, 1e6),
		intKey("reap.burst", &c.Reap.Burst, 1, 1_000_000),
		floatKey("reap.max_share", &c.Reap.MaxShare, math.SmallestNonzeroFloat64, 1),
		durationKey("reap.spread", &c.Reap.Spread, 0, time.Minute),
		durationKey("reap.min_silence", &c.Reap.MinSilence, 50*time.Millisecond, time.Minute),

		enumKey("policy.on_down", &c.Policy.OnDown, reactions...),
		enumKey("policy.on_unresponsive", &c.Policy.OnUnresponsive, reactions...),

		fileKey("audit.file", &c.Audit.File),
		intKey("audit.max_size", &c.Audit.MaxSize, minFile, maxFile),

		durationKey("probe.timeout", &c.Probe.Timeout, 100*time.Millisecond, 1500*time.Millisecond),
		floatKey("probe.per_second", &c.Probe.PerSecond, 0.01, 100),
		intKey("probe.mark", &c.Probe.Mark, 0, math.MaxUint32),
		durationKey("probe.baseline", &c.Probe.Baseline, time.Second, 24*time.Hour),

		fileKey("record.file", &c.Record.File),
		intKey("record.max_size", &c.Record.MaxSize, minFile, maxFile),

		socketKey("api.socket", &c.API.Socket),
		socketKey("api.admin_socket", &c.API.AdminSocket),
		groupKey("api.group", &c.API.Group),
		intKey("api.max_connections", &c.API.MaxConnections, 8, 10_000),
		intKey("api.max_connections_each", &c.API.MaxConnectionsEach, 4, 10_000),
		intKey("api.max_streams", &c.API.MaxStreams, 8, 15_000),
		intKey("api.max_streams_each", &c.API.MaxStreamsEach, 1, 15_000),

		addrKey("metrics.listen", &c.Metrics.Listen),
	}
}

// cross adds what is wrong between settings that are each possible.
func (p *problems) cross(c *Config) {
	if c.Watch.Mode == Enforce && len(c.Watch.Ports) == 0 {
		p.add(&Error{Key: "watch.ports", Problem: "is empty while watch.mode is enforce",
			Allowed: "name at least one port, or set watch.mode to observe or off"})
	}
	if c.Audit.File != "" && c.Audit.File == c.Record.File {
		p.add(&Error{Key: "record.file", Problem: fmt.Sprintf("%s is audit.file too", clip(c.Record.File)),
			Allowed: "two different files"})
	}
	if a, ends := &c.Arm, c.Arm.KeepaliveIdle+time.Duration(c.Arm.KeepaliveCount)*c.Arm.KeepaliveInterval; a.UserTimeout != 0 && a.UserTimeout < ends {
		p.add(&Error{Key: "arm.user_timeout", Problem: fmt.Sprintf("%v is less than the %v that keepalive takes: the kernel would end idle connections at the first unanswered probe", a.UserTimeout, ends),
			Allowed: "at least keepalive_idle + keepalive_count x keepalive_interval, or 0 to leave it unset"})
	}
	if c.API.Socket != "" && filepath.Dir(c.API.Socket) == filepath.Dir(c.API.AdminSocket) {
		// Pods mount directories.
		p.add(&Error{Key: "api.admin_socket", Problem: clip(c.API.AdminSocket) + " is in the directory of api.socket",
			Allowed: "two directories: whoever is given one socket must not get the other with it"})
	}
}

// enumName is the v-th of names, or a number for a value nobody should have.
func enumName[E ~int](v E, names ...string) string {
	if v < 0 || int(v) >= len(names) {
		return fmt.Sprintf("invalid(%d)", int(v))
	}
	return names[v]
}

// clip quotes s for an error message, shortened: it comes from a file.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return fmt.Sprintf("%q", s)
}
