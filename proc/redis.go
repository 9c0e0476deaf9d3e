package proc

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// The ports Redis derives from nothing: Sentinel's own, and the distance between
// a node's port and its cluster bus (cluster-port = port + 10000).
const (
	sentinelPort = 26379
	clusterBus   = 10000
)

// RedisLike reports whether a process is to be taken for a Redis server or a
// Sentinel, whose connections are never touched, and why. What it listens on
// counts: it listens on a watched port, on Sentinel's, or on a port and that
// port's cluster bus. A name proves nothing, since a process chooses it, but all
// that follows from it is that we keep our hands off: so the names of servers
// count as well for a process that listens at all.
//
// exe is the path of the program, "" where it is not known.
func RedisLike(listenPorts []uint16, comm, exe string, watchedPorts []uint16) (bool, string) {
	if len(listenPorts) == 0 {
		return false, ""
	}
	for _, p := range listenPorts {
		if slices.Contains(watchedPorts, p) {
			return true, fmt.Sprintf("listens on watched port %d", p)
		}
	}
	if slices.Contains(listenPorts, sentinelPort) {
		return true, fmt.Sprintf("listens on Sentinel's port %d", sentinelPort)
	}
	for _, p := range listenPorts {
		if p <= 65535-clusterBus && slices.Contains(listenPorts, p+clusterBus) {
			return true, fmt.Sprintf("listens on %d and its cluster bus %d", p, p+clusterBus)
		}
	}
	for _, name := range []string{comm, path.Base(exe)} {
		if serverName(name) {
			return true, fmt.Sprintf("is called %s and listens on port %d", Safe(name), listenPorts[0])
		}
	}
	return false, ""
}

// serverName knows the servers by the beginning of their name, which holds for
// versioned ones ("redis-server-7.2") too. redis-check-rdb is the same program as
// redis-server, and on Debian that file's name.
func serverName(s string) bool {
	for _, server := range []string{
		"redis-server", "redis-sentinel", "redis-check-", "valkey-server", "valkey-sentinel", "valkey-check-",
		"keydb-server", "keydb-sentinel", "dragonfly",
	} {
		if strings.HasPrefix(s, server) {
			return true
		}
	}
	return false
}
