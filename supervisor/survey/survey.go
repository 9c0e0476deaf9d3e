// Package survey looks once: at the node, without a daemon, and at what of a namespace is
// not toward Redis.
package survey

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
)

// Config says what to look at.
type Config struct {
	Finder netns.Finder
	// Filter is the kernel's. With Info set, an application that has the lock of its
	// socket keeps the survey waiting.
	Filter tcpstate.Filter
	// Match leaves out namespaces; nil leaves out none.
	Match func(netns.Namespace) bool
	// Keep says whether a connection is of interest; nil keeps all.
	Keep func(*tcpstate.Connection) bool
}

// Space is a namespace that matched, with its connections.
type Space struct {
	NS          netns.Namespace
	Host        bool
	Connections []tcpstate.Connection
	// Opened says of each connection whether it was opened here; there are none that were
	// accepted.
	Opened []policy.Answer
	// Err is why it could not be looked at. It wraps netns.ErrGone if it has gone.
	Err error
}

// Node is what was seen, the host's namespace first.
type Node struct {
	Spaces []Space
	// Unseen is why there may be more namespaces, and Guessed why the one that is taken
	// for the host's may be another; nil if there is nothing to say.
	Unseen, Guessed error
}

// Inspect looks, on the calling thread.
func Inspect(ctx context.Context, t *netns.Thread, c Config) (*Node, error) {
	found, err := c.Finder.Find(ctx, t)
	node := &Node{Unseen: err, Guessed: c.Finder.HostErr}
	var socket tcpstate.Socket
	for i, ns := range found {
		if c.Match != nil && !c.Match(ns) {
			continue
		}
		sp := Space{NS: ns, Host: i == 0}
		seen := map[uint64]bool{} // a dump may repeat a socket
		sp.Err = visit(t, ns, func() error {
			return socket.Use(func() error {
				err := socket.Dump(c.Filter, func(k *tcpstate.Connection) error {
					if !seen[k.Cookie] && (c.Keep == nil || c.Keep(k)) {
						seen[k.Cookie] = true
						sp.Connections = append(sp.Connections, *k)
					}
					return ctx.Err()
				})
				if err == nil && len(sp.Connections) > 0 {
					sp.leaveAccepted(&socket)
				}
				return err
			})
		})
		if errors.Is(sp.Err, netns.ErrStranded) {
			return node, sp.Err
		}
		if sp.Err != nil && !errors.Is(sp.Err, netns.ErrGone) {
			sp.Err = fmt.Errorf("cannot list connections of network namespace %s: %w", ns, sp.Err)
		}
		node.Spaces = append(node.Spaces, sp)
	}
	return node, nil
}

// leaveAccepted leaves out the connections that were accepted. What cannot be told is not
// an error: it is only not known of any who opened it.
func (sp *Space) leaveAccepted(socket *tcpstate.Socket) {
	var o policy.Origin
	o.Low, o.High, _ = tcpstate.LocalPorts()
	list, err := socket.Listening()
	o.Listening, o.Listed = list, err == nil
	all := sp.Connections
	sp.Connections = sp.Connections[:0]
	for i := range all {
		if opened := o.Opened(&all[i], policy.Accepted(&all[i])); opened != policy.No {
			sp.Connections, sp.Opened = append(sp.Connections, all[i]), append(sp.Opened, opened)
		}
	}
}

// visit runs fn in ns. Our own namespace can be looked at without the right to enter any.
func visit(t *netns.Thread, ns netns.Namespace, fn func() error) error {
	err := t.Visit(ns, fn)
	if errors.Is(err, unix.EPERM) {
		var st unix.Stat_t
		if unix.Stat("/proc/thread-self/ns/net", &st) == nil && (netns.Key{Dev: st.Dev, Inode: st.Ino}) == ns.ID.Key() {
			return fn()
		}
	}
	return err
}
