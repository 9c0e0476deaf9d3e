package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/verdict"
)

// modeFile in the state directory keeps the ceiling that was set by SetMode, so
// that a daemon which is started again is not freer than the one before.
const modeFile = "mode"

// modes are the words of the config.
var modes = map[string]config.Mode{"off": config.Off, "observe": config.Observe, "enforce": config.Enforce}

func (s *Supervisor) stateDir() string {
	if s.opt.StateDir == "" {
		return StateDir
	}
	return s.opt.StateDir
}

// recallMode takes over the ceiling that a predecessor was set.
func (s *Supervisor) recallMode() {
	s.override.Store(int32(config.Enforce))
	b, err := os.ReadFile(filepath.Join(s.stateDir(), modeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	m, ok := modes[strings.TrimSpace(string(b))]
	if err != nil || !ok {
		// Somebody wanted us to do less, and we cannot tell how much.
		m = config.Observe
		s.log.Error("cannot read the mode that was set before the restart, only observing", "file", filepath.Join(s.stateDir(), modeFile), "error", err,
			"remedy", "redisguard mode enforce, or off")
	}
	s.override.Store(int32(m))
	if m != config.Enforce {
		s.log.Warn("the mode that was set before the restart still holds", "mode", m.String(), "remedy", "redisguard mode enforce")
	}
}

// keepMode writes the ceiling down.
func (s *Supervisor) keepMode(m config.Mode) error {
	path := filepath.Join(s.stateDir(), modeFile)
	if m == config.Enforce {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(s.stateDir(), 0o700); err != nil {
		return err
	}
	return sys.ReplaceFile(path, []byte(m.String()+"\n"), true)
}

// ErrNotKept says that a mode is in force, but that a restart will forget it.
var ErrNotKept = errors.New("the mode is in force, but a restart of redisguard will forget it")

// SetMode sets a ceiling beside that of the config: "off", "observe" or "enforce",
// which takes it away. It is in force when SetMode returns, and kept over a
// restart of the daemon; if it cannot be kept, the error wraps ErrNotKept.
func (s *Supervisor) SetMode(ctx context.Context, word string, peer event.Peer) (event.Mode, error) {
	m, ok := modes[word]
	if !ok {
		return event.Mode{}, fmt.Errorf("%.32q is no mode: off, observe or enforce", word)
	}
	// One after the other, and to the end once begun: what is in force and what is
	// kept must not differ because somebody hung up.
	s.setting.Lock()
	defer s.setting.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	kept := s.keepMode(m)
	got := make(chan event.Mode, 1)
	err := s.onWatcher(ctx, func(w *watcher) error {
		s.override.Store(int32(m))
		w.askedBy = &peer
		w.reconfigure()
		w.checkSwitch()
		w.tellMode("the mode was set to " + m.String())
		w.askedBy = nil
		got <- w.mode()
		return nil
	})
	if err != nil {
		return event.Mode{}, err
	}
	mode := <-got
	if kept != nil {
		s.log.Error("the mode that was set cannot be kept over a restart", "mode", word, "error", kept)
		return mode, fmt.Errorf("%w: %w", ErrNotKept, kept)
	}
	return mode, nil
}

// Tell publishes an event of others about the daemon itself, and has it in the
// audit file and the log as well.
func (s *Supervisor) Tell(ctx context.Context, e event.Event) {
	if err := s.onWatcher(ctx, func(w *watcher) error { w.send(e, verdict.ConnKey{}); return nil }); err != nil {
		// The guard has not begun, or has ended.
		e.Time = time.Now().UTC()
		s.opt.Hub.Publish(e)
	}
}

// mode is what sets how far the guard goes.
func (w *watcher) mode() event.Mode {
	s := w.s
	c := s.config()
	m := event.Mode{
		Configured: c.Mode.String(), Override: config.Mode(s.override.Load()).String(), Switch: w.switched, DryRun: s.opt.DryRun,
	}
	all := s.ceiling(c)
	if w.switched || w.off { // [watch] mode may be what turned us off
		all = config.Off
	}
	m.Effective = all.String()
	return m
}

// ceiling is how far any job may go, but for the off switch.
func (s *Supervisor) ceiling(c *config.Config) config.Mode {
	m := config.Ceiling(c.Mode, config.Mode(s.override.Load()))
	if s.opt.DryRun {
		m = config.Ceiling(m, config.Observe)
	}
	return m
}

// tellMode publishes the mode, with a text, if it is another than was published
// last.
func (w *watcher) tellMode(text string) {
	if m := w.mode(); m != w.told {
		w.announce(text)
	}
}

// checkSwitch looks at what may turn us off, and obeys.
func (w *watcher) checkSwitch() {
	w.switched = w.s.disabled()
	off := w.switched || w.s.watchMode(w.s.config()) == config.Off
	if off != w.off {
		w.switchOff(off)
	}
}

// Jobs tells how far each job goes by the config and the ceilings above it.
func (s *Supervisor) Jobs() (watch, reap config.Mode) {
	c := s.config()
	watch = s.watchMode(c)
	if s.disabled() {
		watch = config.Off
	}
	reap = config.Ceiling(watch, c.Reap.Mode)
	if s.powerless {
		reap = config.Ceiling(reap, config.Observe)
	}
	return watch, reap
}

// Config is the configuration in force. Nobody changes it.
func (s *Supervisor) Config() *config.Config { return s.config() }
