package session

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/lab/labtest"
)

func TestTLS(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	soon := time.Now().Add(time.Hour)
	cert, key := a.issue("server", soon, "redis.test", "127.0.0.1")
	named, namedKey := a.issue("named", soon, "a.test", "b.test")
	old, oldKey := a.issue("old", time.Now().Add(-time.Minute), "redis.test")
	client, clientKey := a.issue("client", soon)
	foreign, foreignKey := other.issue("client", soon)

	open := tlsRedis(t, a, cert, key, "no", "--requirepass", "top")
	mutual := tlsRedis(t, a, cert, key, "yes")
	elsewhere := tlsRedis(t, a, named, namedKey, "no")
	expired := tlsRedis(t, a, old, oldKey, "no")
	only12 := tlsRedis(t, a, cert, key, "no", "--tls-protocols", "TLSv1.2")
	only11 := tlsRedis(t, a, cert, key, "no", "--tls-protocols", "TLSv1.1", "--tls-ciphers", "ALL:@SECLEVEL=0")
	plain := startRedis(t)
	for _, tt := range []struct {
		name string
		addr netip.AddrPort
		tls  *TLS
		host string // to be verified
		is   error  // nil: it succeeds
		says []string
	}{
		{"by name", open.addr, &TLS{CAFile: a.file}, "redis.test", nil, nil},
		{"by address", open.addr, &TLS{CAFile: a.file}, "", nil, nil},
		{"1.2", only12.addr, &TLS{CAFile: a.file}, "", nil, nil},
		{"1.1", only11.addr, &TLS{CAFile: a.file}, "", ErrTLS, []string{"protocol version"}},
		{"wrong name", elsewhere.addr, &TLS{CAFile: a.file}, "redis.test", ErrTLS, []string{`not for "redis.test", but for a.test, b.test: set the server name`}},
		{"wrong address", elsewhere.addr, &TLS{CAFile: a.file}, "", ErrTLS, []string{`not for "127.0.0.1", but for a.test, b.test`}},
		{"expired", expired.addr, &TLS{CAFile: a.file}, "redis.test", ErrTLS, []string{"valid from 20", "renew it, or set this node's clock"}},
		{"another authority", open.addr, &TLS{CAFile: other.file}, "redis.test", ErrTLS, []string{"authority that is not known", "as the CA file"}},
		{"the system's authorities", open.addr, &TLS{}, "redis.test", ErrTLS, []string{"authority that is not known"}},
		{"mutual", mutual.addr, &TLS{CAFile: a.file, CertFile: client, KeyFile: clientKey}, "", nil, nil},
		{"mutual without ours", mutual.addr, &TLS{CAFile: a.file}, "", ErrTLS, []string{"client certificate"}},
		{"mutual with a foreign one", mutual.addr, &TLS{CAFile: a.file, CertFile: foreign, KeyFile: foreignKey}, "", ErrTLS, []string{"client certificate"}},
		{"a plain server", plain.addr, &TLS{CAFile: a.file}, "", errAny, []string{"TLS handshake with " + plain.addr.String()}},
		{"no file", open.addr, &TLS{CAFile: a.file + ".none"}, "", errAny, []string{"cannot read certificate authorities", "no such file"}},
		{"no certificate in it", open.addr, &TLS{CAFile: key}, "", errAny, []string{"must be PEM"}},
		{"a key of another", open.addr, &TLS{CAFile: a.file, CertFile: client, KeyFile: key}, "", errAny, []string{"cannot use client certificate"}},
		{"a key without its certificate", open.addr, &TLS{CAFile: a.file, KeyFile: key}, "", errAny, []string{"cannot read client certificate"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The password is sent without anybody's permission: the name is verified.
			cfg := Config{Timeout: 2 * time.Second, TLS: tt.tls, ServerName: tt.host, Password: NewPassword("top")}
			if tt.addr == plain.addr {
				cfg.Timeout = 200 * time.Millisecond // it waits for the end of a line
			}
			c, err := Dial(labtest.Soon(t), tt.addr, cfg)
			if (err == nil) != (tt.is == nil) || tt.is != nil && tt.is != errAny && !errors.Is(err, tt.is) {
				t.Fatalf("%v, want %v", err, tt.is)
			}
			if err != nil {
				contains(t, err, tt.says...)
				return
			}
			defer c.Close()
			if c.Withheld() != nil || do(t, c, "PING") != "PONG" {
				t.Errorf("withheld: %v", c.Withheld())
			}
		})
	}
	t.Run("a plain client", func(t *testing.T) {
		cfg := trusting(t)
		_, err := Dial(labtest.Soon(t), open.addr, cfg)
		contains(t, err, "TLS")
	})
	t.Run("idle", func(t *testing.T) {
		c := dial(t, open.addr, Config{Timeout: 2 * time.Second, TLS: &TLS{CAFile: a.file}, Password: NewPassword("top")})
		for range 3 { // a deadline that passes does no harm to crypto/tls
			ctx, cancel := contextFor(t, 20*time.Millisecond)
			labtest.Must(t, c.Idle(ctx))
			cancel()
			do(t, c, "PING")
		}
	})
	t.Run("subscription", func(t *testing.T) {
		c := dial(t, open.addr, Config{Timeout: 2 * time.Second, Ping: 10 * time.Millisecond, TLS: &TLS{CAFile: a.file}, Password: NewPassword("top")})
		s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"a"}))(t)
		ctx, cancel := contextFor(t, 100*time.Millisecond)
		defer cancel()
		labtest.Must(t, s.Receive(ctx, func(string, string) {}))
	})
}

// errAny stands for some error.
var errAny = errors.New("some error")

// TestTLSStrangers has servers of TLS that are none of Redis.
func TestTLSStrangers(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue("server", time.Now().Add(time.Hour), append(strings.Split(strings.Repeat("n.test ", 10), " ")[:10], "x\x1b.test")...)
	pair := labtest.Must2(tls.LoadX509KeyPair(cert, key))(t)
	cfg := Config{Timeout: 300 * time.Millisecond, TLS: &TLS{CAFile: a.file}, ServerName: "n.test", Password: NewPassword("hunter2")}
	over := func(fn func(net.Conn)) netip.AddrPort {
		return fake(t, func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}})
			if s.Handshake() == nil {
				fn(s)
			}
		})
	}
	for _, tt := range []struct {
		name string
		addr netip.AddrPort
		host string
		is   error
		says string
	}{
		{"many names", over(script()), "other.test", ErrTLS, "n.test and 3 more"},
		{"never says hello", fake(t, script()), "n.test", ErrTimeout, "cannot do a TLS handshake"},
		{"closes at once", fake(t, func(c net.Conn) { c.Read(make([]byte, 4096)) }), "n.test", nil, "closed the connection"},
		{"plain text", fake(t, script("-ERR unknown command\r\n")), "n.test", ErrTLS, "does not speak TLS"},
		{"never answers", over(script()), "n.test", ErrTimeout, "cannot log in"},
		{"HTTPS", over(script("HTTP/1.1 400 Bad Request\r\n")), "n.test", ErrNotRedis, "begins with 'H'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := cfg
			cfg.ServerName = tt.host
			_, err := Dial(labtest.Soon(t), tt.addr, cfg)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v, want %v", err, tt.is)
			}
			contains(t, err, tt.says)
		})
	}
}

// TestTLSCancel ends the wait for a server of TLS.
func TestTLSCancel(t *testing.T) {
	ctx, cancel := contextFor(t, 50*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, fake(t, script()), Config{Timeout: time.Minute, TLS: &TLS{}, ServerName: "n.test"})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrTLS) {
		t.Errorf("%v", err)
	}
}

// TestRotation replaces files under a living TLS.
func TestRotation(t *testing.T) {
	a, next := newAuthority(t), newAuthority(t)
	soon := time.Now().Add(time.Hour)
	cert, key := a.issue("server", soon, "127.0.0.1")
	nextCert, nextKey := next.issue("server", soon, "127.0.0.1")
	before := tlsRedis(t, a, cert, key, "yes")
	after := tlsRedis(t, next, nextCert, nextKey, "yes")
	client, clientKey := a.issue("client", soon)
	nextClient, nextClientKey := next.issue("client", soon)

	dir := t.TempDir()
	ours := &TLS{CAFile: filepath.Join(dir, "ca"), CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key")}
	install := func(ca, cert, key string) {
		t.Helper()
		for _, f := range []struct{ from, to string }{{ca, ours.CAFile}, {cert, ours.CertFile}, {key, ours.KeyFile}} {
			write(t, f.to, string(labtest.Must2(readText(f.from))(t)), 0o600)
		}
	}
	connects := func(addr netip.AddrPort) error {
		c, err := Dial(labtest.Soon(t), addr, Config{Timeout: 2 * time.Second, TLS: ours})
		if err == nil {
			c.Close()
		}
		return err
	}
	install(a.file, client, clientKey)
	labtest.Must(t, connects(before.addr))
	if connects(after.addr) == nil {
		t.Error("the next authority is believed already")
	}
	install(next.file, nextClient, nextClientKey)
	labtest.Must(t, connects(after.addr))
	if connects(before.addr) == nil {
		t.Error("the authority that was replaced is believed")
	}
}
