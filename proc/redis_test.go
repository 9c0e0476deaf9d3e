package proc

import "testing"

func TestRedisLike(t *testing.T) {
	watched := []uint16{6379, 6380}
	for _, test := range []struct {
		name   string
		listen []uint16
		comm   string
		exe    string
		want   string // the reason; "" for no
	}{
		{"client", nil, "java", "/usr/bin/java", ""},
		{"client called like a server", nil, "redis-server", "/usr/bin/redis-server", ""},
		{"web server", []uint16{80, 443}, "nginx", "/usr/sbin/nginx", ""},
		{"server", []uint16{6379}, "redis-server", "/usr/bin/redis-server", "listens on watched port 6379"},
		{"proxy on the port", []uint16{8080, 6380}, "envoy", "/envoy", "listens on watched port 6380"},
		{"Sentinel under another name", []uint16{26379}, "python3", "", "listens on Sentinel's port 26379"},
		{"cluster node", []uint16{17000, 7000}, "x", "", "listens on 7000 and its cluster bus 17000"},
		{"top port of a node", []uint16{55535, 65535}, "x", "", "listens on 55535 and its cluster bus 65535"},
		{"distance over the top", []uint16{60000, 4464}, "x", "", ""}, // 70000 modulo 65536
		{"other port, by comm", []uint16{7777}, "redis-server", "", "is called redis-server and listens on port 7777"},
		{"other port, by program", []uint16{7777}, "main", "/opt/bin/valkey-server", "is called valkey-server and listens on port 7777"},
		{"Debian's program", []uint16{7777}, "main", "/usr/bin/redis-check-rdb", "is called redis-check-rdb and listens on port 7777"},
		{"versioned", []uint16{7777}, "x", "/opt/redis-server-7.2", "is called redis-server-7.2 and listens on port 7777"},
		{"KeyDB", []uint16{7777}, "keydb-server", "", "is called keydb-server and listens on port 7777"},
		{"Dragonfly", []uint16{7777}, "dragonfly", "", "is called dragonfly and listens on port 7777"},
		{"evil name", []uint16{7777}, "redis-server\x1b", "", `is called redis-server\x1b and listens on port 7777`},
		{"exporter", []uint16{9121}, "redis_exporter", "/redis_exporter", ""},
	} {
		yes, reason := RedisLike(test.listen, test.comm, test.exe, watched)
		if yes != (test.want != "") || reason != test.want {
			t.Errorf("%s: %v %q, want %q", test.name, yes, reason, test.want)
		}
	}
}
