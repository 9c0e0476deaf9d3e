package session

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/lab/labtest"
)

// documentedACL are the rules that docs/targets.md gives to a user for nodes, in addition for those
// of some versions, and for Sentinels: what follows the name in its three ACL SETUSER lines.
func documentedACL(t *testing.T) (nodes, sentinels, more []string) {
	t.Helper()
	text := string(labtest.Must2(os.ReadFile("../../docs/targets.md"))(t))
	var found [][]string
	for _, block := range regexp.MustCompile("(?s)```\nACL SETUSER redisguard (.*?)```").FindAllStringSubmatch(text, -1) {
		found = append(found, strings.Fields(strings.ReplaceAll(block[1], "\\\n", " ")))
	}
	if len(found) != 3 {
		t.Fatalf("docs/targets.md has %d blocks that begin with ACL SETUSER redisguard, and must have three: for nodes, for Sentinels, in addition", len(found))
	}
	return found[0], found[1], found[2]
}

// tooMuch is a command that no documented user may send: its rights cannot be had without others
// that move slots.
const tooMuch = "CLUSTER MIGRATION STATUS ALL"

// sometimes is a command that some servers know, and to which the page gives the right apart.
const sometimes = "CLUSTER GETSLOTMIGRATIONS"

// viewCommands are those of the cluster view that a user needs rights for, by the constants of its
// source.
func viewCommands(t *testing.T) (nodes, sentinels []string) {
	t.Helper()
	source := labtest.Must2(os.ReadFile("../ask.go"))(t)
	for _, m := range regexp.MustCompile(`(?m)^\task\w+\s+Command = "([A-Z ]+)"`).FindAllSubmatch(source, -1) {
		if c := string(m[1]); strings.HasPrefix(c, "SENTINEL") {
			sentinels = append(sentinels, c)
		} else if c != tooMuch {
			nodes = append(nodes, c)
		}
	}
	if len(nodes) < 7 || len(sentinels) < 4 {
		t.Fatalf("only %q and %q found in ask.go", nodes, sentinels)
	}
	return nodes, sentinels
}

const aclUser, aclPassword = "redisguard", "s3cret"

// setUser makes the user anew with rules, where PASSWORD stands for the password.
func setUser(t *testing.T, addr netip.AddrPort, rules []string) {
	t.Helper()
	command := []string{"ACL", "SETUSER", aclUser, "reset"}
	for _, r := range rules {
		command = append(command, strings.ReplaceAll(r, "PASSWORD", aclPassword))
	}
	do(t, dial(t, addr, trusting(t)), command...)
}

// asked is what a view has asked of one server.
type asked struct {
	commands map[string]bool
	refused  []string
}

// lookAt has a view ask a server as the documented user, until it has nothing new to ask, and
// subscribes as it does. That commands in denied are refused is not noted.
func lookAt(t *testing.T, addr netip.AddrPort, channels, denied []string) (a asked) {
	t.Helper()
	a.commands = map[string]bool{}
	cfg := trusting(t)
	cfg.Username, cfg.Password, cfg.ClientName = aclUser, NewPassword(aclPassword), "redisguard"
	connect := func() *Conn {
		c := labtest.Must2(Dial(labtest.Soon(t), addr, cfg))(t)
		t.Cleanup(c.Close)
		return c
	}
	note := func(command []string, err error) {
		if errors.Is(err, ErrNoPerm) && !slices.Contains(denied, strings.Join(command, " ")) {
			a.refused = append(a.refused, strings.Join(command, " "))
		}
	}
	v := clusterview.New(clusterview.Config{
		Name: "t", Allow: func(x netip.AddrPort) bool { return x == addr }, Random: rand.New(rand.NewPCG(1, 2)),
	})
	v.SetSeeds(0, []netip.AddrPort{addr})
	for now := time.Second; now < 3*time.Minute; now += time.Second {
		v.Wake(now)
		wants, _, _ := v.Wants(now)
		for _, w := range wants {
			c := connect()
			var words [][]string
			for _, x := range w.Commands {
				words = append(words, x.Args())
			}
			replies := labtest.Must2(c.Do(labtest.Soon(t), words...))(t)
			for i, r := range replies {
				command, _, _ := strings.Cut(string(w.Commands[i]), " mymaster")
				a.commands[command] = true
				note(words[i], Check(words[i], r))
			}
			v.Answer(now, w, now, replies)
			c.Close()
		}
	}
	// A subscription sends PING into a silence.
	c := connect()
	ping := []string{"PING"}
	replies := labtest.Must2(c.Do(labtest.Soon(t), ping))(t)
	note(ping, Check(ping, replies[0]))
	s, err := c.Subscribe(labtest.Soon(t), channels)
	note([]string{"SUBSCRIBE"}, err)
	if err == nil {
		s.Close()
	}
	return a
}

// channelsOf are the channels that rules allow.
func channelsOf(rules []string) (channels []string) {
	for _, r := range rules {
		if name, ok := strings.CutPrefix(r, "&"); ok {
			channels = append(channels, name)
		}
	}
	return channels
}

// checkACL shows that with the rules nothing that a view sends is refused, and that without
// any one of them something is. What unused names is for other versions.
func checkACL(t *testing.T, servers []netip.AddrPort, rules, commands, unused, denied []string) {
	t.Helper()
	channels := channelsOf(rules)
	all := func(rules []string) (a asked) {
		a.commands = map[string]bool{}
		for _, addr := range servers {
			setUser(t, addr, rules)
			one := lookAt(t, addr, channels, denied)
			a.refused = append(a.refused, one.refused...)
			for c := range one.commands {
				a.commands[c] = true
			}
		}
		return a
	}
	a := all(rules)
	if len(a.refused) > 0 {
		t.Errorf("with the rules of docs/targets.md these are refused: %q", a.refused)
	}
	for _, c := range commands {
		if !a.commands[c] {
			t.Errorf("the view was not brought to send %s, only %v", c, a.commands)
		}
	}
	for i, r := range rules {
		if !strings.HasPrefix(r, "+") && !strings.HasPrefix(r, "&") || slices.Contains(unused, r) {
			continue
		}
		if less := all(slices.Delete(slices.Clone(rules), i, i+1)); len(less.refused) == 0 {
			t.Errorf("without %s nothing is refused: docs/targets.md need not grant it", r)
		}
	}
}

// TestDocumentedACL is for the server that REDISGUARD_E2E_SERVER names; make matrix runs it with
// several, and shows its attributes.
func TestDocumentedACL(t *testing.T) {
	nodeRules, sentinelRules, more := documentedACL(t)
	nodeCommands, sentinelCommands := viewCommands(t)
	plain := startRedis(t)
	cluster := startRedis(t, "--port", "PORT", "--save", "", "--cluster-enabled", "yes")

	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	port := freePort(t)
	labtest.Must(t, os.WriteFile(conf, fmt.Appendf(nil, "port %d\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 %d 1\n", port, plain.addr.Port()), 0o600))
	cmd := exec.Command(labtest.RedisServer(), conf, "--sentinel")
	labtest.Must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	sentinel := netip.MustParseAddrPort("127.0.0.1:" + strconv.Itoa(int(port)))
	labtest.Eventually(t, "the Sentinel answers", func() bool {
		c, err := Dial(labtest.Soon(t), sentinel, trusting(t))
		if err == nil {
			c.Close()
		}
		return err == nil
	})

	// Only who knows a command needs the right to it. Redis before 7.0 refuses any other for want
	// of rights.
	c, with, denied := dial(t, cluster.addr, trusting(t)), "as documented", []string{tooMuch}
	if replies := labtest.Must2(c.Do(labtest.Soon(t), strings.Fields(sometimes)))(t); Check(nil, replies[0]) == nil {
		nodeRules, with = append(nodeRules, more...), strings.Join(more, " ")+" in addition"
	} else {
		denied = append(denied, sometimes)
	}
	t.Run("nodes", func(t *testing.T) {
		t.Attr("rights", with)
		// HELLO can be forbidden in Redis 6.0 only.
		checkACL(t, []netip.AddrPort{plain.addr, cluster.addr}, nodeRules, nodeCommands, []string{"+hello"}, denied)
	})
	t.Run("sentinels", func(t *testing.T) {
		checkACL(t, []netip.AddrPort{sentinel}, sentinelRules, sentinelCommands, []string{"+hello"}, nil)
	})
}
