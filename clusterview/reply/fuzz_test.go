package reply_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/resp"
)

// FuzzReplies gives one value to every parser: none may panic, or keep more than it says.
func FuzzReplies(f *testing.F) {
	files, err := filepath.Glob("testdata/*-*/*")
	if err != nil || len(files) == 0 {
		f.Fatal("no recorded replies", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("*1\r\n*3\r\n:0\r\n:5\r\n*2\r\n_\r\n:1\r\n"))
	f.Add([]byte("-NOPERM no\r\n"))
	f.Add([]byte("$5\r\na:b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := resp.NewReader(bytes.NewReader(b), resp.Limits{}).Read()
		if err != nil {
			return
		}
		if n, err := reply.ParseNodes(v); err == nil && (len(n.Nodes) == 0 || len(n.Nodes) > reply.MaxNodes) {
			t.Errorf("%d nodes", len(n.Nodes))
		}
		if s, err := reply.ParseSlots(v); err == nil {
			for _, e := range s {
				if e.Range.First > e.Range.Last || e.Range.Last >= reply.Slots {
					t.Errorf("range %v", e.Range)
				}
			}
		}
		for _, tls := range []bool{false, true} {
			if s, err := reply.ParseShards(v, tls); err == nil && len(s.Shards) > reply.MaxNodes {
				t.Errorf("%d shards", len(s.Shards))
			}
		}
		if all, err := reply.ParseMigrations(v); err == nil {
			ranges := 0
			for _, m := range all {
				ranges += len(m.Slots)
			}
			if ranges > reply.MaxRanges {
				t.Errorf("%d ranges of slots", ranges)
			}
		}
		reply.ParseClusterInfo(v)
		reply.ParseInfo(v)
		if r, err := reply.ParseRole(v); err == nil && (r.Role == "" || len(r.Replicas) > reply.MaxNodes) {
			t.Errorf("role %+v", r)
		}
		reply.ParseHello(v)
		reply.ParseInstances(v)
		reply.ParseInstance(v)
		reply.ParsePrimaryAddress(v)
		reply.ParseMessage(v)
	})
}

// FuzzNodes is about the text of CLUSTER NODES, which the other rarely reaches.
func FuzzNodes(f *testing.F) {
	f.Add(nodeID("a") + " 10.0.0.1:6379@16379,db,tls-port=1 myself,master - 0 0 7 connected 0-5 [6->-" + nodeID("b") + "]\n")
	f.Add(nodeID("a") + " :0@0 slave,noaddr " + nodeID("b") + " 0 0 7 disconnected")
	f.Fuzz(func(t *testing.T, s string) {
		all, err := reply.ParseNodes(bulk(s))
		if err != nil {
			return
		}
		for _, n := range all.Nodes {
			if len(n.ID) != 40 || n.Address.Told == reply.Given && n.Address.IP.IsValid() == (n.Address.Name != "") {
				t.Errorf("node %+v", n)
			}
		}
	})
}

// FuzzMessages is about what Sentinels publish.
func FuzzMessages(f *testing.F) {
	f.Add("+switch-master", "orders 10.0.0.1 6379 10.0.0.2 6379")
	f.Add("+sdown", "slave x 10.0.0.1 6379 @ orders 10.0.0.2 6379")
	f.Add("", "127.0.0.1,27122,ea761c39747a47122f4d8fc487287c0b62326d0e,0,orders,127.0.0.1,27111,0")
	f.Fuzz(func(t *testing.T, channel, payload string) {
		if e, err := reply.ParseEvent(channel, payload); err == nil && channel != "+tilt" && channel != "-tilt" && (e.Name == "" || e.Kind == "") {
			t.Errorf("event %+v", e)
		}
		if h, err := reply.ParseSentinelHello(payload); err == nil && (h.Name == "" || h.RunID == "") {
			t.Errorf("hello %+v", h)
		}
	})
}

// TestKeySlot compares with CLUSTER KEYSLOT of a real server.
func TestKeySlot(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "redis-server", "--port", "27190", "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--unixsocket", socket, "--save", "", "--dir", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	var conn net.Conn
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var err error
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))

	random := rand.New(rand.NewPCG(1, 2))
	keys := []string{"", "{", "}", "{}", "{}{a}", "a{b}c", "a{{b}}c", "a}b{c}"}
	for i := range 2000 {
		key := make([]byte, random.IntN(20))
		for j := range key {
			key[j] = byte(random.IntN(256))
			if i%2 == 0 {
				key[j] = "{}ab"[random.IntN(4)]
			}
		}
		keys = append(keys, string(key))
	}
	var ask []byte
	for _, key := range keys {
		ask = resp.AppendCommand(ask, "CLUSTER", "KEYSLOT", key)
	}
	sent := make(chan error, 1)
	go func() { _, err := conn.Write(ask); sent <- err }()
	r := resp.NewReader(conn, resp.Limits{})
	for _, key := range keys {
		v, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		if got := reply.Slot(key); v.Kind != resp.Integer || int64(got) != v.Int {
			t.Fatalf("slot of %q is %d, Redis says %s", key, got, fmt.Sprint(v))
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}
