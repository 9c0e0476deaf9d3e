// Command redisguard ends TCP connections to Redis whose other end is gone.
package main

import (
	"os"
	"runtime"

	"github.com/redisguard/redisguard/internal/cli"
)

// init keeps the main goroutine, which never visits a network namespace, on the
// main thread. A goroutine that went visiting there and could not come back
// would leave /proc/self/ns/net in a foreign namespace for ever, since the
// runtime cannot end that thread.
func init() { runtime.LockOSThread() }

func main() { os.Exit(cli.Main(os.Args[1:])) }
