package clusterview

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

// world answers a View as servers would, in the words of Redis, without one. Each server has a
// picture of its own of the others.
type world struct {
	wanted  func(*server, Want) // told of each question, if set
	view    *View
	now     time.Duration
	servers map[string]*server
	order   []string
	events  []event
	latency time.Duration
	asked   map[string]int // commands by server
	open    map[string]int
	by6     bool // who is answered has asked by IPv6
}

type event struct {
	at   time.Duration
	want Want
	from time.Duration
}

// server is a Redis node or a Sentinel.
type server struct {
	name, id, run   string
	addr, addr6     netip.AddrPort
	silent          bool
	clients         int
	mode            string
	role            string // "master", "slave"
	primary         string // a name
	replID, replID2 string
	sees            map[string]line // of a cluster, by name
	down            bool            // cluster_state:fail
	refuses         string          // a command that is answered with NOPERM
	raw             map[string]resp.Value
	migrations      []resp.Value // nil: it knows no such command

	// Of a Sentinel.
	names  string // the primary
	lists  []string
	epoch  int
	tilt   bool
	flags  map[string]string
	others []string
}

// line is what a node says of another one.
type line struct {
	flags   string // "master", "slave", with ",fail" or ",fail?"
	primary string
	epoch   int
	slots   []string
	addr    string
	moves   string
}

func hexID(name string, n int) string { return fmt.Sprintf("%x%0*x", name, 40-2*len(name), n) }

func newWorld(cfg Config) *world {
	if cfg.Allow == nil {
		cfg.Allow = func(a netip.AddrPort) bool { return a.Addr().AsSlice()[0] == 10 || a.Addr().AsSlice()[0] == 0xfd }
	}
	cfg.Random = rand.New(rand.NewPCG(7, 7))
	return &world{view: New(cfg), servers: map[string]*server{}, latency: time.Millisecond, asked: map[string]int{}, open: map[string]int{}}
}

func (w *world) add(name, mode string) *server {
	n := len(w.order) + 1
	s := &server{name: name, id: hexID(name, 0), run: hexID(name, n), addr: netip.MustParseAddrPort(fmt.Sprintf("10.0.0.%d:6379", n)), mode: mode, role: "master", clients: 100}
	s.replID = hexID("aa", n)
	w.servers[name] = s
	w.order = append(w.order, name)
	return s
}

// at is the server at an address; nil if none is.
func (w *world) at(a netip.AddrPort) *server {
	for _, s := range w.servers {
		if s.addr == a || s.addr6.IsValid() && s.addr6 == a {
			return s
		}
	}
	return nil
}

// cluster makes nodes: "A" is a primary, "a:A" a replica of it. Slots are divided evenly.
func (w *world) cluster(names []string) {
	var primaries []string
	for _, n := range names {
		name, primary, replica := strings.Cut(n, ":")
		s := w.add(name, "cluster")
		if !replica {
			primaries = append(primaries, name)
		} else {
			s.role, s.primary = "slave", primary
		}
	}
	truth := map[string]line{}
	for i, p := range primaries {
		first, last := i*reply.Slots/len(primaries), (i+1)*reply.Slots/len(primaries)-1
		truth[p] = line{flags: "master", epoch: i + 1, slots: []string{fmt.Sprintf("%d-%d", first, last)}}
	}
	for _, n := range w.order {
		if s := w.servers[n]; s.role == "slave" {
			truth[n] = line{flags: "slave", primary: s.primary, epoch: truth[s.primary].epoch}
		}
	}
	for _, n := range w.order {
		l := truth[n]
		l.addr = w.servers[n].addr.String()
		truth[n] = l
	}
	for _, s := range w.servers {
		s.sees = maps.Clone(truth)
	}
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for {
		wants, again, more := w.view.Wants(w.now)
		for _, want := range wants {
			took := w.latency
			s := w.at(want.Addr)
			if s == nil || s.silent {
				took = time.Second
			}
			if s != nil {
				w.asked[s.name]++
				if w.wanted != nil {
					w.wanted(s, want)
				}
			}
			w.events = append(w.events, event{w.now + took, want, w.now})
		}
		next := end + 1
		if more {
			next = again
		}
		slices.SortStableFunc(w.events, func(a, b event) int { return int(a.at - b.at) })
		if len(w.events) > 0 && w.events[0].at <= next {
			if w.events[0].at > end {
				break
			}
			e := w.events[0]
			w.events = w.events[1:]
			w.now = max(w.now, e.at)
			w.deliver(e)
			continue
		}
		if next > end {
			break
		}
		w.now = max(next, w.now+1)
	}
	w.now = end
}

func (w *world) deliver(e event) {
	s := w.at(e.want.Addr)
	if s == nil || s.silent {
		w.view.Unanswered(w.now, e.want.Addr)
		return
	}
	var replies []resp.Value
	w.by6 = e.want.Addr.Addr().Is6()
	for _, c := range e.want.Commands {
		replies = append(replies, w.answer(s, string(c)))
	}
	w.view.Answer(w.now, e.want, e.from, replies)
}

func bulk(s string) resp.Value       { return resp.Value{Kind: resp.Bulk, Str: s} }
func num(n int64) resp.Value         { return resp.Value{Kind: resp.Integer, Int: n} }
func arr(v ...resp.Value) resp.Value { return resp.Value{Kind: resp.Array, Elems: v} }
func words(s ...string) (v resp.Value) {
	v.Kind = resp.Array
	for _, x := range s {
		v.Elems = append(v.Elems, bulk(x))
	}
	return v
}

func refusal(s string) resp.Value { return resp.Value{Kind: resp.Error, Str: s} }

// answer is the reply of a server to a command.
func (w *world) answer(s *server, c string) resp.Value {
	if v, ok := s.raw[c]; ok {
		return v
	}
	if s.refuses == c {
		return refusal("NOPERM User monitor has no permissions to run the '" + c + "' command")
	}
	f := strings.Fields(c)
	switch {
	case c == "HELLO":
		return words("server", "redis", "version", "7.0.15", "mode", s.says(), "role", "master")
	case c == "INFO":
		return bulk(w.info(s))
	case c == "ROLE":
		return w.role(s)
	case c == "CLUSTER INFO" && s.sees != nil:
		return bulk("cluster_state:" + map[bool]string{true: "fail", false: "ok"}[s.down] + "\r\n")
	case c == "CLUSTER NODES" && s.sees != nil:
		return bulk(w.nodes(s))
	case c == "CLUSTER SLOTS" && s.sees != nil:
		return arr()
	case c == "CLUSTER GETSLOTMIGRATIONS" && s.migrations != nil:
		return arr(s.migrations...)
	case len(f) == 3 && f[0] == "SENTINEL" && s.mode == "sentinel":
		return w.sentinel(s, f[1])
	}
	return refusal("ERR unknown command")
}

// says is the mode in its own words: behind a virtual address there is an ordinary server.
func (s *server) says() string {
	if s.mode == "virtual" {
		return "standalone"
	}
	return s.mode
}

func (w *world) info(s *server) string {
	b := fmt.Sprintf("redis_version:7.0.15\r\nredis_mode:%s\r\nrun_id:%s\r\nconnected_clients:%d\r\nsentinel_tilt:%d\r\n", s.says(), s.run, s.clients, map[bool]int{true: 1}[s.tilt])
	if s.mode != "sentinel" {
		b += fmt.Sprintf("role:%s\r\nmaster_replid:%s\r\nmaster_replid2:%s\r\n", s.role, s.replID, s.replID2)
	}
	return b
}

func (w *world) role(s *server) resp.Value {
	switch {
	case s.mode == "sentinel":
		return arr(bulk("sentinel"), words("orders"))
	case s.role == "slave":
		p := w.servers[s.primary]
		state := "connected"
		if p.silent {
			state = "connect"
		}
		return arr(bulk("slave"), bulk(p.addr.Addr().String()), num(int64(p.addr.Port())), bulk(state), num(1))
	}
	var replicas []resp.Value
	for _, n := range w.order {
		if r := w.servers[n]; r.role == "slave" && r.primary == s.name {
			replicas = append(replicas, words(r.addr.Addr().String(), fmt.Sprint(r.addr.Port()), "1"))
		}
	}
	return arr(bulk("master"), num(1), arr(replicas...))
}

func (w *world) nodes(s *server) string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(s.sees)) {
		l := s.sees[n]
		flags, primary := l.flags, "-"
		if n == s.name {
			flags = "myself," + flags
		}
		if l.primary != "" {
			primary = hexID(l.primary, 0)
		}
		if o := w.servers[n]; w.by6 && o.addr6.IsValid() {
			l.addr = strings.Trim(strings.Replace(o.addr6.String(), "]", "", 1), "[")
		}
		fmt.Fprintf(&b, "%s %s@1 %s %s 0 0 %d connected %s %s\n", w.idOf(n), l.addr, flags, primary, l.epoch, strings.Join(l.slots, " "), l.moves)
	}
	return b.String()
}

func (w *world) idOf(name string) string {
	if s := w.servers[name]; s != nil {
		return s.id
	}
	return hexID(name, 0)
}

func (w *world) sentinel(s *server, what string) resp.Value {
	one := func(name, kind string, x *server) resp.Value {
		flags := kind
		if f := s.flags[x.name]; f != "" {
			flags += "," + f
		}
		v := words("name", name, "ip", x.addr.Addr().String(), "port", fmt.Sprint(x.addr.Port()), "runid", x.run, "flags", flags)
		if kind == "master" {
			v.Elems = append(v.Elems, words("config-epoch", fmt.Sprint(s.epoch), "quorum", "2").Elems...)
		}
		return v
	}
	var all []resp.Value
	switch what {
	case "MASTER":
		return one("orders", "master", w.servers[s.names])
	case "REPLICAS":
		for _, n := range s.lists {
			all = append(all, one(w.servers[n].addr.String(), "slave", w.servers[n]))
		}
	case "SENTINELS":
		for _, n := range s.others {
			all = append(all, one(w.servers[n].run, "sentinel", w.servers[n]))
		}
	}
	return arr(all...)
}

// readable puts names in the place of ids and addresses.
func (w *world) readable(s string) string {
	var pairs []string
	for _, n := range w.order {
		x := w.servers[n]
		if x.addr6.IsValid() {
			pairs = append(pairs, x.addr6.String(), x.name+"/6")
		}
		pairs = append(pairs, x.addr.String(), x.name, x.id, x.name, short(x.id), x.name, x.run, "run-"+x.name, short(x.run), "run-"+x.name)
	}
	return strings.NewReplacer(pairs...).Replace(s)
}
