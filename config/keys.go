package config

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"
)

// Validate reports every setting that is impossible, joined with errors.Join;
// each part is an *Error. Parse has done it already for what it returns.
func (c Config) Validate() error {
	var found problems
	c.table().check(&found)
	found.cross(&c)
	return found.join()
}

// Diff lists the settings in which b differs from a, in the order of the file
// and in words for a log: "reap.rate: 1000 -> 100". The elements of an array are
// compared by their names, wherever they stand: one that only b has is
// "target[orders]: added", one that only a has is "target[orders]: removed".
func Diff(a, b Config) []string { return diff(a.table(), b.table()) }

// The limits of the settings. They are there to catch mistakes (a missing
// unit, a zero too many), so they are wide.
const (
	maxPorts   = 1024 // beyond tcpstate.MaxPorts the kernel does not filter
	maxGlobs   = 1000 // for each list
	maxGlobLen = 256
	minFile    = 64 << 10
	maxFile    = 1 << 40
)

// table is what the whole file may hold.
func (c *Config) table() table { return table{keys: c.keys(), arrays: []array{c.targets()}} }

// keys lists every setting outside arrays with the place in c where it lives.
// Parsing, validation, Diff and the tests of redisguard.toml all go by this one
// list.
func (c *Config) keys() []key {
	modes := []Mode{Off, Observe, Enforce}
	reactions := []Reaction{ReactReap, ReactSignal, ReactIgnore}
	allReactions := append(slices.Clone(reactions), ReactAuto)
	return []key{
		enumKey("mode", &c.Mode, modes...),
		enumKey("profile", &c.Profile, Fast, Balanced, Calm),

		enumKey("log.level", &c.Log.Level, LogDebug, LogInfo, LogWarn, LogError),
		enumKey("log.format", &c.Log.Format, LogText, LogJSON),

		portsKey("watch.ports", &c.Watch.Ports),
		enumKey("watch.mode", &c.Watch.Mode, modes...),
		boolKey("watch.loopback", &c.Watch.Loopback),
		globsKey("watch.servers", &c.Watch.Servers),
		floatKey("watch.dump_cpu", &c.Watch.DumpCPU, 0.001, 0.5),
		durationKey("watch.discovery", &c.Watch.Discovery, 200*time.Millisecond, time.Minute),
		durationKey("watch.tick", &c.Watch.Tick, 50*time.Millisecond, time.Second),
		enumKey("watch.tracepoints", &c.Watch.Tracepoints, TracepointsAuto, TracepointsOff),

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
		orZero(durationKey("arm.user_timeout", &c.Arm.UserTimeout, time.Second, time.Hour), &c.Arm.UserTimeout),
		orZero(durationKey("arm.rto_max", &c.Arm.RTOMax, time.Second, 2*time.Minute), &c.Arm.RTOMax),

		enumKey("reap.mode", &c.Reap.Mode, modes...),
		orZero(durationKey("reap.down_after", &c.Reap.DownAfter, 200*time.Millisecond, 10*time.Minute), &c.Reap.DownAfter),
		floatKey("reap.rate", &c.Reap.Rate, 0.01, 1e6),
		intKey("reap.burst", &c.Reap.Burst, 1, 1_000_000),
		floatKey("reap.max_share", &c.Reap.MaxShare, math.SmallestNonzeroFloat64, 1),
		floatKey("reap.accept_rate", &c.Reap.AcceptRate, 0, 1e6),
		durationKey("reap.spread", &c.Reap.Spread, 0, time.Minute),
		durationKey("reap.min_silence", &c.Reap.MinSilence, 50*time.Millisecond, time.Minute),

		enumKey("policy.on_down", &c.Policy.OnDown, reactions...),
		enumKey("policy.on_unresponsive", &c.Policy.OnUnresponsive, reactions...),
		enumKey("policy.on_demoted", &c.Policy.OnDemoted, allReactions...),
		enumKey("policy.on_removed", &c.Policy.OnRemoved, allReactions...),
		enumKey("policy.on_replaced", &c.Policy.OnReplaced, allReactions...),

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
	for i, label := range c.targets().labels() {
		p.crossTarget("target["+label+"]", &c.Targets[i])
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
