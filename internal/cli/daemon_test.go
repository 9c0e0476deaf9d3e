package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/paths"
	"github.com/redisguard/redisguard/lab"
)

// guardedPort is none of the usual ones, nor that of other tests.
const guardedPort = 16381

// world is what scripts with a daemon play in: a server, a client with a writing
// connection every millisecond and an idle one, and the daemon.
type world struct {
	lab            *lab.Lab
	client, server *lab.Host
	addr           netip.AddrPort
	daemon         *exec.Cmd
	dir            string // anybody may look into it
	socket, admin  string
	log            string
}

type worldKey struct{}

// TestWithDaemon runs scripts against the program itself, guarding a lab.
//
//	until PATTERN COMMAND...   runs the command until its output matches
//	server vanish|return       takes the server's host off the network, or back
//	name VAR PATTERN           sets VAR to what the pattern's group finds in stdout
//	follow PATTERN ARGS...     runs redisguard events until its output matches, and
//	                           interrupts it; leaves followed.out and followed.err
//	nobody CODE ARGS...        runs redisguard as a user without rights
func TestWithDaemon(t *testing.T) {
	files, err := filepath.Glob("testdata/daemon/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		// One after the other: each daemon guards the whole node.
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Files:               []string{file},
				RequireExplicitExec: true,
				Setup: func(env *testscript.Env) error {
					w, err := newWorld(env)
					if err != nil {
						return err
					}
					env.Values[worldKey{}] = w
					env.Setenv(envSocket, w.socket)
					env.Setenv(envAdminSocket, w.admin)
					env.Setenv("ENDPOINT", w.addr.String())
					env.Setenv("CLIENT", w.client.NSName)
					env.Setenv("SERVER", w.server.NSName)
					env.Setenv("CONFIG", filepath.Join(w.dir, "redisguard.toml"))
					env.Setenv("STATE", fmt.Sprintf("/proc/%d/root%s", w.daemon.Process.Pid, paths.State))
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits": exits, "until": until, "server": server, "name": nameIt, "nobody": nobody, "follow": follow,
				},
			})
		})
	}
}

func newWorld(env *testscript.Env) (w *world, err error) {
	w = &world{}
	if w.lab, err = lab.New(lab.Config{Prefix: fmt.Sprintf("rgc%d", os.Getpid())}); err != nil {
		return nil, err
	}
	env.Defer(func() {
		if err := w.lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	if w.client, err = w.lab.Client("c"); err != nil {
		return nil, err
	}
	if w.server, err = w.lab.Server("s"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	redis, err := w.server.Redis(ctx, lab.RedisConfig{Port: guardedPort})
	if err != nil {
		return nil, err
	}
	w.addr = redis.Addr()
	if err := w.startDaemon(env); err != nil {
		return nil, err
	}
	if err := w.await(`"mode": {`); err != nil {
		return nil, err
	}
	// The clients come after the daemon: it hears of their connects at once, while
	// its first look at a node with hundreds of namespaces takes a while.
	for _, c := range []lab.ClientConfig{
		{Addr: w.addr, Interval: time.Millisecond, Comm: "writing"},
		{Addr: w.addr, Kind: lab.Idle, Comm: "idling"},
	} {
		client, err := w.client.Client(ctx, c)
		if err != nil {
			return nil, err
		}
		if err := client.Ready(ctx); err != nil {
			return nil, err
		}
	}
	return w, w.await(`"reapable": 2,`)
}

// await waits until the daemon's status has the text.
func (w *world) await(text string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		out, err := exec.Command("redisguard", "status", "--json", "--socket", w.socket).Output()
		if err == nil && bytes.Contains(out, []byte(text)) {
			return nil
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(w.log)
			return fmt.Errorf("the daemon's status never has %s but %s%v; its log:\n%s", text, out, err, log)
		}
	}
}

// startDaemon runs the program with a /run of its own for what it remembers, so
// that it neither learns from other daemons nor tells them.
func (w *world) startDaemon(env *testscript.Env) (err error) {
	if w.dir, err = os.MkdirTemp("", "rgc"); err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(w.dir) })
	if err := os.Chmod(w.dir, 0o755); err != nil {
		return err
	}
	w.socket, w.admin = filepath.Join(w.dir, "run", "redisguard.sock"), filepath.Join(w.dir, "admin", "admin.sock")
	w.log = filepath.Join(w.dir, "log")
	conf := fmt.Sprintf("profile = \"fast\"\n[watch]\nmode = \"enforce\"\nports = [%d]\n[api]\nsocket = %q\nadmin_socket = %q\n", guardedPort, w.socket, w.admin)
	if err := os.WriteFile(filepath.Join(w.dir, "redisguard.toml"), []byte(conf), 0o644); err != nil {
		return err
	}
	log, err := os.Create(w.log)
	if err != nil {
		return err
	}
	defer log.Close()
	const script = `mkdir -p /run/redisguard-state && mount -t tmpfs none /run/redisguard-state && exec redisguard run --config "$0"`
	w.daemon = exec.Command("unshare", "-m", "sh", "-c", script, filepath.Join(w.dir, "redisguard.toml"))
	w.daemon.Stderr = log
	started := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// The kernel sends Pdeathsig when the thread that started the process
		// ends, so that thread must stay.
		runtime.LockOSThread()
		w.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		err := w.daemon.Start()
		started <- err
		if err == nil {
			_ = w.daemon.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	env.Defer(func() {
		_ = w.daemon.Process.Signal(unix.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = w.daemon.Process.Kill()
			<-ended
		}
		if env.T().(interface{ Failed() bool }).Failed() {
			text, _ := os.ReadFile(w.log)
			fmt.Fprintf(os.Stderr, "the daemon's log:\n%s\n", text)
		}
	})
	return nil
}

// exits CODE COMMAND... runs the command, which must end with CODE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitOf(ts, ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func exitOf(ts *testscript.TestScript, err error) int {
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		ts.Fatalf("%v", err)
	}
	return exit.ExitCode()
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		exitOf(ts, ts.Exec(args[1], args[2:]...))
		if pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v never says %s", args[1:], args[0])
		}
	}
}

func server(ts *testscript.TestScript, neg bool, args []string) {
	w := ts.Value(worldKey{}).(*world)
	switch {
	case neg || len(args) != 1:
		ts.Fatalf("usage: server vanish|return")
	case args[0] == "vanish":
		ts.Check(w.server.Vanish())
	case args[0] == "return":
		ts.Check(w.server.Return())
	}
}

func nameIt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: name VAR PATTERN")
	}
	m := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("stdout has no %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

func follow(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: follow PATTERN ARGS...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	w := ts.Value(worldKey{}).(*world)
	cmd := exec.Command("redisguard", append([]string{"events"}, args[1:]...)...)
	cmd.Env = append(os.Environ(), envSocket+"="+w.socket)
	r, err := cmd.StdoutPipe()
	ts.Check(err)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	ts.Check(cmd.Start())
	late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	var out bytes.Buffer
	chunk := make([]byte, 4096)
	for told := false; ; {
		n, err := r.Read(chunk)
		out.Write(chunk[:n])
		if !told && pattern.Match(out.Bytes()) {
			told = true
			ts.Check(cmd.Process.Signal(unix.SIGINT))
		}
		if err != nil {
			break
		}
	}
	err = cmd.Wait()
	ts.Logf("[followed]\n%s[stderr]\n%s", out.String(), errs.String())
	if err != nil {
		ts.Fatalf("events does not say %s: %v", args[0], err)
	}
	ts.Check(os.WriteFile(ts.MkAbs("followed.out"), out.Bytes(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("followed.err"), errs.Bytes(), 0o644))
}

func nobody(ts *testscript.TestScript, neg bool, args []string) {
	w := ts.Value(worldKey{}).(*world)
	if neg || len(args) < 2 {
		ts.Fatalf("usage: nobody CODE ARGS...")
	}
	program := filepath.Join(w.dir, "redisguard")
	if _, err := os.Stat(program); err != nil {
		self, err := os.Executable()
		ts.Check(err)
		data, err := os.ReadFile(self)
		ts.Check(err)
		ts.Check(os.WriteFile(program, data, 0o755))
	}
	cmd := exec.Command(program, args[1:]...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), envSocket+"="+w.socket, envAdminSocket+"="+w.admin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	got := exitOf(ts, cmd.Run())
	ts.Logf("[nobody's stdout]\n%s[stderr]\n%s", out.String(), errs.String())
	ts.Check(os.WriteFile(ts.MkAbs("nobody.out"), out.Bytes(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("nobody.err"), errs.Bytes(), 0o644))
	if want, _ := strconv.Atoi(args[0]); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
