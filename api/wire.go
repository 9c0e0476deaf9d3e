package api

import (
	"cmp"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// This file says things of the inside in the words of the wire.

func nsID(ns verdict.NS) string {
	if ns == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(ns), 10)
}

func findingID(seq uint64) string { return "f" + strconv.FormatUint(seq, 10) }

func wireTime(t time.Time) time.Time { return t.UTC() }

func timeRef(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func wireEvidence(e *verdict.Evidence) *v1.Evidence {
	if e == nil {
		return nil
	}
	w := &v1.Evidence{
		Rule: string(e.Rule), Kinds: []string{}, SilenceMs: e.Silence.Milliseconds(), Waiting: e.Waiting, Unanswered: e.Unanswered, Asks: e.Asks, Siblings: e.Siblings,
		ProbesAlive: e.ProbesAlive, ProbesUnanswered: e.ProbesUnanswered, ProbeDetail: e.ProbeDetail,
		Loss: e.Loss, Burst: e.Burst, LogLikelihood: e.Likelihood, NextHop: e.NextHop, Text: e.String(),
	}
	if s := e.Kinds.String(); s != "" {
		w.Kinds = strings.Split(s, "+")
	}
	return w
}

func wireMode(m *event.Mode) *v1.ModeStatus {
	if m == nil {
		return nil
	}
	return &v1.ModeStatus{
		Configured: v1.Mode(m.Configured), Override: v1.Mode(m.Override), Switch: m.Switch, DryRun: m.DryRun, Effective: v1.Mode(m.Effective),
	}
}

func wirePeer(p *event.Peer) *v1.Peer {
	if p == nil {
		return nil
	}
	return &v1.Peer{PID: p.PID, UID: p.UID, Command: p.Comm, Cgroup: p.Cgroup}
}

// wireEventConnection names the connection of an event, nil if it has none.
func wireEventConnection(e *event.Event) *v1.EventConnection {
	if e.Cookie == 0 {
		return nil
	}
	c := &v1.EventConnection{ID: view.ConnID(verdict.ConnKey{NS: e.NS, Cookie: e.Cookie})}
	if e.Endpoint.IsValid() {
		c.Endpoint = e.Endpoint.String()
	}
	if k := e.Connection; k != nil {
		c.Local, c.Endpoint = k.Local.String(), k.Remote.String()
		c.Process = &v1.Process{
			PID: k.PID, Command: k.Comm, UID: k.UID, Unit: k.Unit,
			PodUID: k.PodUID, PodName: k.PodName, PodNamespace: k.PodNamespace, ContainerID: k.ContainerID,
		}
	}
	return c
}

func wireEvent(e *event.Event, epoch string, form event.Form) v1.Event {
	w := v1.Event{
		Type: v1.EventType(e.Type), Cursor: event.Cursor{Epoch: epoch, Seq: e.Seq}.String(), Seq: e.Seq, Time: wireTime(e.Time), Text: e.Text,
		NamespaceID: nsID(e.NS), Namespace: e.Namespace, Interface: e.Interface, Connection: wireEventConnection(e), Evidence: wireEvidence(e.Evidence),
		TookMs: e.TookMs, Outcome: v1.ReapOutcome(e.Outcome), Mode: wireMode(e.Mode), Peer: wirePeer(e.Peer),
		Target: e.Target, Level: v1.Level(strings.ToLower(e.Level().String())),
	}
	if e.Change != nil {
		w.Change = &v1.Change{From: e.Change.From, To: e.Change.To}
	}
	if e.Endpoint.IsValid() {
		w.Endpoint = e.Endpoint.String()
	}
	if form == event.ForPod && e.Peer != nil {
		w.Peer, w.Text = nil, "asked for on the admin socket"
	}
	return w
}

func wireFinding(f *event.Finding, form event.Form) v1.Finding {
	e := wireEvent(f.Opened, "", form)
	return v1.Finding{
		ID: findingID(f.Opened.Seq), Code: v1.Code(f.Code), Severity: v1.Severity(event.SeverityOf(f.Code)), Text: e.Text, Since: e.Time,
		Open: f.Ended.IsZero(), Until: timeRef(f.Until), Ended: timeRef(f.Ended), EndedBy: f.EndedBy,
		Endpoint: e.Endpoint, NamespaceID: e.NamespaceID, Namespace: e.Namespace, Interface: e.Interface, Connection: e.Connection, Evidence: e.Evidence,
	}
}

// wireRedis is nil of a view that does not say.
func wireRedis(r *view.Redis) *v1.Redis {
	if r.Answer == "" {
		return nil
	}
	x := &v1.Redis{Answer: v1.RedisAnswer(r.Answer), Why: r.Why}
	for _, p := range r.Processes {
		x.Processes = append(x.Processes, v1.RedisProcess{PID: p.PID, Command: p.Comm, Port: int(p.Port), Answer: v1.RedisAnswer(p.Answer), Why: p.Why})
	}
	return x
}

// wireTune puts the TCP limits of a namespace on the wire, nil if they were not read.
func wireTune(t *view.Tune) *v1.Tune {
	if t == nil {
		return nil
	}
	w := &v1.Tune{
		State: v1.TuneState(t.State), Why: t.Why, Values: make([]v1.TuneValue, len(t.Values)), Meaning: t.Meaning,
		BusyMs: t.Busy.Milliseconds(), IdleMs: t.Idle.Milliseconds(), ConnectMs: t.Connect.Milliseconds(),
	}
	for i, x := range t.Values {
		w.Values[i] = v1.TuneValue{Key: x.Key, Unit: x.Unit, Value: x.Value, Owner: v1.TuneOwner(x.Owner), Want: x.Want, Original: x.Original}
	}
	return w
}

func wireProcess(uid uint32, o *proc.Owner) *v1.Process {
	if o == nil {
		return nil
	}
	return &v1.Process{
		PID: o.Process.PID, Command: proc.Safe(o.Process.Comm), UID: uid, Unit: proc.Safe(o.Workload.Unit),
		PodUID: o.Workload.PodUID, PodName: o.PodName, PodNamespace: o.PodNamespace, ContainerID: o.Workload.ContainerID,
	}
}

// health is what we think of a connection: what was judged, else what one look
// shows.
func health(c *view.Connection, f *event.Finding, now time.Time) (v1.ConnectionHealth, time.Duration) {
	since, _, stalled := c.TCP.Stalled()
	if f != nil {
		// The event tells for how long it had been so; the judgement may have
		// come later than the stall.
		began := f.Opened.Time.Add(-time.Duration(f.Opened.TookMs) * time.Millisecond)
		if f.Code == verdict.ConnectionStalled {
			return v1.HealthStalled, max(since, now.Sub(began), 0)
		}
		return v1.HealthHalfDead, max(since, now.Sub(began), 0)
	}
	switch {
	case stalled:
		return v1.HealthStalled, since
	case c.TCP.State == tcpstate.SynSent, c.TCP.HasInfo && c.TCP.Info.Unacked > 0:
		return v1.HealthWaiting, 0
	default:
		return v1.HealthOK, 0
	}
}

func wireConnection(n *view.Node, c *view.Connection, f *event.Finding) v1.Connection {
	w := v1.Connection{
		ID: view.ConnID(c.Key), Endpoint: c.TCP.Remote.String(), Target: c.Target, Local: c.TCP.Local.String(), NamespaceID: nsID(c.Key.NS),
		Namespace: n.Spaces[c.Space].Name, Interface: c.TCP.Interface, Reapable: c.Reapable(), WhyNot: c.WhyNot, Process: wireProcess(c.TCP.UID, c.Owner), AsOf: wireTime(c.Seen),
		LastSentMs: c.TCP.Info.LastDataSent.Milliseconds(), LastReceivedMs: c.TCP.Info.LastDataRecv.Milliseconds(),
		LastAckMs: c.TCP.Info.LastAckRecv.Milliseconds(), Unacked: int64(c.TCP.Info.Unacked), Retransmits: int64(c.TCP.Retrans),
		RetransmitsTotal: int64(c.TCP.Info.TotalRetrans), RTTMicros: c.TCP.Info.RTT.Microseconds(), ReceivedBytes: int64(c.TCP.Info.BytesReceived),
		SegmentsIn: int64(c.TCP.Info.SegsIn), SegmentsOutOfData: int64(c.TCP.Info.DataSegsOut), MPTCP: c.TCP.MPTCP,
	}
	switch c.TCP.State {
	case tcpstate.Established:
		w.State = v1.StateEstablished
	case tcpstate.SynSent:
		w.State = v1.StateConnecting
	default:
		w.State = v1.StateClosing
	}
	var d time.Duration
	w.Health, d = health(c, f, n.At)
	w.StalledMs = d.Milliseconds()
	if a := &c.Arm; a.State != "" {
		w.Arm = &v1.Arm{State: v1.ArmState(a.State), Why: a.Why, Meaning: a.Meaning}
	}
	return w
}

// line is v as one line of JSON, without its end.
func line(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		// Nothing of ours can fail to be encoded, but for a float that is none.
		b, _ = json.Marshal(v1.Event{Type: v1.Bye, Text: "cannot encode: " + err.Error()})
	}
	return b
}

// byConnection finds the finding about a connection.
func byConnection(open []*event.Finding) map[verdict.ConnKey]*event.Finding {
	m := map[verdict.ConnKey]*event.Finding{}
	for _, f := range open {
		switch f.Code {
		case verdict.ConnectionStalled, verdict.ConnectionJudged, event.ReapFailed:
			m[verdict.ConnKey{NS: f.Opened.NS, Cookie: f.Opened.Cookie}] = f
		}
	}
	return m
}

// byPath finds what is wrong on a path.
func byPath(open []*event.Finding) map[verdict.PathKey]*event.Finding {
	m := map[verdict.PathKey]*event.Finding{}
	for _, f := range open {
		if f.Code == verdict.EndpointSuspect || f.Code == verdict.EndpointDown || f.Code == verdict.EndpointRefuses {
			m[f.Opened.Path()] = f
		}
	}
	return m
}

// pathHealth is that of a path with this finding.
func pathHealth(f *event.Finding) v1.EndpointHealth {
	switch {
	case f == nil:
		return v1.EndpointUp
	case f.Code == verdict.EndpointDown:
		return v1.EndpointDown
	case f.Code == verdict.EndpointRefuses:
		return v1.EndpointNotAccepting
	default:
		return v1.EndpointSuspect
	}
}

// worse orders health, the worst first.
func worse(h v1.EndpointHealth) int {
	return map[v1.EndpointHealth]int{v1.EndpointDown: 0, v1.EndpointSuspect: 1, v1.EndpointNotAccepting: 2, v1.EndpointUnknown: 3, v1.EndpointUp: 4}[h]
}

func worseConnection(h v1.ConnectionHealth) int {
	return map[v1.ConnectionHealth]int{v1.HealthHalfDead: 0, v1.HealthStalled: 1, v1.HealthWaiting: 2, v1.HealthOK: 3}[h]
}

// podName is what a pod or container is called.
func podName(o *proc.Owner) string {
	switch {
	case o == nil:
		return ""
	case o.PodName != "":
		return o.PodNamespace + "/" + o.PodName
	default:
		return cmp.Or(o.Workload.PodUID, o.Workload.ContainerID)
	}
}
