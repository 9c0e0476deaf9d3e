package reply

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redisguard/redisguard/resp"
)

// Health is that of a node in CLUSTER SHARDS; empty is unknown.
type Health string

// The values. Servers have said "fail" and "failed" for the same.
const (
	Online  Health = "online"
	Failed  Health = "failed"
	Loading Health = "loading"
)

// Shard is an entry of CLUSTER SHARDS.
type Shard struct {
	Slots []SlotRange
	Nodes []ShardNode
}

// ShardNode is a node of a Shard. A port that is 0 was not told: the server does not listen
// on it.
type ShardNode struct {
	ID            string
	Preferred, IP Address // with the port for connections of the kind that asked
	Name          string
	Port, TLSPort uint16
	Primary       bool
	Health        Health
	Offset        int64
}

// Shards is CLUSTER SHARDS. Dropped is how many nodes beyond MaxNodes there were.
type Shards struct {
	Shards  []Shard
	Dropped int
}

// ParseShards reads CLUSTER SHARDS, which servers know since 7.0. tls says that it was asked
// over TLS, where clients of the same kind dial tls-port.
func ParseShards(v resp.Value, tls bool) (Shards, error) {
	const what = "CLUSTER SHARDS"
	entries, err := list(v)
	if err != nil {
		return Shards{}, cannot(what, err)
	}
	var all Shards
	ranges, nodes := 0, 0
	for i, e := range entries {
		s, err := parseShard(e, tls, &ranges, &nodes)
		if err != nil {
			return Shards{}, cannot(what, fmt.Errorf("shard %d: %w", i+1, err))
		}
		if len(all.Shards) < MaxNodes {
			all.Shards = append(all.Shards, s)
		}
	}
	all.Dropped = max(0, nodes-MaxNodes) + max(0, len(entries)-MaxNodes)
	return all, nil
}

func parseShard(v resp.Value, tls bool, ranges, nodes *int) (s Shard, err error) {
	fields, err := pairs(v)
	if err != nil {
		return s, err
	}
	for i := 0; i < len(fields); i += 2 {
		key, _ := fields[i].Text()
		if key != "slots" && key != "nodes" {
			continue
		}
		elems, err := list(fields[i+1])
		if err != nil {
			return s, fmt.Errorf("%s: %w", key, err)
		}
		if key == "slots" {
			if *ranges += len(elems) / 2; *ranges > MaxRanges {
				return s, errors.New("more ranges of slots than there are slots")
			}
			for ; len(elems) >= 2; elems = elems[2:] {
				r, err := slotRange(elems[0], elems[1])
				if err != nil {
					return s, err
				}
				s.Slots = append(s.Slots, r)
			}
			if len(elems) > 0 {
				return s, errors.New("a range of slots without an end")
			}
			continue
		}
		for _, e := range elems {
			if *nodes++; *nodes > MaxNodes {
				continue
			}
			n, err := parseShardNode(e, tls)
			if err != nil {
				return s, err
			}
			s.Nodes = append(s.Nodes, n)
		}
	}
	return s, nil
}

func parseShardNode(v resp.Value, tls bool) (n ShardNode, err error) {
	fields, err := pairs(v)
	if err != nil {
		return n, err
	}
	var preferred, ip resp.Value
	for i := 0; i < len(fields) && err == nil; i += 2 {
		key, _ := fields[i].Text()
		value := fields[i+1]
		s, _ := value.Text()
		switch key {
		case "id":
			n.ID = s
		case "port":
			n.Port, err = portOf(value)
		case "tls-port":
			n.TLSPort, err = portOf(value)
		case "ip":
			ip = value
		case "endpoint":
			preferred = value
		case "hostname":
			if isName(s) {
				n.Name = strings.ToLower(s)
			}
		case "role":
			n.Primary = s == "master" || s == "primary"
		case "replication-offset":
			n.Offset, err = number(value)
		case "health":
			switch s {
			case "online", "loading":
				n.Health = Health(s)
			case "fail", "failed":
				n.Health = Failed
			}
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
	}
	if err != nil {
		return n, err
	}
	if !isID(n.ID) {
		return n, fmt.Errorf("%q is no node id", clip(n.ID))
	}
	p := n.Port
	if tls {
		p = n.TLSPort
	}
	if preferred.Kind != 0 {
		if n.Preferred, err = endpoint(preferred, p); err != nil {
			return n, err
		}
	}
	// An empty ip is that of a node that does not know its own, or that nobody reaches.
	if s, ok := ip.Text(); ok && s != "" {
		n.IP, err = host(s, p)
	}
	return n, err
}

// ClusterInfo is CLUSTER INFO.
type ClusterInfo struct {
	OK           bool // cluster_state
	Assigned     int  // slots that have an owner
	SlotsPFail   int
	SlotsFail    int
	KnownNodes   int
	Size         int // primaries that have slots
	CurrentEpoch uint64
	MyEpoch      uint64
}

// ParseClusterInfo reads CLUSTER INFO.
func ParseClusterInfo(v resp.Value) (ClusterInfo, error) {
	const what = "CLUSTER INFO"
	var info ClusterInfo
	s, err := text(v)
	if err != nil {
		return info, cannot(what, err)
	}
	known := false
	err = lines(s, func(name, value string) (err error) {
		switch name {
		case "cluster_state":
			known, info.OK = true, value == "ok"
		case "cluster_slots_assigned":
			info.Assigned, err = count(value)
		case "cluster_slots_pfail":
			info.SlotsPFail, err = count(value)
		case "cluster_slots_fail":
			info.SlotsFail, err = count(value)
		case "cluster_known_nodes":
			info.KnownNodes, err = count(value)
		case "cluster_size":
			info.Size, err = count(value)
		case "cluster_current_epoch":
			info.CurrentEpoch, err = epoch(value)
		case "cluster_my_epoch":
			info.MyEpoch, err = epoch(value)
		}
		return err
	})
	if err == nil && !known {
		err = errors.New("it has no cluster_state")
	}
	if err != nil {
		return ClusterInfo{}, cannot(what, err)
	}
	return info, nil
}
