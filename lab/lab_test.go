package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab/labtest"
)

// crashEnv makes the test binary a program that makes a lab of that prefix and
// waits to be killed.
const crashEnv = "REDISGUARD_LAB_TEST_CRASH"

func TestMain(m *testing.M) {
	MaybeChild()
	if prefix, ok := os.LookupEnv(crashEnv); ok {
		crash(prefix)
	}
	labtest.Main(m)
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New(Config{Prefix: "rgt" + fmt.Sprint(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// serve answers each line with the server's name and the line.
func serve(t *testing.T, h *Host) netip.AddrPort {
	t.Helper()
	ln := labtest.Must2(h.Listen(t.Context(), "tcp", "[::]:7000"))(t)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s %s\n", h.Name, lines.Text())
				}
			}()
		}
	}()
	return netip.AddrPortFrom(h.Addr, 7000)
}

// flow is a connection to serve.
type flow struct {
	net.Conn
	lines *bufio.Reader
}

func connect(t *testing.T, h *Host, to netip.AddrPort) *flow {
	t.Helper()
	c := labtest.Must2(h.Dial(labtest.Soon(t), "tcp", to.String()))(t)
	t.Cleanup(func() {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	})
	return &flow{Conn: c, lines: bufio.NewReader(c)}
}

// say sends a word without waiting.
func (f *flow) say(t *testing.T, word string) {
	t.Helper()
	labtest.Must2(fmt.Fprintln(f, word))(t)
}

// hear waits for the next line.
func (f *flow) hear(t *testing.T, want string) {
	t.Helper()
	labtest.Must(t, f.SetReadDeadline(time.Now().Add(10*time.Second)))
	if got := labtest.Must2(f.lines.ReadString('\n'))(t); got != want+"\n" {
		t.Fatalf("the server said %q, want %q", got, want)
	}
}

func (f *flow) ask(t *testing.T, server string) {
	t.Helper()
	f.say(t, "hello")
	f.hear(t, server+" hello")
}

// isSilent asks and sees the kernel retransmit twice, once by its tail loss probe
// and once by its timer, without answer or error.
func (f *flow) isSilent(t *testing.T) {
	t.Helper()
	before := f.info(t).Total_retrans
	f.say(t, "anybody?")
	labtest.Eventually(t, "two retransmissions", func() bool { return f.info(t).Total_retrans >= before+2 })
	if info := f.info(t); info.State != 1 /* ESTABLISHED */ || info.Unacked == 0 {
		t.Fatalf("state %d, %d unacknowledged, want an established connection that waits", info.State, info.Unacked)
	}
}

func (f *flow) info(t *testing.T) (info *unix.TCPInfo) {
	t.Helper()
	raw := labtest.Must2(f.Conn.(*net.TCPConn).SyscallConn())(t)
	var err error
	labtest.Must(t, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }))
	labtest.Must(t, err)
	return info
}

func (f *flow) local() netip.AddrPort { return f.LocalAddr().(*net.TCPAddr).AddrPort() }

// connectError is how a connect fails within the time: TIMEOUT if all is silent.
func connectError(t *testing.T, h *Host, to netip.AddrPort, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to.String())
	if err == nil {
		c.Close()
	}
	return err
}

func TestHosts(t *testing.T) {
	before := labtest.Must2(net.Interfaces())(t)
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	serve(t, s)
	v4 := labtest.Must2(l.VIP("v4", netip.MustParseAddr("10.77.9.1"), 6000))(t)
	v6 := labtest.Must2(l.VIP("v6", netip.MustParseAddr("fd77:9::1"), 6000))(t)
	labtest.Must(t, v4.PointTo(s, 7000))
	labtest.Must(t, v6.PointTo(s, 7000))
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(s.Addr, 7000), netip.AddrPortFrom(s.Addr6, 7000), v4.Addr, v6.Addr} {
		connect(t, c, to).ask(t, "s")
	}
	if _, err := l.Client("s"); err == nil {
		t.Error("two hosts of one name")
	}
	if _, err := l.Client("../x"); err == nil {
		t.Error("a host with a path for a name")
	}

	// A host made again has the same address, and nobody needs to be told.
	labtest.Must(t, s.Remove())
	labtest.Must(t, s.Remove())
	if _, err := os.Stat(s.NSPath); err == nil {
		t.Error("the namespace of a removed host still has its name")
	}
	again := labtest.Must2(l.Server("again"))(t)
	if again.Addr != s.Addr {
		t.Errorf("the address %s was not used again, but %s", s.Addr, again.Addr)
	}
	connect(t, c, serve(t, again)).ask(t, "again")

	if after := labtest.Must2(net.Interfaces())(t); len(after) != len(before) {
		t.Errorf("the machine's own namespace changed: %v, before %v", after, before)
	}
}

func TestVanish(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	neighbour := labtest.Must2(l.Server("neighbour"))(t)
	addr := serve(t, s)
	f, near := connect(t, c, addr), connect(t, neighbour, addr)
	f.ask(t, "s")
	near.ask(t, "s")

	labtest.Must(t, s.Vanish())
	labtest.Must(t, s.Vanish())
	f.isSilent(t)
	near.say(t, "anybody?")
	if !hasCarrier(t, s) {
		t.Error("a vanished host lost its carrier")
	}
	if err := connectError(t, c, addr, 300*time.Millisecond); errnoOf(err) != "TIMEOUT" {
		t.Errorf("connecting to a vanished host gives %v, want silence", err)
	}

	labtest.Must(t, s.Return())
	labtest.Must(t, s.Return())
	began := time.Now()
	connect(t, c, addr).ask(t, "s")
	connect(t, neighbour, addr).ask(t, "s")
	connect(t, s, serve(t, neighbour)).ask(t, "neighbour")
	if d := time.Since(began); d > 500*time.Millisecond {
		t.Errorf("a returned host was reachable after %v, want at once", d)
	}
	f.hear(t, "s anybody?")
	near.hear(t, "s anybody?")
}

func hasCarrier(t *testing.T, h *Host) (carrier bool) {
	t.Helper()
	labtest.Must(t, h.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		carrier = err == nil && eth0.Flags&net.FlagRunning != 0
		return err
	}))
	return carrier
}

func TestLinkDown(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	serve(t, s)
	to := []netip.AddrPort{netip.AddrPortFrom(s.Addr, 7000), netip.AddrPortFrom(s.Addr6, 7000)}
	f := connect(t, c, to[0])
	f.ask(t, "s")

	labtest.Must(t, c.LinkDown())
	labtest.Eventually(t, "the carrier goes", func() bool { return !hasCarrier(t, c) })
	f.say(t, "later")
	labtest.Must(t, c.LinkUp())
	labtest.Eventually(t, "the carrier comes back", func() bool { return hasCarrier(t, c) })
	for _, a := range to {
		connect(t, c, a).ask(t, "s")
	}
	f.hear(t, "s later")
}

func TestDropFlow(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	serve(t, s)
	v := labtest.Must2(l.VIP("v", netip.MustParseAddr("10.77.9.1"), 6379))(t)
	labtest.Must(t, v.PointTo(s, 7000))
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(s.Addr, 7000), netip.AddrPortFrom(s.Addr6, 7000), v.Addr} {
		hit, spared := connect(t, c, to), connect(t, c, to)
		hit.ask(t, "s")
		undo := labtest.Must2(l.DropFlow(hit.local(), to))(t)
		hit.isSilent(t)
		spared.ask(t, "s")
		connect(t, c, to).ask(t, "s")
		labtest.Must(t, undo())
		labtest.Must(t, undo())
		hit.hear(t, "s anybody?")
	}
}

// One flow, or all, in one direction: the client hears nothing either way.
func TestDropFlowOneWay(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	to := serve(t, s)
	for _, dir := range []Direction{BothWays, ToServer, ToClient, Rejected} {
		hit, spared := connect(t, c, to), connect(t, c, to)
		hit.ask(t, "s")
		undo := labtest.Must2(l.DropFlowOneWay(hit.local(), to, dir))(t)
		hit.isSilent(t)
		spared.ask(t, "s")
		connect(t, c, to).ask(t, "s")
		labtest.Must(t, undo())
		hit.hear(t, "s anybody?")

		undo = labtest.Must2(l.BlockOneWay(c, s, to.Port(), dir))(t)
		hit.isSilent(t)
		spared.isSilent(t)
		labtest.Must(t, undo())
		hit.hear(t, "s anybody?")
		spared.hear(t, "s anybody?")
	}
}

func TestBlockConnects(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	addr := serve(t, s)
	f := connect(t, c, addr)
	f.ask(t, "s")
	undo := labtest.Must2(l.BlockConnects(c, s, addr.Port()))(t)
	if err := connectError(t, c, addr, 200*time.Millisecond); errnoOf(err) != "TIMEOUT" {
		t.Errorf("a blocked connect gives %v, want silence", err)
	}
	f.ask(t, "s")
	labtest.Must(t, undo())
	connect(t, c, addr).ask(t, "s")
}

func TestVIP(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	a, b := labtest.Must2(l.Server("a"))(t), labtest.Must2(l.Server("b"))(t)
	serve(t, a)
	serve(t, b)
	v := labtest.Must2(l.VIP("v", netip.MustParseAddr("10.77.9.1"), 6379))(t)
	if err := connectError(t, c, v.Addr, 200*time.Millisecond); errnoOf(err) != "TIMEOUT" {
		t.Errorf("connecting to a virtual address without backend gives %v, want silence", err)
	}
	labtest.Must(t, v.PointTo(a, 7000))
	old := connect(t, c, v.Addr)
	old.ask(t, "a")

	labtest.Must(t, v.PointTo(b, 7000))
	old.ask(t, "a") // the old backend lives
	labtest.Must(t, a.Vanish())
	connect(t, c, v.Addr).ask(t, "b")
	old.isSilent(t)
	labtest.Must(t, v.Withdraw())
	if err := connectError(t, c, v.Addr, 200*time.Millisecond); errnoOf(err) != "TIMEOUT" {
		t.Errorf("connecting to a withdrawn virtual address gives %v, want silence", err)
	}
	labtest.Must(t, a.Return())
	old.hear(t, "a anybody?")
}

func TestBlockAndReject(t *testing.T) {
	l := newLab(t)
	c, other := labtest.Must2(l.Client("c"))(t), labtest.Must2(l.Client("other"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	addr := serve(t, s)
	f := connect(t, c, addr)
	f.ask(t, "s")

	undo := labtest.Must2(l.Reject(c, s, 7000))(t)
	if err := connectError(t, c, addr, 5*time.Second); errnoOf(err) != "ECONNREFUSED" {
		t.Errorf("a rejected connect gives %v, want a reset", err)
	}
	f.ask(t, "s")
	connect(t, other, addr).ask(t, "s")
	labtest.Must(t, undo())
	connect(t, c, addr).ask(t, "s")

	undo = labtest.Must2(l.Block(c, s, 7000))(t)
	f.isSilent(t)
	connect(t, other, addr).ask(t, "s")
	if err := connectError(t, c, netip.AddrPortFrom(s.Addr6, 7000), 200*time.Millisecond); errnoOf(err) != "TIMEOUT" {
		t.Errorf("a blocked connect by IPv6 gives %v, want silence", err)
	}
	labtest.Must(t, undo())
	f.hear(t, "s anybody?")
}

// datagrams sends n datagrams from c to s, some each millisecond, and returns
// which arrived.
func datagrams(t *testing.T, c, s *Host, n, perTick int) []bool {
	t.Helper()
	var in net.PacketConn
	labtest.Must(t, s.Do(func() (err error) {
		in, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	}))
	defer in.Close()
	to := netip.AddrPortFrom(s.Addr, uint16(in.LocalAddr().(*net.UDPAddr).Port))
	out := labtest.Must2(c.Dial(labtest.Soon(t), "udp4", to.String()))(t)
	defer out.Close()
	arrived := make([]bool, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64)
		for {
			var i int
			k, _, err := in.ReadFrom(b)
			if err != nil || string(b[:k]) == "end" {
				return
			}
			fmt.Sscan(string(b[:k]), &i)
			arrived[i] = true
		}
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range n {
		fmt.Fprint(out, i)
		if i%perTick == 0 {
			<-tick.C
		}
	}
	for { // the end may be lost as well
		fmt.Fprint(out, "end")
		select {
		case <-done:
			return arrived
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// lost is the share that did not arrive, and of those the share whose
// predecessor did not arrive either.
func lost(arrived []bool) (share, inARow float64) {
	n, row := 0, 0
	for i, ok := range arrived {
		if !ok {
			n++
			if i > 0 && !arrived[i-1] {
				row++
			}
		}
	}
	return float64(n) / float64(len(arrived)), float64(row) / float64(max(1, n))
}

func TestLoss(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	if share, _ := lost(datagrams(t, c, s, 1000, 20)); share != 0 {
		t.Fatalf("a healthy lab lost %.3f", share)
	}
	for _, ends := range [][2]*Host{{c, s}, {s, c}} {
		undo := labtest.Must2(l.Loss(100))(t)
		share, row := lost(datagrams(t, ends[0], ends[1], 5000, 20))
		if share < 0.08 || share > 0.12 || row > 0.2 {
			t.Errorf("random loss of 0.1 lost %.3f, %.3f of them in a row", share, row)
		}
		labtest.Must(t, undo())
	}
	undo := labtest.Must2(l.LossBursts(Bursts{Permille: 200, Min: 20 * time.Millisecond, Max: 40 * time.Millisecond, Seed: 1}))(t)
	share, row := lost(datagrams(t, c, s, 6000, 2))
	if share < 0.12 || share > 0.28 || row < 0.85 {
		t.Errorf("bursts of a share of 0.2 lost %.3f, %.3f of them in a row", share, row)
	}
	t.Logf("bursts: lost %.3f, %.3f of them in a row", share, row)
	labtest.Must(t, undo())
	labtest.Must(t, undo())
	if share, _ := lost(datagrams(t, c, s, 1000, 20)); share != 0 {
		t.Errorf("a healed lab lost %.3f", share)
	}
	undo = labtest.Must2(l.Loss(1000))(t)
	if err := connectError(t, c, netip.AddrPortFrom(s.Addr, 1), 200*time.Millisecond); errnoOf(err) != "TIMEOUT" {
		t.Errorf("a connect in the dark gives %v, want silence", err)
	}
	labtest.Must(t, undo())
	// Close ends what nobody undid.
	labtest.Must2(l.LossBursts(Bursts{Permille: 10}))(t)
}

// later matches an OK after a moment.
func okAfter(at time.Time) func(Event) bool {
	return func(e Event) bool { return e.Kind == OK && e.T > at.UnixNano() }
}

func TestFrozenRedis(t *testing.T) {
	l := newLab(t)
	c := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	r := labtest.Must2(s.Redis(labtest.Soon(t), RedisConfig{}))(t)
	w := labtest.Must2(c.Client(t.Context(), ClientConfig{Addr: r.Addr(), Interval: time.Millisecond}))(t)
	labtest.Must(t, w.Ready(labtest.Soon(t)))

	labtest.Must(t, r.Freeze())
	labtest.Must(t, r.Freeze())
	// The kernel goes on: it accepts and acknowledges.
	nc := labtest.Must2(c.Dial(labtest.Soon(t), "tcp", r.Addr().String()))(t)
	defer nc.Close()
	labtest.Must2(nc.Write(command("PING")))(t)
	f := &flow{Conn: nc}
	labtest.Eventually(t, "the request is acknowledged", func() bool { return f.info(t).Unacked == 0 })
	labtest.Must(t, nc.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a frozen server answers: %v", err)
	}
	thawed := time.Now()
	labtest.Must(t, r.Thaw())
	labtest.Must2(w.WaitEvent(labtest.Soon(t), okAfter(thawed)))(t)
	totals := labtest.Must2(w.Stop())(t)
	if totals.Connects != 1 || len(totals.Errors) != 0 || totals.OK == 0 {
		t.Errorf("totals %+v, want one connection without errors", totals)
	}
}

func TestSentinel(t *testing.T) {
	l := newLab(t)
	s := labtest.Must2(l.Server("s"))(t)
	r := labtest.Must2(s.Redis(labtest.Soon(t), RedisConfig{Port: 6380}))(t)
	sentinel := labtest.Must2(labtest.Must2(l.Server("sentinel"))(t).Sentinel(labtest.Soon(t), SentinelConfig{Primary: r.Addr(), DownAfter: 300 * time.Millisecond}))(t)
	got := labtest.Must2(sentinel.Do(labtest.Soon(t), "SENTINEL", "get-master-addr-by-name", "main"))(t)
	if fmt.Sprint(got) != fmt.Sprint([]any{s.Addr.String(), "6380"}) {
		t.Errorf("the sentinel says the primary is %v, want %s", got, r.Addr())
	}
	flags := func() string {
		list, _ := labtest.Must2(sentinel.Do(labtest.Soon(t), "SENTINEL", "MASTER", "main"))(t).([]any)
		for i := 0; i+1 < len(list); i += 2 {
			if list[i] == "flags" {
				return fmt.Sprint(list[i+1])
			}
		}
		return ""
	}
	labtest.Eventually(t, "the primary is up", func() bool { return flags() == "master" })
	labtest.Must(t, s.Vanish())
	labtest.Eventually(t, "the primary is down", func() bool { return strings.Contains(flags(), "s_down") })
	if _, err := sentinel.Do(labtest.Soon(t), "NONSENSE"); errnoOf(err) != "ERR" {
		t.Errorf("an unknown command gives %v", err)
	}
}

func TestClients(t *testing.T) {
	l := newLab(t)
	host := labtest.Must2(l.Client("c"))(t)
	s := labtest.Must2(l.Server("s"))(t)
	r := labtest.Must2(s.Redis(labtest.Soon(t), RedisConfig{}))(t)
	start := func(cfg ClientConfig) *Client {
		t.Helper()
		cfg.Addr = r.Addr()
		return labtest.Must2(host.Client(t.Context(), cfg))(t)
	}
	clients := map[ClientKind]*Client{
		Writer:     start(ClientConfig{Conns: 200, Interval: 50 * time.Millisecond}),
		Idle:       start(ClientConfig{Kind: Idle, Conns: 3, Mapped: true}),
		Subscriber: start(ClientConfig{Kind: Subscriber, Key: "news"}),
		Blpop:      start(ClientConfig{Kind: Blpop, Key: "list", Mapped: true}),
	}
	for kind, c := range clients {
		if kind != Blpop {
			labtest.Must(t, c.Ready(labtest.Soon(t)))
		}
	}
	comm := labtest.Must2(os.ReadFile(fmt.Sprintf("/proc/%d/comm", clients[Idle].Pid())))(t)
	if string(comm) != "lab-idle\n" {
		t.Errorf("the client's command is %q", comm)
	}
	ns := labtest.Must2(os.Stat(fmt.Sprintf("/proc/%d/ns/net", clients[Idle].Pid())))(t)
	if !os.SameFile(ns, labtest.Must2(os.Stat(host.NSPath))(t)) {
		t.Error("the client process lives in another namespace than its host")
	}
	if local := clients[Idle].Local(2); local.Addr() != host.Addr || local.Port() == 0 {
		t.Errorf("the client's end is %s, want one of %s", local, host.Addr)
	}
	now := time.Now()
	labtest.Eventually(t, "the pop waits", func() bool {
		info, _ := labtest.Must2(r.Do(labtest.Soon(t), "INFO", "clients"))(t).(string)
		return strings.Contains(info, "blocked_clients:1")
	})
	labtest.Must2(r.Do(labtest.Soon(t), "RPUSH", "list", "x"))(t)
	labtest.Must2(r.Do(labtest.Soon(t), "PUBLISH", "news", "x"))(t)
	labtest.Must2(clients[Blpop].WaitEvent(labtest.Soon(t), okAfter(now)))(t)
	labtest.Must2(clients[Subscriber].WaitEvent(labtest.Soon(t), okAfter(now)))(t)

	// The server dies: everyone notices, tries, and comes back.
	labtest.Must(t, r.Kill())
	for _, c := range clients {
		labtest.Must2(c.WaitEvent(labtest.Soon(t), func(e Event) bool { return e.Errno == "ECONNREFUSED" && e.Op == "connect" }))(t)
	}
	died := time.Now()
	r = labtest.Must2(s.Redis(labtest.Soon(t), RedisConfig{}))(t)
	for kind, c := range clients {
		want := okAfter(died)
		if kind == Blpop {
			want = func(e Event) bool { return e.Kind == Connected && e.T > died.UnixNano() }
		}
		labtest.Must2(c.WaitEvent(labtest.Soon(t), want))(t)
	}
	// An error reply is no reason to reconnect.
	at := time.Now()
	labtest.Must2(r.Do(labtest.Soon(t), "CONFIG", "SET", "min-replicas-to-write", "1"))(t)
	e := labtest.Must2(clients[Writer].WaitEvent(labtest.Soon(t), func(e Event) bool { return e.Op == "reply" }))(t)
	if e.Errno != "NOREPLICAS" || e.T < at.UnixNano() {
		t.Errorf("a refused write is reported as %+v", e)
	}
	for kind, c := range clients {
		totals, err := c.Stop()
		if err != nil {
			t.Error(err)
		}
		if totals.Errors["ECONNREFUSED"] == 0 || totals.Connects < c.cfg.Conns {
			t.Errorf("%s: totals %+v", kind, totals)
		}
	}
	if _, err := clients[Idle].WaitEvent(t.Context(), func(Event) bool { return false }); err == nil {
		t.Error("waiting for an event of a client that has ended does not fail")
	}
	if _, err := host.Client(t.Context(), ClientConfig{Kind: "no"}); err == nil {
		t.Error("a client of an unknown kind")
	}
}

func TestBusyClient(t *testing.T) {
	l := newLab(t)
	host := labtest.Must2(l.Client("c"))(t)
	r := labtest.Must2(labtest.Must2(l.Server("s"))(t).Redis(labtest.Soon(t), RedisConfig{}))(t)
	c := labtest.Must2(host.Client(t.Context(), ClientConfig{Addr: r.Addr(), Conns: 1000}))(t)
	labtest.Must(t, c.Ready(labtest.Soon(t)))
	began, before := time.Now(), c.Totals().OK
	labtest.Eventually(t, "20,000 requests", func() bool { return c.Totals().OK-before >= 20_000 })
	t.Logf("%.0f requests a second on 1,000 connections", float64(c.Totals().OK-before)/time.Since(began).Seconds())
	totals := labtest.Must2(c.Stop())(t)
	if len(totals.Errors) != 0 || totals.Connects != 1000 {
		t.Errorf("totals %+v, want 1000 connections without errors", totals)
	}
	if n := len(c.Events()); n > 3000 {
		t.Errorf("%d events kept, want at most 3 for each healthy connection", n)
	}
}

func TestProcess(t *testing.T) {
	l := newLab(t)
	h := labtest.Must2(l.Client("c"))(t)
	p := labtest.Must2(h.Start(t.Context(), exec.Command("sleep", "1000")))(t)
	labtest.Must(t, p.Freeze())
	labtest.Must(t, p.Kill())
	labtest.Must(t, p.Kill())
	if p.Wait() == nil {
		t.Error("a killed process is said to have ended well")
	}
	if err := p.Freeze(); err == nil {
		t.Error("freezing an ended process succeeds")
	}
	if _, err := h.Start(t.Context(), exec.Command("/nonexistent")); err == nil {
		t.Error("starting nothing succeeds")
	}
	_, err := h.Redis(labtest.Soon(t), RedisConfig{Args: []string{"--nonsense", "1"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a server that cannot start gives %v, want its own words", err)
	}
	p = labtest.Must2(h.Start(t.Context(), exec.Command("sleep", "1000")))(t)
	labtest.Must(t, h.Remove())
	if p.Wait() == nil {
		t.Error("a process outlives its host")
	}
	labtest.Must(t, l.Close())
	if _, err := h.Start(t.Context(), exec.Command("true")); err == nil {
		t.Error("starting a process in a closed lab succeeds")
	}
	if _, err := l.Loss(10); err == nil {
		t.Error("a fault in a closed lab succeeds")
	}
}

func crash(prefix string) {
	l, err := New(Config{Prefix: prefix})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	h, err := l.Server("s")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	r, err := h.Redis(context.Background(), RedisConfig{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(r.Pid())
	select {}
}

func TestCrash(t *testing.T) {
	prefix := "rgcrash" + fmt.Sprint(os.Getpid())
	cmd := exec.Command(labtest.Must2(os.Executable())(t))
	cmd.Env = append(os.Environ(), crashEnv+"="+prefix)
	out := labtest.Must2(cmd.StdoutPipe())(t)
	labtest.Must(t, cmd.Start())
	line := labtest.Must2(bufio.NewReader(out).ReadString('\n'))(t)
	var pid int
	labtest.Must2(fmt.Sscan(line, &pid))(t)
	server := labtest.Must2(readStat(pid))(t)

	if _, err := New(Config{Prefix: prefix}); err == nil || !strings.Contains(err.Error(), "living process") {
		t.Errorf("taking the prefix of a living lab gives %v", err)
	}
	labtest.Must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	labtest.Eventually(t, "the server dies with its lab", func() bool {
		st, err := readStat(pid)
		return err != nil || st.start != server.start || st.state == 'Z'
	})
	left := labtest.Must2(filepath.Glob(netnsDir + "/" + prefix + "-*"))(t)
	if len(left) != 3 {
		t.Errorf("a crashed lab left %v, want its router, switch and host", left)
	}
	newLab(t) // of another prefix
	for _, glob := range []string{netnsDir + "/" + prefix + "-*", journalDir + "/" + prefix + "*"} {
		if left := labtest.Must2(filepath.Glob(glob))(t); len(left) != 0 {
			t.Errorf("the next lab left %v of the crashed one", left)
		}
	}
}

func TestWithoutRoot(t *testing.T) {
	// By this path the binary can be run wherever it lies.
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashEnv+"=rgnoroot")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "needs root") {
		t.Errorf("a lab without root gives %v: %s", err, out)
	}
}

// A recorded process that outlived its lab is killed, another process that now
// has its pid is not.
func TestCleanUpProcesses(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	labtest.Must(t, cmd.Start())
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	st := labtest.Must2(readStat(cmd.Process.Pid))(t)
	labtest.Must(t, killIdentified(processEntry{Pid: cmd.Process.Pid, Start: st.start + 1}))
	if now := labtest.Must2(readStat(cmd.Process.Pid))(t); now.state == 'Z' {
		t.Fatal("a process with another start time was killed")
	}
	labtest.Must(t, killIdentified(processEntry{Pid: cmd.Process.Pid, Start: st.start}))
	if now := labtest.Must2(readStat(cmd.Process.Pid))(t); now.state != 'Z' {
		t.Errorf("the process is in state %c, want it dead", now.state)
	}
	labtest.Must(t, cmd.Process.Kill())
}

func TestForeignNamespace(t *testing.T) {
	prefix := "rgforeign" + fmt.Sprint(os.Getpid())
	foreign := labtest.Must2(newNamespace(prefix+"-rtr", func(identity) error { return nil }))(t)
	defer foreign.remove()
	if _, err := New(Config{Prefix: prefix}); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a lab over a foreign namespace gives %v", err)
	}
	if !labtest.Must2(checkName(foreign.path, []identity{foreign.id}))(t) {
		t.Fatal("the lab removed a namespace it did not make")
	}
	labtest.Must(t, foreign.remove())

	// Somebody puts another namespace under a name of the lab.
	l := labtest.Must2(New(Config{Prefix: prefix}))(t)
	h := labtest.Must2(l.Client("c"))(t)
	labtest.Must(t, unix.Unmount(h.NSPath, unix.MNT_DETACH))
	labtest.Must(t, os.Remove(h.NSPath))
	foreign = labtest.Must2(newNamespace(h.NSName, func(identity) error { return nil }))(t)
	defer foreign.remove()
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "not of this lab") {
		t.Errorf("closing a lab with a foreign namespace under its name gives %v", err)
	}
	if !labtest.Must2(checkName(foreign.path, []identity{foreign.id}))(t) {
		t.Error("the lab removed a namespace that took the place of its own")
	}
	labtest.Must(t, os.Remove(l.journal.path))
}

// FailNow inside Do ends the function's goroutine; the caller must go on.
func TestDoThatDoesNotReturn(t *testing.T) {
	l := newLab(t)
	h := labtest.Must2(l.Client("c"))(t)
	if err := h.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that did not return is said to have succeeded")
	}
}

func TestManyHosts(t *testing.T) {
	l := newLab(t)
	began := time.Now()
	for i := range 250 {
		labtest.Must2(l.Client(fmt.Sprintf("c%d", i)))(t)
	}
	made := time.Since(began)
	began = time.Now()
	labtest.Must(t, l.Close())
	closed := time.Since(began)
	t.Logf("250 hosts made in %v, removed in %v", made, closed)
	if made > 20*time.Second || closed > 10*time.Second {
		t.Error("too slow")
	}
}

func TestReadReply(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("+PONG\r\n:42\r\n$-1\r\n$3\r\na\r\n\r\n*2\r\n$1\r\nx\r\n*1\r\n-ERR y\r\n-ERR z\r\n"))
	for _, want := range []any{"PONG", int64(42), nil, "a\r\n", []any{"x", []any{replyError("ERR y")}}} {
		if got := labtest.Must2(readReply(r))(t); fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
			t.Errorf("read %#v, want %#v", got, want)
		}
	}
	if _, err := readReply(r); err != replyError("ERR z") {
		t.Errorf("an error reply gives %v", err)
	}
	if _, err := readReply(r); err != io.EOF {
		t.Errorf("the end gives %v", err)
	}
}

func FuzzReadReply(f *testing.F) {
	for _, s := range []string{"+OK\r\n", "*1\r\n$1\r\nx\r\n", "*1152921504606846976\r\n", "$4611686018427387904\r\n", strings.Repeat("*1\r\n", 50)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := bufio.NewReader(strings.NewReader(s))
		for {
			if _, err := readReply(r); err != nil {
				if _, ok := err.(replyError); !ok {
					return
				}
			}
		}
	})
}

func TestParseStat(t *testing.T) {
	for _, comm := range []string{"redis-server", "a b", ") R 1 ("} {
		line := "77 (" + comm + ") S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n"
		if st, err := parseStat(line); err != nil || st != (procStat{state: 'S', start: 4711}) {
			t.Errorf("%q is read as %+v, %v", line, st, err)
		}
	}
	if _, err := parseStat("77 (x) S 1"); err == nil {
		t.Error("a short line is read")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("77 (x) S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n")
	f.Fuzz(func(t *testing.T, s string) { parseStat(s) })
}

func FuzzReadJournal(f *testing.F) {
	f.Add("{\"owner\":{\"boot\":\"b\",\"pid\":1,\"start\":2}}\n{\"netns\":{\"name\":\"x\",\"dev\":4,\"ino\":5,\"cookie\":6}}\n{\"process\":{\"pi")
	f.Fuzz(func(t *testing.T, s string) { readJournal(bufio.NewScanner(strings.NewReader(s))) })
}
