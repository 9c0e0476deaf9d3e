package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
)

// Keepalive of an idle connection, see "When a connection dies".
const (
	keepaliveIdle     = 3 * time.Second
	keepaliveInterval = time.Second
	keepaliveCount    = 5
)

// Socket is a socket in some namespace that is not connected yet.
type Socket struct {
	file *os.File
	addr netip.AddrPort
	cfg  Config
	home bool // it is in cfg.Home
}

// Open makes a socket in the namespace of the calling thread, which must be locked to its
// goroutine if that is not the process's own. Dial or Close it.
func Open(addr netip.AddrPort, cfg Config) (*Socket, error) {
	s, err := open(addr, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot make a socket for %v: %w", addr, err)
	}
	return s, nil
}

func open(addr netip.AddrPort, cfg Config) (*Socket, error) {
	if !addr.IsValid() || addr.Port() == 0 {
		return nil, errors.New("it is no address to connect to")
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		// What is wrong with files of our own is found out before anybody is dialled.
		if _, err := cfg.TLS.config(""); err != nil {
			return nil, err
		}
	}
	// One address has one form, for MayAuthenticate and for certificates.
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	// The thread's own view, of the moment in which it makes the socket.
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("cannot identify the network namespace: %w", err)
	}
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := sys.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := prepare(fd, cfg.Mark); err != nil {
		sys.Close(fd)
		return nil, err
	}
	key := netns.Key{Dev: ns.Dev, Inode: ns.Ino}
	return &Socket{file: os.NewFile(uintptr(fd), "session"), addr: addr, cfg: cfg, home: key == cfg.Home}, nil
}

func prepare(fd int, mark uint32) error {
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 0}); err != nil {
		return fmt.Errorf("cannot set SO_LINGER: %w", err)
	}
	if mark != 0 {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		if err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("cannot set SO_MARK: %w", err)
		}
	}
	return nil
}

// In makes a socket in ns on the given thread and leaves the namespace again.
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

// Close drops a socket that is not dialled.
func (s *Socket) Close() { s.file.Close() }

// connect waits for the connection and returns it. The socket is used up.
func (s *Socket) connect(ctx context.Context) (*stream, error) {
	defer s.file.Close() // the stream has a duplicate
	if err := s.file.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.file.SetDeadline(time.Now()) })
	defer stop()
	raw, err := s.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	started, connected := false, error(nil)
	err = raw.Write(func(fd uintptr) bool { // until it returns true
		if !started {
			started = true
			connected = unix.Connect(int(fd), s.sockaddr())
			return connected != unix.EINPROGRESS
		}
		connected = state(int(fd))
		return connected != unix.EINPROGRESS
	})
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		// On a busy machine this process may have slept through the answer.
		if cerr := raw.Control(func(fd uintptr) { connected = state(int(fd)) }); cerr == nil && connected != unix.EINPROGRESS {
			err = nil
		}
	}
	if err = errors.Join(err, connected); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(s.file)
	if err != nil {
		return nil, err
	}
	// Only now: package net has just set keepalive to its own defaults, and TCP_NODELAY.
	err = conn.(*net.TCPConn).SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &stream{Conn: conn}, nil
}

// state is the error of a connection request, nil if it is answered, and EINPROGRESS if
// it is not.
func state(fd int) error {
	soerr, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return err
	case soerr != 0:
		return syscall.Errno(soerr)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return unix.EINPROGRESS
	}
	return nil
}

func (s *Socket) sockaddr() unix.Sockaddr {
	if a := s.addr.Addr(); a.Is4() {
		return &unix.SockaddrInet4{Port: int(s.addr.Port()), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(s.addr.Port()), Addr: s.addr.Addr().As16()}
}
