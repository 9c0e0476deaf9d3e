package targets

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/clusterview/session"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/resp"
)

// clientName is what CLIENT LIST shows of our connections.
const clientName = "redisguard"

// dialer makes connections from our own network namespace.
type dialer struct {
	policy func() *policy.Policy
	mu     sync.Mutex
	kept   map[string]*credentials // by the files that they are read from
}

// credentials are those for the nodes of a target, or for its Sentinels. Their files are read
// again when they change.
type credentials struct {
	secret *session.Secret // nil where there is no password
	tls    *session.TLS

	mu sync.Mutex
	// refused are the servers that have refused the password. Another one may have it.
	refused map[netip.AddrPort]*session.Backoff
}

// wait is for how long a password must not be sent to a server.
func (c *credentials) wait(a netip.AddrPort, p session.Password) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.refused[a]; b != nil {
		return b.Wait(p, time.Now())
	}
	return 0
}

// note takes down what came of a login.
func (c *credentials) note(a netip.AddrPort, p session.Password, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch b := c.refused[a]; {
	case err == nil:
		delete(c.refused, a)
	case !errors.Is(err, session.ErrWrongPass):
	case b == nil:
		if len(c.refused) >= maxRefused {
			clear(c.refused)
		}
		b = &session.Backoff{}
		c.refused[a] = b
		fallthrough
	default:
		b.Refused(p, time.Now())
	}
}

// maxRefused is how many servers are kept that have refused a password: one that has a whole
// network may name itself by ever other addresses.
const maxRefused = 4096

// maxKept is how many credentials are kept: those of a config, and of some before it.
const maxKept = 1024

// NewDialer returns the Dialer that makes real connections.
func NewDialer(p func() *policy.Policy) Dialer {
	return &dialer{policy: p, kept: map[string]*credentials{}}
}

// own is our own network namespace: no pod can lead connections in it elsewhere.
func own() (netns.Key, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		return netns.Key{}, fmt.Errorf("cannot identify our own network namespace: %w", err)
	}
	return netns.Key{Dev: st.Dev, Inode: st.Ino}, nil
}

func (d *dialer) credentials(t *config.TargetSection, sentinel bool) *credentials {
	user, file, secured := t.Username, t.PasswordFile, t.TLS.Enabled
	if sentinel {
		user, file, secured = t.SentinelUsername, t.SentinelPasswordFile, t.TLS.Sentinels
	}
	key := fmt.Sprintf("%q", []string{t.Name, user, file, t.TLS.CA, t.TLS.Cert, t.TLS.Key, fmt.Sprint(sentinel, secured)})
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.kept[key]
	if c == nil {
		c = &credentials{refused: map[netip.AddrPort]*session.Backoff{}}
		if len(d.kept) >= maxKept {
			clear(d.kept)
		}
		if file != "" {
			c.secret = session.NewSecret(file)
		}
		if secured {
			c.tls = &session.TLS{CAFile: t.TLS.CA, CertFile: t.TLS.Cert, KeyFile: t.TLS.Key}
		}
		d.kept[key] = c
	}
	return c
}

// serverName is the name that the certificate of a server must have, "" for its address.
func serverName(t *config.TargetSection, announced string) string {
	switch t.TLS.ServerName {
	case config.ServerNameAnnounced:
		return announced
	case config.ServerNameSeed:
		if names := t.SeedNames(); len(names) > 0 {
			return names[0]
		}
		return ""
	}
	return t.TLS.ServerName
}

// connect makes a connection and logs in.
func (d *dialer) connect(ctx context.Context, t *config.TargetSection, s Server) (*session.Conn, error) {
	home, err := own()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAsked, err)
	}
	c, probe := d.credentials(t, s.Sentinel), &d.policy().Config.Probe
	cfg := session.Config{
		Timeout: probe.Timeout, Mark: probe.Mark, TLS: c.tls, ServerName: serverName(t, s.Name), ClientName: clientName, Home: home,
		MayAuthenticate: func(a netip.AddrPort) error {
			if !t.Allows(a) {
				return fmt.Errorf("%v is not in allow and allow_ports of target %s", a, t.Name)
			}
			return nil
		},
	}
	if c.secret != nil {
		if cfg.Username = t.Username; s.Sentinel {
			cfg.Username = t.SentinelUsername
		}
		if cfg.Password, err = c.secret.Password(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotAsked, err)
		}
		if c.wait(s.Addr, cfg.Password) > 0 {
			return nil, refused(t, s)
		}
	}
	conn, err := d.reach(ctx, s, cfg)
	c.note(s.Addr, cfg.Password, err)
	switch {
	case errors.Is(err, session.ErrWrongPass):
		return nil, refused(t, s)
	case err != nil:
		return nil, ours(err)
	}
	return conn, nil
}

// refused is why a server is not asked that has refused the password. It says the same while
// that rests, since each other text is another event.
func refused(t *config.TargetSection, s Server) error {
	keys := "username and password_file"
	if s.Sentinel {
		keys = "sentinel_username and sentinel_password_file"
	}
	return fmt.Errorf("%w: %w: check %s of target %s", ErrNotAsked, session.ErrWrongPass, keys, t.Name)
}

// reach connects from our own namespace or, where that has no route to the server, from one of
// a client. There a password is withheld without TLS, by package session: a pod may lead the
// connection to a listener of its own. For the same reason Server.Unproven is told.
func (d *dialer) reach(ctx context.Context, s Server, cfg session.Config) (*session.Conn, error) {
	sock, err := session.Open(s.Addr, cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAsked, err)
	}
	conn, err := sock.Dial(ctx)
	for i := 0; noRoute(err) && i < len(s.Clients); i++ {
		if e := netns.Do(s.Clients[i], func() (e error) { sock, e = session.Open(s.Addr, cfg); return e }); e == nil {
			if cfg.TLS == nil && s.Unproven != nil {
				s.Unproven()
			}
			conn, err = sock.Dial(ctx)
		}
	}
	if noRoute(err) {
		return nil, fmt.Errorf("%w: %w", ErrNotAsked, err)
	}
	return conn, err
}

// noRoute says whether a connection request did not leave: what routes and policies of this
// node say is nothing against the server.
func noRoute(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// ours marks errors that say nothing about whether a server is there: it has answered, but not
// as it should.
func ours(err error) error {
	for _, kind := range []error{session.ErrWrongPass, session.ErrNoAuth, session.ErrNoPerm, session.ErrWithheld, session.ErrTLS} {
		if errors.Is(err, kind) {
			return fmt.Errorf("%w: %w", ErrNotAsked, err)
		}
	}
	return err
}

// Ask implements Dialer.
func (d *dialer) Ask(ctx context.Context, t *config.TargetSection, s Server, commands []string) ([]resp.Value, error) {
	conn, err := d.connect(ctx, t, s)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	words := make([][]string, len(commands))
	for i, c := range commands {
		words[i] = strings.Fields(c)
	}
	return conn.Do(ctx, words...)
}

// Subscribe implements Dialer.
func (d *dialer) Subscribe(ctx context.Context, t *config.TargetSection, s Server, channels []string, ready func(), message func(channel, payload string)) error {
	conn, err := d.connect(ctx, t, s)
	if err != nil {
		return err
	}
	defer conn.Close()
	sub, err := conn.Subscribe(ctx, channels)
	if err != nil {
		return ours(err)
	}
	defer sub.Close()
	ready()
	return sub.Receive(ctx, message)
}
