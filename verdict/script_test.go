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
//	endpoint A [onlink] [rtt=1ms] [run=a1 role=primary] [interface=2] [same=B]
//	                                  a Redis endpoint; with run it says who it is; with
//	                                  interface the connections to it are bound to that, and
//	                                  with same it has the address of another one
//	client c ns=10 to=A n=3 do=busy every=50ms [keep=2s] [permit=observe why=..] [ask=no] [stays] [large] [cut] [spaces=50] [back=70ms]
//	                                  a process with n connections c.1 to c.3; do is
//	                                  busy, pipelined, idle, subscriber or blocking
//	unrelated 10 5                       five connections to elsewhere in namespace 10
//	run 5s                            time passes
//	Faults; each starts a new chapter ("since the fault" below), its end does not:
//	vanish A, heal A                  silent drop of all packets, and its end
//	freeze A, thaw A                  the process stands still, its kernel goes on
//	refuse A, accept A                connection requests are answered by a reset
//	cut c.1, mend c.1                 this flow alone is dropped silently
//	zero c.1, open c.1                the peer closes its window
//	block c.1, unblock c.1            it cannot be looked at, as its process holds its lock
//	loss A 10%                        random loss in each direction
//	bursts 1% 30ms 80ms               everything is lost in bursts of such lengths
//	linkdown 10, linkup 10            the link of a namespace
//	gateway 10 silent|back|none       its gateway
//	stall 10, flow 10                 what the other connections of namespace 10 do
//	dark, light                       the whole network of the node
//	say A [state=removed] [single=no] [successor=B] [target=..] [clients=9000] [detail=..] [on_removed=reap ...]
//	                                  the cluster view says so from now on, and asks A each
//	                                  second who it is; policies are those of A
//	withdraw A                        it does not say anything about A any more
//	replace A a2                      another process answers at A, while those that are
//	                                  connected stay connected to the one before
//	demote A, promote A               it is a replica from now on, or the primary
//	fences prompt|refused|never       what becomes of the fences that are wanted
//	opens off                         it is not known when a connection was opened
//	late 2s                           our own loop comes so late
//	forbid c, permit c                client c may only be observed from now on, or not only
//	stop guard, start guard           ours ends, and starts anew knowing nothing
//	oneway A|c.1, bothways A|c.1      nothing gets there, while it repeats what it has sent
//	synloss A, synback A              connection requests get lost
//	queue A, drain A                  its accept queue is full: requests get lost, and some
//	                                  clients are established for which it is not yet
//	hole A, fill A                    full-sized segments get lost (clients with "large")
//	noprobe A                         a filter drops what we send, not what applications do
//	mute A                            it never answers a PING
//	sidecar A, nosidecar A            something on the way answers connection requests, and
//	                                  nothing else gets through
//	lossflow c.1 40%                  random loss of round trips on the way of this flow alone
//	drop 10, pass 10                  what namespace 10 sends is dropped beyond its gateway
//	lossup A 10%                      random loss toward it, beside that each way
//	mark                              no fault, only a new chapter
//	Expectations; those with "within" let time pass until they hold, or fail when
//	that much has passed since the fault, the others look back at the chapter:
//	expect reap c.1 [rule=flow] [kinds=stall+probe] within 800ms
//	expect reaps 3 [rule=down] within 2s
//	expect event endpoint.down [text] within 2.1s
//	expect events 2 connection.judged exactly so many, in this chapter
//	expect no reap | no reap of c.1 | no event endpoint.down | reaps at most 50
//	expect fence A 10 [to=B] within 1s
//	                                  a fence for A is wanted in namespace 10
//	expect no fence                   now
//	expect evidence TEXT              of a reap, or of an event
//	expect not before 2s              nothing was reaped earlier than that
//	expect probes at most 10
//	expect asks at most 6000
//	expect ended c.1                  it is no more
//	expect none established within 8s
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
	set              Settings
	phase, phases    int
	broken           error
	shifted          bool
	ev0              int // events before the chapter
	probesRequested0 int
	asksRequested0   int
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
	s.marked, s.ev0, s.probesRequested0, s.asksRequested0 = s.clock, len(s.events), s.probesRequested, s.asksRequested
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
			case "accept_rate":
				s.set.AcceptRate = num(v)
			case "spread":
				s.set.Spread = dur(k, 0)
			case "baseline":
				s.set.Baseline = dur(k, 0)
			case "per_second":
				s.set.ProbesPerSecond = num(v)
			case "on_down":
				s.set.OnDown = Policy(v)
			case "on_unresponsive":
				s.set.OnUnresponsive = Policy(v)
			case "on_failed":
				s.set.OnFailed = Policy(v)
			case "on_removed":
				s.set.OnRemoved = Policy(v)
			case "on_demoted":
				s.set.OnDemoted = Policy(v)
			case "on_replaced":
				s.set.OnReplaced = Policy(v)
			case "fence":
				s.set.Fence = v == "on"
			default:
				return fmt.Errorf("no setting %s", k)
			}
		}
		return err
	}
	s.start()
	switch words[0] {
	case "endpoint":
		e := &simEndpoint{name: arg[0], rtt: dur("rtt", time.Millisecond/2), onLink: slices.Contains(arg, "onlink"), run: opt["run"], role: Role(opt["role"])}
		e.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(1 + len(s.eps))}), 6379)
		if opt["interface"] != "" {
			e.iface = uint32(num(opt["interface"]))
		}
		if opt["same"] != "" {
			other, err := s.ep(opt["same"])
			if err != nil {
				return err
			}
			e.addr = other.addr
		}
		s.eps = append(s.eps, e)
		return err
	case "client":
		cl := &simClient{
			name: arg[0], ns: NS(num(opt["ns"])), kind: behaviour(opt["do"]), every: dur("every", 50*time.Millisecond), permit: MayReap,
			keep: dur("keep", 0), stays: slices.Contains(arg, "stays"), large: slices.Contains(arg, "large"), cut: slices.Contains(arg, "cut"), noAsk: opt["ask"] == "no", back: dur("back", 70*time.Millisecond), timeout: dur("timeout", 10*time.Second),
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
		spaces := 1
		if opt["spaces"] != "" {
			spaces = int(num(opt["spaces"]))
		}
		for i := range spaces {
			one := *cl
			one.ns += NS(i)
			if i > 0 {
				one.name = fmt.Sprint(cl.name, i)
			}
			for range n {
				s.connect(&one)
			}
		}
		return err
	case "unrelated":
		s.space(NS(num(arg[0]))).unrelated = int(num(arg[1]))
		return err
	case "opens":
		s.opens = arg[0] == "on"
		return nil
	case "fences":
		s.fencing = arg[0]
		return nil
	case "run":
		d, err := time.ParseDuration(arg[0])
		s.run(d, func() bool { return s.broken != nil })
		return err
	case "expect":
		return s.expect(words[1:])
	}
	switch words[0] {
	case "bothways", "synback", "drain", "fill", "heal", "thaw", "accept", "mend", "open", "linkup", "flow", "light", "start", "block", "pass", "nosidecar":
	default:
		s.mark()
	}
	if words[0] == "say" {
		return s.sayFact(arg, opt)
	}
	return s.fault(words[0], arg)
}

func (s *script) sayFact(arg []string, opt map[string]string) error {
	ep, err := s.ep(arg[0])
	if err != nil {
		return err
	}
	f := EndpointFact{
		State: NodeState(opt["state"]), Target: opt["target"], Source: "the view", Single: opt["single"] != "no", Detail: strings.ReplaceAll(opt["detail"], "_", " "),
		Policies: Policies{
			OnDown: Policy(opt["on_down"]), OnUnresponsive: Policy(opt["on_unresponsive"]), OnFailed: Policy(opt["on_failed"]),
			OnRemoved: Policy(opt["on_removed"]), OnDemoted: Policy(opt["on_demoted"]), OnReplaced: Policy(opt["on_replaced"]),
		},
	}
	fmt.Sscan(opt["clients"], &f.Clients)
	if f.State != "" && f.State != StateOK {
		f.Since = s.clock
	}
	if name := opt["successor"]; name != "" {
		to, err := s.ep(name)
		if err != nil {
			return err
		}
		f.Successor = to.addr
	}
	s.say(ep, f)
	return nil
}

func (s *script) fault(verb string, arg []string) error {
	var ep *simEndpoint
	var c *simConn
	var sp *simSpace
	var err error
	switch verb {
	case "oneway", "bothways":
		if ep, err = s.ep(arg[0]); err != nil {
			ep = nil
			c, err = s.conn(arg[0])
		}
	case "synloss", "synback", "queue", "drain", "hole", "fill", "noprobe", "lossup", "mute", "sidecar", "nosidecar":
		ep, err = s.ep(arg[0])
	case "vanish", "heal", "freeze", "thaw", "refuse", "accept", "loss", "withdraw", "replace", "demote", "promote":
		ep, err = s.ep(arg[0])
	case "cut", "mend", "zero", "open", "block", "unblock", "lossflow":
		c, err = s.conn(arg[0])
	case "linkdown", "linkup", "gateway", "stall", "flow", "drop", "pass":
		var n int
		n, err = strconv.Atoi(arg[0])
		sp = s.space(NS(n))
	}
	if err != nil {
		return err
	}
	switch verb {
	case "oneway", "bothways":
		on := verb == "oneway"
		if ep != nil {
			ep.oneWay = on
		} else {
			c.oneWay = on
		}
		for _, x := range s.conns {
			if on && (x == c || x.ep == ep) {
				s.repeatLoop(x, firstRTO)
			}
		}
	case "synloss", "synback":
		ep.synLost = verb == "synloss"
	case "queue":
		ep.full = true
	case "drain":
		ep.full = false
		for _, x := range s.conns {
			x.pending = x.pending && x.ep != ep
		}
	case "hole", "fill":
		ep.hole = verb == "hole"
	case "noprobe":
		ep.noProbe = true
	case "mute":
		ep.mute = true
	case "sidecar", "nosidecar":
		ep.sidecar = verb == "sidecar"
	case "lossflow":
		c.loss, err = percent(arg[1])
	case "drop", "pass":
		sp.dropped = verb == "drop"
	case "lossup":
		ep.lossUp, err = percent(arg[1])
	case "withdraw":
		s.withdraw(ep)
	case "replace":
		ep.run = arg[1]
	case "demote":
		ep.role = RoleReplica
	case "promote":
		ep.role = RolePrimary
	case "vanish", "heal":
		ep.vanished = verb == "vanish"
	case "freeze":
		ep.frozen = true
	case "thaw":
		ep.frozen = false
		for _, c := range s.conns {
			if c.ep == ep && c.wantsRep && c.inFlight == 0 && !c.closed {
				c.n.SegsIn++
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
	case "block", "unblock":
		c.blocked = verb == "block"
		s.in.Blocked = append(s.in.Blocked, Blocked{c.key, c.blocked})
	case "open":
		c.zero, c.probes = false, 0
		c.n.SegsIn++
		c.ackRecv = s.clock
	case "linkdown", "linkup":
		sp.linkDown = verb == "linkdown"
	case "gateway":
		sp.gatewaySilent, sp.noGateway = arg[1] == "silent", arg[1] == "none"
	case "stall":
		sp.unrelatedDead = s.clock
	case "flow":
		sp.unrelatedDead = 0
	case "dark", "light":
		s.space(s.set.HostNS).gatewaySilent = verb == "dark"
		for _, sp := range s.spaces {
			if sp.unrelatedDead = 0; verb == "dark" {
				sp.unrelatedDead = s.clock
			}
		}
	case "late":
		s.late, err = time.ParseDuration(arg[0])
		// Nothing is looked at meanwhile, while the world goes on.
		s.pausedUntil = s.clock + s.late
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
		s.pausedUntil = 1 << 62
	case "start":
		// As a new process: it knows nothing of what was before.
		s.pausedUntil = 0
		s.world.auditor = newAuditor(s.set)
		s.in.Clear()
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
	case arg[0] == "events":
		n := 0
		for _, e := range s.events[s.ev0:] {
			if e.Type == EventType(arg[2]) {
				n++
			}
		}
		if fmt.Sprint(n) != arg[1] {
			return fmt.Errorf("there were %d", n)
		}
		return nil
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
	case arg[0] == "fence":
		holds = func() bool {
			for _, f := range s.lastWant {
				ep, err := s.ep(arg[1])
				if err != nil || f.Path.Endpoint != ep.addr || fmt.Sprint(f.Path.NS) != arg[2] {
					continue
				}
				to, err := s.ep(opt["to"])
				return opt["to"] == "" && !f.Successor.IsValid() || err == nil && f.Successor == to.addr
			}
			return false
		}
	case arg[0] == "no" && arg[1] == "fence":
		holds = func() bool { return len(s.lastWant) == 0 }
	case arg[0] == "ended":
		holds = func() bool {
			_, err := s.conn(arg[1])
			return err != nil
		}
	case arg[0] == "none" && arg[1] == "established":
		holds = func() bool {
			return !slices.ContainsFunc(s.conns, func(c *simConn) bool { return c.state == Established && !c.closed })
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
		got := s.probesRequested - s.probesRequested0
		switch arg[0] {
		case "reaps":
			got = len(s.reaped(s.marked))
		case "asks":
			got = s.asksRequested - s.asksRequested0
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
