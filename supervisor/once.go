package supervisor

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// once runs fn beside no daemon, on a thread of its own: never the main one, which
// must not enter namespaces.
func once(opt Options, fn func(*Supervisor, *netns.Thread) error) error {
	s := &Supervisor{opt: opt, log: cmp.Or(opt.Log, slog.New(slog.DiscardHandler)), figures: newFigures()}
	s.conf.Store(&opt.Config)
	done := make(chan error)
	go func() {
		thread, err := netns.NewThread()
		if err == nil {
			err = fn(s, thread)
			thread.Close()
		}
		done <- err
	}()
	return <-done
}

// lookOnce lists the namespaces of the node, the host's first, with their
// connections to watched endpoints and whose those are. seen is why there may be
// more.
func (s *Supervisor) lookOnce(ctx context.Context, thread *netns.Thread) (spaces []spaceOnce, seen, err error) {
	f, c := s.finder(), s.config()
	found, seen := f.Find(ctx, thread)
	seen = errors.Join(seen, f.HostErr)
	var socket tcpstate.Socket
	var batch []*subject
	at := map[verdict.ConnKey]*tracked{}
	for _, ns := range found {
		sp := spaceOnce{ns: ns}
		err := thread.Visit(ns, func() error {
			if err := socket.Open(); err != nil {
				return err
			}
			defer socket.Close()
			return socket.Dump(tcpstate.Filter{RemotePorts: c.Watch.Ports}, func(k *tcpstate.Connection) error {
				if wanted(c, k) && k.Inode != 0 {
					t := &tracked{key: verdict.ConnKey{NS: nsKey(ns.ID), Cookie: k.Cookie}, space: &space{ns: ns}, conn: *k, own: ownership{asked: true}}
					sp.conns, at[t.key], batch = append(sp.conns, t), t, append(batch, subjectOf(t))
				}
				return ctx.Err()
			})
		})
		if errors.Is(err, netns.ErrStranded) {
			return nil, seen, err
		}
		if err != nil && !errors.Is(err, netns.ErrGone) {
			seen = errors.Join(seen, err)
		}
		spaces = append(spaces, sp)
	}
	answers, _ := s.attribution(thread).resolve(ctx, batch)
	for i := range answers {
		t := at[answers[i].key]
		t.own = answers[i].own
	}
	for _, t := range at {
		t.untouchable, t.untouchableWhy = s.touchable(c, &t.conn, &t.own)
	}
	return spaces, seen, nil
}

// spaceOnce is what lookOnce has found in one namespace.
type spaceOnce struct {
	ns    netns.Namespace
	conns []*tracked
}
