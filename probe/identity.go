package probe

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/resp"
)

// Answer is what kind of answer came to the question who is there.
type Answer uint8

// The answers. Only Unanswered and NotAsked may be others the next time.
const (
	NotAsked    Answer = iota // for reasons of our own
	Unanswered                // no connection, or no reply in time
	OtherSpeech               // a reply that is not RESP
	HungUp                    // no reply but an end, or a TLS alert: a TLS server, perhaps of Redis
	Withheld                  // RESP, but an error: it wants a password, or the user may not
	Told                      // it said who it is, see Identity
)

// Identity is what a server of Redis' protocol says of its own process: lines of INFO's
// section "server". What it does not say is zero.
type Identity struct {
	Executable string // not escaped, at most maxWord bytes
	PID        int    // in its own pid namespace
	Uptime     time.Duration
}

// question is an inline command, as ping is: the section is what tells who it is, and it
// needs no key, changes nothing and is answered while data is loaded, by Sentinel too.
const question = "INFO server\r\n"

// identityLimits let pass what a server says of itself: some 1 KiB, or 4 with Redis 8.
var identityLimits = resp.Limits{Line: 1024, Bulk: 32 << 10, Elements: 16, Depth: 2, Total: 64 << 10}

// Identify connects, asks who is there, and closes the socket.
func (s *Socket) Identify(ctx context.Context) (Answer, Identity) {
	if _, failed := s.Connect(ctx); failed != nil {
		if failed.Outcome == CouldNotTell {
			return NotAsked, Identity{}
		}
		return Unanswered, Identity{}
	}
	defer s.file.Close()
	s.file.SetDeadline(time.Now().Add(s.cfg.Timeout))
	stop := context.AfterFunc(ctx, func() { s.file.SetDeadline(time.Now()) })
	defer stop()
	in := &replyReader{s: s, ctx: ctx}
	var reply resp.Value
	_, err := s.file.WriteString(question)
	if err == nil {
		reply, err = resp.NewReader(in, identityLimits).Read()
	}
	switch {
	case ctx.Err() != nil:
		return NotAsked, Identity{}
	case err == nil && reply.IsError():
		return Withheld, Identity{}
	case err == nil:
		if text, ok := reply.Text(); ok && reply.Kind != resp.Simple {
			return Told, parseIdentity(text)
		}
		return OtherSpeech, Identity{}
	case errors.Is(err, resp.ErrLimit):
		return Told, Identity{}
	case errors.Is(err, resp.ErrProtocol) && in.first != alert:
		return OtherSpeech, Identity{}
	case in.first == alert, errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return HungUp, Identity{}
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF):
		return Unanswered, Identity{}
	}
	return NotAsked, Identity{}
}

// alert is the type of an alert record of TLS (RFC 8446, section 5.1).
const alert = 0x15

// maxWord bounds what is kept of a value, in bytes.
const maxWord = 512

// parseIdentity reads the lines of INFO.
func parseIdentity(text string) Identity {
	var x Identity
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok || len(value) > maxWord {
			continue
		}
		switch name {
		case "process_id":
			if n, err := strconv.ParseInt(value, 10, 32); err == nil && n > 0 {
				x.PID = int(n)
			}
		case "executable":
			x.Executable = value
		case "uptime_in_seconds":
			if n, err := strconv.ParseInt(value, 10, 32); err == nil && n >= 0 {
				// A server that has just started counts 0, which is no absence.
				x.Uptime = max(time.Duration(n)*time.Second, 1)
			}
		}
	}
	return x
}
