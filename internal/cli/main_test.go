package cli

import (
	"os"
	"runtime"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
)

// init is that of package main: the test binary is the command in scripts.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	lab.MaybeChild()
	testscript.Main(checked{m}, map[string]func(){
		"redisguard": func() { os.Exit(Main(os.Args[1:])) },
	})
}

// checked runs the tests and looks for what they left behind.
type checked struct{ m *testing.M }

func (c checked) Run() int { return labtest.Run(c.m) }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
	})
}
