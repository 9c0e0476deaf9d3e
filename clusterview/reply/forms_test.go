package reply_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

func bulk(s string) resp.Value         { return resp.Value{Kind: resp.Bulk, Str: s} }
func num(n int64) resp.Value           { return resp.Value{Kind: resp.Integer, Int: n} }
func arr(v ...resp.Value) resp.Value   { return resp.Value{Kind: resp.Array, Elems: v} }
func asMap(v ...resp.Value) resp.Value { return resp.Value{Kind: resp.Map, Elems: v} }

var null = resp.Value{Kind: resp.Null}

func nodeID(c string) string { return strings.Repeat(c, 40) }

// TestNodeForms has a line of CLUSTER NODES for each form of an address.
func TestNodeForms(t *testing.T) {
	dialled := netip.MustParseAddr("10.9.9.9")
	for _, tt := range []struct {
		address, flags string
		want           string // AddrPort
		name           string
		tls, plain     uint16
	}{
		{"10.0.0.1:6379", "master", "10.0.0.1:6379", "", 0, 0},        // 3.x had no bus port
		{"10.0.0.1:6379@16379", "master", "10.0.0.1:6379", "", 0, 0},  // 4.0 to 6.2
		{"10.0.0.1:6379@16379,", "master", "10.0.0.1:6379", "", 0, 0}, // 7.0, an empty name
		{"10.0.0.1:6379@16379,Db-1.example", "master", "10.0.0.1:6379", "db-1.example", 0, 0},
		{"10.0.0.1:6379@16379,,tls-port=6380,shard-id=" + nodeID("e"), "master", "10.0.0.1:6379", "", 6380, 0},
		{"10.0.0.1:6380@16379,db,tcp-port=6379,nodename=x,later=1", "master", "10.0.0.1:6380", "db", 0, 6379},
		{"10.0.0.1:6379@16379,shard-id=" + nodeID("e"), "master", "10.0.0.1:6379", "", 0, 0},
		{"2001:db8::7:6379@16379", "master", "[2001:db8::7]:6379", "", 0, 0},
		{"::ffff:10.0.0.1:6379@16379", "master", "10.0.0.1:6379", "", 0, 0},
		{":6379@16379", "myself,master", "10.9.9.9:6379", "", 0, 0}, // where it was asked
		{":6379@16379", "master", "invalid AddrPort", "", 0, 0},     // of another, that is nowhere
		{":0@0", "master,noaddr", "invalid AddrPort", "", 0, 0},
		{"10.0.0.1:6379@16379", "slave,noaddr,fail", "invalid AddrPort", "", 0, 0},
		{"10.0.0.1:0@16379", "handshake", "invalid AddrPort", "", 0, 0},
		{"0.0.0.0:6379@16379", "master", "invalid AddrPort", "", 0, 0},
		{"fe80::1%eth0:6379@16379", "master", "invalid AddrPort", "", 0, 0},
		{"redis-0.redis:6379@16379", "master", "invalid AddrPort", "", 0, 0},
	} {
		line := fmt.Sprintf("%s %s %s - 0 0 7 connected 0-5 7\n", nodeID("a"), tt.address, tt.flags)
		got, err := reply.ParseNodes(bulk(line))
		if err != nil {
			t.Errorf("%s: %v", tt.address, err)
			continue
		}
		n := got.Nodes[0]
		if s := n.Address.AddrPort(dialled).String(); s != tt.want || n.Name != tt.name || n.TLSPort != tt.tls || n.PlainPort != tt.plain || len(n.Slots) != 2 {
			t.Errorf("%s: %s, %+v", tt.address, s, n)
		}
		if strings.Contains(tt.address, "shard-id") != (n.Shard == nodeID("e")) {
			t.Errorf("%s: shard %q", tt.address, n.Shard)
		}
	}
}

// TestNodesRefused: what is not understood is no view at all, not a shorter one.
func TestNodesRefused(t *testing.T) {
	good := nodeID("a") + " 10.0.0.1:6379@16379 master - 0 0 7 connected"
	for _, text := range []string{
		"", "\n", good + "\nshort line", strings.Replace(good, "a", "z", 1), good + "\n" + good, good + " 5-3", good + " 16384", good + " [1->-x]",
		strings.Replace(good, "10.0.0.1", "a b", 1), strings.Replace(good, "6379", "66666", 1), strings.Replace(good, " 7 ", " -7 ", 1),
		strings.Replace(good, "10.0.0.1", "\x1b[2J", 1), good + strings.Repeat(" 1", 2*reply.MaxRanges+1),
	} {
		if got, err := reply.ParseNodes(bulk(text)); err == nil {
			t.Errorf("%.80q is taken for %+v", text, got)
		}
	}
	_, err := reply.ParseNodes(resp.Value{Kind: resp.Error, Str: "NOPERM this user has no permissions"})
	if r, ok := errors.AsType[*reply.Refusal](err); !ok || r.Code != "NOPERM" {
		t.Errorf("%v is no refusal", err)
	}
}

// TestTooManyNodes: what exceeds is counted.
func TestTooManyNodes(t *testing.T) {
	var b strings.Builder
	for i := range reply.MaxNodes + 5 {
		fmt.Fprintf(&b, "%040x 10.0.0.1:6379@16379 master - 0 0 7 connected\n", i+1)
	}
	got, err := reply.ParseNodes(bulk(b.String()))
	if err != nil || len(got.Nodes) != reply.MaxNodes || got.Dropped != 5 {
		t.Errorf("%d nodes, %d dropped, %v", len(got.Nodes), got.Dropped, err)
	}
}

// TestSlotForms has a node of CLUSTER SLOTS for each form.
func TestSlotForms(t *testing.T) {
	id := bulk(nodeID("a"))
	for _, tt := range []struct {
		why  string
		node resp.Value
		want reply.Address // preferred
		ip   reply.Address
		name string
	}{
		{"3.0, without an id", arr(bulk("10.0.0.1"), num(6379)), addr("10.0.0.1:6379"), addr("10.0.0.1:6379"), ""},
		{"6.2", arr(bulk("10.0.0.1"), num(6379), id), addr("10.0.0.1:6379"), addr("10.0.0.1:6379"), ""},
		{"6.2, a node that does not know its own address", arr(bulk(""), num(6379), id), reply.Address{Told: reply.AsDialled, Port: 6379}, reply.Address{Port: 6379}, ""},
		{"7.0", arr(bulk("10.0.0.1"), num(6379), id, arr()), addr("10.0.0.1:6379"), addr("10.0.0.1:6379"), ""},
		{"7.0, names preferred", arr(bulk("db-1.example"), num(6379), id, arr(bulk("ip"), bulk("10.0.0.1"))),
			reply.Address{Told: reply.Given, Name: "db-1.example", Port: 6379}, addr("10.0.0.1:6379"), "db-1.example"},
		{"7.0 in RESP3, names known", arr(bulk("10.0.0.1"), num(6379), id, asMap(bulk("hostname"), bulk("DB-1.example"))), addr("10.0.0.1:6379"), addr("10.0.0.1:6379"), "db-1.example"},
		{"7.0, names preferred and unknown", arr(bulk("?"), num(6379), id, arr(bulk("ip"), bulk("10.0.0.1"))), reply.Address{Port: 6379}, addr("10.0.0.1:6379"), ""},
		{"7.0, unknown endpoints preferred", arr(null, num(6379), id, arr(bulk("ip"), bulk("10.0.0.1"))), reply.Address{Told: reply.AsDialled, Port: 6379}, addr("10.0.0.1:6379"), ""},
		{"later, with more", arr(bulk("10.0.0.1"), num(6379), id, asMap(bulk("availability-zone"), bulk("z"), bulk("x"), arr()), bulk("more")), addr("10.0.0.1:6379"), addr("10.0.0.1:6379"), ""},
	} {
		got, err := reply.ParseSlots(arr(arr(num(0), num(5), tt.node)))
		if err != nil {
			t.Errorf("%s: %v", tt.why, err)
			continue
		}
		if n := got[0].Nodes[0]; n.Preferred != tt.want || n.IP != tt.ip || n.Name != tt.name {
			t.Errorf("%s: %+v", tt.why, n)
		}
	}
	for _, v := range []resp.Value{null, num(1), arr(num(1)), arr(arr()), arr(arr(num(5), num(3))), arr(arr(num(0), num(16384))), arr(arr(num(0), num(1), arr(bulk("x")))),
		arr(arr(num(0), num(1), arr(bulk("10.0.0.1"), num(70000)))), arr(arr(num(0), num(1), arr(bulk("10.0.0.1"), num(1), bulk("id"))))} {
		if got, err := reply.ParseSlots(v); err == nil {
			t.Errorf("%v is taken for %+v", v, got)
		}
	}
}

// TestShardForms has what servers say of nodes that are not well, and of TLS.
func TestShardForms(t *testing.T) {
	node := func(more ...resp.Value) resp.Value {
		return arr(append([]resp.Value{bulk("id"), bulk(nodeID("a")), bulk("port"), num(6379), bulk("tls-port"), num(6380), bulk("role"), bulk("master")}, more...)...)
	}
	for _, tt := range []struct {
		why    string
		node   resp.Value
		tls    bool
		want   reply.Address
		ip     reply.Address
		health reply.Health
	}{
		{"7.0", node(bulk("ip"), bulk("10.0.0.1"), bulk("endpoint"), bulk("10.0.0.1"), bulk("health"), bulk("online")), false, addr("10.0.0.1:6379"), addr("10.0.0.1:6379"), reply.Online},
		{"TLS", node(bulk("ip"), bulk("10.0.0.1"), bulk("endpoint"), bulk("10.0.0.1"), bulk("health"), bulk("loading")), true, addr("10.0.0.1:6380"), addr("10.0.0.1:6380"), reply.Loading},
		{"failed, no endpoint", node(bulk("ip"), bulk(""), bulk("endpoint"), null, bulk("health"), bulk("fail")), false, reply.Address{Told: reply.AsDialled, Port: 6379}, reply.Address{}, reply.Failed},
		{"failed, ?", node(bulk("endpoint"), bulk("?"), bulk("health"), bulk("failed")), false, reply.Address{Port: 6379}, reply.Address{}, reply.Failed},
		{"failed, empty", node(bulk("endpoint"), bulk(""), bulk("health"), bulk("failed")), false, reply.Address{Told: reply.AsDialled, Port: 6379}, reply.Address{}, reply.Failed},
		{"a health of later", node(bulk("endpoint"), bulk("10.0.0.1"), bulk("health"), bulk("tired"), bulk("availability-zone"), bulk("")), false, addr("10.0.0.1:6379"), reply.Address{}, ""},
	} {
		got, err := reply.ParseShards(arr(asMap(bulk("slots"), arr(num(0), num(9)), bulk("nodes"), arr(tt.node), bulk("id"), bulk("x"))), tt.tls)
		if err != nil {
			t.Errorf("%s: %v", tt.why, err)
			continue
		}
		if n := got.Shards[0].Nodes[0]; n.Preferred != tt.want || n.IP != tt.ip || n.Health != tt.health || !n.Primary {
			t.Errorf("%s: %+v", tt.why, n)
		}
	}
}

// TestInfoForms has what forks and old servers say.
func TestInfoForms(t *testing.T) {
	for _, tt := range []struct {
		text string
		want reply.Info
	}{
		{"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.0.1\r\nserver_mode:cluster\r\nrun_id:" + nodeID("a") + "\r\n",
			reply.Info{Name: "valkey", Version: "9.0.1", Mode: reply.ModeCluster, RunID: nodeID("a"), Clients: -1}},
		{"role:slave\r\nmaster_host:db.example\r\nmaster_port:6379\r\nmaster_link_status:down\r\nloading:1\r\nmaster_replid2:" + nodeID("0") + "\r\n",
			reply.Info{Role: reply.RoleReplica, Primary: reply.Address{Told: reply.Given, Name: "db.example", Port: 6379}, Loading: true, Clients: -1}},
		{"role:master\nmaster_replid:" + nodeID("b") + "\nmaster_replid2:" + nodeID("c") + "\nconnected_clients:17\n",
			reply.Info{Role: reply.RolePrimary, ReplID: nodeID("b"), ReplID2: nodeID("c"), Clients: 17}},
		{"redis_mode:sentinel\r\nsentinel_tilt:1\r\n", reply.Info{Mode: reply.ModeSentinel, Role: reply.RoleSentinel, Tilt: true, Clients: -1}},
		{"", reply.Info{Clients: -1}},
	} {
		if got, err := reply.ParseInfo(bulk(tt.text)); err != nil || got != tt.want {
			t.Errorf("%q: %+v, %v", tt.text, got, err)
		}
	}
	if _, err := reply.ParseInfo(bulk("connected_clients:-4\r\n")); err == nil {
		t.Error("a negative number of clients is taken")
	}
}

// TestSlot has the examples of the specification of Redis Cluster.
func TestSlot(t *testing.T) {
	for key, want := range map[string]uint16{"123456789": 0x31c3, "": 0, "foo": 12182, "{foo}bar": 12182, "x{foo}{bar}": 12182, "foo{}": reply.Slot("foo{}")} {
		if got := reply.Slot(key); got != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	}
	if reply.Slot("{}{a}") == reply.Slot("a") || reply.Slot("{a") == reply.Slot("a") {
		t.Error("an empty tag, or one without an end, counts as a tag")
	}
}

// TestMigrationForms has what the recorded lists do not: Redis 8.4, by its reply schema, states of
// later, and lists that are not believed.
func TestMigrationForms(t *testing.T) {
	redis := func(operation, state, slots string) resp.Value {
		return asMap(bulk("id"), bulk(nodeID("e")), bulk("slots"), bulk(slots), bulk("source"), bulk(nodeID("a")), bulk("dest"), bulk(nodeID("b")),
			bulk("operation"), bulk(operation), bulk("state"), bulk(state), bulk("last_error"), bulk(""), bulk("retries"), num(0), bulk("write_pause_ms"), num(0))
	}
	got, err := reply.ParseMigrations(arr(redis("import", "completed", "0-9"), redis("migrate", "tired", "7 9-10"), redis("import", "canceled", "x"), redis("migrate", "failed", "")))
	want := []reply.Migration{{Slots: []reply.SlotRange{{First: 7, Last: 7}, {First: 9, Last: 10}}, Source: nodeID("a"), Target: nodeID("b")}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, v := range []resp.Value{null, num(1), arr(num(1)), arr(arr(bulk("state"))), arr(arr()), arr(redis("import", "", "0")), arr(redis("", "failed", "0")),
		arr(redis("import", "x", "5-3")), arr(redis("import", "x", "16384")), arr(redis("import", "x", strings.Repeat("1 ", reply.MaxRanges+1))),
		arr(redis("import", "x", strings.Repeat("1 ", reply.MaxRanges)), redis("import", "x", "1"))} {
		if got, err := reply.ParseMigrations(v); err == nil {
			t.Errorf("%v is taken for %+v", v.Kind, got)
		}
	}
	_, err = reply.ParseMigrations(resp.Value{Kind: resp.Error, Str: "ERR unknown subcommand 'GETSLOTMIGRATIONS'. Try CLUSTER HELP."})
	if r, ok := errors.AsType[*reply.Refusal](err); !ok || r.Code != "ERR" {
		t.Errorf("%v is no refusal", err)
	}
}
