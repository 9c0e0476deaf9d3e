package metrics

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// The states of endpoints and of paths to them.
const (
	up           = "up"
	notAccepting = "not_accepting"
	suspect      = "suspect"
	down         = "down"
)

var endpointStates = []string{up, notAccepting, suspect, down}

// unwell are the paths that are not up.
func (r *reading) unwell() map[verdict.PathKey]string {
	m := map[verdict.PathKey]string{}
	for _, f := range r.now.Open {
		path := f.Opened.Path()
		switch f.Code {
		case verdict.EndpointDown:
			m[path] = down
		case verdict.EndpointSuspect:
			m[path] = suspect
		case verdict.EndpointRefuses:
			m[path] = notAccepting
		}
	}
	return m
}

func stateWord(s tcpstate.State) string {
	switch s {
	case tcpstate.Established:
		return "established"
	case tcpstate.SynSent:
		return "connecting"
	}
	return "closing"
}

// watchedPort is the target of what is watched for its port alone.
const watchedPort = "watched_port"

// all are the guard's metrics, in the order of the way from a connection that is
// found to a client that is back.
func all() []metric {
	return append(nodeMetrics(), targetMetrics()...)
}

// nodeMetrics are those that every node has.
func nodeMetrics() []metric {
	return []metric{
		{
			name: "redisguard_build_info", help: "What runs here; always 1.", labels: []string{"version", "revision", "goversion"}, kind: gauge,
			count: func(r *reading, say func(float64, ...string)) { say(1, r.Version, r.Revision, goVersion()) },
		},
		{
			name: "redisguard_last_success_timestamp_seconds", labels: []string{"component"}, kind: gauge,
			help: "When a component last did its work, 0 for never. The attributor and the audit file have work only now and then.",
			count: func(r *reading, say func(float64, ...string)) {
				for c, at := range r.Succeeded {
					v := 0.0
					if !at.IsZero() {
						v = float64(at.UnixMilli()) / 1000
					}
					say(v, string(c))
				}
			},
		},

		{
			name: "redisguard_mode", help: "How far the guard may go now: 1 for the mode in force.", labels: []string{"mode"}, kind: gauge,
			count: func(r *reading, say func(float64, ...string)) {
				for _, m := range []config.Mode{config.Off, config.Observe, config.Enforce} {
					v := 0.0
					if r.now.Mode != nil && r.now.Mode.Effective == m.String() {
						v = 1
					}
					say(v, m.String())
				}
			},
		},
		{
			name: "redisguard_findings", help: "Open findings by code.", labels: []string{"code"}, kind: gauge,
			count: func(r *reading, say func(float64, ...string)) {
				n := map[verdict.EventType]int{}
				for _, c := range event.Codes() {
					n[c] = 0
				}
				for _, f := range r.now.Open {
					n[f.Code]++
				}
				for code, n := range n {
					say(float64(n), string(code))
				}
			},
		},
		{
			name: "redisguard_endpoints", labels: []string{"target", "state"}, kind: gauge,
			help: "Endpoints that local processes are connected to, by the worst state on any path.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				state := map[netip.AddrPort]string{}
				for i := range r.node.Connections {
					state[r.node.Connections[i].TCP.Remote] = up
				}
				for path, s := range r.unwell() {
					if s == down || state[path.Endpoint] != down {
						state[path.Endpoint] = s
					}
				}
				of := map[netip.AddrPort]string{}
				for i := range r.node.Connections {
					k := &r.node.Connections[i]
					of[k.TCP.Remote] = cmp.Or(k.Target, watchedPort)
				}
				n := map[[2]string]int{}
				for a, s := range state {
					n[[2]string{cmp.Or(of[a], watchedPort), s}]++
				}
				for _, t := range r.labels() {
					for _, s := range endpointStates {
						say(float64(n[[2]string{t, s}]), t, s)
					}
				}
			},
		},
		{
			name: "redisguard_connections", labels: []string{"target", "endpoint_state", "state"}, kind: gauge,
			help: "Watched connections, by the state of the path to the endpoint and by their own.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				unwell := r.unwell()
				n := map[[3]string]int{}
				for i := range r.node.Connections {
					k := &r.node.Connections[i]
					path := up
					if s, ok := unwell[k.Path()]; ok {
						path = s
					}
					n[[3]string{cmp.Or(k.Target, watchedPort), path, stateWord(k.TCP.State)}]++
				}
				for _, t := range r.labels() {
					for _, path := range endpointStates {
						for _, s := range []string{"established", "connecting", "closing"} {
							say(float64(n[[3]string{t, path, s}]), t, path, s)
						}
					}
				}
			},
		},
		{
			name: "redisguard_connections_exempt", labels: []string{"reason"}, kind: gauge,
			help: "Watched connections that may not be reaped, by the reason.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				n := map[string]int{}
				for i := range r.node.Connections {
					n[r.node.Connections[i].Exempt]++
				}
				for _, x := range policy.Exemptions() {
					say(float64(n[string(x)]), string(x))
				}
			},
		},
		{
			name: "redisguard_connections_armed", labels: []string{"state"}, kind: gauge,
			help: "Watched connections by how it stands with their keepalive.",
			count: func(r *reading, say func(float64, ...string)) {
				if r.node == nil {
					return
				}
				n := map[view.ArmState]int{}
				for i := range r.node.Connections {
					n[r.node.Connections[i].Arm.State]++
				}
				for _, st := range view.ArmStates() {
					say(float64(n[st]), string(st))
				}
			},
		},
		number(gauge, "redisguard_namespaces", "Network namespaces of this node.", func(r *reading) int64 { return r.Namespaces }),
		{
			name: "redisguard_tune_namespaces", labels: []string{"state"}, kind: gauge,
			help: "Network namespaces by how it stands with their TCP limits, those that concern nobody left out.",
			count: func(r *reading, say func(float64, ...string)) {
				for st, n := range r.Tuning {
					say(float64(n), string(st))
				}
			},
		},
		perKey("redisguard_tunes_total", "Network namespaces that were tuned, restored, found changed by somebody else, or could not be tuned.", "outcome",
			func(r *reading) map[figures.TuneOutcome]int64 { return r.Tunes }, func(o figures.TuneOutcome) string { return string(o) }),
		perKey("redisguard_arms_total", "Connections whose keepalive was set, found as it should be, or could not be set; those that failed are tried again.", "outcome",
			func(r *reading) map[figures.ArmOutcome]int64 { return r.Arms }, func(o figures.ArmOutcome) string { return string(o) }),
		{
			name: "redisguard_discovery_age_seconds", kind: gauge,
			help:  "Age of the oldest view of a network namespace that is known to have something new: how late discovery is.",
			count: func(r *reading, say func(float64, ...string)) { say(r.Discovery.Seconds()) },
		},
		number(counter, "redisguard_connect_events_total", "New connections that the kernel's tracepoint told of.", func(r *reading) int64 { return r.ConnectEvents }),
		number(counter, "redisguard_connect_events_lost_total", "New connections that the kernel's tracepoint had no room to tell of; dumps find them later.", func(r *reading) int64 { return r.ConnectEventsLost }),
		number(counter, "redisguard_discovery_dumps_total", "Dumps of a network namespace's connections.", func(r *reading) int64 { return r.Dumps }),
		number(counter, "redisguard_discovery_dump_errors_total", "Dumps of a network namespace's connections that failed.", func(r *reading) int64 { return r.DumpErrors }),
		number(counter, "redisguard_attributions_total", "Connections whose process was looked for.", func(r *reading) int64 { return r.Attributions }),
		number(counter, "redisguard_attributions_unexplained_total", "Connections for which no process was found.", func(r *reading) int64 { return r.Unexplained }),
		number(counter, "redisguard_questions_total", "Listening sockets that were asked whether they are Redis itself.", func(r *reading) int64 { return r.Questions }),

		number(counter, "redisguard_watch_looks_total", "Exact looks at single connections.", func(r *reading) int64 { return r.Gets }),
		number(counter, "redisguard_watch_steps_total", "Steps of the verdict core.", func(r *reading) int64 { return r.Steps }),
		{
			name: "redisguard_watch_lateness_seconds", help: "How much later than planned a round of looks began.",
			spread: func(r *reading, say func(figures.Distribution, ...string)) { say(r.Lateness) },
		},
		perKey("redisguard_probes_total", "Probes of endpoints that have ended.", "outcome",
			func(r *reading) map[verdict.Outcome]int64 { return r.Figures.Probes },
			func(o verdict.Outcome) string { return strings.ReplaceAll(o.String(), " ", "_") }),
		number(counter, "redisguard_asks_total", "Connections that were asked by an empty segment whether their peer is there.", func(r *reading) int64 { return r.Asks }),
		number(counter, "redisguard_tasks_skipped_total", "Probes and looks that were not made because too many were under way.", func(r *reading) int64 { return r.TasksSkipped }),
		number(counter, "redisguard_watch_inbox_waits_total", "Messages to the watcher that had to wait for room in its inbox.", func(r *reading) int64 { return r.InboxWaits }),

		{
			name: "redisguard_detection_seconds", labels: []string{"rule"},
			help: "How long a connection had been silent when it was judged half-dead.",
			spread: func(r *reading, say func(figures.Distribution, ...string)) {
				for rule, d := range r.Detection {
					say(d, string(rule))
				}
			},
		},
		perKey("redisguard_reaps_withheld_total", "Connections judged half-dead and not reaped, for want of a permit or by policy.", "rule",
			func(r *reading) map[verdict.Rule]int64 { return r.Withheld }, func(x verdict.Rule) string { return string(x) }),
		{
			name: "redisguard_reaps_total", labels: []string{"rule", "outcome"}, kind: counter,
			help: "Reaps that were tried. Spared was heard at the last look, gone had ended by itself.",
			count: func(r *reading, say func(float64, ...string)) {
				for k, n := range r.Reaps {
					say(float64(n), string(k.Rule), string(k.Outcome))
				}
			},
		},
		{
			name: "redisguard_reap_wait_seconds", help: "From the verdict to the reap: the spread, the rate limit and the breaker.",
			spread: func(r *reading, say func(figures.Distribution, ...string)) { say(r.Wait) },
		},
		{
			name: "redisguard_recovery_seconds", help: "From the reap to the client's being heard on a new connection.",
			spread: func(r *reading, say func(figures.Distribution, ...string)) { say(r.Recovery) },
		},

		perKey("redisguard_events_total", "Events by type.", "type",
			func(r *reading) map[verdict.EventType]uint64 { return r.events }, func(t verdict.EventType) string { return string(t) }),
		number(counter, "redisguard_audit_dropped_total", "Records that could not be written to the audit file; they are in the log.", func(r *reading) int64 { return r.AuditDropped }),

		number(gauge, "redisguard_api_connections", "Connections to the Unix sockets that are open.", func(r *reading) int64 { return r.api.OpenConnections }),
		number(gauge, "redisguard_api_streams", "Event streams that are open.", func(r *reading) int64 { return r.api.OpenStreams }),
		number(counter, "redisguard_api_requests_total", "Requests that were let in.", func(r *reading) int64 { return r.api.Requests }),
		number(counter, "redisguard_api_stream_lines_total", "Lines written to event streams.", func(r *reading) int64 { return r.api.Lines }),
		number(counter, "redisguard_api_stream_bytes_total", "Bytes written to event streams.", func(r *reading) int64 { return r.api.Bytes }),
		perWord("redisguard_api_streams_ended_total", "Event streams that have ended. The daemon drops those too slow, silent (nothing was taken for a minute) or garbage (something was sent).", "reason",
			func(r *reading) map[string]int64 {
				c := &r.api
				return map[string]int64{"left": c.Left, "slow": c.DroppedSlow, "silent": c.DroppedSilent, "garbage": c.DroppedGarbage}
			}),
		perWord("redisguard_api_refused_total", "Connections, streams and requests that were refused, by the reason.", "reason",
			func(r *reading) map[string]int64 {
				c := &r.api
				return map[string]int64{
					"connections": c.RefusedConnections, "streams": c.RefusedStreams, "rate": c.RefusedRates, "rights": c.RefusedRights, "origin": c.RefusedOrigins,
				}
			}),
	}
}
