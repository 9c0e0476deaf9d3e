package resolver

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// conf is a resolv.conf.
func conf(t testing.TB, lines ...string) ResolvConf {
	t.Helper()
	c, err := parseResolvConf(strings.NewReader(strings.Join(lines, "\n")), "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseResolvConf(t *testing.T) {
	servers := func(list ...string) (s []netip.AddrPort) {
		for _, a := range list {
			s = append(s, netip.AddrPortFrom(netip.MustParseAddr(a), 53))
		}
		return s
	}
	base := ResolvConf{Servers: servers("127.0.0.1"), Ndots: 1, Timeout: 5 * time.Second, Attempts: 2}
	for name, tt := range map[string]struct {
		text, host string
		want       func(c *ResolvConf)
	}{
		"empty":                  {"", "node1", func(*ResolvConf) {}},
		"the domain of the node": {"", "node1.Rack.Test", func(c *ResolvConf) { c.Search = []string{"rack.test"} }},
		"at most three servers":  {"nameserver 192.0.2.1\nnameserver\t fd00::1 # why\nnameserver x\nnameserver fe80::1%2\nnameserver 192.0.2.4\n", "", func(c *ResolvConf) { c.Servers = servers("192.0.2.1", "fd00::1", "fe80::1%2") }},
		"a comment, not a word":  {"# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n nameserver 192.0.2.3\nnameserver192.0.2.4\nnameserver\n", "", func(*ResolvConf) {}},
		"the last list counts":   {"search a.test b.test\ndomain c.test d.test\nsearch\t E.test.  f.test\n", "n.g.test", func(c *ResolvConf) { c.Search = []string{"e.test", "f.test"} }},
		"domain has one":         {"search a.test b.test\ndomain c.test d.test\nsearch\n", "", func(c *ResolvConf) { c.Search = []string{"c.test"} }},
		"the root":               {"search . a..b x.test", "", func(c *ResolvConf) { c.Search = []string{".", "x.test"} }},
		"options": {"options ndots:5 timeout:2 attempts:3\noptions rotate use-vc no-aaaa no-tld-query edns0 debug", "", func(c *ResolvConf) {
			c.Ndots, c.Timeout, c.Attempts = 5, 2*time.Second, 3
			c.Rotate, c.UseTCP, c.NoAAAA, c.NoTLDQuery = true, true, true, true
		}},
		"too much":   {"options ndots:16 timeout:99999999999999999999 attempts:100", "", func(c *ResolvConf) { c.Ndots, c.Timeout, c.Attempts = 15, 30*time.Second, 5 }},
		"too little": {"options ndots:0 timeout:0 attempts:0", "", func(c *ResolvConf) { c.Ndots, c.Timeout, c.Attempts = 0, time.Second, 1 }},
		"no numbers": {"options ndots:-1 timeout: attempts:x ndots", "", func(*ResolvConf) {}},
		"more domains than taken": {"search" + strings.Repeat(" a.test", 40), "", func(c *ResolvConf) {
			for range maxSearch {
				c.Search = append(c.Search, "a.test")
			}
		}},
	} {
		want := base
		tt.want(&want)
		got, err := parseResolvConf(strings.NewReader(tt.text), tt.host)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestReadResolvConf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if c, err := readResolvConf(file, ""); err != nil || c.Servers[0].String() != "127.0.0.1:53" {
		t.Errorf("a file that is not there: %v, %v; it is an empty one", c, err)
	}
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err := readResolvConf(file, ""); err != nil || c.Servers[0].String() != "192.0.2.1:53" {
		t.Errorf("%v, %v", c, err)
	}
	for _, text := range []string{strings.Repeat("# x\n", maxConf/4+1), strings.Repeat("#", maxConf+1)} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readResolvConf(file, ""); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%d bytes are read: %v", len(text), err)
		}
	}
	if _, err := readResolvConf(filepath.Dir(file), ""); err == nil {
		t.Error("a directory is read")
	}
}

// TestEqual finds a field that is forgotten in equal.
func TestEqual(t *testing.T) {
	a := conf(t, "search a.test")
	if !a.equal(conf(t, "search a.test")) {
		t.Error("the same is not equal")
	}
	for i := range reflect.TypeFor[ResolvConf]().NumField() {
		b := a
		f := reflect.ValueOf(&b).Elem().Field(i)
		switch f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Slice:
			f.SetZero()
		default:
			f.SetInt(f.Int() + 1)
		}
		if a.equal(b) {
			t.Errorf("another %s is equal", reflect.TypeFor[ResolvConf]().Field(i).Name)
		}
	}
}

func TestCandidates(t *testing.T) {
	long := strings.Repeat("a.", 120) + "b" // 241 characters
	for _, tt := range []struct{ name, conf, want string }{
		{"r.", "search a.test", "r."},
		{"r.db.", "search a.test\noptions ndots:5", "r.db."},
		{"r", "", "r."},
		{"r", "search a.test b.test", "r.a.test. r.b.test. r."},
		{"r.db", "search a.test b.test", "r.db. r.db.a.test. r.db.b.test."},
		{"r.db", "search a.test\noptions ndots:2", "r.db.a.test. r.db."},
		{"r", "search a.test\noptions ndots:0", "r. r.a.test."},
		{"r", "search a.test\noptions no-tld-query", "r.a.test."},
		{"r.db", "search a.test\noptions no-tld-query ndots:5", "r.db.a.test. r.db."},
		{"r", "options no-tld-query", "r."},
		{"r", "search a.test . b.test .", "r.a.test. r. r.b.test."},
		{"r.db", "search . a.test", "r.db. r.db.a.test."},
		{long, "search abcdefghi.test x.test\noptions ndots:15", long + ". " + long + ".x.test."},
	} {
		var got []string
		for _, c := range candidates(tt.name, conf(t, tt.conf)) {
			got = append(got, c.host)
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.name, tt.conf, s, tt.want)
		}
	}
}

func TestCheckName(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := label + "." + label + "." + label + "." + label[:61]
	for _, name := range []string{"a", "a.", "redis-0.redis.ns.svc.cluster.local", "_x.a", "xn--bcher-kva.example", label, long, long + "."} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a..b", ".a", "10.0.0.1", "::1", "fe80::1%eth0", "a b", "a\x00", "bücher.example", label + "a", long + "a"} {
		if checkName(name) == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nsearch a.test b.test\noptions ndots:5 timeout:1 attempts:9 rotate\n", "n.test", "r.db")
	f.Add("domain .\noptions ndots:-1 ndots:99999999999999999999", "n..", "r")
	f.Add("search . .. a..b\nnameserver fe80::1%eth0\n#\n;", "", "r.")
	f.Fuzz(func(t *testing.T, text, host, name string) {
		c, err := parseResolvConf(strings.NewReader(text), host)
		if err != nil {
			return
		}
		if n := len(c.Servers); n < 1 || n > maxServers {
			t.Errorf("%d servers", n)
		}
		if len(c.Search) > maxSearch || c.Ndots < 0 || c.Ndots > maxNdots || c.Attempts < 1 || c.Attempts > maxAttempts {
			t.Errorf("out of bounds: %+v", c)
		}
		for n := range c.Servers {
			if d := c.timeout(n); d < time.Second || d > 4*maxTimeout {
				t.Errorf("server %d has %v", n, d)
			}
		}
		name = Fold(name)
		if checkName(name) != nil {
			return
		}
		list := candidates(name, c)
		if len(list) == 0 {
			t.Errorf("%q has no candidate with %+v", name, c)
		}
		for _, c := range list {
			if err := checkName(c.host); err != nil {
				// A name of digits and dots may become an address with nothing added: refused
				// when it was wanted, unless its last dot made the difference.
				if _, notAddr := netip.ParseAddr(strings.TrimSuffix(c.host, ".")); notAddr != nil {
					t.Errorf("candidate %q: %v", c.host, err)
				}
			}
			if _, err := packQuery(1, Question{Host: c.host}); err != nil {
				t.Errorf("candidate %q: %v", c.host, err)
			}
		}
	})
}
