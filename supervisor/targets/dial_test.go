package targets

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab/labtest"
)

// loopback is a target of servers at the loopback.
func loopback(seed any, lines string) string {
	return fmt.Sprintf("[probe]\ntimeout = \"1s\"\n[[target]]\nname = \"orders\"\nfleet_size = 1\ninterval = \"1s\"\nseeds = [%q]\nallow = [\"127.0.0.0/8\"]\nallow_ports = [\"1-65535\"]\n%s",
		fmt.Sprint(seed), lines)
}

// refusals is how many wrong passwords a server has been told.
func refusals(t *testing.T, at netip.AddrPort, login []string) int {
	t.Helper()
	n := 0
	for _, entry := range command(t, at, login, "ACL", "LOG").Elems {
		for i := 0; i+1 < len(entry.Elems); i += 2 {
			if entry.Elems[i].Str == "count" {
				n += int(entry.Elems[i+1].Int)
			}
		}
	}
	return n
}

// Nodes and Sentinels are each told their own password and no other, and the file is read again
// when it changes.
func TestCredentials(t *testing.T) {
	t.Parallel()
	primary := labtest.LoopbackRedis(t, "--requirepass", "of the nodes", "--masterauth", "of the nodes")
	replica := labtest.LoopbackRedis(t, "--requirepass", "of the nodes", "--masterauth", "of the nodes", "--replicaof", "127.0.0.1", fmt.Sprint(primary.Port()))
	sentinels := []netip.AddrPort{}
	for range 2 {
		sentinels = append(sentinels, sentinel(t, primary, `sentinel auth-pass orders "of the nodes"`, `requirepass "of sentinel"`, `sentinel sentinel-pass "of sentinel"`))
	}
	nodes, guards := secret(t, "", "of the nodes", 0o600), secret(t, "", "of sentinel", 0o600)
	w := follow(t, nil, "", loopback(sentinels[0], fmt.Sprintf("type = \"sentinel\"\nmaster_name = \"orders\"\npassword_file = %q\nsentinel_password_file = %q\n", nodes, guards)))
	w.isUp("orders", primary)
	w.until("all are known", func() bool {
		top := w.target("orders").Topology
		return top.At(replica) != nil && top.At(replica).Role == "replica" && len(top.Sentinels) == 2 && w.target("orders").Problem == ""
	})
	for _, at := range []netip.AddrPort{primary, replica} {
		if n := refusals(t, at, []string{"of the nodes"}); n != 0 {
			t.Errorf("%v was told %d wrong passwords", at, n)
		}
	}
	for _, at := range sentinels {
		if n := refusals(t, at, []string{"of sentinel"}); n != 0 {
			t.Errorf("the Sentinel %v was told %d wrong passwords", at, n)
		}
	}

	// Rotated: first the servers, then the file.
	for _, at := range []netip.AddrPort{primary, replica} {
		command(t, at, []string{"of the nodes"}, "CONFIG", "SET", "requirepass", "another")
	}
	text := w.problem("user name or the password is wrong")
	if strings.Contains(text, "of the nodes") {
		t.Errorf("the password is told: %s", text)
	}
	if p := w.target("orders").Topology.Primary(); p == nil || p.State != clusterview.StateOK {
		t.Errorf("a refused password says nothing about the node: %+v", p)
	}
	if !strings.Contains(text, "check username and password_file of target orders") {
		t.Errorf("the remedy is missing: %s", text)
	}
	before := refusals(t, primary, []string{"another"})
	if before > 4 {
		t.Errorf("a refused password was tried %d times", before)
	}
	secret(t, nodes, "another", 0o600)
	w.until("all is well", func() bool { return w.event(event.TargetResumed) != nil && w.target("orders").Problem == "" })
	if after := refusals(t, primary, []string{"another"}); after > before+1 {
		t.Errorf("%d wrong passwords after the change, %d before", after, before)
	}
}

// What keeps us from asking is told with its remedy, and nobody is asked.
func TestRefusedFiles(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		lines func(t *testing.T) string
		says  []string
	}{
		{"a password file for all to read", func(t *testing.T) string {
			return fmt.Sprintf("password_file = %q\n", secret(t, "", "secret", 0o644))
		}, []string{"0644", "chmod 600"}},
		{"no password file", func(t *testing.T) string {
			return fmt.Sprintf("password_file = %q\n", filepath.Join(t.TempDir(), "none"))
		}, []string{"none", "no such file"}},
		{"no file with authorities", func(t *testing.T) string {
			return fmt.Sprintf("[target.tls]\nenabled = true\nca = %q\n", filepath.Join(t.TempDir(), "none"))
		}, []string{"certificate authorities", "no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := record(t)
			w := follow(t, nil, "", loopback(r.at, tt.lines(t)))
			w.problem(tt.says...)
			if sent, n := r.heard(); strings.Contains(sent, "secret") || n > 0 {
				t.Errorf("%d connections, which said %q", n, sent)
			}
		})
	}
}

// A server that does not prove its name is not asked; it is there, though.
func TestTLS(t *testing.T) {
	t.Parallel()
	a, other := labtest.NewAuthority(t), labtest.NewAuthority(t)
	cert, key := a.Issue(t, "127.0.0.1")
	at := tlsRedis(t, a, cert, key, "--requirepass", "secret")
	password := secret(t, "", "secret", 0o600)
	conf := func(ca string) string {
		return loopback(at, fmt.Sprintf("password_file = %q\n[target.tls]\nenabled = true\nca = %q\n", password, ca))
	}
	w := follow(t, nil, "", conf(other.File))
	w.problem("authority that is not known", "as the CA file")
	w.set(conf(a.File), nil)
	w.isUp("orders", at)
	w.until("nothing is wrong", func() bool { return w.target("orders").Problem == "" })
	if f, _ := w.fact(at); f.RunID == "" {
		t.Errorf("the fact is %+v", f)
	}
}

// The names that certificates must have.
func TestServerName(t *testing.T) {
	for name, want := range map[string]string{config.ServerNameSeed: "seed.test", config.ServerNameAnnounced: "node.test", "fixed.test": "fixed.test"} {
		target := &config.TargetSection{Seeds: []config.Seed{{Host: "seed.test", Port: 1}}, TLS: config.TLSSection{ServerName: name}}
		if got := serverName(target, "node.test"); got != want {
			t.Errorf("with %q it is %q", name, got)
		}
	}
}

// A right that is missing is told, with the command.
func TestMissingRight(t *testing.T) {
	t.Parallel()
	at := labtest.LoopbackRedis(t, "--user", "guard", "on", ">secret", "-@all", "+ping", "+hello", "+info", "+client|setname")
	password := secret(t, "", "secret", 0o600)
	w := follow(t, nil, "", loopback(at, fmt.Sprintf("username = \"guard\"\npassword_file = %q\n", password)))
	w.problem("command.refused", "ROLE")
	w.isUp("orders", at) // INFO says as much
}

// A Sentinel that lets us ask and not subscribe: the view is slower for that, which is told.
func TestMissingSubscription(t *testing.T) {
	t.Parallel()
	primary := labtest.LoopbackRedis(t)
	s := sentinel(t, primary, "user guard on >secret -@all +ping +hello +auth +info +role +client|setname +sentinel|masters +sentinel|master +sentinel|replicas +sentinel|sentinels")
	w := follow(t, nil, "", loopback(s, fmt.Sprintf("type = \"sentinel\"\nmaster_name = \"orders\"\nsentinel_username = \"guard\"\nsentinel_password_file = %q\n", secret(t, "", "secret", 0o600))))
	w.isUp("orders", primary)
	w.problem(s.String(), "SUBSCRIBE")
	command(t, s, nil, "ACL", "SETUSER", "guard", "+subscribe", "allchannels")
	w.until("it is over", func() bool { return w.event(event.TargetResumed) != nil && w.target("orders").Problem == "" })
}

// No password leads out of allow, whoever is dialled.
func TestNoPasswordOutside(t *testing.T) {
	t.Parallel()
	r := record(t)
	c := labtest.Must2(config.Parse("test", []byte(loopback(r.at, fmt.Sprintf("password_file = %q\n", secret(t, "", "secret", 0o600))))))(t)
	w := &world{t: t}
	w.set(loopback(r.at, ""), nil)
	d := NewDialer(w.now.Load)
	inside, outside := c.Targets[0], c.Targets[0]
	outside.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for _, sentinel := range []bool{false, true} {
		outside.SentinelPasswordFile = outside.PasswordFile
		if _, err := d.Ask(soon(t), &outside, Server{Addr: r.at, Sentinel: sentinel}, []string{"INFO"}); err == nil {
			t.Error("it was asked")
		}
	}
	if sent, n := r.heard(); strings.Contains(sent, "secret") || strings.Contains(sent, "AUTH") || n == 0 {
		t.Errorf("on %d connections it was told %q", n, sent)
	}
	// The same server, allowed.
	if _, err := d.Ask(soon(t), &inside, Server{Addr: r.at}, []string{"INFO"}); err == nil {
		t.Error("it has answered")
	}
	if sent, _ := r.heard(); !strings.Contains(sent, "secret") {
		t.Errorf("it was told %q", sent)
	}
}

// A password that was refused rests, but not for another user.
func TestBackoffOfAUser(t *testing.T) {
	t.Parallel()
	at := labtest.LoopbackRedis(t, "--user", "guard", "on", ">secret", "+@all")
	w := &world{t: t}
	conf := func(user string) *config.TargetSection {
		w.set(loopback(at, ""), nil)
		c := labtest.Must2(config.Parse("test", []byte(loopback(at, fmt.Sprintf("username = %q\npassword_file = %q\n", user, filepath.Join(os.TempDir(), "x"))))))(t)
		return &c.Targets[0]
	}
	file := secret(t, "", "secret", 0o600)
	wrong, right := conf("gaurd"), conf("guard")
	wrong.PasswordFile, right.PasswordFile = file, file
	d := NewDialer(w.now.Load)
	if _, err := d.Ask(soon(t), wrong, Server{Addr: at}, []string{"PING"}); !errors.Is(err, ErrNotAsked) {
		t.Errorf("the wrong user: %v", err)
	}
	if _, err := d.Ask(soon(t), wrong, Server{Addr: at}, []string{"PING"}); !errors.Is(err, ErrNotAsked) {
		t.Errorf("the wrong user again: %v", err)
	}
	if n := refusals(t, at, nil); n != 1 {
		t.Errorf("the wrong user was tried %d times", n)
	}
	if v, err := d.Ask(soon(t), right, Server{Addr: at}, []string{"PING"}); err != nil || v[0].Str != "PONG" {
		t.Errorf("the right user: %v", err)
	}
}

// Seeds that are names are looked up; what a name leads to no more is asked no more.
func TestNames(t *testing.T) {
	t.Parallel()
	f := newFake()
	n, resolvConf := serveNames(t)
	n.set("redis.test", "192.0.2.1", "192.0.2.2")
	f.put(pair(a))
	f.put(map[netip.AddrPort]node{b: {err: fmt.Errorf("%w: no right", ErrNotAsked)}})
	w := follow(t, f, resolvConf, orders(`seeds = ["redis.test:7001"]`))
	w.problem(b.String(), "no right")
	if x := w.target("orders"); len(x.Names) != 1 || len(x.Names[0].Addrs) != 2 {
		t.Errorf("the names are %+v", x.Names)
	}
	labtest.Eventually(t, "both addresses are watched", func() bool { return len(w.endpoints("orders")) == 2 })
	w.isUp("orders", a)
	begun := time.Now()
	n.set("redis.test", "192.0.2.1")
	labtest.Within(t, 40*time.Second, "the address is withdrawn, and its problem with it", func() bool {
		w.Wake("orders")
		return len(w.endpoints("orders")) == 1 && w.target("orders").Problem == ""
	})
	t.Logf("withdrawn after %v", time.Since(begun))
	if _, ok := w.fact(b); ok {
		t.Error("its fact is in force")
	}
}
