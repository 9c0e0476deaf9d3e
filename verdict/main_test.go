package verdict

import (
	"fmt"
	"os"
	"testing"
)

// Whatever the tests have done: what is shared by all connections was not written to.
func TestMain(m *testing.M) {
	code := m.Run()
	if unknownPeer != (peer{}) {
		fmt.Fprintln(os.Stderr, "verdict: something wrote to unknownPeer, which all connections share:", unknownPeer)
		code = 1
	}
	os.Exit(code)
}
