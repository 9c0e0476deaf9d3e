package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guard is a running redisguard.
type guard struct {
	cmd *exec.Cmd
	dir string

	mu     sync.Mutex
	events map[string]int // by type and outcome
	texts  []string       // of reaps
	ended  chan struct{}
}

// start runs redisguard with the given config, after [log] and [watch] lines of
// its own, and waits until it is up.
func (b *bench) start(config string, args ...string) (*guard, error) {
	dir, err := os.MkdirTemp("", "redisguard-bench-")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "redisguard.toml")
	// Sockets of its own, which others may reach.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	if !strings.Contains(config, "[api]") {
		config += "\n[api]\nsocket = \"%dir/r/s\"\nadmin_socket = \"%dir/a/s\"\n"
	}
	if !strings.Contains(config, "[tune]") {
		// What is measured is what reap does: the kernel's own timers must not
		// come before it.
		config += "\n[tune]\nmode = \"off\"\n[arm]\nmode = \"off\"\n"
	}
	config = strings.ReplaceAll(config, "%dir", dir)
	if err := os.WriteFile(file, []byte(config+"\n[log]\nformat = \"json\"\n[watch]\nmode = \"enforce\"\n"), 0o600); err != nil {
		return nil, err
	}
	g := &guard{cmd: exec.Command(b.guard, append([]string{"run", "--config", file, "--state-dir", filepath.Join(dir, "state")}, args...)...), dir: dir, events: map[string]int{}, ended: make(chan struct{})}
	pr, pw := io.Pipe()
	g.cmd.Stderr = pw
	up := make(chan struct{})
	go func() {
		defer close(g.ended)
		lines := bufio.NewScanner(pr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			g.take(lines.Bytes(), up)
		}
		_, _ = io.Copy(io.Discard, pr)
	}()
	if err := g.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	select {
	case <-up:
		return g, nil
	case <-time.After(10 * time.Second):
	case <-b.ctx.Done():
	}
	g.stop()
	return nil, errors.New("redisguard does not start")
}

func (g *guard) take(line []byte, up chan struct{}) {
	var rec struct{ Msg, Text, Outcome, Level string }
	if json.Unmarshal(line, &rec) != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case rec.Msg == "redisguard is starting":
		close(up)
	case rec.Level == "ERROR":
		fmt.Fprintf(os.Stderr, "  redisguard: %s\n", line)
	}
	key := rec.Msg
	if rec.Outcome != "" {
		key += "/" + rec.Outcome
	}
	g.events[key]++
	if rec.Msg == "connection.reaped" {
		g.texts = append(g.texts, rec.Text)
	}
}

// count is how many events of a type (with an outcome) were seen.
func (g *guard) count(key string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.events[key]
}

// someReaps are a few reasons given for reaps.
func (g *guard) someReaps() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.texts[:min(3, len(g.texts))], " | ")
}

func (g *guard) stop() {
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	_ = g.cmd.Wait()
	os.RemoveAll(g.dir)
}

// cpu is the CPU time of the daemon up to now, from the kernel's own precise
// clock of that process (CPUCLOCK_SCHED, include/linux/posix-timers.h).
func (g *guard) cpu() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^g.cmd.Process.Pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("cannot read the CPU time of redisguard: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// rss is the resident memory of the daemon in MiB.
func (g *guard) rss() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return float64(kb) / 1024, err
		}
	}
	return 0, errors.New("no VmRSS in its status")
}
