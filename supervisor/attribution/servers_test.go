package attribution

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/figures"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// The test binary is its own application: with actorEnv set to "kind upstream port..." it
// is connected to upstream, listens on the ports, and stays until its standard input ends.
//
//	relay    hands on what it is sent to upstream, as a proxy in TCP mode does
//	http     answers as a web server
//	silent   accepts and says nothing
//	hangup   accepts and hangs up
const actorEnv = "REDISGUARD_ATTRIBUTION_ACTOR"

func maybeActor() {
	spec := strings.Fields(os.Getenv(actorEnv))
	if len(spec) < 2 {
		return
	}
	if err := actor(spec[0], spec[1], spec[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func actor(kind, upstream string, ports []string) error {
	c, err := net.Dial("tcp", upstream)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, p := range ports {
		l, err := net.Listen("tcp", ":"+p)
		if err != nil {
			return err
		}
		go func() {
			for {
				in, err := l.Accept()
				if err != nil {
					return
				}
				go act(kind, upstream, in)
			}
		}()
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}

func act(kind, upstream string, in net.Conn) {
	defer in.Close()
	switch kind {
	case "http":
		_, _ = in.Read(make([]byte, 100))
		_, _ = io.WriteString(in, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
	case "silent":
		_, _ = io.Copy(io.Discard, in)
	case "relay":
		out, err := net.Dial("tcp", upstream)
		if err != nil {
			return
		}
		defer out.Close()
		go func() {
			_, _ = io.Copy(out, in)
			out.Close()
		}()
		_, _ = io.Copy(in, out)
	}
}

// cast is a lab with clients of a Redis that are not what their ports say.
type cast struct {
	t      *testing.T
	ctx    context.Context
	l      *lab.Lab
	redis  *lab.Redis
	secret *lab.Redis // wants a password
	hosts  []*lab.Host
}

func (c *cast) host(name string) *lab.Host {
	h, err := c.l.Client(name)
	labtest.Must(c.t, err)
	c.hosts = append(c.hosts, h)
	return h
}

func (c *cast) start(h *lab.Host, cmd *exec.Cmd) {
	_, err := h.Start(c.ctx, cmd)
	labtest.Must(c.t, err)
}

func (c *cast) actor(h *lab.Host, kind string, upstream netip.AddrPort, ports ...uint16) {
	cmd := exec.Command("/proc/self/exe")
	words := []string{kind, upstream.String()}
	for _, p := range ports {
		words = append(words, strconv.Itoa(int(p)))
	}
	cmd.Env = append(os.Environ(), actorEnv+"="+strings.Join(words, " "))
	in, err := cmd.StdinPipe()
	labtest.Must(c.t, err)
	c.t.Cleanup(func() { in.Close() })
	c.start(h, cmd)
}

// program is redis-server under another name.
func (c *cast) program(name string) string {
	from, err := exec.LookPath("redis-server")
	labtest.Must(c.t, err)
	b, err := os.ReadFile(from)
	labtest.Must(c.t, err)
	to := filepath.Join(c.t.TempDir(), name)
	labtest.Must(c.t, os.WriteFile(to, b, 0o755))
	return to
}

// subjects are the connections of a host to upstream.
func (c *cast) subjects(ns netns.Namespace, th *netns.Thread) (list []*Subject) {
	var s tcpstate.Socket
	labtest.Must(c.t, s.In(th, ns, func() error {
		return s.Dump(tcpstate.Filter{States: tcpstate.Mask(tcpstate.Established), RemotePorts: []uint16{port, port + 1}}, func(k *tcpstate.Connection) error {
			if k.Inode != 0 && !k.Remote.Addr().IsLoopback() {
				list = append(list, &Subject{Key: verdict.ConnKey{NS: verdict.NS(ns.ID.Number()), Cookie: k.Cookie}, NS: ns, ID: k.ID, Inode: k.Inode, UID: k.UID})
			}
			return nil
		})
	}))
	return list
}

// Redis itself is known by its name, its title or its answer; whatever else listens on its
// port, or on a port and 10000 more, is a client as any other.
func TestWhoIsRedisItself(t *testing.T) {
	l, err := lab.New(lab.Config{Prefix: "rgas"})
	labtest.Must(t, err)
	t.Cleanup(func() { l.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c := &cast{t: t, ctx: ctx, l: l}
	server, err := l.Server("s")
	labtest.Must(t, err)
	c.redis, err = server.Redis(ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	c.secret, err = server.Redis(ctx, lab.RedisConfig{Port: port + 1})
	labtest.Must(t, err)
	primary := c.redis.Addr()
	follow := []string{"--replicaof", primary.Addr().String(), strconv.Itoa(port)}

	type expectation struct {
		process, space policy.Answer
		why            string
	}
	want := map[string]expectation{}
	// Servers.
	_, err = c.host("named").Redis(ctx, lab.RedisConfig{Port: 7777, Path: c.program("redict-server"), Args: follow})
	labtest.Must(t, err)
	want["named"] = expectation{policy.Yes, policy.Yes, "is called redict-server"}
	unix0 := exec.Command(c.program("redis6-server"), append([]string{"--port", "0", "--unixsocket", filepath.Join(t.TempDir(), "s"), "--save", "", "--dir", t.TempDir()}, follow...)...)
	c.start(c.host("unix"), unix0)
	want["unix"] = expectation{policy.Yes, policy.No, "is called redis6-server"}
	_, err = c.host("answers").Redis(ctx, lab.RedisConfig{Port: port, Path: c.program("my-store"), Args: follow})
	labtest.Must(t, err)
	want["answers"] = expectation{policy.Yes, policy.Yes, "answers as Redis itself"}
	_, err = c.host("titled").Redis(ctx, lab.RedisConfig{Port: 7778, Path: c.program("my-store"), Args: follow})
	labtest.Must(t, err)
	want["titled"] = expectation{policy.Yes, policy.Yes, "answers as Redis itself"}
	secret := c.host("secret")
	cmd := exec.Command(c.program("my-store"), append([]string{"--port", strconv.Itoa(port), "--requirepass", "x", "--save", "", "--dir", t.TempDir()}, follow...)...)
	c.start(secret, cmd)
	want["secret"] = expectation{policy.Yes, policy.Yes, "answers as Redis, and has the title"}
	// Clients.
	c.actor(c.host("relay"), "relay", primary, port)
	want["relay"] = expectation{policy.No, policy.No, "a proxy"}
	c.actor(c.host("http"), "http", primary, port)
	want["http"] = expectation{policy.No, policy.No, "speaks another protocol"}
	c.actor(c.host("bus"), "http", primary, 8080, 18080)
	want["bus"] = expectation{policy.No, policy.No, "speaks another protocol"}
	two := c.host("two")
	c.actor(two, "http", primary, 8080)
	c.actor(two, "http", primary, 18080)
	want["two"] = expectation{policy.No, policy.No, ""}
	c.actor(c.host("hangup"), "hangup", primary, port)
	want["hangup"] = expectation{policy.No, policy.CouldNotTell, "hung up when asked"}
	c.actor(c.host("silent"), "silent", primary, port)
	want["silent"] = expectation{policy.No, policy.CouldNotTell, "did not answer when asked"}
	c.actor(c.host("plain"), "http", primary)
	want["plain"] = expectation{policy.No, policy.No, ""}
	c.actor(c.host("withheld"), "relay", c.secret.Addr(), port)
	want["withheld"] = expectation{policy.No, policy.CouldNotTell, "wants a password"}
	labtest.Must(t, server.Do(func() error { // now it wants one; the relay's link to it stays
		conn, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port+1).String())
		if err == nil {
			_, err = io.WriteString(conn, "CONFIG SET requirepass x\r\n")
			_, _ = conn.Read(make([]byte, 10))
			conn.Close()
		}
		return err
	}))

	conf := config.Default()
	conf.Watch.Ports = []uint16{port, port + 1}
	p := policy.New(policy.Inputs{Config: &conf, Override: config.Enforce, Self: os.Getpid()}, nil)
	loop := New(Config{Policy: func() *policy.Policy { return p }, Log: slog.New(slog.DiscardHandler), Figures: figures.New()})
	on(t, func(th *netns.Thread) error {
		f := loop.Proc.Finder(nil)
		spaces, err := f.Find(ctx, th) // which may say that somebody else's cannot be seen
		if len(spaces) == 0 {
			return err
		}
		for _, h := range c.hosts {
			for _, ns := range spaces {
				if ns.Name == h.NSName {
					c.check(th, loop, h.Name, ns, want[h.Name].process, want[h.Name].space, want[h.Name].why)
				}
			}
		}
		return nil
	})
	if n := loop.Figures.Read().Questions; n < 8 || n > 30 {
		t.Errorf("%d questions were asked", n)
	}
}

// check waits until it is decided about all connections of a host.
func (c *cast) check(th *netns.Thread, loop *Loop, name string, ns netns.Namespace, process, space policy.Answer, why string) {
	c.t.Helper()
	var a Answers
	var again []*Subject
	labtest.Within(c.t, 20*time.Second, name+" is decided about", func() bool {
		subjects := c.subjects(ns, th)
		if len(subjects) == 0 {
			return false // it is still connecting
		}
		var err error
		a, again, err = loop.Resolve(c.ctx, th, subjects)
		labtest.Must(c.t, err)
		return len(again) == 0 && len(a.Holders) > 0 && a.Holders[0].Holder.Owner != nil
	})
	o := a.Occupants[ns.ID]
	for _, x := range a.Holders {
		if h := &x.Holder; (h.Redis != "") != (process == policy.Yes) || process == policy.Yes && !strings.Contains(h.Redis, why) || h.Owner != nil && !h.Owner.Complete {
			c.t.Errorf("%s: its process %q, want %v (%s): %+v", name, h.Redis, process, why, h.Owner)
		}
	}
	said := o.RedisWhy
	for _, s := range o.Servers {
		said += " " + s.Why
	}
	if o.Redis != space || space != policy.No && !strings.Contains(said, why) || why != "" && process == policy.No && !strings.Contains(said, why) {
		c.t.Errorf("%s: its namespace %v (%s), want %v (%s)", name, o.Redis, said, space, why)
	}
}
