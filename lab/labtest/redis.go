package labtest

import (
	"bytes"
	"cmp"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// RedisServer is the program of Redis or Valkey that tests start: the one that is installed, or
// what REDISGUARD_E2E_SERVER names, with which make matrix runs some tests.
func RedisServer() string {
	return cmp.Or(os.Getenv("REDISGUARD_E2E_SERVER"), "redis-server")
}

// LoopbackRedis starts a real redis-server at 127.0.0.1, on a port that is free, for tests of
// what speaks with Redis and needs no network. It ends with the test.
func LoopbackRedis(t *testing.T, args ...string) netip.AddrPort {
	t.Helper()
	ln := Must2(net.Listen("tcp4", "127.0.0.1:0"))(t)
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	cmd := exec.Command(RedisServer(), append([]string{"--port", strconv.Itoa(int(at.Port())), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir()}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.SysProcAttr = &out, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	Must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("redis-server at %v: %s", at, out.String())
		}
	})
	Eventually(t, "redis-server answers", func() bool {
		c, err := net.DialTimeout("tcp4", at.String(), time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		c.Write([]byte("PING\r\n"))
		n, _ := c.Read(make([]byte, 64))
		return n > 0
	})
	return at
}
