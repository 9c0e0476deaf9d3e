package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/verdict"
)

// audit writes events to a file, one JSON object per line, without ever making
// the guard wait: a disk that is full or slow costs records, which are counted
// and complained about, and nothing else.
type audit struct {
	lines   chan event.Event
	done    chan struct{}
	dropped *atomic.Int64
}

const auditRoom = 4096

// openAudit starts the writer. Without a file in the config it returns one that
// does nothing. wrote is called after each record that was written.
func openAudit(c config.AuditSection, log *slog.Logger, dropped *atomic.Int64, wrote func()) *audit {
	a := &audit{lines: make(chan event.Event, auditRoom), done: make(chan struct{}), dropped: dropped}
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
		for e := range a.lines {
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
	if a.lines != nil {
		close(a.lines)
	}
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
		// Opened anew next time: somebody may have made room by moving it away.
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

// A recorder writes what the core is told to a file, for `redisguard replay`.
type recorder struct {
	f    *os.File
	w    *bufio.Writer
	enc  *json.Encoder
	left int64
	log  *slog.Logger
	head bool // the header is written
}

// RecordHeader is the first line of a recording.
type RecordHeader struct {
	Version  int              `json:"redisguard_recording"`
	Started  time.Time        `json:"started"`
	Settings verdict.Settings `json:"settings"`
}

// RecordVersion is the version of the format that this program writes and reads.
const RecordVersion = 1

func openRecorder(c config.RecordSection, log *slog.Logger) *recorder {
	if c.File == "" {
		return nil
	}
	// What a start finds there is what led to it, and may be wanted.
	err := os.Rename(c.File, c.File+".1")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(c.File, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	if err != nil {
		log.Error("cannot record observations", "error", err)
		return nil
	}
	r := &recorder{f: f, left: c.MaxSize, log: log}
	r.w = bufio.NewWriterSize(&limited{r}, 64<<10)
	r.enc = json.NewEncoder(r.w)
	return r
}

// begin writes the header, once the settings are complete: they name the host's
// namespace, without which a replay would wait in vain for looks at its way out.
func (r *recorder) begin(set verdict.Settings) {
	if r == nil || r.head {
		return
	}
	r.head = true
	r.encode(RecordHeader{Version: RecordVersion, Started: time.Now().UTC(), Settings: set})
}

// limited counts what is written.
type limited struct{ r *recorder }

func (l *limited) Write(b []byte) (int, error) {
	if int64(len(b)) > l.r.left {
		return 0, io.ErrShortWrite
	}
	n, err := l.r.f.Write(b)
	l.r.left -= int64(n)
	return n, err
}

// write records an input. Before the header there is none that matters.
func (r *recorder) write(in *verdict.Input) {
	if r != nil && r.head {
		r.encode(in)
	}
}

func (r *recorder) encode(v any) {
	if r.w == nil {
		return
	}
	if err := r.enc.Encode(v); err != nil {
		r.log.Warn("recording ends", "file", r.f.Name(), "error", err)
		r.w = nil
	}
}

func (r *recorder) close() {
	if r == nil {
		return
	}
	if r.w != nil {
		if err := r.w.Flush(); err != nil {
			r.log.Warn("the end of the recording is lost", "file", r.f.Name(), "error", err)
		}
	}
	r.f.Close()
}

// errands bounds what is done beside the loops.
type errands struct {
	wg    sync.WaitGroup
	slots chan struct{}
}

// maxProbes bounds the probes under way at once, maxLooks the looks at next hops
// and other connections. They do not share their places: in an outage probes last
// long, and the looks say whether it is one.
const (
	maxProbes = 64
	maxLooks  = 16
)

func (e *errands) init(most int) { e.slots = make(chan struct{}, most) }

// run does fn on a goroutine of its own; false says that there are too many.
func (e *errands) run(ctx context.Context, fn func(context.Context)) bool {
	if !e.take() {
		return false
	}
	e.start(ctx, fn)
	return true
}

// take takes a place, if there is one; start or give must follow.
func (e *errands) take() bool {
	select {
	case e.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// give gives the place back.
func (e *errands) give() { <-e.slots }

// start does fn on a goroutine of its own in the place taken.
func (e *errands) start(ctx context.Context, fn func(context.Context)) {
	e.wg.Go(func() {
		defer e.give()
		fn(ctx)
	})
}

func (e *errands) wait() { e.wg.Wait() }
