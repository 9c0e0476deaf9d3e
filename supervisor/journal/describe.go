package journal

import (
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

// Describe names a connection and whose it is, which is nil if nobody knows.
func Describe(k *tcpstate.Connection, o *proc.Owner) *event.Connection {
	c := &event.Connection{Local: k.Local, Remote: k.Remote, Interface: k.Interface, Cookie: k.Cookie, UID: k.UID}
	if o != nil {
		c.PID, c.Comm = o.Process.PID, proc.Safe(o.Process.Comm)
		c.Unit, c.PodUID, c.ContainerID = proc.Safe(o.Workload.Unit), o.Workload.PodUID, o.Workload.ContainerID
		c.PodName, c.PodNamespace = o.PodName, o.PodNamespace
	}
	return c
}
