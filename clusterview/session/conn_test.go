package session

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

func TestDo(t *testing.T) {
	r := startRedis(t)
	c := dial(t, r.addr, trusting(t))
	if c.Addr() != r.addr {
		t.Errorf("address %v", c.Addr())
	}
	replies := labtest.Must2(c.Do(labtest.Soon(t), []string{"PING"}, []string{"NOSUCH"}, []string{"ECHO", "a\r\nb"}, []string{"ROLE"}))(t)
	if len(replies) != 4 || replies[0].Str != "PONG" || replies[2].Str != "a\r\nb" || len(replies[3].Elems) != 3 {
		t.Errorf("%+v", replies)
	}
	contains(t, Check([]string{"NOSUCH"}, replies[1]), "cannot run NOSUCH", "does not know the command")
	if replies, err := c.Do(labtest.Soon(t)); err != nil || len(replies) != 0 {
		t.Errorf("nothing asked: %v, %v", replies, err)
	}
	if _, err := c.Do(labtest.Soon(t), []string{}); err == nil {
		t.Error("a command of no words is sent")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the test is over")
	cancel(cause)
	if _, err := c.Do(ctx, []string{"PING"}); !errors.Is(err, cause) {
		t.Errorf("a context that is over: %v", err)
	}
	if s := do(t, c, "PING"); s != "PONG" { // nothing was sent, so nothing is lost
		t.Errorf("PING: %q", s)
	}
	c.Close()
	for range 2 {
		if _, err := c.Do(labtest.Soon(t), []string{"PING"}); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
}

// TestPushes has real messages between replies: of a client that tracks keys.
func TestPushes(t *testing.T) {
	r := startRedis(t)
	cfg := trusting(t)
	var pushed []resp.Value
	cfg.Push = func(v resp.Value) { pushed = append(pushed, v) }
	c := dial(t, r.addr, cfg)
	replies := labtest.Must2(c.Do(labtest.Soon(t), []string{"CLIENT", "TRACKING", "ON"}, []string{"SET", "k", "1"}, []string{"GET", "k"},
		[]string{"SET", "k", "2"}, []string{"GET", "k"}))(t)
	if replies[2].Str != "1" || replies[3].Str != "OK" || replies[4].Str != "2" {
		t.Errorf("replies: %+v", replies)
	}
	if len(pushed) != 1 || pushed[0].Elems[0].Str != "invalidate" {
		t.Errorf("pushed: %+v", pushed)
	}
	// Another client's doing comes while nothing is asked.
	do(t, dial(t, r.addr, trusting(t)), "SET", "k", "3")
	ctx, cancel := context.WithCancel(labtest.Soon(t))
	c.cfg.Push = func(v resp.Value) { pushed = append(pushed, v); cancel() }
	labtest.Must(t, c.Idle(ctx))
	if len(pushed) != 2 {
		t.Errorf("pushed: %+v", pushed)
	}
	if s := do(t, c, "GET", "k"); s != "3" {
		t.Errorf("GET: %q", s)
	}
}

func TestIdle(t *testing.T) {
	r := startRedis(t)
	c := dial(t, r.addr, trusting(t))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	labtest.Must(t, c.Idle(ctx))
	labtest.Must(t, c.Idle(ctx)) // which is over already
	do(t, c, "PING")
	ended := make(chan error, 1)
	go func() { ended <- c.Idle(labtest.Soon(t)) }()
	do(t, dial(t, r.addr, trusting(t)), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	err := <-ended
	contains(t, err, "cannot wait on "+r.addr.String(), "closed the connection")
	if _, again := c.Do(labtest.Soon(t), []string{"PING"}); again != err {
		t.Errorf("then %v, want the same error", again)
	}
	c = dial(t, fake(t, script(hello+"+OK\r\n")), trusting(t))
	if err := c.Idle(labtest.Soon(t)); !errors.Is(err, ErrNotRedis) {
		t.Errorf("a reply to nothing: %v", err)
	}
	c = dial(t, fake(t, script(hello+strings.Repeat(">1\r\n+x\r\n", floodBurst+5000))), trusting(t))
	if err := c.Idle(labtest.Soon(t)); !errors.Is(err, ErrFlood) {
		t.Errorf("a flood: %v", err)
	}
}

// TestStrangers dials what is not Redis, or no good one.
func TestStrangers(t *testing.T) {
	cfg := trusting(t)
	cfg.Password = NewPassword("hunter2")
	forever := func(piece string, pause time.Duration) func(net.Conn) {
		return func(c net.Conn) {
			for {
				if _, err := c.Write([]byte(piece)); err != nil {
					return
				}
				time.Sleep(pause)
			}
		}
	}
	for _, tt := range []struct {
		name string
		peer func(net.Conn)
		is   error
		says string
	}{
		{"never answers", script(), ErrTimeout, "no answer in time (200ms)"},
		{"answers a byte at a time", func(c net.Conn) {
			for _, b := range "%1\r\n+proto\r\n:3\r\n" {
				if _, err := c.Write([]byte(string(b))); err != nil {
					return
				}
				time.Sleep(40 * time.Millisecond)
			}
		}, ErrTimeout, "no answer in time"},
		{"a string of 2^62 bytes", script("$4611686018427387904\r\n"), resp.ErrLimit, "more than is accepted"},
		{"an endless string", forever("$1000000\r\nxxxxxxxx", 0), ErrNotRedis, "goes on after its 1000000 bytes"},
		{"an endless line", forever("+xxxxxxxxxxxxxxx", 0), resp.ErrLimit, "a line of more than"},
		{"arrays within arrays", forever("*1\r\n", 0), resp.ErrLimit, "deep"},
		{"attributes without end", forever(strings.Repeat("|1\r\n+a\r\n+b\r\n", 1000), 0), resp.ErrLimit, "in all"},
		{"a flood of pushes", forever(strings.Repeat(">1\r\n+x\r\n", 1000), 0), ErrFlood, "too many messages"},
		{"closes in the middle", func(c net.Conn) { c.Read(make([]byte, 500)); c.Write([]byte(hello[:5])) }, io.ErrUnexpectedEOF, "closed the connection"},
		{"closes at once", func(c net.Conn) { c.Read(make([]byte, 500)) }, io.EOF, "as servers do that want TLS"},
		{"HTTP", script("HTTP/1.1 400 Bad Request\r\n\r\n"), ErrNotRedis, "it seems to speak HTTP"},
		{"SSH", script("SSH-2.0-OpenSSH_9.2\r\n"), ErrNotRedis, "begins with 'S'"},
		{"TLS", script("\x15\x03\x03\x00\x02\x02\x32"), ErrNotRedis, "it expects TLS"},
		{"a map without a version", script("%1\r\n+server\r\n+redis\r\n"), ErrNotRedis, "(map) names no protocol version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := cfg
			if tt.is == ErrTimeout {
				cfg.Timeout = 200 * time.Millisecond
			}
			addr := fake(t, tt.peer)
			start := time.Now()
			_, err := Dial(labtest.Soon(t), addr, cfg)
			if took := time.Since(start); took > cfg.Timeout+time.Second {
				t.Errorf("it took %v", took)
			}
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v, want %v", err, tt.is)
			}
			contains(t, err, "cannot log in to "+addr.String()+": ", tt.says)
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the password is in the error")
			}
		})
	}
	t.Run("resets", func(t *testing.T) {
		// The HELLO is not read, so the close is a RST.
		_, err := Dial(labtest.Soon(t), fake(t, func(net.Conn) {}), cfg)
		contains(t, err, "as servers do that want TLS")
	})
	t.Run("nobody listens", func(t *testing.T) {
		addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
		_, err := Dial(labtest.Soon(t), addr, cfg)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v", err)
		}
		contains(t, err, "cannot connect to "+addr.String()+": connection refused")
	})
	t.Run("a mapped address", func(t *testing.T) {
		addr := fake(t, script(hello))
		c := dial(t, netip.AddrPortFrom(netip.AddrFrom16(addr.Addr().As16()), addr.Port()), cfg)
		if c.Addr() != addr {
			t.Errorf("dialled %v, want %v", c.Addr(), addr)
		}
	})
}

// TestUnanswered has a full accept queue, where connection requests are ignored.
func TestUnanswered(t *testing.T) {
	fd := labtest.Must2(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
	defer unix.Close(fd)
	labtest.Must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	labtest.Must(t, unix.Listen(fd, 0))
	name := labtest.Must2(unix.Getsockname(fd))(t)
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	first := labtest.Must2(net.Dial("tcp", addr.String()))(t) // takes the only place
	defer first.Close()
	cfg := trusting(t)
	cfg.Timeout = 50 * time.Millisecond
	if _, err := Dial(labtest.Soon(t), addr, cfg); !errors.Is(err, ErrTimeout) {
		t.Errorf("%v", err)
	}
	cfg.Timeout = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, addr, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a context: %v", err)
	}
}

func TestCancel(t *testing.T) {
	cfg := trusting(t)
	cfg.Timeout = time.Minute
	for name, peer := range map[string]func(net.Conn){"before the handshake": script(), "in a reply": script(hello + "*2\r\n+x\r\n")} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			c, err := Dial(ctx, fake(t, peer), cfg)
			if err == nil {
				_, err = c.Do(ctx, []string{"PING"})
				if _, again := c.Do(labtest.Soon(t), []string{"PING"}); again != err {
					t.Errorf("then %v", again)
				}
			}
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrTimeout) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("a context that ends after its call", func(t *testing.T) {
		r := startRedis(t)
		c := dial(t, r.addr, cfg)
		for range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			if _, err := c.Do(ctx, []string{"PING"}); err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				c = dial(t, r.addr, cfg)
			}
			do(t, c, "PING")
		}
	})
	t.Run("closed while it waits", func(t *testing.T) {
		c := dial(t, fake(t, script(hello)), cfg)
		time.AfterFunc(20*time.Millisecond, c.Close)
		if _, err := c.Do(labtest.Soon(t), []string{"PING"}); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
	})
}

// TestGrace has an answer that is there when the deadline has passed already, as for a
// process that did not run meanwhile.
func TestGrace(t *testing.T) {
	ours, theirs := tcpPair(t)
	s := &stream{Conn: ours}
	theirs.Write([]byte("x"))
	s.until(past)
	if n, err := s.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	start := time.Now()
	_, err := s.Read(make([]byte, 8))
	if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// TestEndedBefore has a context that ends between two steps of a call, of which the second
// sets its deadline.
func TestEndedBefore(t *testing.T) {
	ours, _ := tcpPair(t)
	s := &stream{Conn: ours}
	ctx, cancel := context.WithCancel(t.Context())
	end := s.during(ctx)
	cancel()
	end() // has waited for what the context does
	if s.ended.Load() {
		t.Error("the next call would be ended, too")
	}
	s.ended.Store(true)
	s.until(time.Now().Add(time.Minute))
	start := time.Now()
	if _, err := s.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln := labtest.Must2(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer ln.Close()
	a = labtest.Must2(net.Dial("tcp", ln.Addr().String()))(t)
	b = labtest.Must2(ln.Accept())(t)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestOptions reads back what the kernel was told.
func TestOptions(t *testing.T) {
	cfg := trusting(t)
	cfg.Mark = 0x5264
	c := dial(t, fake(t, script(hello)), cfg)
	raw := labtest.Must2(c.stream.Conn.(*net.TCPConn).SyscallConn())(t)
	labtest.Must(t, raw.Control(func(fd uintptr) {
		for _, o := range []struct{ level, option, want int }{
			{unix.SOL_SOCKET, unix.SO_MARK, 0x5264},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepaliveIdle.Seconds())},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepaliveInterval.Seconds())},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepaliveCount},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0},
		} {
			if have, err := unix.GetsockoptInt(int(fd), o.level, o.option); err != nil || have != o.want {
				t.Errorf("option %d: %d, %v, want %d", o.option, have, err, o.want)
			}
		}
		l, err := unix.GetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER)
		if err != nil || l.Onoff != 1 || l.Linger != 0 {
			t.Errorf("linger %+v, %v", l, err)
		}
	}))
}
