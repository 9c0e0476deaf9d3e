package reply_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

// recorded reads the values of a file of testdata.
func recorded(t *testing.T, server, file string) []resp.Value {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", server, file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []resp.Value
	for r := resp.NewReader(f, resp.Limits{}); ; {
		v, err := r.Read()
		if err != nil {
			return all
		}
		all = append(all, v)
	}
}

func addr(s string) reply.Address {
	a := netip.MustParseAddrPort(s)
	return reply.Address{Told: reply.Given, IP: a.Addr(), Port: a.Port()}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestRecorded reads each reply of each server in the form of RESP2 and of RESP3. The servers are
// set up alike, see testdata/README.md.
func TestRecorded(t *testing.T) {
	for _, tt := range []struct {
		server, name, version string
		before70              bool // no host names, no CLUSTER SHARDS
	}{
		{"redis-6.2.14", "redis", "6.2.14", true},
		{"redis-7.0.15", "redis", "7.0.15", false},
		{"redis-8.0.2", "redis", "8.0.2", false},
		{"valkey-9.1.2", "valkey", "9.1.2", false},
	} {
		t.Run(tt.server, func(t *testing.T) {
			for _, form := range []string{"", "3"} {
				testRecorded(t, tt.server, tt.name, tt.version, form, tt.before70)
			}
		})
	}
}

func testRecorded(t *testing.T, server, name, version, form string, before70 bool) {
	one := func(file string) resp.Value { t.Helper(); return recorded(t, server, file+form)[0] }

	nodes := must[reply.Nodes](t)(reply.ParseNodes(one("cluster-nodes")))
	by := map[string]reply.Node{}
	at := map[uint16]string{}
	for _, n := range nodes.Nodes {
		by[n.ID] = n
		at[n.Address.Port] = n.ID
	}
	a, b, c, replica := at[27101], at[27102], at[27103], at[27104]
	hostName := "node-b.example.net"
	if before70 {
		hostName = ""
	}
	if len(by) != 4 || !by[a].Flags.Has(reply.Myself|reply.Primary) || by[replica].PrimaryID != a || !by[replica].Flags.Has(reply.Replica) ||
		by[b].Name != hostName || by[b].Address != addr("127.0.0.1:27102") || by[c].Epoch != 3 || by[c].Bus != 37103 || !by[c].Linked {
		t.Errorf("nodes%s: %+v", form, nodes)
	}
	if m := by[a].Moves; len(m) != 1 || m[0] != (reply.Move{Slots: reply.SlotRange{First: 100, Last: 100}, Node: b}) {
		t.Errorf("moves of the first: %v", m)
	}
	if s := by[b].Slots; len(s) != 1 || s[0] != (reply.SlotRange{First: 5461, Last: 10922}) {
		t.Errorf("slots of the second: %v", s)
	}

	slots := must[[]reply.ServedSlots](t)(reply.ParseSlots(one("cluster-slots")))
	if len(slots) != 3 || len(slots[0].Nodes) != 2 || slots[0].Nodes[1].ID != replica || slots[1].Nodes[0].Name != hostName ||
		slots[1].Nodes[0].Preferred != addr("127.0.0.1:27102") {
		t.Errorf("slots%s: %+v", form, slots)
	}

	if !before70 {
		shards := must[reply.Shards](t)(reply.ParseShards(one("cluster-shards"), false))
		found := 0
		for _, s := range shards.Shards {
			for _, n := range s.Nodes {
				if n.Health == reply.Online && n.Primary == (n.ID != replica) && n.Preferred.AddrPort(netip.Addr{}).IsValid() && len(s.Slots) == 1 {
					found++
				}
			}
		}
		if found != 4 {
			t.Errorf("shards%s: %+v", form, shards)
		}
	}

	info := must[reply.ClusterInfo](t)(reply.ParseClusterInfo(one("cluster-info")))
	if !info.OK || info.Assigned != reply.Slots || info.Size != 3 || info.KnownNodes != 4 || info.CurrentEpoch != 3 {
		t.Errorf("info%s: %+v", form, info)
	}

	primary := must[reply.RoleReply](t)(reply.ParseRole(one("role-master")))
	follower := must[reply.RoleReply](t)(reply.ParseRole(one("role-slave")))
	watcher := must[reply.RoleReply](t)(reply.ParseRole(one("role-sentinel")))
	if primary.Role != reply.RolePrimary || len(primary.Replicas) != 1 || primary.Replicas[0] != addr("127.0.0.1:27112") ||
		follower.Role != reply.RoleReplica || follower.Primary != addr("127.0.0.1:27111") || follower.State != "connected" ||
		watcher.Role != reply.RoleSentinel || !reflect.DeepEqual(watcher.Names, []string{"orders"}) {
		t.Errorf("roles%s: %+v %+v %+v", form, primary, follower, watcher)
	}

	im := must[reply.Info](t)(reply.ParseInfo(one("info-master")))
	is := must[reply.Info](t)(reply.ParseInfo(one("info-slave")))
	iw := must[reply.Info](t)(reply.ParseInfo(one("info-sentinel")))
	if im.Role != reply.RolePrimary || im.RunID == "" || im.Version != version || im.Mode != reply.ModeStandalone || im.Clients < 1 || im.Port != 27111 ||
		im.ReplID == "" || im.ReplID2 != "" || im.Failover != "no-failover" || im.Replicas != 1 {
		t.Errorf("info of the primary%s: %+v", form, im)
	}
	if is.Role != reply.RoleReplica || is.ReplID != im.ReplID || is.Primary != addr("127.0.0.1:27111") || !is.LinkUp || is.RunID == im.RunID {
		t.Errorf("info of the replica%s: %+v", form, is)
	}
	if iw.Role != reply.RoleSentinel || iw.Mode != reply.ModeSentinel || iw.Tilt {
		t.Errorf("info of the Sentinel%s: %+v", form, iw)
	}

	h := must[reply.Hello](t)(reply.ParseHello(one("hello")))
	if h.Server != name || h.Version != version || h.Mode != reply.ModeCluster || h.Role != reply.RolePrimary || h.Proto != 2+len(form) {
		t.Errorf("hello%s: %+v", form, h)
	}

	masters := must[reply.Instances](t)(reply.ParseInstances(one("sentinel-masters")))
	m := must[reply.Instance](t)(reply.ParseInstance(one("sentinel-master")))
	if len(masters.Instances) != 1 || masters.Instances[0] != m || m.Name != "orders" || m.Quorum != 2 || m.Replicas != 1 || m.Sentinels != 1 ||
		m.Kind != reply.RolePrimary || m.Address != addr("127.0.0.1:27111") || m.RunID != im.RunID || m.Flags != 0 {
		t.Errorf("masters%s: %+v", form, masters)
	}
	reps := must[reply.Instances](t)(reply.ParseInstances(one("sentinel-replicas"))).Instances
	if len(reps) != 1 || reps[0].Kind != reply.RoleReplica || reps[0].RunID != is.RunID || !reps[0].LinkUp || reps[0].Primary != addr("127.0.0.1:27111") {
		t.Errorf("replicas%s: %+v", form, reps)
	}
	sentinels := must[reply.Instances](t)(reply.ParseInstances(one("sentinel-sentinels"))).Instances
	if len(sentinels) != 1 || sentinels[0].Kind != reply.RoleSentinel || sentinels[0].Address != addr("127.0.0.1:27122") {
		t.Errorf("sentinels%s: %+v", form, sentinels)
	}
	if got, known, err := reply.ParsePrimaryAddress(one("sentinel-addr")); err != nil || !known || got != addr("127.0.0.1:27111") {
		t.Errorf("address of the primary%s: %v %v %v", form, got, known, err)
	}
	if _, known, err := reply.ParsePrimaryAddress(one("sentinel-addr-none")); err != nil || known {
		t.Errorf("address of no primary%s: %v %v", form, known, err)
	}

	hellos := 0
	for _, v := range recorded(t, server, "hello-channel") {
		channel, payload, ok := reply.ParseMessage(v)
		if !ok {
			continue // the confirmation
		}
		h := must[reply.SentinelHello](t)(reply.ParseSentinelHello(payload))
		if hellos++; channel != reply.HelloChannel || h.Name != "orders" || h.Primary != addr("127.0.0.1:27111") || h.RunID == "" {
			t.Errorf("hello: %+v", h)
		}
	}
	if hellos != 2 {
		t.Errorf("%d hellos, want 2", hellos)
	}
}

// TestRecordedMigrations reads what Valkey lists while slots are on their way.
func TestRecordedMigrations(t *testing.T) {
	const server = "valkey-9.1.2"
	for _, form := range []string{"", "3"} {
		at := map[uint16]string{}
		for _, n := range must[reply.Nodes](t)(reply.ParseNodes(recorded(t, server, "cluster-nodes")[0])).Nodes {
			at[n.Address.Port] = n.ID
		}
		// To the second a job of two ranges, and to the third one that waits; another one is done.
		source := []reply.Migration{
			{Slots: []reply.SlotRange{{First: 100, Last: 3000}, {First: 4000, Last: 4000}}, Source: at[27101], Target: at[27102]},
			{Slots: []reply.SlotRange{{First: 5000, Last: 5000}}, Source: at[27101], Target: at[27103]},
		}
		target := slices.Clone(source[:1])
		target[0].Importing = true
		for file, want := range map[string][]reply.Migration{"source": source, "target": target, "cancelled": nil} {
			got := must[[]reply.Migration](t)(reply.ParseMigrations(recorded(t, server, "cluster-migrations-"+file+form)[0]))
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s%s: %+v, want %+v", file, form, got, want)
			}
		}
	}
}

// TestEvents has one message of each kind, in the words of Redis.
func TestEvents(t *testing.T) {
	for _, tt := range []struct {
		channel, payload string
		want             reply.Event
	}{
		{"+switch-master", "orders 10.0.0.1 6379 10.0.0.2 6380", reply.Event{Name: "orders", Kind: reply.RolePrimary, From: addr("10.0.0.1:6379"), Address: addr("10.0.0.2:6380")}},
		{"+promoted-slave", "slave 10.0.0.2:6379 10.0.0.2 6379 @ orders 10.0.0.1 6379", reply.Event{Name: "orders", Kind: reply.RoleReplica, Address: addr("10.0.0.2:6379")}},
		{"+config-update-from", "sentinel ea761c39747a47122f4d8fc487287c0b62326d0e 10.0.0.9 26379 @ orders 10.0.0.1 6379", reply.Event{Name: "orders", Kind: reply.RoleSentinel, Address: addr("10.0.0.9:26379")}},
		{"+sdown", "master orders 10.0.0.1 6379", reply.Event{Name: "orders", Kind: reply.RolePrimary, Address: addr("10.0.0.1:6379")}},
		{"+odown", "master orders 10.0.0.1 6379 #quorum 2/2", reply.Event{Name: "orders", Kind: reply.RolePrimary, Address: addr("10.0.0.1:6379")}},
		{"-sdown", "slave x 2001:db8::1 6379 @ orders 10.0.0.1 6379", reply.Event{Name: "orders", Kind: reply.RoleReplica, Address: addr("[2001:db8::1]:6379")}},
		{"+tilt", "#tilt mode entered", reply.Event{}},
		{"-tilt", "#tilt mode exited", reply.Event{}},
	} {
		tt.want.Channel = tt.channel
		if got, err := reply.ParseEvent(tt.channel, tt.payload); err != nil || got != tt.want {
			t.Errorf("%s %s: %+v, %v", tt.channel, tt.payload, got, err)
		}
	}
	for _, payload := range []string{"", "orders", "orders 1 2 3 4", "orders 10.0.0.1 99999 10.0.0.2 1", strings.Repeat("x", 1<<16)} {
		if e, err := reply.ParseEvent("+switch-master", payload); err == nil {
			t.Errorf("%.40q is taken for %+v", payload, e)
		}
	}
}
