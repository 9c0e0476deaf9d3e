package cli

import (
	"net/netip"
	"time"
)

// jsonConnection is one element of `connections --json`. The names stay: others
// read them. A field that is absent is not known, or does not apply.
type jsonConnection struct {
	Namespace      string         `json:"namespace"` // name, or net:[inode]
	NamespaceInode uint64         `json:"namespace_inode"`
	Local          netip.AddrPort `json:"local"`
	Remote         netip.AddrPort `json:"remote"`
	Cookie         uint64         `json:"cookie"`
	State          string         `json:"state"`
	Timer          string         `json:"timer"`
	Stalled        bool           `json:"stalled"`
	StalledMS      *int64         `json:"stalled_ms,omitempty"`
	Unanswered     int            `json:"unanswered"` // timeouts or probes
	HeardMS        *int64         `json:"heard_ms,omitempty"`
	UnsentBytes    uint32         `json:"unsent_bytes"` // written and not acknowledged
	UnreadBytes    uint32         `json:"unread_bytes"`
	RetransTotal   *uint32        `json:"retrans_total,omitempty"` // segments, since the connection began
	RTTUS          *int64         `json:"rtt_us,omitempty"`
	UID            uint32         `json:"uid"`
	Inode          uint32         `json:"inode"` // 0: an orphan
	MPTCP          bool           `json:"mptcp,omitempty"`
	Process        *jsonProcess   `json:"process,omitempty"`
}

type jsonProcess struct {
	PID          int    `json:"pid"`
	Comm         string `json:"comm"`    // the process's own word, as it is
	Holders      int    `json:"holders"` // processes that share the socket
	Unit         string `json:"unit,omitempty"`
	PodUID       string `json:"pod_uid,omitempty"`
	PodNamespace string `json:"pod_namespace,omitempty"`
	PodName      string `json:"pod_name,omitempty"`
	ContainerID  string `json:"container_id,omitempty"`
	Runtime      string `json:"runtime,omitempty"`
}

func connectionsJSON(list []connection) []jsonConnection {
	out := make([]jsonConnection, 0, len(list)) // [], never null
	for i := range list {
		c := &list[i]
		j := jsonConnection{
			Namespace: c.namespace.Name, NamespaceInode: c.namespace.ID.Inode,
			Local: c.Local, Remote: c.Remote, Cookie: c.Cookie,
			State: c.State.String(), Timer: c.Timer.String(),
			Stalled: c.stalled, Unanswered: c.unanswered,
			UnsentBytes: c.WQueue, UnreadBytes: c.RQueue, UID: c.UID, Inode: c.Inode, MPTCP: c.MPTCP,
		}
		if j.Namespace == "" {
			j.Namespace = c.namespace.ID.String()
		}
		if c.stalled {
			j.StalledMS = millis(c.stalledFor)
		}
		if ago, ok := c.Heard(); ok {
			j.HeardMS = millis(ago)
		}
		if c.HasInfo {
			rtt := c.Info.RTT.Microseconds()
			j.RetransTotal, j.RTTUS = &c.Info.TotalRetrans, &rtt
		}
		if o := c.owner; o != nil {
			j.Process = &jsonProcess{
				PID: o.Process.PID, Comm: o.Process.Comm, Holders: o.Holders,
				Unit: o.Workload.Unit, PodUID: o.Workload.PodUID, PodNamespace: o.PodNamespace, PodName: o.PodName,
				ContainerID: o.Workload.ContainerID, Runtime: o.Workload.Runtime,
			}
		}
		out = append(out, j)
	}
	return out
}

func millis(d time.Duration) *int64 {
	ms := d.Milliseconds()
	return &ms
}
