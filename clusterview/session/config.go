package session

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/resp"
)

// Config of a connection.
type Config struct {
	// Timeout bounds each step: connecting, the TLS handshake, and each reply. It must
	// be positive.
	Timeout time.Duration
	// Mark is set as SO_MARK if it is not 0, which needs CAP_NET_ADMIN: by it we know
	// our own connections among those of the node. Without the capability it is left out.
	Mark uint32
	// TLS, if not nil, has the connection encrypted and the server's name verified.
	TLS *TLS
	// ServerName is the name that the server's certificate must have. If empty it must
	// have the address. A name that the server itself has announced proves no more than
	// that somebody with a certificate of that name announced it: where TLS.CAFile is
	// empty, too, any certificate authority of the world vouches for that.
	ServerName string
	// Username is empty for Redis before 6, which has no users, and for the user "default".
	Username string
	// Password is empty where the server wants none.
	Password Password
	// Home is the namespace in which MayAuthenticate is asked: the host's. In others, or if
	// it is zero, the password is sent to servers with a verified name only.
	Home netns.Key
	// MayAuthenticate says why a password must not be sent to an address without TLS, and
	// nil where it may: where the address is one of the target's, by its config. It is asked
	// right before each sending. If nil, none is sent without TLS.
	MayAuthenticate func(netip.AddrPort) error
	// ClientName is shown by CLIENT LIST. If empty none is set. A server that refuses it
	// is not minded.
	ClientName string
	// Limits bound each value that the server sends.
	Limits resp.Limits
	// Ping is how long a subscription may be silent before the server is asked whether it
	// is there. If 0, 5 s.
	Ping time.Duration
	// Push, if not nil, is called with messages that come between replies (RESP3), on the
	// goroutine that reads. It must not use the connection.
	Push func(resp.Value)
}

func (c *Config) check() error {
	switch {
	case c.Timeout <= 0:
		return errors.New("the timeout must be positive")
	case c.Username != "" && c.Password.IsZero():
		return fmt.Errorf("there is a user name (%q) without a password", c.Username)
	case strings.ContainsFunc(c.ClientName, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("the client name %q has characters that Redis refuses: use printable ASCII without spaces", c.ClientName)
	}
	if c.Ping <= 0 {
		c.Ping = 5 * time.Second
	}
	return nil
}
