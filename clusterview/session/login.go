package session

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/redisguard/redisguard/resp"
)

// login agrees on a protocol and on who we are.
//
// HELLO does all at once. A server that knows no HELLO (before Redis 6), or no RESP3
// (NOPROTO), or has it renamed away or forbidden (in 6.0 an ACL could), is asked by AUTH.
func (c *Conn) login() error {
	hello := []string{"HELLO", "3"}
	password, given := c.credentials()
	if given {
		user := c.cfg.Username
		if user == "" {
			user = "default"
		}
		hello = append(hello, "AUTH", user, password)
	}
	if c.cfg.ClientName != "" {
		hello = append(hello, "SETNAME", c.cfg.ClientName)
	}
	// Who has hung up already may have said why: an alert of TLS, or "max number of clients".
	if err := c.send(hello); err != nil && !hungUp(err) {
		return err
	}
	reply, err := c.firstReply()
	if err != nil {
		return err
	}
	if reply.IsError() {
		refused := refusal(hello, reply.Str)
		if refused.final {
			return c.needsPassword(refused)
		}
		return c.loginPlain()
	}
	if c.proto = protocol(reply); c.proto == 0 {
		return fmt.Errorf("%w: its answer to HELLO (%v) names no protocol version", ErrNotRedis, reply.Kind)
	}
	return nil
}

// firstReply reads the first thing that the server says, from which most strangers can be
// told.
func (c *Conn) firstReply() (resp.Value, error) {
	c.stream.until(time.Now().Add(c.cfg.Timeout))
	first, err := c.in.Peek(1)
	switch {
	case hungUp(err):
		wants := "TLS"
		if c.verified {
			wants = "a client certificate, or another one" // the alert that says so may be lost
		}
		return resp.Value{}, fmt.Errorf("on the first command, as servers do that want %s: %w", wants, err)
	case err != nil:
		return resp.Value{}, err
	case first[0] == 'H' && !c.verified:
		return resp.Value{}, fmt.Errorf("%w: it seems to speak HTTP: is the port right?", ErrNotRedis)
	case first[0] == 0x15: // alert record of TLS (RFC 8446, section 5.1)
		return resp.Value{}, fmt.Errorf("%w: it expects TLS: set tls for it", ErrNotRedis)
	}
	return c.reply()
}

// hungUp says whether an error is that the peer has closed or reset the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// loginPlain logs in without HELLO, and stays with RESP2.
func (c *Conn) loginPlain() error {
	var commands [][]string
	if password, given := c.credentials(); given {
		auth := []string{"AUTH"}
		if c.cfg.Username != "" {
			auth = append(auth, c.cfg.Username)
		}
		commands = append(commands, append(auth, password))
	}
	// A reply to something harmless tells whether a password is wanted.
	commands = append(commands, []string{"PING"})
	if c.cfg.ClientName != "" {
		commands = append(commands, []string{"CLIENT", "SETNAME", c.cfg.ClientName})
	}
	replies, err := c.exchange(commands)
	if err != nil {
		return err
	}
	for i, v := range replies {
		if !v.IsError() {
			continue
		}
		refused := refusal(commands[i], v.Str)
		if commands[i][0] == "AUTH" && !refused.open || errors.Is(refused, ErrNoAuth) || refused.final {
			return c.needsPassword(refused)
		}
	}
	return nil
}

// needsPassword adds to a refusal why there was no password.
func (c *Conn) needsPassword(refused *Refusal) error {
	switch {
	case !errors.Is(refused, ErrNoAuth):
		return refused
	case c.withheld != nil:
		return fmt.Errorf("%w, and %w", ErrNoAuth, c.withheld)
	case c.cfg.Password.IsZero():
		return fmt.Errorf("%w: name a password file for it", ErrNoAuth)
	}
	return refused
}

// credentials is the only way for a password out of the process: it is called right before
// each sending, and says whether one may be sent now.
func (c *Conn) credentials() (password string, given bool) {
	if c.cfg.Password.IsZero() {
		return "", false
	}
	if c.withheld = c.mayAuthenticate(); c.withheld != nil {
		return "", false
	}
	return c.cfg.Password.reveal(), true
}

// mayAuthenticate says why a password must not be sent.
func (c *Conn) mayAuthenticate() error {
	switch {
	case c.verified:
		return nil
	case !c.home:
		return fmt.Errorf("%w, since without TLS nothing proves who answers in another network namespace: use TLS", ErrWithheld)
	case c.cfg.MayAuthenticate == nil:
		return fmt.Errorf("%w, since nothing says that it may be sent to %v without TLS", ErrWithheld, c.addr)
	}
	if err := c.cfg.MayAuthenticate(c.addr); err != nil {
		return fmt.Errorf("%w: %w", ErrWithheld, err)
	}
	return nil
}

// protocol is the version that a reply to HELLO 3 names: a map in RESP3; what some proxies
// send as an array is RESP2. It is 0 if the reply is neither.
func protocol(reply resp.Value) int {
	switch reply.Kind {
	case resp.Array:
		return 2
	case resp.Map:
	default:
		return 0
	}
	for i := 0; i+1 < len(reply.Elems); i += 2 {
		if name, ok := reply.Elems[i].Text(); ok && strings.EqualFold(name, "proto") && reply.Elems[i+1].Kind == resp.Integer {
			if reply.Elems[i+1].Int == 3 {
				return 3
			}
			return 2
		}
	}
	return 0
}
