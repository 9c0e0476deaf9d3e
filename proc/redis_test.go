package proc

import (
	"strings"
	"testing"
)

func TestServerName(t *testing.T) {
	for _, tt := range []struct {
		comm, exe, title string
		want             string // "" for no
	}{
		{"java", "/usr/bin/java", "", ""},
		{"redis-server", "/usr/bin/redis-check-rdb", "", "is called redis-server"},
		{"redis-server", "", "", "is called redis-server"}, // without the right to see more
		{"redis-sentinel", "", "", "is called redis-sentinel"},
		{"main", "/opt/bin/valkey-server", "", "is called valkey-server"},
		{"main", "/usr/bin/redis-check-rdb", "", "is called redis-check-rdb"},
		{"redis6-server", "/usr/bin/redis6-server", "", "is called redis6-server"},
		{"redis7.2-server", "", "", "is called redis7.2-server"},
		{"redis7.2.10-ser", "", "", "is called redis7.2.10-ser"},
		{"redis-stack-ser", "", "", "is called redis-stack-ser"},
		{"valkey-server-8", "", "", "is called valkey-server-8"},
		{"valkey-server-8", "/usr/bin/valkey-server-8.1.2", "", "is called valkey-server-8.1.2"},
		{"valkey8.0-serve", "/usr/bin/valkey8.0-server", "", "is called valkey8.0-server"},
		{"valkey-sentinel", "", "", "is called valkey-sentinel"},
		{"redict-sentinel", "", "", "is called redict-sentinel"},
		{"redict-server", "", "", "is called redict-server"},
		{"keydb-server", "", "", "is called keydb-server"},
		{"x", "/opt/redis-server-7.2", "", "is called redis-server-7.2"},
		{"x", "/opt/redis-server.bin", "", "is called redis-server.bin"},
		{"x", "/opt/redis-server-v7.2-rc1-arm64", "", "is called redis-server-v7.2-rc1-arm64"},
		{"dragonfly", "", "", "is called dragonfly"},
		{"dragonfly-x86_6", "/dragonfly-x86_64", "", "is called dragonfly-x86_64"},
		{"kvrocks", "", "", "is called kvrocks"},
		{"garnet-server", "", "", "is called garnet-server"},
		{"dotnet", "/usr/bin/dotnet", "GarnetServer.dll", "has the title GarnetServer.dll"},
		{"qemu-aarch64", "/usr/bin/qemu-aarch64", "/usr/local/bin/redis-server", "has the title /usr/local/bin/redis-server"},
		{"main", "/main", "redis-server *:6379", "has the title redis-server *:6379"},
		{"main", "/main", "redis-server unixsocket:/run/redis.sock", "has the title redis-server unixsocket:/run/redis.sock"},
		{"main", "/main", "/opt/store 10.0.0.5:6379 [cluster]", "has the title /opt/store 10.0.0.5:6379 [cluster]"},
		{"main", "/main", "store *:26379 [sentinel]", "has the title store *:26379 [sentinel]"},
		{"redis-server\x1b", "", "", ""},
		{"redis-server", "/tmp/redis-server-7\x1b", "", "is called redis-server"},
		// What only begins like one.
		{"redis_exporter", "/redis_exporter", "", ""},
		{"redis-cli", "/usr/bin/redis-cli", "", ""},
		{"redis-benchmark", "/usr/bin/redis-benchmark", "", ""},
		{"redis", "/usr/bin/redis", "", ""},
		{"redis-sentinel-", "/redis-sentinel-proxy", "", ""},
		{"redis-sentinel-", "", "", "is called redis-sentinel-"}, // nobody can tell the rest
		{"redis-server-ex", "/redis-server-exporter", "", ""},
		{"dragonfly-opera", "/dragonfly-operator", "", ""},
		{"redis-sidekick", "/redis-sidekick", "", ""},
		{"node", "/usr/bin/node", "api 0.0.0.0:3000", ""},
		{"puma", "/usr/bin/ruby", "puma 6.0 (tcp://0.0.0.0:3000) [app]", ""},
	} {
		p := Process{Comm: tt.comm, Exe: tt.exe, Title: tt.title}
		if got := p.ServerName(); got != tt.want {
			t.Errorf("%q %q %q: %q, want %q", tt.comm, tt.exe, tt.title, got, tt.want)
		}
	}
}

func TestProxyName(t *testing.T) {
	for _, p := range []Process{{Comm: "haproxy"}, {Comm: "x", Exe: "/usr/local/bin/envoy"}, {Comm: "systemd-socket-"}, {Comm: "stunnel4"}} {
		if p.ProxyName() == "" {
			t.Errorf("%+v is none", p)
		}
	}
	for _, p := range []Process{{}, {Comm: "python3"}, {Comm: "redis-server"}, {Comm: "n"}, {Comm: "ha"}} {
		if s := p.ProxyName(); s != "" {
			t.Errorf("%+v %s", p, s)
		}
	}
}

func TestParseTitle(t *testing.T) {
	for s, want := range map[string]Title{
		"redis-server *:6379":                        {Name: "redis-server", Port: 6379},
		"/usr/bin/redis-server 127.0.0.1:6379":       {Name: "/usr/bin/redis-server", Port: 6379},
		"valkey-server [::1]:7000 [cluster]":         {Name: "valkey-server", Port: 7000, Mode: "cluster"},
		"redis-server ::1:7000":                      {Name: "redis-server", Port: 7000},
		"x *:26379 [sentinel]":                       {Name: "x", Port: 26379, Mode: "sentinel"},
		"redis-server unixsocket:/tmp/r.sock":        {Name: "redis-server"},
		"redis-rdb-bgsave 10.0.0.5:6379":             {Name: "redis-rdb-bgsave", Port: 6379},
		"redis-server my own template":               {Name: "redis-server"},
		"redis-server":                               {Name: "redis-server"},
		"":                                           {},
		"nginx: worker process":                      {},
		"x y:70000":                                  {},
		"x :6379":                                    {},
		"x 6379":                                     {},
		"postgres: app db 10.0.0.1(1234) idle":       {},
		" *:6379":                                    {},
		"gunicorn: master [sentinel]":                {},
		"unicorn master -c /etc/x.rb 0.0.0.0:8080":   {},
		"php-fpm: pool www                [cluster]": {},
	} {
		if got := ParseTitle(s); got != want {
			t.Errorf("%q: %+v, want %+v", s, got, want)
		}
	}
}

func TestParseCmdline(t *testing.T) {
	for data, want := range map[string]string{
		"redis-server *:6379\x00\x00\x00":                                        "redis-server *:6379",
		"redis-server *:6379        ":                                            "redis-server *:6379",
		"/opt/store *:7777\x00":                                                  "/opt/store *:7777",
		"dotnet\x00GarnetServer.dll\x00--port\x006379":                           "GarnetServer.dll",
		"/usr/bin/redis-server\x00/etc/redis.conf\x00":                           "/usr/bin/redis-server",
		"python3\x00app.py\x0010.0.0.1:6379\x00":                                 "",
		"python3\x0010.0.0.1:6379\x00":                                           "",
		"tail\x00-f\x00/var/log/redis-server.log\x00":                            "",
		"sh\x00-c\x00exec redis-server\x00":                                      "",
		"redis-cli\x00-a\x00secret\x00--cluster\x00reshard\x0010.0.0.1:6379\x00": clusterTool,
		"/opt/bin/valkey8-cli\x00--cacert\x00/" + strings.Repeat("x", 300) + "\x00--cluster\x00fix\x00h:1": clusterTool,
		"redis-cli\x00set\x00--cluster-yes\x00x":                                                           "",
		"redis-cli\x00-h\x00db\x00":                                                                        "",
		"app\x00--cluster\x00x":                                                                            "",
		"":                                                                                                 "",
		"\x00\x00":                                                                                         "",
		strings.Repeat("x", 300) + " *:6379":                                                               "",
		"redis-server " + strings.Repeat("y", 300) + "\x00":                                                ("redis-server " + strings.Repeat("y", 300))[:maxTitle],
	} {
		if got := parseCmdline([]byte(data)); got != want {
			t.Errorf("%.60q: %q, want %q", data, got, want)
		}
	}
}

// Whatever a process calls itself is read without harm, and kept short.
func FuzzNames(f *testing.F) {
	f.Add("redis-server *:6379 [cluster]", []byte("dotnet\x00GarnetServer.dll"))
	f.Add("redis7.2-ser", []byte("redis-server unixsocket:/x\x00\x00"))
	f.Add("redis-cli", []byte("redis-cli\x00--cluster\x00fix"))
	f.Add("valkey-server-8-", []byte("x *:1\x00"))
	f.Fuzz(func(t *testing.T, name string, cmdline []byte) {
		title := parseCmdline(cmdline)
		if len(title) > maxTitle {
			t.Errorf("a title of %d bytes", len(title))
		}
		p := Process{Comm: name, Exe: name, Title: title}
		p.ProxyName()
		if why := p.ServerName(); strings.ContainsFunc(why, func(r rune) bool { return r < ' ' }) {
			t.Errorf("not escaped: %q", why)
		}
		if x := ParseTitle(title); title != "" && x.Name == "" && !serverName(title, false) && !strings.Contains(title, "/") && title != clusterTool {
			t.Errorf("%q was kept and means nothing", title)
		}
	})
}
