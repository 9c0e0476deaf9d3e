package show

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ms", 999 * time.Millisecond: "999ms", 1960 * time.Millisecond: "1.9s", 59 * time.Second: "59s",
		119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 131 * time.Minute: "2h11m", 72 * time.Hour: "3d",
	} {
		if got := Age(d); got != want || len(got) > 6 {
			t.Errorf("Age(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		s           string
		width       int
		middle, end string
	}{
		{"short", 5, "short", "short"},
		{"a-long-name", 7, "a-l…ame", "a-long…"},
		{"größerer-name", 6, "gr…ame", "größe…"},
		{"ab", 1, "…", "…"},
	} {
		if got := CutMiddle(tt.s, tt.width); got != tt.middle {
			t.Errorf("CutMiddle(%q, %d) = %q, want %q", tt.s, tt.width, got, tt.middle)
		}
		if got := CutEnd(tt.s, tt.width); got != tt.end {
			t.Errorf("CutEnd(%q, %d) = %q, want %q", tt.s, tt.width, got, tt.end)
		}
	}
}

func TestPlain(t *testing.T) {
	for s, want := range map[string]string{
		"java[7]": "java[7]", `a\x1bb`: `a\x1bb`, "größe": "größe",
		"\x1b[2J": `\u001b[2J`, "a\nb\r": `a\u000ab\u000d`, "\xff": `\xff`, "\u202e": `\u202e`, "\uFFFD": `\ufffd`,
	} {
		if got := Plain(s); got != want {
			t.Errorf("Plain(%q) = %q, want %q", s, got, want)
		}
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("a\x1b\xff\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		got := Plain(s)
		if !utf8.ValidString(got) || strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Errorf("Plain(%q) = %q", s, got)
		}
		if again := Plain(got); again != got {
			t.Errorf("Plain(%q) = %q, and once more %q", s, got, again)
		}
	})
}
