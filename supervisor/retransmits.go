package supervisor

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/tcpstate"
)

// retransmits hears of retransmissions from the kernel, where it can, so that
// connections that are fine need not be looked at all the time.
type retransmits struct {
	from  *tcpstate.Retransmits
	ports []uint16
	tried time.Duration // when it was last tried in vain; 0 is never
	// told are the connections that retransmitted since the last round, locals
	// their local ports: those spare most connections a closer comparison.
	told   map[flow]bool
	locals [1 << 16 / 64]uint64
}

// flow is a connection's addresses; the kernel does not say in which namespace.
type flow struct{ local, remote netip.AddrPort }

// retryRetransmits is how soon to try again where it did not work.
const retryRetransmits = time.Minute

func (r *retransmits) close() {
	if r.from != nil {
		r.from.Close()
		r.from = nil
	}
}

// hear takes the connections that have retransmitted into this round. It returns
// false where it cannot tell, now or at all: then everyone must be looked at.
func (r *retransmits) hear(w *watcher) bool {
	c := w.s.config()
	now := monotonic()
	if c.Watch.Births == config.BirthsOff || r.from != nil && !slices.Equal(r.ports, c.Watch.Ports) {
		r.close()
		r.tried = 0
	}
	if r.from == nil {
		if c.Watch.Births == config.BirthsOff || r.tried != 0 && now-r.tried < retryRetransmits {
			return false
		}
		from, err := tcpstate.OpenRetransmits(c.Watch.Ports, false)
		if err != nil {
			if r.tried == 0 {
				w.s.log.Info("the kernel does not tell of retransmissions here, all connections are looked at every second", "error", err,
					"remedy", "CAP_PERFMON or CAP_SYS_ADMIN, and tracefs; or watch.births = \"off\"")
			}
			r.tried = now
			return false
		}
		r.from, r.ports, r.told = from, slices.Clone(c.Watch.Ports), map[flow]bool{}
		return false // what was before, nobody tells
	}
	lost := r.from.Read(func(x tcpstate.Retransmission) {
		r.told[flow{x.Local, x.Remote}] = true
		r.locals[x.Local.Port()/64] |= 1 << (x.Local.Port() % 64)
	})
	if len(r.told) > 0 {
		for _, t := range w.conns {
			local := t.conn.Local.Port()
			if r.locals[local/64]&(1<<(local%64)) != 0 && r.told[flow{t.conn.Local, t.conn.Remote}] {
				w.take(t)
			}
		}
		clear(r.told)
		clear(r.locals[:])
	}
	return lost == 0
}
