package config

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The [[target]] of the shipped file, taken out of its comments, has every key once and its
// defaults.
func TestExampleTarget(t *testing.T) {
	data, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	_, commented, ok := strings.Cut(string(data), "\n#[[target]]\n")
	if !ok {
		t.Fatal("no [[target]] in redisguard.toml")
	}
	text, stands, table := "[[target]]\n", map[string]int{}, ""
	for line := range strings.Lines(commented) {
		line, ok := strings.CutPrefix(line, "#")
		if ok && !strings.HasPrefix(line, " ") {
			text += line
			if head, ok := strings.CutPrefix(strings.TrimSpace(line), "[target."); ok {
				table = strings.TrimSuffix(head, "]") + "."
			} else if name, _, ok := strings.Cut(line, " = "); ok {
				stands[table+name]++
			}
		}
	}
	c, err := Parse("example", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := newTarget()
	want.Name, want.Seeds, want.Allow = "orders", []Seed{{"redis.orders", 6379}}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	if diff := cmp.Diff(want, c.Targets[0], cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("-default +example:\n%s", diff)
	}
	for _, k := range c.Targets[0].keys() {
		if want := map[bool]int{true: 0, false: 1}[k.name == "password"]; stands[k.name] != want {
			t.Errorf("%s stands %d times in the example, want %d", k.name, stands[k.name], want)
		}
	}
}

func target(t *testing.T, lines string) *TargetSection {
	t.Helper()
	c, err := Parse("f", []byte("[[target]]\nname = 'a'\n"+lines))
	if err != nil {
		t.Fatal(err)
	}
	return &c.Targets[0]
}

func TestTargetErrors(t *testing.T) {
	for lines, want := range map[string]string{
		"":                                      "seeds: is missing",
		"seeds = ['a']":                         `seeds: "a" is none`,
		"seeds = ['a:0']":                       `seeds: "a:0" is none`,
		"seeds = ['a:65536']":                   `seeds: "a:65536" is none`,
		"seeds = ['2001:db8::1:6379']":          `seeds: "2001:db8::1:6379" is none`,
		"seeds = ['[192.0.2.1]:6379']":          `seeds: "[192.0.2.1]:6379" is none`,
		"seeds = ['192.0.2.256:6379']":          `seeds: "192.0.2.256:6379" is none`,
		"seeds = ['[fe80::1%eth0]:6379']":       `seeds: "[fe80::1%eth0]:6379" is none`,
		"seeds = ['0.0.0.0:6379']":              `seeds: "0.0.0.0:6379" is none`,
		"seeds = ['224.0.0.1:6379']":            `seeds: "224.0.0.1:6379" is none`,
		"seeds = ['a..b:6379']":                 `seeds: "a..b:6379" is none`,
		"seeds = ['a b:6379']":                  `seeds: "a b:6379" is none`,
		"seeds = ['192.0.2.1:1','192.0.2.1:1']": `seeds: "192.0.2.1:1" stands there twice`,
		"seeds = [7]":                           "seeds: one of the list: 7 is of the wrong type",
		"seeds = 'a:1'":                         `seeds: the string "a:1" is of the wrong type`,
		"seeds = ['a:6379']":                    `allow: is missing, and the seed a:6379 is a name; allowed: the networks that its addresses may be in`,
		"seeds = ['192.0.2.1:6379']\nallow = ['10.0.0.0/8']":                                 `seeds: 192.0.2.1:6379 is not in allow and allow_ports`,
		"seeds = ['10.0.0.1:7000']\nallow = ['10.0.0.0/8']\nallow_ports = ['7001-7003']":     `seeds: 10.0.0.1:7000 is not in allow and allow_ports`,
		"seeds = ['a:1']\nallow = ['10.0.0.1/8']":                                            `allow: "10.0.0.1/8" is none`,
		"seeds = ['a:1']\nallow = ['10.0.0.1']":                                              `allow: "10.0.0.1" is none`,
		"seeds = ['192.0.2.1:1']\nallow_ports = ['2-1']":                                     `allow_ports: "2-1" is none`,
		"seeds = ['192.0.2.1:1']\nallow_ports = ['0']":                                       `allow_ports: "0" is none`,
		"seeds = ['192.0.2.1:1']\npassword = 'secret'":                                       `password: a password does not stand in this file; allowed: a file that only root can read, and its path in password_file`,
		"seeds = ['192.0.2.1:1']\npasswrd_file = '/x'":                                       `passwrd_file: unknown key, did you mean target[a].password_file?`,
		"seeds = ['192.0.2.1:1']\nusername = 'u'":                                            `password_file: is missing`,
		"seeds = ['192.0.2.1:1']\nsentinel_username = 'u'":                                   `sentinel_password_file: is missing`,
		"seeds = ['192.0.2.1:1']\npassword_file = 'x'":                                       `password_file: "x" is no clean absolute path`,
		"seeds = ['192.0.2.1:1']\ntype = 'cluster'\nmaster_name = 'm'":                       `master_name: is for type sentinel alone`,
		"seeds = ['192.0.2.1:1']\ntls.ca = '/x'":                                             `tls.enabled: is false, while certificates are named`,
		"seeds = ['192.0.2.1:1']\ntls.enabled = true\ntls.cert = '/x'":                       `tls.key: is missing`,
		"seeds = ['192.0.2.1:1']\ntls.enabled = true\ntls.key = '/x'":                        `tls.cert: is missing`,
		"seeds = ['192.0.2.1:1']\naddress_map = ['10.0.0.1:1']":                              `address_map: "10.0.0.1:1" is none`,
		"seeds = ['192.0.2.1:1']\npolicy.on_demoted = 'kill'":                                `policy.on_demoted: "kill" is none of its values; allowed: "auto", "reap", "signal", "ignore"`,
		"seeds = ['192.0.2.1:1']\nreaders.pods = ['[']":                                      `readers.pods: "[" is no valid pattern`,
		"seeds = ['192.0.2.1:1']\n[[target]]\nname = 'a'\nseeds = ['192.0.2.1:1']":           `target[#2].name: "a" is the name of target[#1] already`,
		"seeds = ['192.0.2.1:1']\n[[target]]\nname = 'b'\ntype = 'proxy'\nseeds = ['::1:1']": `target[b].type: "proxy" is none of its values`,
	} {
		_, err := Parse("f", []byte("[[target]]\nname = 'a'\n"+lines))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n  error %v\n  want  %s", lines, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in %v", err)
		}
	}
}

func TestAllows(t *testing.T) {
	at := netip.MustParseAddrPort
	for lines, cases := range map[string]map[string]bool{
		"seeds = ['10.0.0.1:7000']": {
			"10.0.0.1:7000": true, "10.0.0.1:6379": true, "10.0.0.1:6380": true, "10.0.0.1:22": false, "10.0.0.2:7000": false, "[::ffff:10.0.0.1]:7000": true,
		},
		"seeds = ['r:6379']\nallow = ['10.0.0.0/8', '2001:db8::/32']": {
			"10.255.0.1:6379": true, "11.0.0.1:6379": false, "[2001:db8::5]:6379": true, "[2001:db9::5]:6379": false, "10.0.0.1:0": false,
		},
		"seeds = ['r:6379']\nallow = ['0.0.0.0/0']\nallow_ports = ['6379', '8500-8599']": {
			"10.0.0.1:8500": true, "10.0.0.1:8599": true, "10.0.0.1:8600": false, "0.0.0.0:6379": false, "224.0.0.1:6379": false, "[2001:db8::5]:6379": false,
		},
	} {
		s := target(t, lines)
		for addr, want := range cases {
			if got := s.Allows(at(addr)); got != want {
				t.Errorf("%s: %s is allowed: %v", lines, addr, got)
			}
		}
	}
}

func TestPolicyOf(t *testing.T) {
	c := Default()
	s := newTarget()
	for is, want := range map[TargetType]Reaction{TypeCluster: ReactSignal, TypeSentinel: ReactReap, TypeReplication: ReactReap, TypeStandalone: ReactSignal, TypeAuto: ReactSignal} {
		if got := c.PolicyOf(&s, is); got != (PolicySection{ReactReap, ReactSignal, want, ReactSignal, want}) {
			t.Errorf("%v: %+v", is, got)
		}
	}
	c.Policy.OnDemoted = ReactIgnore
	if got := c.PolicyOf(&s, TypeSentinel).OnDemoted; got != ReactIgnore {
		t.Errorf("that of [policy] is not taken: %v", got)
	}
	s.Policy.OnDemoted, s.Policy.OnDown = ReactSignal, ReactIgnore
	if got := c.PolicyOf(&s, TypeSentinel); got.OnDemoted != ReactSignal || got.OnDown != ReactIgnore {
		t.Errorf("that of the target is not taken: %+v", got)
	}
}

func TestTranslate(t *testing.T) {
	s := target(t, "seeds = ['192.0.2.1:1', 'b:2', '[2001:db8::1]:3', 'a:2']\nallow = ['0.0.0.0/0', '::/0']\naddress_map = ['10.0.0.5:6379=192.0.2.7:16379', '[2001:db8::1]:1=[2001:db8::2]:2']")
	at := netip.MustParseAddrPort
	for told, want := range map[string]string{"10.0.0.5:6379": "192.0.2.7:16379", "10.0.0.6:6379": "10.0.0.6:6379", "[2001:db8::1]:1": "[2001:db8::2]:2"} {
		if got := s.Here(at(told)); got != at(want) {
			t.Errorf("%s leads to %v, want %s", told, got, want)
		}
	}
	if got := s.SeedNames(); !cmp.Equal(got, []string{"a", "b"}) {
		t.Errorf("names %v", got)
	}
}
