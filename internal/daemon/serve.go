package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os/user"
	"strconv"
	"time"

	"github.com/redisguard/redisguard/api"
	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/metrics"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/view"
)

// serve binds the API's sockets. Where that cannot be done the guard goes on
// without them, for guarding matters more; but not where another daemon has them,
// for two guards would both reap.
func serve(c config.Config, s *supervisor.Supervisor, hub *event.Hub, files proc.FS, follow *follower, ver Version, log *slog.Logger) (*api.Server, error) {
	group, err := groupID(c.API.Group)
	if err != nil {
		return nil, err
	}
	var server *api.Server
	opt := api.Options{
		Source: &source{guard: s, version: ver, started: time.Now().UTC()}, Actor: actor{s, follow}, Hub: hub, Log: log,
		Metrics: metrics.New(metrics.Config{
			Guard: s, Events: hub, API: func() api.Counters { return server.Counters() }, Version: ver.Version, Revision: ver.Revision,
		}),
		Socket: c.API.Socket, AdminSocket: c.API.AdminSocket, Group: group, MetricsListen: c.Metrics.Listen,
		Limits: api.Limits{
			Connections: c.API.MaxConnections, ConnectionsEach: c.API.MaxConnectionsEach, Streams: c.API.MaxStreams, StreamsEach: c.API.MaxStreamsEach,
		},
		Proc: files,
	}
	server, err = api.New(opt)
	switch {
	case err != nil && api.Unavailable(err):
		log.Error("going on without the API", "error", err, "remedy", "let redisguard make that directory, or name others in [api]")
		return nil, nil
	case err != nil:
		return nil, err
	}
	for _, a := range server.Addrs() {
		log.Info("listening", "address", a)
	}
	return server, nil
}

// groupID is the number of a group, -1 for none.
func groupID(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	number := name
	if g, err := user.LookupGroup(name); err == nil {
		number = g.Gid
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n > math.MaxInt32 {
		return -1, fmt.Errorf("cannot let group %q of api.group act: there is no such group", name)
	}
	return int(n), nil
}

// source tells the API of the supervisor.
type source struct {
	guard   *supervisor.Supervisor
	version Version
	started time.Time
}

// supports are the words of the API.
var supports = map[tcpstate.Support]v1.Support{
	tcpstate.Supported: v1.Supported, tcpstate.NotSupported: v1.NotSupported, tcpstate.CouldNotTell: v1.CouldNotTell,
}

// Info implements api.Source.
func (s *source) Info() v1.Status {
	p := s.guard.Policy()
	c := p.Config
	f := s.guard.Figures()
	out := v1.Status{
		Version: s.version.Version, Revision: s.version.Revision, Kernel: s.version.Kernel, Started: &s.started,
		Profile: c.Profile.String(), DownAfterMs: c.EffectiveDownAfter().Milliseconds(),
		Counters: &v1.Counters{
			Reaped: f.Reaped, Spared: f.Spared, Failed: f.Failed, Probes: f.ProbesMade, Dumps: f.Dumps, Gets: f.Gets, Steps: f.Steps, Late: f.Late,
			DiscoveryMs: f.Discovery.Milliseconds(),
		},
	}
	for _, j := range policy.Jobs() {
		m, why := p.Mode(j)
		out.Jobs = append(out.Jobs, v1.Job{Name: j.String(), Mode: v1.Mode(m.String()), Why: why.Text})
	}
	for _, port := range p.Interest.Ports() {
		out.Ports = append(out.Ports, int(port))
	}
	caps := s.guard.Capabilities()
	for _, x := range []struct {
		name string
		tcpstate.Capability
	}{{"sock_diag", caps.Dump}, {"sock_destroy", caps.Destroy}} {
		w := v1.Capability{Name: x.name, Support: supports[x.Support]}
		if x.Err != nil {
			w.Detail = x.Err.Error()
		}
		out.Capabilities = append(out.Capabilities, w)
	}
	return out
}

// Wake implements api.Source.
func (s *source) Wake(target string) { s.guard.Wake(target) }

// View implements api.Source.
func (s *source) View(ctx context.Context) (*view.Node, error) { return s.guard.View(ctx) }

// actor does what the API is asked for.
type actor struct {
	*supervisor.Supervisor
	follow *follower
}

// Reload implements api.Actor.
func (a actor) Reload(ctx context.Context, peer event.Peer) (string, []string, error) {
	return a.follow.reload(ctx, &peer)
}
