package resp_test

import (
	"context"
	"errors"
	"math"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/resp"
)

// dialRedis starts a real Redis on a Unix socket of its own and connects to it.
func dialRedis(t *testing.T) net.Conn {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir, "--enable-debug-command", "yes")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(20 * time.Second))
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestRealRedis(t *testing.T) {
	conn := dialRedis(t)
	r := resp.NewReader(conn, resp.Limits{})
	send := func(b []byte) {
		t.Helper()
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	read := func() resp.Value {
		t.Helper()
		v, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	do := func(args ...string) resp.Value {
		t.Helper()
		send(resp.AppendCommand(nil, args...))
		return read()
	}

	ping, err := resp.AppendInline(nil, "PING")
	if err != nil {
		t.Fatal(err)
	}
	send(ping)
	if v := read(); v.Kind != resp.Simple || v.Str != "PONG" {
		t.Errorf("PING: %+v", v)
	}
	if v := do("GET", "nothing"); v.Kind != resp.Null {
		t.Errorf("null of RESP2: %+v", v)
	}
	hello := do("HELLO", "3")
	if hello.Kind != resp.Map || len(hello.Elems) < 4 || hello.Elems[0].Str != "server" {
		t.Fatalf("HELLO: %+v", hello)
	}
	if v := do("GET", "nothing"); v.Kind != resp.Null {
		t.Errorf("null of RESP3: %+v", v)
	}
	if v := do("SET", "bytes", "a\r\n\x00b"); v.Str != "OK" {
		t.Errorf("SET: %+v", v)
	}
	if v := do("GET", "bytes"); v.Kind != resp.Bulk || v.Str != "a\r\n\x00b" {
		t.Errorf("GET: %+v", v)
	}
	if v := do("SQUIRREL"); !v.IsError() || !strings.HasPrefix(v.Str, "ERR unknown command") {
		t.Errorf("an unknown command: %+v", v)
	}
	if v := do("INFO"); v.Kind != resp.Verbatim || !strings.HasPrefix(v.Str, "txt:# Server") {
		t.Errorf("INFO: %.40q", v.Str)
	}

	// Every kind that Redis has.
	for name, check := range map[string]func(v resp.Value) bool{
		"string":  func(v resp.Value) bool { return v.Kind == resp.Bulk },
		"integer": func(v resp.Value) bool { return v.Kind == resp.Integer && v.Int == 12345 },
		"double": func(v resp.Value) bool {
			f, ok := v.Float()
			return ok && v.Kind == resp.Double && math.Abs(f-3.141) < 1e-9
		},
		"null":  func(v resp.Value) bool { return v.Kind == resp.Null },
		"array": func(v resp.Value) bool { return v.Kind == resp.Array && len(v.Elems) == 3 },
		"set":   func(v resp.Value) bool { return v.Kind == resp.Set && len(v.Elems) == 3 },
		"map": func(v resp.Value) bool {
			return v.Kind == resp.Map && len(v.Elems) == 6 && v.Elems[1].Kind == resp.Bool
		},
		"attrib": func(v resp.Value) bool { return v.Kind == resp.Bulk && len(v.Attributes) == 2 },
		"verbatim": func(v resp.Value) bool {
			s, ok := v.Text()
			return ok && v.Kind == resp.Verbatim && strings.HasPrefix(s, "This")
		},
		"bignum": func(v resp.Value) bool { return v.Kind == resp.BigNumber && strings.HasPrefix(v.Str, "1234567999999") },
		"true":   func(v resp.Value) bool { return v.Kind == resp.Bool && v.Int == 1 },
		"false":  func(v resp.Value) bool { return v.Kind == resp.Bool && v.Int == 0 },
	} {
		if v := do("DEBUG", "PROTOCOL", name); !check(v) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	// A push comes beside the reply, and before it.
	push, reply := do("DEBUG", "PROTOCOL", "push"), resp.Value{}
	if push.Kind == resp.Push {
		reply = read()
	} else {
		push, reply = read(), push
	}
	if push.Kind != resp.Push || reply.Kind == resp.Push {
		t.Errorf("push: %+v and %+v", push, reply)
	}
	if v := do("SUBSCRIBE", "a", "b"); v.Kind != resp.Push || v.Elems[0].Str != "subscribe" {
		t.Errorf("SUBSCRIBE: %+v", v)
	}
	if v := read(); v.Kind != resp.Push || v.Elems[1].Str != "b" {
		t.Errorf("the second channel: %+v", v)
	}
	if v := do("PING"); v.Kind != resp.Simple {
		t.Errorf("PING between messages: %+v", v)
	}

	// The whole of what Redis says about its commands, the largest reply it has.
	send(resp.AppendCommand(nil, "COMMAND", "DOCS"))
	_, err = r.Read()
	if err != nil && !errors.Is(err, resp.ErrLimit) {
		t.Errorf("COMMAND DOCS: %v", err)
	}
}
