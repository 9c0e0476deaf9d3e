//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"strings"
	"testing"

	"github.com/redisguard/redisguard/clusterview/reply"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

// reads is a parser of which only the error is wanted.
func reads[T any](parse func(resp.Value) (T, error)) func(resp.Value) error {
	return func(v resp.Value) error {
		_, err := parse(v)
		return err
	}
}

// TestCapabilities tries what differs between versions, as attributes for make matrix. What the
// server knows must be read.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	r := newRig(t, "x")
	s := r.servers(1, lab.RedisConfig{Port: portsFrom + 71, Args: []string{"--cluster-enabled", "yes"}})[0]
	r.do(s, "CLUSTER", "ADDSLOTS", "0", "1", "5")

	c := labtest.Must2(s.Host().Dial(r.ctx, "tcp", s.Addr().String()))(t)
	defer c.Close()
	in := resp.NewReader(bufio.NewReader(c), resp.Limits{})
	ask := func(words ...string) resp.Value {
		labtest.Must2(c.Write(resp.AppendCommand(nil, words...)))(t)
		return labtest.Must2(in.Read())(t)
	}
	yes := func(key string, is bool) { t.Attr(key, map[bool]string{true: "yes", false: "no"}[is]) }

	info := labtest.Must2(reply.ParseInfo(ask("INFO")))(t)
	text := fmt.Sprint(r.do(s, "INFO"))
	line := func(key string) string {
		_, after, _ := strings.Cut(text, "\r\n"+key+":")
		value, _, _ := strings.Cut(after, "\r\n")
		return value
	}
	name := "Redis"
	if info.Name != "" {
		name = strings.ToUpper(info.Name[:1]) + info.Name[1:]
	}
	t.Attr("server", name+" "+info.Version)
	t.Attr("redis_version", line("redis_version"))
	t.Attr("mode", map[bool]string{true: "redis_mode", false: "server_mode"}[line("redis_mode") != ""])
	yes("master_replid2", line("master_replid2") != "")
	if info.RunID == "" || info.Mode != reply.ModeCluster || info.Role != reply.RolePrimary {
		t.Errorf("INFO is read as %+v", info)
	}

	for _, x := range []struct {
		what, args string
		parse      func(resp.Value) error
	}{
		{"HELLO", "", reads(reply.ParseHello)},
		{"ROLE", "", reads(reply.ParseRole)},
		{"CLUSTER NODES", "", reads(reply.ParseNodes)},
		{"CLUSTER SLOTS", "", reads(reply.ParseSlots)},
		{"CLUSTER SHARDS", "", reads(func(v resp.Value) (reply.Shards, error) { return reply.ParseShards(v, false) })},
		{"CLUSTER LINKS", "", nil},
		{"CLUSTER MYSHARDID", "", nil},
		{"CLUSTER GETSLOTMIGRATIONS", "", reads(reply.ParseMigrations)},
		{"CLUSTER MIGRATION STATUS", "ALL", reads(reply.ParseMigrations)},
		{"CLIENT SETINFO", "lib-name redisguard", nil},
		{"CONFIG SET cluster-announce-hostname", "db.example.net", nil},
		{"CONFIG SET cluster-announce-client-ipv6", "fd77::1", nil},
	} {
		v := ask(strings.Fields(x.what + " " + x.args)...)
		known := !v.IsError()
		if low := strings.ToLower(v.Str); !known && !strings.Contains(low, "unknown") && !strings.Contains(low, "unsupported config") {
			t.Errorf("%s: %s", x.what, v.Str)
		}
		yes(strings.ReplaceAll(x.what, " ", "|"), known)
		if known && x.parse != nil {
			if err := x.parse(v); err != nil {
				t.Errorf("%s: %v", x.what, err)
			}
		}
	}
}
