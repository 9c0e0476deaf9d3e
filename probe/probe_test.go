package probe

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/resp"
)

// slack is what a busy machine may add to a timeout.
const slack = 500 * time.Millisecond

var testConfig = Config{Timeout: 300 * time.Millisecond, Mark: 0x5264}

func TestAlive(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	open := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	locked := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port + 1}))(t)
	labtest.Must2(locked.Do(labtest.Soon(t), "CONFIG", "SET", "requirepass", "secret"))(t)
	serve(t, server, "6390", func(c net.Conn) {
		c.Read(make([]byte, 16))
		c.Write([]byte{0x15, 3, 3, 0, 2, 2, 50}) // decode_error
	})
	serve(t, server, "6391", func(c net.Conn) {
		c.Read(make([]byte, 16))
		c.Write([]byte("-ERR\x1b[31m evil\r\n"))
	})
	serve(t, server, "6393", func(c net.Conn) { // in two segments
		c.Read(make([]byte, 16))
		c.Write([]byte("+PO"))
		time.Sleep(20 * time.Millisecond)
		c.Write([]byte("NG\r\n"))
	})
	serve(t, server, "6394", func(c net.Conn) { // not the whole of it before the deadline
		c.Write([]byte("+PONG"))
		c.Read(make([]byte, 16))
		c.Read(make([]byte, 16))
	})
	serve(t, server, "6395", func(c net.Conn) {
		c.Read(make([]byte, 16))
		c.Write([]byte("-MISCONF " + strings.Repeat("Redis cannot save. ", 20) + "\r\n"))
	})
	serve(t, server, "6396", func(c net.Conn) {
		c.Read(make([]byte, 16))
		c.Write([]byte("$4611686018427387904\r\n"))
	})
	// The close may be a FIN, or a RST since the PING was not read; the RST may
	// come before the PING is written.
	serve(t, server, "6392", func(net.Conn) {})
	for _, tt := range []struct {
		addr netip.AddrPort
		says string
	}{
		{netip.AddrPortFrom(server.Addr, 6392), "hung up on a PING in plain text, as TLS servers do"},
		{tlsRedis(t, server), "hung up on a PING in plain text, as TLS servers do"},
		{open.Addr(), "reply PONG"},
		{open.Addr6(), "reply PONG"},
		{locked.Addr(), "reply NOAUTH"},
		{netip.AddrPortFrom(server.Addr, 6390), "TLS alert"},
		{netip.AddrPortFrom(server.Addr, 6391), "a reply"},
		{netip.AddrPortFrom(server.Addr, 6393), "reply PONG"},
		{netip.AddrPortFrom(server.Addr, 6394), "a reply"},
		{netip.AddrPortFrom(server.Addr, 6395), "reply MISCONF"},
		{netip.AddrPortFrom(server.Addr, 6396), "a reply"},
	} {
		r := probeFrom(t, labtest.Soon(t), client, tt.addr, testConfig)
		if r.Outcome != Alive || r.Detail != tt.says || r.Connected <= 0 || r.Connected > testConfig.Timeout+slack {
			t.Errorf("%v: %+v, want alive by %q", tt.addr, r, tt.says)
		}
	}
	nothingLeft(t, client)
}

func TestMark(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	seen := make(chan struct{})
	asked := make(chan struct{})
	serve(t, server, "6390", func(c net.Conn) {
		close(asked)
		<-seen
		c.Write([]byte("+PONG\r\n"))
	})
	result := make(chan Result, 1)
	cfg := Config{Timeout: 10 * time.Second, Mark: 0x5264}
	go func() { result <- probeFrom(t, labtest.Soon(t), client, netip.AddrPortFrom(server.Addr, 6390), cfg) }()
	<-asked
	list := sockets(t, client)
	if len(list) != 1 || list[0].Mark != cfg.Mark {
		t.Errorf("the probe's sockets: %+v, want one with mark %#x", list, cfg.Mark)
	}
	close(seen)
	if r := <-result; r.Outcome != Alive {
		t.Errorf("got %+v", r)
	}
}

func TestDead(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	labtest.Must(t, server.Vanish())
	for _, addr := range []netip.Addr{server.Addr, server.Addr6} {
		start := time.Now()
		r := probeFrom(t, labtest.Soon(t), client, netip.AddrPortFrom(addr, port), testConfig)
		if took := time.Since(start); r.Outcome != Dead || r.Connected != 0 || took > testConfig.Timeout+slack {
			t.Errorf("%v: %+v after %v", addr, r, took)
		}
	}
	nothingLeft(t, client)
}

func TestDeadOnTheSameLink(t *testing.T) {
	l := newLab(t)
	client, other := labtest.Must2(l.Client("c"))(t), labtest.Must2(l.Client("o"))(t)
	labtest.Must(t, other.Vanish())
	// The kernel gives up a neighbour after three seconds: EHOSTUNREACH.
	r := probeFrom(t, labtest.Soon(t), client, netip.AddrPortFrom(other.Addr, port), Config{Timeout: 8 * time.Second})
	if r.Outcome != Dead || r.Detail != "host unreachable" {
		t.Errorf("got %+v", r)
	}
	nothingLeft(t, client)
}

func TestRefused(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	for _, addr := range []netip.Addr{server.Addr, server.Addr6} {
		if r := probeFrom(t, labtest.Soon(t), client, netip.AddrPortFrom(addr, port), testConfig); r.Outcome != Refused {
			t.Errorf("%v: %+v", addr, r)
		}
	}
	nothingLeft(t, client)
}

func TestUnresponsive(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	redis := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	labtest.Must(t, redis.Freeze())
	start := time.Now()
	r := probeFrom(t, labtest.Soon(t), client, redis.Addr(), testConfig)
	if took := time.Since(start); r.Outcome != Unresponsive || r.Connected <= 0 || took > testConfig.Timeout+slack {
		t.Errorf("frozen: %+v after %v", r, took)
	}
	labtest.Must(t, redis.Thaw())
	if r := probeFrom(t, labtest.Soon(t), client, redis.Addr(), Config{Timeout: 5 * time.Second}); r.Outcome != Alive {
		t.Errorf("thawed: %+v", r)
	}
	nothingLeft(t, client)
}

func TestCouldNotTell(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	check := func(what string, says ...string) {
		t.Helper()
		r := probeFrom(t, labtest.Soon(t), client, netip.AddrPortFrom(server.Addr, 6390), testConfig)
		ok := false
		for _, s := range says {
			ok = ok || strings.Contains(r.Detail, s)
		}
		if r.Outcome != CouldNotTell || !ok {
			t.Errorf("%s: %+v, want %q", what, r, says)
		}
	}
	// A route that forbids is a policy of the client's own node. "unreachable" is
	// the error of a silent neighbour as well, but that comes later.
	for kind, want := range map[int]syscall.Errno{unix.RTN_PROHIBIT: unix.EACCES, unix.RTN_UNREACHABLE: unix.EHOSTUNREACH} {
		route := netlink.Route{Dst: &net.IPNet{IP: server.Addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: kind}
		labtest.Must(t, client.Do(func() error { return netlink.RouteAdd(&route) }))
		check("forbidden by a route", want.Error())
		labtest.Must(t, client.Do(func() error { return netlink.RouteDel(&route) }))
	}

	labtest.Must(t, client.Do(func() error { return netlink.RouteDel(&netlink.Route{Gw: net.IP{10, 77, 1, 1}}) }))
	check("no route", unix.ENETUNREACH.Error())
	nothingLeft(t, client)
}

// TestLate plays a process that slept through its deadline: the answer is there.
func TestLate(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	redis := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	var s *Socket
	labtest.Must(t, client.Do(func() (err error) {
		s, err = Open(redis.Addr(), Config{Timeout: 10 * time.Second})
		return err
	}))
	_, failed := s.Connect(labtest.Soon(t))
	if failed != nil {
		t.Fatal(*failed)
	}
	labtest.Must2(s.file.WriteString(ping))(t)
	labtest.Eventually(t, "the reply arrives", func() bool {
		list := sockets(t, client)
		return len(list) == 1 && list[0].RQueue > 0
	})
	labtest.Must(t, s.file.SetDeadline(time.Now().Add(-time.Second)))
	var buf [64]byte
	in := &replyReader{s: s, ctx: t.Context()}
	if n, err := in.Read(buf[:]); err != nil || string(buf[:n]) != "+PONG\r\n" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if n, err := in.Read(buf[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %q, %v where there is no more", buf[:n], err)
	}
	s.Close()
	// Nothing was sent within the time, so nothing can be said.
	if r := probeFrom(t, labtest.Soon(t), client, redis.Addr(), Config{Timeout: 1}); r.Outcome != CouldNotTell && r.Outcome != Alive {
		t.Errorf("without time: %+v", r)
	}
}

func TestCancel(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	redis := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	labtest.Must(t, redis.Freeze())
	long := Config{Timeout: time.Minute}
	for _, tt := range []struct {
		name string
		addr netip.AddrPort
		wait func() bool
	}{
		{"while it waits for a reply", redis.Addr(), func() bool {
			list := sockets(t, client)
			return len(list) == 1 && list[0].State == 1
		}},
		{"while it connects", netip.AddrPortFrom(netip.MustParseAddr("10.77.9.9"), port), func() bool { return len(sockets(t, client)) == 1 }},
	} {
		ctx, cancel := context.WithCancel(labtest.Soon(t))
		result := make(chan Result, 1)
		go func() { result <- probeFrom(t, ctx, client, tt.addr, long) }()
		labtest.Eventually(t, "the probe is on its way", tt.wait)
		start := time.Now()
		cancel()
		r := <-result
		if took := time.Since(start); r.Outcome != CouldNotTell || took > slack {
			t.Errorf("%s: %+v after %v", tt.name, r, took)
		}
		nothingLeft(t, client)
	}
	// Over before it begins.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	if r := probeFrom(t, ctx, client, redis.Addr(), long); r.Outcome != CouldNotTell || time.Since(start) > slack {
		t.Errorf("cancelled before: %+v after %v", r, time.Since(start))
	}
}

// TestNamespaceGoesDuringAProbe deletes a pod while it is probed: the probe may
// hold the namespace until it ends, and not a moment longer.
func TestNamespaceGoesDuringAProbe(t *testing.T) {
	l := newLab(t)
	client, server := pair(t, l)
	redis := labtest.Must2(server.Redis(labtest.Soon(t), lab.RedisConfig{Port: port}))(t)
	labtest.Must(t, redis.Freeze())
	// The end of the namespace is seen by a device of its own that has its peer
	// with us.
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "inside"}
	veth.Name = "rgpr" + client.Name + "w"
	labtest.Must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { netlink.LinkDel(veth) }) // gone already if all is well
	ns := labtest.Must2(os.Open(client.NSPath))(t)
	err := netlink.LinkSetNsFd(labtest.Must2(netlink.LinkByName("inside"))(t), int(ns.Fd()))
	ns.Close()
	labtest.Must(t, err)
	exists := func() bool {
		_, err := netlink.LinkByName(veth.Name)
		return err == nil
	}

	result := make(chan Result, 1)
	ctx, cancel := context.WithCancel(labtest.Soon(t))
	defer cancel()
	go func() { result <- probeFrom(t, ctx, client, redis.Addr(), Config{Timeout: time.Minute}) }()
	labtest.Eventually(t, "the probe waits for a reply", func() bool {
		list := sockets(t, client)
		return len(list) == 1 && list[0].State == 1
	})
	labtest.Must(t, client.Remove())
	if !exists() {
		t.Error("the namespace is gone while a socket is in it: the test sees nothing")
	}
	cancel()
	<-result
	labtest.Eventually(t, "the namespace goes with the probe", func() bool { return !exists() })
}

func TestInAGoneNamespace(t *testing.T) {
	l := newLab(t)
	client := labtest.Must2(l.Client("c"))(t)
	ns := namespace(t, client)
	labtest.Must(t, client.Remove())
	onThread(t, func(th *netns.Thread) {
		if s, err := In(th, ns, netip.AddrPortFrom(client.Addr, port), testConfig); err == nil || s != nil {
			t.Errorf("got %v, %v", s, err)
		}
	})
}

func TestWithoutDescriptors(t *testing.T) {
	// In another process: the limit is for all of them.
	if os.Getenv("REDISGUARD_PROBE_TEST") == "" {
		cmd := exec.Command(labtest.Must2(os.Executable())(t), "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "REDISGUARD_PROBE_TEST=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	var was unix.Rlimit
	labtest.Must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	labtest.Must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was) // labtest.Main looks at what is open
	r := Endpoint(t.Context(), netip.MustParseAddrPort("127.0.0.1:1"), Config{Timeout: time.Second})
	if r.Outcome != CouldNotTell || !strings.Contains(r.Detail, unix.EMFILE.Error()) {
		t.Errorf("got %+v", r)
	}
}

func FuzzDescribe(f *testing.F) {
	for _, s := range []string{"+PONG\r\n", "-NOAUTH x\r\n", "*1\r\n+a\r\n", "-NOAUTH x", "\x15\x03\x03", "+", "- ", "+\x1b[31m", "HTTP/1.1 400"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return // a read of nothing is no reply
		}
		reply, _ := resp.NewReader(bytes.NewReader(b), replyLimits).Read()
		for _, r := range describe(b[0], reply) {
			if r < ' ' || r > '~' {
				t.Fatalf("describe(%q) = %q, which is not plain", b, describe(b[0], reply))
			}
		}
	})
}

// tlsRedis starts a real Redis that also listens with TLS, and returns that address.
func tlsRedis(t *testing.T, h *lab.Host) netip.AddrPort {
	t.Helper()
	const tlsPort = port + 3
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	labtest.Must(t, err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	labtest.Must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	labtest.Must(t, err)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	labtest.Must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	labtest.Must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
	_, err = h.Redis(labtest.Soon(t), lab.RedisConfig{Port: port + 2, Args: []string{
		"--tls-port", strconv.Itoa(tlsPort), "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-ca-cert-file", certFile,
	}})
	labtest.Must(t, err)
	return netip.AddrPortFrom(h.Addr, tlsPort)
}
