package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Neighbour is the state of a neighbour entry after it was asked to prove itself.
type Neighbour uint8

// The states. The zero value says that there is no such neighbour: no gateway,
// or an endpoint that is not on our link, or a link without neighbours.
const (
	NoNeighbour Neighbour = iota
	Reachable
	Silent
	Unknown
)

func (n Neighbour) String() string {
	return [...]string{"none", "reachable", "silent", "unknown"}[min(int(n), 3)]
}

// NextHop is the state of the way out toward an endpoint.
type NextHop struct {
	// Interface toward the endpoint, and whether it has no carrier.
	Interface string
	LinkDown  bool
	// Gateway is the one toward the endpoint, or, where that is on our link, the
	// default gateway: what else is out there.
	Gateway Neighbour
	// Endpoint is the endpoint's own entry if it is on our link.
	Endpoint Neighbour
	Detail   string
}

// neighbourWait is how long a neighbour has to answer. It is asked by the kernel
// at once and again after one second (retrans_time_ms); a LAN answers within a
// few milliseconds.
const neighbourWait = 300 * time.Millisecond

// Way looks at the way out toward addr, in the namespace of the calling thread,
// which it occupies for up to neighbourWait.
//
// An entry that the kernel takes for reachable may be half a minute old, so each
// is set to NUD_PROBE first: the kernel then asks the neighbour at once, by a
// unicast ARP or ND request, and goes on using the entry meanwhile. That needs
// CAP_NET_ADMIN; without it the answer is Unknown.
//
// Where iface is not 0 it is the way of a socket that is bound to the interface with this
// index, which may be a VRF.
func Way(ctx context.Context, addr netip.Addr, iface uint32) (NextHop, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return NextHop{}, fmt.Errorf("cannot look at the way to %v: %w", addr, err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(2 * time.Second); err != nil {
		return NextHop{}, fmt.Errorf("cannot look at the way to %v: %w", addr, err)
	}
	routes, err := h.RouteGetWithOptions(net.IP(addr.AsSlice()), &netlink.RouteGetOptions{OifIndex: int(iface)})
	if err != nil || len(routes) == 0 {
		// No route: the application's segments cannot leave either.
		return NextHop{LinkDown: errors.Is(err, unix.ENETUNREACH), Gateway: Unknown, Detail: fmt.Sprintf("no route to %v: %v", addr, err)}, nil
	}
	return inspect(ctx, h, routes[0], addr)
}

// Uplink looks at the default route of the namespace of the calling thread, of
// addr's family or else of the other one. What is wrong with the way to some
// address tells nothing about the node: an empty bridge has no carrier, and not
// every node has IPv6. Without a default route nothing is known.
func Uplink(ctx context.Context, addr netip.Addr) (NextHop, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return NextHop{}, fmt.Errorf("cannot look at the default route: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(2 * time.Second); err != nil {
		return NextHop{}, fmt.Errorf("cannot look at the default route: %w", err)
	}
	families := []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	if addr.Is6() {
		families[0], families[1] = families[1], families[0]
	}
	for _, family := range families {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		if err != nil {
			return NextHop{}, fmt.Errorf("cannot look at the default route: %w", err)
		}
		for _, r := range routes {
			if r.Gw != nil && r.LinkIndex != 0 {
				return inspect(ctx, h, r, netip.Addr{})
			}
		}
	}
	return NextHop{Gateway: Unknown, Detail: "no default route"}, nil
}

// inspect looks at the link and the neighbours of a route. Without addr only its
// gateway is asked.
func inspect(ctx context.Context, h *netlink.Handle, r netlink.Route, addr netip.Addr) (NextHop, error) {
	link, err := h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return NextHop{}, fmt.Errorf("cannot look at the link toward %v: %w", addr, err)
	}
	a := link.Attrs()
	way := NextHop{Interface: a.Name, LinkDown: a.Flags&net.FlagUp == 0 || a.OperState == netlink.OperDown || a.OperState == netlink.OperLowerLayerDown}
	if way.LinkDown {
		way.Detail = fmt.Sprintf("%s is down", a.Name)
		way.Gateway = Unknown
		return way, nil
	}
	if a.Flags&net.FlagLoopback != 0 || a.RawFlags&unix.IFF_NOARP != 0 {
		way.Detail = a.Name + " has no neighbours"
		return way, nil
	}
	gateway, onLink := r.Gw, net.IP(nil)
	gwLink := r.LinkIndex
	if gateway == nil {
		onLink = net.IP(addr.AsSlice())
		gateway, gwLink = defaultGateway(h, addr, r.LinkIndex)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return NextHop{}, fmt.Errorf("cannot look at neighbours: %w", err)
	}
	defer s.Close()
	get := through{unix.NETLINK_ROUTE: {Socket: s}}
	asked := []*ask{{ip: gateway, link: gwLink, to: &way.Gateway}, {ip: onLink, link: r.LinkIndex, to: &way.Endpoint}}
	for _, q := range asked {
		q.start(h, get)
	}
	// It answers within a millisecond or two, or not at all.
	deadline, pause := time.Now().Add(neighbourWait), 3*time.Millisecond
	for pending := true; pending && time.Now().Before(deadline) && ctx.Err() == nil; {
		pending = false
		for _, q := range asked {
			pending = q.poll(get) || pending
		}
		if pending {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause *= 3
		}
	}
	if ctx.Err() != nil {
		// The wait was too short to call it silence.
		for _, q := range asked {
			if *q.to == Silent {
				*q.to = Unknown
			}
		}
	}
	way.Detail = fmt.Sprintf("%s up, gateway %v", a.Name, way.Gateway)
	if onLink != nil {
		way.Detail += fmt.Sprintf(", endpoint on link %v", way.Endpoint)
	}
	return way, nil
}

// defaultGateway finds a gateway of the default route over the same link.
func defaultGateway(h *netlink.Handle, addr netip.Addr, link int) (net.IP, int) {
	family := netlink.FAMILY_V6
	if addr.Is4() {
		family = netlink.FAMILY_V4
	}
	routes, err := h.RouteListFiltered(family, &netlink.Route{LinkIndex: link, Dst: nil}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
	if err != nil {
		return nil, 0
	}
	for _, r := range routes {
		if r.Gw != nil {
			return r.Gw, r.LinkIndex
		}
	}
	return nil, 0
}

// through is the socket that the library sends a request through.
type through = map[int]*nl.SocketHandle

// ask is one neighbour that has to prove itself.
type ask struct {
	ip   net.IP
	link int
	to   *Neighbour
}

func (q *ask) start(h *netlink.Handle, get through) {
	if q.ip == nil {
		return
	}
	*q.to = Unknown
	n, ok := q.entry(get)
	if !ok {
		return // nothing was sent to it lately: nothing to learn from silence
	}
	if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
		*q.to = Unknown
		return
	}
	if len(n.HardwareAddr) == 0 || n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 {
		*q.to = Silent // the kernel is asking already, in vain up to now
		return
	}
	n.State = netlink.NUD_PROBE
	if h.NeighSet(n) != nil {
		return
	}
	*q.to = Silent
}

// poll looks whether the neighbour has answered; true means not yet.
func (q *ask) poll(get through) bool {
	if q.ip == nil || *q.to != Silent {
		return false
	}
	if n, ok := q.entry(get); ok && n.State&netlink.NUD_REACHABLE != 0 {
		*q.to = Reachable
		return false
	}
	return true
}

// entry gets the one entry. A dump of the table would show it too, but a process that has
// CAP_NET_ADMIN in a pod decides how long that table is.
func (q *ask) entry(get through) (*netlink.Neigh, bool) {
	family, ip := unix.AF_INET6, q.ip.To16()
	if ip4 := q.ip.To4(); ip4 != nil {
		family, ip = unix.AF_INET, ip4
	}
	// Without the dump flag this is a get (neigh_get in net/core/neighbour.c,
	// Linux 5.0).
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.Sockets = get
	req.AddData(&netlink.Ndmsg{Family: uint8(family), Index: uint32(q.link)})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, ip))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil || len(msgs) != 1 {
		return nil, false
	}
	n, err := netlink.NeighDeserialize(msgs[0])
	if err != nil || n.LinkIndex != q.link || !n.IP.Equal(q.ip) {
		return nil, false
	}
	return n, true
}
