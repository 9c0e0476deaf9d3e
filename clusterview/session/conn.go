package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redisguard/redisguard/resp"
)

// Conn is a connection on which the handshake is done. Its methods may be called by several
// goroutines, one of which has it at a time.
type Conn struct {
	addr     netip.AddrPort
	cfg      Config
	name     string // that the server's certificate must have
	home     bool
	stream   *stream
	rw       net.Conn // the stream, or TLS on it
	verified bool     // rw is TLS, and the server has proven its name
	proto    int
	withheld error
	closed   atomic.Bool // by Close

	mu         sync.Mutex // serialises the calls, and guards what follows
	in         *bufio.Reader
	replies    *resp.Reader // reads from in, and keeps nothing back
	flood      bucket
	subscribed bool
	failed     error
}

// Dial connects from the namespace of the calling thread, see Open and Socket.Dial.
func Dial(ctx context.Context, addr netip.AddrPort, cfg Config) (*Conn, error) {
	s, err := Open(addr, cfg)
	if err != nil {
		return nil, err
	}
	return s.Dial(ctx)
}

// Dial connects, and does the handshakes of TLS and Redis. The socket is used up, also
// if that fails. The error tells by errors.Is what it is, see ErrTLS and its siblings;
// a failed connection has the kernel's error, such as syscall.ECONNREFUSED.
func (s *Socket) Dial(ctx context.Context) (*Conn, error) {
	st, err := s.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %v: %w", s.addr, explain(ctx, err, s.cfg.Timeout, ""))
	}
	c := &Conn{addr: s.addr, cfg: s.cfg, name: s.cfg.ServerName, home: s.home, stream: st, rw: st, proto: 2}
	if c.name == "" {
		c.name = s.addr.Addr().String()
	}
	end := st.during(ctx)
	defer end()
	if s.cfg.TLS != nil {
		st.until(time.Now().Add(s.cfg.Timeout))
		enc, err := s.cfg.TLS.handshake(st, c.name)
		if err != nil {
			return nil, c.fail(ctx, "do a TLS handshake with", err)
		}
		c.rw, c.verified = enc, true
	}
	c.in = bufio.NewReader(c.rw)
	// NewReader takes a bufio.Reader as it is, so that in.Peek sees what replies will read.
	c.replies = resp.NewReader(c.in, s.cfg.Limits)
	if err := c.login(); err != nil {
		return nil, c.fail(ctx, "log in to", err)
	}
	return c, nil
}

// Addr is the address that was dialled.
func (c *Conn) Addr() netip.AddrPort { return c.addr }

// Proto is the version of the protocol that was agreed on, 2 or 3.
func (c *Conn) Proto() int { return c.proto }

// Withheld says why a password that was given was not sent, nil if it was or there is none.
func (c *Conn) Withheld() error { return c.withheld }

// Close closes the connection, at once and without a word to the server. A call that waits
// ends with ErrClosed.
func (c *Conn) Close() {
	c.closed.Store(true)
	c.stream.Close()
}

// Do sends commands together and returns one reply for each, in their order. A reply that
// is an error is a value (see Check), and the connection is as good as before. Each
// reply must come within Config.Timeout of the one before. The error is about the
// connection: it is closed then, and every later call returns the same. That ctx ended
// while replies were awaited is such an error, too.
//
// Commands with no reply, or with several (SUBSCRIBE, MONITOR, CLIENT REPLY), do not
// belong here.
func (c *Conn) Do(ctx context.Context, commands ...[]string) ([]resp.Value, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	for _, cmd := range commands {
		if len(cmd) == 0 {
			return nil, fmt.Errorf("cannot ask %v: a command has no words", c.addr)
		}
	}
	end := c.stream.during(ctx)
	defer end()
	replies, err := c.exchange(commands)
	if err != nil {
		return nil, c.fail(ctx, "ask", err)
	}
	return replies, nil
}

// usable is why a call cannot begin.
func (c *Conn) usable(ctx context.Context) error {
	switch {
	case c.failed != nil:
		return c.failed
	case c.closed.Load():
		return c.fail(ctx, "ask", ErrClosed)
	case ctx.Err() != nil:
		return fmt.Errorf("cannot ask %v: %w", c.addr, context.Cause(ctx))
	case c.subscribed:
		return fmt.Errorf("cannot ask %v: the connection belongs to a subscription", c.addr)
	}
	return nil
}

// exchange writes commands and reads a reply for each.
func (c *Conn) exchange(commands [][]string) ([]resp.Value, error) {
	if err := c.send(commands...); err != nil {
		return nil, err
	}
	replies := make([]resp.Value, 0, len(commands))
	for range commands {
		v, err := c.reply()
		if err != nil {
			return nil, err
		}
		replies = append(replies, v)
	}
	return replies, nil
}

// send writes commands.
func (c *Conn) send(commands ...[]string) error {
	var b []byte
	for _, cmd := range commands {
		b = resp.AppendCommand(b, cmd...)
	}
	c.stream.until(time.Now().Add(c.cfg.Timeout))
	_, err := c.rw.Write(b)
	return err
}

// reply reads the next value that is a reply.
func (c *Conn) reply() (resp.Value, error) {
	c.stream.until(time.Now().Add(c.cfg.Timeout))
	for {
		v, err := c.replies.Read()
		if err != nil || v.Kind != resp.Push {
			return v, err
		}
		if err := c.pushed(v); err != nil {
			return resp.Value{}, err
		}
	}
}

// pushed hands on a message that nobody asked for.
func (c *Conn) pushed(v resp.Value) error {
	if !c.flood.take(time.Now(), size(v)) {
		return ErrFlood
	}
	if c.cfg.Push != nil {
		c.cfg.Push(v)
	}
	return nil
}

// Idle waits on a connection that has nothing to do, so that its end is noticed when it
// comes and not with the next command. Messages that come (RESP3) go to Config.Push. It
// returns nil when ctx ends, and the connection can be used again; else the connection's
// error.
func (c *Conn) Idle(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(ctx); err != nil {
		if c.failed == nil && ctx.Err() != nil {
			return nil
		}
		return err
	}
	end := c.stream.during(ctx)
	defer end()
	for {
		v, err := c.next(time.Time{})
		switch {
		case errors.Is(err, errSilent) && ctx.Err() != nil:
			return nil
		case err == nil && v.Kind != resp.Push:
			err = fmt.Errorf("%w: it sent a reply to no command", ErrNotRedis)
		case err == nil:
			err = c.pushed(v)
		}
		if err != nil {
			return c.fail(ctx, "wait on", err)
		}
	}
}

// errSilent says that not one byte came, so that nothing is lost.
var errSilent = errors.New("nothing was said")

// next reads a value. It waits until the given time for it to begin, for ever if that is
// zero, and Config.Timeout for the rest.
func (c *Conn) next(begin time.Time) (resp.Value, error) {
	c.stream.until(begin)
	if _, err := c.in.Peek(1); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errSilent
		}
		return resp.Value{}, err
	}
	c.stream.until(time.Now().Add(c.cfg.Timeout))
	return c.replies.Read()
}

// fail closes the connection and keeps why: "cannot <verb> 10.0.0.1:6379: cause".
func (c *Conn) fail(ctx context.Context, verb string, err error) error {
	if c.closed.Load() {
		err = ErrClosed
	}
	c.failed = fmt.Errorf("cannot %s %v: %w", verb, c.addr, explain(ctx, err, c.cfg.Timeout, c.name))
	c.stream.Close()
	return c.failed
}

// explain makes of an error of the connection what a reader and errors.Is can tell.
func explain(ctx context.Context, err error, timeout time.Duration, name string) error {
	if ctx.Err() != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errSilent)) {
		return context.Cause(ctx)
	}
	if terr, ok := tlsError(err, name); ok {
		return terr
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errSilent):
		return fmt.Errorf("%w (%v)", ErrTimeout, timeout)
	case errors.Is(err, resp.ErrProtocol):
		return fmt.Errorf("%w: %w", ErrNotRedis, err)
	case hungUp(err), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the server closed the connection: %w", err)
	}
	return err
}

const (
	// floodRate is how many unasked messages a second are read in the long run, and
	// floodBurst how many at once. A Sentinel that sees the hosts of 1,000 primaries die
	// publishes some ten messages for each within seconds, and says nothing else.
	floodRate, floodBurst = 1000, 20000
	// The same for their bytes. Sentinel's messages have some 200.
	floodBytesRate, floodBytesBurst = 1 << 20, 8 << 20
)

// bucket bounds messages and their bytes. The zero value is full.
type bucket struct {
	messages, bytes float64 // that were taken and have not come back
	at              time.Time
}

// take counts one message. It is false if there are too many.
func (b *bucket) take(now time.Time, size int) bool {
	passed := max(0, now.Sub(b.at).Seconds())
	b.messages = max(0, b.messages-passed*floodRate) + 1
	b.bytes = max(0, b.bytes-passed*floodBytesRate) + float64(size)
	b.at = now
	return b.messages <= floodBurst && b.bytes <= floodBytesBurst
}

// size is about what a value takes on the wire.
func size(v resp.Value) int {
	n := len(v.Str) + 8
	for _, list := range [][]resp.Value{v.Elems, v.Attributes} {
		for _, e := range list {
			n += size(e)
		}
	}
	return n
}
