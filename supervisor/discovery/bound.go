package discovery

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/redisguard/redisguard/tcpstate"
)

// maxBound is how many interfaces are remembered for a namespace.
const maxBound = 16

// boundTo remembers an interface that a socket is bound to; 0 is none.
func (v *viewed) boundTo(iface uint32) {
	if iface != 0 && len(v.bound) < maxBound && !slices.Contains(v.bound, iface) {
		v.bound = append(v.bound, iface)
	}
}

// bound finds connections that are bound to an interface. A connect event does not tell
// which one, and without it the kernel says that there is no such connection (see
// tcpstate.ID). What is not there is nearly always one that has ended; most of those are
// still found, in TIME_WAIT.
type bound struct {
	interfaces tcpstate.InterfacesFile
	tries      []tcpstate.ID // kept for its memory
}

// peek looks once more for those of ids that are not there, with the interfaces of the
// namespace that the calling thread is in. out are the results of the first look, and what
// is found is appended to them.
func (b *bound) peek(s *tcpstate.Socket, v *viewed, ids []tcpstate.ID, out []tcpstate.Result) ([]tcpstate.Result, error) {
	b.tries = b.tries[:0]
	var all []uint32 // those to try where the local address tells nothing
	read := false
	for i, id := range ids {
		if !errors.Is(out[i].Err, tcpstate.ErrGone) {
			continue
		}
		list := all
		if tellsInterface(id.Local.Addr()) {
			list = b.candidates(v, id.Local.Addr())
		} else if !read {
			read = true
			all = b.candidates(v, id.Local.Addr())
			list = all
		}
		for _, id.Interface = range list {
			b.tries = append(b.tries, id)
		}
	}
	if len(b.tries) == 0 {
		return out, nil
	}
	found := make([]tcpstate.Result, len(b.tries))
	if err := s.Peek(b.tries, found); err != nil {
		return out, err
	}
	for i := range found {
		// Several interfaces may lead to the same addresses: each that is found counts.
		if found[i].Err == nil {
			v.boundTo(found[i].Interface)
			out = append(out, found[i])
		}
	}
	return out, nil
}

// tellsInterface says whether an address is of certain interfaces only.
func tellsInterface(a netip.Addr) bool { return a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast() }

// candidates are the interfaces that sockets of the namespace were bound to, and those that
// may be.
func (b *bound) candidates(v *viewed, local netip.Addr) []uint32 {
	// Where the file is missing (IPv6 is off, or a kernel without multicast) a dump finds
	// what there is.
	list, _ := b.interfaces.Candidates(slices.Clone(v.bound), local)
	slices.Sort(list)
	return slices.Compact(list)
}
