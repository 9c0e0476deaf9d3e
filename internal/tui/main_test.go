package tui

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/redisguard/redisguard/lab/labtest"
)

func TestMain(m *testing.M) {
	// A timer, of a second at most, that bubbletea does not stop.
	labtest.Main(m, goleak.IgnoreAnyFunction("charm.land/bubbletea/v2.Tick.func1"))
}
