// Package tui is `redisguard top`: what the daemon sees and does, live, in a
// terminal.
//
// The screen is a model that changes by messages only: answers of the daemon,
// events, keys, the size of the terminal. Tests feed it these and hold its lines
// against files. Everything that comes from workloads is escaped where it is put
// into words (package show), so that none can draw on the screen.
package tui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
	"github.com/redisguard/redisguard/internal/show"
)

// Source is what is asked of the daemon; *client.Client is one.
type Source interface {
	Status(ctx context.Context) (v1.Status, error)
	Targets(ctx context.Context) ([]v1.Target, error)
	Endpoints(ctx context.Context) ([]v1.Endpoint, error)
	Connections(ctx context.Context, q client.ConnectionQuery) ([]v1.Connection, error)
	Explain(ctx context.Context, id string) (v1.Explanation, error)
	Events(ctx context.Context, after string, types ...v1.EventType) iter.Seq2[v1.Event, error]
}

// Config of the screen. Source must be set.
type Config struct {
	Source Source
	// Every is the pause between two looks; 0 is a second.
	Every time.Duration
	// Paint colours it.
	Paint show.Paint
}

// Run shows the screen on a terminal until the user has had enough, or ctx ends.
func Run(ctx context.Context, c Config, in, out *os.File) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newModel(ctx, c)
	if err := m.first(); err != nil {
		return err
	}
	p := tea.NewProgram(m, tea.WithInput(in), tea.WithOutput(out))
	// Not WithContext: that kills it, and leaves its reader of keys behind.
	defer context.AfterFunc(ctx, p.Quit)()
	var wg sync.WaitGroup
	wg.Go(func() {
		for e, err := range c.Source.Events(ctx, "") {
			p.Send(eventMsg{e, err})
		}
	})
	_, err := p.Run()
	cancel()
	wg.Wait()
	if errors.Is(err, tea.ErrInterrupted) {
		return nil // told to end
	}
	return err
}

// syncWithin is how long Once waits for the present findings.
const syncWithin = 5 * time.Second

// Once writes the screen as it is now, as many lines as it takes.
func Once(ctx context.Context, c Config, out io.Writer, width int) error {
	m := newModel(ctx, c)
	if err := m.first(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, syncWithin)
	defer cancel()
	for e, err := range c.Source.Events(ctx, "") {
		if err != nil || e.Type == v1.Synced {
			break
		}
		m.applyEvent(e)
	}
	m.width, m.height, m.once = width, 0, true
	for _, line := range m.lines() {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}
