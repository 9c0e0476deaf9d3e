package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// RedisConfig says how to start a Redis server.
type RedisConfig struct {
	// Port to listen on, at every address of the host. If 0, 6379.
	Port uint16
	// Args are appended to the command line, such as "--replicaof", "10.77.2.2", "6379".
	Args []string
	// Path is the server program. If empty, redis-server from PATH.
	Path string
}

// SentinelConfig says how to start a Redis Sentinel that monitors one primary.
type SentinelConfig struct {
	// Port to listen on. If 0, 26379.
	Port uint16
	// Name of the primary, as clients ask for it. If empty, "main".
	Name string
	// Primary is where the primary is now.
	Primary netip.AddrPort
	// Quorum is the number of sentinels that must agree. If 0, 1.
	Quorum int
	// DownAfter is the sentinel's down-after-milliseconds. If 0, 1 s.
	DownAfter time.Duration
	// FailoverTimeout is the sentinel's failover-timeout. If 0, 10 s.
	FailoverTimeout time.Duration
	// Lines are appended to the config file.
	Lines []string
	// Path is the server program. If empty, redis-server from PATH.
	Path string
}

// Redis is a running server or sentinel.
type Redis struct {
	*Process
	addr netip.AddrPort
}

// Redis starts a real Redis server without persistence and returns once it
// answers PING. ctx bounds the wait, not the server's life.
func (h *Host) Redis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	if cfg.Port == 0 {
		cfg.Port = 6379
	}
	return h.startRedis(ctx, "redis", cfg.Path, cfg.Port, func(dir string) ([]string, error) {
		return append([]string{
			"--port", strconv.Itoa(int(cfg.Port)), "--bind", "0.0.0.0", "::", "--protected-mode", "no",
			"--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", dir,
		}, cfg.Args...), nil
	})
}

// Sentinel starts a real Redis Sentinel and returns once it answers PING. ctx
// bounds the wait, not the sentinel's life.
func (h *Host) Sentinel(ctx context.Context, cfg SentinelConfig) (*Redis, error) {
	if cfg.Port == 0 {
		cfg.Port = 26379
	}
	if cfg.Name == "" {
		cfg.Name = "main"
	}
	if cfg.Quorum == 0 {
		cfg.Quorum = 1
	}
	if cfg.DownAfter == 0 {
		cfg.DownAfter = time.Second
	}
	if cfg.FailoverTimeout == 0 {
		cfg.FailoverTimeout = 10 * time.Second
	}
	return h.startRedis(ctx, "sentinel", cfg.Path, cfg.Port, func(dir string) ([]string, error) {
		var b bytes.Buffer
		fmt.Fprintf(&b, "port %d\nbind 0.0.0.0 ::\nprotected-mode no\ndir %s\n", cfg.Port, dir)
		fmt.Fprintf(&b, "sentinel monitor %s %s %d %d\n", cfg.Name, cfg.Primary.Addr(), cfg.Primary.Port(), cfg.Quorum)
		fmt.Fprintf(&b, "sentinel down-after-milliseconds %s %d\n", cfg.Name, cfg.DownAfter.Milliseconds())
		fmt.Fprintf(&b, "sentinel failover-timeout %s %d\n", cfg.Name, cfg.FailoverTimeout.Milliseconds())
		for _, line := range cfg.Lines {
			fmt.Fprintln(&b, line)
		}
		// A sentinel rewrites its config file.
		file := filepath.Join(dir, "sentinel.conf")
		return []string{file, "--sentinel"}, os.WriteFile(file, b.Bytes(), 0o600)
	})
}

// startRedis starts the server in a folder of its own, which args may fill.
func (h *Host) startRedis(ctx context.Context, kind, path string, port uint16, args func(dir string) ([]string, error)) (*Redis, error) {
	fail := func(err error) (*Redis, error) {
		return nil, fmt.Errorf("cannot start %s on host %s port %d: %w", kind, h.Name, port, err)
	}
	if path == "" {
		path = "redis-server"
	}
	dir, err := os.MkdirTemp(h.lab.dir, fmt.Sprintf("%s-%s-%d-", h.Name, kind, port))
	if err != nil {
		return fail(err)
	}
	list, err := args(dir)
	if err != nil {
		return fail(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return fail(err)
	}
	defer log.Close() // the server has its own descriptor
	cmd := exec.Command(path, list...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	p, err := h.Start(ctx, cmd)
	if err != nil {
		return nil, err
	}
	r := &Redis{Process: p, addr: netip.AddrPortFrom(h.Addr, port)}
	if err := r.waitReady(ctx); err != nil {
		p.Kill()
		return fail(fmt.Errorf("%w; its log ends with:\n%s", err, tail(log.Name())))
	}
	return r, nil
}

// waitReady asks until the server answers: there is no other event that all
// versions and both modes have in common.
func (r *Redis) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := r.Do(ctx, "PING")
		if err == nil {
			return nil
		}
		select {
		case <-r.Done():
			return fmt.Errorf("it ended: %w", r.Wait())
		case <-ctx.Done():
			return fmt.Errorf("it did not answer PING: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Addr is where clients reach the server by IPv4.
func (r *Redis) Addr() netip.AddrPort { return r.addr }

// Addr6 is where clients reach the server by IPv6.
func (r *Redis) Addr6() netip.AddrPort { return netip.AddrPortFrom(r.host.Addr6, r.addr.Port()) }

// Do sends one command on a connection of its own from the server's own host,
// past all faults of the network. The reply is a string, an int64, a []any or
// nil; an error reply is the error.
func (r *Redis) Do(ctx context.Context, args ...string) (any, error) {
	c, err := r.host.Dial(ctx, "tcp", r.addr.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if _, err := c.Write(command(args...)); err != nil {
		return nil, err
	}
	return readReply(bufio.NewReader(c))
}

// tail is the end of a log file, for an error message.
func tail(path string) []byte {
	b, _ := os.ReadFile(path)
	return bytes.TrimSpace(b[max(0, len(b)-2000):])
}
