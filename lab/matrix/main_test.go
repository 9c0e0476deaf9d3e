package main

import (
	"strings"
	"testing"
)

// TestPage: the page says what the tests did, and neither passes over a test that did not run nor
// over a server that was not to be had.
func TestPage(t *testing.T) {
	old := &server{name: "redis-6.2", from: "pypi", results: map[string]string{}, attrs: map[string]string{}}
	now := &server{name: "valkey-9.1", from: "sid", results: map[string]string{}, attrs: map[string]string{}}
	for s, events := range map[*server]string{
		old: `{"Action":"attr","Test":"TestCapabilities","Key":"server","Value":"Redis 6.2.14"}
{"Action":"attr","Test":"TestCapabilities","Key":"CLUSTER|SHARDS","Value":"no"}
{"Action":"attr","Test":"TestDocumentedACL/nodes","Key":"rights","Value":"as documented"}
{"Action":"attr","Test":"TestCapabilities","Key":"ROLE","Value":"yes"}
{"Action":"pass","Test":"TestSentinelDeployment"}
{"Action":"pass"}
`,
		now: `{"Action":"output","Test":"TestSentinelDeployment","Output":"why\n"}
{"Action":"fail","Test":"TestSentinelDeployment"}
{"Action":"attr","Test":"TestCapabilities","Key":"ROLE","Value":"yes"}
{"Action":"attr","Test":"TestCapabilities","Key":"CLUSTER|SHARDS","Value":"yes"}
{"Action":"attr","Test":"TestDocumentedACL/nodes","Key":"rights","Value":"+cluster|x in addition"}
`,
	} {
		if err := s.read(strings.NewReader(events)); err != nil {
			t.Fatal(err)
		}
	}
	got := string(page([]*server{old, now}, []string{"redis-8.0"}))
	for _, want := range []string{
		"Not to be had when this was written: redis-8.0.",
		"| | Redis 6.2.14 | valkey-9.1 |",
		"| Sentinel: a planned failover, a power-cut | passed | **failed** |",
		"| a virtual address that moves; replicas behind one | **did not run** | **did not run** |",
		"| `ROLE` | yes | yes |",
		"| as documented | `+cluster\\|x` in addition |",
		"- `CLUSTER SHARDS`: no with Redis 6.2.14; yes with valkey-9.1.",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it has no %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "- `ROLE`") {
		t.Errorf("what is alike differs:\n%s", got)
	}
	if err := old.read(strings.NewReader("FAIL\n")); err == nil {
		t.Error("what is no event is read")
	}
}
