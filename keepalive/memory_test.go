package keepalive

import (
	"testing"
	"time"
)

func times(idle, interval time.Duration, count int) Options {
	return Options{Keepalive: true, Idle: idle * time.Second, Interval: interval * time.Second, Count: count}
}

// Values are changed only where nobody chose them, or where they are ours; and what
// is ours can be taken back.
func TestWhoseKeepaliveItIs(t *testing.T) {
	strict, ordinary, none := times(2, 2, 11), times(10, 3, 5), times(7200, 75, 9)
	none.Keepalive = false
	with := func(o Options, userTimeout time.Duration) Options {
		o.UserTimeout = userTimeout * time.Second
		return o
	}
	off := func(o Options) Options {
		o.Keepalive = false
		return o
	}
	ptr := func(o Options) *Options { return &o }
	for name, tc := range map[string]struct {
		have, want, plan Options
		left, original   *Options
	}{
		"nobody chose any":                       {have: none, want: ordinary, plan: ordinary},
		"the application's stricter ones":        {have: times(4, 1, 3), want: ordinary, plan: times(4, 1, 3)},
		"the application's lax ones":             {have: times(60, 10, 5), want: ordinary, plan: ordinary},
		"the application's, and a slower config": {have: strict, left: &strict, original: ptr(times(15, 15, 9)), want: times(600, 60, 9), plan: times(15, 15, 9)},
		"ours, stricter than the config by now":  {have: strict, left: &strict, original: &none, want: ordinary, plan: ordinary},
		"ours, and a slower config":              {have: ordinary, left: &ordinary, original: &none, want: times(60, 10, 5), plan: times(60, 10, 5)},
		"the application's since":                {have: times(4, 1, 3), left: &strict, original: &none, want: ordinary, plan: times(4, 1, 3)},
		"turned off by the application since":    {have: off(ordinary), left: &ordinary, original: &none, want: ordinary, plan: off(ordinary)},
		"a predecessor's ordinary ones":          {have: ordinary, want: times(600, 60, 9), plan: ordinary},
		"a user timeout would be fatal":          {have: with(none, 5), want: ordinary, plan: with(none, 5)},
		"a user timeout that is long enough":     {have: with(none, 25), want: ordinary, plan: with(ordinary, 25)},
		"our user timeout, shorter":              {have: with(ordinary, 60), left: ptr(with(ordinary, 60)), original: &none, want: with(ordinary, 30), plan: with(ordinary, 30)},
		"our user timeout, longer":               {have: with(ordinary, 30), left: ptr(with(ordinary, 30)), original: &none, want: with(ordinary, 60), plan: with(ordinary, 60)},
		"our user timeout, no more":              {have: with(ordinary, 30), left: ptr(with(ordinary, 30)), original: &none, want: ordinary, plan: ordinary},
	} {
		m := Memory{Left: tc.left, Original: tc.original}
		got := m.Plan(tc.have, tc.want)
		if got != tc.plan {
			t.Errorf("%s: %v, want %v", name, got, tc.plan)
		}
		// Set, and looked at again, it is as it should be.
		var next Memory
		if own := m.Own(tc.have); own != got {
			next.Left, next.Original = &got, &own
		}
		if again := next.Plan(got, tc.want); again != got && tc.plan != off(ordinary) {
			t.Errorf("%s: %v, and once more %v", name, got, again)
		}
	}
}
