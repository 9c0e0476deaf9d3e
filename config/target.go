package config

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// TargetType is how a Redis deployment is built.
type TargetType int

// The types. The zero value finds it out.
const (
	TypeAuto TargetType = iota
	TypeCluster
	TypeSentinel
	TypeReplication
	TypeStandalone
)

func (t TargetType) String() string {
	return enumName(t, "auto", "cluster", "sentinel", "replication", "standalone")
}

// Seed is where a deployment is first looked for: a name or an address, and a port.
type Seed struct {
	Host string // a DNS name, or an address without brackets
	Port uint16
}

// Addr is the address of a seed that is none but an address.
func (s Seed) Addr() (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(s.Host)
	return netip.AddrPortFrom(a.Unmap(), s.Port), err == nil
}

func (s Seed) String() string {
	if strings.Contains(s.Host, ":") {
		return fmt.Sprintf("[%s]:%d", s.Host, s.Port)
	}
	return fmt.Sprintf("%s:%d", s.Host, s.Port)
}

// PortRange is the ports from First to Last.
type PortRange struct{ First, Last uint16 }

func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Translation is one line of an address map: what nodes say, and what leads there from here.
type Translation struct{ Told, Here netip.AddrPort }

func (t Translation) String() string { return t.Told.String() + "=" + t.Here.String() }

// TargetSection is one [[target]].
type TargetSection struct {
	Name       string
	Mode       Mode // ceiling for its connections
	Type       TargetType
	MasterName string // what the Sentinels call it
	Seeds      []Seed
	Allow      []netip.Prefix // see Allows
	AllowPorts []PortRange

	Username             string
	PasswordFile         string
	SentinelUsername     string
	SentinelPasswordFile string
	// InlinePassword is refused: the file may be read by all, and is shown.
	InlinePassword string

	TLS       TLSSection
	VisibleTo Workloads // who may ask about it without a connection to it; no Commands
	Readers   Workloads // who wants replicas, and keeps its connections to a demoted node
	Policy    PolicySection

	Interval   time.Duration
	FleetSize  int // 0: estimated
	AddressMap []Translation
}

// TLSSection is [target.tls].
type TLSSection struct {
	Enabled    bool
	Sentinels  bool   // they are asked over TLS as well
	CA         string // file with certificates; "" is the system's
	Cert, Key  string // files for a client certificate
	ServerName string // the name in the certificate: "seed", "announced", or one that is fixed
}

// The words that ServerName may be instead of a name.
const (
	ServerNameSeed      = "seed"      // the host of the seed
	ServerNameAnnounced = "announced" // the host name that a node announces
)

// Workloads are lists of globs that name workloads; what any of them matches is meant.
type Workloads struct {
	Namespaces, Pods, Units, Commands []string
}

// Empty says that nobody is named.
func (w *Workloads) Empty() bool {
	return len(w.Namespaces)+len(w.Pods)+len(w.Units)+len(w.Commands) == 0
}

const (
	maxTargets = 256
	maxSeeds   = 64
	maxAllow   = 256
	maxMapped  = 2000
)

func newTarget() TargetSection {
	return TargetSection{
		Mode: Enforce, Interval: 10 * time.Second, TLS: TLSSection{ServerName: ServerNameSeed},
		Policy: PolicySection{OnDown: ReactAuto, OnUnresponsive: ReactAuto, OnDemoted: ReactAuto, OnRemoved: ReactAuto, OnReplaced: ReactAuto},
	}
}

// targets is [[target]].
func (c *Config) targets() array {
	return arrayKey("target", maxTargets, &c.Targets, newTarget,
		func(t *TargetSection) *string { return &t.Name },
		func(t *TargetSection) table { return table{keys: t.keys()} })
}

func (t *TargetSection) keys() []key {
	reactions := []Reaction{ReactAuto, ReactReap, ReactSignal, ReactIgnore}
	word := func(s string) bool { return len(s) <= 256 && !strings.ContainsFunc(s, badInWord) }
	keys := []key{
		enumKey("mode", &t.Mode, Off, Observe, Enforce),
		enumKey("type", &t.Type, TypeAuto, TypeCluster, TypeSentinel, TypeReplication, TypeStandalone),
		wordKey("master_name", "the name that its Sentinels have for it", &t.MasterName, word),
		listKey("seeds", fmt.Sprintf(`a list of 1 to %d of "host:port", as in "redis.example:6379", "192.0.2.1:6379" or "[2001:db8::1]:6379"`, maxSeeds), 1, maxSeeds, &t.Seeds, parseSeed),
		listKey("allow", fmt.Sprintf(`a list of at most %d networks such as "10.0.0.0/8", "192.0.2.1/32" or "2001:db8::/32"`, maxAllow), 0, maxAllow, &t.Allow, parseNetwork),
		listKey("allow_ports", fmt.Sprintf(`a list of at most %d ports or ranges of ports such as "6379" or "8500-8599"`, maxAllow), 0, maxAllow, &t.AllowPorts, parsePorts),
		wordKey("username", "the name of an ACL user, or \"\"", &t.Username, word),
		fileKey("password_file", &t.PasswordFile),
		wordKey("sentinel_username", "the name of an ACL user, or \"\"", &t.SentinelUsername, word),
		fileKey("sentinel_password_file", &t.SentinelPasswordFile),
		wordKey("password", "a file that only root can read, and its path in password_file", &t.InlinePassword, func(string) bool { return false }),
		boolKey("tls.enabled", &t.TLS.Enabled),
		boolKey("tls.sentinels", &t.TLS.Sentinels),
		fileKey("tls.ca", &t.TLS.CA),
		fileKey("tls.cert", &t.TLS.Cert),
		fileKey("tls.key", &t.TLS.Key),
		wordKey("tls.server_name", `"seed" (the host of the seed), "announced" (the host name that a node announces), or a name`, &t.TLS.ServerName, word),
		globsKey("visible_to.namespaces", &t.VisibleTo.Namespaces),
		globsKey("visible_to.pods", &t.VisibleTo.Pods),
		globsKey("visible_to.units", &t.VisibleTo.Units),
		globsKey("readers.namespaces", &t.Readers.Namespaces),
		globsKey("readers.pods", &t.Readers.Pods),
		globsKey("readers.units", &t.Readers.Units),
		globsKey("readers.commands", &t.Readers.Commands),
		enumKey("policy.on_down", &t.Policy.OnDown, reactions...),
		enumKey("policy.on_unresponsive", &t.Policy.OnUnresponsive, reactions...),
		enumKey("policy.on_demoted", &t.Policy.OnDemoted, reactions...),
		enumKey("policy.on_removed", &t.Policy.OnRemoved, reactions...),
		enumKey("policy.on_replaced", &t.Policy.OnReplaced, reactions...),
		durationKey("interval", &t.Interval, time.Second, 10*time.Minute),
		intKey("fleet_size", &t.FleetSize, 0, math.MaxInt32),
		listKey("address_map", fmt.Sprintf(`a list of at most %d of "told=here", as in "10.0.0.5:6379=192.0.2.7:16379"`, maxMapped), 0, maxMapped, &t.AddressMap, parseTranslation),
	}
	for i := range keys {
		if keys[i].name == "password" {
			keys[i].check = func() string {
				if t.InlinePassword == "" {
					return ""
				}
				return "a password does not stand in this file"
			}
			keys[i].show = func() string { return `""` } // whatever it is
		}
	}
	return keys
}

func badInWord(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }

// listKey is a list of strings that parse understands, each of which may stand there once.
func listKey[E interface {
	comparable
	fmt.Stringer
}](name, allowed string, least, most int, field *[]E, parse func(string) (E, bool)) key {
	return key{
		name: name, allowed: allowed, field: field,
		decode: func(v any) string {
			list, ok := v.([]any)
			if !ok {
				return wrongType(v)
			}
			all := make([]E, 0, len(list))
			for _, item := range list {
				s, ok := item.(string)
				if !ok {
					return "one of the list: " + wrongType(item)
				}
				e, ok := parse(s)
				if !ok {
					return clip(s) + " is none"
				}
				all = append(all, e)
			}
			*field = all
			return ""
		},
		check: func() string {
			switch n := len(*field); {
			case n < least && n == 0:
				return "is missing"
			case n > most:
				return fmt.Sprintf("%d of them are too many", n)
			}
			for i, e := range *field {
				if slices.Contains((*field)[:i], e) {
					return clip(e.String()) + " stands there twice"
				}
			}
			return ""
		},
		show: func() string {
			words := make([]string, 0, len(*field))
			for _, e := range *field {
				words = append(words, e.String())
			}
			return fmt.Sprintf("%q", words)
		},
	}
}

func parseSeed(s string) (Seed, bool) {
	host, port, ok := cutPort(s)
	if !ok {
		return Seed{}, false
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return Seed{Host: a.Unmap().String(), Port: port}, a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() && strings.HasPrefix(s, "[") == strings.Contains(host, ":")
	}
	return Seed{Host: host, Port: port}, isHostName(host) && !strings.HasPrefix(s, "[")
}

// cutPort parts "host:port" and "[address]:port".
func cutPort(s string) (host string, port uint16, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	host = s[:i]
	if strings.HasPrefix(host, "[") {
		if host, ok = strings.CutSuffix(host[1:], "]"); !ok {
			return "", 0, false
		}
	}
	return host, uint16(n), err == nil && n != 0
}

// isHostName accepts what the DNS has as names of hosts (RFC 1123), and the underscore that
// some services have.
func isHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
		for _, r := range label {
			if r != '-' && r != '_' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r)) {
				return false
			}
		}
	}
	// What ends in a number is meant as an address, and is none.
	last := s[strings.LastIndexByte(s, '.')+1:]
	_, err := strconv.ParseUint(last, 10, 64)
	return err != nil
}

func parseNetwork(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	// With bits beyond its length it is not clear what is meant.
	return p, err == nil && p.Masked() == p && !p.Addr().Is4In6()
}

func parsePorts(s string) (r PortRange, ok bool) {
	first, last, ranged := strings.Cut(s, "-")
	if !ranged {
		last = first
	}
	a, err := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	return PortRange{uint16(a), uint16(b)}, err == nil && err2 == nil && a > 0 && a <= b
}

func parseTranslation(s string) (t Translation, ok bool) {
	told, here, _ := strings.Cut(s, "=")
	a, err := netip.ParseAddrPort(told)
	b, err2 := netip.ParseAddrPort(here)
	return Translation{netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), netip.AddrPortFrom(b.Addr().Unmap(), b.Port())},
		err == nil && err2 == nil && a.Port() != 0 && b.Port() != 0 && a.Addr().Zone() == "" && b.Addr().Zone() == ""
}

// redisPorts are allowed where a target names no ports, beside those of its seeds.
var redisPorts = [...]uint16{6379, 6380}

// Allows says whether an address may be dialled for the target, and be touched as one of its
// endpoints. Without allow it is the addresses of the seeds alone; without allow_ports it is
// the ports of the seeds, 6379 and 6380.
func (t *TargetSection) Allows(a netip.AddrPort) bool {
	addr := a.Addr().Unmap()
	if !addr.IsValid() || a.Port() == 0 || addr.IsUnspecified() || addr.IsMulticast() {
		return false
	}
	ports := slices.ContainsFunc(t.AllowPorts, func(r PortRange) bool { return r.First <= a.Port() && a.Port() <= r.Last })
	if len(t.AllowPorts) == 0 {
		ports = slices.Contains(redisPorts[:], a.Port()) || slices.ContainsFunc(t.Seeds, func(s Seed) bool { return s.Port == a.Port() })
	}
	if !ports {
		return false
	}
	if len(t.Allow) == 0 {
		return slices.ContainsFunc(t.Seeds, func(s Seed) bool { x, ok := s.Addr(); return ok && x.Addr() == addr })
	}
	return slices.ContainsFunc(t.Allow, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// crossTarget adds what is wrong between the settings of a target.
func (p *problems) crossTarget(path string, t *TargetSection) {
	bad := func(key, problem, allowed string) {
		p.add(&Error{Key: path + "." + key, Problem: problem, Allowed: allowed})
	}
	for _, s := range t.Seeds {
		a, literal := s.Addr()
		switch {
		case !literal && len(t.Allow) == 0:
			bad("allow", fmt.Sprintf("is missing, and the seed %s is a name", s), "the networks that its addresses may be in: what a DNS server says must not lead elsewhere")
		case literal && !t.Allows(a):
			bad("seeds", fmt.Sprintf("%s is not in allow and allow_ports", s), "seeds that are")
		default:
			continue
		}
		break
	}
	if (t.TLS.Cert == "") != (t.TLS.Key == "") {
		bad("tls."+map[bool]string{true: "cert", false: "key"}[t.TLS.Cert == ""], "is missing", "tls.cert and tls.key together, or none")
	}
	if !t.TLS.Enabled && !t.TLS.Sentinels && (t.TLS.CA != "" || t.TLS.Cert != "") {
		bad("tls.enabled", "is false, while certificates are named", "true, or no certificates")
	}
	if t.Username != "" && t.PasswordFile == "" {
		bad("password_file", "is missing, while there is a username", "both")
	}
	if t.SentinelUsername != "" && t.SentinelPasswordFile == "" {
		bad("sentinel_password_file", "is missing, while there is a sentinel_username", "both")
	}
	if t.MasterName != "" && t.Type != TypeSentinel && t.Type != TypeAuto {
		bad("master_name", "is for type sentinel alone", `type = "sentinel", or no master_name`)
	}
}

// PolicyOf is what follows for the connections of a target: its own policy, or that of
// [policy], or where both leave it open what is right for its type. A demoted primary, or one
// that was replaced behind a virtual address, answers READONLY for ever: where no MOVED leads
// the client away its connections are ended.
func (c *Config) PolicyOf(t *TargetSection, is TargetType) PolicySection {
	stale := ReactSignal
	if is == TypeSentinel || is == TypeReplication {
		stale = ReactReap
	}
	choose := func(own, all, otherwise Reaction) Reaction {
		for _, r := range []Reaction{own, all} {
			if r != ReactAuto {
				return r
			}
		}
		return otherwise
	}
	return PolicySection{
		OnDown:         choose(t.Policy.OnDown, c.Policy.OnDown, ReactReap),
		OnUnresponsive: choose(t.Policy.OnUnresponsive, c.Policy.OnUnresponsive, ReactSignal),
		OnDemoted:      choose(t.Policy.OnDemoted, c.Policy.OnDemoted, stale),
		OnRemoved:      choose(t.Policy.OnRemoved, c.Policy.OnRemoved, ReactSignal),
		OnReplaced:     choose(t.Policy.OnReplaced, c.Policy.OnReplaced, stale),
	}
}

// Target returns the one with a name, nil if there is none.
func (c *Config) Target(name string) *TargetSection {
	for i := range c.Targets {
		if c.Targets[i].Name == name {
			return &c.Targets[i]
		}
	}
	return nil
}

// Here is where what a node says leads to from here.
func (t *TargetSection) Here(told netip.AddrPort) netip.AddrPort {
	for _, m := range t.AddressMap {
		if m.Told == told {
			return m.Here
		}
	}
	return told
}

// SeedNames are the names among the seeds, sorted.
func (t *TargetSection) SeedNames() (names []string) {
	for _, s := range t.Seeds {
		if _, literal := s.Addr(); !literal {
			names = append(names, s.Host)
		}
	}
	slices.SortFunc(names, cmp.Compare)
	return slices.Compact(names)
}
