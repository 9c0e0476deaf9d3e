package discovery

import (
	"context"
	"net/netip"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
)

// maxAccepts bounds what is remembered of the kernel's word on accepts; with more, the
// older half is forgotten.
const maxAccepts = 20_000

// accepts remembers which connections the kernel told to be accepted, though their remote
// port is a watched one. It is pure but for the source.
type accepts struct {
	from     *tcpstate.Accepts // nil where the kernel does not tell
	now, old map[[2]netip.AddrPort]bool
}

func (a *accepts) close() {
	if a.from != nil {
		a.from.Close()
		a.from = nil
	}
}

func (a *accepts) note(local, remote netip.AddrPort) {
	if a.now == nil || len(a.now) >= maxAccepts/2 {
		a.now, a.old = map[[2]netip.AddrPort]bool{}, a.now
	}
	a.now[[2]netip.AddrPort{local, remote}] = true
}

// connected takes back what was said of an earlier connection with these addresses.
func (a *accepts) connected(id *tcpstate.ID) {
	delete(a.now, [2]netip.AddrPort{id.Local, id.Remote})
	delete(a.old, [2]netip.AddrPort{id.Local, id.Remote})
}

func (a *accepts) has(id *tcpstate.ID) bool {
	key := [2]netip.AddrPort{id.Local, id.Remote}
	return a.now[key] || a.old[key]
}

// origin finds out who has opened connections in a namespace. What cannot be listed is
// listed at the next turn.
func (d *Loop) origin(v *viewed) policy.Origin {
	var o policy.Origin
	err := d.socket.In(d.thread, v.ns, func() (err error) {
		if o.Low, o.High, err = tcpstate.LocalPorts(); err != nil {
			d.Log.Debug("cannot tell the ports of connects", "namespace", v.ns, "error", err)
		}
		o.Listening, err = d.socket.Listening()
		return err
	})
	if err != nil {
		d.Log.Debug("cannot list what listens", "namespace", v.ns, "error", err)
	}
	o.Listed = err == nil
	return o
}

// tell passes on what a dump has shown. Connections that were accepted are none that are
// watched.
func (d *Loop) tell(ctx context.Context, v *viewed, from *policy.Origin) {
	if d.accepts.from != nil {
		d.accepts.from.Read(d.accepts.note)
	}
	by := map[policy.Answer][]tcpstate.Connection{}
	accepted := map[uint64]bool{}
	for i := range d.batch {
		k := &d.batch[i]
		opened := from.Opened(k, v.accepted[k.Cookie] || d.accepts.has(&k.ID))
		by[opened] = append(by[opened], *k)
		if opened == policy.No {
			accepted[k.Cookie] = true
		}
	}
	v.accepted = accepted
	for _, opened := range []policy.Answer{policy.Yes, policy.CouldNotTell, policy.No} {
		if list := by[opened]; len(list) > 0 && (opened != policy.No || v.unsure) {
			d.Connections(ctx, Found{NS: v.ns.ID, Opened: opened, Connections: list})
		}
	}
	if v.unsure = len(by[policy.CouldNotTell]) > 0; v.unsure {
		v.dirty = sys.Monotonic()
	}
}
