package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

// startSentinel starts a real Sentinel that watches a primary called main.
func startSentinel(t *testing.T, primary netip.AddrPort, lines ...string) *redis {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor main %s %d 1\n%s\n", primary.Addr(), primary.Port(), strings.Join(lines, "\n"))
	labtest.Must(t, os.WriteFile(file, []byte(text), 0o600))
	return startRedis(t, file, "--sentinel", "--port", "PORT")
}

func TestSubscribe(t *testing.T) {
	plain := startRedis(t, monitor...)
	old := startRedis(t, "--rename-command", "HELLO", "")
	sentinel := startSentinel(t, plain.addr)
	for _, tt := range []struct {
		name  string
		addr  netip.AddrPort
		proto int
	}{{"RESP3", plain.addr, 3}, {"RESP2", old.addr, 2}} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := trusting(t)
			cfg.Ping = 20 * time.Millisecond // so that there are some
			c := dial(t, tt.addr, cfg)
			if c.Proto() != tt.proto {
				t.Fatalf("protocol %d", c.Proto())
			}
			s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"a", "b"}))(t)
			if _, err := c.Do(labtest.Soon(t), []string{"PING"}); err == nil {
				t.Error("a subscribed connection takes commands")
			}
			other := dial(t, tt.addr, trusting(t))
			for _, m := range []string{"a 1", "c 2", "b 3"} {
				channel, payload, _ := strings.Cut(m, " ")
				do(t, other, "PUBLISH", channel, payload)
			}
			ctx, cancel := context.WithCancel(labtest.Soon(t))
			var got []string
			labtest.Must(t, s.Receive(ctx, func(channel, payload string) {
				if got = append(got, channel+" "+payload); len(got) == 2 {
					cancel()
				}
			}))
			if !slices.Equal(got, []string{"a 1", "b 3"}) {
				t.Errorf("got %q", got)
			}
			// Several pings, and none is taken for a message.
			ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			labtest.Must(t, s.Receive(ctx, func(channel, payload string) { t.Errorf("got %q %q", channel, payload) }))
			ctx, cancel = context.WithCancel(labtest.Soon(t))
			defer cancel()
			do(t, other, "PUBLISH", "a", "4")
			labtest.Must(t, s.Receive(ctx, func(_, payload string) { got = append(got, payload); cancel() }))
			if got[len(got)-1] != "4" {
				t.Errorf("got %q", got)
			}
		})
	}
	t.Run("Sentinel", func(t *testing.T) {
		c := dial(t, sentinel.addr, trusting(t))
		s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"+monitor", "+sdown", "+set"}))(t)
		do(t, dial(t, sentinel.addr, trusting(t)), "SENTINEL", "SET", "main", "quorum", "2")
		ctx, cancel := context.WithCancel(labtest.Soon(t))
		defer cancel()
		var got string
		labtest.Must(t, s.Receive(ctx, func(channel, payload string) { got = channel + " " + payload; cancel() }))
		if !strings.HasPrefix(got, "+set master main 127.0.0.1") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("least privileges", func(t *testing.T) {
		cfg := trusting(t)
		cfg.Username, cfg.Password = "monitor", NewPassword("secret")
		labtest.Must2(dial(t, plain.addr, cfg).Subscribe(labtest.Soon(t), []string{"__sentinel__:hello"}))(t)
		_, err := dial(t, plain.addr, cfg).Subscribe(labtest.Soon(t), []string{"other"})
		if !errors.Is(err, ErrNoPerm) {
			t.Errorf("another channel: %v", err)
		}
	})
	t.Run("the server ends", func(t *testing.T) {
		r := startRedis(t)
		s := labtest.Must2(dial(t, r.addr, trusting(t)).Subscribe(labtest.Soon(t), []string{"a"}))(t)
		do(t, dial(t, r.addr, trusting(t)), "CLIENT", "KILL", "TYPE", "pubsub")
		err := s.Receive(labtest.Soon(t), func(string, string) {})
		contains(t, err, "cannot listen to "+r.addr.String(), "the server closed the connection")
	})
}

func TestSubscribeToStrangers(t *testing.T) {
	const confirmed = ">3\r\n+subscribe\r\n+a\r\n:1\r\n"
	message := ">3\r\n+message\r\n+a\r\n$4\r\ntext\r\n"
	cfg := trusting(t)
	cfg.Timeout, cfg.Ping = 200*time.Millisecond, 20*time.Millisecond
	// Of what is asked first and answered wrongly.
	for _, tt := range []struct {
		name, answer string
		says         string
		is           error
	}{
		{"nothing", "", "no answer in time", ErrTimeout},
		{"not all", ">3\r\n+subscribe\r\n", "no answer in time", ErrTimeout},
		{"another channel", strings.Replace(confirmed, "+a", "+\x1b[b", 1), `a channel that was not asked for, "?[b"`, ErrNotRedis},
		{"a number", ":1\r\n", "to a subscriber it sends an unexpected integer", ErrNotRedis},
		{"a refusal", "-NOPERM no\r\n", "ACL SETUSER name +subscribe", ErrNoPerm},
	} {
		t.Run("confirms "+tt.name, func(t *testing.T) {
			c := dial(t, fake(t, script(hello, tt.answer)), cfg)
			_, err := c.Subscribe(labtest.Soon(t), []string{"a"})
			if !errors.Is(err, tt.is) {
				t.Errorf("%v, want %v", err, tt.is)
			}
			contains(t, err, "cannot subscribe at", tt.says)
		})
	}
	for _, tt := range []struct {
		name, sent string
		count      int // of messages that are delivered
		says       string
		is         error
	}{
		{"nothing", "", 0, "no answer in time", ErrTimeout},
		{"a part", message + message[:10], 1, "no answer in time", ErrTimeout},
		{"unsubscribe", ">3\r\n+unsubscribe\r\n+a\r\n:0\r\n", 0, `ended the subscription to "a"`, nil},
		{"an error", "-NOPERM no\r\n", 0, "cannot run PING", ErrNoPerm},
		{"an unknown push", ">1\r\n+invalidate\r\n" + message + ":1\r\n", 1, "to a subscriber it sends an unexpected integer", ErrNotRedis},
		{"no RESP", message + "HTTP/1.1", 1, "does not speak as Redis", ErrNotRedis},
		{"a large one", ">3\r\n+message\r\n+a\r\n$99999999\r\n", 0, "more than is accepted", resp.ErrLimit},
		{"a flood", strings.Repeat(message, floodBurst+5000), floodBurst - 1, "too many messages", ErrFlood},
		{"a heavy flood", strings.Repeat(">3\r\n+message\r\n+a\r\n$1000000\r\n"+strings.Repeat("x", 1e6)+"\r\n", 15), 8, "too many messages", ErrFlood},
	} {
		t.Run("sends "+tt.name, func(t *testing.T) {
			// Messages in one piece with the confirmation are held until they are received.
			c := dial(t, fake(t, script(hello, confirmed+tt.sent)), cfg)
			s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"a"}))(t)
			n := 0
			err := s.Receive(labtest.Soon(t), func(channel, payload string) { n++ })
			if n < tt.count || n > tt.count+floodRate || tt.count < 100 && n != tt.count || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%d messages, then %v; want %d, %v", n, err, tt.count, tt.is)
			}
			contains(t, err, "cannot listen to", tt.says)
			if again := s.Receive(labtest.Soon(t), nil); again != err {
				t.Errorf("then %v, want the same error", again)
			}
		})
	}
	t.Run("messages before all is confirmed", func(t *testing.T) {
		c := dial(t, fake(t, script(hello, confirmed+message+strings.Replace(confirmed, "+a", "+b", 1))), cfg)
		s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"a", "b"}))(t)
		ctx, cancel := context.WithCancel(labtest.Soon(t))
		defer cancel()
		labtest.Must(t, s.Receive(ctx, func(_, payload string) {
			if payload != "text" {
				t.Errorf("payload %q", payload)
			}
			cancel()
		}))
	})
	t.Run("an old server without a password", func(t *testing.T) {
		c := dial(t, fake(t, script("-ERR unknown command 'HELLO'\r\n", "+PONG\r\n",
			"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n", "*2\r\n$4\r\npong\r\n$0\r\n\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n")), cfg)
		s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"a"}))(t)
		ctx, cancel := context.WithCancel(labtest.Soon(t))
		defer cancel()
		got := ""
		labtest.Must(t, s.Receive(ctx, func(_, payload string) { got = payload; cancel() })) // after a PING
		if got != "x" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("silence for long", func(t *testing.T) {
		c := dial(t, fake(t, script(hello, confirmed, "+PONG\r\n", "+PONG\r\n", "+PONG\r\n"+message)), cfg)
		s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"a"}))(t)
		ctx, cancel := context.WithCancel(labtest.Soon(t))
		defer cancel()
		labtest.Must(t, s.Receive(ctx, func(string, string) { cancel() }))
		if err := s.Receive(ctx, nil); err != nil {
			t.Errorf("a context that is over: %v", err)
		}
	})
	t.Run("nothing to subscribe to", func(t *testing.T) {
		c := dial(t, fake(t, script(hello, "+OK\r\n")), cfg)
		_, err := c.Subscribe(labtest.Soon(t), nil)
		contains(t, err, "no channel is named")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Subscribe(ctx, []string{"a"}); !errors.Is(err, context.Canceled) {
			t.Errorf("a context that is over: %v", err)
		}
		do(t, c, "PING") // nothing was sent
		c.Close()
		if _, err := c.Subscribe(labtest.Soon(t), []string{"a"}); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
	t.Run("closed while it waits", func(t *testing.T) {
		cfg := cfg
		cfg.Ping = time.Minute
		c := dial(t, fake(t, script(hello, confirmed)), cfg)
		s := labtest.Must2(c.Subscribe(labtest.Soon(t), []string{"a"}))(t)
		time.AfterFunc(20*time.Millisecond, s.Close)
		if err := s.Receive(labtest.Soon(t), nil); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
	})
}

func TestBucket(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	taken := 0
	for b.take(now, 100) {
		taken++
	}
	if taken != floodBurst {
		t.Errorf("%d at once", taken)
	}
	for range 3 {
		now = now.Add(time.Second)
		n := 0
		for b.take(now, 100) {
			n++
		}
		if n > floodRate {
			t.Errorf("%d in a second", n)
		}
	}
	b, taken = bucket{}, 0
	for b.take(now, 1<<20) {
		taken++
	}
	if taken != 8 {
		t.Errorf("%d MiB at once", taken)
	}
	if now = now.Add(-time.Hour); b.take(now, 1) {
		t.Error("a clock that goes back gives credit")
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(">3\r\n+message\r\n+a\r\n$4\r\ntext\r\n")
	f.Add("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n")
	f.Add("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
	f.Add("*2\r\n$4\r\npong\r\n$0\r\n\r\n+PONG\r\n")
	f.Add(">3\r\n+unsubscribe\r\n_\r\n:0\r\n")
	f.Add("*0\r\n*1\r\n_\r\n:7\r\n")
	f.Fuzz(func(t *testing.T, stream string) {
		r := resp.NewReader(strings.NewReader(stream), resp.Limits{})
		for {
			v, err := r.Read()
			if err != nil {
				return
			}
			m, ok := parseMessage(v)
			if ok && !slices.Contains([]string{"message", "subscribe", "unsubscribe", "pong"}, m.kind) {
				t.Errorf("kind %q", m.kind)
			}
			if size(v) < 8 {
				t.Errorf("size %d", size(v))
			}
		}
	})
}
