package cli

import (
	"os"
	"runtime"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/redisguard/redisguard/lab"
)

// init is that of package main: the test binary is the command in scripts.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	lab.MaybeChild()
	testscript.Main(m, map[string]func(){
		"redisguard": func() { os.Exit(Main(os.Args[1:])) },
	})
}

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
