package verdict

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestScripts runs testdata/script/*.txt. Each is a story: a world, faults, and
// what is expected to follow.
//
//	profile fast|balanced|calm        settings of a profile (first line)
//	set rate=5 burst=2 ...            other settings
//	phases 20                         run it all so often, with other moments of everything
//	endpoint A [onlink] [rtt=1ms]     a Redis endpoint
//	client c ns=10 to=A n=3 do=busy every=50ms [keep=2s] [permit=observe why=..] [stays] [back=70ms]
//	                                  a process with n connections c.1 to c.3; do is
//	                                  busy, pipelined, idle, subscriber or blocking
//	others 10 5                       five connections to elsewhere in namespace 10
//	run 5s                            time passes
//	Faults; each starts a new chapter ("since the fault" below), its end does not:
//	vanish A, heal A                  silent drop of all packets, and its end
//	freeze A, thaw A                  the process stands still, its kernel goes on
//	refuse A, accept A                connection requests are answered by a reset
//	cut c.1, mend c.1                 this flow alone is dropped silently
//	zero c.1, open c.1                the peer closes its window
//	hold c.1, release c.1             it cannot be looked at, as its process holds its lock
//	loss A 10%                        random loss in each direction
//	bursts 1% 30ms 80ms               everything is lost in bursts of such lengths
//	linkdown 10, linkup 10            the link of a namespace
//	gateway 10 silent|back|none       its gateway
//	stall 10, flow 10                 what the other connections of namespace 10 do
//	dark, light                       the whole network of the node
//	late 2s                           our own loop comes so late
//	forbid c, permit c                client c may only be observed from now on, or not only
//	stop guard, start guard           ours ends, and starts anew knowing nothing
//	mark                              no fault, only a new chapter
//	Expectations; those with "within" let time pass until they hold, or fail when
//	that much has passed since the fault, the others look back at the chapter:
//	expect reap c.1 [rule=flow] [kinds=stall+probe] within 800ms
//	expect reaps 3 [rule=down] within 2s
//	expect event endpoint.down [text] within 2.1s
//	expect no reap | no reap of c.1 | no event endpoint.down | reaps at most 50
//	expect evidence TEXT              of a reap, or of an event
//	expect not before 2s              nothing was reaped earlier than that
//	expect probes at most 10
//	expect heard c.1                  the connection lives and was answered
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			runScript(t, f, string(text))
		})
	}
}

func runScript(t *testing.T, name, text string) {
	phases := 1
	for line := range strings.Lines(text) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "phases "); ok {
			var err error
			if phases, err = strconv.Atoi(n); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	for phase := range phases {
		s := &script{phase: phase, phases: phases, set: profiles("balanced")}
		n := 0
		for line := range strings.Lines(text) {
			n++
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			if err := s.do(line); err != nil && s.broken == nil {
				t.Errorf("%s:%d: %s\n\tphase %d, %v after the fault: %v\n%s", name, n, line, phase, s.sinceMark(), err, s.story())
				return
			}
			if s.broken != nil {
				t.Errorf("%s:%d: %s\n\tphase %d: %v\n%s", name, n, line, phase, s.broken, s.story())
				return
			}
		}
	}
}

type script struct {
	*world
	set           Settings
	phase, phases int
	broken        error
	shifted       bool
	ev0           int // events before the chapter
	asked0        int
}

func (s *script) start() {
	if s.world != nil {
		return
	}
	s.world = newWorld(s.set, uint64(s.phase)+1, func(err error) {
		if s.broken == nil {
			s.broken = err
		}
	})
	s.world.record = false
	s.marked = s.clock
}

func (s *script) sinceMark() time.Duration {
	if s.world == nil {
		return 0
	}
	return s.clock - s.marked
}

// story tells what happened in the chapter, for a failing test.
func (s *script) story() string {
	if s.world == nil {
		return ""
	}
	var b strings.Builder
	for i, e := range s.events[s.ev0:] {
		if i > 30 {
			b.WriteString("\t...\n")
			break
		}
		fmt.Fprintf(&b, "\t%8v %s %v %v %s\n", e.At-s.marked, e.Type, e.Path, e.Key.Cookie, e.Text)
	}
	for i, r := range s.reaps {
		if r.at >= s.marked && i < 6 {
			fmt.Fprintf(&b, "\t%8v %s %s: %s\n", r.at-s.marked, r.out, r.name, r.reap.Evidence)
		}
	}
	return b.String()
}

func (s *script) mark() {
	if s.phases > 1 && !s.shifted {
		// Another moment between two ticks, writes and retransmissions each time.
		s.shifted = true
		s.run(time.Duration(s.rng.Int64N(int64(time.Second))), nil)
	}
	s.marked, s.ev0, s.asked0 = s.clock, len(s.events), s.asked
}

func (s *script) ep(name string) (*simEndpoint, error) {
	for _, e := range s.eps {
		if e.name == name {
			return e, nil
		}
	}
	return nil, fmt.Errorf("no endpoint %s", name)
}

func (s *script) conn(name string) (*simConn, error) {
	for _, c := range s.conns {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no connection %s", name)
}

// options splits k=v words from plain ones.
func options(words []string) (plain []string, opt map[string]string) {
	opt = map[string]string{}
	for _, w := range words {
		if k, v, ok := strings.Cut(w, "="); ok {
			opt[k] = v
		} else {
			plain = append(plain, w)
		}
	}
	return plain, opt
}

func percent(s string) (float64, error) {
	f, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	return f / 100, err
}

func (s *script) do(line string) (err error) {
	words := strings.Fields(line)
	arg, opt := options(words[1:])
	dur := func(key string, def time.Duration) time.Duration {
		v, ok := opt[key]
		if !ok {
			return def
		}
		d, e := time.ParseDuration(v)
		if e != nil {
			err = e
		}
		return d
	}
	num := func(v string) float64 {
		f, e := strconv.ParseFloat(v, 64)
		if e != nil {
			err = e
		}
		return f
	}
	switch words[0] {
	case "profile":
		s.set = profiles(arg[0])
		return nil
	case "phases":
		return nil
	case "set":
		for k, v := range opt {
			switch k {
			case "rate":
				s.set.Rate = num(v)
			case "burst":
				s.set.Burst = int(num(v))
			case "max_share":
				s.set.MaxShare = num(v)
			case "spread":
				s.set.Spread = dur(k, 0)
			case "per_second":
				s.set.ProbesPerSecond = num(v)
			case "on_down":
				s.set.OnDown = Policy(v)
			case "on_unresponsive":
				s.set.OnUnresponsive = Policy(v)
			default:
				return fmt.Errorf("no setting %s", k)
			}
		}
		return err
	}
	s.start()
	switch words[0] {
	case "endpoint":
		e := &simEndpoint{name: arg[0], rtt: dur("rtt", time.Millisecond/2), onLink: slices.Contains(arg, "onlink")}
		e.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(1 + len(s.eps))}), 6379)
		s.eps = append(s.eps, e)
		return err
	case "client":
		cl := &simClient{
			name: arg[0], ns: NS(num(opt["ns"])), kind: behaviour(opt["do"]), every: dur("every", 50*time.Millisecond), permit: MayReap,
			keep: dur("keep", 0), stays: slices.Contains(arg, "stays"), back: dur("back", 70*time.Millisecond), timeout: dur("timeout", 10*time.Second),
		}
		if opt["permit"] == "observe" {
			cl.permit, cl.why = ObserveOnly, strings.ReplaceAll(opt["why"], "_", " ")
		}
		if cl.ep, err = s.ep(opt["to"]); err != nil {
			return err
		}
		n := 1
		if opt["n"] != "" {
			n = int(num(opt["n"]))
		}
		for range n {
			s.connect(cl)
		}
		return err
	case "others":
		s.space(NS(num(arg[0]))).others = int(num(arg[1]))
		return err
	case "run":
		d, err := time.ParseDuration(arg[0])
		s.run(d, func() bool { return s.broken != nil })
		return err
	case "expect":
		return s.expect(words[1:])
	}
	switch words[0] {
	case "heal", "thaw", "accept", "mend", "open", "linkup", "flow", "light", "start", "hold":
	default:
		s.mark()
	}
	return s.fault(words[0], arg)
}

func (s *script) fault(verb string, arg []string) error {
	var ep *simEndpoint
	var c *simConn
	var sp *simSpace
	var err error
	switch verb {
	case "vanish", "heal", "freeze", "thaw", "refuse", "accept", "loss":
		ep, err = s.ep(arg[0])
	case "cut", "mend", "zero", "open", "hold", "release":
		c, err = s.conn(arg[0])
	case "linkdown", "linkup", "gateway", "stall", "flow":
		var n int
		n, err = strconv.Atoi(arg[0])
		sp = s.space(NS(n))
	}
	if err != nil {
		return err
	}
	switch verb {
	case "vanish", "heal":
		ep.vanished = verb == "vanish"
	case "freeze":
		ep.frozen = true
	case "thaw":
		ep.frozen = false
		for _, c := range s.conns {
			if c.ep == ep && c.wantsRep && c.inFlight == 0 && !c.closed {
				c.segsIn++
				s.replied(c)
			}
		}
	case "refuse", "accept":
		ep.refusing = verb == "refuse"
	case "loss":
		ep.loss, err = percent(arg[1])
	case "cut", "mend":
		c.cut = verb == "cut"
	case "zero":
		c.zero = true
	case "hold", "release":
		c.held = verb == "hold"
		s.in.Held = append(s.in.Held, Held{c.key, c.held})
	case "open":
		c.zero, c.probes = false, 0
		c.segsIn++
		c.ackRecv = s.clock
	case "linkdown", "linkup":
		sp.linkDown = verb == "linkdown"
	case "gateway":
		sp.gatewaySilent, sp.noGateway = arg[1] == "silent", arg[1] == "none"
	case "stall":
		sp.othersDead = s.clock
	case "flow":
		sp.othersDead = 0
	case "dark", "light":
		s.space(s.set.HostNS).gatewaySilent = verb == "dark"
		for _, sp := range s.spaces {
			if sp.othersDead = 0; verb == "dark" {
				sp.othersDead = s.clock
			}
		}
	case "late":
		s.late, err = time.ParseDuration(arg[0])
		// Nothing is looked at meanwhile, while the world goes on.
		s.asleepUntil = s.clock + s.late
	case "bursts":
		was := s.burstShare
		if s.burstShare, err = percent(arg[0]); err != nil {
			return err
		}
		if len(arg) == 3 {
			if s.burstMin, err = time.ParseDuration(arg[1]); err != nil {
				return err
			}
			if s.burstMax, err = time.ParseDuration(arg[2]); err != nil {
				return err
			}
		}
		if was == 0 {
			s.burstLoop()
		}
	case "permit", "forbid":
		for _, c := range s.conns {
			if c.client.name != arg[0] {
				continue
			}
			c.client.permit, c.client.why = MayReap, ""
			if verb == "forbid" {
				c.client.permit, c.client.why = ObserveOnly, "mode is observe"
			}
			if c.told {
				s.introduce(c)
			}
		}
	case "stop":
		s.asleepUntil = 1 << 62
	case "start":
		// As a new process: it knows nothing of what was before.
		s.asleepUntil = 0
		s.world.auditor = newAuditor(s.set)
		s.in.Reset()
		s.suspects = map[PathKey]bool{}
		for _, c := range s.conns {
			c.told = false
		}
		s.tickNo = 0
		s.tick()
	case "mark":
	default:
		return fmt.Errorf("no such line")
	}
	return err
}

// expect checks one expectation.
func (s *script) expect(words []string) error {
	within := time.Duration(-1)
	if i := slices.Index(words, "within"); i >= 0 {
		d, err := time.ParseDuration(words[i+1])
		if err != nil {
			return err
		}
		within, words = d, words[:i]
	}
	arg, opt := options(words)
	var holds func() bool
	switch {
	case arg[0] == "reap" || arg[0] == "reaps" && arg[1] != "at":
		match := func(r simReap) bool {
			ev := r.reap.Evidence
			return (opt["rule"] == "" || Rule(opt["rule"]) == ev.Rule) && (opt["kinds"] == "" || opt["kinds"] == ev.Kinds.String())
		}
		want, name := 1, arg[1]
		if arg[0] == "reaps" {
			n, err := strconv.Atoi(arg[1])
			if err != nil {
				return err
			}
			want, name = n, ""
		}
		holds = func() bool {
			n := 0
			for _, r := range s.reaped(s.marked) {
				if (name == "" || r.name == name) && match(r) {
					n++
				}
			}
			return n >= want
		}
	case arg[0] == "event":
		text := strings.Join(arg[2:], " ")
		holds = func() bool {
			for _, e := range s.events[s.ev0:] {
				if e.Type == EventType(arg[1]) && strings.Contains(e.Text, text) {
					return true
				}
			}
			return false
		}
	case arg[0] == "heard":
		holds = func() bool {
			c, err := s.conn(arg[1])
			return err == nil && c.state == Established && c.ackRecv > s.marked
		}
	case arg[0] == "evidence":
		text := strings.Join(words[1:], " ")
		for _, r := range s.reaped(s.marked) {
			if strings.Contains(r.reap.Evidence.String(), text) {
				return nil
			}
		}
		for _, e := range s.events[s.ev0:] {
			if e.Evidence != nil && strings.Contains(e.Evidence.String(), text) {
				return nil
			}
		}
		return fmt.Errorf("no evidence says so")
	case arg[0] == "no" && arg[1] == "reap":
		for _, r := range s.reaped(s.marked) {
			if len(arg) < 4 || r.name == arg[3] {
				return fmt.Errorf("%s was reaped", r.name)
			}
		}
		return nil
	case arg[0] == "no" && arg[1] == "event":
		for _, e := range s.events[s.ev0:] {
			if e.Type == EventType(arg[2]) {
				return fmt.Errorf("there is one: %s", e.Text)
			}
		}
		return nil
	case arg[0] == "not" && arg[1] == "before":
		d, err := time.ParseDuration(arg[2])
		for _, r := range s.reaped(s.marked) {
			if r.at-s.marked < d {
				return fmt.Errorf("%s was reaped at %v", r.name, r.at-s.marked)
			}
		}
		return err
	case len(arg) == 4 && arg[1] == "at" && arg[2] == "most":
		most, err := strconv.Atoi(arg[3])
		got := s.asked - s.asked0
		if arg[0] == "reaps" {
			got = len(s.reaped(s.marked))
		}
		if got > most {
			return fmt.Errorf("there were %d", got)
		}
		return err
	default:
		return fmt.Errorf("no such expectation")
	}
	if within >= 0 && !holds() {
		s.run(s.marked+within-s.clock, func() bool { return s.broken != nil || holds() })
	}
	if !holds() {
		return fmt.Errorf("did not happen")
	}
	return nil
}
