package proc

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"
)

// commLength is how much of a name the kernel keeps in comm (TASK_COMM_LEN without its end).
const commLength = 15

// ServerName says why a process is taken for a server of Redis' protocol, or a Sentinel, by
// what it calls itself: its command, its program, or its title; "" if nothing does. A name
// proves nothing, since a process chooses it, but all that follows is that we keep our
// hands off. Whether it listens is not asked: a Redis with port 0 has a Unix socket, and
// its link to its primary is one of Redis all the same.
func (p *Process) ServerName() string {
	exe := path.Base(p.Exe)
	comm, cut := p.Comm, len(p.Comm) >= commLength
	if cut && strings.HasPrefix(exe, comm) {
		comm, cut = exe, false // the kernel cut it there
	}
	switch {
	case serverName(comm, cut):
		return "is called " + Safe(comm)
	case serverName(exe, false):
		return "is called " + Safe(exe)
	}
	t := ParseTitle(p.Title)
	switch {
	case serverName(path.Base(t.Name), false), t.Mode != "":
		return "has the title " + Safe(p.Title)
	}
	return ""
}

// families are servers whose names have a version and a part, as in redis7.2-server.
var families = []string{"redis", "valkey", "keydb", "redict"}

// parts are what a family's program can be. redis-check-rdb is the same program as
// redis-server, and on Debian that file's name; so with -aof.
var parts = []string{"-server", "-sentinel", "-check-rdb", "-check-aof"}

// singles are servers with one name.
var singles = []string{"dragonfly", "kvrocks", "garnet-server", "GarnetServer", "ssdb-server", "tendisplus"}

// serverName knows the servers of Redis' protocol by their names, with what packagers and
// images add: redis-server-7.2, redis6-server, redis-stack-server, valkey-server-8,
// dragonfly-x86_64. cut says that the end of the name may be missing.
func serverName(s string, cut bool) bool {
	for _, name := range singles {
		if rest, ok := strings.CutPrefix(s, name); ok && versionLike(rest, cut) {
			return true
		}
	}
	for _, family := range families {
		rest, ok := strings.CutPrefix(s, family)
		if !ok {
			continue
		}
		rest = strings.TrimLeft(rest, "0123456789.")
		for _, edition := range []string{"-stack", "-pro", "-enterprise"} {
			rest = strings.TrimPrefix(rest, edition)
		}
		for _, part := range parts {
			if end, ok := strings.CutPrefix(rest, part); ok && versionLike(end, cut) {
				return true
			}
			if cut && len(rest) > 1 && strings.HasPrefix(part, rest) {
				return true
			}
		}
	}
	return false
}

// builds are what may follow a name beside a version.
var builds = []string{
	"bin", "real", "orig", "debug", "dbg", "tls", "ssl", "amd64", "x86", "arm64", "aarch64", "linux", "gnu", "musl", "alpine", "static", "stable",
	"unstable", "latest", "rc", "dll", "exe", "old", "new",
}

// versionLike accepts what follows a server's name: nothing, or a version and words about
// the build. What else follows makes it another program: redis-sentinel-proxy.
func versionLike(s string, cut bool) bool {
	if s == "" {
		return true
	}
	if !strings.ContainsRune("-_.@~:", rune(s[0])) {
		return false
	}
	words := strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("-_.@~:", r) })
	for i, w := range words {
		number := strings.TrimLeft(w, "v")
		if number != "" && number[0] >= '0' && number[0] <= '9' || slices.Contains(builds, w) || slices.Contains(builds, strings.TrimRight(w, "0123456789")) {
			continue
		}
		return cut && i == len(words)-1
	}
	return true
}

// Title is what a server of Redis writes over its arguments (setproctitle, by default
// "{title} {listen-addr} {server-mode}"): "redis-server 10.0.0.5:6379 [cluster]".
type Title struct {
	Name string // of the program, with its path if it was started so
	Port uint16 // 0 with a Unix socket
	Mode string // cluster or sentinel, "" for none
}

// maxTitle bounds what is kept of a title, in bytes.
const maxTitle = 256

// ParseTitle reads a title. Its Name is "" if it has not that form.
func ParseTitle(s string) Title {
	var t Title
	for _, mode := range []string{"cluster", "sentinel"} {
		if left, ok := strings.CutSuffix(s, " ["+mode+"]"); ok {
			s, t.Mode = left, mode
			break
		}
	}
	name, at, ok := strings.Cut(s, " ")
	if !ok || name == "" || strings.Contains(at, " ") {
		return Title{Name: soleName(s)}
	}
	if strings.HasPrefix(at, "unixsocket:") {
		t.Name = name
		return t
	}
	colon := strings.LastIndexByte(at, ':')
	port, err := strconv.ParseUint(at[colon+1:], 10, 16)
	if colon < 1 || err != nil {
		return Title{Name: soleName(s)}
	}
	t.Name, t.Port = name, uint16(port)
	return t
}

// soleName is the name of a server that stands alone, or before anything, in a title.
func soleName(s string) string {
	name, _, _ := strings.Cut(s, " ")
	if serverName(path.Base(name), false) {
		return name
	}
	return ""
}

// parseCmdline takes from the beginning of /proc/<pid>/cmdline what may be a server's
// title: the whole, if it is one text in that form; or the name of a server among the
// first two arguments, the second being that of a program that an interpreter runs (dotnet,
// an emulator, a debugger); or clusterTool. It is "" for everything else.
func parseCmdline(data []byte) string {
	data = bytes.TrimRight(data, "\x00 ")
	if changesCluster(data) {
		return clusterTool
	}
	if len(data) > maxTitle {
		data = data[:maxTitle]
	}
	first, rest, more := bytes.Cut(data, []byte{0})
	if !more {
		if s := string(first); ParseTitle(s).Name != "" {
			return s
		}
		return ""
	}
	second, _, _ := bytes.Cut(rest, []byte{0})
	for _, arg := range [][]byte{first, second} {
		if s := string(arg); serverName(path.Base(s), false) {
			return s
		}
	}
	return ""
}

// clusterTool stands for the title of a client that changes a Redis Cluster. Its arguments are not
// kept: a password may be among them.
const clusterTool = "redis-cli --cluster"

// changesCluster says whether the arguments of a process are those of redis-cli, or of one that is
// called so, which resharding, fixing and creating a cluster is done with.
func changesCluster(cmdline []byte) bool {
	args := bytes.Split(cmdline, []byte{0})
	name := path.Base(string(args[0]))
	return strings.HasSuffix(name, "-cli") && slices.ContainsFunc(families, func(f string) bool { return strings.HasPrefix(name, f) }) &&
		slices.ContainsFunc(args[1:], func(arg []byte) bool { return string(arg) == "--cluster" })
}

// ClusterTool says that a process changes a Redis Cluster from outside, "" if it does not. Cut off
// midway it leaves slots that belong to nobody, so it is spared as Redis itself is.
func (p *Process) ClusterTool() string {
	if p.Title == clusterTool {
		return "is " + clusterTool + ", which changes a cluster"
	}
	return ""
}

// proxies relay to Redis, and so may answer a question as Redis; what they open are
// connections of a client.
var proxies = []string{
	"haproxy", "envoy", "stunnel", "stunnel3", "stunnel4", "stunnel5", "nginx", "traefik", "caddy", "nutcracker", "twemproxy", "predixy", "codis-proxy", "corvus",
	"dynomite", "redis-cluster-proxy", "redis-sentinel-proxy", "mcrouter", "socat", "ncat", "nc", "ghostunnel", "spiped", "hitch", "linkerd2-proxy", "pilot-agent", "ssh", "sshd",
	"kubectl", "kubelet", "docker-proxy", "rootlessport", "systemd-socket-proxyd", "rinetd", "redir", "gost", "frpc", "frps", "xinetd", "toxiproxy", "toxiproxy-server",
	"tailscaled", "cloudflared", "consul",
}

// ProxyName says that a process is a known proxy, by its name: "" if it is not.
func (p *Process) ProxyName() string {
	exe := path.Base(p.Exe)
	for _, name := range proxies {
		if exe == name || p.Comm == name || len(p.Comm) >= commLength && strings.HasPrefix(name, p.Comm) {
			return "is called " + name + ", a proxy"
		}
	}
	return ""
}
