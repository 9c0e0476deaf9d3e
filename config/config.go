// Package config turns redisguard.toml into a validated Config.
//
// A file is read as a whole or not at all: Parse collects every mistake it can
// find, and a file with one mistake yields no Config. Unknown keys are
// mistakes too, since a misspelled safety setting that is silently ignored is
// worse than a refusal to start. Watch follows a file as it changes.
//
// A Config is not changed after Parse or Default: pass it by
// value, treat its slices as read-only, and compare two of them with Diff.
package config

import (
	"fmt"
	"log/slog"
	"path"
	"strings"
	"time"

	"github.com/redisguard/redisguard/internal/paths"
)

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

// Tracepoints says whether the kernel's tracepoints are used, of connects and of
// retransmissions.
type Tracepoints int

// The settings of watch.tracepoints.
const (
	TracepointsAuto Tracepoints = iota // where the kernel offers them
	TracepointsOff                     // never
)

func (t Tracepoints) String() string { return enumName(t, "auto", "off") }

// Reaction is what a policy asks for. The zero value asks for nothing.
type Reaction int

// The reactions.
const (
	ReactIgnore Reaction = iota // no action and no event
	ReactSignal                 // tell, touch nothing
	ReactReap                   // abort the connections
	ReactAuto                   // what is right for the case; see Config.PolicyOf
)

func (r Reaction) String() string { return enumName(r, "ignore", "signal", "reap", "auto") }

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

// Drift is what is done about a sysctl that another program changes after us.
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
	Targets []TargetSection // never nil after Parse
}

// LogSection is [log].
type LogSection struct {
	Level  LogLevel
	Format LogFormat
}

// WatchSection is [watch].
type WatchSection struct {
	// Ports are the remote ports taken for Redis: no duplicates, never 0. None
	// means that no connection is watched. It is never nil after Parse, since a
	// nil list of ports in a tcpstate.Filter matches every port.
	Ports       []uint16
	Mode        Mode          // ceiling for connections to those ports
	Loopback    bool          // whether connections over loopback count
	Servers     []string      // globs for names of programs that are Redis itself
	DumpCPU     float64       // share of one core that table dumps may use
	Discovery   time.Duration // pause between two looks for new connections
	Tick        time.Duration // pause between two looks at known connections
	Tracepoints Tracepoints
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
	AcceptRate float64       // connections a second that a successor can bear; 0: no spread by its clients
	Spread     time.Duration // widest window over which one endpoint's reaps are spread
	MinSilence time.Duration // no connection is reaped before it was silent for so long
}

// PolicySection is [policy].
type PolicySection struct {
	OnDown         Reaction // the endpoint is gone
	OnUnresponsive Reaction // it accepts or acknowledges but does not answer
	OnDemoted      Reaction // it was a primary, and is a replica now
	OnRemoved      Reaction // it is no node of its target any more
	OnReplaced     Reaction // another process is behind the address now
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
	Group       string // name or number of the group that may act beside root, "" for none
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
			Ports:       []uint16{6379, 6380},
			Mode:        Observe,
			Servers:     []string{},
			DumpCPU:     0.02,
			Discovery:   time.Second,
			Tick:        200 * time.Millisecond,
			Tracepoints: TracepointsAuto,
		},
		Exclude: ExcludeSection{
			Namespaces: []string{}, Pods: []string{}, Units: []string{}, Users: []string{}, Commands: []string{},
		},
		Tune: TuneSection{
			Mode: Enforce, TCPRetries2: 5, TCPKeepaliveTime: 15, TCPKeepaliveIntvl: 5, TCPKeepaliveProbes: 3, TCPSynRetries: 3,
			TCPRtoMaxMs: Leave, TCPOrphanRetries: Leave, TCPFinTimeout: Leave,
		},
		Arm: ArmSection{Mode: Enforce, KeepaliveIdle: 10 * time.Second, KeepaliveInterval: 3 * time.Second, KeepaliveCount: 5},
		Reap: ReapSection{
			Mode:       Enforce,
			Rate:       1000,
			Burst:      200,
			MaxShare:   0.5,
			AcceptRate: 5000,
			Spread:     time.Second,
			MinSilence: 500 * time.Millisecond,
		},
		Policy: PolicySection{OnDown: ReactReap, OnUnresponsive: ReactSignal, OnDemoted: ReactAuto, OnRemoved: ReactAuto, OnReplaced: ReactAuto},
		Audit:  AuditSection{MaxSize: 64 << 20},
		Probe: ProbeSection{
			Timeout:   time.Second,
			PerSecond: 2,
			Mark:      0x5264, // "Rd"
			Baseline:  10 * time.Minute,
		},
		Record: RecordSection{MaxSize: 256 << 20},
		API: APISection{
			Socket:         paths.ReadSocket,
			AdminSocket:    paths.AdminSocket,
			MaxConnections: 512, MaxConnectionsEach: 64, MaxStreams: 2048, MaxStreamsEach: 256,
		},
		Targets: []TargetSection{},
	}
}

// EffectiveDownAfter is reap.down_after, or the profile's where that is 0.
func (c Config) EffectiveDownAfter() time.Duration {
	if c.Reap.DownAfter > 0 {
		return c.Reap.DownAfter
	}
	return c.Profile.DownAfter()
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

// enumName is the v-th of names, or a number for an invalid value.
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
