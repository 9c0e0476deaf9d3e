package targets

import (
	"testing"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

func TestMain(m *testing.M) {
	lab.MaybeChild()
	labtest.Main(m)
}
