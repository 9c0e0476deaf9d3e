package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule is one nftables rule: the expressions that match and the verdict.
type rule []expr.Any

// fault is what one fault adds to the router's rules.
type fault struct {
	arriving []rule // before address translation: destinations as clients know them
	passing  []rule // between: the real addresses
	leaving  []rule // after translation back: sources as clients know them
}

// ruleset is the router's nftables table. Every change writes all of it in one
// transaction; the table holds nothing but rules, so there is no state to lose.
// Translated connections live on in conntrack, whatever the rules say later.
type ruleset struct {
	router *namespace

	mu     sync.Mutex
	faults []*fault
	vips   []*VIP
	bursts []*bursts // all ever started
	closed bool
}

func newRuleset() *ruleset { return &ruleset{} }

func (r *ruleset) start(router *namespace) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.router = router
	return r.apply()
}

// close stops the burst goroutines; the rules go with the router.
func (r *ruleset) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, b := range r.bursts {
		b.cancel()
	}
}

// add puts a fault in place. undo takes it away, once.
func (r *ruleset) add(f *fault) (undo func() error, err error) {
	if err := r.set(f, true); err != nil {
		return nil, err
	}
	return func() error { return r.set(f, false) }, nil
}

// set makes a fault present or absent.
func (r *ruleset) set(f *fault, present bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.faults, f)
	if (i >= 0) == present || (r.closed && !present) {
		return nil
	}
	if r.closed {
		return errClosed
	}
	before := r.faults
	if present {
		r.faults = append(slices.Clone(before), f)
	} else {
		r.faults = slices.Delete(slices.Clone(before), i, i+1)
	}
	if err := r.apply(); err != nil {
		r.faults = before
		return err
	}
	return nil
}

var errClosed = errors.New("the lab is closed")

// apply writes the table. It must be called with mu held.
func (r *ruleset) apply() error {
	err := r.router.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		r.write(c)
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("cannot set the router's rules: %w", err)
	}
	return nil
}

func (r *ruleset) write(c *nftables.Conn) {
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "redisguard_lab"})
	// Rules only: deleting chains would drop the translation of live connections.
	c.FlushTable(table)
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, rules []rule) {
		ch := c.AddChain(&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: prio})
		for _, rule := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: rule})
		}
	}
	var arriving, passing, leaving, translated []rule
	for _, f := range r.faults {
		arriving = append(arriving, f.arriving...)
		passing = append(passing, f.passing...)
		leaving = append(leaving, f.leaving...)
	}
	for _, v := range r.vips {
		if v.backend.IsValid() {
			translated = append(translated, translate(v.Addr, v.backend))
		}
	}
	chain("arriving", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, arriving)
	if len(r.vips) > 0 { // before, nothing needs connection tracking
		translated = append(translated, track())
		chain("translated", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, translated)
	}
	chain("passing", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, passing)
	chain("leaving", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityRef(300), leaving)
	chain("own", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, silence())
}

// silence keeps the router from telling a client that a host behind it does not
// answer to ARP or neighbour discovery: the faults called silent are.
func silence() []rule {
	quiet := func(protocol, kind, code byte) rule {
		return concat(
			rule{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol})},
			header(expr.PayloadBaseTransportHeader, 0, []byte{kind, code}),
			drop(),
		)
	}
	return []rule{
		quiet(unix.IPPROTO_ICMP, 3, 1),   // destination unreachable: host
		quiet(unix.IPPROTO_ICMPV6, 1, 3), // destination unreachable: address
	}
}

func concat(parts ...rule) rule { return slices.Concat(parts...) }

func drop() rule { return rule{&expr.Verdict{Kind: expr.VerdictDrop}} }

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// header matches bytes of a packet's header.
func header(base expr.PayloadBase, offset uint32, data []byte) rule {
	return rule{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))}, equal(data)}
}

func bigEndian(port uint16) []byte { return binary.BigEndian.AppendUint16(nil, port) }

// tcp matches TCP packets to dst, and from src unless that is the zero value. A
// port of 0 matches any.
func tcp(src, dst netip.AddrPort) rule {
	family, srcAt, dstAt := byte(unix.NFPROTO_IPV4), uint32(12), uint32(16)
	if dst.Addr().Is6() {
		family, srcAt, dstAt = unix.NFPROTO_IPV6, 8, 24
	}
	m := rule{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{family}),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP}),
	}
	if src.Addr().IsValid() {
		m = concat(m, header(expr.PayloadBaseNetworkHeader, srcAt, src.Addr().AsSlice()))
	}
	m = concat(m, header(expr.PayloadBaseNetworkHeader, dstAt, dst.Addr().AsSlice()))
	if src.Port() != 0 {
		m = concat(m, header(expr.PayloadBaseTransportHeader, 0, bigEndian(src.Port())))
	}
	if dst.Port() != 0 {
		m = concat(m, header(expr.PayloadBaseTransportHeader, 2, bigEndian(dst.Port())))
	}
	return m
}

// resetSYN answers a first SYN with a reset. Only a SYN: a reset for anything
// else would also swallow the packets that end a connection.
func resetSYN() rule { return concat(firstSYN(), rule{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}) }

// firstSYN matches connection requests.
func firstSYN() rule {
	const syn, ack = 0x02, 0x10
	return rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		equal([]byte{syn}),
	}
}

// unreachable drops packets and answers that their host is unreachable.
func unreachable() rule {
	return rule{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH}}
}

// share matches a random share of packets.
func share(permille int) rule {
	return rule{
		&expr.Numgen{Register: 1, Modulus: 1000, Type: unix.NFT_NG_RANDOM},
		// Registers are compared as bytes, so the number must stand in network order.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, uint32(permille))},
	}
}

// track decides nothing, but as it looks at a connection's state, the kernel keeps
// connection tracking on. Without it, taking the last rule that translates away
// would leave live connections untranslated: the chain alone does not count.
func track() rule { return rule{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}} }

// translate leads new connections to vip to backend, of the same family.
func translate(vip, backend netip.AddrPort) rule {
	family := uint32(unix.NFPROTO_IPV4)
	if vip.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return concat(tcp(netip.AddrPort{}, vip), rule{
		&expr.Immediate{Register: 1, Data: backend.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: bigEndian(backend.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	})
}
