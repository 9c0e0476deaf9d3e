//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/resp"
)

// hostile answers each command of a connection by its name.
func (r *rig) hostile(h *lab.Host, port uint16, reply func(command string) []byte) netip.AddrPort {
	at := netip.AddrPortFrom(h.Addr, port)
	ln := labtest.Must2(h.Listen(r.ctx, "tcp4", at.String()))(r.t)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	r.t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				for in := resp.NewReader(bufio.NewReader(c), resp.Limits{}); ; {
					v, err := in.Read()
					if err != nil || len(v.Elems) == 0 {
						return
					}
					if _, err := c.Write(reply(strings.ToUpper(v.Elems[0].Str))); err != nil {
						return
					}
				}
			})
		}
	})
	return at
}

// Whatever a server says: memory and time are bounded, it is told, and nothing is touched.
func TestHostile(t *testing.T) {
	t.Parallel()
	port := portsFrom + 41
	r := newRig(t, "h")
	h := labtest.Must2(r.Server("r1"))(t)
	good := labtest.Must2(h.Redis(r.ctx, lab.RedisConfig{Port: port}))(t)
	info := func(mode string) []byte {
		text := fmt.Sprintf("# Server\r\nredis_version:7.0.15\r\nredis_mode:%s\r\nrun_id:%040d\r\n# Replication\r\nrole:master\r\n", mode, 7)
		return fmt.Appendf(nil, "$%d\r\n%s\r\n", len(text), text)
	}
	answers := func(role []byte) func(string) []byte {
		return func(command string) []byte {
			switch command {
			case "HELLO":
				return []byte("%2\r\n+proto\r\n:3\r\n+mode\r\n+standalone\r\n")
			case "INFO":
				return info("standalone")
			case "ROLE":
				return role
			}
			return []byte("+OK\r\n")
		}
	}
	var many bytes.Buffer
	const replicas = 8000
	fmt.Fprintf(&many, "*3\r\n$6\r\nmaster\r\n:1\r\n*%d\r\n", replicas)
	for i := range replicas {
		fmt.Fprintf(&many, "*3\r\n$%d\r\n198.51.%d.%d\r\n$5\r\n%5d\r\n$1\r\n1\r\n", len(fmt.Sprintf("198.51.%d.%d", i/250, i%250)), i/250, i%250, port)
	}
	seeds := map[string]netip.AddrPort{
		"outside": r.hostile(h, port+1, answers(many.Bytes())),
		"million": r.hostile(h, port+2, answers(append([]byte("*3\r\n$6\r\nmaster\r\n:1\r\n*1000000\r\n"), bytes.Repeat([]byte("*3\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\n1\r\n"), 1000)...))),
		"endless": r.hostile(h, port+3, answers(append([]byte("$1000000000\r\n"), bytes.Repeat([]byte("x"), 1<<20)...))),
		"nested":  r.hostile(h, port+4, answers(bytes.Repeat([]byte("*1\r\n"), 100000))),
		"slow":    r.hostile(h, port+5, func(string) []byte { return []byte("+") }),
	}
	text := targetText("good", []netip.AddrPort{good.Addr()}, "")
	for name, at := range seeds {
		text += targetText(name, []netip.AddrPort{at}, "")
	}
	r.guard(text)
	for _, at := range seeds {
		r.start(lab.ClientConfig{Kind: lab.Idle, Addr: at})
	}
	r.start(lab.ClientConfig{Addr: good.Addr()})
	r.up("good", nil)
	for name := range seeds {
		labtest.Within(t, 20*time.Second, "it is told what is wrong with "+name, func() bool {
			var x v1.Target
			labtest.Must(t, r.ask(&x, "targets", name))
			if len(x.Nodes) > 1 {
				t.Fatalf("%s has %d nodes", name, len(x.Nodes))
			}
			return len(x.Problems) > 0
		})
	}
	r.only(0, nil)
	status := string(labtest.Must2(os.ReadFile(fmt.Sprintf("/proc/%d/status", r.daemon.Pid())))(t))
	_, peak, _ := strings.Cut(status, "VmHWM:")
	kb := 0
	fmt.Sscan(peak, &kb)
	if kb == 0 || kb > 300<<10 {
		t.Errorf("it has taken %d kB", kb)
	}
	t.Logf("it has taken %d kB", kb)
}
