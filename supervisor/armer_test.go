package supervisor

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/verdict"
)

// One whose socket cannot be reached keeps the others waiting for a moment only, is
// not tried again while it keeps our goroutine, and is armed when it has let go.
func TestTheArmerIsNotHeld(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := armWorld(2)
	c := w.s.config()
	var jobs []*armJob
	var first syscall.RawConn
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
		var cookie uint64
		var fd int
		if cerr := raw.Control(func(n uintptr) { fd = int(n); cookie, err = sys.SocketCookie(fd) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		jobs = append(jobs, &armJob{
			key: verdict.ConnKey{NS: 1, Cookie: uint64(i + 1)}, want: armOptions(c), conf: c,
			socket: keepalive.Socket{PID: os.Getpid(), FD: fd, Cookie: cookie, Remote: l.Addr().(*net.TCPAddr).AddrPort()},
		})
	}
	var release func() error
	if cerr := first.Control(func(n uintptr) { release, err = lab.HoldLock(int(n)) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	a := armer{s: w.s, held: map[int]bool{}, free: make(chan int, maxHeld)}
	began := time.Now()
	results := a.do(t.Context(), jobs)
	if len(results) != 2 || !errors.Is(results[0].err, errHeld) || !errors.Is(results[1].err, errHeld) {
		t.Fatalf("both sockets are of the process that holds one: %+v", results)
	}
	if took := time.Since(began); took > 10*armPatience {
		t.Errorf("it took %v", took)
	}
	began = time.Now()
	if results = a.do(t.Context(), jobs); len(results) != 2 || time.Since(began) > armPatience/2 {
		t.Errorf("again after %v: %+v", time.Since(began), results)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		results = a.do(t.Context(), jobs)
		if len(results) == 2 && results[0].err == nil && results[1].err == nil && results[0].after.SameTimes(armOptions(c)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("released, and not armed: %+v", results)
		}
	}
}
