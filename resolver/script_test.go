package resolver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// zeros is a source of randomness for times that can be written down: no jitter.
type zeros struct{}

func (zeros) Uint64() uint64 { return 0 }

var began = time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)

// unhurried leaves the budget out of a script.
var unhurried = Limits{Rate: 1e6, Burst: 100}

// play runs a script: one line for each query, with the time at which it has to be sent,
// what it asks, what comes back at once, and the change that follows from it.
//
//	30s  redis.example. A      10.0.0.1 10.0.0.2 ttl=5  -> +10.0.0.2
//	40s  redis.example. A @2   servfail
//
// @2 is the second server, tcp a query over TCP. Answers are addresses, nxdomain, nodata,
// alias (a CNAME without an address), servfail, failed or truncated. A change is what was added and removed, stale, and the
// kind of its error.
func play(t *testing.T, table *Table, script string) {
	t.Helper()
	last := began
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		head, want, _ := strings.Cut(line, "->")
		words := strings.Fields(head)
		at, err := time.ParseDuration(words[0])
		if err != nil {
			t.Fatal(err)
		}
		// A token takes a microsecond at the rate of scripts, so times are rounded.
		wake := table.Wake(last)
		if got := wake.Sub(began).Round(time.Millisecond); wake.IsZero() || got != at {
			t.Fatalf("%s\nbut the table waits until %v", line, got)
		}
		now := began.Add(at + time.Millisecond/10)
		last = now
		q, ok := table.Next(now)
		if !ok {
			t.Fatalf("%s\nnothing is asked", line)
		}
		asked := say(table, q)
		n := len(strings.Fields(asked))
		if len(words) < 1+n || strings.Join(words[1:1+n], " ") != asked {
			t.Fatalf("%s\nbut asked is: %s", line, asked)
		}
		change, changed := table.Observe(now, answer(t, q, words[1+n:]))
		got := ""
		if changed {
			got = sayChange(change)
		}
		if strings.TrimSpace(want) != got {
			t.Fatalf("%s\nbut the change is: %s", line, got)
		}
	}
}

func say(table *Table, q Question) string {
	s := q.Host + " A"
	if q.IPv6 {
		s += "AAA"
	}
	if i := slices.Index(table.conf.Servers, q.Server); i > 0 {
		s += fmt.Sprintf(" @%d", i+1)
	}
	if q.TCP {
		s += " tcp"
	}
	return s
}

func sayChange(c Change) string {
	var words []string
	for _, a := range c.Added {
		words = append(words, "+"+a.String())
	}
	for _, a := range c.Removed {
		words = append(words, "-"+a.String())
	}
	if c.Stale {
		words = append(words, "stale")
	}
	for err, word := range map[error]string{ErrNoAddress: "no-address", ErrNoAnswer: "no-answer", ErrLimit: "limit"} {
		if errors.Is(c.Err, err) {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		return "fresh"
	}
	return strings.Join(words, " ")
}

func answer(t testing.TB, q Question, words []string) Answer {
	t.Helper()
	a := Answer{Question: q}
	outcomes := map[string]Outcome{"nxdomain": NXDomain, "nodata": NoData, "servfail": ServFail, "failed": Failed, "truncated": Truncated}
	for _, w := range words {
		if o, ok := outcomes[w]; ok {
			a.Outcome = o
			if o >= ServFail {
				a.Err = errors.New(w)
			}
		} else if w == "alias" {
			a.Outcome, a.Alias = NoData, true
		} else if n, ok := strings.CutPrefix(w, "ttl="); ok {
			seconds, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			a.TTL = time.Duration(seconds) * time.Second
		} else {
			a.Outcome = Addresses
			a.Addrs = append(a.Addrs, netip.MustParseAddr(w))
		}
	}
	return a
}

func newTable(t testing.TB, limits Limits, c ResolvConf, names ...string) *Table {
	t.Helper()
	table := NewTable(limits, rand.New(zeros{}))
	table.Configure(began, c)
	if err := table.Want(began, names); err != nil {
		t.Fatal(err)
	}
	return table
}

func TestScripts(t *testing.T) {
	for name, tt := range map[string]struct {
		conf   []string
		names  []string
		limits Limits
		script string
	}{
		"both families, order, repetition, and a TTL between 10 s and 60 s": {
			names: []string{"r.example."},
			script: `
				0s    r.example. A     10.0.0.2 10.0.0.1 10.0.0.2 ttl=0     -> +10.0.0.1 +10.0.0.2
				0s    r.example. AAAA  fd00::1 ttl=3600                     -> +fd00::1
				10s   r.example. A     10.0.0.1 10.0.0.2 ttl=30
				40s   r.example. A     10.0.0.3 10.0.0.1 10.0.0.2 ttl=100   -> +10.0.0.3
				60s   r.example. AAAA  fd00::1 ttl=60
				100s  r.example. A     10.0.0.3 10.0.0.1 10.0.0.2 ttl=100`,
		},
		"a family without records is asked for once a minute": {
			names: []string{"r.example."},
			script: `
				0s   r.example. A     nodata
				0s   r.example. AAAA  fd00::1 ttl=20  -> +fd00::1
				20s  r.example. AAAA  fd00::1 ttl=20
				40s  r.example. AAAA  fd00::1 ttl=30
				60s  r.example. A     nxdomain`,
		},
		"withdrawn after three answers without it": {
			conf:  []string{"options no-aaaa"},
			names: []string{"r.example."},
			script: `
				0s   r.example. A  10.0.0.1 10.0.0.2  -> +10.0.0.1 +10.0.0.2
				10s  r.example. A  10.0.0.3           -> +10.0.0.3
				20s  r.example. A  10.0.0.2 10.0.0.3
				30s  r.example. A  10.0.0.3           -> -10.0.0.1
				40s  r.example. A  10.0.0.3
				50s  r.example. A  10.0.0.3           -> -10.0.0.2`,
		},
		"a failure in between is no answer without it": {
			conf:  []string{"options no-aaaa", "options attempts:1"},
			names: []string{"r.example."},
			script: `
				0s   r.example. A  10.0.0.1 10.0.0.2  -> +10.0.0.1 +10.0.0.2
				10s  r.example. A  10.0.0.2
				20s  r.example. A  10.0.0.2
				30s  r.example. A  servfail           -> stale no-answer
				40s  r.example. A  10.0.0.1 10.0.0.2  -> fresh`,
		},
		"turns: each answer shows a third": {
			conf:  []string{"options no-aaaa"},
			names: []string{"r.example."},
			script: `
				0s   r.example. A  10.0.0.1  -> +10.0.0.1
				10s  r.example. A  10.0.0.2  -> +10.0.0.2
				20s  r.example. A  10.0.0.3  -> +10.0.0.3
				30s  r.example. A  10.0.0.1
				40s  r.example. A  10.0.0.2
				50s  r.example. A  10.0.0.3
				# 10.0.0.1 goes. Since addresses come back after two, that takes five.
				60s  r.example. A  10.0.0.2
				70s  r.example. A  10.0.0.3
				80s  r.example. A  10.0.0.2  -> -10.0.0.1`,
		},
		"negative answers keep the set, for however long": {
			names: []string{"r.example."},
			script: `
				0s    r.example. A     10.0.0.1       -> +10.0.0.1
				0s    r.example. AAAA  nodata
				10s   r.example. A     nxdomain       -> stale no-address
				20s   r.example. A     nxdomain
				20s   r.example. AAAA  nxdomain
				40s   r.example. A     nodata
				40s   r.example. AAAA  nodata
				80s   r.example. A     nodata
				80s   r.example. AAAA  nodata
				140s  r.example. A     nodata
				140s  r.example. AAAA  nodata
				200s  r.example. A     10.0.0.2       -> +10.0.0.2
				200s  r.example. AAAA  nodata
				210s  r.example. A     10.0.0.2
				220s  r.example. A     10.0.0.2       -> -10.0.0.1`,
		},
		"failures keep the set: later and later, once a minute at last": {
			conf:  []string{"options attempts:1 no-aaaa"},
			names: []string{"r.example."},
			script: `
				0s    r.example. A  10.0.0.1  -> +10.0.0.1
				10s   r.example. A  failed    -> stale no-answer
				20s   r.example. A  servfail
				40s   r.example. A  servfail
				80s   r.example. A  servfail
				140s  r.example. A  10.0.0.1  -> fresh
				150s  r.example. A  failed    -> stale no-answer
				160s  r.example. A  10.0.0.1  -> fresh`,
		},
		"the other family fails": {
			conf:  []string{"options attempts:1"},
			names: []string{"r.example."},
			script: `
				0s   r.example. A     10.0.0.1          -> +10.0.0.1
				0s   r.example. AAAA  servfail
				10s  r.example. A     10.0.0.1 ttl=60
				10s  r.example. AAAA  fd00::1           -> +fd00::1
				20s  r.example. AAAA  servfail          -> stale no-answer
				30s  r.example. AAAA  fd00::1           -> fresh`,
		},
		"no address yet": {
			conf:  []string{"options attempts:1"},
			names: []string{"r.example."},
			script: `
				0s   r.example. A     failed    -> no-answer
				10s  r.example. A     nxdomain
				10s  r.example. AAAA  nxdomain  -> no-address
				30s  r.example. A     10.0.0.1  -> +10.0.0.1`,
		},
		"the next server on failure, TCP where truncated": {
			conf:  []string{"nameserver 192.0.2.1", "nameserver 192.0.2.2", "options no-aaaa"},
			names: []string{"r.example."},
			script: `
				0s   r.example. A         failed
				0s   r.example. A @2      truncated
				0s   r.example. A @2 tcp  10.0.0.1   -> +10.0.0.1
				10s  r.example. A         truncated
				10s  r.example. A tcp     failed
				10s  r.example. A @2      servfail
				10s  r.example. A         failed
				10s  r.example. A @2      failed     -> stale no-answer
				20s  r.example. A         truncated
				20s  r.example. A tcp     truncated
				20s  r.example. A @2      10.0.0.1   -> fresh`,
		},
		"TCP only": {
			conf:   []string{"options use-vc no-aaaa"},
			names:  []string{"r.example."},
			script: `0s  r.example. A tcp  10.0.0.1   -> +10.0.0.1`,
		},
		"a search: what had addresses is asked for alone": {
			conf:  []string{"search a.test b.test", "options ndots:2"},
			names: []string{"r.db"},
			script: `
				0s   r.db.a.test. A     nxdomain
				0s   r.db.a.test. AAAA  nxdomain
				0s   r.db.b.test. A     10.0.0.1         -> +10.0.0.1
				0s   r.db.b.test. AAAA  nodata
				10s  r.db.b.test. A     10.0.0.1 ttl=60
				60s  r.db.b.test. AAAA  nodata
				# It has none any more: the whole list again.
				70s  r.db.b.test. A     nxdomain
				70s  r.db.a.test. A     nodata
				70s  r.db.a.test. AAAA  nodata
				70s  r.db.b.test. A     nxdomain
				70s  r.db.b.test. AAAA  nxdomain
				70s  r.db. A            10.0.0.2         -> +10.0.0.2
				70s  r.db. AAAA         nodata`,
		},
		"enough dots: as it is first": {
			conf:  []string{"search a.test"},
			names: []string{"r.db"},
			script: `
				0s  r.db. A            nxdomain
				0s  r.db. AAAA         nxdomain
				0s  r.db.a.test. A     nodata
				0s  r.db.a.test. AAAA  fd00::1   -> +fd00::1`,
		},
		"glibc: SERVFAIL goes on with the list, silence with the name as it is": {
			conf:  []string{"search a.test b.test c.test", "options attempts:1"},
			names: []string{"r"},
			script: `
				0s   r.a.test. A     servfail
				0s   r.a.test. AAAA  servfail
				0s   r.b.test. A     failed
				0s   r. A            nxdomain
				0s   r. AAAA         nxdomain   -> no-answer`,
		},
		"glibc: a CNAME ends the search, wherever it leads": {
			conf:  []string{"search a.test b.test"},
			names: []string{"r"},
			script: `
				0s   r.a.test. A     alias
				0s   r.a.test. AAAA  nodata     -> no-address
				10s  r.a.test. A     nodata
				10s  r.a.test. AAAA  nodata
				10s  r.b.test. A     10.0.0.1   -> +10.0.0.1`,
		},
		"a failing search leaves what had addresses in place": {
			conf:  []string{"search a.test", "options attempts:1"},
			names: []string{"r"},
			script: `
				0s   r.a.test. A     10.0.0.1 ttl=60  -> +10.0.0.1
				0s   r.a.test. AAAA  nodata
				60s  r.a.test. A     nodata
				60s  r.a.test. A     servfail
				60s  r.a.test. AAAA  servfail
				60s  r. A            nxdomain
				60s  r. AAAA         nxdomain         -> stale no-answer
				70s  r.a.test. A     10.0.0.1 ttl=60  -> fresh
				70s  r.a.test. AAAA  nodata`,
		},
		"more addresses than are accepted": {
			conf:   []string{"options no-aaaa"},
			names:  []string{"r.example."},
			limits: Limits{Rate: 1e6, Burst: 100, Addresses: 2},
			script: `
				0s   r.example. A  10.0.0.3 10.0.0.1 10.0.0.2 10.0.0.4  -> +10.0.0.1 +10.0.0.2 limit
				10s  r.example. A  10.0.0.1 10.0.0.3
				20s  r.example. A  10.0.0.1 10.0.0.3
				30s  r.example. A  10.0.0.1 10.0.0.3                    -> +10.0.0.3 -10.0.0.2`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.limits == (Limits{}) {
				tt.limits = unhurried
			}
			play(t, newTable(t, tt.limits, conf(t, tt.conf...), tt.names...), tt.script)
		})
	}
}
