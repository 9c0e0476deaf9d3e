package doctor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/clusterview/session"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/resolver"
	"github.com/redisguard/redisguard/resp"
)

const (
	// maxAsks is how often one server is asked: who it is, what follows from that, and once
	// more for what others have said meanwhile.
	maxAsks = 3
	// lookFor is how long the view is led through, in its own time.
	lookFor = time.Minute
)

// look has a view of the target ask what the daemon's would ask, once. The view's time passes
// as it is needed: what it would wait for is not waited for.
func (t *target) look(ctx context.Context) *answers {
	t.ask.Do(func() {
		states := t.lookUp(ctx)
		ctx, cancel := early(ctx, 0.9) // what was found is to be told before the check is given up
		defer cancel()
		v := clusterview.New(clusterview.Config{
			Name: t.conf.Name, Type: clusterview.Type(t.conf.Type.String()), MasterName: t.conf.MasterName,
			Allow: t.conf.Allows, Translate: t.conf.Here, TLS: t.conf.TLS.Enabled, Interval: time.Second, FleetSize: 1,
			Random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		})
		a := &t.answers
		a.failed, a.refused = map[netip.AddrPort]error{}, map[string]error{}
		var seeds []netip.AddrPort
		for _, s := range t.conf.Seeds {
			addrs := []netip.AddrPort{}
			if at, literal := s.Addr(); literal {
				addrs = append(addrs, at)
			}
			for _, n := range states {
				for _, ip := range n.Addrs {
					if n.Name == resolver.Fold(s.Host) {
						addrs = append(addrs, netip.AddrPortFrom(ip, s.Port))
					}
				}
			}
			for _, at := range addrs {
				seeds = append(seeds, at)
				if t.conf.Allows(at) && !slices.Contains(a.seeds, at) {
					a.seeds = append(a.seeds, at)
				}
			}
		}
		v.SetSeeds(0, seeds)
		asks := map[netip.AddrPort]int{}
		for now := time.Duration(1); now < lookFor && ctx.Err() == nil; {
			v.Wake(now)
			wants, again, more := v.Wants(now)
			var ask []clusterview.Want
			for _, w := range wants {
				if asks[w.Addr]++; asks[w.Addr] > maxAsks || a.failed[w.Addr] != nil {
					v.NotAsked(now, w.Addr)
					continue
				}
				ask = append(ask, w)
			}
			t.put(ctx, now, v, ask)
			if len(wants) == 0 && !more {
				break
			}
			now = max(now+time.Millisecond, again)
		}
		a.top = v.Topology()
		// Ten connections of this node are enough for the view to listen to the primary as well.
		v.SetLocal(lookFor, 10)
		for _, s := range v.Subscriptions(lookFor) {
			if a.failed[s.Addr] == nil {
				t.listen(ctx, s)
			}
		}
	})
	return &t.answers
}

// put asks all of wants at once, of which there are two at most.
func (t *target) put(ctx context.Context, now time.Duration, v *clusterview.View, wants []clusterview.Want) {
	replies, errs := make([][]resp.Value, len(wants)), make([]error, len(wants))
	var wg sync.WaitGroup
	for i, w := range wants {
		wg.Go(func() {
			conn, err := t.connect(ctx, w.Addr, w.Name, w.Sentinel)
			if err == nil {
				defer conn.Close()
				commands := make([][]string, len(w.Commands))
				for k, c := range w.Commands {
					commands[k] = c.Args()
				}
				replies[i], err = conn.Do(ctx, commands...)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for i, w := range wants {
		if errs[i] != nil && ctx.Err() != nil {
			v.NotAsked(now, w.Addr)
			continue
		}
		if errs[i] != nil {
			t.answers.failed[w.Addr] = errs[i]
			v.Unanswered(now, w.Addr)
			continue
		}
		for k, c := range w.Commands {
			t.note(w.Addr, session.Check(c.Args(), replies[i][k]))
		}
		v.Answer(now, w, now, replies[i])
	}
}

// note keeps what a server does not let us run.
func (t *target) note(addr netip.AddrPort, err error) {
	if r, ok := errors.AsType[*session.Refusal](err); ok && errors.Is(err, session.ErrNoPerm) {
		t.answers.refused[fmt.Sprintf("%s at %v", r.Command, addr)] = err
	}
}

// listen tries a subscription.
func (t *target) listen(ctx context.Context, s clusterview.Subscription) {
	conn, err := t.connect(ctx, s.Addr, "", s.Sentinel)
	if err != nil {
		return // it has answered before, and may be full now
	}
	defer conn.Close()
	sub, err := conn.Subscribe(ctx, s.Channels)
	if err == nil {
		sub.Close()
	}
	t.note(s.Addr, err)
}

// connect makes a connection and logs in as the daemon does: with the same credentials, and to
// the same addresses only.
func (t *target) connect(ctx context.Context, addr netip.AddrPort, announced string, sentinel bool) (*session.Conn, error) {
	c := t.conf
	user, file, secured := c.Username, c.PasswordFile, c.TLS.Enabled
	if sentinel {
		user, file, secured = c.SentinelUsername, c.SentinelPasswordFile, c.TLS.Sentinels
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("%w: cannot identify our own network namespace: %w", errLocal, err)
	}
	cfg := session.Config{
		Timeout: t.probe.Timeout, Mark: t.probe.Mark, ServerName: t.serverName(announced), ClientName: "redisguard-doctor",
		Home: netns.Key{Dev: ns.Dev, Inode: ns.Ino},
		MayAuthenticate: func(a netip.AddrPort) error {
			if !c.Allows(a) {
				return fmt.Errorf("%v is not in allow and allow_ports", a)
			}
			return nil
		},
	}
	if secured {
		cfg.TLS = &session.TLS{CAFile: c.TLS.CA, CertFile: c.TLS.Cert, KeyFile: c.TLS.Key}
	}
	if file != "" {
		var err error
		if cfg.Password, err = session.LoadPassword(file); err != nil {
			return nil, fmt.Errorf("%w: %w", errLocal, err)
		}
		cfg.Username = user
	}
	sock, err := session.Open(addr, cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLocal, err)
	}
	conn, err := sock.Dial(ctx)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EADDRNOTAVAIL) {
		// The daemon asks from a client's namespace then.
		return nil, fmt.Errorf("%w, as the host has no way there: %w", errLocal, err)
	}
	return conn, err
}

// errLocal says that a server was not asked, for reasons of this node.
var errLocal = errors.New("not asked")

// serverName is the name that the certificate of a server must have, "" for its address.
func (t *target) serverName(announced string) string {
	switch t.conf.TLS.ServerName {
	case config.ServerNameAnnounced:
		return announced
	case config.ServerNameSeed:
		if names := t.conf.SeedNames(); len(names) > 0 {
			return names[0]
		}
		return ""
	}
	return t.conf.TLS.ServerName
}
