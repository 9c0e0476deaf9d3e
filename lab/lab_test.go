package lab

import (
	"context"
	"fmt"
	"testing"
	"time"
)

func TestManyHosts(t *testing.T) {
	l, err := New(Config{Prefix: "rgt"})
	if err != nil {
		t.Fatal(err)
	}
	t0 := time.Now()
	s, err := l.Server("s")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 250 {
		if _, err := l.Client(fmt.Sprintf("c%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	t.Log("made", time.Since(t0))
	ln, err := s.Listen(t.Context(), "tcp", "[::]:6379")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h := l.net.hosts["c249"]
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	v, err := l.VIP("v", vipNet4.Addr().Next(), 6000)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.PointTo(s, 6379); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{fmt.Sprint(s.Addr, ":6379"), fmt.Sprintf("[%s]:6379", s.Addr6), v.Addr.String()} {
		t0 = time.Now()
		c, err := h.Dial(ctx, "tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(a, time.Since(t0))
		c.Close()
	}
	t0 = time.Now()
	s.Vanish()
	t.Log("vanish", time.Since(t0))
	t0 = time.Now()
	if err := s.Return(); err != nil {
		t.Fatal(err)
	}
	t.Log("return", time.Since(t0))
	t0 = time.Now()
	h.Vanish()
	if err := h.Return(); err != nil {
		t.Fatal(err)
	}
	t.Log("client vanish+return", time.Since(t0))
	t0 = time.Now()
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	t.Log("remove", time.Since(t0))
	t0 = time.Now()
	undo, err := l.Loss(100)
	t.Log("loss", time.Since(t0), err)
	undo()
	t0 = time.Now()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Log("close", time.Since(t0))
}
