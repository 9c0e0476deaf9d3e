package policy

import (
	"net/netip"
	"slices"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/verdict"
)

// Interest says which connections are watched. It is immutable: when the config or a
// topology changes, another takes its place.
type Interest struct {
	// Generation grows with each Interest that differs from the one before: connections
	// that are merely wanted now move no counter of the kernel, so a loop that looks for
	// them must look everywhere once more.
	Generation uint64
	ports      []uint16
	isPort     [1 << 16 / 64]uint64
	byPort     Watched
	// targets has what holds for the endpoints of targets, whatever their ports, and
	// hasPort all ports in which there is any interest.
	targets map[netip.AddrPort]*Watched
	hasPort [1 << 16 / 64]uint64
	// stricter are the targets with a mode below that of byPort. What they allow may be one
	// of their nodes: those of a target that is off are not known, nor those of any target
	// until somebody has answered.
	stricter []*config.TargetSection
	allowing []*config.TargetSection // those that are not off
	loopback bool
	mark     uint32
}

// Members are the endpoints of a target, as far as they are known: its nodes, its Sentinels,
// and the seeds that are addresses.
type Members struct {
	Target    string
	Type      config.TargetType // auto while it is not known
	Endpoints []netip.AddrPort
}

// Watched is what holds for a connection that is watched.
type Watched struct {
	// Target names the target that the endpoint is of, "" if it is watched for its port
	// alone.
	Target string
	// Under names the target whose mode holds since the endpoint is among what it allows, while
	// nobody has said that it is one of its nodes; "" for none.
	Under string
	// Mode is the ceiling of every job.
	Mode config.Mode
	// Policy says what follows from a judgement.
	Policy config.PolicySection
}

// newInterest is that of a config, and of what is known of its targets.
func newInterest(c *config.Config, members []Members, generation uint64) *Interest {
	i := &Interest{
		// Never nil, which a filter takes for every port.
		Generation: generation, ports: append([]uint16{}, slices.Sorted(slices.Values(c.Watch.Ports))...), loopback: c.Watch.Loopback, mark: c.Probe.Mark,
		byPort: Watched{Mode: c.Watch.Mode, Policy: c.Policy},
	}
	for _, p := range i.ports {
		i.isPort[p/64] |= 1 << (p % 64)
	}
	i.hasPort = i.isPort
	i.targets = map[netip.AddrPort]*Watched{}
	for n := range c.Targets {
		t := &c.Targets[n]
		if t.Mode != config.Off {
			i.allowing = append(i.allowing, t)
		}
		if t.Mode < i.byPort.Mode {
			i.stricter = append(i.stricter, t)
		}
		m := Members{}
		if k := slices.IndexFunc(members, func(m Members) bool { return m.Target == t.Name }); k >= 0 {
			m = members[k]
		}
		is := t.Type
		if is == config.TypeAuto {
			is = m.Type
		}
		w := &Watched{Target: t.Name, Mode: t.Mode, Policy: c.PolicyOf(t, is)}
		add := func(a netip.AddrPort) {
			// What a node says leads to nothing that is not allowed; of two targets with one
			// endpoint it is the first's.
			if !t.Allows(a) || i.targets[a] != nil {
				return
			}
			i.targets[a] = w
			if p := a.Port(); i.hasPort[p/64]&(1<<(p%64)) == 0 {
				i.hasPort[p/64] |= 1 << (p % 64)
				i.ports = append(i.ports, p)
			}
		}
		for _, s := range t.Seeds {
			if a, literal := s.Addr(); literal {
				add(a)
			}
		}
		for _, a := range m.Endpoints {
			add(a)
		}
	}
	slices.Sort(i.ports)
	return i
}

// sameAs says whether both want the same connections.
func (i *Interest) sameAs(o *Interest) bool {
	if o == nil || (i.byPort.Mode == config.Off) != (o.byPort.Mode == config.Off) || i.loopback != o.loopback || i.mark != o.mark || !slices.Equal(i.ports, o.ports) || i.isPort != o.isPort || len(i.targets) != len(o.targets) {
		return false
	}
	may := func(a, b *config.TargetSection) bool {
		return a.Mode == b.Mode && slices.Equal(a.Allow, b.Allow) && slices.Equal(a.AllowPorts, b.AllowPorts) && slices.Equal(a.Seeds, b.Seeds)
	}
	if !slices.EqualFunc(i.stricter, o.stricter, may) {
		return false
	}
	for a, w := range i.targets {
		if x := o.targets[a]; x == nil || (w.Mode == config.Off) != (x.Mode == config.Off) {
			return false
		}
	}
	return true
}

// Ports are the remote ports of everything that is watched, ascending, for filters in
// the kernel: what does not pass them is not watched, and what does must be asked of
// Wants. Nothing is watched if there are none. They are immutable.
func (i *Interest) Ports() []uint16 { return i.ports }

// HasPort says whether connections to some address with this port are watched.
func (i *Interest) HasPort(p uint16) bool { return i.hasPort[p/64]&(1<<(p%64)) != 0 }

// Of says whether connections to an endpoint are watched, and what holds for them.
func (i *Interest) Of(endpoint netip.AddrPort) (Watched, bool) {
	if w := i.targets[endpoint]; w != nil {
		return *w, true
	}
	if p := endpoint.Port(); i.isPort[p/64]&(1<<(p%64)) == 0 {
		return Watched{}, false
	}
	w := i.byPort
	for _, t := range i.stricter {
		if t.Mode < w.Mode && t.Allows(endpoint) {
			w.Mode, w.Under = t.Mode, t.Name
		}
	}
	return w, true
}

// May names the target that an endpoint may be one of, by what it allows, though nobody has
// said so; "" for none.
func (i *Interest) May(endpoint netip.AddrPort) string {
	for _, t := range i.allowing {
		if t.Allows(endpoint) {
			return t.Name
		}
	}
	return ""
}

// Wants says whether a connection is watched. A connection to one's own address is one
// over loopback in all but name. mark is the socket's SO_MARK: our own probes have ours.
func (i *Interest) Wants(local, remote netip.AddrPort, mark uint32) bool {
	// What is off is not looked at, while other targets are, or ports.
	if w, ok := i.Of(remote); !ok || w.Mode == config.Off || i.mark != 0 && mark == i.mark {
		return false
	}
	return i.loopback || !remote.Addr().IsLoopback() && local.Addr() != remote.Addr()
}

// Loopback says whether connections over loopback are watched.
func (i *Interest) Loopback() bool { return i.loopback }

// Settings are the verdict core's numbers from the config; host is the host's namespace.
func Settings(c *config.Config, host verdict.NS) verdict.Settings {
	return verdict.Settings{
		HostNS: host, DownAfter: c.EffectiveDownAfter(), MinSilence: c.Reap.MinSilence, Rate: c.Reap.Rate, Burst: c.Reap.Burst,
		MaxShare: c.Reap.MaxShare, Spread: c.Reap.Spread, AcceptRate: c.Reap.AcceptRate, ProbesPerSecond: c.Probe.PerSecond, Baseline: c.Probe.Baseline,
		OnDown: verdict.Policy(c.Policy.OnDown.String()), OnUnresponsive: verdict.Policy(c.Policy.OnUnresponsive.String()),
	}
}

// Policies are those of a target in the words of the verdict core. A node that the view calls
// failed is one that is down.
func Policies(p config.PolicySection) verdict.Policies {
	word := func(r config.Reaction) verdict.Policy { return verdict.Policy(r.String()) }
	return verdict.Policies{
		OnDown: word(p.OnDown), OnUnresponsive: word(p.OnUnresponsive), OnFailed: word(p.OnDown),
		OnRemoved: word(p.OnRemoved), OnDemoted: word(p.OnDemoted), OnReplaced: word(p.OnReplaced),
	}
}
