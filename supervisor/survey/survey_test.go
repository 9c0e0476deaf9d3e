package survey

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
)

// A survey sees the connections of other namespaces, only those that are of interest, and
// goes on where one cannot be looked into.
func TestLook(t *testing.T) {
	l, err := lab.New(lab.Config{Prefix: "rgsy"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server, err := l.Server("s")
	if err != nil {
		t.Fatal(err)
	}
	client, err := l.Client("c")
	if err != nil {
		t.Fatal(err)
	}
	const port = 17391
	ln, err := server.Listen(t.Context(), "tcp4", netip.AddrPortFrom(server.Addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := client.Dial(t.Context(), "tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	look := func(c Config) (node *Node) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			th, err := netns.NewThread()
			if err == nil {
				node, err = Inspect(t.Context(), th, c)
				th.Close()
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		return node
	}
	c := Config{Filter: tcpstate.Filter{RemotePorts: []uint16{port}}, Match: func(ns netns.Namespace) bool { return ns.Name == client.NSName }}
	node := look(c)
	if len(node.Spaces) != 1 || len(node.Spaces[0].Connections) != 1 || node.Spaces[0].Connections[0].Local != conn.LocalAddr().(*net.TCPAddr).AddrPort() || node.Spaces[0].Host || node.Spaces[0].Err != nil {
		t.Errorf("%+v", node.Spaces)
	}
	c.Keep = func(*tcpstate.Connection) bool { return false }
	if node = look(c); len(node.Spaces) != 1 || len(node.Spaces[0].Connections) != 0 {
		t.Errorf("what is of no interest was kept: %+v", node.Spaces)
	}
	c.Match = nil
	if node = look(c); len(node.Spaces) < 3 || !node.Spaces[0].Host || node.Spaces[0].NS.Name != "host" {
		t.Errorf("%d namespaces", len(node.Spaces))
	}
	// Of a namespace that goes meanwhile that is said.
	c.Match = func(ns netns.Namespace) bool { return ns.Name == client.NSName }
	gone := netns.Namespace{ID: netns.ID{Inode: 1}, Path: "/nonexistent"}
	done := make(chan error, 1)
	go func() {
		th, err := netns.NewThread()
		if err == nil {
			err = visit(th, gone, func() error { return nil })
			th.Close()
		}
		done <- err
	}()
	if err := <-done; !errors.Is(err, netns.ErrGone) {
		t.Errorf("%v", err)
	}
}
