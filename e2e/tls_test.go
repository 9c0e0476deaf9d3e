//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

// secured is how servers are asked: over TLS, by a user with the rights of docs/targets.md.
type secured struct {
	rig      *rig
	ca       string
	args     []string // of a server, beside its TLS port
	config   string   // of the target
	user     [2][]string
	password string
}

const serverName = "redis.test"

func newSecured(r *rig) *secured {
	t := r.t
	t.Helper()
	ca := labtest.NewAuthority(t)
	cert, key := ca.Issue(t, serverName)
	s := &secured{rig: r, ca: ca.File, password: "s3cret"}
	s.args = []string{"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca.File, "--tls-auth-clients", "no"}
	file := filepath.Join(t.TempDir(), "password")
	labtest.Must(t, os.WriteFile(file, []byte(s.password), 0o600))
	s.config = fmt.Sprintf("username = \"redisguard\"\npassword_file = %q\nsentinel_username = \"redisguard\"\nsentinel_password_file = %q\n[target.tls]\nenabled = true\nsentinels = true\nca = %q\nserver_name = %q\n",
		file, file, ca.File, serverName)
	text := string(labtest.Must2(os.ReadFile("../docs/targets.md"))(t))
	blocks := regexp.MustCompile("(?s)```\nACL SETUSER redisguard (.*?)```").FindAllStringSubmatch(text, -1)
	if len(blocks) < 2 {
		t.Fatalf("docs/targets.md has %d blocks with rights", len(blocks))
	}
	for i := range s.user {
		words := strings.Fields(strings.NewReplacer("\\\n", " ", "PASSWORD", s.password).Replace(blocks[i][1]))
		s.user[i] = append([]string{"ACL", "SETUSER", "redisguard"}, words...)
	}
	return s
}

// tlsAt is the address for TLS of a server, which the test itself asks at another port.
func tlsAt(s *lab.Redis) netip.AddrPort {
	return netip.AddrPortFrom(s.Addr().Addr(), s.Addr().Port()+tlsOffset)
}

const tlsOffset = 100

func tlsAddrs(redis []*lab.Redis) (list []netip.AddrPort) {
	for _, s := range redis {
		list = append(list, tlsAt(s))
	}
	return list
}

// tlsClient is a process with a connection, which speaks TLS.
type tlsClient struct {
	kind   lab.ClientKind
	server netip.AddrPort
	key    string
	said   chan string // its local address, then when its connection ended
}

const tlsClientEnv = "REDISGUARD_E2E_TLS_CLIENT"

// runTLSClient is the process: it says what tlsClient reads.
func runTLSClient(words []string) error {
	kind, at, ca := lab.ClientKind(words[0]), words[1], words[2]
	roots := x509.NewCertPool()
	b, err := os.ReadFile(ca)
	if err != nil || !roots.AppendCertsFromPEM(b) {
		return fmt.Errorf("no certificate in %s: %w", ca, err)
	}
	conn, err := tls.Dial("tcp", at, &tls.Config{RootCAs: roots, ServerName: serverName})
	if err != nil {
		return err
	}
	defer conn.Close()
	command := map[lab.ClientKind]string{lab.Subscriber: "SUBSCRIBE news\r\n", lab.Blpop: "BLPOP nothing 0\r\n", lab.Idle: "PING\r\n", lab.Writer: "PING\r\n"}[kind]
	if _, err := io.WriteString(conn, command); err != nil {
		return err
	}
	fmt.Println(conn.LocalAddr())
	in := resp.NewReader(bufio.NewReader(conn), resp.Limits{})
	for err == nil {
		if _, err = in.Read(); err == nil && kind == lab.Writer {
			time.Sleep(5 * time.Millisecond) // the pace of its requests
			_, err = io.WriteString(conn, command)
		}
	}
	fmt.Println(time.Now().Format(time.RFC3339Nano))
	return nil
}

// connect starts one that does what clients of this kind do, and waits until the daemon knows it.
func (s *secured) connect(kind lab.ClientKind, at netip.AddrPort) *tlsClient {
	r, t := s.rig, s.rig.t
	t.Helper()
	c := &tlsClient{kind, at, "", make(chan string, 2)}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %v %s", tlsClientEnv, kind, at, s.ca))
	var out bytes.Buffer
	cmd.Stdout = writer(func(b []byte) {
		for out.Write(b); ; {
			line, err := out.ReadString('\n')
			if err != nil {
				out.WriteString(line)
				return
			}
			c.said <- strings.TrimSpace(line)
		}
	})
	cmd.Stderr = os.Stderr
	labtest.Must2(r.apps.Start(r.ctx, cmd))(t)
	var local string
	select {
	case local = <-c.said:
	case <-time.After(20 * time.Second):
		t.Fatalf("a %s of %v has not connected", kind, at)
	}
	c.key = r.apps.NSName + " " + local
	labtest.Within(t, 20*time.Second, "the daemon knows its connection", func() bool {
		return slices.ContainsFunc(r.connections(), func(x v1.Connection) bool { return x.Local == local && x.Process != nil })
	})
	return c
}

func (s *secured) connectAll(servers ...*lab.Redis) (all []*tlsClient) {
	for _, x := range servers {
		for _, kind := range allKinds {
			all = append(all, s.connect(kind, tlsAt(x)))
		}
	}
	return all
}

// freed waits until those connections end that lead to some servers, and checks that no others do.
func (s *secured) freed(name string, all []*tlsClient, begun time.Time, within time.Duration, servers ...*lab.Redis) {
	t := s.rig.t
	t.Helper()
	took := map[lab.ClientKind]time.Duration{}
	for _, c := range all {
		if !slices.Contains(tlsAddrs(servers), c.server) {
			continue
		}
		select {
		case said := <-c.said:
			at := labtest.Must2(time.Parse(time.RFC3339Nano, said))(t)
			if took[c.kind] = at.Sub(begun); took[c.kind] > within {
				t.Errorf("%s: a %s got its error after %v, later than %v", name, c.kind, took[c.kind], within)
			}
		case <-time.After(within + 10*time.Second):
			t.Fatalf("%s: a %s of %v has no error", name, c.kind, c.server)
		}
	}
	t.Logf("%s: errors after %v", name, took)
	for _, c := range all {
		if !slices.Contains(tlsAddrs(servers), c.server) && len(c.said) > 0 {
			t.Errorf("%s: a %s of %v has lost its connection", name, c.kind, c.server)
		}
	}
}

// Redis Cluster over TLS with least rights: planned failover, then a power-cut.
func TestSecuredCluster(t *testing.T) {
	port := portsFrom + 71
	r := newRig(t, "x")
	s := newSecured(r)
	redis := r.servers(6, lab.RedisConfig{Port: port, Args: slices.Concat(clusterArgs, s.args, []string{"--tls-port", fmt.Sprint(port + tlsOffset), "--tls-cluster", "yes", "--tls-replication", "yes"})})
	for _, x := range redis {
		r.do(x, s.user[0]...)
	}
	r.join(redis, map[*lab.Redis]string{}, 3, port+tlsOffset)
	r.guard(targetText("carts", tlsAddrs(redis[:3]), fmt.Sprintf("allow_ports = [\"%d\", \"%d\"]\n", port, port+tlsOffset)+s.config))
	r.up("carts", func(x *v1.Target) bool { return len(x.Nodes) == 6 && x.Covered == 16384 && len(x.Problems) == 0 })
	r.settled()
	all := s.connectAll(redis[0], redis[1], redis[3])
	n := len(r.told())
	r.do(redis[3], "CLUSTER", "FAILOVER")
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	t.Logf("the event is %s", e.Text)
	r.settled()
	s.freed("planned", all, time.Now(), time.Second)
	r.only(n, nil)
	begun := time.Now()
	r.cut(redis[1])
	s.freed("power-cut", all, begun, downWithin, redis[1])
	r.next(n, 20*time.Second, v1.EventPrimaryChanged, func(e *v1.Event) bool { return e.Change != nil && e.Change.From == tlsAt(redis[1]).String() })
	if x := r.up("carts", nil); len(x.Problems) > 0 {
		t.Errorf("the problems are %q", x.Problems)
	}
}

// Sentinel over TLS with least rights: a planned failover frees the clients of the old primary.
func TestSecuredSentinel(t *testing.T) {
	port, sentinelPort := portsFrom+73, portsFrom+74
	r := newRig(t, "y")
	s := newSecured(r)
	redis := r.servers(3, lab.RedisConfig{Port: port, Args: slices.Concat(s.args, []string{"--tls-port", fmt.Sprint(port + tlsOffset), "--tls-replication", "yes", "--repl-diskless-sync-delay", "0"})})
	var sentinels []*lab.Redis
	lines := []string{fmt.Sprintf("tls-port %d", sentinelPort+tlsOffset), "tls-replication yes"}
	for i := 0; i < len(s.args); i += 2 {
		lines = append(lines, strings.TrimPrefix(s.args[i], "--")+" "+s.args[i+1])
	}
	for i, x := range redis {
		r.do(x, s.user[0]...)
		if i > 0 {
			r.do(x, "REPLICAOF", redis[0].Addr().Addr().String(), fmt.Sprint(port+tlsOffset))
		}
	}
	for _, x := range redis {
		y := labtest.Must2(x.Host().Sentinel(r.ctx, lab.SentinelConfig{Path: labtest.RedisServer(), Port: sentinelPort, Primary: tlsAt(redis[0]), Quorum: 2, FailoverTimeout: 6 * time.Second, Lines: lines}))(t)
		r.do(y, s.user[1]...)
		sentinels = append(sentinels, y)
	}
	labtest.Within(t, 30*time.Second, "the sentinels know all", func() bool {
		return !slices.ContainsFunc(sentinels, func(x *lab.Redis) bool {
			v := fmt.Sprint(r.do(x, "SENTINEL", "MASTER", "main"))
			return !strings.Contains(v, "num-slaves 2") || !strings.Contains(v, "num-other-sentinels 2")
		})
	})
	r.guard(targetText("orders", tlsAddrs(sentinels), fmt.Sprintf("type = \"sentinel\"\nmaster_name = \"main\"\nallow_ports = [\"%d\", \"%d\"]\n", port+tlsOffset, sentinelPort+tlsOffset)+s.config))
	r.up("orders", func(x *v1.Target) bool { return len(x.Nodes) == 3 && len(x.Sentinels) == 3 && len(x.Problems) == 0 })
	r.settled()
	all := s.connectAll(redis...)
	r.asked(redis[0], 2)
	n := len(r.told())
	r.do(sentinels[0], "SENTINEL", "FAILOVER", "main")
	e, _ := r.next(n, 20*time.Second, v1.EventPrimaryChanged, nil)
	to := netip.MustParseAddrPort(e.Change.To)
	begun := time.Now()
	r.do(redis[0], "REPLICAOF", to.Addr().String(), fmt.Sprint(to.Port()))
	var freed []string // by us: a Sentinel ends clients, too, of whom it reconfigures
	for _, c := range all {
		if c.server == tlsAt(redis[0]) && c.kind != lab.Blpop { // Redis ends those itself (UNBLOCKED)
			freed = append(freed, c.key)
		}
	}
	labtest.Within(t, 15*time.Second, "its clients are freed", func() bool { return len(r.reaped(n)) >= len(freed) })
	t.Logf("demoted: freed after %v", time.Since(begun))
	r.only(n, []string{"demoted"}, freed...)
	if x := r.up("orders", nil); len(x.Problems) > 0 {
		t.Errorf("the problems are %q", x.Problems)
	}
}
