package targets

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

// command runs one on a real server at the loopback; words before "--" log in.
func command(t *testing.T, at netip.AddrPort, login []string, words ...string) resp.Value {
	t.Helper()
	c := labtest.Must2(net.DialTimeout("tcp", at.String(), time.Second))(t)
	defer c.Close()
	labtest.Must(t, c.SetDeadline(time.Now().Add(5*time.Second)))
	in := resp.NewReader(bufio.NewReader(c), resp.Limits{})
	if login != nil {
		c.Write(resp.AppendCommand(nil, append([]string{"AUTH"}, login...)...))
		if v := labtest.Must2(in.Read())(t); v.IsError() {
			t.Fatalf("AUTH at %v: %s", at, v.Str)
		}
	}
	c.Write(resp.AppendCommand(nil, words...))
	v := labtest.Must2(in.Read())(t)
	if v.IsError() {
		t.Fatalf("%q at %v: %s", words, at, v.Str)
	}
	return v
}

// sentinel starts a real one at the loopback that watches a primary as "orders".
func sentinel(t *testing.T, primary netip.AddrPort, lines ...string) netip.AddrPort {
	t.Helper()
	at := freePort(t)
	file := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("port %d\nbind 127.0.0.1\nsentinel monitor orders %s %d 1\nsentinel down-after-milliseconds orders 1000\n%s\n",
		at.Port(), primary.Addr(), primary.Port(), strings.Join(lines, "\n"))
	labtest.Must(t, os.WriteFile(file, []byte(text), 0o600))
	run(t, at, "redis-server", file, "--sentinel")
	return at
}

// freePort is an address of the loopback at which nobody listens now.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	ln := labtest.Must2(net.Listen("tcp4", "127.0.0.1:0"))(t)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// run starts a server and waits until it listens. It ends with the test.
func run(t *testing.T, at netip.AddrPort, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	var out bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = t.TempDir(), &out, &out, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	labtest.Must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s at %v: %s", program, at, out.String())
		}
	})
	labtest.Eventually(t, "it listens", func() bool {
		c, err := net.DialTimeout("tcp", at.String(), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// recorder is a server that takes down what it is sent, and says nothing.
type recorder struct {
	at   netip.AddrPort
	mu   sync.Mutex
	sent bytes.Buffer
	n    int // connections
}

func record(t *testing.T) *recorder {
	t.Helper()
	r := &recorder{}
	ln := labtest.Must2(net.Listen("tcp4", "127.0.0.1:0"))(t)
	r.at = ln.Addr().(*net.TCPAddr).AddrPort()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.n++
			r.mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				b := make([]byte, 4096)
				for {
					n, err := c.Read(b)
					r.mu.Lock()
					r.sent.Write(b[:n])
					r.mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return r
}

// heard is what it was sent, and on how many connections.
func (r *recorder) heard() (string, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent.String(), r.n
}

// secret writes a password file, as tools do that rotate them.
func secret(t *testing.T, file, text string, mode os.FileMode) string {
	t.Helper()
	if file == "" {
		file = filepath.Join(t.TempDir(), "password")
	}
	labtest.Must(t, os.WriteFile(file+".new", []byte(text+"\n"), mode))
	labtest.Must(t, os.Chmod(file+".new", mode))
	labtest.Must(t, os.Rename(file+".new", file))
	return file
}

// tlsRedis starts a server with a certificate.
func tlsRedis(t *testing.T, a *labtest.Authority, cert, key string, args ...string) netip.AddrPort {
	t.Helper()
	at := freePort(t)
	run(t, at, "redis-server", append([]string{"--port", "0", "--tls-port", strconv.Itoa(int(at.Port())), "--bind", "127.0.0.1", "--save", "",
		"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", a.File, "--tls-auth-clients", "no"}, args...)...)
	return at
}

// names is a DNS server at a loopback address of its own.
type names struct {
	mu    sync.Mutex
	addrs map[string][]string
}

// serveNames starts one, and returns a resolv.conf that names it.
func serveNames(t *testing.T) (n *names, resolvConf string) {
	t.Helper()
	n = &names{addrs: map[string][]string{}}
	var conn *net.UDPConn
	for try := 0; conn == nil; try++ {
		// Random, since tests of other checkouts may run beside this one.
		ip := net.IPv4(127, byte(1+mathrand.IntN(254)), byte(mathrand.IntN(256)), byte(1+mathrand.IntN(254)))
		var err error
		if conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: ip, Port: 53}); err != nil && try == 20 {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 1024)
		for {
			k, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, err := n.answer(b[:k]); err == nil {
				conn.WriteTo(answer, from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	resolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	labtest.Must(t, os.WriteFile(resolvConf, fmt.Appendf(nil, "nameserver %v\n", conn.LocalAddr().(*net.UDPAddr).IP), 0o644))
	return n, resolvConf
}

// set gives a name its addresses.
func (n *names) set(name string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs[name+"."] = addrs
}

func (n *names) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	q := m.Questions[0]
	n.mu.Lock()
	defer n.mu.Unlock()
	addrs, known := n.addrs[strings.ToLower(q.Name.String())]
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addrs {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
			})
		}
	}
	return m.Pack()
}

// soon is a context for one question.
func soon(t *testing.T) context.Context { return labtest.Soon(t) }
