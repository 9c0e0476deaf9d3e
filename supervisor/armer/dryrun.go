package armer

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/abandon"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/view"
)

// Plan is what arming would do to one connection now.
type Plan struct {
	Conn *Conn
	// State is armed for one that is by a daemon already, planned for one that would be.
	State view.ArmState
	Why   string // it would not be
	// Now and Then are its options, and would be; zero if they could not be read.
	Now, Then keepalive.Options
}

// DryRun says, without a daemon, what arming would do to connections. Options are read
// and nothing is set; what is read of a connection is kept in its TCP.
func DryRun(ctx context.Context, c *config.Config, conns []*Conn) (list []Plan) {
	want := Options(c)
	var ask []*Result
	read := map[*Conn]*Result{}
	for _, k := range conns {
		if state, _ := k.armable(); state == "" {
			read[k] = &Result{Job: k.job(c, want, true)}
			ask = append(ask, read[k])
		}
	}
	for i, got := range readAll(ctx, ask) {
		r, k := ask[i], ask[i].Job.conn
		if r.Err = got.err; got.err != nil {
			k.state = view.ArmFailed
			continue
		}
		k.TCP.Info = got.info
		r.Before, r.After = got.options, got.options
		k.options = &r.Before
	}
	for _, k := range conns {
		p := Plan{Conn: k}
		if r := read[k]; r == nil {
			p.State, p.Why = k.armable()
		} else {
			p.State, _, p.Why = r.outcome()
			if r.Err == nil {
				p.Now, p.Then = r.Before, r.Job.Memory.Plan(r.Before, r.Job.Want)
			}
		}
		list = append(list, p)
	}
	return list
}

// reading is what was read of a connection.
type reading struct {
	info    tcpstate.Info
	options keepalive.Options
	err     error
}

// maxBlockedDry is how many sockets may be blocked before no more are read.
const maxBlockedDry = 8

// readAll reads TCP_INFO and options, both under the socket's lock, on goroutines that
// can be abandoned.
func readAll(ctx context.Context, list []*Result) []reading {
	all := make([]reading, 0, len(list))
	for blocked := 0; len(all) < len(list) && ctx.Err() == nil; {
		if blocked == maxBlockedDry {
			all = append(all, reading{err: fmt.Errorf("not read: %d others do not let their sockets be reached", blocked)})
			continue
		}
		rest := list[len(all):]
		its := make([]reading, len(rest))
		var thread *netns.Thread
		r := abandon.New(len(rest), func(i int) {
			j, o := rest[i].Job, &its[i]
			var k *tcpstate.Connection
			if k, o.err = j.inspect(&thread, (*tcpstate.Socket).Get); o.err == nil {
				o.info = k.Info
				socket := j.Socket
				socket.Remote = netip.AddrPort{} // the look was by it
				o.options, o.err = keepalive.Read(socket)
			}
		})
		go func() {
			r.Do()
			if thread != nil {
				thread.Close()
			}
		}()
		done := r.Await(ctx, patience)
		if all = append(all, its[:done]...); done < len(rest) {
			blocked++
			all = append(all, reading{err: ErrBlocked})
		}
	}
	for len(all) < len(list) {
		all = append(all, reading{err: ctx.Err()})
	}
	return all
}
