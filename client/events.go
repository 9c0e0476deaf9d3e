package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
)

var errPermission = fs.ErrPermission

const (
	// The pause before a stream is opened again, doubled each time.
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	// silentFor is how many heartbeats may be missed before the stream is taken
	// for dead.
	silentFor = 3
	// firstLine is how long the stream may take to begin.
	firstLine = 10 * time.Second
	// maxLine bounds one line of a stream.
	maxLine = 1 << 20
)

// Events follows the events after the cursor, or, if that is "", the present state
// (lines of type snapshot, then one synced) and then the events. With types, only
// events of these come; "endpoint.*" stands for all that begin with "endpoint.".
//
// It never misses one silently. When the stream breaks it is opened again where it
// broke off, after the error was handed out: go on in the loop to wait for it, or
// leave the loop to give up. If the daemon no longer has what came after the
// cursor, or is another run of it, an *Error of kind cursor_gone is handed out and
// a new snapshot follows. The sequence ends with ctx, and after an error that
// another try will not mend.
func (c *Client) Events(ctx context.Context, after string, types ...v1.EventType) iter.Seq2[v1.Event, error] {
	return func(yield func(v1.Event, error) bool) {
		f := follower{client: c, after: after, types: types, yield: yield}
		pause := firstPause
		for ctx.Err() == nil {
			f.heard = false
			err := f.follow(ctx)
			if f.left || ctx.Err() != nil {
				return
			}
			if !yield(v1.Event{}, err) {
				return
			}
			if e, ok := errors.AsType[*Error](err); ok {
				switch {
				case e.Status == http.StatusGone:
					f.after = ""
				case e.Status/100 == 4 && e.Status != http.StatusTooManyRequests:
					return
				}
			}
			if f.heard {
				pause = firstPause
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause + rand.N(pause/2)):
			}
			pause = min(2*pause, lastPause)
		}
	}
}

// follower is one Events under way.
type follower struct {
	client *Client
	after  string
	types  []v1.EventType
	yield  func(v1.Event, error) bool
	heard  bool // something came on the present stream
	left   bool // the caller has had enough
}

// follow reads one stream to its end.
func (f *follower) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := firstLine
	watch := time.AfterFunc(quiet, func() { cancel(errors.New("the event stream has gone silent")) })
	defer watch.Stop()

	q := url.Values{}
	set(q, "after", f.after)
	if len(f.types) > 0 {
		words := make([]string, len(f.types))
		for i, t := range f.types {
			words[i] = string(t)
		}
		q.Set("type", strings.Join(words, ","))
	}
	res, err := f.client.read.request(ctx, http.MethodGet, "/v1/events", q, nil)
	if err != nil {
		return because(ctx, err)
	}
	defer res.Body.Close()
	lines := bufio.NewReaderSize(res.Body, 16<<10)
	synced := f.after != ""
	var end string
	for {
		line, err := readLine(lines)
		if err != nil {
			if end != "" {
				return fmt.Errorf("the daemon has ended the event stream: %s", end)
			}
			return because(ctx, fmt.Errorf("the event stream broke off: %w", err))
		}
		var ev v1.Event
		if err := json.Unmarshal(line, &ev); err != nil {
			return fmt.Errorf("cannot read a line of the event stream: %w", err)
		}
		f.heard = true
		if ev.HeartbeatMs > 0 {
			quiet = silentFor * time.Duration(ev.HeartbeatMs) * time.Millisecond
		}
		synced = synced || ev.Type == v1.Synced
		// The deadline is for the daemon: the caller may take its time.
		watch.Stop()
		switch ev.Type {
		case v1.Hello, v1.Heartbeat:
		case v1.Bye:
			end = ev.Text
		default:
			if !f.yield(ev, nil) {
				f.left = true
				return nil
			}
		}
		if synced && ev.Cursor != "" {
			f.after = ev.Cursor
		}
		watch.Reset(quiet)
	}
}

// because prefers the reason for which ctx was cancelled to what came of it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// readLine reads a line without its end; the result is valid until the next one.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err == nil {
		return line, nil
	}
	if !errors.Is(err, bufio.ErrBufferFull) {
		return nil, err
	}
	long := append([]byte(nil), line...)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(long) > maxLine {
			return nil, fmt.Errorf("a line is longer than %d bytes", maxLine)
		}
		line, err = r.ReadSlice('\n')
		long = append(long, line...)
	}
	return long, err
}
