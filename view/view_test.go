package view

import "testing"

func FuzzParseConnID(f *testing.F) {
	for _, s := range []string{"", "1-f", "4026531840-1f", "0-1", "1-0", "1-F", "01-1", "-", "18446744073709551616-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseConnID(s); err == nil && (ConnID(k) != s || k.NS == 0 || k.Cookie == 0) {
			t.Errorf("%q was read as %v", s, k)
		}
	})
}
