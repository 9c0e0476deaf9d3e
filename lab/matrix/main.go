// Command matrix runs the tests that speak with Redis against servers of several versions, and
// writes docs/versions.md from what they did. `make matrix` runs it. It fails if a test did, or if
// a server was not to be had.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// packages are where the tests are.
var packages = []string{"./e2e", "./clusterview/session"}

// tests are those that depend on the server, with what they show.
var tests = []struct{ name, shows string }{
	{"TestSentinelDeployment", "Sentinel: a planned failover, a power-cut"},
	{"TestClusterDeployment", "Redis Cluster: a planned failover, a slot that moves, a power-cut"},
	{"TestMigration", "Redis Cluster: slots on their way, and all that a primary has"},
	{"TestVirtualAddress", "a virtual address that moves; replicas behind one"},
	{"TestAddressFamilies", "Redis Cluster: IPv4 and IPv6 beside each other"},
	{"TestDocumentedACL/nodes", "the rights of [targets.md](targets.md), nodes: nothing is refused, none is too much"},
	{"TestDocumentedACL/sentinels", "the same of Sentinels"},
	{"TestCapabilities", "what the server knows is read"},
}

// server is a version and what the tests say of it.
type server struct {
	name, program, from string
	results             map[string]string // by test: pass, fail, skip
	attrs               map[string]string
	order               []string // of attrs, as they came
}

func main() {
	out := flag.String("out", "docs/versions.md", "the page to write")
	only := flag.String("only", "", "names of lab/servers.sh, with spaces between: only these, and no page is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, strings.Fields(*only)); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, only []string) error {
	servers, missing, err := fetch(ctx, only)
	if err != nil {
		return err
	}
	for _, s := range servers {
		fmt.Printf("%s (%s)\n", s.name, s.from)
		if err := s.test(ctx); err != nil {
			return fmt.Errorf("cannot test %s: %w", s.name, err)
		}
	}
	failed := 0
	for _, s := range servers {
		for _, t := range tests {
			if s.results[t.name] != "pass" {
				failed++
			}
		}
	}
	if len(only) == 0 {
		if err := os.WriteFile(out, page(servers, missing), 0o644); err != nil {
			return err
		}
	}
	if failed > 0 {
		err = fmt.Errorf("%d tests did not pass, see above", failed)
	}
	if len(missing) > 0 {
		err = errors.Join(err, fmt.Errorf("not to be had: %s, see above", strings.Join(missing, ", ")))
	}
	return err
}

// fetch gets the servers, and the names of those that are not to be had.
func fetch(ctx context.Context, only []string) (servers []*server, missing []string, err error) {
	cmd := exec.CommandContext(ctx, "lab/servers.sh", only...)
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		return nil, nil, fmt.Errorf("cannot fetch servers: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		switch {
		case len(f) != 3:
			return nil, nil, fmt.Errorf("lab/servers.sh says %q", line)
		case f[1] == "-":
			missing = append(missing, f[0])
		default:
			servers = append(servers, &server{name: f[0], program: f[1], from: f[2], results: map[string]string{}, attrs: map[string]string{}})
		}
	}
	if len(servers) == 0 {
		return nil, nil, errors.New("no server is to be had")
	}
	return servers, missing, nil
}

// event is what `go test -json` writes; see cmd/test2json.
type event struct {
	Action, Test, Key, Value, Output string
}

// test runs the tests against the server. That some fail is no error.
func (s *server) test(ctx context.Context) error {
	names := map[string]bool{}
	for _, t := range tests {
		name, _, _ := strings.Cut(t.name, "/")
		names[name] = true
	}
	var pattern []string
	for n := range names {
		pattern = append(pattern, n)
	}
	// One package after the other: daemons and servers load both cores.
	args := []string{"test", "-json", "-p", "1", "-count", "1", "-timeout", "5m", "-tags", "e2e", "-run", "^(" + strings.Join(pattern, "|") + ")$"}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Env = append(os.Environ(), "REDISGUARD_E2E_SERVER="+s.program)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := s.read(stdout)
	if err := cmd.Wait(); ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil && len(s.results) == 0 {
		return err // nothing ran
	}
	return readErr
}

// read takes the events of a run. What tests write is shown of those that fail.
func (s *server) read(r io.Reader) error {
	output := map[string]*bytes.Buffer{}
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("go test says %q: %w", line, err)
		}
		if output[e.Test] == nil {
			output[e.Test] = &bytes.Buffer{}
		}
		switch e.Action {
		case "output", "build-output":
			output[e.Test].WriteString(e.Output)
		case "attr":
			if _, again := s.attrs[e.Key]; !again {
				s.order = append(s.order, e.Key)
			}
			s.attrs[e.Key] = e.Value
		case "pass", "fail", "skip":
			if e.Test != "" {
				s.results[e.Test] = e.Action
				fmt.Printf("  %s %s\n", e.Action, e.Test)
			}
			if e.Action == "fail" {
				os.Stdout.Write(output[e.Test].Bytes())
			}
		}
	}
}
