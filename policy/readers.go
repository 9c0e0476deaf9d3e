package policy

import "github.com/redisguard/redisguard/config"

// Reads says whether the holder of a connection to a target wants replicas, by the config of
// the target: its connections to a node that becomes a replica are left alone. Of a holder of
// whom nothing is known it is assumed, where the config names any. Redis itself, a Sentinel
// for instance, wants to know each node whatever its role is.
func (p *Policy) Reads(target string, h *Holder) bool {
	if h.Redis != "" {
		return true
	}
	t := p.Config.Target(target)
	if t == nil || t.Readers.Empty() {
		return false
	}
	if h.Owner == nil {
		return true
	}
	r := &t.Readers
	for o := range h.Processes() {
		if config.MatchAny(r.Namespaces, o.PodNamespace) || config.MatchAny(r.Pods, o.PodName) ||
			config.MatchAny(r.Units, o.Workload.Unit) || config.MatchAny(r.Commands, o.Process.Comm) {
			return true
		}
	}
	return false
}
