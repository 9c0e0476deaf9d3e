package journal

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/recording"
	"github.com/redisguard/redisguard/verdict"
)

// A Recorder writes what the core is told to a file, for `redisguard replay`.
type Recorder struct {
	f    *os.File
	w    *bufio.Writer
	enc  *json.Encoder
	left int64
	log  *slog.Logger
	head bool // the header is written
}

// OpenRecorder begins a recording, if the config wants one. A nil Recorder records
// nothing.
func OpenRecorder(c config.RecordSection, log *slog.Logger) *Recorder {
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
	r := &Recorder{f: f, left: c.MaxSize, log: log}
	r.w = bufio.NewWriterSize(&limited{r}, 64<<10)
	r.enc = json.NewEncoder(r.w)
	return r
}

// Begin writes the header, once the settings are complete: they name the host's
// namespace, without which a replay would wait in vain for looks at its way out.
func (r *Recorder) Begin(set verdict.Settings) {
	if r == nil || r.head {
		return
	}
	r.head = true
	r.encode(recording.Header{Version: recording.Version, Started: time.Now().UTC(), Settings: set})
}

// limited counts what is written.
type limited struct{ r *Recorder }

func (l *limited) Write(b []byte) (int, error) {
	if int64(len(b)) > l.r.left {
		return 0, io.ErrShortWrite
	}
	n, err := l.r.f.Write(b)
	l.r.left -= int64(n)
	return n, err
}

// Write records an input. Before the header there is none that matters.
func (r *Recorder) Write(in *verdict.Input) {
	if r != nil && r.head {
		r.encode(in)
	}
}

func (r *Recorder) encode(v any) {
	if r.w == nil {
		return
	}
	if err := r.enc.Encode(v); err != nil {
		r.log.Warn("recording ends", "file", r.f.Name(), "error", err)
		r.w = nil
	}
}

// Close ends the recording.
func (r *Recorder) Close() {
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
