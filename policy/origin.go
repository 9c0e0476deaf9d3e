package policy

import (
	"net/netip"

	"github.com/redisguard/redisguard/tcpstate"
)

// Origin is what is known of a namespace that tells who opened a connection in it: the
// process here, or its peer. A peer may have a watched port as its own (a range of local
// ports from 1024 on includes 6379): then what was accepted from it looks like a
// connection to Redis by its ports. The zero value knows nothing.
type Origin struct {
	// Listed says that Listening are all that listen in the namespace.
	Listed    bool
	Listening []netip.AddrPort
	// Low and High are the ports from which the kernel chooses the local one of a connect; 0
	// if that is not known.
	Low, High uint16
}

// Opened says whether a connection was opened here: No is one that was accepted, and
// leads to a client of this process, whatever its remote port. Only its own local port
// tells: the same process may listen on one port and be a client from another.
//
// accepted says that the kernel told of its accept. What it told of a connect need not
// be asked about here.
func (o *Origin) Opened(k *tcpstate.Connection, accepted bool) Answer {
	switch {
	case k.State == tcpstate.SynSent:
		return Yes
	case accepted, k.State == tcpstate.SynRecv:
		return No
	case !o.Listed:
		return CouldNotTell
	case o.listens(k.Local):
		// The kernel gives a connect no port that a socket is bound to.
		return No
	case o.High != 0 && (k.Local.Port() < o.Low || k.Local.Port() > o.High):
		// No port for a connect: it was accepted by a listener that has been closed since, or
		// a client has bound its own port. Clients of Redis do not, and one of which the
		// kernel told is known to be one.
		return No
	}
	return Yes
}

// listens says whether a listening socket may have accepted a connection with this local
// address. A wildcard of IPv6 accepts IPv4 too, unless its socket is told otherwise
// (IPV6_V6ONLY); that is not looked at, since a port that it has is not given to a connect of
// IPv4 either.
func (o *Origin) listens(local netip.AddrPort) bool {
	at := local.Addr().Unmap().WithZone("")
	for _, l := range o.Listening {
		if l.Port() == local.Port() && (l.Addr().IsUnspecified() || l.Addr().Unmap().WithZone("") == at) {
			return true
		}
	}
	return false
}

// Accepted says whether the counters of a look show that a connection was accepted. To the
// side that connects its SYN is acknowledged and counts as one byte; of the other side's
// socket, which is made when that has happened, only bytes of data ever are. So where
// nothing is in flight, the two sides differ by one (measured on 6.18; so it has been since
// Linux 4.19). It tells of a listener that was closed before anybody looked. A connection
// that CRIU has restored has sent no SYN either, and is taken for accepted.
func Accepted(k *tcpstate.Connection) bool {
	i := &k.Info
	return k.HasInfo && i.Has(tcpstate.FieldBytesRetrans) && k.State == tcpstate.Established &&
		i.Unacked == 0 && i.BytesSent >= i.BytesRetrans && i.BytesAcked == i.BytesSent-i.BytesRetrans
}
