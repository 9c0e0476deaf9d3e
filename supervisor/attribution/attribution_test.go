package attribution

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

func TestMain(m *testing.M) {
	lab.MaybeChild()
	maybeActor()
	labtest.Main(m)
}

const port = 17411

// on runs fn on a thread that may visit namespaces.
func on(t *testing.T, fn func(*netns.Thread) error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		th, err := netns.NewThread()
		if err == nil {
			err = fn(th)
			th.Close()
		}
		done <- err
	}()
	labtest.Must(t, <-done)
}

// A client's connection has its process, in a namespace where no Redis listens; the
// server's namespace is known by its server; and what is asked in the loop is answered.
func TestWhoseItIs(t *testing.T) {
	l, err := lab.New(lab.Config{Prefix: "rgat"})
	labtest.Must(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server, err := l.Server("s")
	labtest.Must(t, err)
	host, err := l.Client("c")
	labtest.Must(t, err)
	redis, err := server.Redis(ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	client, err := host.Client(ctx, lab.ClientConfig{Kind: lab.Subscriber, Addr: redis.Addr(), Conns: 1})
	labtest.Must(t, err)
	labtest.Must(t, client.Ready(ctx))

	c := config.Default()
	c.Watch.Ports = []uint16{port}
	p := policy.New(policy.Inputs{Config: &c, Override: config.Enforce, Self: os.Getpid()}, nil)
	answers := make(chan Answers, 10)
	loop := New(Config{
		Policy: func() *policy.Policy { return p }, Log: slog.New(slog.DiscardHandler), Figures: figures.New(),
		Deliver: func(_ context.Context, a Answers) { answers <- a },
	})
	var spaces []netns.Namespace
	var subject *Subject
	on(t, func(th *netns.Thread) error {
		f := loop.Proc.Finder(nil)
		list, err := f.Find(ctx, th) // which may say that somebody else's cannot be seen
		if len(list) == 0 {
			return err
		}
		err = nil
		for _, ns := range list {
			if ns.Name == host.NSName || ns.Name == server.NSName {
				spaces = append(spaces, ns)
			}
			if ns.Name == host.NSName {
				var s tcpstate.Socket
				err = s.In(th, ns, func() error {
					return s.Dump(tcpstate.Filter{RemotePorts: []uint16{port}}, func(k *tcpstate.Connection) error {
						subject = &Subject{Key: verdict.ConnKey{NS: verdict.NS(ns.ID.Number()), Cookie: k.Cookie}, NS: ns, ID: k.ID, Inode: k.Inode, UID: k.UID}
						return nil
					})
				})
			}
		}
		return err
	})
	if len(spaces) != 2 || subject == nil {
		t.Fatalf("namespaces %v, connection %+v", spaces, subject)
	}

	var found map[netns.ID]policy.Occupants
	survey := func() {
		t.Helper()
		on(t, func(th *netns.Thread) (err error) {
			found, err = loop.Survey(ctx, th, spaces, netns.ID{})
			return err
		})
		for _, ns := range spaces {
			want := policy.No
			if ns.Name == server.NSName {
				want = policy.Yes
			}
			if o := found[ns.ID]; o.Redis != want || (o.RedisWhy != "") != (want == policy.Yes) || o.Connections != 0 {
				t.Errorf("%s: %+v, want %v", ns.Name, o, want)
			}
		}
	}
	survey()
	if a := <-answers; len(a.Occupants) != 2 {
		t.Errorf("the watcher is told of %d namespaces", len(a.Occupants))
	}
	// What has not changed is not looked for again, and nobody is told again.
	survey()
	if len(answers) != 0 {
		t.Error("told again of what has not changed")
	}
	// Another port is watched: it is known by its name, whatever its port.
	other := c
	other.Watch.Ports = []uint16{port + 1}
	p = policy.New(policy.Inputs{Config: &other, Override: config.Enforce, Self: os.Getpid()}, p)
	survey()
	p = policy.New(policy.Inputs{Config: &c, Override: config.Enforce, Self: os.Getpid()}, p)

	for len(answers) > 0 {
		<-answers
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(run) }()
	gone := *subject
	gone.Key.Cookie, gone.ID.Cookie = 1, 1 // of no socket
	if !loop.Request([]*Subject{subject, &gone}) {
		t.Error("an idle loop takes nothing")
	}
	a := <-answers
	stop()
	labtest.Must(t, <-ended)
	if len(a.Holders) != 1 || a.Holders[0].Key != subject.Key {
		t.Fatalf("answers: %+v", a)
	}
	h := a.Holders[0].Holder
	if !h.Asked || h.Owner == nil || h.Owner.Process.PID != client.Pid() || h.Redis != "" || h.User != "root" {
		t.Errorf("its holder is %+v", h)
	}
	if o := a.Occupants[subject.NS.ID]; o.Redis != policy.No {
		t.Errorf("where it is: %+v", o)
	}
	// One that waits for a loop that does not run is not taken for ever.
	n := 0
	for loop.Request([]*Subject{subject}) {
		if n++; n > room {
			t.Fatal("more is taken than there is room for")
		}
	}
}

// What was found out about listening sockets is not forgotten because a later pass over
// /proc did not find their owners; but it is looked for again where it is not known.
func TestSpacesKeepWhatIsKnown(t *testing.T) {
	s := newSpaces(proc.FS{})
	id := func(n uint64) netns.ID { return netns.ID{Inode: n} }
	c := config.Default()
	p := policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil)
	redis := proc.Owner{Process: proc.Process{PID: 4711, Comm: "redis-server", Exe: "/usr/bin/redis-server"}}
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), port) }
	found := func() []policy.Listener { return []policy.Listener{{Addr: at(7001), Inode: 1, Owner: &redis}} }
	missed := func() []policy.Listener { return []policy.Listener{{Addr: at(7001), Inode: 1}} }
	if o := s.listening(id(1), missed(), p); o.Redis != policy.CouldNotTell {
		t.Fatalf("without an owner: %v", o.Redis)
	}
	sp, now := s.known[id(1)], sys.Monotonic()
	if !sp.fresh(sp.listens, &c, now) || sp.fresh(sp.listens, &c, now+retryUnknown) {
		t.Error("what could not be told is not looked for again after a while, or at once")
	}
	if o := s.listening(id(1), found(), p); o.Redis != policy.Yes {
		t.Fatalf("with its owner: %v", o.Redis)
	}
	if o := s.listening(id(1), missed(), p); o.Redis != policy.Yes {
		t.Errorf("the owner was missed once: %v", o.Redis)
	}
	if !sp.fresh(sp.listens, &c, now+time.Hour) {
		t.Error("what is known is looked for again though nothing has changed")
	}
	if other := config.Default(); sp.fresh(sp.listens, &other, now) {
		t.Error("another config, which may name other servers, changes nothing")
	}
	if o := s.listening(id(1), append(missed(), policy.Listener{Addr: at(80), Inode: 2}), p); o.Redis != policy.CouldNotTell {
		t.Errorf("other sockets: %v", o.Redis)
	}
	for n := range uint64(maxSpaces + 10) {
		s.listening(id(100+n), nil, p)
	}
	if len(s.known) > maxSpaces || s.known[id(100+maxSpaces+9)] == nil {
		t.Errorf("%d namespaces remembered", len(s.known))
	}
}
