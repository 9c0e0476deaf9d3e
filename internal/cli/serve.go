package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/redisguard/redisguard/api"
	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/metrics"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/supervisor"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/view"
)

// serve binds the API's sockets. Where that cannot be done the guard goes on
// without them, for guarding matters more; but not where another daemon has them,
// for two guards would both reap.
func serve(c config.Config, s *supervisor.Supervisor, hub *event.Hub, files proc.FS, follow *follower, ver versionInfo, log *slog.Logger) (*api.Server, error) {
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
	version versionInfo
	started time.Time
}

// supports are the words of the API.
var supports = map[tcpstate.Support]v1.Support{
	tcpstate.Supported: v1.Supported, tcpstate.NotSupported: v1.NotSupported, tcpstate.CouldNotTell: v1.CouldNotTell,
}

// Info implements api.Source.
func (s *source) Info() v1.Status {
	c := s.guard.Config()
	watch, reap := s.guard.Jobs()
	st := s.guard.Stats()
	out := v1.Status{
		Version: s.version.Version, Revision: s.version.Revision, Kernel: s.version.Kernel, Started: &s.started,
		Jobs:    []v1.Job{job("watch", watch, c.Mode, c.Watch.Mode), job("tune", s.guard.TuneMode(), watch, c.Tune.Mode), job("arm", s.guard.ArmMode(), watch, c.Arm.Mode), job("reap", reap, watch, c.Reap.Mode)},
		Profile: c.Profile.String(), DownAfterMs: c.EffectiveDownAfter().Milliseconds(),
		Counters: &v1.Counters{
			Reaped: st.Reaped, Spared: st.Spared, Failed: st.Failed, Probes: st.Probes, Dumps: st.Dumps, Gets: st.Gets, Steps: st.Steps, Late: st.Late,
			DiscoveryMs: st.Discovery.Milliseconds(),
		},
	}
	for _, p := range c.Watch.Ports {
		out.Ports = append(out.Ports, int(p))
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

// job is a job with its mode and what keeps it from enforce.
func job(name string, mode, above, own config.Mode) v1.Job {
	j := v1.Job{Name: name, Mode: v1.Mode(mode.String())}
	switch {
	case mode == config.Enforce:
	case own == mode:
		j.Why = name + ".mode is " + own.String()
	case above == mode:
		j.Why = "the mode above it is " + above.String()
	default:
		j.Why = "switched down, or a privilege is missing"
	}
	return j
}

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

// follower brings changes of the config file into force.
type follower struct {
	guard    *supervisor.Supervisor
	log      *slog.Logger
	level    *slog.LevelVar
	file     string
	optional bool // nobody asked for this file

	mu      sync.Mutex // one change at a time
	conf    config.Config
	refused bool // the file as it was last
}

// changed is called when the file has changed, or has become bad.
func (f *follower) changed(c config.Config, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), tellWithin)
	defer cancel()
	_, _ = f.take(ctx, c, err, nil)
}

// tellWithin is how long the news of a config may take to be told.
const tellWithin = 2 * time.Second

// reload reads the file now.
func (f *follower) reload(ctx context.Context, peer *event.Peer) (string, []string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := config.Load(f.file)
	if f.optional && errors.Is(err, fs.ErrNotExist) {
		c, err = config.Default(), nil
	}
	changed, err := f.take(ctx, c, err, peer)
	if err != nil {
		return f.file, nil, fmt.Errorf("%w: %w", api.ErrBadConfig, err)
	}
	return f.file, changed, nil
}

// take is under mu. peer is who asked for it, nil where the file has changed.
func (f *follower) take(ctx context.Context, c config.Config, err error, peer *event.Peer) ([]string, error) {
	switch {
	case f.optional && errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		f.log.Error("the changed config is refused, the one before stays in force", "file", f.file, "error", err)
		f.refused = true
		f.guard.Tell(ctx, event.Event{Type: event.ConfigRefused, Text: err.Error(), Peer: peer})
		return nil, err
	}
	changed := config.Diff(f.conf, c)
	f.conf = c
	f.level.Set(c.Log.Level.Slog())
	if len(changed) > 0 {
		f.guard.Reconfigure(c)
	}
	var text string
	switch {
	case len(changed) > 1:
		text = fmt.Sprintf("%d settings have changed", len(changed))
	case len(changed) == 1:
		text = changed[0]
	case f.refused:
		text = "the config is as it was before the one that was refused"
	case peer != nil:
		text = "the config was read again, and is the same"
	default:
		return nil, nil
	}
	f.refused = false
	f.guard.Tell(ctx, event.Event{Type: event.ConfigChanged, Text: text, Peer: peer})
	return changed, nil
}
