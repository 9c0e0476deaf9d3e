package resolver

import (
	"errors"
	"net/netip"
	"strings"
)

// Lengths of RFC 1035, 2.3.4: a label has at most 63 bytes, and a name at most 255 on
// the wire, which is 253 in writing without the last dot.
const (
	maxLabel = 63
	maxName  = 253
)

// Fold is the form of a name in which State and Change have it: lower case, since DNS
// does not tell the cases apart. "a" and "a." stay different, because only the second
// is never searched for.
func Fold(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// checkName says why a folded name is none.
func checkName(name string) error {
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("it is an address, not a name")
	}
	bare := strings.TrimSuffix(name, ".")
	if bare == "" || len(bare) > maxName {
		return errors.New("a host name has 1 to 253 characters")
	}
	for label := range strings.SplitSeq(bare, ".") {
		if label == "" || len(label) > maxLabel {
			return errors.New("each part of a host name between two dots has 1 to 63 characters")
		}
		for _, c := range []byte(label) {
			if c <= ' ' || c >= 0x7f {
				return errors.New("a host name is printable ASCII; write others in their xn-- form")
			}
		}
	}
	return nil
}

// candidate is an absolute name that a name may stand for.
type candidate struct {
	host   string // with its last dot
	listed bool   // made with a search domain
}

// candidates are what a name may stand for, in glibc's order (res_nsearch). What
// would be too long is left out.
func candidates(name string, conf ResolvConf) []candidate {
	if strings.HasSuffix(name, ".") {
		return []candidate{{host: name}}
	}
	dots := strings.Count(name, ".")
	asIs := candidate{host: name + "."}
	first := dots >= conf.Ndots
	var list []candidate
	if first {
		list = append(list, asIs)
	}
	root := false
	for _, domain := range conf.Search {
		if domain == "." {
			// The root as a search domain makes the name as it is, at this place.
			if !first && !root {
				list = append(list, asIs)
			}
			root = true
			continue
		}
		if host := name + "." + domain + "."; len(host) <= maxName+1 {
			list = append(list, candidate{host: host, listed: true})
		}
	}
	if !first && !root && (dots > 0 || len(list) == 0 || !conf.NoTLDQuery) {
		list = append(list, asIs)
	}
	return list
}
