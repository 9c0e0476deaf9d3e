package tcpstate

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
)

// ErrGone says that no socket has this 4-tuple and cookie any more.
var ErrGone = errors.New("the connection is gone")

// ErrNotSupported says that the kernel was built without
// CONFIG_INET_DIAG_DESTROY (or, for dumps, without CONFIG_INET_DIAG).
var ErrNotSupported = errors.New("not supported by this kernel")

// ErrNotPermitted says that CAP_NET_ADMIN is missing in the user namespace that
// owns the network namespace.
var ErrNotPermitted = errors.New("not permitted: CAP_NET_ADMIN is missing")

// dumpBuffer is the size of the receive buffer for dumps. The kernel fills at
// most some 32 KiB of it per read, a buffer that gets smaller during one
// socket's life would truncate (facts.md, sock_diag).
const dumpBuffer = 64 << 10

// A Socket is a sock_diag socket in one network namespace, with the buffers that
// stay with its owner for ever. The zero value is ready to be opened. It is for
// one goroutine at a time, locked to its thread while the namespace is not its
// own.
type Socket struct {
	nl    sys.Netlink
	seq   uint32
	send  []byte
	recv  []byte
	batch sys.Batch
	conn  Connection // what Dump hands to its callback
	ports portSet    // of a dump with more ports than the kernel filters by
}

// Open opens the socket in the namespace of the calling thread.
func (s *Socket) Open() error {
	if s.nl.IsOpen() {
		return errors.New("cannot open sock_diag socket: it is open already")
	}
	nl, err := sys.OpenNetlink(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	s.nl = nl
	return nil
}

// Close closes the socket, which lets go of the namespace. It keeps the buffers.
func (s *Socket) Close() { s.nl.Close() }

// Dump calls fn for every connection that the filter selects. What fn is given
// is overwritten by the next one. The same connection may come twice, and one
// may be missing (see the package comment).
//
// An error of fn ends the dump and is returned. After any error the socket is
// closed: a dump left half-read would make every later one on it fail with
// EBUSY.
func (s *Socket) Dump(f Filter, fn func(*Connection) error) error {
	if f.RemotePorts != nil && len(f.RemotePorts) == 0 {
		return nil
	}
	if len(f.RemotePorts) > MaxPorts {
		s.ports.fill(f.RemotePorts)
		all := fn
		fn = func(c *Connection) error {
			if !s.ports.has(c.Remote.Port()) {
				return nil
			}
			return all(c)
		}
	}
	if err := s.dump(f, fn); err != nil {
		s.Close()
		return fmt.Errorf("cannot dump connections: %w", err)
	}
	return nil
}

func (s *Socket) dump(f Filter, fn func(*Connection) error) error {
	if s.recv == nil {
		s.recv = make([]byte, dumpBuffer)
	}
	s.seq++
	s.send = appendDump(s.send[:0], s.seq, f)
	if err := s.nl.Send(s.send); err != nil {
		return kernelError(err)
	}
	for {
		n, err := s.nl.Recv(s.recv)
		if err == unix.EAGAIN {
			// The kernel makes each part while we read the one before.
			return errors.New("the dump ended without its end mark")
		}
		if err != nil {
			return err
		}
		for rest := s.recv[:n]; len(rest) > 0; {
			var m message
			if m, rest, err = nextMessage(rest); err != nil {
				return err
			}
			if m.seq != s.seq {
				return fmt.Errorf("answer to request %d while %d was asked", m.seq, s.seq)
			}
			switch m.typ {
			case nlmsgNoop:
			case nlmsgDone:
				if err := m.errno(); err != nil {
					return kernelError(err)
				}
				return nil
			case nlmsgError:
				// No NLMSG_DONE follows an error: waiting for it would hang.
				if err := m.errno(); err != nil {
					return kernelError(err)
				}
				return errors.New("an acknowledgement where a dump was asked for")
			case msgTCPDiag, msgSockDiag:
				if err := parseConnection(m.body, &s.conn); err != nil {
					return err
				}
				if err := fn(&s.conn); err != nil {
					return err
				}
			default:
				return fmt.Errorf("netlink message of unexpected type %d", m.typ)
			}
		}
	}
}

// Result is the answer about one connection.
type Result struct {
	Connection
	// Err is nil if Connection is filled, ErrGone if there is no such socket.
	Err error
}

var errNoAnswer = errors.New("the kernel did not answer")

// Get looks at the connections ids, with TCP_INFO, and puts the answer about
// ids[i] into out[i]. The error is about the socket as a whole; it is closed then.
//
// The kernel reads TCP_INFO under the socket's lock (tcp_get_info in net/ipv4/tcp.c),
// so Get waits for an application that holds it, which cannot be interrupted: one that
// sends from a file on a server that is gone holds it for as long. Destroy is the same.
func (s *Socket) Get(ids []ID, out []Result) error { return s.get(ids, true, out) }

// Peek is Get without TCP_INFO. It never waits.
func (s *Socket) Peek(ids []ID, out []Result) error { return s.get(ids, false, out) }

func (s *Socket) get(ids []ID, info bool, out []Result) error {
	for i := range ids {
		out[i].Err = errNoAnswer
	}
	err := s.exact(msgSockDiag, ids, info, func(i int, m message) error {
		if m.typ == nlmsgError {
			out[i].Err = exactError(m)
			return nil
		}
		if err := parseConnection(m.body, &out[i].Connection); err != nil {
			return err
		}
		out[i].Err = nil
		if ids[i].Cookie != 0 && out[i].Cookie != ids[i].Cookie {
			out[i].Err = ErrGone
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot look at connections: %w", err)
	}
	return nil
}

// Destroy aborts the connections ids: the application gets ECONNABORTED, the
// peer a RST. errs[i] says how it went with ids[i]: nil, ErrGone, ErrNotSupported
// or ErrNotPermitted among others. An id without cookie is refused, since it
// could hit a successor. The error is about the socket as a whole; it is closed
// then.
func (s *Socket) Destroy(ids []ID, errs []error) error {
	for i := range ids {
		errs[i] = errNoAnswer
		if ids[i].Cookie == 0 {
			return fmt.Errorf("cannot destroy %v -> %v: no cookie", ids[i].Local, ids[i].Remote)
		}
	}
	err := s.exact(msgSockDestroy, ids, false, func(i int, m message) error {
		if m.typ != nlmsgError {
			return fmt.Errorf("netlink message of type %d where an acknowledgement was due", m.typ)
		}
		errs[i] = exactError(m)
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot destroy connections: %w", err)
	}
	return nil
}

// exact sends one request per id, in batches, and hands each answer to fn.
func (s *Socket) exact(typ uint16, ids []ID, info bool, fn func(i int, m message) error) error {
	for start := 0; start < len(ids); start += sys.RecvBatchSize {
		if err := s.exactBatch(typ, ids, info, start, min(start+sys.RecvBatchSize, len(ids)), fn); err != nil {
			s.Close()
			return err
		}
	}
	return nil
}

func (s *Socket) exactBatch(typ uint16, ids []ID, info bool, start, end int, fn func(i int, m message) error) error {
	s.send = s.send[:0]
	base := s.seq + 1
	for _, id := range ids[start:end] {
		s.seq++
		s.send = appendExact(s.send, typ, s.seq, id, info)
	}
	if err := s.nl.Send(s.send); err != nil {
		return kernelError(err)
	}
	for answered := 0; answered < end-start; {
		n, err := s.nl.RecvBatch(&s.batch)
		if err == unix.EAGAIN {
			return fmt.Errorf("the kernel answered %d of %d requests", answered, end-start)
		}
		if err != nil {
			return err
		}
		for k := range n {
			b, err := s.batch.Message(k)
			if err != nil {
				return err
			}
			m, _, err := nextMessage(b)
			if err != nil {
				return err
			}
			// Unsigned difference: the sequence may wrap around.
			off := m.seq - base
			if off >= uint32(end-start) {
				return fmt.Errorf("answer to request %d, which was not asked", m.seq)
			}
			if m.typ != nlmsgError && m.typ != msgSockDiag {
				return fmt.Errorf("netlink message of unexpected type %d", m.typ)
			}
			if err := fn(start+int(off), m); err != nil {
				return err
			}
			answered++
		}
	}
	return nil
}

// exactError turns the error answer to an exact request into one of ours.
func exactError(m message) error {
	err := m.errno()
	if err == nil {
		return nil
	}
	if errno, ok := err.(syscall.Errno); ok && (errno == syscall.ENOENT || errno == syscall.ESTALE) {
		return ErrGone
	}
	return kernelError(err)
}

// kernelError names the errors after which a caller goes another way.
func kernelError(err error) error {
	errno, ok := err.(syscall.Errno)
	if !ok {
		return err
	}
	switch errno {
	case syscall.EOPNOTSUPP, syscall.EPROTONOSUPPORT, syscall.EAFNOSUPPORT:
		return fmt.Errorf("%w (%w)", ErrNotSupported, err)
	case syscall.EPERM, syscall.EACCES:
		return fmt.Errorf("%w (%w)", ErrNotPermitted, err)
	}
	return err
}

// Use opens the socket in the namespace of the calling thread for as long as fn runs.
func (s *Socket) Use(fn func() error) error {
	if err := s.Open(); err != nil {
		return err
	}
	defer s.Close()
	return fn()
}

// In opens the socket in a namespace, which t visits, for as long as fn runs: an open
// one would pin the namespace.
func (s *Socket) In(t *netns.Thread, ns netns.Namespace, fn func() error) error {
	return t.Visit(ns, func() error { return s.Use(fn) })
}
