package tcpstate_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/tcpstate"
)

// What the verdicts build on, on the kernel that runs the test: in a black hole
// the count of segments in stands still, every transmission that is really made
// counts in total_retrans, resets last_data_sent and is told by the tracepoint, and
// last_ack_recv grows.
func TestWhatTheKernelShowsInABlackHole(t *testing.T) {
	l, err := lab.New(lab.Config{Prefix: "rgts"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := l.Client("c")
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Server("s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ln, err := server.Listen(ctx, "tcp4", server.Addr.String()+":6379")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := client.Dial(ctx, "tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	buf := make([]byte, 16)
	for range 10 { // some traffic, so that the kernel has measured the round trip
		if _, err := conn.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	look := func() (c tcpstate.Connection) {
		t.Helper()
		err := client.Do(func() error {
			var s tcpstate.Socket
			if err := s.Open(); err != nil {
				return err
			}
			defer s.Close()
			return s.Dump(tcpstate.Filter{RemotePorts: []uint16{6379}, Info: true}, func(got *tcpstate.Connection) error {
				if got.Local == local { // a guard on this machine may be probing from there
					c = *got
				}
				return nil
			})
		})
		if err != nil || c.Cookie == 0 {
			t.Fatalf("cannot look at the connection: %v, %+v", err, c)
		}
		return c
	}
	if err := server.Vanish(); err != nil {
		t.Fatal(err)
	}
	retransmits, err := tcpstate.OpenRetransmits([]uint16{1, 6379}, false)
	if err != nil {
		t.Fatalf("this kernel has tracepoints, and we are root: %v", err)
	}
	defer retransmits.Close()
	before := look()
	lost := time.Now()
	if _, err := conn.Write([]byte("into the void")); err != nil {
		t.Fatal(err)
	}
	last := before
	sent, told := 0, 0
	tell := func(r tcpstate.Retransmission) {
		if r.Remote.Port() != 6379 {
			t.Errorf("a retransmission to %v, which is not watched", r.Remote)
		}
		if r.Local == before.Local && r.Remote == before.Remote && r.State == tcpstate.Established { // others may be at it on this machine
			told++
		}
	}
	looked := lost
	for sent < 3 {
		since := time.Since(looked) // as long ago it may have been, at most
		looked = time.Now()
		retransmits.Read(tell)
		now := look()
		if time.Since(lost) > 15*time.Second {
			t.Fatalf("three retransmissions take longer than 15 s: %+v", now)
		}
		if now.Info.SegsIn != before.Info.SegsIn || now.Info.BytesAcked != before.Info.BytesAcked {
			t.Fatalf("something was heard out of a black hole: %+v, before %+v", now.Info, before.Info)
		}
		if now.Info.TotalRetrans > last.Info.TotalRetrans {
			sent++
			t.Logf("%v: timer %v, retrans %d, total_retrans %d, unacked %d, last_data_sent %v, last_ack_recv %v", time.Since(lost).Round(time.Millisecond),
				now.Timer, now.Retrans, now.Info.TotalRetrans, now.Info.Unacked, now.Info.LastDataSent, now.Info.LastAckRecv)
			if now.Info.LastDataSent > since+time.Since(looked)+50*time.Millisecond {
				t.Errorf("a retransmission did not reset last_data_sent: %v", now.Info.LastDataSent)
			}
		}
		last = now
	}
	retransmits.Read(tell)
	// What is delivered is a hint, what is counted is exact; others on this machine may have
	// added to the count.
	n := int(last.Info.TotalRetrans - before.Info.TotalRetrans)
	counted, err := retransmits.Counted()
	if err != nil || int(counted) < n {
		t.Errorf("the kernel counted %d retransmissions, the socket %d (%v)", counted, n, err)
	}
	if told > n+1 { // one may have come since the last look
		t.Errorf("the tracepoint told of %d retransmissions, the socket of %d", told, n)
	}
	if silence := time.Since(lost); last.Info.LastAckRecv < silence-100*time.Millisecond {
		t.Errorf("last_ack_recv is %v after a silence of %v", last.Info.LastAckRecv, silence)
	}
	if last.Timer != tcpstate.TimerRetransmit || last.Info.Unacked == 0 {
		t.Errorf("not retransmitting: %+v", last)
	}
}
