package tcpstate

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

const (
	// maxCandidates is how many interfaces may be tried for a connection, at 2 us each: a
	// pod has one or two. Of the hundreds of a host that has one for each of its pods
	// next to none is one to which a socket is bound.
	maxCandidates = 16
	// loopbackIndex is LOOPBACK_IFINDEX of include/net/flow.h: lo in each namespace.
	loopbackIndex = 1
	// maxIGMP and maxIfInet6 bound what is read. maxCandidates interfaces with a dozen
	// multicast groups each are some 10 kB, 10,000 addresses 540 kB.
	maxIGMP    = 16 << 10
	maxIfInet6 = 1 << 20
)

// InterfacesFile tells which interface a socket may be bound to of which a tracepoint has
// told without saying so: see ID.Interface. It reads files of /proc, for which the kernel
// takes no lock. An answer of netlink would wait for the RTNL mutex, even about addresses
// (up to Linux 6.8), and on a busy node other programs hold that for long.
//
// The zero value is ready; it is for one goroutine at a time.
type InterfacesFile struct{ buf []byte }

// Candidates appends to list the interfaces of the calling thread's namespace to which a
// connection with this local address may be bound: those that have it, if it is a
// link-local one, else all but lo, or none if they are many.
func (f *InterfacesFile) Candidates(list []uint32, local netip.Addr) ([]uint32, error) {
	switch {
	case local.IsLoopback():
		return append(list, loopbackIndex), nil
	case local.Is6() && local.IsLinkLocalUnicast():
		b, err := f.read("/proc/thread-self/net/if_inet6", maxIfInet6)
		return parseIfInet6(list, b, local), err
	}
	b, err := f.read("/proc/thread-self/net/igmp", maxIGMP)
	return parseIGMP(list, b), err
}

// read reads a file, at most so many bytes of it, up to the end of a line. No descriptor
// stays open: it would pin the namespace.
func (f *InterfacesFile) read(path string, most int) ([]byte, error) {
	fd, err := sys.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer sys.Close(fd)
	n := 0
	for n < most {
		if n == len(f.buf) {
			f.buf = append(f.buf, make([]byte, max(4096, n))...)
		}
		k, err := unix.Read(fd, f.buf[n:min(len(f.buf), most)])
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if k == 0 {
			return f.buf[:n], nil
		}
		n += k
	}
	return f.buf[:bytes.LastIndexByte(f.buf[:n], '\n')+1], nil
}

// parseIGMP appends the interfaces in /proc/net/igmp but lo, or none if they are more than
// maxCandidates. The file has a line for each interface that is up, which begins with its
// index, and indented ones for its multicast groups.
func parseIGMP(list []uint32, b []byte) []uint32 {
	before := len(list)
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		index, _, ok := bytes.Cut(line, []byte{'\t'})
		if !ok {
			continue
		}
		n, ok := parseUint(index)
		if !ok || n == loopbackIndex || n == 0 || n > 1<<31-1 {
			continue
		}
		if len(list)-before == maxCandidates {
			return list[:before]
		}
		list = append(list, uint32(n))
	}
	return list
}

// parseIfInet6 appends the interfaces that have a local address, by /proc/net/if_inet6: a
// line for each, the address without colons and then the index, both in hexadecimal.
func parseIfInet6(list []uint32, b []byte, local netip.Addr) []uint32 {
	a := local.As16()
	var want [32]byte
	hex.Encode(want[:], a[:])
	before := len(list)
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		rest, ok := bytes.CutPrefix(line, want[:])
		if !ok {
			continue
		}
		index, _ := nextField(rest)
		n, err := strconv.ParseUint(string(index), 16, 31)
		if err != nil || n == 0 || len(list)-before == maxCandidates {
			continue
		}
		list = append(list, uint32(n))
	}
	return list
}
