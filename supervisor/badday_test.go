package supervisor_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
)

// allAnswered waits for an answer after since on each connection of a client.
func (w *world) allAnswered(c *lab.Client, conns int, since time.Time) {
	w.t.Helper()
	for i := range conns {
		_, err := c.WaitEvent(w.ctx, func(e lab.Event) bool { return e.Kind == lab.OK && e.Conn == i && e.T > since.UnixNano() })
		labtest.Must(w.t, err)
	}
}

// link makes a veth pair from h to the server's host, of which only the life of
// h's namespace decides, and returns a function that says whether it is there.
func (w *world) link(h *lab.Host, name string) (there func() bool) {
	w.t.Helper()
	labtest.Must(w.t, w.server.Do(func() error {
		ns, err := os.Open(h.NSPath)
		if err != nil {
			return err
		}
		defer ns.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "pod9", PeerNamespace: netlink.NsFd(int(ns.Fd()))})
	}))
	return func() bool {
		err := w.server.Do(func() error {
			_, err := netlink.LinkByName(name)
			return err
		})
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
			return false
		}
		labtest.Must(w.t, err)
		return true
	}
}

// remove takes a host away and waits for the end of its namespace.
func (w *world) remove(h *lab.Host, there func() bool) {
	w.t.Helper()
	labtest.Must(w.t, h.Remove())
	labtest.Within(w.t, 2*time.Second, "the link of the deleted namespace "+h.NSName+" is gone", func() bool { return !there() })
}

func TestKilledAtAnyMoment(t *testing.T) {
	w := newWorld(t)
	b, err := w.Server("b")
	labtest.Must(t, err)
	fine, err := b.Redis(w.ctx, lab.RedisConfig{Port: port})
	labtest.Must(t, err)
	bystander, err := w.Client("d")
	labtest.Must(t, err)
	links := []func() bool{w.link(w.client, "link-c"), w.link(bystander, "link-d")}
	healthy := []*lab.Client{w.run(bystander, lab.Writer, fine.Addr(), 3), w.run(w.client, lab.Writer, fine.Addr(), 2)}
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	var d *running
	for range 10 {
		d = startDaemon(t, daemonConfig{})
		d.probed(w.redis.Addr().String())
		labtest.Must(t, w.server.Vanish())
		// Before a suspicion, during it, between verdict and reap, after it.
		pass(rand.N(1300 * time.Millisecond))
		d.kill()
		labtest.Must(t, w.server.Return())
		w.allAnswered(busy, 3, time.Now())
	}
	d = startDaemon(t, daemonConfig{})
	d.probed(w.redis.Addr().String())
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
		t.Errorf("the last one does not guard: %s after %v", e.Errno, e.Time().Sub(lost))
	}
	d.kill()
	for _, c := range healthy {
		if n := c.Totals().Errors; len(n) > 0 {
			t.Errorf("a healthy client had errors: %v", n)
		}
	}
	for _, c := range append(healthy, busy) {
		_, err := c.Stop()
		labtest.Must(t, err)
	}
	w.remove(w.client, links[0])
	w.remove(bystander, links[1])
}

// What was stalled already when the daemon came is judged like everything else.
func TestStartedInTheMiddleOfAFault(t *testing.T) {
	w := newWorld(t)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	d := startDaemon(t, daemonConfig{})
	d.probed(w.redis.Addr().String())
	pass(memorySaved)
	d.kill()
	undo, err := w.DropFlow(busy.Local(1), w.redis.Addr())
	labtest.Must(t, err)
	cut := time.Now()
	pass(700 * time.Millisecond) // it retransmits, and nobody looks
	d = startDaemon(t, daemonConfig{heir: true})
	e := w.failure(busy, cut)
	t.Logf("%s on connection %d, %v after the start", e.Errno, e.Conn, e.Time().Sub(d.started))
	if e.Conn != 1 || e.Errno != "ECONNABORTED" || e.Time().Sub(d.started) > 5*time.Second {
		t.Errorf("the broken flow: got %+v %v after the start", e, e.Time().Sub(d.started))
	}
	labtest.Must(t, undo())
	w.allAnswered(busy, 3, time.Now())
	d.kill()

	// An outage that began while no daemon ran: what its predecessor's probes
	// have found lets it call the endpoint down.
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	pass(700 * time.Millisecond)
	d = startDaemon(t, daemonConfig{heir: true})
	d.wait(10*time.Second, "endpoint.down", func(l *logLine) bool { return l.is(verdict.EndpointDown) })
	if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" {
		t.Errorf("the dead endpoint: got %+v", e)
	}
	labtest.Must(t, w.server.Return())
	w.allAnswered(busy, 3, time.Now())
	d.healthy(20)
}

// memorySaved is how long after a probe its success is in the file for sure.
const memorySaved = 7 * time.Second

func TestADeletedNamespaceIsNotPinned(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	for i := range 10 {
		h, err := w.Client("gone" + strconv.Itoa(i))
		labtest.Must(t, err)
		there := w.link(h, "link"+strconv.Itoa(i))
		c := w.run(h, lab.Writer, w.redis.Addr(), 3)
		labtest.Within(t, 4*time.Second, "its connections are tracked", func() bool { return g.Figures().Tracked >= 3 })
		if i%2 == 1 {
			// With probes under way that nobody answers.
			probes := g.Figures().ProbesMade
			labtest.Must(t, w.server.Vanish())
			labtest.Within(t, 5*time.Second, "a probe is under way", func() bool { return g.Figures().ProbesMade > probes })
		}
		_, err = c.Stop()
		labtest.Must(t, err)
		w.remove(h, there)
		if i%2 == 1 {
			labtest.Must(t, w.server.Return())
		}
		labtest.Within(t, 5*time.Second, "its connections are forgotten", func() bool { return g.Figures().Tracked == 0 })
	}
	if l := g.log.loud(); len(l) > 3 {
		t.Errorf("%d warnings, the last is %s", len(l), l[len(l)-1])
	}
}

// churn makes and ends network namespaces, 100 a second, and returns how many.
func churn(t *testing.T, d time.Duration) (made int) {
	t.Helper()
	const dir = "/run/netns"
	var all sync.WaitGroup
	var mu sync.Mutex
	var failed error
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); made++ {
		<-tick.C
		path := filepath.Join(dir, "rgsv-churn"+strconv.Itoa(made))
		all.Go(func() {
			if err := oneNamespace(path); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	all.Wait()
	labtest.Must(t, failed)
	return made
}

// oneNamespace makes a namespace, names it, and takes it away.
func oneNamespace(path string) error {
	err := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := os.WriteFile(path, nil, 0o444); err != nil {
				return err
			}
			defer os.Remove(path)
			if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
				return err
			}
			pass(50 * time.Millisecond) // its life
			return unix.Unmount(path, unix.MNT_DETACH)
		}()
	}()
	return <-err
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	labtest.Must(t, err)
	return len(list)
}

func TestNamespacesComeAndGo(t *testing.T) {
	w := newWorld(t)
	g := startGuard(t, base(), false)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	g.ready(3)
	files, goroutines, loud := descriptors(t), runtime.NumGoroutine(), len(g.log.loud())
	known := g.Figures().Namespaces
	made := churn(t, 5*time.Second)
	t.Logf("%d namespaces in 5 s", made)
	if made < 300 {
		t.Errorf("only %d namespaces in 5 s: this machine is too slow for the test", made)
	}
	labtest.Within(t, 10*time.Second, "descriptors and goroutines are as many as before", func() bool {
		return descriptors(t) <= files && runtime.NumGoroutine() <= goroutines
	})
	labtest.Within(t, 10*time.Second, "the namespaces are forgotten", func() bool {
		return g.Figures().Namespaces <= known+10
	})
	if l := g.log.loud(); len(l) > loud+3 {
		t.Errorf("%d warnings and errors, the last is %s", len(l)-loud, l[len(l)-1])
	}
	if r, n := g.reaped(), busy.Totals().Errors; len(r) > 0 || len(n) > 0 {
		t.Errorf("reaped %d, errors %v", len(r), n)
	}
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	if e := w.failure(busy, lost); e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
		t.Errorf("got %s after %v", e.Errno, e.Time().Sub(lost))
	}
}

// cpu is the CPU time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	labtest.Must(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	labtest.Must(t, err)
	system, err := strconv.Atoi(f[12])
	labtest.Must(t, err)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

func TestThousandsOfProcesses(t *testing.T) {
	const many = 5000
	crowd := exec.Command("sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do sleep 300 & i=$((i+1)); done; echo; wait`, many))
	crowd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := crowd.StdoutPipe()
	labtest.Must(t, err)
	labtest.Must(t, crowd.Start())
	t.Cleanup(func() {
		if err := syscall.Kill(-crowd.Process.Pid, syscall.SIGKILL); err != nil {
			t.Errorf("cannot end the processes: %v", err)
		}
		_ = crowd.Wait()
	})
	_, err = out.Read(make([]byte, 1))
	labtest.Must(t, err)
	w := newWorld(t)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	d := startDaemon(t, daemonConfig{})
	d.probed(w.redis.Addr().String())
	// At the start each process is asked once whether it has one of the connections, which
	// takes some tenths of a second of CPU. After that little is left.
	share := 1.0
	for window := 0; share > 0.10 && window < 5; window++ {
		before, from := cpu(t, d.process.Pid), time.Now()
		pass(4 * time.Second) // of quiet
		share = float64(cpu(t, d.process.Pid)-before) / float64(time.Since(from))
		t.Logf("%.1f %% of a core", 100*share)
	}
	if share > 0.10 {
		t.Errorf("it takes %.0f %% of a core for ever", 100*share)
	}
	labtest.Must(t, w.server.Vanish())
	lost := time.Now()
	e := w.failure(busy, lost)
	t.Logf("%s after %v", e.Errno, e.Time().Sub(lost))
	if e.Errno != "ECONNABORTED" || e.Time().Sub(lost) > 3*time.Second {
		t.Errorf("got %s after %v", e.Errno, e.Time().Sub(lost))
	}
	l := d.wait(2*time.Second, "connection.reaped", func(l *logLine) bool { return l.is(verdict.ConnectionReaped) })
	if c, _ := l.text["connection"].(map[string]any); c["comm"] != "lab-writer" {
		t.Errorf("it did not find out whose the connection is: %s", l.raw)
	}
	d.healthy(20)
	d.terminate()
}
