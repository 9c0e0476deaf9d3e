package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lan is one of the two local networks.
type lan struct {
	name  string // of its bridge in the switch and of the router's link to it
	index byte   // stands in addresses: 10.77.<index>.0/24, fd77:<index>::/64
}

var (
	clientsLAN = lan{name: "clients", index: 1}
	serversLAN = lan{name: "servers", index: 2}
)

const (
	routerNumber = 1
	lastNumber   = 254
)

func (n lan) addr4(number byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, n.index, number}) }

func (n lan) addr6(number byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0x77, 0, n.index, 15: number})
}

// mac follows from the address: a host made again on an address that was free
// for a while meets neighbour entries that are still right.
func (n lan) mac(number byte) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x77, 0, 0, n.index, number}
}

// vipNet4 and vipNet6 hold the virtual addresses. The router drops silently what
// it cannot translate.
var (
	vipNet4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 9, 0}), 24)
	vipNet6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x77, 0, 9}), 64)
)

// topology is the network itself: namespaces, links, addresses, routes.
type topology struct {
	router *namespace
	sw     *namespace

	// mu serialises changes of the network, so that a host's faults and removal
	// do not overlap. It is held during netlink calls and never during anything
	// that waits for a process.
	mu       sync.Mutex
	hosts    map[string]*Host
	numbers  map[lan]*[lastNumber + 1]bool // in use
	nextPort int
}

func newTopology() *topology {
	return &topology{
		hosts: make(map[string]*Host),
		numbers: map[lan]*[lastNumber + 1]bool{
			clientsLAN: {0: true, routerNumber: true},
			serversLAN: {0: true, routerNumber: true},
		},
	}
}

func (t *topology) build(newNS func(name string) (*namespace, error)) (err error) {
	if t.sw, err = newNS("sw"); err != nil {
		return err
	}
	if err := t.sw.do(buildSwitch); err != nil {
		return fmt.Errorf("cannot build the switch: %w", err)
	}
	if t.router, err = newNS("rtr"); err != nil {
		return err
	}
	for _, n := range []lan{clientsLAN, serversLAN} {
		if err := t.plug(n, "rtr-"+n.name, t.router, n.name, routerNumber); err != nil {
			return fmt.Errorf("cannot connect the router to %s: %w", n.name, err)
		}
	}
	if err := t.router.do(buildRouter); err != nil {
		return fmt.Errorf("cannot build the router: %w", err)
	}
	return nil
}

// buildSwitch makes two bridges that forward from the first moment: no spanning
// tree (a new bridge has none, hence no forward delay either), no snooping, and
// no IP of their own.
func buildSwitch() error {
	err := writeSysctls(map[string]string{
		"net/ipv6/conf/all/disable_ipv6":     "1",
		"net/ipv6/conf/default/disable_ipv6": "1",
	})
	if err != nil {
		return err
	}
	// Bridged frames shall not visit netfilter. The files are missing where
	// the kernel cannot do that in the first place.
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		err := writeSysctls(map[string]string{"net/bridge/bridge-nf-call-" + name: "0"})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	snooping := false
	for _, n := range []lan{clientsLAN, serversLAN} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = n.name
		attrs.Flags = net.FlagUp
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return fmt.Errorf("cannot add bridge %s: %w", n.name, err)
		}
	}
	return nil
}

func buildRouter() error {
	err := writeSysctls(map[string]string{
		"net/ipv4/ip_forward":          "1",
		"net/ipv6/conf/all/forwarding": "1",
	})
	if err != nil {
		return err
	}
	for _, vips := range []netip.Prefix{vipNet4, vipNet6} {
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(vips), Type: unix.RTN_BLACKHOLE}); err != nil {
			return fmt.Errorf("cannot add the route of the virtual addresses: %w", err)
		}
	}
	return nil
}

// plug connects a namespace to a LAN: a veth pair of which one end is a port of
// the switch and the other end, called link, gets the addresses of number.
func (t *topology) plug(n lan, port string, ns *namespace, link string, number byte) error {
	err := t.sw.do(func() error {
		bridge, err := netlink.LinkByName(n.name)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		attrs.MasterIndex = bridge.Attrs().Index
		attrs.Flags = net.FlagUp
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:        attrs,
			PeerName:         link,
			PeerHardwareAddr: n.mac(number),
			PeerNamespace:    netlink.NsFd(int(ns.fd.Fd())),
		})
	})
	if err != nil {
		return err
	}
	return ns.do(func() error {
		// Duplicate address detection would keep the IPv6 addresses unusable
		// for a second.
		err := writeSysctls(map[string]string{
			"net/ipv6/conf/" + link + "/accept_dad": "0",
			"net/ipv6/conf/" + link + "/accept_ra":  "0",
		})
		if err != nil {
			return err
		}
		for _, name := range []string{"lo", link} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			if name == "lo" {
				continue
			}
			for _, p := range []netip.Prefix{netip.PrefixFrom(n.addr4(number), 24), netip.PrefixFrom(n.addr6(number), 64)} {
				if err := AddAddress(l, p); err != nil {
					return err
				}
			}
		}
		if number == routerNumber {
			return nil
		}
		for _, gw := range []netip.Addr{n.addr4(routerNumber), n.addr6(routerNumber)} {
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if gw.Is6() {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(all), Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("cannot add the default route via %s: %w", gw, err)
			}
		}
		return nil
	})
}

// remove takes every namespace away. With the switch go all links.
func (t *topology) remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, h := range t.hosts {
		h.removed = true
		errs = append(errs, h.ns.discard())
	}
	clear(t.hosts)
	for _, ns := range []*namespace{t.router, t.sw} {
		if ns != nil {
			errs = append(errs, ns.discard())
		}
	}
	return errors.Join(errs...)
}

// discard removes the namespace and sees to it that the kernel can free it soon:
// a socket closed with data on the way to a host that is gone would otherwise
// keep it for minutes. The kernel reads the setting at the socket's next
// retransmission.
func (n *namespace) discard() error {
	err := n.do(func() error {
		return writeSysctls(map[string]string{
			"net/ipv4/tcp_orphan_retries": "1",
			"net/ipv4/tcp_fin_timeout":    "1",
		})
	})
	return errors.Join(err, n.remove())
}

// Host is a network namespace with one link, eth0, to its LAN, and a default
// route via the router.
type Host struct {
	Name   string     // as given to Client or Server
	NSName string     // <prefix>-<name>
	NSPath string     // /run/netns/<prefix>-<name>
	Addr   netip.Addr // IPv4
	Addr6  netip.Addr

	lab    *Lab
	ns     *namespace
	lan    lan
	number byte
	port   string // the switch's end of eth0

	// Guarded by topology.mu.
	vanished bool
	linkDown bool
	removed  bool
}

// Client makes a host on the LAN of the clients. There is room for 253.
func (l *Lab) Client(name string) (*Host, error) { return l.newHost(name, clientsLAN) }

// Server makes a host on the LAN of the servers. There is room for 253.
func (l *Lab) Server(name string) (*Host, error) { return l.newHost(name, serversLAN) }

func (l *Lab) newHost(name string, n lan) (*Host, error) {
	t := l.net
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.hosts[name]; ok || name == "sw" || name == "rtr" {
		return nil, fmt.Errorf("cannot make host %s: the lab has one of that name", name)
	}
	number, err := t.takeNumber(n)
	if err != nil {
		return nil, fmt.Errorf("cannot make host %s: %w", name, err)
	}
	ns, err := l.namespace(name)
	if err != nil {
		t.numbers[n][number] = false
		return nil, err
	}
	t.nextPort++
	h := &Host{
		Name: name, NSName: ns.name, NSPath: ns.path,
		Addr: n.addr4(number), Addr6: n.addr6(number),
		lab: l, ns: ns, lan: n, number: number, port: fmt.Sprintf("p%d", t.nextPort),
	}
	if err := t.plug(n, h.port, ns, "eth0", number); err != nil {
		t.numbers[n][number] = false
		return nil, errors.Join(fmt.Errorf("cannot connect host %s: %w", name, err), ns.remove())
	}
	t.hosts[name] = h
	return h, nil
}

// takeNumber must be called with mu held.
func (t *topology) takeNumber(n lan) (byte, error) {
	for number, used := range t.numbers[n] {
		if !used {
			t.numbers[n][number] = true
			return byte(number), nil
		}
	}
	return 0, fmt.Errorf("all addresses of the %s LAN are taken", n.name)
}

// Remove kills the host's processes and takes its namespace and its link away,
// as when a pod is deleted. The name and the addresses are free again. As in real
// life, sockets closed with data on the way keep the nameless namespace alive
// until the kernel gives them up. Removing a host twice is not an error.
func (h *Host) Remove() error {
	h.lab.killProcesses(h)
	t := h.lab.net
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.removed {
		return nil
	}
	h.removed = true
	delete(t.hosts, h.Name)
	t.numbers[h.lan][h.number] = false
	err := t.sw.do(func() error {
		link, err := netlink.LinkByName(h.port)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err := errors.Join(err, h.ns.remove()); err != nil {
		return fmt.Errorf("cannot remove host %s: %w", h.Name, err)
	}
	return nil
}

// Do runs fn on a locked thread in the host's namespace and returns its error.
// A socket that fn opens stays in the namespace. fn must not start goroutines
// that open sockets: they would be elsewhere.
func (h *Host) Do(fn func() error) error { return h.ns.do(fn) }

// VRF makes a VRF of that name in the host, with its eth0 in it: only a socket that is bound
// to the VRF reaches anything, and by IPv4 alone. The error is errors.ErrUnsupported where
// the kernel has none (CONFIG_NET_VRF).
func (h *Host) VRF(name string) error {
	const table = 10 // any that is none of the kernel's own
	err := h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Flags = name, net.FlagUp
		vrf := &netlink.Vrf{LinkAttrs: attrs, Table: table}
		if err := netlink.LinkAdd(vrf); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(eth0, vrf); err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{Table: table, LinkIndex: eth0.Attrs().Index, Gw: h.lan.addr4(routerNumber).AsSlice()})
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("cannot make a VRF in host %s: %w", h.Name, err)
	}
	return nil
}

// Shadow gives h a second link, eth1, at the other end of which other has addr, an IPv4
// address of another host, too: a socket of h that is bound to eth1 reaches other at it,
// and one that is bound to eth0 the host that has it already. So it is with VRFs whose
// addresses overlap, and this needs none.
func (h *Host) Shadow(other *Host, addr netip.Addr) error {
	const mine, its = "169.254.77.1/30", "169.254.77.2/30"
	up := func(addrs ...string) error {
		// What comes from the address comes through two interfaces.
		if err := writeSysctls(map[string]string{"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/eth0/rp_filter": "0", "net/ipv4/conf/eth1/rp_filter": "0"}); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := AddAddress(l, netip.MustParsePrefix(a)); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	err := h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth1"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth1", PeerNamespace: netlink.NsFd(int(other.ns.fd.Fd()))})
	})
	if err != nil {
		return fmt.Errorf("cannot connect host %s to %s: %w", h.Name, other.Name, err)
	}
	if err := other.Do(func() error { return up(its, addr.String()+"/32") }); err != nil {
		return fmt.Errorf("cannot set up the second link of host %s: %w", other.Name, err)
	}
	err = h.Do(func() error {
		if err := up(mine); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			Dst: ipNet(netip.PrefixFrom(addr, 32)), Gw: net.IPv4(169, 254, 77, 2), LinkIndex: l.Attrs().Index,
		})
	})
	if err != nil {
		return fmt.Errorf("cannot set up the second link of host %s: %w", h.Name, err)
	}
	return nil
}

// AddAddress gives link, of the calling thread's namespace, an address that can be used as
// soon as it returns. The kernel answers before an IPv6 address has its local route, which a
// work item adds (net/ipv6/addrconf.c, addrconf_dad_work): what is sent there in those
// milliseconds is lost.
func AddAddress(link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("cannot add address %s: %w", p, err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(p.Addr().AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("address %s has no local route after 10 s (%v)", p, err)
		}
	}
}

// writeSysctls writes files below /proc/sys: /proc/sys/net follows the namespace
// of the calling thread.
func writeSysctls(values map[string]string) error {
	for name, value := range values {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
