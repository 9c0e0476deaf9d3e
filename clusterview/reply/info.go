package reply

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redisguard/redisguard/resp"
)

// Role is what a process does; empty is unknown.
type Role string

// The roles.
const (
	RolePrimary  Role = "primary"
	RoleReplica  Role = "replica"
	RoleSentinel Role = "sentinel"
)

// role translates Redis' own words.
func role(s string) Role {
	switch s {
	case "master", "primary":
		return RolePrimary
	case "slave", "replica":
		return RoleReplica
	case "sentinel":
		return RoleSentinel
	}
	return ""
}

// Mode is how a server runs, as HELLO and INFO say; empty is unknown.
type Mode string

// The modes.
const (
	ModeStandalone Mode = "standalone"
	ModeCluster    Mode = "cluster"
	ModeSentinel   Mode = "sentinel"
)

func mode(s string) Mode {
	switch m := Mode(s); m {
	case ModeStandalone, ModeCluster, ModeSentinel:
		return m
	}
	return ""
}

// Info is what INFO says of a process and of its replication. What a server leaves out is
// empty; Clients is then -1.
type Info struct {
	Name     string // "redis", "valkey"; empty with Redis
	Version  string // its own: Valkey says redis_version:7.2.4 to old clients
	Mode     Mode
	RunID    string
	Role     Role
	Port     uint16
	Uptime   time.Duration
	Loading  bool
	Tilt     bool // of a Sentinel
	Clients  int
	Replicas int
	// ReplID names the history that this server writes or follows. ReplID2 is the one that
	// it had before it was promoted, empty if it never was: lineage is proven by it.
	ReplID, ReplID2 string
	Offset          int64
	// Of a replica.
	Primary  Address
	LinkUp   bool
	Failover string // master_failover_state, such as no-failover
}

// ParseInfo reads INFO, with or without a section.
func ParseInfo(v resp.Value) (Info, error) {
	const what = "INFO"
	info := Info{Clients: -1}
	s, err := text(v)
	if err != nil {
		return Info{}, cannot(what, err)
	}
	var primary string
	var primaryPort uint16
	own := "" // the version that a fork says beside Redis'
	err = lines(s, func(name, value string) (err error) {
		switch name {
		case "server_name":
			info.Name = word(value)
		case "redis_version":
			info.Version = word(value)
		case "valkey_version":
			own = word(value)
		case "redis_mode", "server_mode":
			info.Mode = mode(value)
		case "run_id":
			info.RunID = id(value)
		case "role":
			info.Role = role(value)
		case "tcp_port":
			info.Port, err = port(value)
		case "uptime_in_seconds":
			var n int
			n, err = count(value)
			info.Uptime = time.Duration(n) * time.Second
		case "loading":
			info.Loading = value == "1"
		case "sentinel_tilt":
			info.Tilt = value == "1"
		case "connected_clients":
			info.Clients, err = count(value)
		case "connected_slaves":
			info.Replicas, err = count(value)
		case "master_replid":
			info.ReplID = id(value)
		case "master_replid2":
			info.ReplID2 = id(value)
		case "master_repl_offset":
			info.Offset, err = strconv.ParseInt(value, 10, 64)
		case "master_host":
			primary = value
		case "master_port":
			primaryPort, err = port(value)
		case "master_link_status":
			info.LinkUp = value == "up"
		case "master_failover_state":
			info.Failover = word(value)
		}
		return err
	})
	if err == nil && primary != "" {
		info.Primary, err = host(primary, primaryPort)
	}
	if err != nil {
		return Info{}, cannot(what, err)
	}
	if own != "" {
		info.Version = own
	}
	if info.Mode == ModeSentinel {
		info.Role = RoleSentinel // a Sentinel has no section replication
	}
	return info, nil
}

// count is a number that fits into 31 bits.
func count(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is no count", clip(s))
	}
	return int(n), nil
}

func epoch(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no epoch", clip(s))
	}
	return n, nil
}

// RoleReply is ROLE. Of a primary it has the replicas that are connected, of a replica its
// primary and the state of its link, of a Sentinel the names that it watches.
type RoleReply struct {
	Role     Role
	Offset   int64
	Replicas []Address
	Primary  Address
	State    string // connect, connecting, sync, connected, handshake
	Names    []string
	Dropped  int // replicas or names beyond MaxNodes
}

// ParseRole reads ROLE.
func ParseRole(v resp.Value) (RoleReply, error) {
	const what = "ROLE"
	r, err := parseRole(v)
	if err != nil {
		return RoleReply{}, cannot(what, err)
	}
	return r, nil
}

func parseRole(v resp.Value) (r RoleReply, err error) {
	e, err := list(v)
	if err != nil {
		return r, err
	}
	if len(e) < 2 {
		return r, errors.New("too short")
	}
	s, err := text(e[0])
	if err != nil {
		return r, err
	}
	switch r.Role = role(s); r.Role {
	case RolePrimary:
		if r.Offset, err = number(e[1]); err != nil || len(e) < 3 {
			return r, err
		}
		replicas, err := list(e[2])
		if err != nil {
			return r, err
		}
		for _, v := range replicas {
			if len(r.Replicas) == MaxNodes {
				r.Dropped++
				continue
			}
			a, err := hostPort(v)
			if err != nil {
				return r, err
			}
			r.Replicas = append(r.Replicas, a)
		}
		return r, nil
	case RoleReplica:
		if len(e) < 5 {
			return r, errors.New("too short")
		}
		if r.Primary, err = hostPort(resp.Value{Kind: resp.Array, Elems: e[1:3]}); err != nil {
			return r, err
		}
		if s, err = text(e[3]); err != nil {
			return r, err
		}
		r.State = word(s)
		r.Offset, err = number(e[4])
		return r, err
	case RoleSentinel:
		names, err := list(e[1])
		if err != nil {
			return r, err
		}
		for _, v := range names {
			name, err := text(v)
			if err != nil {
				return r, err
			}
			if len(r.Names) == MaxNodes || !isWord(name) {
				r.Dropped++
				continue
			}
			r.Names = append(r.Names, name)
		}
		return r, nil
	}
	return r, fmt.Errorf("%q is no role", clip(s))
}

// hostPort reads an array that begins with a host and a port.
func hostPort(v resp.Value) (Address, error) {
	e, err := list(v)
	if err != nil {
		return Address{}, err
	}
	if len(e) < 2 {
		return Address{}, errors.New("a host without a port")
	}
	s, err := text(e[0])
	if err != nil {
		return Address{}, err
	}
	p, err := portOf(e[1])
	if err != nil {
		return Address{}, err
	}
	a, err := host(s, p)
	if a.Told == AsDialled {
		a = Address{} // of another process that means nothing
	}
	return a, err
}

// Hello is HELLO: what kind of server this is.
type Hello struct {
	Server  string // "redis", also of Valkey
	Version string
	Proto   int
	Mode    Mode
	Role    Role
}

// ParseHello reads HELLO, which servers know since 6.0. Without a password a server that
// wants one answers with a Refusal, NOAUTH.
func ParseHello(v resp.Value) (Hello, error) {
	const what = "HELLO"
	var h Hello
	fields, err := pairs(v)
	if err == nil {
		err = refused(v)
	}
	for i := 0; i+1 < len(fields) && err == nil; i += 2 {
		key, _ := fields[i].Text()
		value := fields[i+1]
		s, _ := value.Text()
		switch key {
		case "server":
			h.Server = word(s)
		case "version":
			h.Version = word(s)
		case "proto":
			var n int64
			n, err = number(value)
			h.Proto = int(min(max(n, 0), 9))
		case "mode":
			h.Mode = mode(s)
		case "role":
			h.Role = role(s)
		}
	}
	if err != nil {
		return Hello{}, cannot(what, err)
	}
	if h.Mode == ModeSentinel {
		h.Role = RoleSentinel // which says that it is a master
	}
	return h, nil
}
