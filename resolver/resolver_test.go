package resolver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/redisguard/redisguard/lab/labtest"
)

// quick makes a test of seconds: the real times are those of TestScripts.
var quick = Limits{Rate: 1000, Burst: 20, MinTTL: 20 * time.Millisecond, MaxTTL: 20 * time.Millisecond}

// running is a Resolver that runs until the end of the test, and what it has told.
type running struct {
	*Resolver
	mu      sync.Mutex
	changes []Change
}

func run(t *testing.T, file string, limits Limits, names ...string) *running {
	t.Helper()
	r := &running{}
	r.Resolver = New(Config{ResolvConf: file, Limits: limits, Changed: func(c Change) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changes = append(r.changes, c)
	}})
	if err := r.Want(names); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return r
}

func (r *running) told() []Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.changes)
}

// state is what is known of a name.
func (r *running) state(name string) State {
	for _, s := range r.Snapshot() {
		if s.Name == name {
			return s
		}
	}
	return State{}
}

// has waits until a name has just these addresses.
func (r *running) has(t *testing.T, name string, want ...string) {
	t.Helper()
	labtest.Eventually(t, fmt.Sprintf("%s has %v", name, want), func() bool {
		return slices.Equal(texts(r.state(name).Addrs), want)
	})
}

func texts(addrs []netip.Addr) (list []string) {
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

func TestResolve(t *testing.T) {
	s := serve(t, zone(
		record("r.example.", "10.0.0.2", 30), record("r.example.", "fd00::1", 30), record("r.example.", "10.0.0.1", 30),
		record("db.a.test.", "10.0.1.1", 0),
	))
	r := run(t, resolvConf(t, []*server{s}, "search a.test", "options ndots:2"), quick, "R.example.", "db")
	r.has(t, "r.example.", "10.0.0.1", "10.0.0.2", "fd00::1")
	r.has(t, "db", "10.0.1.1")
	for _, c := range r.told() {
		if c.Err != nil || c.Stale || c.Confirmed.IsZero() || len(c.Removed) > 0 || len(c.Added) == 0 {
			t.Errorf("told is %+v", c)
		}
	}

	// Every kind of failure leaves the addresses, and says so.
	for _, tt := range []struct {
		handle handler
		want   error
		word   string
	}{
		{rcode(dnsmessage.RCodeServerFailure), ErrNoAnswer, "SERVFAIL"},
		{zone(), ErrNoAddress, "NXDOMAIN"},
		{rcode(dnsmessage.RCodeRefused), ErrNoAnswer, "REFUSED"},
		{zone(record("r.example.", "x.", 1), record("db.", "x.", 1), record("x.", "y.", 1), record("y.", "x.", 1)), ErrNoAnswer, "circle"},
	} {
		s.set(tt.handle)
		var state State
		labtest.Eventually(t, tt.word, func() bool {
			state = r.state("r.example.")
			return state.Stale && errors.Is(state.Err, tt.want) && strings.Contains(state.Err.Error(), tt.word)
		})
		if !slices.Equal(texts(state.Addrs), []string{"10.0.0.1", "10.0.0.2", "fd00::1"}) {
			t.Errorf("%s: left are %v", tt.word, state.Addrs)
		}
		if state.Confirmed.IsZero() || time.Since(state.Confirmed) < 0 {
			t.Errorf("%s: confirmed at %v", tt.word, state.Confirmed)
		}
	}

	// Another answer: the new address at once, the old ones later.
	s.set(zone(record("r.example.", "10.0.0.3", 30)))
	r.has(t, "r.example.", "10.0.0.3")
	if state := r.state("r.example."); state.Stale || state.Err != nil {
		t.Errorf("after a good answer: %+v", state)
	}
	added, removed := -1, -1
	for i, c := range r.told() {
		if slices.Contains(texts(c.Added), "10.0.0.3") {
			added = i
		}
		if slices.Contains(texts(c.Removed), "10.0.0.1") {
			removed = i
		}
	}
	if added < 0 || removed <= added {
		t.Errorf("added in change %d, removed in change %d", added, removed)
	}
}

func TestForgery(t *testing.T) {
	s := serve(t, forged(zone(record("r.example.", "10.0.0.1", 30))))
	for _, options := range []string{"", "options use-vc"} {
		r := run(t, resolvConf(t, []*server{s}, options), quick, "r.example.")
		r.has(t, "r.example.", "10.0.0.1")
		labtest.Eventually(t, "forged messages are counted", func() bool { return r.Stats().Ignored >= 6 })
		if a := texts(r.state("r.example.").Addrs); !slices.Equal(a, []string{"10.0.0.1"}) {
			t.Errorf("%q: %v", options, a)
		}
	}
	// Nothing but forged messages, without end: the server is given up.
	s.set(func(q dnsmessage.Question, reply dnsmessage.Message, _ bool) (list []message) {
		reply.ID++
		for range maxIgnored + 10 {
			list = append(list, message{Message: reply})
		}
		return list
	})
	a := exchange(t.Context(), Question{Host: "r.example.", Server: s.addr, Timeout: 10 * time.Second})
	if a.Outcome != Failed || a.Ignored != maxIgnored || a.Err == nil {
		t.Errorf("%+v", a)
	}
}

func TestServers(t *testing.T) {
	silent, failing, good := serve(t, silence), serve(t, rcode(dnsmessage.RCodeServerFailure)), serve(t, zone(record("r.example.", "10.0.0.1", 30)))
	nobody := &server{addr: netip.MustParseAddrPort("127.255.255.254:53")} // refused by the kernel
	r := run(t, resolvConf(t, []*server{silent, failing, good}, "options timeout:1 no-aaaa"), quick, "r.example.")
	r.has(t, "r.example.", "10.0.0.1")
	if len(silent.queries()) == 0 || len(failing.queries()) == 0 {
		t.Error("the servers were not asked in their order")
	}
	r = run(t, resolvConf(t, []*server{nobody, good}, "options no-aaaa timeout:30"), quick, "r.example.")
	r.has(t, "r.example.", "10.0.0.1")

	a := exchange(t.Context(), Question{Host: "r.example.", Server: silent.addr, Timeout: 50 * time.Millisecond})
	if want := silent.addr.String() + ": no answer within 50ms"; a.Outcome != Failed || a.Err == nil || a.Err.Error() != want {
		t.Errorf("silence: %+v, want %s", a, want)
	}
	a = exchange(t.Context(), Question{Host: "r.example.", Server: silent.addr, TCP: true, Timeout: 50 * time.Millisecond})
	if want := silent.addr.String() + ": no answer within 50ms"; a.Outcome != Failed || a.Err == nil || a.Err.Error() != want {
		t.Errorf("silence over TCP: %+v, want %s", a, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begin := time.Now()
	time.AfterFunc(20*time.Millisecond, cancel)
	a = exchange(ctx, Question{Host: "r.example.", Server: silent.addr, Timeout: time.Minute})
	if took := time.Since(begin); a.Outcome != Failed || took > 10*time.Second {
		t.Errorf("after the end of the context: %+v, %v", a, took)
	}
}

func many(n int, offset int) (list []dnsmessage.Resource) {
	for i := range n {
		list = append(list, record("r.example.", netip.AddrFrom4([4]byte{10, 1, byte((offset + i) >> 8), byte(offset + i)}).String(), 30))
	}
	return list
}

// TestManyAddresses: 10,000 addresses, of which each answer over TCP can show some 4,000.
func TestManyAddresses(t *testing.T) {
	const all, fit = 10000, 4000
	s := serve(t, func(q dnsmessage.Question, reply dnsmessage.Message, _ bool) []message {
		reply.Answers = many(fit, rand.IntN(all-fit))
		return []message{{Message: reply}}
	})
	r := run(t, resolvConf(t, []*server{s}, "options no-aaaa"), quick, "r.example.")
	labtest.Eventually(t, "as many addresses as are accepted", func() bool { return len(r.state("r.example.").Addrs) == 1024 })
	state := r.state("r.example.")
	if state.Stale || !errors.Is(state.Err, ErrLimit) {
		t.Errorf("stale %v, error %v", state.Stale, state.Err)
	}
	if n := r.Stats().AddressesLeftOut; n < fit-1024 {
		t.Errorf("%d addresses are counted as left out", n)
	}
	if q := s.queries(); !slices.Contains(q, "r.example. A tcp") || q[0] != "r.example. A udp" {
		t.Errorf("asked was %.200v", q)
	}
	labtest.Eventually(t, "more answers", func() bool { return r.Stats().Queries > 40 })
	if n := len(r.state("r.example.").Addrs); n > 1024 {
		t.Errorf("%d addresses", n)
	}
	// All of a set that fits, over TCP.
	s.set(zone(many(1000, 0)...))
	labtest.Eventually(t, "the whole set of another deployment", func() bool {
		state := r.state("r.example.")
		return len(state.Addrs) == 1000 && state.Err == nil
	})
}

// TestRoundRobin: a server that shows two of six addresses each time.
func TestRoundRobin(t *testing.T) {
	records := many(6, 0)
	var mu sync.Mutex
	turn := 0
	s := serve(t, func(q dnsmessage.Question, reply dnsmessage.Message, tcp bool) []message {
		mu.Lock()
		defer mu.Unlock()
		turn++
		return zone(records[turn%6], records[(turn+1)%6])(q, reply, tcp)
	})
	r := run(t, resolvConf(t, []*server{s}, "options no-aaaa"), quick, "r.example.")
	labtest.Eventually(t, "all six", func() bool { return len(r.state("r.example.").Addrs) == 6 })
	n := r.Stats().Queries
	labtest.Eventually(t, "20 answers to learn from", func() bool { return r.Stats().Queries > n+20 })
	seen := len(r.told())
	n = r.Stats().Queries
	labtest.Eventually(t, "30 more", func() bool { return r.Stats().Queries > n+30 })
	for _, c := range r.told()[seen:] {
		t.Errorf("told though nothing has changed: %+v", c)
	}
}

// TestFlipping: a server that answers something else each time, with addresses never seen
// before.
func TestFlipping(t *testing.T) {
	var mu sync.Mutex
	turn := 0
	s := serve(t, func(q dnsmessage.Question, reply dnsmessage.Message, tcp bool) []message {
		mu.Lock()
		defer mu.Unlock()
		turn++
		return zone(many(1, turn)...)(q, reply, tcp)
	})
	r := run(t, resolvConf(t, []*server{s}, "options no-aaaa"), quick, "r.example.")
	labtest.Eventually(t, "50 answers", func() bool { return r.Stats().Queries > 50 })
	if n := len(r.state("r.example.").Addrs); n > leastMisses {
		t.Errorf("%d addresses are held, though each is missing in all answers but one", n)
	}
}

// TestResolvConfChanges: another server is used when resolv.conf names it.
func TestResolvConfChanges(t *testing.T) {
	before, after := serve(t, zone(record("r.example.", "10.0.0.1", 30))), serve(t, zone(record("r.example.", "10.0.0.2", 30)))
	file := resolvConf(t, []*server{before})
	r := New(Config{ResolvConf: file, Limits: quick})
	if c, err := r.Conf(); len(c.Servers) != 0 || err != nil {
		t.Errorf("before the first reading: %+v, %v", c, err)
	}
	r.reread(time.Now())
	if c, err := r.Conf(); err != nil || c.Servers[0] != before.addr {
		t.Errorf("%+v, %v", c, err)
	}
	writeConf(t, file, []*server{after}, "search a.test")
	r.reread(time.Now())
	if c, err := r.Conf(); err != nil || c.Servers[0] != after.addr {
		t.Errorf("%+v, %v", c, err)
	}
	labtest.Must(t, os.Remove(file))
	labtest.Must(t, os.Mkdir(file, 0o755))
	r.reread(time.Now())
	if c, err := r.Conf(); err == nil || c.Servers[0] != after.addr {
		t.Errorf("what cannot be read leaves what was: %+v, %v", c, err)
	}
}

// TestRunReads: Run reads resolv.conf again, every 10 s.
func TestRunReads(t *testing.T) {
	file := resolvConf(t, []*server{{addr: netip.MustParseAddrPort("127.0.0.2:53")}})
	synctest.Test(t, func(t *testing.T) {
		r := run(t, file, Limits{}) // no names: sockets know nothing of the time of synctest
		synctest.Wait()
		if c, err := r.Conf(); err != nil || c.Servers[0].Addr().String() != "127.0.0.2" {
			t.Errorf("%+v, %v", c, err)
		}
		writeConf(t, file, []*server{{addr: netip.MustParseAddrPort("127.0.0.3:53")}})
		time.Sleep(confInterval)
		synctest.Wait()
		if c, err := r.Conf(); err != nil || c.Servers[0].Addr().String() != "127.0.0.3" {
			t.Errorf("after %v: %+v, %v", confInterval, c, err)
		}
	})
}

// TestEnd: Run returns at once, though queries wait for a server that is silent.
func TestEnd(t *testing.T) {
	s := serve(t, silence)
	r := New(Config{ResolvConf: resolvConf(t, []*server{s}, "options timeout:30"), Limits: quick})
	labtest.Must(t, r.Want([]string{"a.example.", "b.example.", "c.example."}))
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	labtest.Eventually(t, "three queries", func() bool { return r.Stats().Queries == 3 })
	begin := time.Now()
	cancel()
	done.Wait()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Run returned after %v", took)
	}
}

// TestCallback: Changed may call the Resolver.
func TestCallback(t *testing.T) {
	s := serve(t, zone(record("a.example.", "10.0.0.1", 30), record("b.example.", "10.0.0.2", 30)))
	var r *Resolver
	r = New(Config{ResolvConf: resolvConf(t, []*server{s}), Limits: quick, Changed: func(c Change) {
		if c.Name == "a.example." {
			if err := r.Want([]string{"b.example."}); err != nil {
				t.Error(err)
			}
		}
		r.Snapshot()
	}})
	labtest.Must(t, r.Want([]string{"a.example."}))
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { r.Run(ctx) })
	labtest.Eventually(t, "b.example. instead of a.example.", func() bool {
		list := r.Snapshot()
		return len(list) == 1 && list[0].Name == "b.example." && len(list[0].Addrs) == 1
	})
	cancel()
	done.Wait()
}

// TestLikeGo compares with Go's own resolver on the same server.
func TestLikeGo(t *testing.T) {
	records := []dnsmessage.Resource{
		record("v4.example.", "10.0.0.2", 30), record("v4.example.", "10.0.0.1", 30),
		record("v6.example.", "fd00::1", 30),
		record("both.example.", "10.0.0.1", 30), record("both.example.", "fd00::1", 30),
		record("alias.example.", "alias2.example.", 30), record("alias2.example.", "both.example.", 5),
	}
	for _, r := range many(200, 0) {
		r.Header.Name = dnsmessage.MustNewName("many.example.")
		records = append(records, r)
	}
	s := serve(t, zone(records...))
	names := []string{"v4.example.", "v6.example.", "both.example.", "alias.example.", "many.example."}
	r := run(t, resolvConf(t, []*server{s}), quick, names...)
	theirs := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, s.addr.String())
	}}
	for _, name := range names {
		want, err := theirs.LookupNetIP(labtest.Soon(t), "ip", name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			want[i] = want[i].Unmap()
		}
		slices.SortFunc(want, netip.Addr.Compare)
		r.has(t, name, texts(want)...)
	}
}
