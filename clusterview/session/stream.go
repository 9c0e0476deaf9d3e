package session

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// grace is how long is read on after a deadline has passed, once: on a busy machine this
// process may have slept through it, with the answer waiting in the socket all the time.
// What was received by then is read in less.
const grace = 50 * time.Millisecond

// stream is the connection below TLS and RESP, with deadlines and their exceptions.
type stream struct {
	net.Conn
	graced bool        // since the deadline was set
	ended  atomic.Bool // the context of the call is
}

// during has a call end with its context. end must be called, and has waited for whatever
// the context still does to the stream, so that the next call is not ended by it.
func (s *stream) during(ctx context.Context) (end func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		s.ended.Store(true)
		s.Conn.SetDeadline(past)
	})
	return func() {
		if !stop() {
			<-done
		}
		s.ended.Store(false)
	}
}

// past is a time that is over, for a deadline.
var past = time.Unix(1, 0)

// until sets the deadline of reads and writes, none if t is zero.
func (s *stream) until(t time.Time) {
	s.graced = t.IsZero()
	s.Conn.SetDeadline(t)
	if s.ended.Load() { // the context ended before, and this has undone what it did
		s.Conn.SetDeadline(past)
	}
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) && !s.graced && !s.ended.Load() {
		s.until(time.Now().Add(grace))
		s.graced = true
		n, err = s.Conn.Read(b)
	}
	return n, plain(err)
}

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	return n, plain(err)
}

// plain takes what package net wraps around an error, which is the addresses, so that each
// error names the peer once, and what comes as a net.OpError is crypto/tls's own.
func plain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded // which crypto/tls knows to be temporary
	}
	if op, ok := err.(*net.OpError); ok {
		if errno, ok := errors.AsType[syscall.Errno](op); ok {
			return errno
		}
		return op.Err
	}
	return err
}
