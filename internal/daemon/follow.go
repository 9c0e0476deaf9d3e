package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/redisguard/redisguard/api"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/supervisor"
)

// follower brings changes of the config file into force.
type follower struct {
	guard    *supervisor.Supervisor
	log      *slog.Logger
	level    *slog.LevelVar
	file     string
	optional bool // the config does not ask for this file

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
	_, _ = f.apply(ctx, c, err, nil)
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
	changed, err := f.apply(ctx, c, err, peer)
	if err != nil {
		return f.file, nil, fmt.Errorf("%w: %w", api.ErrBadConfig, err)
	}
	return f.file, changed, nil
}

// apply is under mu. peer is who asked for it, nil where the file has changed.
func (f *follower) apply(ctx context.Context, c config.Config, err error, peer *event.Peer) ([]string, error) {
	switch {
	case f.optional && errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		f.log.Error("the changed config is refused, the one before stays in force", "file", f.file, "error", err)
		f.refused = true
		f.guard.Publish(ctx, event.Event{Type: event.ConfigRefused, Text: err.Error(), Peer: peer})
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
	f.guard.Publish(ctx, event.Event{Type: event.ConfigChanged, Text: text, Peer: peer})
	return changed, nil
}
