package supervisor

import (
	"testing"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/policy"
)

// Whatever turned us off, the event says so: it ends the findings, which nobody
// follows up any more.
func TestOffIsOff(t *testing.T) {
	w := someWatcher(1, 1)
	in := w.policy.Inputs
	for off, want := range map[bool]string{false: "enforce", true: "off"} {
		c := *in.Config
		if off {
			c.Watch.Mode = config.Off
		}
		next := in
		next.Config = &c
		w.policy = policy.New(next, nil)
		if m := w.mode(); m.Effective != want || m.Configured != "enforce" {
			t.Errorf("off %v: %+v", off, m)
		}
	}
}
