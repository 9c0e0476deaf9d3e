// Command example shows how a program reacts to what redisguard finds: it keeps a
// list of endpoints that are down, so that it need not try them, and has its pools
// look again when one of its own connections was ended.
//
// Run it beside a daemon, on the host or in a pod that has the socket mounted (there
// it is told of what concerns the pod).
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"os"
	"os/signal"
	"slices"
	"sync"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
)

// avoid is what the program knows about endpoints.
type avoid struct {
	mu   sync.Mutex
	down map[string]map[string]bool // endpoint to the namespaces from which it is down
}

// Down says whether an endpoint should be tried last.
func (a *avoid) Down(endpoint string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.down[endpoint]) > 0
}

func (a *avoid) set(endpoint, namespace string, down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down[endpoint] == nil {
		a.down[endpoint] = map[string]bool{}
	}
	if down {
		a.down[endpoint][namespace] = true
	} else {
		delete(a.down[endpoint], namespace)
	}
	log.Printf("%s down: %v", endpoint, len(a.down[endpoint]) > 0)
}

// forget makes room for a snapshot, which says all there is.
func (a *avoid) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = map[string]map[string]bool{}
}

func main() {
	socket := flag.String("socket", "", "the daemon's socket (default "+v1.DefaultSocket+")")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c := client.New(client.Config{Socket: *socket})
	defer c.Close()
	a := &avoid{}
	a.forget()
	if err := follow(ctx, c, a, refresh); err != nil {
		log.Print(err)
		os.Exit(1)
	}
}

// follow keeps a up to date until ctx ends. refresh is called when one of our own
// connections was ended.
func follow(ctx context.Context, c *client.Client, a *avoid, refresh func(endpoint string)) error {
	types := []v1.EventType{v1.EventEndpointDown, v1.EventEndpointUp, v1.EventConnectionReaped}
	for event, err := range c.Events(ctx, "", types...) {
		if e, ok := errors.AsType[*client.Error](err); ok && e.Kind == v1.KindCursorGone {
			// We were away for too long, or the daemon was started anew. A
			// snapshot follows.
			a.forget()
			continue
		}
		if e, ok := errors.AsType[*client.Error](err); ok && e.Status/100 == 4 && e.Status != 429 {
			return err // another try will not mend this
		}
		if err != nil {
			// What we know may be out of date, but it is the best we have; the
			// loop goes on when the daemon is back.
			log.Print(err)
			continue
		}
		switch event.Type {
		case v1.Snapshot:
			if f := event.Finding; f != nil && f.Code == v1.CodeEndpointDown {
				a.set(f.Endpoint, f.NamespaceID, true)
			}
		case v1.EventEndpointDown:
			a.set(event.Endpoint, event.NamespaceID, true)
		case v1.EventEndpointUp:
			a.set(event.Endpoint, event.NamespaceID, false)
		case v1.EventConnectionReaped:
			if event.Outcome == v1.OutcomeReaped && ours(event.Connection) {
				refresh(event.Endpoint)
			}
		}
	}
	return nil
}

// ours says whether a connection is of this process. In a pod with a process
// namespace of its own the numbers differ, but there all that is shown is the
// pod's.
func ours(c *v1.EventConnection) bool {
	return c != nil && c.Process != nil && slices.Contains([]int{0, os.Getpid()}, c.Process.PID)
}

// refresh is where a program would have its client look at the topology again:
// go-redis's ReloadState, Lettuce's refreshPartitions, ioredis's refreshSlotsCache.
func refresh(endpoint string) {
	log.Printf("a connection of ours to %s was ended: looking where to connect now", endpoint)
}
