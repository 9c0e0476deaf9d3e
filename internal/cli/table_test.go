package cli

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/show"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

func TestFit(t *testing.T) {
	long := strings.Repeat("payments-", 6)
	rows := [][]string{
		{"NAMESPACE", "PROCESS", "WORKLOAD", "LOCAL", "REMOTE", "STATE", "HEARD", "STALLED", "RETRANS", "QUEUES"},
		{"cni-3f2a8c1e-1111-2222-3333-444455556666", "java[12345]", long + "/" + long, "10.244.10.12:54321", "10.96.100.12:6379", "ESTAB", "12s", "11s", "5", "1024/0"},
	}
	fit(rows, 120, []int{0, 1, 2})
	var b bytes.Buffer
	writeTable(&b, rows, false)
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
	now := time.Now()
	writeConnections(&b, []listed{c.listed(now)}, true)
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
		l := c.listed(now)
		if got := l.process() + " " + show.Workload(l.Process); !strings.Contains(got, want) {
			t.Errorf("%+v is shown as %q, want %q", o, got, want)
		}
	}
	c.owner, c.Inode = nil, 0
	if l := c.listed(now); l.process() != "(orphan)" {
		t.Errorf("an orphan is shown as %q", l.process())
	}
}

// TestHostileDaemon: what the daemon sends is escaped once more. It should be,
// but an event may be about anything.
func TestHostileDaemon(t *testing.T) {
	const evil = "\x1b[2J\r\n"
	p := &v1.Process{PID: 1, Command: evil, PodName: evil, PodNamespace: evil}
	k := &v1.EventConnection{ID: evil, Local: evil, Endpoint: evil, Process: p}
	ev := &v1.Evidence{Rule: evil, Text: evil}
	var b bytes.Buffer
	writeConnections(&b, []listed{{Connection: v1.Connection{ID: evil, Endpoint: evil, Local: evil, Namespace: evil, WhyNot: evil, Process: p}}}, true)
	writeEndpoints(&b, []v1.Endpoint{{Endpoint: evil, Paths: []v1.Path{{Namespace: evil, Finding: evil}}}}, true, time.Now())
	writeFindingsTable(&b, []v1.Finding{{ID: evil, Code: evil, Text: evil, EndedBy: evil, Endpoint: evil, Namespace: evil, Connection: k}}, time.Now())
	writeStatus(&b, &v1.Status{Version: evil, Profile: evil, Cursor: evil, Jobs: []v1.Job{{Name: evil, Why: evil}}, Capabilities: []v1.Capability{{Name: evil, Detail: evil}}})
	b.WriteString(show.Event(&v1.Event{Type: evil, Text: evil, Endpoint: evil, Namespace: evil, Connection: k, Peer: &v1.Peer{Command: evil}}, false))
	show.Story(&b, &v1.Explanation{ID: evil, Kind: evil, Summary: evil, Finding: &v1.Finding{ID: evil}, Story: []v1.Step{{Part: evil, Type: evil, Text: evil, Evidence: ev}}}, false)
	if strings.ContainsAny(b.String(), "\x1b\r") {
		t.Errorf("it got through: %q", b.String())
	}
}

func TestProblemsAreToldOncePerKind(t *testing.T) {
	var f searched
	for range 100 {
		f.problems.add("become root", errors.New("cannot enter x"))
	}
	f.problems.add("", errors.New("one\ntwo"))
	f.problems.add("", errors.New("three"))
	var b bytes.Buffer
	f.print(&b)
	want := "redisguard: cannot enter x (and 99 more like it); become root\nredisguard: one; two\nredisguard: three\n"
	if b.String() != want {
		t.Errorf("got:\n%swant:\n%s", b.String(), want)
	}
}

// TestTargetColumn: it is there only if something stands in it.
func TestTargetColumn(t *testing.T) {
	for _, target := range []string{"", "orders"} {
		var b bytes.Buffer
		writeConnections(&b, []listed{{Connection: v1.Connection{Endpoint: "192.0.2.1:6379", Target: target}}, {Connection: v1.Connection{Endpoint: "192.0.2.2:6379"}}}, true)
		writeEndpoints(&b, []v1.Endpoint{{Endpoint: "192.0.2.1:6379", Target: target, Paths: []v1.Path{{Namespace: "cni-1"}}}, {Endpoint: "192.0.2.2:6379"}}, true, time.Now())
		if n := strings.Count(b.String(), "TARGET"); (target == "") != (n == 0) || n != 2*strings.Count(target, "orders") || strings.Count(b.String(), "orders") != n {
			t.Errorf("with %q:\n%s", target, b.String())
		}
	}
}
