package tcpstate

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// Counters are the TCP counters of one network namespace since it was made, from
// its /proc/net/snmp (RFC 4022 names). They are cheap to read, some 10 us, and
// tell whether a dump can find anything new.
type Counters struct {
	// ActiveOpens counts connect calls: no new client connection without it.
	ActiveOpens uint64
	// InSegs and OutSegs count all segments, RetransSegs those sent again;
	// keepalive and window probes are in none of them.
	InSegs, OutSegs, RetransSegs uint64
}

// errCounters says that the counters are not where every kernel has them.
var errCounters = errors.New("no Tcp counters in it")

// CountersFile reads Counters again and again with one buffer. The zero value is
// ready; it is for one goroutine at a time.
type CountersFile struct{ buf []byte }

// Read reads the counters from path, which is /proc/<pid>/net/snmp of a process
// in the namespace, or /proc/thread-self/net/snmp while visiting it. No
// descriptor stays open: it would pin the namespace.
func (f *CountersFile) Read(path string) (Counters, error) {
	if f.buf == nil {
		f.buf = make([]byte, 4096) // the file has some 1.5 KiB
	}
	fd, err := sys.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Counters{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer sys.Close(fd)
	n, err := unix.Read(fd, f.buf)
	if err != nil {
		return Counters{}, &os.PathError{Op: "read", Path: path, Err: err}
	}
	c, err := parseCounters(f.buf[:n])
	if err != nil {
		return Counters{}, fmt.Errorf("cannot read counters from %s: %w", path, err)
	}
	return c, nil
}

// parseCounters finds the line of names and the line of values that start with
// "Tcp:", and walks both together.
func parseCounters(b []byte) (Counters, error) {
	names, rest, ok := cutTCPLine(b)
	if !ok {
		return Counters{}, errCounters
	}
	values, _, ok := cutTCPLine(rest)
	if !ok {
		return Counters{}, errCounters
	}
	var c Counters
	seen := 0
	for {
		var name, value []byte
		name, names = nextField(names)
		value, values = nextField(values)
		if len(name) == 0 || len(value) == 0 {
			break
		}
		var dst *uint64
		switch string(name) {
		case "ActiveOpens":
			dst = &c.ActiveOpens
		case "InSegs":
			dst = &c.InSegs
		case "OutSegs":
			dst = &c.OutSegs
		case "RetransSegs":
			dst = &c.RetransSegs
		default:
			continue
		}
		if *dst, ok = parseUint(value); !ok {
			return Counters{}, fmt.Errorf("%s is %q, no number", name, value)
		}
		seen++
	}
	if seen != 4 {
		return Counters{}, errCounters
	}
	return c, nil
}

func cutTCPLine(b []byte) (line, rest []byte, ok bool) {
	prefix := []byte("Tcp:")
	for len(b) > 0 {
		line, rest, _ = bytes.Cut(b, []byte{'\n'})
		if bytes.HasPrefix(line, prefix) {
			return line[len(prefix):], rest, true
		}
		b = rest
	}
	return nil, nil, false
}

func nextField(b []byte) (field, rest []byte) {
	b = bytes.TrimLeft(b, " ")
	if i := bytes.IndexByte(b, ' '); i >= 0 {
		return b[:i], b[i:]
	}
	return b, nil
}

func parseUint(b []byte) (uint64, bool) {
	var n uint64
	for _, d := range b {
		if d < '0' || d > '9' || n > (1<<64-1)/10-1 {
			return 0, false
		}
		n = n*10 + uint64(d-'0')
	}
	return n, len(b) > 0
}
