package supervisor_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
)

// program is cmd/redisguard, built at its first use.
var program struct {
	once sync.Once
	dir  string
	err  error
}

// built is the path of the built program.
func built(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		if program.dir, program.err = os.MkdirTemp("", "rgsv"); program.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", program.dir, "github.com/redisguard/redisguard/cmd/redisguard").CombinedOutput()
		if err != nil {
			program.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if program.err != nil {
		t.Fatalf("cannot build redisguard: %v", program.err)
	}
	return filepath.Join(program.dir, "redisguard")
}

// dropEnv tells a re-executed test binary which capabilities to drop before it
// becomes the program that its arguments name.
const dropEnv = "RGSV_DROP_CAPABILITIES"

// maybeDrop does that and never returns, if asked for.
func maybeDrop() {
	list, ok := os.LookupEnv(dropEnv)
	if !ok {
		return
	}
	runtime.LockOSThread()
	err := dropAndExec(strings.Split(list, ","))
	fmt.Fprintln(os.Stderr, "cannot drop capabilities:", err)
	os.Exit(1)
}

func dropAndExec(list []string) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return err
	}
	for _, word := range list {
		n, err := strconv.Atoi(word)
		if err != nil {
			return err
		}
		// Root gets at exec what the bounding set has.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
			return err
		}
		set, bit := &sets[n/32], uint32(1)<<(n%32)
		set.Effective, set.Permitted, set.Inheritable = set.Effective&^bit, set.Permitted&^bit, set.Inheritable&^bit
	}
	if err := unix.Capset(&head, &sets[0]); err != nil {
		return err
	}
	if err := os.Unsetenv(dropEnv); err != nil {
		return err
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}

// running is the program itself in a process of its own.
type running struct {
	t       *testing.T
	process *os.Process
	started time.Time
	state   string // its state directory
	done    chan struct{}
	ended   time.Time // with err, to be read after done
	err     error

	mu    sync.Mutex
	lines []logLine
	news  chan struct{} // closed and replaced at every line
}

// logLine is a line of the daemon's log.
type logLine struct {
	at   time.Time // when we read it: the daemon's own clock may be wrong
	raw  string
	text map[string]any // nil if it is no JSON
}

func (l *logLine) field(name string) string {
	s, _ := l.text[name].(string)
	return s
}

func (l *logLine) is(t verdict.EventType) bool { return l.field("msg") == string(t) }

// loud says whether people are meant to see the line even if all is well.
func (l *logLine) loud() bool { return l.field("level") == "WARN" || l.field("level") == "ERROR" }

// daemonConfig says how to run it.
type daemonConfig struct {
	lines []string  // of the config file, besides those for these tests
	drop  []int     // capabilities to do without
	in    *lab.Host // where to run; nil is the test's own namespace
	args  []string  // of the command line, besides those for these tests
	heir  bool      // starts with what its predecessor's probes have found
}

// config is a config file of these tests.
func configFile(t *testing.T, lines ...string) string {
	t.Helper()
	all := slices.Concat([]string{
		`profile = "fast"`, fmt.Sprintf(`watch.ports = [%d]`, port), `log.format = "json"`, `log.level = "debug"`,
	}, lines)
	if !strings.Contains(strings.Join(lines, "\n"), "watch.mode") {
		all = append(all, `watch.mode = "enforce"`)
	}
	path := filepath.Join(t.TempDir(), "redisguard.toml")
	labtest.Must(t, os.WriteFile(path, []byte(strings.Join(all, "\n")+"\n"), 0o600))
	return path
}

// startDaemon runs the program until the test ends, at the latest.
func startDaemon(t *testing.T, c daemonConfig) *running {
	t.Helper()
	program := built(t)
	// Its own, which an heir shares.
	state := filepath.Join(filepath.Dir(program), "state-"+strings.ReplaceAll(t.Name(), "/", "_"))
	if !c.heir {
		labtest.Must(t, os.RemoveAll(state))
	}
	args := append([]string{program, "run", "--config", configFile(t, c.lines...), "--state-dir", state}, c.args...)
	env := os.Environ()
	if len(c.drop) > 0 {
		var list []string
		for _, n := range c.drop {
			list = append(list, strconv.Itoa(n))
		}
		env = append(env, dropEnv+"="+strings.Join(list, ","))
		args = append([]string{os.Args[0]}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = env
	r, w, err := os.Pipe()
	labtest.Must(t, err)
	cmd.Stderr = w
	d := &running{t: t, state: state, done: make(chan struct{}), news: make(chan struct{}), started: time.Now()}
	started := make(chan error, 1)
	go func() {
		defer close(d.done)
		var err error
		wait := cmd.Wait
		if c.in != nil {
			var p *lab.Process
			if p, err = c.in.Start(t.Context(), cmd); err == nil {
				wait = p.Wait
			}
		} else {
			// The kernel sends Pdeathsig when the thread that started the
			// process ends, so that thread must stay.
			runtime.LockOSThread()
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
			err = cmd.Start()
		}
		w.Close()
		started <- err
		if err == nil {
			d.err = wait()
			d.ended = time.Now()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	d.process = cmd.Process
	var reader sync.WaitGroup
	reader.Go(func() { d.read(r) })
	t.Cleanup(func() {
		_ = d.process.Kill()
		<-d.done
		reader.Wait()
		if t.Failed() {
			for _, l := range d.log(func(*logLine) bool { return true }) {
				fmt.Fprintln(os.Stderr, l.raw)
			}
		}
	})
	return d
}

func (d *running) read(r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		l := logLine{at: time.Now(), raw: lines.Text()}
		_ = json.Unmarshal(lines.Bytes(), &l.text) // a panic, say, is no JSON
		d.mu.Lock()
		d.lines = append(d.lines, l)
		close(d.news)
		d.news = make(chan struct{})
		d.mu.Unlock()
	}
}

// log returns the lines up to now that match.
func (d *running) log(match func(*logLine) bool) (list []logLine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.lines {
		if match(&d.lines[i]) {
			list = append(list, d.lines[i])
		}
	}
	return list
}

// wait waits for a line of the log.
func (d *running) wait(within time.Duration, what string, match func(*logLine) bool) logLine {
	d.t.Helper()
	l, ok := d.see(within, match)
	if !ok {
		d.t.Fatalf("no %s in the log within %v", what, within)
	}
	return l
}

// see is wait for what need not come.
func (d *running) see(within time.Duration, match func(*logLine) bool) (logLine, bool) {
	deadline := time.After(within)
	seen := 0
	for {
		d.mu.Lock()
		list, news := d.lines, d.news
		d.mu.Unlock()
		for ; seen < len(list); seen++ {
			if match(&list[seen]) {
				return list[seen], true
			}
		}
		select {
		case <-news:
		case <-deadline:
			return logLine{}, false
		}
	}
}

// probed waits for the first probe of the endpoint that was answered: from then on
// the daemon may call it dead.
func (d *running) probed(endpoint string) {
	d.t.Helper()
	d.wait(15*time.Second, "answered probe of "+endpoint, func(l *logLine) bool {
		return l.field("msg") == "probe" && l.field("endpoint") == endpoint && l.field("outcome") == "alive"
	})
}

// kill ends it without a chance to do anything about it.
func (d *running) kill() {
	d.t.Helper()
	labtest.Must(d.t, d.process.Kill())
	<-d.done
}

// terminate ends it as a service manager does, and checks how it does that.
func (d *running) terminate() {
	d.t.Helper()
	asked := time.Now()
	labtest.Must(d.t, d.process.Signal(unix.SIGTERM))
	select {
	case <-d.done:
	case <-time.After(5 * time.Second):
		d.t.Fatal("it does not end on SIGTERM")
	}
	if took := d.ended.Sub(asked); took > 2*time.Second || d.err != nil {
		d.t.Errorf("it ended %v after SIGTERM with %v, want within 2 s without an error", took, d.err)
	}
}

// healthy checks that it runs, and has not panicked or flooded its log.
func (d *running) healthy(maxLoud int) {
	d.t.Helper()
	select {
	case <-d.done:
		d.t.Fatalf("it has ended: %v", d.err)
	default:
	}
	if l := d.log(func(l *logLine) bool { return l.text == nil }); len(l) > 0 {
		d.t.Errorf("it wrote what is no log: %s", l[0].raw)
	}
	if l := d.log((*logLine).loud); len(l) > maxLoud {
		d.t.Errorf("%d warnings and errors in %v, want at most %d; the last is %s", len(l), time.Since(d.started), maxLoud, l[len(l)-1].raw)
	}
}
