package keepalive

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/lab/labtest"
)

var want = Options{Keepalive: true, Idle: 10 * time.Second, Interval: 3 * time.Second, Count: 5}

// TestMain serves as another process, too: one that holds a connection until its
// standard input ends.
func TestMain(m *testing.M) {
	if addr := os.Getenv("REDISGUARD_TEST_DIAL"); addr != "" {
		c, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp", addr)
		if err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin)
			err = c.Close()
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	labtest.Main(m)
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	labtest.Must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// dial opens a connection without keepalive, as a bare descriptor of this process.
func dial(t *testing.T, l *net.TCPListener) (s Socket, peer *net.TCPConn) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	labtest.Must(t, err)
	labtest.Must(t, unix.Connect(fd, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}))
	peer, err = l.AcceptTCP()
	labtest.Must(t, err)
	cookie, err := sys.SocketCookie(fd)
	labtest.Must(t, err)
	return Socket{PID: os.Getpid(), FD: fd, Cookie: cookie, Remote: l.Addr().(*net.TCPAddr).AddrPort()}, peer
}

func TestPlan(t *testing.T) {
	defaults := Options{Idle: 7200 * time.Second, Interval: 75 * time.Second, Count: 9, RTOMax: rtoMaxDefault}
	own := func(change func(*Options)) Options {
		o := defaults
		o.Keepalive = true
		change(&o)
		return o
	}
	armed := want
	armed.RTOMax = rtoMaxDefault
	for name, tc := range map[string]struct{ have, want, plan Options }{
		"nothing chosen":           {defaults, want, armed},
		"turned on, values not":    {own(func(*Options) {}), want, armed},
		"its own are stricter":     {own(func(o *Options) { o.Idle, o.Interval, o.Count = 5*time.Second, time.Second, 3 }), want, own(func(o *Options) { o.Idle, o.Interval, o.Count = 5*time.Second, time.Second, 3 })},
		"one of them is stricter":  {own(func(o *Options) { o.Count = 2 }), want, armed},
		"more probes, as soon":     {own(func(o *Options) { o.Idle, o.Interval, o.Count = 5*time.Second, time.Second, 20 }), want, own(func(o *Options) { o.Idle, o.Interval, o.Count = 5*time.Second, time.Second, 20 })},
		"no rto max in the kernel": {Options{}, Options{RTOMax: 3 * time.Second}, Options{}},
		"nothing wanted":           {defaults, Options{}, defaults},
		"user timeout":             {defaults, Options{UserTimeout: 30 * time.Second}, func() Options { o := defaults; o.UserTimeout = 30 * time.Second; return o }()},
		"a stricter user timeout":  {func() Options { o := defaults; o.UserTimeout = time.Second; return o }(), Options{UserTimeout: 30 * time.Second}, func() Options { o := defaults; o.UserTimeout = time.Second; return o }()},
		"rto max":                  {defaults, Options{RTOMax: 3 * time.Second}, func() Options { o := defaults; o.RTOMax = 3 * time.Second; return o }()},
	} {
		if got := Plan(tc.have, tc.want); got != tc.plan {
			t.Errorf("%s: %+v, want %+v", name, got, tc.plan)
		}
		if got := Plan(Plan(tc.have, tc.want), tc.want); got != tc.plan {
			t.Errorf("%s, planned twice: %+v, want %+v", name, got, tc.plan)
		}
	}
}

func TestSetOnAnotherProcess(t *testing.T) {
	l := listen(t)
	self, err := os.Executable()
	labtest.Must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "REDISGUARD_TEST_DIAL="+l.Addr().String())
	in, err := cmd.StdinPipe()
	labtest.Must(t, err)
	labtest.Must(t, cmd.Start())
	peer, err := l.AcceptTCP()
	labtest.Must(t, err)
	s, ok := find(t, cmd.Process.Pid, peer.RemoteAddr().(*net.TCPAddr).Port)
	if !ok {
		t.Fatal("its descriptor is not found")
	}
	before, after, err := Set(s, func(have Options) Options { return Plan(have, want) })
	labtest.Must(t, err)
	if before.Keepalive || !after.Keepalive || after.Idle != want.Idle || after.Interval != want.Interval || after.Count != want.Count {
		t.Errorf("before %v, after %v", before, after)
	}
	if got, err := Read(s); err != nil || got != after {
		t.Errorf("read %v (%v), want %v", got, err, after)
	}
	wrong := s
	wrong.Cookie++
	if _, _, err := Set(wrong, func(Options) Options { t.Error("another socket was planned for"); return want }); !errors.Is(err, ErrOther) {
		t.Errorf("with another cookie: %v, want %v", err, ErrOther)
	}
	wrong = s
	wrong.FD = 999
	if _, err := Read(wrong); !errors.Is(err, ErrGone) {
		t.Errorf("a descriptor that is not there: %v, want %v", err, ErrGone)
	}
	wrong.FD = 0 // a pipe
	if _, err := Read(wrong); !errors.Is(err, ErrOther) {
		t.Errorf("a pipe: %v, want %v", err, ErrOther)
	}
	in.Close()
	labtest.Must(t, cmd.Wait())
	if _, err := Read(s); !errors.Is(err, ErrGone) {
		t.Errorf("a process that has ended: %v, want %v", err, ErrGone)
	}
}

// find looks for the descriptor of a process's socket by trying, as one may who
// cannot list /proc/<pid>/fd.
func find(t *testing.T, pid, port int) (Socket, bool) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	labtest.Must(t, err)
	defer unix.Close(pidfd)
	for fd := range 64 {
		dup, err := unix.PidfdGetfd(pidfd, fd, 0)
		if err != nil {
			continue
		}
		name, err := unix.Getsockname(dup)
		in4, ok := name.(*unix.SockaddrInet4)
		peer, _ := unix.Getpeername(dup)
		cookie, cerr := sys.SocketCookie(dup)
		unix.Close(dup)
		if err == nil && cerr == nil && ok && in4.Port == port {
			to := peer.(*unix.SockaddrInet4)
			return Socket{PID: pid, FD: fd, Cookie: cookie, Remote: netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))}, true
		}
	}
	return Socket{}, false
}

// While a duplicate is open, the application's close sends no FIN. It closes at any
// moment of our reading and setting, and the peer hears of it soon all the same.
func TestTheFINLeavesSoon(t *testing.T) {
	l := listen(t)
	for i := range 400 {
		s, peer := dial(t, l)
		var stop atomic.Bool
		var wg sync.WaitGroup
		closed := make(chan time.Time, 1)
		inside := i%4 == 0 // between reading and setting
		var once sync.Once
		shut := func() { once.Do(func() { closed <- time.Now(); unix.Close(s.FD) }) }
		wg.Go(func() {
			for !stop.Load() {
				_, _, _ = Set(s, func(have Options) Options {
					if inside {
						shut()
					}
					o := Plan(have, want)
					o.Idle += time.Duration(have.Idle/time.Second%2) * time.Second // something to set each time
					return o
				})
			}
		})
		if !inside {
			for range i * 13 % 997 { // some other moment each time
				_ = unix.Getpid()
			}
			shut()
		}
		labtest.Must(t, peer.SetReadDeadline(time.Now().Add(5*time.Second)))
		if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the peer reads %v, want EOF", err)
		}
		if took := time.Since(<-closed); took > 50*time.Millisecond {
			t.Errorf("the FIN came %v after the close", took)
		}
		stop.Store(true)
		wg.Wait()
		peer.Close()
	}
}

// Descriptor numbers change hands as fast as they can, while the options of one
// socket are set again and again: no other ever gets them.
func TestNoOtherSocketIsSet(t *testing.T) {
	t.Parallel()
	l := listen(t)
	target, peer := dial(t, l)
	defer peer.Close()
	defer unix.Close(target.FD)
	spare, err := unix.Dup(target.FD)
	labtest.Must(t, err)
	defer unix.Close(spare)
	var others []int
	for range 8 {
		s, p := dial(t, l)
		defer p.Close()
		defer unix.Close(s.FD)
		others = append(others, s.FD)
	}
	// number is the descriptor that is now the target and now another.
	number, err := unix.Dup(target.FD)
	labtest.Must(t, err)
	defer unix.Close(number)
	s := target
	s.FD = number
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; !stop.Load(); i++ {
			labtest.Must(t, unix.Dup3(others[i%len(others)], number, unix.O_CLOEXEC))
			labtest.Must(t, unix.Dup3(spare, number, unix.O_CLOEXEC))
		}
	})
	set, refused := 0, 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		idle := time.Duration(10+set%2) * time.Second
		_, _, err := Set(s, func(have Options) Options {
			o := Plan(have, want)
			o.Idle = idle
			return o
		})
		switch {
		case err == nil:
			set++
		case errors.Is(err, ErrOther):
			refused++
		default:
			t.Fatalf("after %d: %v", set, err)
		}
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("set %d times, refused %d times", set, refused)
	if set < 100 || refused < 100 {
		t.Errorf("set %d times, refused %d times: the numbers did not change hands", set, refused)
	}
	for _, fd := range others {
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || v != 0 {
			t.Errorf("another socket has keepalive %d (%v)", v, err)
		}
	}
}

// A socket that is connected elsewhere by now, or listens, has its cookie still.
func TestASocketThatIsUsedAgain(t *testing.T) {
	l := listen(t)
	s, peer := dial(t, l)
	defer peer.Close()
	defer unix.Close(s.FD)
	if _, err := Read(s); err != nil {
		t.Fatal(err)
	}
	elsewhere := s
	elsewhere.Remote = netip.MustParseAddrPort("127.0.0.1:1")
	if _, _, err := Set(elsewhere, func(Options) Options { t.Error("it was planned for"); return want }); !errors.Is(err, ErrOther) || !errors.Is(err, ErrPeer) {
		t.Errorf("another peer: %v, want %v", err, ErrPeer)
	}
	// AF_UNSPEC takes the connection away.
	labtest.Must(t, disconnect(s.FD))
	labtest.Must(t, unix.Listen(s.FD, 1))
	if cookie, err := sys.SocketCookie(s.FD); err != nil || cookie != s.Cookie {
		t.Errorf("its cookie is %d (%v), was %d", cookie, err, s.Cookie)
	}
	if _, _, err := Set(s, func(Options) Options { t.Error("a listener was planned for"); return want }); !errors.Is(err, ErrOther) {
		t.Errorf("it listens: %v, want %v", err, ErrOther)
	}
}

func disconnect(fd int) error {
	var unspec unix.RawSockaddr // AF_UNSPEC is 0
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unix.SizeofSockaddrInet4); errno != 0 {
		return errno
	}
	return nil
}

// What the sysctls of its namespace say today is written to a socket all the same,
// or it would follow them tomorrow.
func TestValuesDoNotFollowTheSysctl(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
		sysctl := func(name, value string) {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
				t.Error(err)
			}
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		sysctl("tcp_keepalive_time", "10")
		sysctl("tcp_keepalive_intvl", "3")
		sysctl("tcp_keepalive_probes", "5")
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		before, err := read(fd)
		if err == nil {
			err = write(fd, before, Plan(before, want))
		}
		if err != nil {
			t.Error(err)
		}
		sysctl("tcp_keepalive_time", "7200")
		sysctl("tcp_keepalive_intvl", "75")
		sysctl("tcp_keepalive_probes", "9")
		if after, err := read(fd); err != nil || !after.SameTimes(want) {
			t.Errorf("it has %v (%v), want %v", after, err, want)
		}
	}()
	<-done
}

// String and Ends say what the kernel does; with a user timeout it does not count.
func TestEnds(t *testing.T) {
	for ends, o := range map[time.Duration]Options{
		0:                {Idle: time.Second, Interval: time.Second, Count: 1},
		25 * time.Second: want,
		13 * time.Second: {Keepalive: true, Idle: 10 * time.Second, Interval: 3 * time.Second, Count: 5, UserTimeout: 5 * time.Second},
		31 * time.Second: {Keepalive: true, Idle: 10 * time.Second, Interval: 3 * time.Second, Count: 5, UserTimeout: 30 * time.Second},
	} {
		if got := o.Ends(); got != ends {
			t.Errorf("%v: %v, want %v", o, got, ends)
		}
	}
}

// Where SOCK_DESTROY is missing: the application reads the end, its peer a FIN; and a
// socket that is none of ours is left alone.
func TestShutdown(t *testing.T) {
	l := listen(t)
	s, peer := dial(t, l)
	defer peer.Close()
	defer unix.Close(s.FD)
	elsewhere := s
	elsewhere.Remote = netip.MustParseAddrPort("127.0.0.1:1")
	if err := Shutdown(elsewhere); !errors.Is(err, ErrOther) {
		t.Errorf("with another peer: %v, want %v", err, ErrOther)
	}
	labtest.Must(t, unix.SetNonblock(s.FD, true))
	if _, err := unix.Read(s.FD, make([]byte, 1)); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("it was shut down: %v", err)
	}
	labtest.Must(t, Shutdown(s))
	if n, err := unix.Read(s.FD, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the application reads %d, %v", n, err)
	}
	labtest.Must(t, peer.SetReadDeadline(time.Now().Add(5*time.Second)))
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer reads %v, want EOF", err)
	}
	// A connect that nobody answers: the listener's queue is full.
	full, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	labtest.Must(t, err)
	defer unix.Close(full)
	labtest.Must(t, unix.Bind(full, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	labtest.Must(t, unix.Listen(full, 0))
	name, err := unix.Getsockname(full)
	labtest.Must(t, err)
	to := name.(*unix.SockaddrInet4)
	for range 8 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		labtest.Must(t, err)
		defer unix.Close(fd)
		if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.State != synSent {
			continue
		}
		cookie, err := sys.SocketCookie(fd)
		labtest.Must(t, err)
		labtest.Must(t, Shutdown(Socket{PID: os.Getpid(), FD: fd, Cookie: cookie, Remote: netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))}))
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.State == synSent {
			t.Errorf("it is connecting still (%v)", err)
		}
		return
	}
	t.Error("no connect waits")
}
