package client_test

import (
	"testing"

	"github.com/redisguard/redisguard/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }
