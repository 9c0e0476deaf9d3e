package daemon

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// logWriter hands log lines to a goroutine that writes them, so that a pipe that
// is not read costs lines and does not block the daemon. What was lost is said as soon as
// there is room again.
type logWriter struct {
	lines chan []byte
	done  chan struct{}
	lost  atomic.Int64
}

// logRoom is how many lines may wait; an outage on a large node is some thousand.
const logRoom = 8192

func newLogWriter(w io.Writer) *logWriter {
	l := &logWriter{lines: make(chan []byte, logRoom), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for line := range l.lines {
			// An error of the log's own pipe has nowhere to be reported.
			_, _ = w.Write(line)
			if n := l.lost.Swap(0); n > 0 {
				fmt.Fprintf(w, "level=WARN msg=\"log lines were lost, since nobody reads the log\" lines=%d\n", n)
			}
		}
	}()
	return l
}

// Write takes one line and never waits.
func (l *logWriter) Write(b []byte) (int, error) {
	select {
	case l.lines <- append([]byte(nil), b...):
	default:
		l.lost.Add(1)
	}
	return len(b), nil
}

// close writes what is left, within reason. Nothing may be written any more.
func (l *logWriter) close() {
	close(l.lines)
	select {
	case <-l.done:
	case <-time.After(500 * time.Millisecond):
	}
}
