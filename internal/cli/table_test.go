package cli

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

func TestShortTime(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ms", 999 * time.Millisecond: "999ms", 1960 * time.Millisecond: "1.9s", 59 * time.Second: "59s",
		119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 131 * time.Minute: "2h11m", 72 * time.Hour: "3d",
	} {
		if got := shortTime(d); got != want || len(got) > 6 {
			t.Errorf("shortTime(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestCutMiddle(t *testing.T) {
	for _, tt := range []struct {
		s     string
		width int
		want  string
	}{{"short", 5, "short"}, {"a-long-name", 7, "a-l…ame"}, {"größerer-name", 6, "gr…ame"}, {"ab", 1, "…"}} {
		if got := cutMiddle(tt.s, tt.width); got != tt.want {
			t.Errorf("cutMiddle(%q, %d) = %q, want %q", tt.s, tt.width, got, tt.want)
		}
	}
}

func TestFit(t *testing.T) {
	long := strings.Repeat("payments-", 6)
	rows := [][]string{
		{"NAMESPACE", "PROCESS", "WORKLOAD", "LOCAL", "REMOTE", "STATE", "HEARD", "STALLED", "RETRANS", "QUEUES"},
		{"cni-3f2a8c1e-1111-2222-3333-444455556666", "java[12345]", long + "/" + long, "10.244.10.12:54321", "10.96.100.12:6379", "ESTAB", "12s", "11s", "5", "1024/0"},
	}
	fit(rows, 120, []int{0, 1, 2})
	var b bytes.Buffer
	writeTable(&b, rows)
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 120 {
			t.Errorf("%d columns wide: %s", n, line)
		}
	}
	if !strings.Contains(b.String(), "java[12345]") || !strings.Contains(b.String(), "10.96.100.12:6379") {
		t.Errorf("cut what was short enough:\n%s", b.String())
	}
	fit(rows, 10, []int{0, 1, 2}) // no more is possible than to cut these three
	for _, c := range rows[1][:3] {
		if n := utf8.RuneCountInString(c); n > shortest {
			t.Errorf("%q is %d wide", c, n)
		}
	}
}

// TestTableOfHostileNames has a process that calls itself by control characters.
func TestTableOfHostileNames(t *testing.T) {
	c := connection{
		Connection: tcpstate.Connection{
			ID:    tcpstate.ID{Local: netip.MustParseAddrPort("[fd00::1]:1"), Remote: netip.MustParseAddrPort("[fd00::2]:6379")},
			State: tcpstate.Established, Inode: 7,
		},
		namespace: netns.Namespace{Name: "a\nb"},
		owner:     &proc.Owner{Process: proc.Process{PID: 9, Comm: "\x1b[2Jx\n"}, Workload: proc.Workload{Unit: "x\r.service"}, Holders: 3},
	}
	var b bytes.Buffer
	writeConnections(&b, []connection{c})
	if strings.ContainsAny(b.String(), "\x1b\r") || strings.Count(b.String(), "\n") != 2 {
		t.Errorf("it got through: %q", b.String())
	}
	if !strings.Contains(b.String(), "[9]+2") {
		t.Errorf("the other holders are not shown: %s", b.String())
	}
	for want, o := range map[string]*proc.Owner{
		"?": nil, "shop/cart": {PodNamespace: "shop", PodName: "cart", Workload: proc.Workload{PodUID: "u"}},
		"pod u-1": {Workload: proc.Workload{PodUID: "u-1"}}, "container 0123456789ab": {Workload: proc.Workload{ContainerID: "0123456789abcdef"}},
	} {
		c.owner = o
		if got := c.process() + " " + c.workload(); !strings.Contains(got, want) {
			t.Errorf("%+v is shown as %q, want %q", o, got, want)
		}
	}
	c.owner, c.Inode = nil, 0
	if c.process() != "(orphan)" {
		t.Errorf("an orphan is shown as %q", c.process())
	}
}

func TestProblemsAreToldOncePerKind(t *testing.T) {
	var f surveyed
	for range 100 {
		f.problems.add("become root", errors.New("cannot enter x"))
	}
	f.problems.add("", errors.New("one\ntwo"))
	f.problems.add("", errors.New("three"))
	var b bytes.Buffer
	f.tell(&b)
	want := "redisguard: cannot enter x (and 99 more like it); become root\nredisguard: one; two\nredisguard: three\n"
	if b.String() != want {
		t.Errorf("got:\n%swant:\n%s", b.String(), want)
	}
}
