package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv holds the ClientConfig of a client process.
const childEnv = "REDISGUARD_LAB_CHILD"

// MaybeChild turns this process into a client and never returns, if Host.Client
// started it as one; otherwise it does nothing. Programs that use clients call it
// before anything else: a client is the same program once more, so that its
// sockets belong to a process that lives in the host's namespace.
func MaybeChild() {
	order, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	var cfg ClientConfig
	if err := json.Unmarshal([]byte(order), &cfg); err != nil {
		fmt.Fprintf(os.Stderr, "cannot read %s: %v\n", childEnv, err)
		os.Exit(2)
	}
	// What tables of connections show as the command.
	comm := cfg.Comm
	if comm == "" {
		comm = "lab-" + string(cfg.Kind)
	}
	_ = os.WriteFile("/proc/self/comm", []byte(comm), 0)
	newChild(cfg, os.Stdout).run(os.Stdin)
	os.Exit(0)
}

// child is a client process: a goroutine per connection, and one that reports
// counts.
type child struct {
	cfg   ClientConfig
	conns []*childConn

	mu  sync.Mutex // makes the events of a connection come out in order
	out *bufio.Writer
	enc *json.Encoder
}

func newChild(cfg ClientConfig, stdout io.Writer) *child {
	c := &child{cfg: cfg, out: bufio.NewWriterSize(stdout, 1<<16)}
	c.enc = json.NewEncoder(c.out)
	for i := range cfg.Conns {
		c.conns = append(c.conns, &childConn{child: c, id: i})
	}
	return c
}

// run works until stdin ends. The connections' goroutines go with the process.
func (c *child) run(stdin io.Reader) {
	for _, conn := range c.conns {
		go conn.run()
	}
	go func() {
		for range time.Tick(c.cfg.ReportEvery) {
			c.report()
		}
	}()
	_, _ = io.Copy(io.Discard, stdin)
	for _, conn := range c.conns {
		if nc := conn.net.Load(); nc != nil {
			_ = (*nc).SetLinger(0)
		}
	}
	c.report()
}

// report tells all counts.
func (c *child) report() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.flush()
	}
	c.out.Flush()
}

// childConn is one connection, over all its reconnects.
type childConn struct {
	child *child
	id    int
	net   atomic.Pointer[*net.TCPConn]

	// The path of a reply takes no lock.
	oks    atomic.Int64 // not reported yet
	lastOK atomic.Int64 // ns since 1970
	row    bool         // the last outcome was an OK; used by the goroutine only

	// Guarded by child.mu.
	local netip.AddrPort
	last  Event // the last error if no connect or OK came since; N not reported yet
}

// flush reports what is only counted. It must be called with child.mu held.
func (c *childConn) flush() {
	if n := c.oks.Swap(0); n > 0 {
		c.emit(Event{T: c.lastOK.Load(), Kind: OK, N: int(n)})
	}
	if c.last.N > 0 {
		c.emit(c.last)
		c.last.N = 0
	}
}

// emit must be called with child.mu held.
func (c *childConn) emit(e Event) {
	e.Conn = c.id
	if e.Op != "connect" {
		e.Local = c.local
	}
	_ = c.child.enc.Encode(e) // without its parent the child is about to be killed
}

// tell reports an event at once, after what was counted before.
func (c *childConn) tell(e Event) {
	c.child.mu.Lock()
	defer c.child.mu.Unlock()
	c.flush()
	c.emit(e)
	c.last = Event{}
	if e.Kind == Error {
		c.last = e
		c.last.N = 0
	}
	c.child.out.Flush()
}

func (c *childConn) connected(nc *net.TCPConn) {
	c.child.mu.Lock()
	c.local = nc.LocalAddr().(*net.TCPAddr).AddrPort()
	c.local = netip.AddrPortFrom(c.local.Addr().Unmap(), c.local.Port())
	c.child.mu.Unlock()
	c.net.Store(&nc)
	c.row = false
	c.tell(Event{T: time.Now().UnixNano(), Kind: Connected})
}

func (c *childConn) ok() {
	now := time.Now().UnixNano()
	if c.row {
		c.lastOK.Store(now)
		c.oks.Add(1)
		return
	}
	c.row = true
	c.tell(Event{T: now, Kind: OK, First: true, N: 1})
}

func (c *childConn) failed(op string, err error) {
	c.row = false
	e := Event{T: time.Now().UnixNano(), Kind: Error, Op: op, Err: err.Error(), Errno: errnoOf(err), N: 1}
	c.child.mu.Lock()
	same := c.last.Op == e.Op && c.last.Errno == e.Errno
	if same {
		c.last.T = e.T
		c.last.N++
	}
	c.child.mu.Unlock()
	if !same {
		c.tell(e)
	}
}

// run connects, works, and begins again, for ever.
func (c *childConn) run() {
	cfg := c.child.cfg
	// Spread the connections over the interval.
	time.Sleep(cfg.Interval * time.Duration(c.id) / time.Duration(cfg.Conns))
	for {
		nc, err := dial(cfg)
		if err != nil {
			c.failed("connect", err)
		} else {
			c.connected(nc)
			op, err := c.work(nc)
			c.failed(op, err)
			c.net.Store(nil)
			nc.Close()
		}
		time.Sleep(cfg.Backoff)
	}
}

// work uses a connection until it fails, and returns what failed.
func (c *childConn) work(nc *net.TCPConn) (op string, err error) {
	cfg := c.child.cfg
	r := bufio.NewReader(nc)
	key := fmt.Sprintf("%s:%d", cfg.Key, c.id)
	var requests [][]byte // sent in turn, each before its reply
	forever := false      // afterwards read without asking
	switch cfg.Kind {
	case Writer:
		requests = [][]byte{command("SET", key, "some value of ordinary length"), command("GET", key)}
	case Idle:
		requests, forever = [][]byte{command("PING")}, true
	case Subscriber:
		requests, forever = [][]byte{command("SUBSCRIBE", cfg.Key)}, true
	case Blpop:
		requests = [][]byte{command("BLPOP", cfg.Key, "0")}
	}
	for i := 0; ; i++ {
		if i == 0 || !forever {
			if _, err := nc.Write(requests[i%len(requests)]); err != nil {
				return "write", err
			}
		}
		_, err := readReply(r)
		if refusal, ok := errors.AsType[replyError](err); ok {
			c.failed("reply", refusal)
			time.Sleep(cfg.Backoff)
		} else if err != nil {
			return "read", err
		} else {
			c.ok()
		}
		if cfg.Kind == Writer && cfg.Interval > 0 {
			time.Sleep(cfg.Interval)
		}
	}
}

// errnoOf is the Errno of an event.
func errnoOf(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	if reply, ok := errors.AsType[replyError](err); ok {
		word, _, _ := strings.Cut(string(reply), " ")
		return word
	}
	switch {
	case errors.Is(err, io.EOF):
		return "EOF"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "TIMEOUT"
	}
	return ""
}

// dial connects with nothing set on the socket.
func dial(cfg ClientConfig) (*net.TCPConn, error) {
	if cfg.Mapped {
		return dialMapped(cfg.Addr, cfg.ConnectTimeout)
	}
	d := &net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: -1}
	if cfg.Device != "" {
		d.Control = func(_, _ string, c syscall.RawConn) (err error) {
			if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), cfg.Device) }); cerr != nil {
				return cerr
			}
			return err
		}
	}
	nc, err := d.Dial("tcp", cfg.Addr.String())
	if err != nil {
		return nil, err
	}
	return nc.(*net.TCPConn), nil
}

// dialMapped connects an AF_INET6 socket to an IPv4 address, for which package
// net always takes an AF_INET one.
func dialMapped(addr netip.AddrPort, timeout time.Duration) (*net.TCPConn, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	to := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close() // FileConn below takes a duplicate
	if timeout > 0 {
		if err := f.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return nil, err
		}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var connectErr error
	err = raw.Write(func(fd uintptr) (done bool) {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = os.NewSyscallError("connect", syscall.Errno(errno))
		}
		if err != nil {
			connectErr = err
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // else still connecting
	})
	if err := errors.Join(err, connectErr); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	// Unlike a Dialer that is told otherwise, FileConn turns keepalive on.
	tc := c.(*net.TCPConn)
	return tc, tc.SetKeepAlive(false)
}
