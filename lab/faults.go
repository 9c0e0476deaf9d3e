package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// VIP is a virtual address for client hosts. The router translates it, and keeps
// every connection on the backend that it began with.
type VIP struct {
	Name string
	Addr netip.AddrPort

	lab     *Lab
	backend netip.AddrPort // guarded by ruleset.mu; invalid: none
}

// VIP makes a virtual address that leads nowhere yet: until PointTo, packets to
// it are dropped silently. addr is in 10.77.9.0/24 or fd77:9::/64.
func (l *Lab) VIP(name string, addr netip.Addr, port uint16) (*VIP, error) {
	if !vipNet4.Contains(addr) && !vipNet6.Contains(addr) {
		return nil, fmt.Errorf("cannot make virtual address %s: %s is in neither %s nor %s", name, addr, vipNet4, vipNet6)
	}
	v := &VIP{Name: name, Addr: netip.AddrPortFrom(addr, port), lab: l}
	r := l.rules
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("cannot make virtual address %s: %w", name, errClosed)
	}
	for _, other := range r.vips {
		if other.Addr == v.Addr {
			return nil, fmt.Errorf("cannot make virtual address %s: %s is taken by %s", name, v.Addr, other.Name)
		}
	}
	r.vips = append(r.vips, v)
	if err := r.apply(); err != nil {
		r.vips = r.vips[:len(r.vips)-1]
		return nil, err
	}
	return v, nil
}

// PointTo leads new connections to port on host. Connections made before stay
// with the backend they have, alive or dead: what a managed failover looks like.
func (v *VIP) PointTo(h *Host, port uint16) error {
	addr := h.Addr
	if v.Addr.Addr().Is6() {
		addr = h.Addr6
	}
	return v.point(netip.AddrPortFrom(addr, port))
}

// Withdraw lets new connections lead nowhere, silently.
func (v *VIP) Withdraw() error { return v.point(netip.AddrPort{}) }

func (v *VIP) point(backend netip.AddrPort) error {
	r := v.lab.rules
	r.mu.Lock()
	defer r.mu.Unlock()
	before := v.backend
	v.backend = backend
	if err := r.apply(); err != nil {
		v.backend = before
		return fmt.Errorf("cannot point virtual address %s to %s: %w", v.Name, backend, err)
	}
	return nil
}

// Vanish loses the host silently: its port is taken off the switch. The host
// keeps its carrier, and nothing reaches it or comes from it, ARP included. No
// host and no router sends an error.
func (h *Host) Vanish() error {
	return h.change("vanish", &h.vanished, true, func(port netlink.Link) error {
		return netlink.LinkSetNoMaster(port)
	})
}

// Return undoes Vanish. What others and the host itself have concluded about
// neighbours meanwhile is forgotten, so that the next packet arrives.
func (h *Host) Return() error {
	return h.change("return", &h.vanished, false, func(port netlink.Link) error {
		bridge, err := netlink.LinkByName(h.lan.name)
		if err != nil {
			return err
		}
		return netlink.LinkSetMasterByIndex(port, bridge.Attrs().Index)
	})
}

// LinkDown takes the carrier from the host's eth0.
func (h *Host) LinkDown() error {
	return h.change("take the carrier from", &h.linkDown, true, netlink.LinkSetDown)
}

// LinkUp undoes LinkDown.
func (h *Host) LinkUp() error {
	return h.change("give the carrier to", &h.linkDown, false, netlink.LinkSetUp)
}

// change brings *state to want by work on the host's port, inside the switch.
// It does nothing if *state is want already.
func (h *Host) change(verb string, state *bool, want bool, work func(port netlink.Link) error) error {
	t := h.lab.net
	t.mu.Lock()
	defer t.mu.Unlock()
	if *state == want {
		return nil
	}
	err := errors.New("the host was removed")
	if !h.removed {
		err = t.sw.do(func() error {
			port, err := netlink.LinkByName(h.port)
			if err != nil {
				return err
			}
			return work(port)
		})
	}
	if err == nil && !want {
		err = t.forgetNeighbours(h)
	}
	if err != nil {
		return fmt.Errorf("cannot %s host %s: %w", verb, h.Name, err)
	}
	*state = want
	return nil
}

// forgetNeighbours clears what the host knows about its neighbours, and what
// they know about it. An entry being resolved would otherwise be asked for once
// a second only. It must be called with mu held.
func (t *topology) forgetNeighbours(h *Host) error {
	errs := []error{
		h.ns.do(func() error { return forget("eth0", func(netip.Addr) bool { return true }) }),
	}
	isHost := func(a netip.Addr) bool { return a == h.Addr || a == h.Addr6 }
	errs = append(errs, t.router.do(func() error { return forget(h.lan.name, isHost) }))
	for _, other := range t.hosts {
		if other != h && other.lan == h.lan {
			errs = append(errs, other.ns.do(func() error { return forget("eth0", isHost) }))
		}
	}
	return errors.Join(errs...)
}

// forget deletes neighbour entries of a link of the thread's namespace.
func forget(linkName string, which func(netip.Addr) bool) error {
	link, err := netlink.LinkByName(linkName)
	if err != nil {
		return err
	}
	entries, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list neighbours: %w", err)
	}
	for _, e := range entries {
		addr, ok := netip.AddrFromSlice(e.IP)
		if !ok || !which(addr.Unmap()) || e.State&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) != 0 {
			continue
		}
		// It may have gone by itself.
		if err := netlink.NeighDel(&e); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot forget neighbour %s: %w", addr, err)
		}
	}
	return nil
}

// Direction says which packets of a connection a fault is about.
type Direction string

// The directions.
const (
	BothWays Direction = "both ways"
	ToServer Direction = "to the server"
	ToClient Direction = "to the client"
	// Rejected is ToServer, and the router answers each packet with "host unreachable".
	Rejected Direction = "to the server, with ICMP unreachable"
)

// between makes a fault of what goes from src to dst, as the client knows it, and back.
func between(dir Direction, src, dst netip.AddrPort) *fault {
	var f fault
	switch dir {
	case Rejected:
		f.passing = []rule{concat(tcp(src, dst), unreachable())}
		return &f
	case BothWays, ToServer:
		f.arriving = []rule{concat(tcp(src, dst), drop())}
	}
	if dir != ToServer {
		f.leaving = []rule{concat(tcp(dst, src), drop())}
	}
	return &f
}

// DropFlowOneWay is DropFlow in one direction.
func (l *Lab) DropFlowOneWay(src, dst netip.AddrPort, dir Direction) (undo func() error, err error) {
	return l.rules.add(between(dir, src, dst))
}

// BlockOneWay is Block in one direction, for IPv4.
func (l *Lab) BlockOneWay(client, server *Host, port uint16, dir Direction) (undo func() error, err error) {
	return l.rules.add(between(dir, netip.AddrPortFrom(client.Addr, 0), netip.AddrPortFrom(server.Addr, port)))
}

// BlockConnects drops the connection requests of client to the port of server, as a full
// accept queue or connection table does. Connections made before go on.
func (l *Lab) BlockConnects(client, server *Host, port uint16) (undo func() error, err error) {
	var f fault
	for _, ends := range pairs(client, server, port) {
		f.passing = append(f.passing, concat(tcp(ends.client, ends.server), firstSYN(), drop()))
	}
	return l.rules.add(&f)
}

// DropFlow drops one TCP flow silently, in both directions. src is the client's
// end; dst is the server's as the client knows it, a virtual address too. Like
// every undo of this package, the returned one may be called more than once.
func (l *Lab) DropFlow(src, dst netip.AddrPort) (undo func() error, err error) {
	if src.Addr().BitLen() != dst.Addr().BitLen() || !dst.Addr().IsValid() {
		return nil, fmt.Errorf("cannot drop flow %s to %s: the addresses are not of one family", src, dst)
	}
	return l.rules.add(between(BothWays, src, dst))
}

// Block drops all TCP packets between client and the port of server silently, in
// both directions and families, through virtual addresses too.
func (l *Lab) Block(client, server *Host, port uint16) (undo func() error, err error) {
	var f fault
	for _, ends := range pairs(client, server, port) {
		f.passing = append(f.passing,
			concat(tcp(ends.client, ends.server), drop()),
			concat(tcp(ends.server, ends.client), drop()))
	}
	return l.rules.add(&f)
}

// Reject answers new connections of client to the port of server with a reset.
// Connections made before go on.
func (l *Lab) Reject(client, server *Host, port uint16) (undo func() error, err error) {
	var f fault
	for _, ends := range pairs(client, server, port) {
		f.passing = append(f.passing, concat(tcp(ends.client, ends.server), resetSYN()))
	}
	return l.rules.add(&f)
}

type pair struct{ client, server netip.AddrPort }

// pairs has a pair per family; the client's port is 0, any.
func pairs(client, server *Host, port uint16) []pair {
	return []pair{
		{netip.AddrPortFrom(client.Addr, 0), netip.AddrPortFrom(server.Addr, port)},
		{netip.AddrPortFrom(client.Addr6, 0), netip.AddrPortFrom(server.Addr6, port)},
	}
}

// Loss drops each packet that the router forwards, in either direction, with a
// probability of permille (1 to 1000) in a thousand. 1000 darkens the network
// between the LANs, while the gateway goes on answering ARP.
func (l *Lab) Loss(permille int) (undo func() error, err error) {
	if permille < 1 || permille > 1000 {
		return nil, fmt.Errorf("cannot lose %d permille of packets: it is not 1 to 1000", permille)
	}
	return l.rules.add(&fault{passing: []rule{concat(share(permille), drop())}})
}

// Bursts says how packets are lost in bursts.
type Bursts struct {
	// Permille is the share of time in which everything forwarded is dropped,
	// 1 to 900.
	Permille int
	// Min and Max bound the length of a burst, drawn evenly. If zero, 30 ms and
	// 80 ms: some that a tail loss probe survives, some that outlast one
	// retransmission.
	Min, Max time.Duration
	// Seed makes lengths and gaps repeatable, as far as the scheduler lets them.
	Seed uint64
}

// bursts is a running LossBursts.
type bursts struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // to be read after done
}

// LossBursts drops everything the router forwards for short times, over and over,
// until undo or Close. undo returns the error that ended the bursts early, if
// one did.
func (l *Lab) LossBursts(cfg Bursts) (undo func() error, err error) {
	if cfg.Min == 0 && cfg.Max == 0 {
		cfg.Min, cfg.Max = 30*time.Millisecond, 80*time.Millisecond
	}
	if cfg.Permille < 1 || cfg.Permille > 900 || cfg.Min <= 0 || cfg.Max < cfg.Min {
		return nil, fmt.Errorf("cannot lose packets in bursts: %+v is out of range", cfg)
	}
	r := l.rules
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("cannot lose packets in bursts: %w", errClosed)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &bursts{cancel: cancel, done: make(chan struct{})}
	r.bursts = append(r.bursts, b)
	l.workers.Go(func() {
		defer close(b.done)
		b.err = r.runBursts(ctx, cfg)
	})
	return func() error {
		cancel()
		<-b.done
		return b.err
	}, nil
}

func (r *ruleset) runBursts(ctx context.Context, cfg Bursts) error {
	f := &fault{passing: []rule{drop()}}
	rnd := rand.New(rand.NewPCG(cfg.Seed, 0))
	length := func() time.Duration { return cfg.Min + time.Duration(rnd.Int64N(int64(cfg.Max-cfg.Min)+1)) }
	gapPerBurst := float64(1000-cfg.Permille) / float64(cfg.Permille)
	gap := func(owed float64) time.Duration { return time.Duration((0.5 + rnd.Float64()) * max(0, owed)) }

	// The next gap follows from what bursts and gaps have really been so far:
	// late wake-ups do not change the share.
	var on, off time.Duration
	ended := time.Now()
	for next := gap(gapPerBurst * float64(cfg.Min+cfg.Max) / 2); pause(ctx, next); {
		if err := r.set(f, true); err != nil {
			return err
		}
		began := time.Now()
		off += began.Sub(ended)
		pause(ctx, length())
		if err := r.set(f, false); err != nil {
			return err
		}
		ended = time.Now()
		on += ended.Sub(began)
		next = gap(gapPerBurst*float64(on) - float64(off))
	}
	return nil
}

// pause reports whether d passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
