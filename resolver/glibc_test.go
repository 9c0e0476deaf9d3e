package resolver

import (
	"cmp"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/redisguard/redisguard/lab/labtest"
)

// TestLikeGlibc has the C library of this machine resolve names with the same resolv.conf
// and the same server, and compares what was asked for, in which order, and what came out.
func TestLikeGlibc(t *testing.T) {
	honest := zone(
		record("r.a.test.", "10.0.0.1", 300), record("r.b.test.", "10.0.0.2", 300), record("r.b.test.", "fd00::2", 300),
		record("six.b.test.", "fd00::3", 300), record("r.db.", "10.0.0.4", 300), record("r.db.a.test.", "10.0.0.5", 300),
		record("w.b.test.", "10.0.0.6", 300), record("x.b.test.", "10.0.0.7", 300), record("x.", "10.0.0.8", 300),
		record("y.b.test.", "10.0.0.9", 300), record("alias.a.test.", "r.b.test.", 300),
		record("empty.a.test.", "nowhere.test.", 300), record("empty.b.test.", "10.0.0.10", 300),
	)
	s := serve(t, func(q dnsmessage.Question, reply dnsmessage.Message, tcp bool) []message {
		switch host := q.Name.String(); {
		case strings.HasPrefix(host, "w.a."):
			return rcode(dnsmessage.RCodeServerFailure)(q, reply, tcp)
		case strings.HasPrefix(host, "x.a."):
			return nil
		case strings.HasPrefix(host, "y.a."):
			return rcode(dnsmessage.RCodeRefused)(q, reply, tcp)
		case strings.HasPrefix(host, "long.") && !tcp:
			reply.Truncated = true
			return []message{{Message: reply}}
		case strings.HasPrefix(host, "long.a."):
			return zone(record(host, "10.0.0.11", 300))(q, reply, tcp)
		}
		return honest(q, reply, tcp)
	})
	search := "search a.test b.test"
	for _, tt := range []struct {
		name string
		conf []string
	}{
		{"r", []string{search}},
		{"r.", []string{search}},
		{"six", []string{search}},
		{"none", []string{search}},
		{"none.db", []string{search}},
		{"none", []string{search, "options no-tld-query"}},
		{"none.db", []string{search, "options no-tld-query ndots:3"}},
		{"r.db", []string{search}},
		{"r.db", []string{search, "options ndots:2"}},
		{"r.db.", []string{search, "options ndots:2"}},
		{"r.b.test", []string{search, "options ndots:5"}},
		{"none", []string{"search a.test . b.test"}},
		{"none.db", []string{"search a.test . b.test", "options ndots:5"}},
		{"r", []string{search, "domain b.test"}},
		{"r", []string{search, "options ndots:0"}},
		{"r", []string{search, "options use-vc"}},
		{"r", []string{"search b.test", "options no-aaaa"}},
		{"alias", []string{search}},
		{"empty", []string{search}},
		{"long", []string{search}},
		{"w", []string{search, "options attempts:1"}},
		{"x", []string{search, "options attempts:1 timeout:1"}},
		{"y", []string{search, "options attempts:1"}},
	} {
		// A subtest, so that the resolver of the one before is gone.
		t.Run(tt.name+" "+strings.Join(tt.conf, " "), func(t *testing.T) {
			lines := append(slices.Clone(tt.conf), "# "+tt.name)
			file := resolvConf(t, []*server{s}, lines...)
			s.queries()
			// In a mount namespace of its own, which ends with it.
			out, err := exec.CommandContext(labtest.Soon(t), "unshare", "--mount", "sh", "-c",
				`mount --bind "$1" /etc/resolv.conf && { getent ahosts "$2"; test $? -le 2; }`, "sh", file, tt.name).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var want []netip.Addr
			for line := range strings.Lines(string(out)) {
				a, err := netip.ParseAddr(strings.Fields(line)[0])
				if err != nil {
					t.Fatalf("getent says %q", line)
				}
				want = append(want, a)
			}
			slices.SortFunc(want, netip.Addr.Compare)
			want = slices.Compact(want)
			theirs := hosts(s.queries(), tt.name)

			r := run(t, file, Limits{Rate: 1000, Burst: 20}, tt.name)
			labtest.Eventually(t, tt.name+" is known or not", func() bool {
				state := r.state(tt.name)
				return len(state.Addrs) >= cmp.Or(len(want), 1) || len(want) == 0 && state.Err != nil
			})
			if got := r.state(tt.name).Addrs; !slices.Equal(got, want) {
				t.Errorf("%s with %q: addresses %v, glibc has %v", tt.name, tt.conf, got, want)
			}
			if ours := hosts(s.queries(), tt.name); !slices.Equal(ours, theirs) {
				t.Errorf("%s with %q: asked for was %v, glibc asks for %v", tt.name, tt.conf, ours, theirs)
			}
		})
	}
}

// hosts are the names that were asked for because of name, each with its protocols, in the
// order of their first queries. glibc asks for both types side by side.
func hosts(queries []string, name string) (list []string) {
	for _, q := range queries {
		words := strings.Fields(q)
		if !strings.HasPrefix(words[0]+".", strings.TrimSuffix(name, ".")+".") {
			continue // one that was still under way from before
		}
		if host := words[0] + " " + words[2]; !slices.Contains(list, host) {
			list = append(list, host)
		}
	}
	return list
}
