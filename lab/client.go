package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// ClientKind is what the connections of a client do.
type ClientKind string

// The kinds of clients. None of them has a deadline, keepalive or any other
// protection of its own: they are what redisguard is for.
const (
	// Writer sends SET and GET in turn and waits for each reply.
	Writer ClientKind = "writer"
	// Idle sends one PING and then reads for ever.
	Idle ClientKind = "idle"
	// Subscriber sends SUBSCRIBE and reads for ever; each message is an OK.
	Subscriber ClientKind = "subscriber"
	// Blpop waits in BLPOP for ever; each element is an OK. Only then has a
	// connection answered for the first time.
	Blpop ClientKind = "blpop"
)

// ClientConfig says what a client does.
type ClientConfig struct {
	// Kind of the client. If empty, Writer.
	Kind ClientKind `json:"kind"`
	// Addr of the server, a virtual address too.
	Addr netip.AddrPort `json:"addr"`
	// Conns is the number of connections. If 0, 1.
	Conns int `json:"conns"`
	// Interval is the pause between a writer's reply and its next request. If
	// 0, there is none.
	Interval time.Duration `json:"interval"`
	// ConnectTimeout bounds a connect. If 0, only the kernel does, with its
	// ETIMEDOUT after two minutes.
	ConnectTimeout time.Duration `json:"connect_timeout"`
	// Backoff is the pause before connecting again. If 0, 10 ms.
	Backoff time.Duration `json:"backoff"`
	// Key is the channel of a subscriber, the list of a blpop client, and the
	// beginning of a writer's keys. If empty, "lab".
	Key string `json:"key"`
	// ReportEvery is the longest time for which OKs, and repeated errors, are
	// counted before they are reported; the first of a row is reported at once.
	// If 0, 20 ms, or 1 ms per connection if that is more: a thousand reports a
	// second.
	ReportEvery time.Duration `json:"report_every"`
	// Comm is what the process calls itself, at most 15 bytes. If empty, "lab-"
	// and the kind.
	Comm string `json:"comm"`
	// Mapped makes the sockets AF_INET6 ones with an IPv4-mapped address, as
	// Java's and Node's often are. Addr must be IPv4.
	Mapped bool `json:"mapped"`
	// Device binds the sockets to a network interface (SO_BINDTODEVICE), a VRF perhaps.
	// Not with Mapped.
	Device string `json:"device"`
}

// EventKind says what happened on a client's connection.
type EventKind string

// The kinds of events.
const (
	Connected EventKind = "connected" // a connect succeeded
	OK        EventKind = "ok"        // N replies (or messages) came
	Error     EventKind = "error"     // N times Op failed
)

// Event is one line a client reports.
type Event struct {
	// T is when it happened, in ns since 1970. Of several counted together it is
	// the time of the last.
	T int64 `json:"t"`
	// Conn is the number of the connection, from 0; it stays the same over
	// reconnects.
	Conn int       `json:"conn"`
	Kind EventKind `json:"kind"`
	// First marks the first OK of a connection after its connect or an error.
	First bool `json:"first,omitempty"`
	// Op that failed: "connect", "write", "read", or "reply" for an error that
	// the server sent, after which the connection is kept.
	Op string `json:"op,omitempty"`
	// Err is the error's text. Errno is its kind: the name of the errno such as
	// "ECONNABORTED", "EOF", "TIMEOUT" for the client's own connect timeout, the
	// first word of an error reply, or "".
	Err   string `json:"err,omitempty"`
	Errno string `json:"errno,omitempty"`
	// Local is the client's end of the connection, if there was one.
	Local netip.AddrPort `json:"local,omitzero"`
	// N is how many OKs or errors the event stands for, else 0.
	N int `json:"n,omitempty"`
}

// Time is T as a time.Time.
func (e Event) Time() time.Time { return time.Unix(0, e.T) }

// Totals counts what a client has reported.
type Totals struct {
	Connects int
	OK       int            // requests answered, or messages
	Errors   map[string]int // by Errno
}

// Client is a child process with connections to one server.
type Client struct {
	*Process
	cfg   ClientConfig
	stdin io.Closer // its end tells the child to stop

	mu      sync.Mutex
	partial []byte  // a line not yet complete
	events  []Event // see Events
	conns   []clientConn
	ready   int // connections answered at least once
	totals  Totals
	waiters map[*waiter]struct{}
	err     error // of the child's output
}

type clientConn struct {
	local    netip.AddrPort
	answered bool
	run      int // index+1 in events of the run of OKs that goes on, or 0
}

type waiter struct {
	match func(Event) bool
	found chan Event // holds one
}

// Client starts a client process on the host: this program again, which must
// call MaybeChild. ctx only guards the start; Ready waits for its connections.
func (h *Host) Client(ctx context.Context, cfg ClientConfig) (*Client, error) {
	fail := func(err error) (*Client, error) {
		return nil, fmt.Errorf("cannot start a client on host %s: %w", h.Name, err)
	}
	cfg.fill()
	if err := cfg.check(); err != nil {
		return fail(err)
	}
	exe, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	order, err := json.Marshal(cfg)
	if err != nil {
		return fail(err)
	}
	c := &Client{
		cfg:     cfg,
		conns:   make([]clientConn, cfg.Conns),
		totals:  Totals{Errors: make(map[string]int)},
		waiters: make(map[*waiter]struct{}),
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+string(order))
	cmd.Stdout = clientOutput{c}
	cmd.Stderr = os.Stderr
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		return fail(err)
	}
	if c.Process, err = h.Start(ctx, cmd); err != nil {
		return nil, err
	}
	return c, nil
}

func (cfg *ClientConfig) fill() {
	if cfg.Kind == "" {
		cfg.Kind = Writer
	}
	if cfg.Conns == 0 {
		cfg.Conns = 1
	}
	if cfg.Backoff == 0 {
		cfg.Backoff = 10 * time.Millisecond
	}
	if cfg.Key == "" {
		cfg.Key = "lab"
	}
	if cfg.ReportEvery == 0 {
		cfg.ReportEvery = max(20*time.Millisecond, time.Duration(cfg.Conns)*time.Millisecond)
	}
}

func (cfg *ClientConfig) check() error {
	switch {
	case !slices.Contains([]ClientKind{Writer, Idle, Subscriber, Blpop}, cfg.Kind):
		return fmt.Errorf("there is no kind %q", cfg.Kind)
	case !cfg.Addr.IsValid() || cfg.Addr.Port() == 0:
		return fmt.Errorf("%s is no address to connect to", cfg.Addr)
	case cfg.Mapped && cfg.Device != "":
		return fmt.Errorf("a client with Device cannot be Mapped")
	case cfg.Mapped && !cfg.Addr.Addr().Is4():
		return fmt.Errorf("%s cannot be mapped, it is not IPv4", cfg.Addr)
	case cfg.Conns < 0 || cfg.Interval < 0 || cfg.ConnectTimeout < 0 || cfg.Backoff < 0 || cfg.ReportEvery < 0:
		return errors.New("a number in its config is negative")
	}
	return nil
}

// clientOutput is the child's stdout. exec.Cmd.Wait returns after the last Write.
type clientOutput struct{ c *Client }

func (o clientOutput) Write(p []byte) (int, error) {
	c := o.c
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := append(c.partial, p...)
	for {
		line, more, complete := bytes.Cut(rest, []byte("\n"))
		if !complete {
			break
		}
		rest = more
		var e Event
		if err := json.Unmarshal(line, &e); err != nil || e.Conn < 0 || e.Conn >= len(c.conns) {
			c.err = fmt.Errorf("the client printed %q, which is no event", line)
			continue
		}
		c.take(e)
	}
	c.partial = append(c.partial[:0], rest...)
	return len(p), nil
}

// take records an event and shows it to those who wait.
func (c *Client) take(e Event) {
	conn := &c.conns[e.Conn]
	switch e.Kind {
	case Connected:
		c.totals.Connects++
		conn.local = e.Local
	case OK:
		c.totals.OK += e.N
		if !conn.answered {
			conn.answered = true
			c.ready++
		}
	case Error:
		c.totals.Errors[e.Errno] += e.N
	}
	if e.Kind == OK && !e.First && conn.run > 0 {
		run := &c.events[conn.run-1]
		run.T = e.T
		run.N += e.N
	} else {
		c.events = append(c.events, e)
		conn.run = 0
		if e.Kind == OK && !e.First {
			conn.run = len(c.events)
		}
	}
	for w := range c.waiters {
		if w.match(e) {
			w.found <- e
			delete(c.waiters, w)
		}
	}
}

// WaitEvent returns the first event for which match is true, among those
// reported already (see Events) and those to come. match must not call the
// client. The error says so if ctx or the client ends first.
func (c *Client) WaitEvent(ctx context.Context, match func(Event) bool) (Event, error) {
	w := &waiter{match: match, found: make(chan Event, 1)}
	c.mu.Lock()
	for _, e := range c.events {
		if match(e) {
			c.mu.Unlock()
			return e, nil
		}
	}
	c.waiters[w] = struct{}{}
	c.mu.Unlock()

	var err error
	select {
	case e := <-w.found:
		return e, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-c.Done():
		err = errors.New("the client has ended")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiters, w)
	select {
	case e := <-w.found: // both at once
		return e, nil
	default:
		return Event{}, fmt.Errorf("cannot wait for an event of the client on host %s: %w", c.host.Name, errors.Join(err, c.err))
	}
}

// Ready waits until every connection has been answered once.
func (c *Client) Ready(ctx context.Context) error {
	// The function runs with mu held.
	_, err := c.WaitEvent(ctx, func(Event) bool { return c.ready == c.cfg.Conns })
	return err
}

// Events returns what was reported so far, in the order it came. A run of OKs of
// a connection stands as its first OK and one event for all others, so that the
// list grows with connects and errors, not with time.
func (c *Client) Events() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// Local is the client's end of a connection as of its last connect, or invalid.
func (c *Client) Local(conn int) netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns[conn].local
}

// Totals counts what was reported so far; after Stop it is complete.
func (c *Client) Totals() Totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.totals
	t.Errors = maps.Clone(t.Errors)
	return t
}

// Stop lets the client report its last counts and end, and returns the totals.
// Its connections are reset, so that nothing of them is left in the namespace. A
// client that does not end in 5 s, a frozen one say, is killed, which is an
// error. Stopping a client that has ended returns how it did.
func (c *Client) Stop() (Totals, error) {
	c.stdin.Close()
	var late error
	select {
	case <-c.Done():
	case <-time.After(5 * time.Second):
		late = errors.New("it did not end by itself")
		c.Kill()
	}
	err := errors.Join(late, c.Wait())
	c.mu.Lock()
	err = errors.Join(err, c.err)
	c.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("cannot stop the client on host %s: %w", c.host.Name, err)
	}
	return c.Totals(), err
}
