package clusterview

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

var update = flag.Bool("update", false, "write what the scripts say now")

// TestScripts runs testdata/script/*.txt. A script is blocks of commands, each followed by
// ---- and what it must say. Commands:
//
//	cluster A B a:A          nodes of a Redis Cluster: primaries, and replicas of them
//	replication A a:A        nodes without Cluster
//	sentinel S1 S2 : A a:A   Sentinels that watch them as "orders"
//	virtual V A              V is a virtual address that leads to A; again: to another
//	seeds A B                the config names these; A/6 is the IPv6 address of A
//	ipv6 A fd00::1           A answers at that address, too, and all name it to who asks by IPv6
//	local 10                 this node has so many connections; 0 at the start
//	run 10s                  let time pass; says what has changed
//	silent A, answers A      does not answer us any more, and again
//	says B,C about A: fail   one or more of fail, fail?, ok, gone, noaddr, to=NAME (its address),
//	                         moving=100>B
//	owner B,C,a: a 3 0-9     these say that a is a primary with epoch 3 and owns the slots alone
//	migrating A B 0-9 STATE  A hands B these slots as a whole, and both list it in that state
//	replica B,C,a: A of a    these say that A is a replica of a, and A does
//	down B,C / up B,C        these say cluster_state:fail, and ok
//	role a master, role A slave a
//	names S1,S2 a 2          these say that a is the primary, with config epoch 2
//	flag S1,S2 A s_down      their flags of A
//	tilt S1, publish S1 CHANNEL PAYLOAD
//	restart A                another run_id
//	move A 10.0.0.77:6379    A is there now
//	nodes, facts, problems   what is known: nodes; addresses that are not well; what is wrong
//	asked                    how often servers were asked since the last time, rounded up
//	wake                     somebody asks about the target
//	refuse A COMMAND         A answers that with NOPERM
//	suspect A                a connection to A has stalled
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			s := &script{t: t}
			in := false // within what was said
			for text := range strings.Lines(string(b)) {
				text = strings.TrimRight(text, "\n")
				switch {
				case text == "----":
					in = true
					fmt.Fprintf(&got, "----\n%s", s.said.String())
					s.said.Reset()
				case text == "":
					in = false
					got.WriteString("\n")
				case in:
				default:
					fmt.Fprintln(&got, text)
					if !strings.HasPrefix(text, "#") {
						s.do(text)
					}
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != string(b) {
				t.Errorf("the script says\n%s", got.String())
			}
		})
	}
}

type script struct {
	t     *testing.T
	w     *world
	said  strings.Builder
	seeds []netip.AddrPort
}

func (s *script) start(kind Type) {
	cfg := Config{Name: "orders", Type: kind}
	if kind == Sentinel {
		cfg.MasterName = "orders"
	}
	s.w = newWorld(cfg)
}

func (s *script) do(text string) {
	f := strings.Fields(strings.NewReplacer(":", " : ").Replace(text))
	if len(f) > 0 && !slices.Contains([]string{"says", "owner", "replica", "down", "up"}, f[0]) {
		f = strings.Fields(text)
	}
	w := s.w
	if w == nil {
		s.create(f)
		return
	}
	at := func(i int) *server {
		x := w.servers[f[i]]
		if x == nil {
			s.t.Fatalf("%s: there is no %s", text, f[i])
		}
		return x
	}
	each := func(i int, do func(*server)) {
		for n := range strings.SplitSeq(f[i], ",") {
			if w.servers[n] == nil {
				s.t.Fatalf("%s: there is no %s", text, n)
			}
			do(w.servers[n])
		}
	}
	switch f[0] {
	case "seeds":
		s.seeds = nil
		for i := range f[1:] {
			name, by6 := strings.CutSuffix(f[i+1], "/6")
			f[i+1] = name
			x := at(i + 1)
			s.seeds = append(s.seeds, x.addr)
			if by6 {
				s.seeds[i] = x.addr6
			}
		}
		w.view.SetSeeds(w.now, s.seeds)
	case "ipv6":
		at(1).addr6 = netip.AddrPortFrom(netip.MustParseAddr(f[2]), at(1).addr.Port())
	case "local":
		var n int
		fmt.Sscan(f[1], &n)
		w.view.SetLocal(w.now, n)
	case "wake":
		w.view.Wake(w.now)
	case "run":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			s.t.Fatal(err)
		}
		begin := w.now
		w.run(d)
		s.changes(begin)
	case "silent", "answers":
		each(1, func(x *server) { x.silent = f[0] == "silent" })
	case "says":
		each(1, func(x *server) { s.says(x, f[3], f[5:]) })
	case "owner":
		each(1, func(x *server) {
			l := x.sees[f[3]]
			l.flags, l.primary, l.slots = "master", "", f[5:]
			fmt.Sscan(f[4], &l.epoch)
			x.sees[f[3]] = l
			for n, o := range x.sees {
				if n != f[3] {
					o.slots = without(o.slots, f[5:])
					x.sees[n] = o
				}
			}
		})
	case "replica":
		each(1, func(x *server) {
			l := x.sees[f[3]]
			l.flags, l.primary, l.slots, l.epoch = "slave", f[5], nil, x.sees[f[5]].epoch
			x.sees[f[3]] = l
		})
		w.servers[f[3]].role, w.servers[f[3]].primary = "slave", f[5]
	case "migrating":
		for i, operation := range []string{"EXPORT", "IMPORT"} {
			at(i + 1).migrations = []resp.Value{words("operation", operation, "slot_ranges", f[3], "source_node", at(1).id, "target_node", at(2).id, "state", f[4])}
		}
	case "down", "up":
		each(1, func(x *server) { x.down = f[0] == "down" })
	case "role":
		x := at(1)
		if x.role = f[2]; f[2] == "slave" {
			x.primary = f[3]
		} else if x.replID2 = x.replID; x.primary != "" {
			x.replID2, x.replID = w.servers[x.primary].replID, hexID("bb", len(w.order))
			x.primary = ""
		}
	case "names":
		each(1, func(x *server) {
			x.lists = without(append(x.lists, x.names), f[2:3])
			x.names = f[2]
			fmt.Sscan(f[3], &x.epoch)
		})
	case "flag":
		each(1, func(x *server) { x.flags[f[2]] = strings.Join(f[3:], "") })
	case "tilt":
		each(1, func(x *server) { x.tilt = true })
	case "publish":
		var payload []string
		for _, p := range f[3:] {
			if x := w.servers[p]; x != nil {
				p = x.addr.Addr().String() + " " + fmt.Sprint(x.addr.Port())
			}
			payload = append(payload, p)
		}
		w.view.Message(w.now, at(1).addr, f[2], strings.Join(payload, " "))
	case "restart":
		x := at(1)
		x.run = hexID(x.name, 99)
	case "move":
		at(1).addr = netip.MustParseAddrPort(f[2])
	case "suspect":
		w.view.Suspect(w.now, at(1).addr, "a connection has stalled")
	case "virtual":
		s.virtual(f[1], f[2])
	case "refuse":
		at(1).refuses = strings.Join(f[2:], " ")
	case "nodes":
		s.nodes()
	case "facts":
		for _, x := range w.view.Facts() {
			if x.State != StateOK {
				to := ""
				if x.Successor.IsValid() {
					to = " successor=" + x.Successor.String()
				}
				s.say("%v %s%s: %s", x.Endpoint, x.State, to, x.Detail)
			}
		}
	case "problems":
		for _, p := range w.view.Topology().Problems {
			s.say("%s %d: %s", p.Kind, p.Count, p.Detail)
		}
	case "asked":
		n := 0
		for _, k := range w.asked {
			n += k
		}
		s.say("some %d times", (n+9)/10*10)
		clear(w.asked)
	default:
		s.t.Fatalf("%s: no such command", text)
	}
}

func (s *script) create(f []string) {
	switch f[0] {
	case "cluster":
		s.start(Cluster)
		s.w.cluster(f[1:])
	case "replication", "auto":
		s.start(map[string]Type{"replication": Replication, "auto": Auto}[f[0]])
		s.plain(f[1:])
	case "sentinel":
		s.start(Sentinel)
		i := slices.Index(f, ":")
		s.plain(f[i+1:])
		first := s.w.order[0]
		for _, n := range f[1:i] {
			x := s.w.add(n, "sentinel")
			x.names, x.flags, x.lists, x.others = first, map[string]string{}, slices.Clone(s.w.order[1:len(f[i+1:])]), without(f[1:i], []string{n})
		}
	default:
		s.t.Fatalf("%s: what kind of target?", f[0])
	}
}

func (s *script) plain(names []string) {
	for _, n := range names {
		name, primary, replica := strings.Cut(n, ":")
		if x := s.w.add(name, "standalone"); replica {
			x.role, x.primary = "slave", primary
			x.replID = s.w.servers[primary].replID
		}
	}
}

// virtual has V answer as another server does.
func (s *script) virtual(v, to string) {
	x := s.w.servers[to]
	had := s.w.servers[v]
	if had == nil {
		had = s.w.add(v, "virtual")
	}
	copied := *x
	copied.name, copied.addr, copied.mode = v, had.addr, "virtual"
	s.w.servers[v] = &copied
}

func (s *script) says(x *server, about string, words []string) {
	l := x.sees[about]
	for _, word := range words {
		switch key, value, _ := strings.Cut(word, "="); {
		case word == "fail" || word == "fail?":
			l.flags = strings.Split(l.flags, ",")[0] + "," + word
		case word == "ok":
			l.flags = strings.Split(l.flags, ",")[0]
		case word == "gone":
			delete(x.sees, about)
			return
		case word == "noaddr":
			l.flags, l.addr = strings.Split(l.flags, ",")[0]+",noaddr", ":0"
		case key == "to":
			l.addr = s.w.servers[value].addr.String()
		case key == "epoch":
			fmt.Sscan(value, &l.epoch)
		case key == "moving":
			slot, node, _ := strings.Cut(value, ">")
			l.moves = fmt.Sprintf("[%s->-%s]", slot, s.w.idOf(node))
		default:
			s.t.Fatalf("%q is nothing to say", word)
		}
	}
	x.sees[about] = l
}

// without leaves out those that are in drop.
func without(list, drop []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(x string) bool { return slices.Contains(drop, x) })
}

func (s *script) say(format string, args ...any) {
	s.said.WriteString(s.w.readable(fmt.Sprintf(format, args...)) + "\n")
}

// changes says what has changed since begin, and within which time: round ones, as polls are jittered.
func (s *script) changes(begin time.Duration) {
	changes, lost := s.w.view.Changes()
	for _, c := range changes {
		within := []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, time.Hour}
		i, _ := slices.BinarySearch(within, c.At-begin)
		s.say("within %v: %s (%s)", within[i], c.String(), c.Evidence)
	}
	if lost > 0 {
		s.say("%d lost", lost)
	}
}

func (s *script) nodes() {
	t := s.w.view.Topology()
	s.say("%s %s known=%v epoch=%d voters=%d/%d covered=%d %s", t.Type, t.State, t.Known, t.Epoch, t.Voters, t.Electorate, t.Covered, t.Why)
	for i := range t.Nodes {
		n := &t.Nodes[i]
		more := ""
		if n.Primary != "" {
			more += " of " + n.Primary
		}
		if len(n.Slots) > 0 {
			more += " slots=" + slotText(n.Slots)
		}
		if n.Successor != "" {
			more += " successor=" + n.Successor
		}
		for _, e := range n.Endpoints {
			more += " " + e.Addr.String()
		}
		for _, m := range n.Moves {
			more += fmt.Sprintf(" moving=%s%s%s", slotText([]reply.SlotRange{m.Slots}), map[bool]string{true: "<", false: ">"}[m.Importing], m.Node)
		}
		s.say("%s %s %s%s", n.ID, n.Role, n.State, more)
	}
}
