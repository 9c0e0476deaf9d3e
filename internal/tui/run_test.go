package tui

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
)

// terminal is a real one; what is written to it can be waited for.
type terminal struct {
	keyboard, screen *os.File

	mu   sync.Mutex
	seen bytes.Buffer
	done chan struct{}
}

func newTerminal(t *testing.T, width, height uint16) *terminal {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	must(err)
	must(unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(err)
	must(unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}))
	term := &terminal{keyboard: master, screen: slave, done: make(chan struct{})}
	go func() {
		defer close(term.done)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			term.mu.Lock()
			term.seen.Write(b[:n])
			term.mu.Unlock()
			if err != nil {
				return // the other end is closed
			}
		}
	}()
	t.Cleanup(func() {
		slave.Close()
		<-term.done
		master.Close()
	})
	return term
}

// wait waits until the text has been drawn since the last wait.
func (term *terminal) wait(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		term.mu.Lock()
		found := bytes.Contains(term.seen.Bytes(), []byte(text))
		all := term.seen.String()
		if found {
			term.seen.Reset()
		}
		term.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the screen never says %q but:\n%q", text, all)
		}
	}
}

// lasting is a source whose events go on.
type lasting struct{ source }

func (s *lasting) Events(ctx context.Context, _ string, _ ...v1.EventType) iter.Seq2[v1.Event, error] {
	return func(yield func(v1.Event, error) bool) {
		for _, e := range someEvents() {
			if !yield(e, nil) {
				return
			}
		}
		<-ctx.Done()
	}
}

// TestRun is the program on a terminal: it draws, takes keys, and ends without
// leaving anything behind.
func TestRun(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Run("keys", func(t *testing.T) {
		term := newTerminal(t, 110, 30)
		ended := make(chan error, 1)
		go func() {
			ended <- Run(t.Context(), Config{Source: &lasting{}, Every: 20 * time.Millisecond}, term.screen, term.screen)
		}()
		term.wait(t, "java[4711]")
		for _, step := range []struct{ keys, shows string }{
			{"\r", "connections to 10.0.0.1:6379"}, {"x", "unacknowledged and retransmitting"}, {"q", "stalled"}, {"?", "any key: back"},
		} {
			if _, err := term.keyboard.WriteString(step.keys); err != nil {
				t.Fatal(err)
			}
			term.wait(t, step.shows)
		}
		if _, err := term.keyboard.WriteString("qq"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("q does not end it")
		}
		term.wait(t, "\x1b[?1049l") // the usual screen is back
	})
	t.Run("told to end", func(t *testing.T) {
		term := newTerminal(t, 80, 24)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, Config{Source: &lasting{}}, term.screen, term.screen) }()
		term.wait(t, "10.0.0.1:6379")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	goleak.VerifyNone(t, leaks, goleak.IgnoreAnyFunction("charm.land/bubbletea/v2.Tick.func1")) // a timer, of a second at most
}
