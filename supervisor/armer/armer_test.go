package armer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// One whose socket cannot be reached keeps the others waiting for a moment only, is
// not tried again while it keeps our goroutine, and is armed when it has let go.
func TestTheArmerIsNotBlocked(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := newWorld(2)
	w.in.Config.Watch.Ports = []uint16{uint16(l.Addr().(*net.TCPAddr).Port), 6379}
	c, pol := w.in.Config, w.policy()
	var jobs []*Job
	var first syscall.RawConn
	var locals [2]netip.AddrPort
	for i := range 2 {
		conn, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = raw
		}
		locals[i] = conn.LocalAddr().(*net.TCPAddr).AddrPort()
		var cookie uint64
		var fd int
		if cerr := raw.Control(func(n uintptr) { fd = int(n); cookie, err = sys.SocketCookie(fd) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		jobs = append(jobs, &Job{
			Key: verdict.ConnKey{NS: 1, Cookie: uint64(i + 1)}, Want: Options(c), Config: c,
			Socket: keepalive.Socket{PID: os.Getpid(), FD: fd, Cookie: cookie, Remote: l.Addr().(*net.TCPAddr).AddrPort()},
		})
	}
	var release func() error
	if cerr := first.Control(func(n uintptr) { release, err = lab.HoldLock(int(n)) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	a := New(Config{Policy: func() *policy.Policy { return pol }, Log: slog.New(slog.DiscardHandler)})
	told := make(chan Result, 10)
	a.Deliver = func(_ context.Context, results []Result) {
		for _, r := range results {
			told <- r
		}
	}
	try := func() (results []Result) {
		a.do(t.Context(), jobs)
		for range jobs {
			results = append(results, <-told)
		}
		return results
	}
	began := time.Now()
	results := try()
	if !errors.Is(results[0].Err, ErrBlocked) || !errors.Is(results[1].Err, ErrBlocked) {
		t.Fatalf("both sockets are of the process that holds one: %+v", results)
	}
	if took := time.Since(began); took > 10*patience {
		t.Errorf("it took %v", took)
	}
	began = time.Now()
	if results = try(); time.Since(began) > patience/2 {
		t.Errorf("again after %v: %+v", time.Since(began), results)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	// What was given up sets nothing, and says so.
	late := <-told
	if o, err := keepalive.Read(jobs[0].Socket); late.Job != jobs[0] || !errors.Is(late.Err, ErrStale) || err != nil || o.Keepalive {
		t.Errorf("late: %v, it has %v (%v)", late.Err, o, err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		results = try()
		if results[0].Err == nil && results[1].Err == nil && results[0].After.SameTimes(Options(c)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("released, and not armed: %+v", results)
		}
	}
	// Where getpeername does not say the truth, the kernel's table does.
	elsewhere := *jobs[0]
	elsewhere.Socket.Remote = netip.MustParseAddrPort("10.96.0.10:6379")
	elsewhere.NS, elsewhere.ID = here(t), tcpstate.ID{Local: locals[0], Remote: l.Addr().(*net.TCPAddr).AddrPort(), Cookie: elsewhere.Socket.Cookie}
	jobs = []*Job{&elsewhere}
	if results = try(); results[0].Err != nil {
		t.Errorf("with the address of a service: %v", results[0].Err)
	}
	elsewhere.ID.Cookie++
	if results = try(); !errors.Is(results[0].Err, keepalive.ErrOther) {
		t.Errorf("another one: %v, want %v", results[0].Err, keepalive.ErrOther)
	}
}

// here is the namespace that we are in.
func here(t *testing.T) netns.Namespace {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	return netns.Namespace{ID: netns.ID{Dev: st.Dev, Inode: st.Ino}, Path: "/proc/self/ns/net"}
}
