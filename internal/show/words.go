package show

import (
	"fmt"
	"strings"

	v1 "github.com/redisguard/redisguard/api/v1"
)

// About names what an event or a finding is about, in a few words.
func About(endpoint, namespace string, k *v1.EventConnection) string {
	var words []string
	if k != nil {
		if p := Process(k.Process); p != "?" {
			words = append(words, p)
		}
		if w := Workload(k.Process); w != "-" {
			words = append(words, w)
			namespace = "" // says less
		}
		if endpoint == "" {
			endpoint = k.Endpoint
		}
	}
	for _, s := range []string{endpoint, namespace} {
		if s != "" {
			words = append(words, Plain(s))
		}
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, " ")
}

// Process names a process.
func Process(p *v1.Process) string {
	if p == nil || p.PID == 0 {
		return "?"
	}
	return Plain(p.Command) + "[" + fmt.Sprint(p.PID) + "]"
}

// Workload names the pod, container or unit of a process.
func Workload(p *v1.Process) string {
	switch {
	case p == nil:
		return "-"
	case p.PodName != "":
		return Plain(p.PodNamespace) + "/" + Plain(p.PodName)
	case p.PodUID != "":
		return "pod " + Plain(p.PodUID)
	case p.ContainerID != "":
		return "container " + Plain(p.ContainerID[:min(12, len(p.ContainerID))])
	case p.Unit != "":
		return Plain(p.Unit)
	}
	return "-"
}

// ModeReasons names everything that sets the mode.
func ModeReasons(m *v1.ModeStatus) string {
	why := []string{"config " + string(m.Configured)}
	if m.Override != "" && m.Override != v1.ModeEnforce {
		why = append(why, "override "+string(m.Override))
	}
	if m.Switch {
		why = append(why, "the off switch is there")
	}
	if m.DryRun {
		why = append(why, "--dry-run")
	}
	return strings.Join(why, ", ")
}

// State is the one thing worth knowing about a connection: its health unless
// that is good, else its state.
func State(k *v1.Connection) string {
	switch k.Health {
	case v1.HealthHalfDead:
		return "half-dead"
	case v1.HealthStalled, v1.HealthWaiting:
		return string(k.Health)
	}
	return Plain(string(k.State))
}
