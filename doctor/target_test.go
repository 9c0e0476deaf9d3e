package doctor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crypto "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/lab/labtest"
)

const password = "correct horse battery"

// passwordFile is a file with text, of a mode.
func passwordFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	labtest.Must(t, os.WriteFile(file, []byte(text+"\n"), mode))
	return file
}

// findingsOf runs the checks of the one target that lines describe; resolv is its resolv.conf. The
// findings are by the last word of their names.
func findingsOf(t *testing.T, resolv string, problems func(context.Context) (map[string][]string, error), lines ...string) map[string]Finding {
	t.Helper()
	n := root(t, map[string]string{"etc/resolv.conf": resolv, "redisguard.toml": "[probe]\ntimeout = \"1s\"\n[[target]]\nname = \"orders\"\n" + strings.Join(lines, "\n") + "\n"})
	n.file, n.problems = filepath.Join(n.root, "redisguard.toml"), problems
	if f := checkConfig(t.Context(), n); f.Status != OK {
		t.Fatal(f.Evidence)
	}
	found := map[string]Finding{}
	for _, f := range run(t.Context(), n, 0, targetChecks(n)) {
		if f.Evidence == "" || strings.Contains(f.Evidence+f.Remedy, "\n") || (f.Status == Warn || f.Status == Fail) != (f.Remedy != "") || strings.Contains(f.Evidence, password) {
			t.Errorf("%+v", f)
		}
		found[strings.TrimPrefix(f.Check, "target/orders/")] = f
	}
	return found
}

// want compares the status of findings, and what their evidence or remedy says.
func want(t *testing.T, found map[string]Finding, check string, status Status, says string) {
	t.Helper()
	if f := found[check]; f.Status != status || !strings.Contains(f.Evidence+" "+f.Remedy, says) {
		t.Errorf("%s: %v, %q, %q; want %v and %q", check, f.Status, f.Evidence, f.Remedy, status, says)
	}
}

// acl runs a command on a server.
func acl(t *testing.T, addr netip.AddrPort, command string) {
	t.Helper()
	c := labtest.Must2(net.Dial("tcp", addr.String()))(t)
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	labtest.Must2(fmt.Fprintf(c, "%s\r\n", command))(t)
	b := make([]byte, 256)
	if n := labtest.Must2(c.Read(b))(t); string(b[:n]) != "+OK\r\n" {
		t.Fatalf("%s: %s", command, b[:n])
	}
}

func TestTargetThatIsWell(t *testing.T) {
	at := labtest.LoopbackRedis(t)
	acl(t, at, `ACL SETUSER redisguard on ">`+password+`" -@all +hello +ping +info +role`)
	found := findingsOf(t, "", func(context.Context) (map[string][]string, error) { return map[string][]string{"orders": nil}, nil },
		fmt.Sprintf("seeds = [%q]", at), `username = "redisguard"`, fmt.Sprintf("password_file = %q", passwordFile(t, password, 0o600)))
	for _, check := range []string{"passwords", "names", "servers", "rights", "allow", "view"} {
		want(t, found, check, OK, "")
	}
	want(t, found, "servers", OK, "type standalone, 1 nodes")
	if len(found) != 6 {
		t.Errorf("%d findings", len(found))
	}
}

func TestTargetRefuses(t *testing.T) {
	at := labtest.LoopbackRedis(t)
	acl(t, at, `ACL SETUSER redisguard on ">`+password+`" -@all +hello +ping +role`)
	seeds, user := fmt.Sprintf("seeds = [%q]", at), `username = "redisguard"`
	good := fmt.Sprintf("password_file = %q", passwordFile(t, password, 0o600))

	t.Run("a command", func(t *testing.T) {
		found := findingsOf(t, "", nil, seeds, user, good)
		want(t, found, "rights", Warn, "INFO at "+at.String())
		want(t, found, "view", CouldNotTell, "no daemon")
	})
	t.Run("the password", func(t *testing.T) {
		found := findingsOf(t, "", nil, seeds, user, fmt.Sprintf("password_file = %q", passwordFile(t, "wrong", 0o600)))
		want(t, found, "passwords", OK, "can be read")
		want(t, found, "servers", Fail, "correct username and password_file")
		want(t, found, "rights", CouldNotTell, "")
		want(t, found, "allow", CouldNotTell, "")
	})
	t.Run("the file", func(t *testing.T) {
		found := findingsOf(t, "", nil, seeds, user, fmt.Sprintf("password_file = %q", passwordFile(t, password, 0o644)))
		want(t, found, "passwords", Fail, "chmod 600")
		want(t, found, "servers", CouldNotTell, "not asked")
	})
	t.Run("TLS", func(t *testing.T) {
		found := findingsOf(t, "", nil, seeds, user, good, "[target.tls]", "enabled = true")
		want(t, found, "servers", Fail, "tls.enabled")
	})
	t.Run("to be there", func(t *testing.T) {
		ln := labtest.Must2(net.Listen("tcp", "127.0.0.1:0"))(t)
		ln.Close()
		found := findingsOf(t, "", nil, fmt.Sprintf("seeds = [%q]", ln.Addr()))
		want(t, found, "servers", Fail, "connection refused")
	})
	t.Run("nothing, as there is no route", func(t *testing.T) {
		// The broadcast address, to which the kernel lets no TCP socket connect.
		found := findingsOf(t, "", nil, `seeds = ["255.255.255.255:6379"]`)
		want(t, found, "servers", CouldNotTell, "no way there")
	})
	t.Run("an account", func(t *testing.T) {
		acl(t, at, "CONFIG SET requirepass x")
		want(t, findingsOf(t, "", nil, seeds), "servers", Fail, "name a password_file")
	})
}

// certificate makes one of 127.0.0.1 that has signed itself, with its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	pair := labtest.Must2(ecdsa.GenerateKey(elliptic.P256(), crypto.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der := labtest.Must2(x509.CreateCertificate(crypto.Reader, template, template, &pair.PublicKey, pair))(t)
	private := labtest.Must2(x509.MarshalPKCS8PrivateKey(pair))(t)
	cert, key = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	labtest.Must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	labtest.Must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return cert, key
}

func TestTargetOverTLS(t *testing.T) {
	cert, key := certificate(t)
	ln := labtest.Must2(net.Listen("tcp", "127.0.0.1:0"))(t)
	at := ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(at)
	labtest.LoopbackRedis(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no", "--requirepass", password)
	lines := []string{fmt.Sprintf("seeds = [%q]", at), fmt.Sprintf("password_file = %q", passwordFile(t, password, 0o600)), "[target.tls]", "enabled = true"}
	want(t, findingsOf(t, "", nil, append(lines, fmt.Sprintf("ca = %q", cert))...), "servers", OK, "1 nodes")
	want(t, findingsOf(t, "", nil, lines...), "servers", Fail, "[target.tls]")
	want(t, findingsOf(t, "", nil, append(lines, fmt.Sprintf("ca = %q", cert), `server_name = "other.example"`)...), "servers", Fail, "server_name")
}

// TestTargetNamesOthers: who is outside allow is told, and neither dialled nor given a password.
func TestTargetNamesOthers(t *testing.T) {
	ln := labtest.Must2(net.Listen("tcp", "127.0.0.1:0"))(t)
	var mu sync.Mutex
	var heard bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Second))
				b := make([]byte, 4096)
				n, _ := c.Read(b)
				mu.Lock()
				defer mu.Unlock()
				heard.Write(b[:n])
			})
		}
	})
	defer wg.Wait()
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	at := labtest.LoopbackRedis(t, "--replicaof", "127.0.0.1 "+port)
	acl(t, at, `ACL SETUSER default on ">`+password+`"`)
	found := findingsOf(t, "", nil, fmt.Sprintf("seeds = [%q]", at), `allow_ports = ["`+strconv.Itoa(int(at.Port()))+`"]`, fmt.Sprintf("password_file = %q", passwordFile(t, password, 0o600)))
	want(t, found, "allow", Warn, "127.0.0.1:"+port)
	mu.Lock()
	defer mu.Unlock()
	if s := heard.String(); strings.Contains(s, password) || strings.Contains(s, "HELLO") {
		t.Errorf("who is outside allow was sent %q", s)
	}
}

func TestTargetWithSentinel(t *testing.T) {
	at := labtest.LoopbackRedis(t)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	ln := labtest.Must2(net.Listen("tcp", "127.0.0.1:0"))(t)
	sentinel := netip.MustParseAddrPort(ln.Addr().String())
	ln.Close()
	labtest.Must(t, os.WriteFile(conf, fmt.Appendf(nil, "port %d\nbind 127.0.0.1\nsentinel monitor m 127.0.0.1 %d 1\n", sentinel.Port(), at.Port()), 0o600))
	cmd := exec.Command("redis-server", conf, "--sentinel")
	labtest.Must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	labtest.Eventually(t, "the Sentinel listens", func() bool {
		c, err := net.Dial("tcp", sentinel.String())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	rights := `ACL SETUSER watcher on ">` + password + `" -@all +hello +ping +info +role +sentinel|master +sentinel|masters +sentinel|replicas +sentinel|sentinels `
	lines := []string{
		`type = "sentinel"`, fmt.Sprintf("seeds = [%q]", sentinel), fmt.Sprintf("allow_ports = [%q, %q]", strconv.Itoa(int(at.Port())), strconv.Itoa(int(sentinel.Port()))),
		`sentinel_username = "watcher"`, fmt.Sprintf("sentinel_password_file = %q", passwordFile(t, password, 0o600)),
	}
	acl(t, sentinel, rights+"resetchannels &*")
	want(t, findingsOf(t, "", nil, lines...), "rights", Warn, "SUBSCRIBE at "+sentinel.String())
	acl(t, sentinel, rights+"+subscribe resetchannels &*")
	found := findingsOf(t, "", nil, lines...)
	want(t, found, "servers", OK, "type sentinel, 1 nodes, 1 Sentinels")
	want(t, found, "rights", OK, "")
}

// nameServer answers on port 53 of a loopback address: "redis." is at addr, "silent." is not
// answered, others do not exist. It returns a resolv.conf.
func nameServer(t *testing.T, addr [4]byte) (resolv string) {
	t.Helper()
	var conn *net.UDPConn
	for range 20 {
		ip := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
		var err error
		if conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 53))); err == nil {
			break
		}
	}
	if conn == nil {
		t.Fatal("cannot listen on port 53")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDP(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 || m.Questions[0].Name.String() == "silent." {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			switch {
			case q.Name.String() != "redis.":
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.AResource{A: addr}}}
			}
			out, err := m.Pack()
			if err == nil {
				conn.WriteToUDP(out, from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return "nameserver " + conn.LocalAddr().(*net.UDPAddr).IP.String() + "\noptions timeout:1 attempts:1\n"
}

func TestTargetNames(t *testing.T) {
	resolv := nameServer(t, [4]byte{127, 0, 0, 1})
	at := labtest.LoopbackRedis(t)
	port := strconv.Itoa(int(at.Port()))
	found := findingsOf(t, resolv, nil, `seeds = ["redis.:`+port+`"]`, `allow = ["127.0.0.0/8"]`)
	want(t, found, "names", OK, "redis. is 127.0.0.1")
	want(t, found, "servers", OK, "1 nodes")

	found = findingsOf(t, resolv, nil, `seeds = ["redis.:`+port+`"]`, `allow = ["10.0.0.0/8"]`)
	want(t, found, "names", Warn, "127.0.0.1:"+port+" are not in allow")
	want(t, found, "servers", CouldNotTell, "no address of a seed")

	want(t, findingsOf(t, resolv, nil, `seeds = ["other.:6379"]`, `allow = ["127.0.0.0/8"]`), "names", Fail, "other")
	want(t, findingsOf(t, resolv, nil, `seeds = ["silent.:6379"]`, `allow = ["127.0.0.0/8"]`), "names", CouldNotTell, "silent")
}

func TestTargetView(t *testing.T) {
	n := &node{}
	tt := &target{node: n}
	c := findingsOf(t, "", nil, `seeds = ["192.0.2.1:6379"]`, `mode = "off"`)
	want(t, c, "mode", OK, "the mode is off")
	if len(c) != 1 {
		t.Errorf("of a target that is off: %v", c)
	}
	tt.conf = &config.TargetSection{Name: "orders"}
	for _, x := range []struct {
		problems map[string][]string
		err      error
		status   Status
		says     string
	}{
		{nil, errors.New("no daemon"), CouldNotTell, "no daemon"},
		{nil, nil, Warn, "does not have it"},
		{map[string][]string{"orders": {}}, nil, OK, "nothing wrong"},
		{map[string][]string{"orders": {"address.outside: x"}}, nil, Warn, "address.outside: x"},
	} {
		n.problems = func(context.Context) (map[string][]string, error) { return x.problems, x.err }
		want(t, map[string]Finding{"view": tt.checkView(t.Context(), n)}, "view", x.status, x.says)
	}
}
