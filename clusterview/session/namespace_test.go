package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
)

// TestPodNeverHearsThePassword dials a listener in a pod's namespace from there, as if the
// pod led our connection to one of its own, which knows what to say to be told more.
func TestPodNeverHearsThePassword(t *testing.T) {
	l := labtest.Must2(lab.New(lab.Config{Prefix: "rgh1" + strconv.Itoa(os.Getpid())}))(t)
	t.Cleanup(func() { labtest.Must(t, l.Close()) })
	pod := labtest.Must2(l.Client("pod"))(t)
	ns := namespaceOf(t, pod)

	a, evil := newAuthority(t), newAuthority(t)
	evilCert, evilKey := evil.issue("evil", time.Now().Add(time.Hour), "redis.test", "127.0.0.1")
	evilPair := labtest.Must2(tls.LoadX509KeyPair(evilCert, evilKey))(t)
	permitted := 0
	permissive := trusting(t)
	permissive.Timeout = 300 * time.Millisecond
	permissive.Username, permissive.Password, permissive.ClientName = "monitor", NewPassword("hunter2"), "redisguard"
	permissive.MayAuthenticate = func(netip.AddrPort) error { permitted++; return nil }
	nobody := permissive
	nobody.MayAuthenticate = nil
	refusing := permissive
	refusing.MayAuthenticate = func(netip.AddrPort) error { return errors.New("it is outside allow") }
	homeless := permissive
	homeless.Home = netns.Key{}
	encrypted := permissive
	encrypted.TLS, encrypted.ServerName = &TLS{CAFile: a.file}, "redis.test"

	for _, tt := range []struct {
		name   string
		in     *netns.Namespace // nil: the tests' own
		cfg    Config
		answer []string
		is     error // nil: it goes on without the password
	}{
		{"wants a password", ns, permissive, []string{"-NOAUTH HELLO must be called with the client already authenticated\r\n"}, ErrNoAuth},
		{"knows no HELLO", ns, permissive, []string{"-ERR unknown command 'HELLO'\r\n", "-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n"}, ErrNoAuth},
		{"forbids HELLO", ns, permissive, []string{"-NOPERM no\r\n", "-NOPERM no\r\n-NOPERM no\r\n"}, nil},
		{"is open", ns, permissive, []string{hello, "+PONG\r\n", "-NOAUTH Authentication required.\r\n"}, nil},
		{"has a certificate of its own", ns, encrypted, nil, ErrTLS},
		{"is not the TLS server that it should be", ns, encrypted, []string{"-NOAUTH x\r\n"}, ErrTLS},
		{"at home, but nobody permits it", nil, nobody, []string{"-NOAUTH x\r\n"}, ErrNoAuth},
		{"at home, but not allowed", nil, refusing, []string{"-NOAUTH x\r\n"}, ErrNoAuth},
		{"where no namespace is home", nil, homeless, []string{"-NOAUTH x\r\n"}, ErrNoAuth},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got heard
			listen := func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
			if tt.in != nil {
				listen = func() (net.Listener, error) { return pod.Listen(t.Context(), "tcp", "127.0.0.1:0") }
			}
			ln := labtest.Must2(listen())(t)
			serve(t, ln, func(c net.Conn) {
				c = &tee{c, &got}
				if tt.answer == nil {
					c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{evilPair}})
				}
				script(tt.answer...)(c)
			})
			addr := ln.Addr().(*net.TCPAddr).AddrPort()
			c, err := dialIn(t, tt.in, addr, tt.cfg)
			if (err == nil) != (tt.is == nil) || !errors.Is(err, tt.is) {
				t.Fatalf("%v, want %v", err, tt.is)
			}
			withheld := err
			if err == nil {
				defer c.Close()
				withheld = c.Withheld()
				c.Do(labtest.Soon(t), []string{"PING"}, []string{"PING"}) // its answer wants one again
			}
			if tt.is != ErrTLS && !errors.Is(withheld, ErrWithheld) {
				t.Errorf("withheld: %v", withheld)
			}
			if heard := strings.ToUpper(got.String()); heard == "" || strings.Contains(heard, "AUTH") || strings.Contains(heard, "HUNTER2") || strings.Contains(heard, "MONITOR") {
				t.Errorf("the listener got %q", got.String())
			}
		})
	}
	if permitted != 0 {
		t.Errorf("MayAuthenticate was asked %d times, though no answer would do", permitted)
	}

	t.Run("verified TLS in a pod's namespace", func(t *testing.T) {
		cert, key := a.issue("server", time.Now().Add(time.Hour), "redis.test")
		server := labtest.Must2(pod.Redis(labtest.Soon(t), lab.RedisConfig{Port: 17390, Args: []string{
			"--tls-port", "17391", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", a.file, "--tls-auth-clients", "no",
			"--user", "monitor", "on", ">hunter2", "+@all",
		}}))(t)
		c, err := dialIn(t, ns, netip.AddrPortFrom(server.Addr().Addr(), 17391), encrypted)
		labtest.Must(t, err)
		defer c.Close()
		if s := do(t, c, "ACL", "WHOAMI"); s != "monitor" {
			t.Errorf("we are %q", s)
		}
	})
	t.Run("nothing is left in the namespace", func(t *testing.T) {
		server := labtest.Must2(pod.Redis(labtest.Soon(t), lab.RedisConfig{Port: 17392}))(t)
		c, err := dialIn(t, ns, server.Addr(), permissive)
		labtest.Must(t, err)
		local := c.stream.LocalAddr().(*net.TCPAddr).Port
		labtest.Must(t, server.Freeze()) // so that the server does not close its side
		c.Close()
		labtest.Must(t, pod.Do(func() error {
			table, err := os.ReadFile("/proc/thread-self/net/tcp")
			for line := range strings.Lines(string(table)) {
				if f := strings.Fields(line); strings.HasSuffix(f[1], fmt.Sprintf(":%04X", local)) {
					t.Errorf("left: %s", line)
				}
			}
			return err
		}))
		labtest.Must(t, server.Thaw())
	})
	t.Run("a namespace that is gone", func(t *testing.T) {
		gone := *ns
		gone.Path += ".gone"
		if _, err := dialIn(t, &gone, netip.MustParseAddrPort("127.0.0.1:1"), permissive); !errors.Is(err, netns.ErrGone) {
			t.Errorf("%v", err)
		}
	})
}

// dialIn dials from a namespace as the daemon does: the socket is made inside, and dialled
// outside.
func dialIn(t *testing.T, ns *netns.Namespace, addr netip.AddrPort, cfg Config) (*Conn, error) {
	t.Helper()
	if ns == nil {
		return Dial(labtest.Soon(t), addr, cfg)
	}
	var s *Socket
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		th := labtest.Must2(netns.NewThread())(t)
		defer th.Close()
		s, err = In(th, *ns, addr, cfg)
	})
	wg.Wait()
	if err != nil {
		return nil, err
	}
	return s.Dial(labtest.Soon(t))
}

// namespaceOf is the namespace of a host of the lab.
func namespaceOf(t *testing.T, h *lab.Host) *netns.Namespace {
	t.Helper()
	var st unix.Stat_t
	labtest.Must(t, unix.Stat(h.NSPath, &st))
	return &netns.Namespace{ID: netns.ID{Dev: st.Dev, Inode: st.Ino}, Name: h.NSName, Path: h.NSPath}
}

// contextFor is a context of so long.
func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}
