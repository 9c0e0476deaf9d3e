// Package journal keeps what the daemon has seen, judged and done: it publishes events to
// all subscribers (hub, audit file, log, figures), records what the verdict
// core is told, and keeps what a successor needs to know.
package journal

import (
	"context"
	"log/slog"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/figures"
)

// Config of a Journal. All but Audit must be set.
type Config struct {
	Hub     *event.Hub
	Log     *slog.Logger
	Figures *figures.Set
	Audit   config.AuditSection
}

// Journal is the one publisher of events. It is safe for concurrent use.
type Journal struct {
	Config
	audit *audit
}

// Open opens the audit file, if the config has one, and returns the journal; Close it.
func Open(c Config) *Journal {
	return &Journal{Config: c, audit: openAudit(c.Audit, c.Log, &c.Figures.AuditDropped, func() { c.Figures.Success(figures.AuditFile) })}
}

// Close writes what is left to write, but waits for no disk that hangs.
func (j *Journal) Close() { j.audit.close() }

// Publish gives an event its number and its time, unless it has one, and passes it on.
// It never blocks.
func (j *Journal) Publish(e event.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	e.Seq = j.Hub.Publish(e)
	j.Figures.Event(&e)
	j.audit.add(e)
	level := e.Level()
	if !j.Log.Enabled(context.Background(), level) {
		return
	}
	attrs := []slog.Attr{slog.Uint64("seq", e.Seq)}
	word := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	if e.Endpoint.IsValid() {
		word("endpoint", e.Endpoint.String())
	}
	word("target", e.Target)
	word("namespace", e.Namespace)
	if e.Interface != 0 {
		attrs = append(attrs, slog.Uint64("interface", uint64(e.Interface)))
	}
	word("outcome", e.Outcome)
	if e.Connection != nil {
		attrs = append(attrs, slog.Any("connection", e.Connection))
	}
	if e.Evidence != nil {
		attrs = append(attrs, slog.Any("evidence", e.Evidence))
	}
	if e.Change != nil {
		attrs = append(attrs, slog.String("from", e.Change.From), slog.String("to", e.Change.To))
	}
	if e.TookMs != 0 {
		attrs = append(attrs, slog.Int64("took_ms", e.TookMs))
	}
	if e.Peer != nil {
		attrs = append(attrs, slog.Any("peer", e.Peer))
	}
	attrs = append(attrs, slog.String("text", e.Text))
	j.Log.LogAttrs(context.Background(), level, string(e.Type), attrs...)
}
