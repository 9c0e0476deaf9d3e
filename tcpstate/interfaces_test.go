package tcpstate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	someIGMP = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n" +
		"1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n" +
		"4\teth0      :     2      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n" +
		"17\tvrf-red   :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
	someIfInet6 = "00000000000000000000000000000001 01 80 10 80       lo\n" +
		"fd000000000000000000000000000002 04 40 00 82     eth0\n" +
		"fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n" +
		"fe8000000000000000fc00fffe000001 1f 40 20 80     eth1\n"
)

func TestParseInterfaces(t *testing.T) {
	if got := parseIGMP([]uint32{9}, []byte(someIGMP)); !slices.Equal(got, []uint32{9, 4, 17}) {
		t.Errorf("all interfaces: %v", got)
	}
	var many strings.Builder
	for i := range maxCandidates + 1 {
		if i == maxCandidates {
			if got := parseIGMP(nil, []byte(many.String())); len(got) != maxCandidates {
				t.Errorf("%d interfaces: %v", i, got)
			}
		}
		fmt.Fprintf(&many, "%d\tveth%d :     1      V3\n", i+2, i)
	}
	if got := parseIGMP([]uint32{9}, []byte(many.String())); !slices.Equal(got, []uint32{9}) {
		t.Errorf("too many interfaces: %v", got)
	}
	for addr, want := range map[string][]uint32{"fe80::fc:ff:fe00:1": {4, 31}, "fd00::2": {4}, "fe80::2": nil} {
		if got := parseIfInet6(nil, []byte(someIfInet6), netip.MustParseAddr(addr)); !slices.Equal(got, want) {
			t.Errorf("interfaces of %s: %v, want %v", addr, got, want)
		}
	}
}

func FuzzParseInterfaces(f *testing.F) {
	f.Add([]byte(someIGMP))
	f.Add([]byte(someIfInet6))
	f.Add([]byte("fe800000000000000000000000000001"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, list := range [][]uint32{parseIGMP(nil, b), parseIfInet6(nil, b, netip.MustParseAddr("fe80::1"))} {
			if len(list) > maxCandidates || slices.Contains(list, 0) {
				t.Errorf("%v", list)
			}
		}
	})
}
