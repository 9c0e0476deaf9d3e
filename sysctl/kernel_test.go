package sysctl

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
)

// The calculator against the kernel: clients in namespaces of their own, each with
// its values, all lose the same server.
func TestMeaningAgainstTheKernel(t *testing.T) {
	l, err := lab.New(lab.Config{Prefix: "rgt"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	server, err := l.Server("s")
	if err != nil {
		t.Fatal(err)
	}
	const port = 16382
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ln, err := server.Listen(ctx, "tcp4", "0.0.0.0:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); conns.Wait() })
	addr := netip.AddrPortFrom(server.Addr, port).String()

	const busy, idle, connecting = "busy", "idle", "connecting"
	type run struct {
		name string
		kind string
		set  Values
		host *lab.Host
		conn net.Conn
		rto  time.Duration
	}
	runs := []*run{
		{name: "retries2=3", kind: busy, set: Values{Retries2: 3}},
		{name: "retries2=4", kind: busy, set: Values{Retries2: 4}},
		{name: "retries2=5", kind: busy, set: Values{Retries2: 5}},
		{name: "retries2=6", kind: busy, set: Values{Retries2: 6}},
		{name: "retries2=6 capped", kind: busy, set: Values{Retries2: 6, RTOMax: 2000}},
		{name: "syn_retries=3", kind: connecting, set: Values{SynRetries: 3}},
		{name: "syn_retries=1", kind: connecting, set: Values{SynRetries: 1}},
		{name: "keepalive 1/1/2", kind: idle, set: Values{KeepaliveTime: 1, KeepaliveIntvl: 1, KeepaliveProbes: 2}},
		{name: "keepalive 5/2/3", kind: idle, set: Values{KeepaliveTime: 5, KeepaliveIntvl: 2, KeepaliveProbes: 3}},
		{name: "keepalive 15/5/3", kind: idle, set: Values{KeepaliveTime: 15, KeepaliveIntvl: 5, KeepaliveProbes: 3}},
	}
	for i, r := range runs {
		if r.host, err = l.Client("c" + strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		if err := r.host.Do(func() error {
			for k, v := range r.set {
				if err := (FS{}).write(k, v); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if r.kind == connecting {
			continue
		}
		// Without the keepalive times that Go sets.
		d := net.Dialer{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				if r.kind == idle {
					_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
				}
			})
		}}
		if err := r.host.Do(func() (err error) {
			r.conn, err = d.DialContext(ctx, "tcp4", addr)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer r.conn.Close()
		raw, err := r.conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil {
				r.rto = time.Duration(info.Rto) * time.Microsecond
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Vanish(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, r := range runs {
		wg.Go(func() {
			began := time.Now()
			var err error
			switch r.kind {
			case connecting:
				var c net.Conn
				if c, err = r.host.Dial(ctx, "tcp4", addr); err == nil {
					c.Close()
				}
			case busy:
				_, err = r.conn.Write([]byte("PING\r\n"))
				if err == nil {
					_, err = r.conn.Read(make([]byte, 1))
				}
			case idle:
				_, err = r.conn.Read(make([]byte, 1))
			}
			took := time.Since(began)
			if !errors.Is(err, unix.ETIMEDOUT) {
				t.Errorf("%s: after %v: %v", r.name, took, err)
				return
			}
			var v Values
			if err := r.host.Do(func() (err error) { v, err = FS{}.Read(); return err }); err != nil {
				t.Error(err)
				return
			}
			m := Mean(v, r.rto)
			want := map[string]time.Duration{busy: m.Busy, idle: m.Idle, connecting: m.Connect}[r.kind]
			t.Logf("%-18s took %6.2f s, computed %6.2f s (rto %v)", r.name, took.Seconds(), want.Seconds(), r.rto)
			if off := took - want; off < -want/12-200*time.Millisecond || off > want/12+500*time.Millisecond {
				t.Errorf("%s: took %v, computed %v", r.name, took, want)
			}
		})
	}
	wg.Wait()
}

func TestMean(t *testing.T) {
	defaults := Values{}
	for k := range keys {
		defaults[k] = k.Def().Default
	}
	with := func(more Values) Values {
		v := Values{}
		for k, n := range defaults {
			v[k] = n
		}
		for k, n := range more {
			v[k] = n
		}
		return v
	}
	old := with(nil)
	delete(old, SynLinear)
	delete(old, RTOMax)
	delete(old, RTOMin)
	near := func(d time.Duration, s float64) bool {
		return d.Seconds() > s*0.95-0.3 && d.Seconds() < s*1.06+0.3
	}
	for _, tt := range []struct {
		name                string
		v                   Values
		rto                 time.Duration
		busy, idle, connect float64 // seconds
	}{
		// Documentation/networking/ip-sysctl.rst names 924.6 s, 131 s and 127 s.
		{"the kernel's defaults", defaults, 0, 929, 7875, 131},
		{"an old kernel", old, 0, 929, 7875, 127},
		{"ours", with(profile), 0, 13.4, 30, 19},
		{"ours, old kernel", Values{Retries2: 5, KeepaliveTime: 15, KeepaliveIntvl: 5, KeepaliveProbes: 3, SynRetries: 3}, 0, 13.1, 30, 15},
		// Late timers make up for what 4 lacks: 6.1 s are less than 6.2.
		{"3", with(Values{Retries2: 3}), 0, 6.7, 7875, 131},
		{"4", with(Values{Retries2: 4}), 0, 6.7, 7875, 131},
		{"a far peer", with(Values{Retries2: 5}), 400 * time.Millisecond, 26, 7875, 131},
		{"capped", with(Values{Retries2: 15, RTOMax: 1000}), 0, 14.9, 7875, 7},
		{"none", with(Values{Retries2: 1, KeepaliveProbes: 1, KeepaliveTime: 1, KeepaliveIntvl: 1, SynRetries: 1}), 0, 1.6, 2, 3},
	} {
		m := Mean(tt.v, tt.rto)
		if !near(m.Busy, tt.busy) || !near(m.Idle, tt.idle) || !near(m.Connect, tt.connect) {
			t.Errorf("%s: %+v", tt.name, m)
		}
	}
	if s, want := Mean(defaults, 0).String(), "a busy connection here fails after 16 min, an idle one with keepalive after 2 h 11 min, a connect after 2 min"; len(s) < len(want) || s[:len(want)] != want {
		t.Error(s)
	}
	for d, want := range map[time.Duration]string{13100 * time.Millisecond: "13.1 s", 929 * time.Second: "15 min", 7875 * time.Second: "2 h 11 min"} {
		if got := Words(d); got != want {
			t.Errorf("%v is %q", d, got)
		}
	}
	// Absurd values neither hang nor overflow.
	for _, v := range []Values{{Retries2: 255, SynRetries: 127, SynLinear: 255, KeepaliveTime: 1 << 30, KeepaliveIntvl: 1 << 20, KeepaliveProbes: 255}, {RTOMax: 1}, {RTOMax: 0, Retries2: 0}, {RTOMax: -1, Retries2: -5, SynRetries: -3}} {
		if m := Mean(v, time.Hour); m.Busy < 0 || m.Connect < 0 {
			t.Errorf("%v: %+v", v, m)
		}
	}
}
