package tcpstate

import (
	"os"
	"strings"
	"testing"
)

func TestParseCounters(t *testing.T) {
	const good = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoAlgorithm RtoMin ActiveOpens PassiveOpens InSegs OutSegs RetransSegs InErrs\nTcp: 1 200 17 3 1001 1002 5 0\nUdp: InDatagrams\nUdp: 9\n"
	got, err := parseCounters([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Counters{ActiveOpens: 17, InSegs: 1001, OutSegs: 1002, RetransSegs: 5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "Tcp:", "Tcp: ActiveOpens\n", good[:strings.Index(good, "Tcp: 1")],
		strings.Replace(good, "1001", "x", 1), strings.Replace(good, "InSegs", "Other", 1), strings.Replace(good, "17", "99999999999999999999", 1)} {
		if c, err := parseCounters([]byte(bad)); err == nil {
			t.Errorf("%q gave %+v", bad, c)
		}
	}
}

func TestCountersOfThisNamespaceMove(t *testing.T) {
	var f CountersFile
	before, err := f.Read("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	pair(t, "tcp4", "127.0.0.1:0")
	after, err := f.Read("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	if after.ActiveOpens <= before.ActiveOpens || after.InSegs <= before.InSegs {
		t.Errorf("a connection was made: before %+v, after %+v", before, after)
	}
}

func FuzzParseCounters(f *testing.F) {
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseCounters(b) })
}

func BenchmarkCounters(b *testing.B) {
	var f CountersFile
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Read("/proc/thread-self/net/snmp"); err != nil {
			b.Fatal(err)
		}
	}
}
