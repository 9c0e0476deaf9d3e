package journal

import (
	"encoding/json"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
)

// audit writes events to a file, one JSON object per line, without ever making
// the guard wait: a disk that is full or slow costs records, which are counted
// and complained about, and nothing else.
type audit struct {
	lines   chan event.Event
	end     chan struct{} // closed: what is there is to be written, and that is all
	done    chan struct{}
	dropped *atomic.Int64
}

const auditRoom = 4096

// openAudit starts the writer. Without a file in the config it returns one that
// does nothing. wrote is called after each record that was written.
func openAudit(c config.AuditSection, log *slog.Logger, dropped *atomic.Int64, wrote func()) *audit {
	a := &audit{lines: make(chan event.Event, auditRoom), end: make(chan struct{}), done: make(chan struct{}), dropped: dropped}
	if c.File == "" {
		a.lines = nil
		close(a.done)
		return a
	}
	go func() {
		defer close(a.done)
		f := &rotating{path: c.File, max: c.MaxSize}
		defer f.close()
		var lastComplaint time.Time
		for {
			e, more := a.next()
			if !more {
				return
			}
			if err := f.write(e); err != nil {
				dropped.Add(1)
				if time.Since(lastComplaint) > time.Minute {
					lastComplaint = time.Now()
					log.Error("cannot write the audit file; the same records are in this log", "file", c.File, "error", err, "remedy", "make room on the disk, or set audit.file")
				}
			} else {
				wrote()
			}
		}
	}()
	return a
}

// next waits for a line. There are no more when the end was called and none is left.
func (a *audit) next() (e event.Event, more bool) {
	select {
	case e = <-a.lines:
		return e, true
	case <-a.end:
	}
	select {
	case e = <-a.lines:
		return e, true
	default:
		return e, false
	}
}

func (a *audit) add(e event.Event) {
	if a == nil || a.lines == nil {
		return
	}
	select {
	case a.lines <- e:
	default:
		a.dropped.Add(1)
	}
}

func (a *audit) close() {
	// The channel of lines stays open: a loop that outlives the end may still publish.
	close(a.end)
	// A write that hangs (a dead network file system) must not keep the daemon
	// from ending.
	select {
	case <-a.done:
	case <-time.After(500 * time.Millisecond):
	}
}

// rotating is a file of JSON lines that moves to <path>.1 when it is full.
type rotating struct {
	path string
	max  int64
	f    *os.File
	size int64
}

func (r *rotating) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if r.f != nil && r.max > 0 && r.size+int64(len(line)) > r.max {
		r.close()
		if err := os.Rename(r.path, r.path+".1"); err != nil {
			return err
		}
	}
	if r.f == nil {
		f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		r.f, r.size = f, st.Size()
	}
	n, err := r.f.Write(line)
	r.size += int64(n)
	if err != nil {
		// Opened anew next time: moving it away may have made room.
		r.close()
	}
	return err
}

func (r *rotating) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}
