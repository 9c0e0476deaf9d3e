package tcpstate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/redisguard/redisguard/internal/sys"
)

// Birth is a client connection that came into being, as the kernel's tracepoint
// sock:inet_sock_set_state (Linux 4.16) tells it.
type Birth struct {
	// Socket is the same in both births of one socket, and says nothing else.
	Socket uint64
	// TID is the thread that was running. In a birth with State SynSent it is
	// the one that called connect; in one with Established it is any.
	TID int
	// State is SynSent (the local port is not chosen yet) or Established.
	State         State
	Local, Remote netip.AddrPort
}

// Births receives births from all network namespaces of the node at once. With
// them a dump is needed only to learn what was there before: where every
// namespace opens other connections all the time, its counters give no hint, and
// a dump of each costs far too much.
//
// This is an ordinary perf tracepoint with a filter expression on the remote
// port; no program runs in the kernel. What it costs is some 0.2 us of the
// kernel's time at each change of state of any TCP socket of the node.
type Births struct {
	rings  []*sys.TraceRing
	format birthFormat
}

// birthPages is the room per CPU between two reads: 16 pages hold some 600 births.
const birthPages = 16

const birthEvent = "events/sock/inet_sock_set_state/"

// OpenBirths starts receiving the births of connections to the given remote
// ports. It needs CAP_PERFMON or CAP_SYS_ADMIN, and tracefs.
func OpenBirths(ports []uint16) (*Births, error) {
	if len(ports) == 0 {
		return nil, errors.New("cannot receive births: no ports are watched")
	}
	fs, err := sys.OpenTracefs()
	if err != nil {
		return nil, fmt.Errorf("cannot receive births: %w", err)
	}
	defer fs.Close()
	text, err := sys.ReadAt(fs, birthEvent+"id")
	if err != nil {
		return nil, fmt.Errorf("cannot receive births: %w", err)
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("cannot receive births: id of the tracepoint: %w", err)
	}
	if text, err = sys.ReadAt(fs, birthEvent+"format"); err != nil {
		return nil, fmt.Errorf("cannot receive births: %w", err)
	}
	b := &Births{}
	if b.format, err = parseBirthFormat(string(text)); err != nil {
		return nil, fmt.Errorf("cannot receive births: %w", err)
	}
	cpus, err := sys.OnlineCPUs()
	if err != nil {
		return nil, fmt.Errorf("cannot receive births: %w", err)
	}
	for _, cpu := range cpus {
		ring, err := sys.OpenTracepoint(id, cpu, birthFilter(ports), birthPages)
		if err != nil {
			b.Close()
			return nil, fmt.Errorf("cannot receive births: %w", err)
		}
		b.rings = append(b.rings, ring)
	}
	return b, nil
}

// Close stops receiving.
func (b *Births) Close() {
	for _, r := range b.rings {
		r.Close()
	}
	b.rings = nil
}

// Read calls fn for every birth since the last call, without a system call. It
// returns how many were lost for want of room: then only dumps tell.
func (b *Births) Read(fn func(Birth)) (lost uint64) {
	for _, r := range b.rings {
		lost += r.Read(func(tid int, raw []byte) {
			if birth, ok := b.format.parse(raw); ok {
				birth.TID = tid
				fn(birth)
			}
		})
	}
	return lost
}

// birthFilter lets through the beginning of a connect, and the end of one that
// succeeds. A filter expression is limited to a page, far above MaxPorts terms.
func birthFilter(ports []uint16) string {
	terms := make([]string, len(ports))
	for i, p := range ports {
		terms[i] = "dport == " + strconv.Itoa(int(p))
	}
	return fmt.Sprintf("(newstate == %d || (oldstate == %d && newstate == %d)) && (%s)",
		SynSent, SynSent, Established, strings.Join(terms, " || "))
}

// birthFormat holds the offsets of the tracepoint's fields, which differ between
// kernels.
type birthFormat struct {
	skaddr, newstate, sport, dport, family, saddr, daddr, saddr6, daddr6 int
}

// parseBirthFormat reads the "format" file of the tracepoint.
func parseBirthFormat(text string) (birthFormat, error) {
	var f birthFormat
	fields := map[string]struct {
		at   *int
		size int
	}{
		"skaddr": {&f.skaddr, 8}, "newstate": {&f.newstate, 4}, "sport": {&f.sport, 2}, "dport": {&f.dport, 2}, "family": {&f.family, 2},
		"saddr": {&f.saddr, 4}, "daddr": {&f.daddr, 4}, "saddr_v6": {&f.saddr6, 16}, "daddr_v6": {&f.daddr6, 16},
	}
	found := 0
	for line := range strings.Lines(text) {
		decl, rest, ok := strings.Cut(strings.TrimSpace(line), ";")
		if !ok || !strings.HasPrefix(decl, "field:") {
			continue
		}
		words := strings.Fields(decl)
		name, _, _ := strings.Cut(words[len(words)-1], "[")
		want, ok := fields[name]
		if !ok {
			continue
		}
		var at, size = -1, -1
		for part := range strings.SplitSeq(rest, ";") {
			key, value, _ := strings.Cut(strings.TrimSpace(part), ":")
			n, err := strconv.Atoi(value)
			if err != nil {
				continue
			}
			switch key {
			case "offset":
				at = n
			case "size":
				size = n
			}
		}
		if at < 0 || at > 4096 || size != want.size {
			return f, fmt.Errorf("field %s of the tracepoint has offset %d and size %d, want size %d", name, at, size, want.size)
		}
		*want.at = at
		found++
	}
	if found != len(fields) {
		return f, fmt.Errorf("the tracepoint has %d of the %d fields that are needed", found, len(fields))
	}
	return f, nil
}

// parse reads one record.
func (f *birthFormat) parse(raw []byte) (Birth, bool) {
	end := 0
	for _, e := range []int{f.skaddr + 8, f.newstate + 4, f.sport + 2, f.dport + 2, f.family + 2, f.saddr + 4, f.daddr + 4, f.saddr6 + 16, f.daddr6 + 16} {
		end = max(end, e)
	}
	if len(raw) < end {
		return Birth{}, false
	}
	ne := binary.NativeEndian
	b := Birth{Socket: ne.Uint64(raw[f.skaddr:]), State: State(ne.Uint32(raw[f.newstate:]))}
	var local, remote netip.Addr
	switch ne.Uint16(raw[f.family:]) {
	case familyInet:
		local, remote = netip.AddrFrom4([4]byte(raw[f.saddr:])), netip.AddrFrom4([4]byte(raw[f.daddr:]))
	case familyInet6:
		// A v4 peer of a dual-stack socket stands there as ::ffff:a.b.c.d.
		local, remote = netip.AddrFrom16([16]byte(raw[f.saddr6:])).Unmap(), netip.AddrFrom16([16]byte(raw[f.daddr6:])).Unmap()
	default:
		return Birth{}, false
	}
	b.Local = netip.AddrPortFrom(local, ne.Uint16(raw[f.sport:]))
	b.Remote = netip.AddrPortFrom(remote, ne.Uint16(raw[f.dport:]))
	return b, true
}
