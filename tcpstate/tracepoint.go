package tcpstate

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/redisguard/redisguard/internal/sys"
)

// tracepoint receives the records of one of the kernel's tracepoints on TCP
// sockets, from all CPUs.
//
// This is an ordinary perf event with a filter expression on the remote port; no
// program runs in the kernel.
type tracepoint struct {
	rings  []*sys.TraceRing
	format traceFormat
	ports  *portSet // nil where the kernel filters by port
}

// traced is what a record says.
type traced struct {
	pid, tid      int           // that were running
	at            time.Duration // when, by CLOCK_MONOTONIC
	socket        uint64
	state         State
	local, remote netip.AddrPort
}

// openTracepoint starts receiving the tracepoint with the given name in tracefs,
// where stateField holds a state, for sockets with one of the remote ports and for
// which the filter expression where holds. Without ports there is nothing to
// receive, which needs no right.
func openTracepoint(name, stateField, where string, ports []uint16, pages int) (*tracepoint, error) {
	if len(ports) == 0 {
		return &tracepoint{}, nil
	}
	fs, err := sys.OpenTracefs()
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	text, err := sys.ReadAt(fs, "events/"+name+"/id")
	if err != nil {
		return nil, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("id of tracepoint %s: %w", name, err)
	}
	if text, err = sys.ReadAt(fs, "events/"+name+"/format"); err != nil {
		return nil, err
	}
	t := &tracepoint{}
	if len(ports) > MaxPorts {
		t.ports = new(portSet)
		t.ports.fill(ports)
		ports = nil
	}
	if t.format, err = parseTraceFormat(string(text), stateField); err != nil {
		return nil, fmt.Errorf("tracepoint %s: %w", name, err)
	}
	cpus, err := sys.OnlineCPUs()
	if err != nil {
		return nil, err
	}
	for _, cpu := range cpus {
		ring, err := sys.OpenTracepoint(id, cpu, traceFilter(ports, where), pages)
		if err != nil {
			t.close()
			return nil, err
		}
		t.rings = append(t.rings, ring)
	}
	return t, nil
}

func (t *tracepoint) close() {
	for _, r := range t.rings {
		r.Close()
	}
	t.rings = nil
}

// read calls fn for every record since the last call. It returns how many were lost for want
// of room.
func (t *tracepoint) read(fn func(traced)) (lost uint64) {
	for _, ring := range t.rings {
		lost += ring.Read(func(s *sys.Sample) {
			if r, ok := t.format.parse(s.Raw); ok && (t.ports == nil || t.ports.has(r.remote.Port())) {
				r.pid, r.tid, r.at = s.PID, s.TID, s.At
				fn(r)
			}
		})
	}
	return lost
}

// traceFilter writes the filter expression, of any port if ports is empty. The
// kernel limits it to a page, which is far above MaxPorts terms.
func traceFilter(ports []uint16, where string) string {
	if len(ports) == 0 {
		return where
	}
	terms := make([]string, len(ports))
	for i, p := range ports {
		terms[i] = "dport == " + strconv.Itoa(int(p))
	}
	expr := "(" + strings.Join(terms, " || ") + ")"
	if where != "" {
		expr = where + " && " + expr
	}
	return expr
}

// traceFormat holds the offsets of a tracepoint's fields, which differ between
// kernels.
type traceFormat struct {
	skaddr, state, sport, dport, family, saddr, daddr, saddr6, daddr6 int
}

// parseTraceFormat reads the "format" file of a tracepoint.
func parseTraceFormat(text, stateField string) (traceFormat, error) {
	var f traceFormat
	fields := map[string]struct {
		at   *int
		size int
	}{
		"skaddr": {&f.skaddr, 8}, stateField: {&f.state, 4}, "sport": {&f.sport, 2}, "dport": {&f.dport, 2}, "family": {&f.family, 2},
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
func (f *traceFormat) parse(raw []byte) (traced, bool) {
	end := 0
	for _, e := range []int{f.skaddr + 8, f.state + 4, f.sport + 2, f.dport + 2, f.family + 2, f.saddr + 4, f.daddr + 4, f.saddr6 + 16, f.daddr6 + 16} {
		end = max(end, e)
	}
	if len(raw) < end {
		return traced{}, false
	}
	ne := binary.NativeEndian
	r := traced{socket: ne.Uint64(raw[f.skaddr:]), state: State(ne.Uint32(raw[f.state:]))}
	var local, remote netip.Addr
	switch ne.Uint16(raw[f.family:]) {
	case familyInet:
		local, remote = netip.AddrFrom4([4]byte(raw[f.saddr:])), netip.AddrFrom4([4]byte(raw[f.daddr:]))
	case familyInet6:
		// A v4 peer of a dual-stack socket stands there as ::ffff:a.b.c.d.
		local, remote = netip.AddrFrom16([16]byte(raw[f.saddr6:])).Unmap(), netip.AddrFrom16([16]byte(raw[f.daddr6:])).Unmap()
	default:
		return traced{}, false
	}
	r.local = netip.AddrPortFrom(local, ne.Uint16(raw[f.sport:]))
	r.remote = netip.AddrPortFrom(remote, ne.Uint16(raw[f.dport:]))
	return r, true
}
