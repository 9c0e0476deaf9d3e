// Package probe asks, from a network namespace, whether an endpoint is alive
// (a fresh TCP connection and a PING) and whether the way to it is (the next
// hop's neighbour entry, the link).
//
// The answer about an endpoint has three values: alive, dead, could not tell.
// Any reply is life, be it an error, a request for a password or a TLS alert.
// What fails for reasons of our own (descriptors, routes, a policy of this node)
// is never evidence against an endpoint.
//
// A probe must not keep a pod's namespace: its sockets have SO_LINGER {1, 0}, so
// that closing them leaves nothing behind, and live no longer than the timeouts.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/resp"
)

// Outcome is what a probe found out. The zero value is the careful one.
type Outcome uint8

// The outcomes.
const (
	CouldNotTell Outcome = iota
	Alive
	Dead         // no answer to the connection request, or "host unreachable"
	Refused      // the connection request was reset
	Unresponsive // connected, but no reply
)

func (o Outcome) String() string {
	switch o {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	case Refused:
		return "refused"
	case Unresponsive:
		return "unresponsive"
	}
	return "could not tell"
}

// Config of a probe.
type Config struct {
	// Timeout bounds the connection request, and then the reply. It must be
	// positive.
	Timeout time.Duration
	// Mark is set as SO_MARK if it is not 0, which needs CAP_NET_ADMIN: rules of
	// the node can tell our probes from the workload's connections by it.
	Mark uint32
	// Interface is the index of the interface that the socket is bound to, 0 for none: a
	// connection that is bound leads where that interface does, and the same address may
	// be another server elsewhere, or none. A VRF is an interface, too; for a link-local
	// address it is the scope. Needs Linux 5.1 (SO_BINDTOIFINDEX), and before 5.7
	// CAP_NET_RAW; without, Open fails, and a link-local address needs neither.
	Interface uint32
	// Source is the local address that it is made from, if it is valid: what routing and
	// filters let through may hang on it. Where the address is not one of the namespace
	// (the sockets of transparent proxies have foreign ones), the kernel chooses.
	Source netip.Addr
}

// Result of a probe.
type Result struct {
	Outcome Outcome
	// Detail is the reply or the error in a few words.
	Detail string
	// Connected is how long the connection took, 0 if there was none.
	Connected time.Duration
}

// Endpoint connects to addr from the namespace that the calling thread is in and
// sends a PING. Use [Open] inside the namespace and [Socket.Run] outside, if the
// thread should not stay there.
func Endpoint(ctx context.Context, addr netip.AddrPort, cfg Config) Result {
	s, err := Open(addr, cfg)
	if err != nil {
		return Result{Detail: err.Error()}
	}
	return s.Run(ctx)
}

// Socket is a socket that was made in a namespace for one probe of one endpoint.
type Socket struct {
	file *os.File
	addr netip.AddrPort
	cfg  Config
}

// Open makes a socket in the namespace of the calling thread. Run or Close it.
func Open(addr netip.AddrPort, cfg Config) (*Socket, error) {
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := sys.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open a socket for a probe: %w", err)
	}
	if err := prepare(fd, addr, cfg); err != nil {
		sys.Close(fd)
		return nil, fmt.Errorf("cannot prepare the socket of a probe: %w", err)
	}
	return &Socket{file: os.NewFile(uintptr(fd), "probe"), addr: addr, cfg: cfg}, nil
}

func prepare(fd int, addr netip.AddrPort, cfg Config) error {
	if cfg.Interface != 0 && !scoped(addr.Addr()) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, int(cfg.Interface)); err != nil {
			return fmt.Errorf("cannot bind it to interface %d: %w", cfg.Interface, err)
		}
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 0}); err != nil {
		return err
	}
	if cfg.Mark != 0 {
		// Without the capability the probe is merely not told apart.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(cfg.Mark)); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	if cfg.Source.IsValid() {
		// Without this option the port would be taken from all that goes to other addresses.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return err
		}
		err := unix.Bind(fd, cfg.sockaddr(netip.AddrPortFrom(cfg.Source, 0)))
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("cannot bind it to %s: %w", cfg.Source, err)
		}
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

func (c *Config) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if scoped(a.Addr()) {
		sa.ZoneId = c.Interface // which binds it
	}
	return sa
}

// scoped says whether an address means something on one link only, by which it is
// connected to.
func scoped(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }

// Close drops a socket that is not run.
func (s *Socket) Close() { s.file.Close() }

// ping is an inline command, which every Redis since 1.0 understands, and which
// no other server takes for something harmful.
const ping = "PING\r\n"

// replyLimits let pass every answer of Redis to a PING: a word, or an error whose
// longest sentence (MISCONF) has some 350 bytes. Whatever is longer is a reply, too.
var replyLimits = resp.Limits{Line: 1024, Bulk: 1024, Elements: 16, Depth: 2, Total: 4096}

// Run connects and asks. It closes the socket in the end.
func (s *Socket) Run(ctx context.Context) Result {
	connected, failed := s.Connect(ctx)
	if failed != nil {
		return *failed
	}
	return s.Exchange(ctx, connected)
}

// Connect is the first half of Run: it tells how long the connection took, or
// the result if there is none; the socket is closed then. What awaits the
// second half knows already that the endpoint's kernel is alive.
func (s *Socket) Connect(ctx context.Context) (time.Duration, *Result) {
	start := time.Now()
	sent, err := false, s.file.SetDeadline(start.Add(s.cfg.Timeout))
	// After the deadline is set, which would else undo what it does.
	stop := context.AfterFunc(ctx, func() { s.file.SetDeadline(time.Now()) })
	defer stop()
	if err == nil {
		sent, err = s.connect()
	}
	if sent && errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		err = s.late(err, func(fd int) error {
			if _, perr := unix.Getpeername(fd); perr != nil {
				return err
			}
			return nil
		})
	}
	if err == nil {
		return max(time.Since(start), 1), nil
	}
	s.file.Close()
	var r Result
	switch {
	case ctx.Err() != nil:
		r.Detail = ctx.Err().Error()
	case !sent:
		r.Detail = cause(err)
	default:
		r = connectFailed(err)
	}
	return 0, &r
}

// Exchange is the second half of Run, on a connected socket, which it closes.
func (s *Socket) Exchange(ctx context.Context, connected time.Duration) Result {
	defer s.file.Close()
	result := func(o Outcome, detail string) Result {
		return Result{Outcome: o, Detail: detail, Connected: connected}
	}
	s.file.SetDeadline(time.Now().Add(s.cfg.Timeout))
	stop := context.AfterFunc(ctx, func() { s.file.SetDeadline(time.Now()) })
	defer stop()
	in := &replyReader{s: s, ctx: ctx}
	var reply resp.Value
	_, err := s.file.WriteString(ping)
	if err == nil {
		reply, err = resp.NewReader(in, replyLimits).Read()
	}
	switch {
	case in.n > 0: // whatever it is, and whether or not it is whole
		return result(Alive, describe(in.first, reply))
	case ctx.Err() != nil:
		return result(CouldNotTell, ctx.Err().Error())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return result(Unresponsive, fmt.Sprintf("connected, but no reply within %v", s.cfg.Timeout))
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		// The PING is refused: OpenSSL, and so Redis with TLS, closes
		// or resets a connection that does not begin with a handshake. Whoever
		// hung up is there.
		return result(Alive, "hung up on a PING in plain text, as TLS servers do")
	}
	return result(CouldNotTell, "connected, then: "+cause(err))
}

// replyReader reads from a connected socket and remembers what came first.
type replyReader struct {
	s     *Socket
	ctx   context.Context // of the call that reads
	first byte
	n     int // bytes in all
}

func (r *replyReader) Read(buf []byte) (n int, err error) {
	n, err = r.s.file.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) && r.ctx.Err() == nil {
		err = r.s.late(err, func(fd int) error {
			k, _, rerr := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			if rerr == unix.EAGAIN {
				return err
			}
			if n = max(k, 0); n == 0 && rerr == nil {
				return io.EOF
			}
			return rerr
		})
	}
	if n > 0 && r.n == 0 {
		r.first = buf[0]
	}
	r.n += max(n, 0)
	return n, err
}

// late looks once more at the socket after a deadline has passed, by fn. On a busy
// machine this process may have slept through it: then the answer has been here
// all the time, and blaming the endpoint would be wrong. It returns fn's error, or
// err if fn cannot be called.
func (s *Socket) late(err error, fn func(fd int) error) error {
	raw, cerr := s.file.SyscallConn()
	if cerr != nil {
		return err
	}
	_ = raw.Control(func(fd uintptr) { err = fn(int(fd)) }) // fails on a closed file only, and leaves err
	return err
}

// connect connects a non-blocking socket and waits for it with the runtime's
// poller. sent says whether there was something to wait for: what the system
// call itself refuses, such as an address that a route calls unreachable, is
// this node's opinion and not the network's.
func (s *Socket) connect() (sent bool, err error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return false, err
	}
	sa := s.cfg.sockaddr(s.addr)
	started := false
	var cerr error
	err = raw.Write(func(fd uintptr) bool {
		if !started {
			started = true
			if cerr = unix.Connect(int(fd), sa); cerr == unix.EINPROGRESS {
				sent, cerr = true, nil
				return false // until it is writable
			}
			return true
		}
		soerr, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			cerr = err
		case soerr != 0:
			cerr = syscall.Errno(soerr)
		default:
			if _, err := unix.Getpeername(int(fd)); err != nil {
				return false // woken for nothing: not connected yet
			}
		}
		return true
	})
	return sent, errors.Join(cerr, err)
}

// connectFailed judges a connection request that was sent and failed.
func connectFailed(err error) Result {
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return Result{Outcome: Refused, Detail: "connection refused"}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return Result{Outcome: Dead, Detail: "no answer to the connection request"}
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EHOSTDOWN):
		return Result{Outcome: Dead, Detail: "host unreachable"}
	}
	// ENETUNREACH, EACCES, ...: a policy on the way, or of this node's making.
	return Result{Detail: cause(err)}
}

// cause is the innermost error in words.
func cause(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// describe tells what kind of reply came, by its first byte and, if it is RESP and
// came as a whole, its value. Its words are the server's, so only the first, and
// only if it is plain.
func describe(first byte, reply resp.Value) string {
	switch {
	case reply.Kind == resp.Simple || reply.Kind == resp.Error:
		word, _, _ := strings.Cut(reply.Str, " ")
		if word == "" || strings.ContainsFunc(word, func(r rune) bool { return r < '!' || r > '~' }) {
			return "a reply"
		}
		return "reply " + word
	case first == 0x15: // alert record of TLS (RFC 8446, section 5.1)
		return "TLS alert"
	}
	return "a reply"
}

// In makes the socket in ns on the given thread and leaves the namespace again;
// Run it on any goroutine.
func In(t *netns.Thread, ns netns.Namespace, addr netip.AddrPort, cfg Config) (*Socket, error) {
	var s *Socket
	err := t.Visit(ns, func() (err error) {
		s, err = Open(addr, cfg)
		return err
	})
	if err != nil && s != nil {
		s.Close()
		s = nil
	}
	return s, err
}
