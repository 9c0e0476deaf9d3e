package session

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
)

// home is the namespace of the tests.
func home(t *testing.T) netns.Key {
	t.Helper()
	var st unix.Stat_t
	labtest.Must(t, unix.Stat("/proc/self/ns/net", &st))
	return netns.Key{Dev: st.Dev, Inode: st.Ino}
}

// trusting is a config that may send its password to anybody from here.
func trusting(t *testing.T) Config {
	return Config{Timeout: 5 * time.Second, Home: home(t), MayAuthenticate: func(netip.AddrPort) error { return nil }}
}

// dial connects and closes in the end.
func dial(t *testing.T, addr netip.AddrPort, cfg Config) *Conn {
	t.Helper()
	c := labtest.Must2(Dial(labtest.Soon(t), addr, cfg))(t)
	t.Cleanup(c.Close)
	return c
}

// do runs one command, which must not fail.
func do(t *testing.T, c *Conn, command ...string) string {
	t.Helper()
	replies := labtest.Must2(c.Do(labtest.Soon(t), command))(t)
	labtest.Must(t, Check(command, replies[0]))
	return replies[0].Str
}

// freePort is one of the loopback's on which nobody listens now.
func freePort(t *testing.T) uint16 {
	t.Helper()
	ln := labtest.Must2(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// redis is a real server on the loopback.
type redis struct {
	addr netip.AddrPort
	t    *testing.T
}

// startRedis starts a real server. In args PORT stands for its port; if it is not there it
// is the plain one.
func startRedis(t *testing.T, args ...string) *redis {
	t.Helper()
	port := strconv.Itoa(int(freePort(t)))
	if !slices.Contains(args, "PORT") {
		args = append([]string{"--port", "PORT", "--save", ""}, args...)
	}
	args = slices.Clone(args)
	for i, a := range args {
		if a == "PORT" {
			args[i] = port
		}
	}
	cmd := exec.Command(labtest.RedisServer(), args...)
	var log bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), &log, &log
	labtest.Must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("redis-server %q:\n%s", args, log.String())
		}
	})
	r := &redis{addr: netip.MustParseAddrPort("127.0.0.1:" + port), t: t}
	labtest.Eventually(t, "redis-server listens", func() bool {
		c, err := net.Dial("tcp", r.addr.String())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return r
}

// heard is what a fake peer has been sent.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(b)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.String()
}

// serve lets fn have each connection to ln, and ends all of them in the end.
func serve(t *testing.T, ln net.Listener, fn func(net.Conn)) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				fn(c)
			})
		}
	})
}

// fake is a peer that is not Redis.
func fake(t *testing.T, fn func(net.Conn)) netip.AddrPort {
	t.Helper()
	ln := labtest.Must2(net.Listen("tcp", "127.0.0.1:0"))(t)
	serve(t, ln, fn)
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// hello is a handshake in RESP3 as a fake server answers it.
const hello = "%1\r\n+proto\r\n:3\r\n"

// script is a peer that answers each read with the next of its lines, and then waits for
// the end of the connection.
func script(lines ...string) func(net.Conn) {
	return func(c net.Conn) {
		b := make([]byte, 4096)
		for _, line := range lines {
			if _, err := c.Read(b); err != nil {
				return
			}
			c.Write([]byte(line))
		}
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}
}

// authority makes certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority of the test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = labtest.Must2(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	a.file, _ = a.write("ca", a.cert, a.key)
	return a
}

// issue makes a certificate and returns its file and its key's.
func (a *authority) issue(file string, until time.Time, names ...string) (cert, key string) {
	a.t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "common"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	return a.write(file, c, labtest.Must2(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(a.t))
}

func (a *authority) write(file string, c *x509.Certificate, k *ecdsa.PrivateKey) (cert, key string) {
	a.t.Helper()
	der := labtest.Must2(x509.CreateCertificate(rand.Reader, c, a.cert, k.Public(), a.key))(a.t)
	keyDER := labtest.Must2(x509.MarshalPKCS8PrivateKey(k))(a.t)
	cert, key = filepath.Join(a.dir, file+".pem"), filepath.Join(a.dir, file+".key")
	write(a.t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	write(a.t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), 0o600)
	return cert, key
}

// write replaces a file as tools do that rotate secrets.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	labtest.Must(t, os.WriteFile(path+".new", []byte(text), mode))
	labtest.Must(t, os.Chmod(path+".new", mode))
	labtest.Must(t, os.Rename(path+".new", path))
}

// tlsRedis starts a real server with a certificate.
func tlsRedis(t *testing.T, a *authority, cert, key, clients string, args ...string) *redis {
	t.Helper()
	return startRedis(t, append([]string{"--port", "0", "--tls-port", "PORT", "--save", "", "--tls-cert-file", cert, "--tls-key-file", key,
		"--tls-ca-cert-file", a.file, "--tls-auth-clients", clients}, args...)...)
}

// contains checks an error's text.
func contains(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(err), w) {
			t.Errorf("the error is %q, want %q in it", fmt.Sprint(err), w)
		}
	}
}
