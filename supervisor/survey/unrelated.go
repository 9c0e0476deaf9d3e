package survey

import (
	"time"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// sameTime is how much earlier an unrelated connection may have fallen silent to be taken
// for a sign of the same trouble.
const sameTime = time.Second

// Unrelated looks how the connections of a namespace fare that are not toward Redis.
func Unrelated(ns netns.Namespace, o verdict.UnrelatedWanted, interest *policy.Interest) (verdict.Unrelated, error) {
	window := sys.Monotonic() - o.Since
	res := verdict.Unrelated{NS: o.Path.NS, At: sys.Monotonic(), Window: window}
	err := netns.Do(ns, func() error {
		var s tcpstate.Socket
		return s.Use(func() error {
			return s.Dump(tcpstate.Filter{States: tcpstate.Mask(tcpstate.Established), Info: true}, func(k *tcpstate.Connection) error {
				if k.Remote.Addr().IsLoopback() || k.Remote.Addr() == o.Path.Endpoint.Addr() || interest.HasPort(k.Remote.Port()) || interest.HasPort(k.Local.Port()) {
					return nil
				}
				heard := min(k.Info.LastAckRecv, k.Info.LastDataRecv)
				switch {
				case heard < window:
					res.Heard++
				case heard < window+sameTime && k.Timer == tcpstate.TimerRetransmit && k.Info.Unacked > 0:
					res.Stalled++
				}
				return nil
			})
		})
	})
	return res, err
}
