package supervisor_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/supervisor"
)

// Who waits for redisguard to be ready may rely on what was there before: every
// connection in every namespace is watched by then. A guard that is off is ready, too.
func TestReadyIsAfterTheFirstLook(t *testing.T) {
	w := newWorld(t)
	const hosts, each = 10, 3
	for i := range hosts {
		h, err := w.Client(fmt.Sprintf("r%d", i))
		labtest.Must(t, err)
		w.run(h, lab.Subscriber, w.redis.Addr(), each)
	}
	for _, tracepoints := range []config.Tracepoints{config.TracepointsAuto, config.TracepointsOff} {
		t.Run(tracepoints.String(), func(t *testing.T) {
			c := base()
			c.Watch.Tracepoints = tracepoints
			ready := make(chan struct{}, 10)
			g := start(t, supervisor.Options{Config: c, StateDir: t.TempDir(), Ready: func() { ready <- struct{}{} }})
			select {
			case <-ready:
			case <-time.After(20 * time.Second):
				t.Fatal("it is never ready")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			n, err := g.View(ctx)
			labtest.Must(t, err)
			if len(n.Connections) != hosts*each {
				t.Errorf("%d connections are watched when it is ready, want %d", len(n.Connections), hosts*each)
			}
			c.Mode = config.Off
			g.Reconfigure(c)
			g.wait(2*time.Second, "off", ofType("mode.changed"))
			c.Mode = config.Enforce
			g.Reconfigure(c)
			labtest.Within(t, 10*time.Second, "it watches again", func() bool { return g.Figures().Tracked == hosts*each })
			if len(ready) > 0 {
				t.Error("it is ready twice")
			}
		})
	}
	t.Run("off", func(t *testing.T) {
		c := base()
		c.Mode = config.Off
		ready := make(chan struct{}, 10)
		start(t, supervisor.Options{Config: c, StateDir: t.TempDir(), Ready: func() { ready <- struct{}{} }})
		select {
		case <-ready:
		case <-time.After(20 * time.Second):
			t.Fatal("it is never ready")
		}
	})
}

// The service manager is told when it is ready and when it stops, and its watchdog is fed.
func TestTheServiceManagerIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	labtest.Must(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "10000000")
	told := make(chan string, 1000)
	go func() {
		defer close(told)
		b := make([]byte, 4096)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	var before []string
	until := func(what string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case s := <-told:
				before = append(before, s)
				if s == what {
					return
				}
			case <-deadline:
				t.Fatalf("%s is never told: %q", what, before)
			}
		}
	}
	d := startDaemon(t, daemonConfig{})
	until("READY=1")
	for _, s := range before {
		if s != "READY=1" && s != "WATCHDOG=1" && !strings.HasPrefix(s, "EXTEND_TIMEOUT_USEC=") {
			t.Errorf("told %q before it was ready", s)
		}
	}
	until("WATCHDOG=1")
	until("WATCHDOG=1")
	d.terminate()
	until("STOPPING=1")
	if n := strings.Count(strings.Join(before, " "), "READY=1"); n != 1 {
		t.Errorf("READY was told %d times", n)
	}
}
