package supervisor

import (
	"testing"
	"time"

	"github.com/redisguard/redisguard/keepalive"
)

// Values are changed only where nobody chose them, or where they are ours: what we
// left, or what a run of the daemon before this one has set.
func TestWhoseKeepaliveItIs(t *testing.T) {
	of := func(idle, interval time.Duration, count int) keepalive.Options {
		return keepalive.Options{Keepalive: true, Idle: idle * time.Second, Interval: interval * time.Second, Count: count}
	}
	ordinary := of(10, 3, 5)
	none := keepalive.Options{Idle: 7200 * time.Second, Interval: 75 * time.Second, Count: 9}
	for name, tc := range map[string]struct {
		have, want, plan keepalive.Options
		left             *keepalive.Options
		canary           bool
	}{
		"nobody chose any":                     {have: none, want: ordinary, plan: ordinary},
		"nobody chose any, a canary":           {have: none, want: canary, plan: canary, canary: true},
		"the application's stricter ones":      {have: of(4, 1, 3), want: ordinary, plan: of(4, 1, 3)},
		"the application's, a canary":          {have: of(60, 10, 5), want: canary, plan: of(60, 10, 5), canary: true},
		"ours, to be a canary":                 {have: ordinary, left: &ordinary, want: canary, plan: canary, canary: true},
		"our canary, no more":                  {have: canary, left: &canary, want: ordinary, plan: ordinary},
		"the application's since we set ours":  {have: of(4, 1, 3), left: &canary, want: ordinary, plan: of(4, 1, 3)},
		"a predecessor's canary":               {have: canary, want: ordinary, plan: ordinary},
		"a predecessor's ordinary ones":        {have: ordinary, want: canary, plan: canary, canary: true},
		"the application's since, to a canary": {have: of(4, 1, 3), left: &ordinary, want: canary, plan: of(4, 1, 3), canary: true},
	} {
		j := &armJob{want: tc.want, left: tc.left, ordinary: ordinary, canary: tc.canary}
		if got := j.plan(tc.have); got != tc.plan {
			t.Errorf("%s: %v, want %v", name, got, tc.plan)
		}
	}
}
