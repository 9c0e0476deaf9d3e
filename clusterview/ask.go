package clusterview

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

// Command is a command as it is sent, its words with spaces between.
type Command string

// The commands. Those about one name of a Sentinel have it as their last word.
const (
	askHello     Command = "HELLO"
	askInfo      Command = "INFO"
	askRole      Command = "ROLE"
	askNodes     Command = "CLUSTER NODES"
	askSlots     Command = "CLUSTER SLOTS"
	askCluster   Command = "CLUSTER INFO"
	askMasters   Command = "SENTINEL MASTERS"
	askMaster    Command = "SENTINEL MASTER"
	askReplicas  Command = "SENTINEL REPLICAS"
	askSentinels Command = "SENTINEL SENTINELS"
	// What goes on of the migrations that leave no marks in CLUSTER NODES: of Valkey 9, and of
	// Redis 8.4. See migration.go.
	askMigrations Command = "CLUSTER GETSLOTMIGRATIONS"
	askMigration  Command = "CLUSTER MIGRATION STATUS ALL"
)

// Args are the words to send.
func (c Command) Args() []string { return strings.Fields(string(c)) }

// Want is a question: connect to Addr, send Commands, read as many replies, close. Every Want
// must be followed by Answer or Unanswered; one of which nothing is heard for 10 s counts as
// unanswered.
type Want struct {
	Addr     netip.AddrPort
	TLS      bool
	Name     string // the announced host name of the node, for the certificate; may be empty
	Sentinel bool   // it is asked as a Sentinel, which may have users and a password of its own
	Commands []Command
	Why      string
}

// Wants returns what is to be asked now, and when to call it again at the latest; more is
// false if there is no such time. It is to be called after every other call as well. No more
// than two questions are open at a time.
func (v *View) Wants(now time.Duration) (wants []Want, again time.Duration, more bool) {
	for a, k := range v.contacts {
		if t := v.schedule.by[a]; t != nil && t.pending && now-t.asked > lostAfter {
			v.unanswered(now, k)
		}
	}
	for _, t := range v.schedule.ready(now) {
		w := Want{Addr: t.addr, TLS: v.cfg.TLS, Sentinel: v.isSentinel(t.addr), Why: t.why, Commands: v.commands(now, v.contacts[t.addr])}
		if n := v.top.At(t.addr); n != nil {
			w.Name = n.Name
		}
		wants = append(wants, w)
	}
	again, more = v.schedule.next(now)
	return wants, again, more
}

// Subscription is a connection to hold: to Addr, to Channels. Report it with Subscribed, its
// messages with Message.
type Subscription struct {
	Addr     netip.AddrPort
	Sentinel bool // see Want
	Channels []string
}

// Subscriptions are those to hold now. There is one for each Sentinel; the one to the primary
// itself, on which Sentinels say the same to each other, only where this node has so many
// connections that one more is within the budget of all.
func (v *View) Subscriptions(now time.Duration) (all []Subscription) {
	if v.kind != Sentinel || !v.schedule.wanted(now) {
		return nil
	}
	for _, a := range slices.SortedFunc(maps.Keys(v.sentinel.told), netip.AddrPort.Compare) {
		if !v.silent(a) {
			all = append(all, Subscription{a, true, reply.Events()})
		}
	}
	if p := v.top.Primary(); p != nil && connectionShare*float64(v.schedule.local) >= 1 {
		all = append(all, Subscription{v.dial(p), false, []string{reply.HelloChannel}})
	}
	return all
}

// isSentinel says whether a server is to be asked as a Sentinel: one that has answered as such,
// that a Sentinel names as another one, or by the config a seed. A node is none, whatever a
// Sentinel says.
func (v *View) isSentinel(a netip.AddrPort) bool {
	switch {
	case v.kind != Sentinel || v.top.At(a) != nil:
		return false
	case v.sentinel.told[a] != nil, v.cfg.Type == Sentinel && slices.Contains(v.seeds, a):
		return true
	}
	if k := v.contacts[a]; k != nil && k.mode == reply.ModeSentinel {
		return true
	}
	for _, t := range v.sentinel.told {
		for _, x := range t.others {
			if at, ok := v.acceptTold(x.Address); ok && at == a {
				return true
			}
		}
	}
	return false
}

// Subscribed tells that a subscription begins or has ended. What was published meanwhile is
// lost, so all are asked.
func (v *View) Subscribed(now time.Duration, addr netip.AddrPort, on bool) {
	why := map[bool]string{true: "a subscription begins", false: "a subscription has ended"}[on]
	v.schedule.hint(now, addr, why)
}

// Message tells what came on a subscription. It is a hint to ask, and proves nothing alone; what
// cannot be read is passed over.
func (v *View) Message(now time.Duration, from netip.AddrPort, channel, payload string) {
	if v.kind != Sentinel {
		return
	}
	if channel == reply.HelloChannel {
		h, err := reply.ParseSentinelHello(payload)
		addr, ok := v.acceptTold(h.Primary)
		if err == nil && ok && h.Name == v.masterName() && h.Epoch > v.top.Epoch && v.top.Known {
			v.named(now, addr, h.Epoch, "a hello of a sentinel")
			v.update(now)
		}
		return
	}
	e, err := reply.ParseEvent(channel, payload)
	if err != nil || e.Name != "" && e.Name != v.masterName() {
		return
	}
	if t := v.sentinel.told[from]; t != nil && e.Name == "" {
		t.tilt = channel == "+tilt"
	}
	switch channel {
	case "+switch-master", "+promoted-slave":
		if addr, ok := v.acceptTold(e.Address); ok {
			v.named(now, addr, 0, channel)
		}
	}
	v.schedule.hint(now, netip.AddrPort{}, channel)
	v.update(now)
}

// named notes who was said to be the primary. An address that is said again and again makes us
// ask once in a while only.
func (v *View) named(now time.Duration, addr netip.AddrPort, epoch uint64, by string) {
	if h, ok := v.sentinel.hints[addr]; ok && h.epoch >= epoch && now-h.at < hastyFor {
		return
	}
	v.sentinel.hint(now, addr, epoch, by)
	v.schedule.hint(now, addr, by)
}

// masterName is what the Sentinels call the target.
func (v *View) masterName() string { return v.cfg.MasterName }

// commands are those to send to a server.
func (v *View) commands(now time.Duration, k *contact) (all []Command) {
	switch {
	case k.mode == "":
		all = []Command{askHello, askInfo, askRole}
	case k.mode == reply.ModeSentinel && v.masterName() == "":
		all = []Command{askInfo, askMasters}
	case k.mode == reply.ModeSentinel:
		name := Command(" " + v.masterName())
		all = []Command{askInfo, askMaster + name, askReplicas + name, askSentinels + name}
	case v.kind == Cluster:
		all = append([]Command{askInfo, askCluster, askNodes, askSlots}, v.askForMigrations(now, k)...)
	default:
		all = []Command{askInfo, askRole}
	}
	all = slices.DeleteFunc(all, func(c Command) bool { return now < k.refused[c] })
	if len(all) == 0 {
		all = []Command{askInfo}
	}
	return all
}

// Unanswered tells that a Want could not be answered: no connection, no reply in time, or one
// that is not Redis'. It must not be called for reasons of our own, such as a lack of
// descriptors: NotAsked is for these.
func (v *View) Unanswered(now time.Duration, addr netip.AddrPort) {
	if k := v.contacts[addr]; k != nil {
		v.unanswered(now, k)
		v.update(now)
	}
}

// NotAsked tells that a Want was not carried out. Nothing follows from it.
func (v *View) NotAsked(now time.Duration, addr netip.AddrPort) { v.schedule.done(now, addr, true) }

func (v *View) unanswered(now time.Duration, k *contact) {
	v.schedule.done(now, k.addr, false)
	if k.failed == 0 {
		k.failed = max(now, 1)
		v.schedule.hint(now, k.addr, fmt.Sprintf("%v does not answer", k.addr))
	}
}

// Answer tells the replies to the Commands of a Want, in their order; asked is when they were
// sent. A server that closes after some of them has answered those.
func (v *View) Answer(now time.Duration, w Want, asked time.Duration, replies []resp.Value) {
	k := v.contacts[w.Addr]
	if k == nil {
		return
	}
	if len(replies) == 0 {
		v.Unanswered(now, w.Addr)
		return
	}
	v.schedule.done(now, k.addr, true)
	maps.DeleteFunc(k.refused, func(_ Command, until time.Duration) bool { return now >= until })
	k.asked, k.failed, k.problems = max(min(asked, now), 1), 0, nil
	var r *report
	var t *told
	for i, c := range w.Commands[:min(len(w.Commands), len(replies))] {
		if err := v.take(now, k, c, replies[i], &r, &t); err != nil {
			v.complain(now, k, c, err)
		}
	}
	if k.virtual && k.info != nil {
		k.behind.meet(now, k.info)
	}
	v.takeNames(k)
	v.detect(now, k)
	if t != nil && v.kind == Sentinel && t.primary.Name != "" {
		t.asked = k.asked
		if k.info != nil {
			t.tilt = k.info.Tilt
		}
		if v.sentinel.told[k.addr] != nil || len(v.sentinel.told) < maxSentinels {
			v.sentinel.told[k.addr] = t
		}
	}
	if r != nil && v.kind == Cluster {
		v.takeReport(now, k, r)
	}
	v.update(now)
}

// takeNames notes which addresses a node has for its primary and its replicas.
func (v *View) takeNames(k *contact) {
	if k.role == nil {
		return
	}
	for _, named := range append(slices.Clone(k.role.Replicas), k.role.Primary) {
		if a, ok := v.acceptTold(named); ok && a != k.addr && v.contacts[a] != nil {
			v.contacts[a].named = true
		}
	}
}

// take reads one reply.
func (v *View) take(now time.Duration, k *contact, c Command, val resp.Value, r **report, t **told) error {
	list := func(into func([]reply.Instance)) error {
		all, err := reply.ParseInstances(val)
		if err == nil {
			if *t == nil {
				*t = &told{}
			}
			into(all.Instances)
		}
		return err
	}
	if strings.HasPrefix(string(c), "SENTINEL") && c != askMasters {
		c = Command(strings.TrimSuffix(string(c), " "+v.masterName()))
	}
	switch c {
	case askHello:
		h, err := reply.ParseHello(val)
		if err == nil {
			k.mode = h.Mode
		}
		return err
	case askInfo:
		info, err := reply.ParseInfo(val)
		if err != nil {
			return err
		}
		if k.info != nil && k.info.RunID != info.RunID {
			k.refused, k.primary = nil, 0 // another process
		}
		k.info = &info
		if info.Mode != "" {
			k.mode = info.Mode
		}
		if info.Clients > 0 && info.Role != reply.RoleSentinel {
			v.schedule.setClients(k.addr, info.Clients)
		}
		v.says(now, k, info.Role)
	case askRole:
		role, err := reply.ParseRole(val)
		if err != nil {
			return err
		}
		k.role = &role
		v.says(now, k, role.Role)
	case askNodes:
		nodes, err := reply.ParseNodes(val)
		if err != nil {
			return err
		}
		*r = v.startReport(*r, k)
		(*r).nodes = nodes
	case askSlots:
		slots, err := reply.ParseSlots(val)
		if err != nil {
			return err
		}
		*r = v.startReport(*r, k)
		(*r).slots = slots
	case askCluster:
		info, err := reply.ParseClusterInfo(val)
		if err != nil {
			return err
		}
		*r = v.startReport(*r, k)
		(*r).info, (*r).told = info, true
	case askMigrations, askMigration:
		list, err := reply.ParseMigrations(val)
		if err != nil {
			return err
		}
		*r = v.startReport(*r, k)
		(*r).migrations, (*r).listed = list, true
	case askMasters:
		all, err := reply.ParseInstances(val)
		if err == nil && len(all.Instances) == 1 {
			v.cfg.MasterName = all.Instances[0].Name
			v.schedule.hint(now, k.addr, "the master name is known")
		}
		return err
	case askMaster:
		x, err := reply.ParseInstance(val)
		if err == nil {
			if *t == nil {
				*t = &told{}
			}
			(*t).primary = x
		}
		return err
	case askReplicas:
		return list(func(all []reply.Instance) { (*t).replicas = all[:min(len(all), maxMembers)] })
	case askSentinels:
		return list(func(all []reply.Instance) { (*t).others = all[:min(len(all), maxSentinels)] })
	}
	return nil
}

func (v *View) startReport(r *report, k *contact) *report {
	if r == nil {
		r = &report{from: k.addr, tls: v.cfg.TLS, asked: k.asked}
	}
	return r
}

// says notes since when the server has said that it is a primary. A new role is a reason to
// ask the others.
func (v *View) says(now time.Duration, k *contact, role reply.Role) {
	was := k.primary != 0
	if role != reply.RolePrimary {
		k.primary = 0
	} else if !was {
		k.primary = k.asked
	}
	if was && k.primary == 0 {
		k.turned = k.asked
	}
	if v.top.Known && was != (k.primary != 0) {
		v.schedule.hint(now, k.addr, fmt.Sprintf("%v has another role", k.addr))
	}
}

// refusedFor is for how long a command is not sent to a server that has refused it: its rights
// may be set right meanwhile.
const refusedFor = 10 * time.Minute

// complain notes a reply that was an error, or that cannot be read.
func (v *View) complain(now time.Duration, k *contact, c Command, err error) {
	p := Problem{ProblemNonsense, fmt.Sprintf("%v: %v", k.addr, err), 1}
	if r, ok := errors.AsType[*reply.Refusal](err); ok {
		switch r.Code {
		case "LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN":
			return // that passes by itself
		}
		if c.optional() {
			k.refuse(c, now+optionalRefusedFor)
			k.migrations = migrations{}
			return
		}
		p.Kind = ProblemRefused
		// By trial and not by version: what this server does not know, or does not let us do, is
		// left out for a while. Of a Sentinel ERR says that it does not know the name.
		if r.Code == "NOPERM" || r.Code == "ERR" && !strings.HasPrefix(string(c), "SENTINEL") {
			k.refuse(c, now+refusedFor)
			return
		}
	}
	k.problems = append(k.problems, p)
}

// refuse notes that a command is not to be sent until then.
func (k *contact) refuse(c Command, until time.Duration) {
	if k.refused == nil {
		k.refused = map[Command]time.Duration{}
	}
	k.refused[c] = until
}

// takeReport keeps what a node says of the cluster.
func (v *View) takeReport(now time.Duration, k *contact, r *report) {
	if len(r.nodes.Nodes) == 0 || !r.index() {
		return
	}
	if k.node != r.me {
		k.before, k.node, k.nodeSince = k.node, r.me, now
		k.refused, k.migrations = nil, migrations{}
	}
	r.move(now, k)
	delete(v.cluster.foreign, k.addr)
	if v.top.Known && !slices.ContainsFunc(v.top.Nodes, func(n Node) bool { return r.by[n.ID] != nil }) {
		v.cluster.foreign[k.addr] = true
		return
	}
	v.cluster.keep(r, v.cluster.voters(v.top, v.nodeSilent))
	// What contradicts is asked of the others at once; what was said before already is not again.
	digest := r.digest()
	if v.top.Known && digest != k.digest && !v.agrees(r) {
		v.schedule.hint(now, netip.AddrPort{}, fmt.Sprintf("%v says otherwise", k.addr))
	}
	k.digest = digest
}

// maxReports is how many views are kept: those of voters, and of who may become one.
const maxReports = 2 * maxVoters

// keep stores a view, and drops the oldest of a node without a vote if there are too many.
func (c *clusterState) keep(r *report, voters []string) {
	// Who answered there before is not asked there any more.
	maps.DeleteFunc(c.told, func(by toldBy, x *report) bool { return by.id != r.me && x.from == r.from })
	c.reports[r.me], c.told[toldBy{r.me, r.way()}] = r, r
	if len(c.reports) <= maxReports {
		return
	}
	oldest := ""
	for id, x := range c.reports {
		if id != r.me && !slices.Contains(voters, id) && (oldest == "" || x.asked < c.reports[oldest].asked) {
			oldest = id
		}
	}
	delete(c.reports, oldest)
	maps.DeleteFunc(c.told, func(by toldBy, _ *report) bool { return by.id == oldest })
}

// digest is of all that agrees looks at.
func (r *report) digest() uint64 {
	h := fnv.New64a()
	var b []byte
	for i := range r.nodes.Nodes {
		n := &r.nodes.Nodes[i]
		b = append(append(append(b[:0], n.ID...), n.PrimaryID...), n.Name...)
		b = binary.LittleEndian.AppendUint16(b, uint16(n.Flags))
		b = binary.LittleEndian.AppendUint16(b, n.Address.Port)
		b = append(b, n.Address.IP.AsSlice()...)
		for _, s := range n.Slots {
			b = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, s.First), s.Last)
		}
		h.Write(b)
	}
	fmt.Fprint(h, r.info.OK)
	return h.Sum64()
}

// agrees says whether a view says nothing new.
func (v *View) agrees(r *report) bool {
	if r.told && r.info.OK != (v.top.State == Up) || len(r.by) != len(v.top.Nodes) && r.nodes.Dropped == 0 {
		return false
	}
	for i := range r.nodes.Nodes {
		line := &r.nodes.Nodes[i]
		n := v.top.Node(line.ID)
		if n == nil || line.Flags.Has(reply.Replica) != (n.Role == reply.RoleReplica) || line.Flags&(reply.Fail|reply.PFail) != 0 != (n.State == StateFailed) ||
			line.Flags.Has(reply.Primary) && !slices.Equal(line.Slots, n.Slots) {
			return false
		}
		if a := line.Address.AddrPort(r.from.Addr()); a.IsValid() {
			if a, ok := v.accept(a); ok && !n.has(a) {
				return false
			}
		}
	}
	return true
}

// detect finds the type out, where the config leaves it open, and tells if it says another.
func (v *View) detect(now time.Duration, k *contact) {
	var is Type
	switch {
	case k.mode == reply.ModeCluster:
		is = Cluster
	case k.mode == reply.ModeSentinel:
		is = Sentinel
	case k.role == nil && k.info == nil:
		return
	case k.role != nil && (k.role.Role == reply.RoleReplica || len(k.role.Replicas) > 0), k.info != nil && (k.info.Role == reply.RoleReplica || k.info.Replicas > 0):
		is = Replication
	default:
		is = Standalone
	}
	switch {
	case v.kind == Auto, v.kind == Standalone && is == Replication && v.cfg.Type == Auto:
		v.kind = is
		v.schedule.hint(now, k.addr, "the type is known")
	case (v.kind == Cluster) != (is == Cluster) && is != Sentinel && k.mode != "", is == Sentinel && v.kind != Sentinel:
		k.problems = append(k.problems, Problem{ProblemType, fmt.Sprintf("%v is of type %s, and the target of type %s", k.addr, is, v.kind), 1})
	}
}

// hintFor is for how long a server is asked that a message has named as the primary.
const hintFor = time.Minute

// others are the servers to ask beside the seeds and the nodes: the Sentinels, those whom they
// name (which may be ghosts, and are tried), and whom messages have named as the primary.
func (v *View) others(now time.Duration) map[netip.AddrPort]bool {
	all := map[netip.AddrPort]bool{}
	for _, from := range slices.SortedFunc(maps.Keys(v.sentinel.told), netip.AddrPort.Compare) {
		all[from] = true
		t := v.sentinel.told[from]
		for _, x := range t.others {
			if a, ok := v.acceptTold(x.Address); ok && len(all) < maxSentinels {
				all[a] = true
			}
		}
	}
	// A primary must confirm itself before it is believed, and to do so it has to be asked.
	for _, t := range v.sentinel.told {
		if a, ok := v.acceptTold(t.primary.Address); ok {
			all[a] = true
		}
	}
	for a, h := range v.sentinel.hints {
		if now-h.at > hintFor {
			delete(v.sentinel.hints, a)
			continue
		}
		all[a] = true
	}
	return all
}
