package reply

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/redisguard/redisguard/resp"
)

const (
	// MaxNodes is how many nodes of one reply are kept. The specification of Redis Cluster
	// names 1,000 as the most that is sensible, since each node tells each other of a tenth
	// of all; managed services end at 500. Twice of it leaves room for nodes that have
	// failed and were not yet forgotten.
	MaxNodes = 2000
	// MaxRanges is how many ranges of slots, and slots on the move, one reply may have: one
	// for each slot.
	MaxRanges = Slots
	// maxName is the length of the longest host name in DNS (RFC 1035), in bytes. Master
	// names of Sentinel are held to it as well.
	maxName = 253
	// idLength is that of node ids, run ids and replication ids, in hex digits.
	idLength = 40
)

// Refusal is an error that the server answered with. Code is its first word, such as NOPERM,
// NOAUTH, LOADING or ERR; what to do next depends on it.
type Refusal struct {
	Code string
	Text string
}

func (r *Refusal) Error() string { return fmt.Sprintf("the server answered %q", clip(r.Text)) }

// Told is how an Address was told.
type Told uint8

// The ways. The zero value says nothing.
const (
	// NotTold: nobody knows, or what was said is no address that can be dialled.
	NotTold Told = iota
	// Given: by an IP address or a name.
	Given
	// AsDialled: the address at which the node was asked, with the Port given.
	AsDialled
)

// Address is where a node is said to be. With Given, either IP or Name is set.
type Address struct {
	Told Told
	IP   netip.Addr
	Name string
	Port uint16
}

// AddrPort is the address if it needs no look-up, else the zero value. dialled is where the
// node that said so was asked.
func (a Address) AddrPort(dialled netip.Addr) netip.AddrPort {
	switch {
	case a.Port == 0:
	case a.Told == AsDialled && dialled.IsValid():
		return netip.AddrPortFrom(dialled, a.Port)
	case a.Told == Given && a.IP.IsValid():
		return netip.AddrPortFrom(a.IP, a.Port)
	}
	return netip.AddrPort{}
}

// host reads an IP address or a host name; empty is where the node was asked.
func host(s string, port uint16) (Address, error) {
	a := Address{Told: Given, Port: port}
	switch s {
	case "":
		a.Told = AsDialled
		return a, nil
	case "?":
		return Address{Port: port}, nil
	}
	if ip, err := netip.ParseAddr(s); err == nil {
		// A zone is the name of an interface on another host, and an unspecified or multicast
		// address leads nowhere.
		if a.IP = ip.Unmap(); ip.Zone() != "" || a.IP.IsUnspecified() || a.IP.IsMulticast() {
			return Address{Port: port}, nil
		}
		return a, nil
	}
	if !isName(s) {
		return Address{}, fmt.Errorf("%q is neither an address nor a host name", clip(s))
	}
	a.Name = strings.ToLower(strings.TrimSuffix(s, "."))
	return a, nil
}

// isName accepts host names, with the underscore that container platforms use. One that ends
// in a number is none: C libraries take "1" or "10.1" for addresses.
func isName(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' || s[0] == '.' {
		return false
	}
	s = strings.TrimSuffix(s, ".")
	if last := s[strings.LastIndexByte(s, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return false
	}
	for _, c := range []byte(s) {
		if !isLetter(c) && !isDigit(c) && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

// isID accepts 40 hex digits.
func isID(s string) bool {
	if len(s) != idLength {
		return false
	}
	for _, c := range []byte(s) {
		if !isDigit(c) && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// isWord accepts what may be kept of a name that somebody chose: printable ASCII, no space.
func isWord(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// word is s if it may be kept, else nothing.
func word(s string) string {
	if isWord(s) {
		return s
	}
	return ""
}

// id is s if it is an id, else nothing. Forty zeros are how Redis says that there is none.
func id(s string) string {
	if isID(s) && strings.Trim(s, "0") != "" {
		return s
	}
	return ""
}

func port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is no port", clip(s))
	}
	return uint16(n), nil
}

// cannot is the error of a whole reply.
func cannot(what string, err error) error { return fmt.Errorf("cannot read %s: %w", what, err) }

// refused tells an error of the server from a reply.
func refused(v resp.Value) error {
	if !v.IsError() {
		return nil
	}
	code, _, _ := strings.Cut(v.Str, " ")
	return &Refusal{Code: clip(code), Text: clip(v.Str)}
}

// text is the text of a string.
func text(v resp.Value) (string, error) {
	if err := refused(v); err != nil {
		return "", err
	}
	s, ok := v.Text()
	if !ok {
		return "", fmt.Errorf("%v where a string should be", v.Kind)
	}
	return s, nil
}

// list is the elements of an array.
func list(v resp.Value) ([]resp.Value, error) {
	if err := refused(v); err != nil {
		return nil, err
	}
	if v.Kind != resp.Array && v.Kind != resp.Set {
		return nil, fmt.Errorf("%v where an array should be", v.Kind)
	}
	return v.Elems, nil
}

// pairs is the keys and values of a map, in turn: of RESP2's flat array as well.
func pairs(v resp.Value) ([]resp.Value, error) {
	if v.Kind == resp.Map {
		return v.Elems, nil
	}
	elems, err := list(v)
	if err == nil && len(elems)%2 != 0 {
		err = errors.New("a key without a value")
	}
	return elems, err
}

// number is an Integer, or digits in a string.
func number(v resp.Value) (int64, error) {
	if v.Kind == resp.Integer {
		return v.Int, nil
	}
	s, err := text(v)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", clip(s))
	}
	return n, nil
}

// portOf is number as a port.
func portOf(v resp.Value) (uint16, error) {
	n, err := number(v)
	if err == nil && (n < 0 || n > 65535) {
		err = fmt.Errorf("%d is no port", n)
	}
	return uint16(n), err
}

// lines calls do with each "name:value" of a bulk text, as INFO has them.
func lines(s string, do func(name, value string) error) error {
	for line := range strings.Lines(s) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if err := do(name, value); err != nil {
			return fmt.Errorf("%s: %w", clip(name), err)
		}
	}
	return nil
}

// clip shortens what is quoted in an error: some 100 bytes are enough to recognise it.
func clip(s string) string { return s[:min(len(s), 100)] }
