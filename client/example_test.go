package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
)

// daemon plays a daemon: it answers each request with the next function.
type daemon struct {
	socket string
	server *httptest.Server
	asked  chan string
}

func play(dir string, answer func(n int, w http.ResponseWriter, r *http.Request)) *daemon {
	d := &daemon{socket: filepath.Join(dir, "s"), asked: make(chan string, 100)}
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		panic(err)
	}
	n := 0
	d.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.asked <- r.Method + " " + r.URL.String()
		n++
		answer(n, w, r)
	})}}
	d.server.Start()
	return d
}

func (d *daemon) close() { d.server.CloseClientConnections(); d.server.Close() }

func example() (*daemon, func()) {
	dir, err := os.MkdirTemp("", "rgclient")
	if err != nil {
		panic(err)
	}
	d := play(dir, func(_ int, w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/status":
			fmt.Fprint(w, `{"scope":"host","version":"v1.0.0","mode":{"effective":"enforce"},"from":"the future"}`)
		case "/v1/connections":
			fmt.Fprint(w, `[{"id":"7-a1","endpoint":"10.0.0.5:6379","health":"stalled","stalled_ms":4200}]`)
		case "/v1/events":
			fmt.Fprintln(w, `{"type":"hello","heartbeat_ms":15000}`)
			fmt.Fprintln(w, `{"type":"synced","cursor":"e1-4"}`)
			fmt.Fprintln(w, `{"type":"endpoint.down","cursor":"e1-5","seq":5,"endpoint":"10.0.0.5:6379","text":"nothing heard for 2s"}`)
			fmt.Fprintln(w, `{"type":"connection.reaped","cursor":"e1-6","seq":6,"endpoint":"10.0.0.5:6379","outcome":"reaped"}`)
		}
	})
	return d, func() { d.close(); os.RemoveAll(dir) }
}

func ExampleClient_Status() {
	d, done := example() // a daemon of this example; without Socket it is the node's
	defer done()
	c := client.New(client.Config{Socket: d.socket})
	defer c.Close()
	status, err := c.Status(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(status.Version, status.Mode.Effective)
	// Output: v1.0.0 enforce
}

func ExampleClient_Connections() {
	d, done := example()
	defer done()
	c := client.New(client.Config{Socket: d.socket})
	defer c.Close()
	list, err := c.Connections(context.Background(), client.ConnectionQuery{Stalled: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, k := range list {
		fmt.Println(k.ID, k.Endpoint, k.Health, k.StalledMs, "ms")
	}
	// Output: 7-a1 10.0.0.5:6379 stalled 4200 ms
}

func ExampleClient_Events() {
	d, done := example()
	defer done()
	c := client.New(client.Config{Socket: d.socket})
	defer c.Close()
	for event, err := range c.Events(context.Background(), "", v1.EventEndpointDown, v1.EventConnectionReaped) {
		if err != nil {
			// The stream broke. Going on would open it again where it broke off.
			return
		}
		switch event.Type {
		case v1.Synced:
			fmt.Println("up to date")
		case v1.EventEndpointDown, v1.EventConnectionReaped:
			fmt.Println(event.Type, event.Endpoint)
		}
	}
	// Output:
	// up to date
	// endpoint.down 10.0.0.5:6379
	// connection.reaped 10.0.0.5:6379
}

func TestEventsResume(t *testing.T) {
	line := func(w http.ResponseWriter, e v1.Event) { _ = json.NewEncoder(w).Encode(e) }
	event := func(seq uint64) v1.Event {
		return v1.Event{Type: v1.EventEndpointUp, Seq: seq, Cursor: fmt.Sprintf("e1-%d", seq)}
	}
	d := play(t.TempDir(), func(n int, w http.ResponseWriter, _ *http.Request) {
		switch n {
		case 1: // breaks off in the snapshot: begun anew
			line(w, v1.Event{Type: v1.Hello, HeartbeatMs: 15000})
			line(w, v1.Event{Type: v1.Snapshot, Finding: &v1.Finding{ID: "f1"}})
		case 2: // breaks off after an event
			line(w, v1.Event{Type: v1.Snapshot, Finding: &v1.Finding{ID: "f1"}})
			line(w, v1.Event{Type: v1.Synced, Cursor: "e1-4"})
			line(w, event(5))
			line(w, v1.Event{Type: v1.Bye, Text: "stopping"})
		case 3: // a heartbeat moves the cursor, too
			line(w, v1.Event{Type: v1.Heartbeat, Cursor: "e1-9"})
		case 4:
			w.WriteHeader(http.StatusTooManyRequests)
		case 5:
			w.WriteHeader(http.StatusGone)
			_ = json.NewEncoder(w).Encode(v1.ErrorBody{Error: v1.ErrorDetail{Kind: v1.KindCursorGone, Message: "gone"}})
		case 6: // a snapshot again, and silence
			line(w, v1.Event{Type: v1.Hello, HeartbeatMs: 100})
			line(w, v1.Event{Type: v1.Synced, Cursor: "e2-1"})
			w.(http.Flusher).Flush()
			time.Sleep(600 * time.Millisecond)
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	})
	defer d.close()
	c := client.New(client.Config{Socket: d.socket})
	defer c.Close()
	var got []string
	for e, err := range c.Events(t.Context(), "", "endpoint.*") {
		if err != nil {
			got = append(got, "! "+err.Error())
			continue
		}
		got = append(got, string(e.Type))
	}
	want := []string{
		"snapshot", "! the event stream broke off", "snapshot", "synced", "endpoint.up", "! the daemon has ended the event stream: stopping",
		"! the event stream broke off", "! the daemon answered 429", "! gone", "synced", "! the event stream has gone silent", "! the daemon answered 403",
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
			t.Fatalf("got %q\nwant %q", got, want)
		}
	}
	for _, want := range []string{"", "", "after=e1-5&", "after=e1-9&", "after=e1-9&", "", "after=e2-1&"} {
		if got := <-d.asked; got != "GET /v1/events?"+want+"type=endpoint.%2A" {
			t.Errorf("asked %s, want after %q", got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	c := client.New(client.Config{Socket: dir + "/none", AdminSocket: dir + "/s"})
	defer c.Close()
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), dir+"/none") {
		t.Errorf("no daemon: %v", err)
	}
	d := play(dir, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"error":{"kind":"forbidden","message":"not you"}}`)
	})
	defer d.close()
	_, err := c.SetMode(t.Context(), v1.ModeOff)
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 403 || e.Kind != v1.KindForbidden || e.Message != "not you" {
		t.Errorf("refused: %v", err)
	}
	if got := <-d.asked; got != "PUT /v1/mode" {
		t.Errorf("asked %s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range c.Events(ctx, "") {
		t.Error("an event after the end")
	}
}
