package keepalive

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/tcpstate"
)

// invalidRatelimit is net.ipv4.tcp_invalid_ratelimit of a new namespace: a peer answers
// probes of one socket at most this often.
const invalidRatelimit = 500 * time.Millisecond

// network is a client's host and a server's with a real kernel on each side.
type network struct {
	t              *testing.T
	client, server *lab.Host
	ln             net.Listener
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	l, err := lab.New(lab.Config{Prefix: "rgka" + strconv.Itoa(os.Getpid())})
	labtest.Must(t, err)
	t.Cleanup(func() { labtest.Must(t, l.Close()) })
	n := &network{t: t}
	n.client, err = l.Client("c")
	labtest.Must(t, err)
	n.server, err = l.Server("s")
	labtest.Must(t, err)
	n.ln, err = n.server.Listen(labtest.Soon(t), "tcp4", n.server.Addr.String()+":6390")
	labtest.Must(t, err)
	t.Cleanup(func() { n.ln.Close() })
	return n
}

// dial connects a bare descriptor from the client's host; prepare sets what the
// application sets. Something has been said on it, so the server has it.
func (n *network) dial(prepare func(fd int) error) (s Socket, peer *net.TCPConn) {
	n.t.Helper()
	to := n.ln.Addr().(*net.TCPAddr).AddrPort()
	s = n.connect(unix.IPPROTO_TCP, to, prepare)
	c, err := n.ln.Accept()
	labtest.Must(n.t, err)
	n.t.Cleanup(func() { c.Close() })
	peer = c.(*net.TCPConn)
	n.say(s, peer)
	return s, peer
}

func (n *network) connect(protocol int, to netip.AddrPort, prepare func(fd int) error) Socket {
	n.t.Helper()
	s := Socket{PID: os.Getpid(), Remote: to}
	labtest.Must(n.t, n.client.Do(func() (err error) {
		if s.FD, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol); err != nil {
			return err
		}
		if prepare != nil {
			if err := prepare(s.FD); err != nil {
				return err
			}
		}
		if err := unix.Connect(s.FD, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
			return err
		}
		s.Cookie, err = sys.SocketCookie(s.FD)
		return err
	}))
	n.t.Cleanup(func() { unix.Close(s.FD) })
	return s
}

// say has both ends say something, and waits until nothing is in flight.
func (n *network) say(s Socket, peer *net.TCPConn) {
	n.t.Helper()
	buf := make([]byte, 4)
	labtest.Must2(unix.Write(s.FD, []byte("ping")))(n.t)
	labtest.Must2(peer.Read(buf))(n.t)
	labtest.Must2(peer.Write([]byte("pong")))(n.t)
	labtest.Must2(unix.Read(s.FD, buf))(n.t)
	// The peer's kernel may hold its acknowledgement back, and this one's too.
	labtest.Eventually(n.t, "everything is acknowledged", func() bool {
		i, j := info(n.t, s.FD), peerInfo(n.t, peer)
		return i.Unacked == 0 && j.Unacked == 0
	})
}

func peerInfo(t *testing.T, c *net.TCPConn) (i *unix.TCPInfo) {
	t.Helper()
	raw, err := c.SyscallConn()
	labtest.Must(t, err)
	labtest.Must(t, raw.Control(func(fd uintptr) { i = info(t, int(fd)) }))
	return i
}

func info(t *testing.T, fd int) *unix.TCPInfo {
	t.Helper()
	return labtest.Must2(unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO))(t)
}

// snapshot is what must not change when a connection is asked, and what may.
type snapshot struct {
	kept struct {
		options                                 Options
		reuse, repair                           int
		state, retransmits, backoff, probes     uint8
		rto, unacked, totalRetrans, notsent     uint32
		dataIn, dataOut, delivered, sndWnd, rtt uint32
		bytesAcked, bytesReceived, bytesSent    uint64
		timer                                   tcpstate.Timer
		retrans                                 uint8
		rqueue, wqueue                          uint32
	}
	// fires is when the timer runs out, zero if there is none.
	fires time.Time
	at    time.Time
	info  *unix.TCPInfo
}

// look is made of several reads. One between which the kernel has sent something would
// have the timer from before it and the counters from after it, and is made again.
func (n *network) look(s Socket) (p snapshot) {
	n.t.Helper()
	labtest.Eventually(n.t, "a look with no transmission of the kernel's own in it", func() bool {
		sent := info(n.t, s.FD).Segs_out
		p = n.read(s)
		return info(n.t, s.FD).Segs_out == sent
	})
	return p
}

func (n *network) read(s Socket) (p snapshot) {
	n.t.Helper()
	var diag tcpstate.Connection
	labtest.Must(n.t, n.client.Do(func() error {
		var nl tcpstate.Socket
		return nl.Use(func() error {
			p.at = time.Now()
			return nl.Dump(tcpstate.Filter{RemotePorts: []uint16{s.Remote.Port()}, States: ^tcpstate.StateMask(0)}, func(c *tcpstate.Connection) error {
				if c.Cookie == s.Cookie {
					diag = *c
				}
				return nil
			})
		})
	}))
	if diag.Cookie == 0 {
		n.t.Fatal("sock_diag does not show the connection")
	}
	i := info(n.t, s.FD)
	p.info = i
	k := &p.kept
	k.options = labtest.Must2(read(s.FD))(n.t)
	k.reuse = labtest.Must2(unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_REUSEADDR))(n.t)
	k.repair = labtest.Must2(unix.GetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR))(n.t)
	k.state, k.retransmits, k.backoff, k.probes = i.State, i.Retransmits, i.Backoff, i.Probes
	k.rto, k.unacked, k.totalRetrans, k.notsent = i.Rto, i.Unacked, i.Total_retrans, i.Notsent_bytes
	k.dataIn, k.dataOut, k.delivered, k.sndWnd, k.rtt = i.Data_segs_in, i.Data_segs_out, i.Delivered, i.Snd_wnd, i.Rtt
	k.bytesAcked, k.bytesReceived, k.bytesSent = i.Bytes_acked, i.Bytes_received, i.Bytes_sent
	k.timer, k.retrans, k.rqueue, k.wqueue = diag.Timer, diag.Retrans, diag.RQueue, diag.WQueue
	if diag.Timer != tcpstate.TimerNone {
		p.fires = p.at.Add(diag.Expires)
	}
	return p
}

// same says that asking between the two looks has changed nothing.
func (n *network) same(what string, before, after snapshot) {
	n.t.Helper()
	if after.kept != before.kept {
		n.t.Errorf("%s: asking changed something:\n%+v\nwas\n%+v", what, after.kept, before.kept)
	}
	// A look takes a moment, and the kernel counts in jiffies.
	if moved := after.fires.Sub(before.fires).Abs(); moved > 50*time.Millisecond {
		n.t.Errorf("%s: asking moved the timer by %v", what, moved)
	}
}

// pure counts the segments without data that have come in.
func pure(i *unix.TCPInfo) uint32 { return i.Segs_in - i.Data_segs_in }

// rested waits until a peer that has answered just now would answer again.
func (n *network) rested(s Socket) {
	n.t.Helper()
	labtest.Eventually(n.t, "the connection is silent for long enough", func() bool {
		return info(n.t, s.FD).Last_ack_recv > uint32((invalidRatelimit + 20*time.Millisecond).Milliseconds())
	})
}

// answered asks, waits for the answer, and says that nothing else has happened.
func (n *network) answered(what string, s Socket) {
	n.t.Helper()
	before := n.look(s)
	asked := time.Now()
	labtest.Must(n.t, Ask(s))
	labtest.Eventually(n.t, what+": an answer", func() bool { return info(n.t, s.FD).Segs_in != before.info.Segs_in })
	after := n.look(s)
	n.same(what, before, after)
	if after.info.Segs_in != before.info.Segs_in+1 || pure(after.info) != pure(before.info)+1 {
		n.t.Errorf("%s: %d segments have come in, %d of them without data, want 1 and 1", what,
			after.info.Segs_in-before.info.Segs_in, pure(after.info)-pure(before.info))
	}
	if sent := after.info.Segs_out - before.info.Segs_out; sent != 1 {
		n.t.Errorf("%s: %d segments were sent, want 1", what, sent)
	}
	if ago := time.Duration(after.info.Last_ack_recv) * time.Millisecond; ago > time.Since(asked)+10*time.Millisecond {
		n.t.Errorf("%s: the last acknowledgement is %v old, older than the question", what, ago)
	}
	n.t.Logf("%s: answered within %v", what, time.Since(asked).Round(10*time.Microsecond))
}

// refused says that a connection was not asked, and why.
func (n *network) refused(what string, s, as Socket, want error) error {
	n.t.Helper()
	before := n.look(s)
	err := Ask(as)
	if !errors.Is(err, want) {
		n.t.Errorf("%s: %v, want %v", what, err, want)
	}
	after := n.look(s)
	n.same(what, before, after)
	if after.info.Segs_out != before.info.Segs_out {
		n.t.Errorf("%s: a segment was sent", what)
	}
	return err
}

func reuse(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }

func armed(fd int) error {
	have, err := read(fd)
	if err != nil {
		return err
	}
	return write(fd, have, Plan(have, want))
}

func TestAskIdle(t *testing.T) {
	n := newNetwork(t)
	for what, prepare := range map[string]func(int) error{
		"nothing set": nil, "SO_REUSEADDR": reuse, "keepalive": armed,
		"user timeout": func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 30_000) },
	} {
		s, _ := n.dial(prepare)
		n.rested(s)
		n.answered(what, s)
		if reuse, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || reuse != 0 != (what == "SO_REUSEADDR") {
			t.Errorf("%s: SO_REUSEADDR is %d (%v)", what, reuse, err)
		}
	}
}

// The process that has the connection is another one, in another namespace.
func TestAskOfAnotherProcess(t *testing.T) {
	n := newNetwork(t)
	cmd := exec.Command(labtest.Must2(os.Executable())(t))
	cmd.Env = append(os.Environ(), "REDISGUARD_TEST_DIAL="+n.ln.Addr().String())
	in, err := cmd.StdinPipe()
	labtest.Must(t, err)
	child, err := n.client.Start(labtest.Soon(t), cmd)
	labtest.Must(t, err)
	c, err := n.ln.Accept()
	labtest.Must(t, err)
	defer c.Close()
	peer := c.(*net.TCPConn)
	s, ok := find(t, child.Pid(), peer.RemoteAddr().(*net.TCPAddr).Port)
	if !ok {
		t.Fatal("its descriptor is not found")
	}
	before := peerInfo(t, peer)
	labtest.Must(t, Ask(s))
	labtest.Eventually(t, "the question arrives", func() bool { return pure(peerInfo(t, peer)) == pure(before)+1 })
	if after := peerInfo(t, peer); after.Segs_out != before.Segs_out+1 {
		t.Errorf("the peer has sent %d segments, want one answer", after.Segs_out-before.Segs_out)
	}
	in.Close()
	labtest.Must(t, child.Wait())
	if err := Ask(s); !errors.Is(err, ErrGone) {
		t.Errorf("a process that has ended: %v, want %v", err, ErrGone)
	}
}

// quietly asks between two looks, with no retransmission or probe of the kernel's own
// between them.
func (n *network) quietly(what string, s Socket) {
	n.t.Helper()
	labtest.Eventually(n.t, what+": a moment without a transmission of the kernel's own", func() bool {
		before := n.look(s)
		labtest.Must(n.t, Ask(s))
		after := n.look(s)
		if after.info.Segs_out != before.info.Segs_out+1 {
			return false
		}
		n.same(what, before, after)
		return true
	})
}

// The answer does not come, and asking does nothing to the retransmissions of what is in
// flight.
func TestAskInABlackHole(t *testing.T) {
	n := newNetwork(t)
	idle, _ := n.dial(nil)
	busy, _ := n.dial(reuse)
	labtest.Must(t, n.server.Vanish())
	labtest.Must2(unix.Write(busy.FD, []byte("into the void")))(t)
	before := map[Socket]snapshot{idle: n.look(idle), busy: n.look(busy)}
	asks := 0
	labtest.Eventually(t, "two retransmissions", func() bool {
		n.quietly("idle", idle)
		n.quietly("in flight", busy)
		asks++
		return info(t, busy.FD).Retransmits >= 2
	})
	for s, was := range before {
		now := n.look(s)
		if now.info.Segs_in != was.info.Segs_in || now.kept.bytesAcked != was.kept.bytesAcked || now.kept.probes != was.kept.probes {
			t.Errorf("after %d asks %+v, before %+v", asks, now.info, was.info)
		}
		if silent, since := time.Duration(now.info.Last_ack_recv)*time.Millisecond, now.at.Sub(was.at); silent < since-20*time.Millisecond {
			t.Errorf("the last acknowledgement is %v old after a silence of %v", silent, since)
		}
	}
	// The way is there again: the retransmission arrives as it would have.
	labtest.Must(t, n.server.Return())
	labtest.Eventually(t, "what was in flight is acknowledged", func() bool { return info(t, busy.FD).Unacked == 0 })
}

// A peer that does not read answers, and the window probes of the kernel's own go on.
func TestAskWithAClosedWindow(t *testing.T) {
	n := newNetwork(t)
	s, peer := n.dial(nil)
	labtest.Must(t, unix.SetNonblock(s.FD, true))
	chunk := make([]byte, 16<<10)
	labtest.Eventually(t, "the window closes", func() bool {
		for {
			if _, err := unix.Write(s.FD, chunk); err != nil {
				break
			}
		}
		i := info(t, s.FD)
		return i.Snd_wnd == 0 && i.Unacked == 0 && i.Notsent_bytes > 0
	})
	labtest.Eventually(t, "an answer that is not that to a window probe of the kernel's own", func() bool {
		before := n.look(s)
		if before.kept.timer != tcpstate.TimerZeroWindow || before.info.Last_ack_recv < uint32(invalidRatelimit.Milliseconds()) ||
			time.Until(before.fires) < 100*time.Millisecond {
			return false
		}
		labtest.Must(t, Ask(s))
		var after snapshot
		labtest.Eventually(t, "an answer", func() bool { after = n.look(s); return after.info.Segs_in != before.info.Segs_in })
		if after.info.Segs_out != before.info.Segs_out+1 {
			return false
		}
		if pure(after.info) != pure(before.info)+1 || after.info.Last_ack_recv > uint32(after.at.Sub(before.at).Milliseconds())+20 {
			t.Errorf("no answer: %+v, before %+v", after.info, before.info)
		}
		// The answer moves what any answer to a window probe moves: the count of
		// unanswered ones, and the timer of the next (tcp_ack_probe in
		// net/ipv4/tcp_input.c).
		before.kept.probes, before.kept.retrans, before.fires = after.kept.probes, after.kept.retrans, after.fires
		n.same("closed window", before, after)
		return true
	})
	go func() { // until the test closes it
		for buf := make([]byte, 64<<10); ; {
			if _, err := peer.Read(buf); err != nil {
				return
			}
		}
	}()
	labtest.Eventually(t, "all arrives once the peer reads", func() bool {
		i := info(t, s.FD)
		return i.Unacked == 0 && i.Notsent_bytes == 0
	})
}

// A connection with TCP_USER_TIMEOUT ends when it would have without being asked.
func TestAskDoesNotEndAConnectionEarlier(t *testing.T) {
	n := newNetwork(t)
	const timeout = 1500 * time.Millisecond
	userTimeout := func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	}
	both := func(fd int) error {
		have, err := read(fd)
		if err != nil {
			return err
		}
		return errors.Join(write(fd, have, Options{Keepalive: true, Idle: time.Second, Interval: time.Second, Count: 9, RTOMax: have.RTOMax}), userTimeout(fd))
	}
	type pair struct {
		what         string
		asked, other Socket
		ends         bool // in a black hole
		busy         bool
	}
	var pairs []*pair
	for _, p := range []pair{
		{what: "idle, user timeout"},
		{what: "idle, user timeout and keepalive", ends: true},
		{what: "in flight, user timeout", ends: true, busy: true},
	} {
		prepare := userTimeout
		if strings.Contains(p.what, "keepalive") {
			prepare = both
		}
		p.asked, _ = n.dial(prepare)
		p.other, _ = n.dial(prepare)
		pairs = append(pairs, &p)
	}
	alive := func(s Socket) bool { return info(t, s.FD).State == established }
	// While the peer lives, for longer than the user timeout.
	for start := time.Now(); time.Since(start) < 2*timeout; {
		for _, p := range pairs {
			before := info(t, p.asked.FD).Segs_in
			n.rested(p.asked)
			labtest.Must(t, Ask(p.asked))
			labtest.Eventually(t, p.what+": an answer", func() bool { return info(t, p.asked.FD).Segs_in > before })
		}
	}
	for _, p := range pairs {
		if !alive(p.asked) || !alive(p.other) {
			t.Fatalf("%s: it has ended while its peer answered", p.what)
		}
	}
	labtest.Must(t, n.server.Vanish())
	lost := time.Now()
	for _, p := range pairs {
		if p.busy {
			for _, s := range []Socket{p.asked, p.other} {
				labtest.Must2(unix.Write(s.FD, []byte("into the void")))(t)
			}
		}
	}
	ended := map[Socket]time.Duration{}
	labtest.Eventually(t, "the timeouts run out", func() bool {
		waiting := 0
		for _, p := range pairs {
			for _, s := range []Socket{p.asked, p.other} {
				if _, ok := ended[s]; ok {
					continue
				}
				if !alive(s) {
					ended[s] = time.Since(lost)
					continue
				}
				if p.ends {
					waiting++
				}
				if s == p.asked {
					if err := Ask(s); err != nil && alive(s) {
						t.Fatal(err)
					}
				}
			}
		}
		return waiting == 0 && time.Since(lost) > 3*timeout
	})
	for _, p := range pairs {
		a, asked := ended[p.asked]
		o, other := ended[p.other]
		t.Logf("%s: asked all the time it ended after %v (%v), else %v (%v)", p.what, a, asked, o, other)
		if asked != p.ends || other != p.ends {
			t.Errorf("%s: it ended: %v, the one that was not asked: %v", p.what, asked, other)
		}
		// The silence began before the loss, for keepalive of the one that was not asked
		// by up to its idle time: the two can be compared only where data is in flight.
		if asked && a < timeout-50*time.Millisecond {
			t.Errorf("%s: it ended after %v", p.what, a)
		}
	}
	if a, o := ended[pairs[2].asked], ended[pairs[2].other]; (a - o).Abs() > 300*time.Millisecond {
		t.Errorf("in flight: it ended after %v, the one that was not asked after %v", a, o)
	}
}

// What is asked within tcp_invalid_ratelimit of the peer is one question.
func TestAskTooOften(t *testing.T) {
	n := newNetwork(t)
	const asks = 6
	answers := func(every time.Duration) int {
		s, _ := n.dial(nil)
		n.rested(s)
		before := pure(info(t, s.FD))
		tick := time.NewTicker(every)
		defer tick.Stop()
		for range asks {
			labtest.Must(t, Ask(s))
			<-tick.C
		}
		return int(pure(info(t, s.FD)) - before)
	}
	often, seldom := answers(100*time.Millisecond), answers(invalidRatelimit+20*time.Millisecond)
	t.Logf("of %d asks 100 ms apart %d were answered, of as many 520 ms apart %d", asks, often, seldom)
	if seldom != asks {
		t.Errorf("of %d asks further apart than the limit %d were answered", asks, seldom)
	}
	if often < 1 || often > 2 {
		t.Errorf("of %d asks within 600 ms %d were answered, want one for each 500 ms", asks, often)
	}
}

func TestAskRefused(t *testing.T) {
	n := newNetwork(t)
	s, peer := n.dial(reuse)
	wrong := s
	wrong.Cookie++
	n.refused("another cookie", s, wrong, ErrOther)
	wrong = s
	wrong.Remote = netip.AddrPortFrom(s.Remote.Addr(), s.Remote.Port()+1)
	n.refused("another peer", s, wrong, ErrPeer)
	wrong = s
	wrong.FD = 19_999 // RLIMIT_NOFILE is more than what a test opens
	n.refused("no such descriptor", s, wrong, ErrGone)

	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends without the capability
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		err := unix.Capget(&head, &sets[0])
		if err == nil {
			sets[unix.CAP_NET_ADMIN/32].Effective &^= 1 << (unix.CAP_NET_ADMIN % 32)
			err = unix.Capset(&head, &sets[0])
		}
		if err == nil {
			err = Ask(s)
		}
		done <- err
	}()
	before := n.look(s)
	err := <-done
	if !errors.Is(err, ErrNetAdmin) || !errors.Is(err, ErrNotPermitted) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("without CAP_NET_ADMIN: %v, want %v", err, ErrNetAdmin)
	}
	after := n.look(s)
	n.same("without CAP_NET_ADMIN", before, after)
	if after.info.Segs_out != before.info.Segs_out {
		t.Error("without CAP_NET_ADMIN: a segment was sent")
	}

	// A checkpoint is being made of it.
	labtest.Must(t, unix.SetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1))
	n.refused("in repair mode", s, s, ErrRepair)
	labtest.Must(t, unix.SetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_REPAIR, -1)) // TCP_REPAIR_OFF_NO_WP
	labtest.Must(t, reuse(s.FD))
	n.rested(s)
	n.answered("afterwards", s)

	labtest.Must(t, peer.CloseWrite())
	labtest.Eventually(t, "the FIN arrives", func() bool { return info(t, s.FD).State != established })
	n.refused("CLOSE_WAIT", s, s, ErrState)
	labtest.Must(t, peer.SetLinger(0))
	labtest.Must(t, peer.Close())
	labtest.Eventually(t, "the RST arrives", func() bool { return info(t, s.FD).State == uint8(tcpstate.Close) })
	if err := Ask(s); !errors.Is(err, ErrPeer) {
		t.Errorf("a connection that was reset: %v, want %v", err, ErrPeer)
	}
	s.Remote = netip.AddrPort{}
	if err := Ask(s); !errors.Is(err, ErrState) {
		t.Errorf("a connection that was reset, by its cookie alone: %v, want %v", err, ErrState)
	}
	if v, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || v != 1 {
		t.Errorf("SO_REUSEADDR is %d (%v) after being refused", v, err)
	}
}

// Of MPTCP neither the connection nor a subflow of it can be asked.
func TestAskMPTCP(t *testing.T) {
	n := newNetwork(t)
	to := netip.AddrPortFrom(n.server.Addr, 6391)
	var ln int
	labtest.Must(t, n.server.Do(func() (err error) {
		if ln, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP); err != nil {
			return err
		}
		return errors.Join(unix.Bind(ln, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}), unix.Listen(ln, 1))
	}))
	defer unix.Close(ln)
	s := n.connect(unix.IPPROTO_MPTCP, to, nil)
	peer, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
	labtest.Must(t, err)
	defer unix.Close(peer)
	var subflow tcpstate.Connection
	find := func() bool {
		labtest.Must(t, n.client.Do(func() error {
			var nl tcpstate.Socket
			return nl.Use(func() error {
				return nl.Dump(tcpstate.Filter{RemotePorts: []uint16{to.Port()}, Info: true}, func(c *tcpstate.Connection) error {
					subflow = *c
					return nil
				})
			})
		}))
		return subflow.MPTCP
	}
	labtest.Eventually(t, "the subflow is there", find)
	before := subflow.Info
	err = Ask(s)
	if !errors.Is(err, ErrNotSupported) {
		t.Errorf("MPTCP: %v, want %v", err, ErrNotSupported)
	}
	t.Logf("MPTCP: %v", err)
	s.Cookie = subflow.Cookie
	if err := Ask(s); !errors.Is(err, ErrOther) {
		t.Errorf("MPTCP, with the cookie of the subflow: %v, want %v", err, ErrOther)
	}
	if find(); subflow.Info.SegsIn != before.SegsIn {
		t.Errorf("%d segments came in, %d before", subflow.Info.SegsIn, before.SegsIn)
	}
	// A server that does not speak it: this is TCP, behind a socket with another cookie.
	plain := n.connect(unix.IPPROTO_MPTCP, n.ln.Addr().(*net.TCPAddr).AddrPort(), nil)
	c, err := n.ln.Accept()
	labtest.Must(t, err)
	defer c.Close()
	t.Logf("MPTCP that fell back to TCP: %v", Ask(plain))
}
