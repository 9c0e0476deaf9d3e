package view

import (
	"net/netip"
	"time"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/resolver"
)

// Target is what is known of a target. It is immutable.
type Target struct {
	Conf     *config.TargetSection
	Topology *clusterview.Topology
	Seeds    []netip.AddrPort // as they were looked up
	Names    []resolver.State // of the seeds that are names
	// Changed is when the topology has changed the last time, zero if it never did, and Change
	// what that was.
	Changed time.Time
	Change  string
	Problem string // what is wrong, "" for nothing
}

// VisibleTo says whether the config lets a workload ask about the target that has no connection
// to it. What is not known of it is empty.
func (t *Target) VisibleTo(podNamespace, pod, unit string) bool {
	w := &t.Conf.VisibleTo
	return config.MatchAny(w.Namespaces, podNamespace) || config.MatchAny(w.Pods, pod) || config.MatchAny(w.Units, unit)
}
