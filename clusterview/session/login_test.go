package session

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

// monitor is a user with the least privileges that the cluster view needs.
var monitor = strings.Fields("--user monitor on >secret -@all +ping +hello +info +role +client|setname +client|id +cluster|nodes +cluster|slots " +
	"+cluster|shards +cluster|info +cluster|myid +cluster|links +subscribe +unsubscribe resetchannels &__sentinel__:hello")

func TestLogin(t *testing.T) {
	open := startRedis(t)
	users := startRedis(t, append(monitor, "--requirepass", "top")...)
	noHello := startRedis(t, "--rename-command", "HELLO", "", "--requirepass", "top")
	sentinel := startSentinel(t, open.addr, "requirepass watch")
	for _, tt := range []struct {
		name           string
		addr           netip.AddrPort
		user, password string
		proto          int
		says           error // nil: it succeeds
	}{
		{"no password", open.addr, "", "", 3, nil},
		{"a password that is not wanted", open.addr, "", "x", 3, nil},
		{"the default user", users.addr, "", "top", 3, nil},
		{"least privileges", users.addr, "monitor", "secret", 3, nil},
		{"wrong password", users.addr, "monitor", "wrong", 0, ErrWrongPass},
		{"no such user", users.addr, "nobody", "secret", 0, ErrWrongPass},
		{"password missing", users.addr, "", "", 0, ErrNoAuth},
		{"without HELLO", noHello.addr, "", "top", 2, nil},
		{"without HELLO, wrong password", noHello.addr, "", "wrong", 0, ErrWrongPass},
		{"without HELLO, password missing", noHello.addr, "", "", 0, ErrNoAuth},
		{"Sentinel", sentinel.addr, "", "watch", 3, nil},
		{"Sentinel, wrong password", sentinel.addr, "", "wrong", 0, ErrWrongPass},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := trusting(t)
			cfg.Username, cfg.Password, cfg.ClientName = tt.user, NewPassword(tt.password), "redisguard-test"
			c, err := Dial(labtest.Soon(t), tt.addr, cfg)
			if !errors.Is(err, tt.says) || (err == nil) != (tt.says == nil) {
				t.Fatalf("%v, want %v", err, tt.says)
			}
			if err != nil {
				contains(t, err, "cannot log in to "+tt.addr.String())
				return
			}
			defer c.Close()
			if c.Proto() != tt.proto || c.Withheld() != nil {
				t.Errorf("protocol %d, withheld %v; want %d", c.Proto(), c.Withheld(), tt.proto)
			}
			if s := do(t, c, "PING"); s != "PONG" {
				t.Errorf("PING: %q", s)
			}
		})
	}

	t.Run("the name is set", func(t *testing.T) {
		cfg := trusting(t)
		cfg.ClientName = "redisguard-test"
		if s := do(t, dial(t, open.addr, cfg), "CLIENT", "GETNAME"); s != cfg.ClientName {
			t.Errorf("CLIENT GETNAME: %q", s)
		}
	})
	t.Run("what the user may not run", func(t *testing.T) {
		cfg := trusting(t)
		cfg.Username, cfg.Password = "monitor", NewPassword("secret")
		c := dial(t, users.addr, cfg)
		command := []string{"CLUSTER", "RESET"}
		replies := labtest.Must2(c.Do(labtest.Soon(t), command, []string{"PING"}))(t)
		err := Check(command, replies[0])
		if r, ok := errors.AsType[*Refusal](err); !errors.Is(err, ErrNoPerm) || !ok || r.Command != "CLUSTER RESET" {
			t.Errorf("%#v", err)
		}
		contains(t, err, "+cluster|reset")
		if Check([]string{"PING"}, replies[1]) != nil {
			t.Errorf("PING after it: %+v", replies[1])
		}
	})
	t.Run("too many clients", func(t *testing.T) {
		full := startRedis(t, "--maxclients", "1")
		labtest.Eventually(t, "the look whether it listens is forgotten", func() bool {
			c, err := Dial(labtest.Soon(t), full.addr, trusting(t))
			if err == nil {
				t.Cleanup(c.Close)
			}
			return err == nil
		})
		_, err := Dial(labtest.Soon(t), full.addr, trusting(t))
		if err == nil {
			t.Fatal("there is a second client")
		}
		contains(t, err, "maxclients")
	})
}

// TestLoginFallback has servers that are older or stranger than those at hand.
func TestLoginFallback(t *testing.T) {
	const redis5 = "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hunter2`, \r\n"
	for _, tt := range []struct {
		name  string
		lines []string
		sent  []string // which must be in what the server has got
		says  string   // "": it succeeds
		is    error
	}{
		{"Redis 5", []string{redis5, "+OK\r\n+PONG\r\n+OK\r\n"}, []string{"*2\r\n$4\r\nAUTH\r\n$7\r\nhunter2", "SETNAME"}, "", nil},
		{"Redis 5, wrong", []string{redis5, "-ERR invalid password\r\n-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n"}, nil, "the password is wrong", ErrWrongPass},
		{"Redis 5, no password set", []string{redis5, "-ERR Client sent AUTH, but no password is set\r\n+PONG\r\n+OK\r\n"}, nil, "", nil},
		{"6.0 without +hello", []string{"-NOPERM this user has no permissions to run the 'hello' command or its subcommand\r\n", "+OK\r\n+PONG\r\n-NOPERM no\r\n"}, nil, "", nil},
		{"no RESP3", []string{"-NOPROTO unsupported protocol version\r\n", "+OK\r\n+PONG\r\n+OK\r\n"}, nil, "", nil},
		{"a busy script", []string{"-BUSY Redis is busy\r\n", "+OK\r\n-BUSY Redis is busy\r\n-BUSY Redis is busy\r\n"}, nil, "", nil},
		{"protected mode", []string{"-DENIED Redis is running in protected mode because...\r\n"}, nil, "protected mode", nil},
		{"an error that quotes", []string{"-hunter2\r\n", "-hunter2 hunter2\r\n+PONG\r\n+OK\r\n"}, nil, "cannot run AUTH: it answered with an error", nil},
		{"a string for HELLO", []string{"+OK\r\n"}, nil, "(simple string) names no protocol version", ErrNotRedis},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got heard
			addr := fake(t, func(c net.Conn) { script(tt.lines...)(&tee{c, &got}) })
			cfg := trusting(t)
			cfg.Password, cfg.ClientName = NewPassword("hunter2"), "redisguard"
			c, err := Dial(labtest.Soon(t), addr, cfg)
			if (err == nil) != (tt.says == "") || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatal(err)
			}
			if err != nil {
				contains(t, err, tt.says)
				if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("the password is in the error: %v", err)
				}
			} else {
				if c.Proto() != 2 {
					t.Errorf("protocol %d", c.Proto())
				}
				c.Close()
			}
			for _, s := range tt.sent {
				if !strings.Contains(got.String(), s) {
					t.Errorf("the server got %q, want %q in it", got.String(), s)
				}
			}
		})
	}
}

// tee is a connection of which somebody else hears what is read.
type tee struct {
	net.Conn
	to io.Writer
}

func (c *tee) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.to.Write(b[:n])
	return n, err
}

func TestConfig(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.1:1")
	for _, tt := range []struct {
		addr netip.AddrPort
		cfg  Config
		says string
	}{
		{addr, Config{}, "the timeout must be positive"},
		{addr, Config{Timeout: time.Second, Username: "u"}, "without a password"},
		{addr, Config{Timeout: time.Second, ClientName: "two words"}, "without spaces"},
		{netip.AddrPort{}, Config{Timeout: time.Second}, "no address"},
	} {
		_, err := Dial(t.Context(), tt.addr, tt.cfg)
		contains(t, err, "cannot make a socket for", tt.says)
	}
}

func FuzzRefusal(f *testing.F) {
	for _, p := range phrases {
		f.Add(p.begins+" and more", "HELLO")
		f.Add(strings.ToLower(p.begins), "AUTH")
	}
	f.Add("WRONGPASS invalid username-password pair or user is disabled.", "HELLO")
	f.Add("NOPERM this user has no permissions to run the 'cluster|nodes' command", "CLUSTER")
	f.Add("ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`", "hello")
	f.Add("\x1b[31mERR \xff", "GET")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, text, command string) {
		r := refusal([]string{command, "secret-of-ours"}, text)
		if strings.EqualFold(command, "HELLO") || strings.EqualFold(command, "AUTH") {
			if r.Text != "" || r.Code != "" && !strings.HasPrefix(text, r.Code) {
				t.Errorf("%+v tells what may be the password", r)
			}
		}
		if strings.ContainsFunc(r.Text+r.Code, func(c rune) bool { return c < ' ' || c > '~' }) || len(r.Text) > maxWords {
			t.Errorf("%q is not escaped, or too long", r.Text)
		}
		if r.Error() == "" {
			t.Error("the error has no text")
		}
	})
}

func FuzzProtocol(f *testing.F) {
	f.Add("%1\r\n+proto\r\n:3\r\n")
	f.Add("%2\r\n+server\r\n+redis\r\n+proto\r\n:2\r\n")
	f.Add("*2\r\n+proto\r\n:2\r\n")
	f.Add("%0\r\n")
	f.Fuzz(func(t *testing.T, reply string) {
		v, err := resp.NewReader(strings.NewReader(reply), resp.Limits{}).Read()
		if err != nil {
			return
		}
		if p := protocol(v); p != 0 && p != 2 && p != 3 {
			t.Errorf("protocol %d", p)
		}
	})
}
