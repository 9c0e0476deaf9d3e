package cli

import (
	"fmt"
	"io"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/show"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

// listed is one element of `connections --json`: the API's words, whoever has
// looked, and what only a look of our own shows. The names stay: others read them.
// A field that is absent is not known, or does not apply.
type listed struct {
	v1.Connection
	HeardMs *int64 `json:"heard_ms,omitempty"`
	// Of a look of our own.
	TCPState    string  `json:"tcp_state,omitempty"` // the kernel's word
	Timer       string  `json:"timer,omitempty"`
	UnsentBytes *uint32 `json:"unsent_bytes,omitempty"` // written and not acknowledged
	UnreadBytes *uint32 `json:"unread_bytes,omitempty"`
	Inode       *uint32 `json:"inode,omitempty"`   // 0: an orphan
	Holders     int     `json:"holders,omitempty"` // processes that share the socket
	Runtime     string  `json:"runtime,omitempty"` // of the container
}

// listed puts what a look of our own has shown into the API's words.
func (c *connection) listed(now time.Time) listed {
	ns := c.namespace.ID.Cookie
	if ns == 0 {
		ns = c.namespace.ID.Inode
	}
	l := listed{
		Connection: v1.Connection{
			ID:       fmt.Sprintf("%d-%x", ns, c.Cookie),
			Endpoint: c.Remote.String(), Local: c.Local.String(),
			NamespaceID: fmt.Sprint(ns), Namespace: proc.Safe(c.namespace.String()), Interface: c.Interface,
			State: v1.StateClosing, Health: v1.HealthOK, WhyNot: "the daemon was not asked",
			AsOf: now.UTC(), Retransmits: int64(c.unanswered), MPTCP: c.MPTCP,
		},
		TCPState: c.State.String(), Timer: c.Timer.String(), UnsentBytes: &c.WQueue, UnreadBytes: &c.RQueue, Inode: &c.Inode,
	}
	switch c.State {
	case tcpstate.Established:
		l.State = v1.StateEstablished
	case tcpstate.SynSent:
		l.State = v1.StateConnecting
	}
	if c.stalled {
		l.Health, l.StalledMs = v1.HealthStalled, c.stalledFor.Milliseconds()
	}
	if ago, ok := c.Heard(); ok {
		ms := ago.Milliseconds()
		l.HeardMs = &ms
	}
	if c.HasInfo {
		i := &c.Info
		l.LastSentMs, l.LastReceivedMs, l.LastAckMs = i.LastDataSent.Milliseconds(), i.LastDataRecv.Milliseconds(), i.LastAckRecv.Milliseconds()
		l.Unacked, l.RetransmitsTotal, l.RTTMicros = int64(i.Unacked), int64(i.TotalRetrans), i.RTT.Microseconds()
		l.ReceivedBytes, l.SegmentsIn, l.SegmentsOutOfData = int64(i.BytesReceived), int64(i.SegsIn), int64(i.DataSegsOut)
	}
	l.Process = process(c.owner, c.UID)
	if o := c.owner; o != nil {
		l.Holders, l.Runtime = o.Holders, proc.Safe(o.Workload.Runtime)
	}
	return l
}

// process puts the owner of a user's connection, nil if it is not known, into the API's
// words.
func process(o *proc.Owner, uid uint32) *v1.Process {
	if o == nil {
		return &v1.Process{UID: uid}
	}
	return &v1.Process{
		PID: o.Process.PID, Command: proc.Safe(o.Process.Comm), UID: uid, Unit: proc.Safe(o.Workload.Unit),
		PodUID: o.Workload.PodUID, PodNamespace: proc.Safe(o.PodNamespace), PodName: proc.Safe(o.PodName), ContainerID: o.Workload.ContainerID,
	}
}

// writeConnections writes the table.
func writeConnections(w io.Writer, list []listed, wide bool) {
	t := table{cut: []int{1, 2, 3}, end: wide}
	header := []string{"ID", "NAMESPACE", "PROCESS", "WORKLOAD", "LOCAL", "ENDPOINT", "TARGET", "STATE", "HEARD", "STALLED"}
	if wide {
		header = append(header, "RETRANS", "ARM", "WHY NOT")
	}
	t.add(header...)
	for i := range list {
		l := &list[i]
		heard, stalled := "-", "-"
		if l.HeardMs != nil {
			heard = show.Millis(*l.HeardMs)
		}
		if l.Health == v1.HealthStalled || l.Health == v1.HealthHalfDead {
			stalled = show.Millis(l.StalledMs)
		}
		row := []string{show.Plain(l.ID), show.Plain(l.Namespace), l.process(), show.Workload(l.Process), show.Plain(l.Local), show.Plain(l.Endpoint), show.Plain(l.Target),
			show.State(&l.Connection), heard, stalled}
		if wide {
			row = append(row, fmt.Sprint(l.RetransmitsTotal), show.Arm(l.Arm), or(show.Plain(l.WhyNot), "-"))
		}
		t.add(row...)
	}
	t.optional(6) // TARGET
	t.write(w)
}

// process is how a table shows the owner.
func (l *listed) process() string {
	if l.Inode != nil && *l.Inode == 0 {
		return "(orphan)"
	}
	s := show.Process(l.Process)
	if l.Holders > 1 {
		s += fmt.Sprintf("+%d", l.Holders-1)
	}
	return s
}
