package survey

import (
	"context"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/probe"
	"github.com/redisguard/redisguard/verdict"
)

var neighbours = map[probe.Neighbour]verdict.Neighbour{
	probe.NoNeighbour: verdict.NotOnLink, probe.Reachable: verdict.Reachable, probe.Silent: verdict.Silent, probe.Unknown: verdict.NeighbourUnknown,
}

// NextHop looks at the way out of a namespace toward the endpoint of p. The host is judged
// by its own way out, not by the way to an endpoint that an application may have chosen.
func NextHop(ctx context.Context, ns netns.Namespace, p verdict.PathKey, host bool) verdict.NextHop {
	hop := verdict.NextHop{Path: p, At: sys.Monotonic(), Gateway: verdict.NeighbourUnknown}
	err := netns.Do(ns, func() error {
		var x probe.NextHop
		var err error
		if host {
			x, err = probe.Uplink(ctx, p.Endpoint.Addr())
		} else {
			x, err = probe.Way(ctx, p.Endpoint.Addr(), p.Interface)
		}
		if err != nil {
			return err
		}
		hop.LinkDown, hop.Detail = x.LinkDown, x.Detail
		hop.Gateway, hop.Endpoint = neighbours[x.Gateway], neighbours[x.Endpoint]
		return nil
	})
	if err != nil {
		hop.Detail = err.Error()
	}
	return hop
}
