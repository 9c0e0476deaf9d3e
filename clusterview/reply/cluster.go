package reply

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redisguard/redisguard/resp"
)

// Flags are those of a node in CLUSTER NODES.
type Flags uint16

// The flags that matter here.
const (
	Myself Flags = 1 << iota
	Primary
	Replica
	PFail // the node that says so cannot reach it
	Fail  // a majority of primaries said so
	Handshake
	NoAddr
	NoFailover
)

var flagNames = map[string]Flags{
	"myself": Myself, "master": Primary, "primary": Primary, "slave": Replica, "replica": Replica, "fail?": PFail, "fail": Fail,
	"handshake": Handshake, "noaddr": NoAddr, "nofailover": NoFailover,
}

// Has reports whether all of g are set.
func (f Flags) Has(g Flags) bool { return f&g == g }

// Node is a line of CLUSTER NODES.
type Node struct {
	ID      string
	Address Address // with the port for connections of the kind that asked: TLS or plain
	Name    string  // the announced host name, empty if there is none
	Bus     uint16
	// TLSPort and PlainPort are auxiliary fields: the port for the other kind of connection,
	// 0 if not told.
	TLSPort, PlainPort uint16
	Shard              string // since 7.2, empty before
	Flags              Flags
	PrimaryID          string // of a replica
	Epoch              uint64 // the config epoch; of a replica, its primary's
	Linked             bool   // the bus connection to it works
	Slots              []SlotRange
	Moves              []Move // of Myself only
}

// Move is slots on their way to Node, or from it if Importing.
type Move struct {
	Slots     SlotRange
	Importing bool
	Node      string
}

// Nodes is CLUSTER NODES. Dropped is how many lines beyond MaxNodes there were.
type Nodes struct {
	Nodes   []Node
	Dropped int
}

// ParseNodes reads CLUSTER NODES.
func ParseNodes(v resp.Value) (Nodes, error) {
	const what = "CLUSTER NODES"
	s, err := text(v)
	if err != nil {
		return Nodes{}, cannot(what, err)
	}
	var all Nodes
	seen := map[string]bool{}
	ranges, number := 0, 0
	for line := range strings.Lines(s) {
		number++
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			continue
		}
		if len(all.Nodes) == MaxNodes {
			all.Dropped++
			continue
		}
		n, err := parseNode(line)
		if err == nil && seen[n.ID] {
			err = errors.New("a second line about the same node")
		}
		if err == nil {
			if ranges += len(n.Slots) + len(n.Moves); ranges > 2*MaxRanges {
				err = errors.New("more ranges of slots than there are slots")
			}
		}
		if err != nil {
			return Nodes{}, cannot(what, fmt.Errorf("line %d: %w", number, err))
		}
		seen[n.ID] = true
		all.Nodes = append(all.Nodes, n)
	}
	if len(all.Nodes) == 0 {
		return Nodes{}, cannot(what, errors.New("it names no node"))
	}
	return all, nil
}

// The fields of a line: id, address, flags, primary, ping, pong, epoch, link, slots...
const nodeFields = 8

func parseNode(line string) (n Node, err error) {
	fields := strings.Fields(line)
	if len(fields) < nodeFields {
		return n, fmt.Errorf("%d fields, at least %d: %q", len(fields), nodeFields, clip(line))
	}
	if n.ID = fields[0]; !isID(n.ID) {
		return n, fmt.Errorf("%q is no node id", clip(n.ID))
	}
	for f := range strings.SplitSeq(fields[2], ",") {
		n.Flags |= flagNames[f]
	}
	if err := n.parseAddress(fields[1]); err != nil {
		return n, err
	}
	if fields[3] != "-" {
		if n.PrimaryID = fields[3]; !isID(n.PrimaryID) {
			return n, fmt.Errorf("%q is no node id", clip(n.PrimaryID))
		}
	}
	if n.Epoch, err = strconv.ParseUint(fields[6], 10, 64); err != nil {
		return n, fmt.Errorf("%q is no config epoch", clip(fields[6]))
	}
	n.Linked = fields[7] == "connected"
	for _, f := range fields[nodeFields:] {
		if err := n.parseSlots(f); err != nil {
			return n, err
		}
		if len(n.Slots)+len(n.Moves) > 2*MaxRanges {
			return n, errors.New("more ranges of slots than there are slots")
		}
	}
	return n, nil
}

// parseAddress reads host:port@bus,name,key=value... The host may be an IPv6 address
// without brackets, and empty.
func (n *Node) parseAddress(s string) error {
	s, more, named := strings.Cut(s, ",")
	s, bus, ok := strings.Cut(s, "@")
	if ok {
		var err error
		if n.Bus, err = port(bus); err != nil {
			return err
		}
	}
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 {
		return fmt.Errorf("%q is no address with a port", clip(s))
	}
	p, err := port(s[colon+1:])
	if err != nil {
		return err
	}
	if n.Address, err = host(strings.Trim(s[:colon], "[]"), p); err != nil {
		return err
	}
	// Only of itself can a node say that it is where it was asked.
	if n.Flags.Has(NoAddr) || n.Address.Told == AsDialled && !n.Flags.Has(Myself) {
		n.Address = Address{}
	}
	if !named {
		return nil
	}
	name, more, _ := strings.Cut(more, ",")
	if strings.Contains(name, "=") {
		name, more = "", name+","+more
	}
	if isName(name) {
		n.Name = strings.ToLower(strings.TrimSuffix(name, "."))
	}
	for aux := range strings.SplitSeq(more, ",") {
		key, value, _ := strings.Cut(aux, "=")
		switch key {
		case "shard-id":
			n.Shard = id(value)
		case "tls-port":
			n.TLSPort, err = port(value)
		case "tcp-port":
			n.PlainPort, err = port(value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// parseSlots reads 5, 5-9, [5->-id] or [5-<-id].
func (n *Node) parseSlots(s string) error {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		slot, node, out := strings.Cut(strings.TrimSuffix(inner, "]"), "->-")
		if !out {
			slot, node, ok = strings.Cut(strings.TrimSuffix(inner, "]"), "-<-")
		}
		at, err := parseSlot(slot)
		if !ok || err != nil || !isID(node) {
			return noRange(s)
		}
		n.Moves = append(n.Moves, Move{Slots: SlotRange{at, at}, Importing: !out, Node: node})
		return nil
	}
	r, err := parseRange(s)
	if err == nil {
		n.Slots = append(n.Slots, r)
	}
	return err
}

// parseRange reads 5 or 5-9.
func parseRange(s string) (SlotRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	first, err := parseSlot(from)
	last := first
	if err == nil && isRange {
		last, err = parseSlot(to)
	}
	if err != nil || last < first {
		return SlotRange{}, noRange(s)
	}
	return SlotRange{first, last}, nil
}

func noRange(s string) error { return fmt.Errorf("%q is no range of slots", clip(s)) }

func parseSlot(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n >= Slots {
		return 0, fmt.Errorf("%q is no slot", clip(s))
	}
	return uint16(n), nil
}

// ServedSlots is an entry of CLUSTER SLOTS: who serves a range, the primary first.
type ServedSlots struct {
	Range SlotRange
	Nodes []Server
}

// Server is a node as clients are told to dial it. Preferred is what they dial; IP is the
// address beside a name, or AsDialled's place if Told is NotTold; Name is the announced host
// name.
type Server struct {
	ID        string // empty before 4.0
	Preferred Address
	IP        Address
	Name      string
}

// ParseSlots reads CLUSTER SLOTS: three elements for each node up to 6.2, and since 7.0 a
// fourth, a map of what else is known.
func ParseSlots(v resp.Value) ([]ServedSlots, error) {
	const what = "CLUSTER SLOTS"
	entries, err := list(v)
	if err != nil {
		return nil, cannot(what, err)
	}
	if len(entries) > MaxRanges {
		return nil, cannot(what, errors.New("more ranges of slots than there are slots"))
	}
	all := make([]ServedSlots, 0, len(entries))
	for i, e := range entries {
		s, err := parseServed(e)
		if err != nil {
			return nil, cannot(what, fmt.Errorf("entry %d: %w", i+1, err))
		}
		all = append(all, s)
	}
	return all, nil
}

func parseServed(v resp.Value) (s ServedSlots, err error) {
	e, err := list(v)
	if err != nil {
		return s, err
	}
	if len(e) < 2 {
		return s, errors.New("no range of slots")
	}
	if s.Range, err = slotRange(e[0], e[1]); err != nil {
		return s, err
	}
	if len(e)-2 > MaxNodes {
		return s, fmt.Errorf("%d nodes, at most %d", len(e)-2, MaxNodes)
	}
	for _, n := range e[2:] {
		server, err := parseServer(n)
		if err != nil {
			return s, err
		}
		s.Nodes = append(s.Nodes, server)
	}
	return s, nil
}

func slotRange(first, last resp.Value) (SlotRange, error) {
	from, err := number(first)
	to, err2 := number(last)
	if err = errors.Join(err, err2); err != nil {
		return SlotRange{}, err
	}
	if from < 0 || to < from || to >= Slots {
		return SlotRange{}, fmt.Errorf("%d-%d is no range of slots", from, to)
	}
	return SlotRange{uint16(from), uint16(to)}, nil
}

func parseServer(v resp.Value) (s Server, err error) {
	e, err := list(v)
	if err != nil {
		return s, err
	}
	if len(e) < 2 {
		return s, errors.New("a node without a port")
	}
	p, err := portOf(e[1])
	if err != nil {
		return s, err
	}
	if s.Preferred, err = endpoint(e[0], p); err != nil {
		return s, err
	}
	if len(e) > 2 {
		if s.ID, err = text(e[2]); err != nil {
			return s, err
		}
		if !isID(s.ID) {
			return s, fmt.Errorf("%q is no node id", clip(s.ID))
		}
	}
	s.IP = Address{Port: p}
	if s.Preferred.IP.IsValid() {
		s.IP = s.Preferred
	}
	if s.Preferred.Name != "" {
		s.Name = s.Preferred.Name
	}
	if len(e) < 4 {
		return s, nil
	}
	more, err := pairs(e[3])
	if err != nil {
		return s, err
	}
	for i := 0; i < len(more); i += 2 {
		key, _ := more[i].Text()
		value, ok := more[i+1].Text()
		switch {
		case !ok || value == "":
		case key == "ip":
			if s.IP, err = host(value, p); err != nil {
				return s, err
			}
		case key == "hostname" && isName(value):
			s.Name = strings.ToLower(value)
		}
	}
	return s, nil
}

// endpoint reads a preferred endpoint: null or empty is where the node was asked.
func endpoint(v resp.Value, p uint16) (Address, error) {
	if v.Kind == resp.Null {
		return Address{Told: AsDialled, Port: p}, nil
	}
	s, err := text(v)
	if err != nil {
		return Address{}, err
	}
	return host(s, p)
}
