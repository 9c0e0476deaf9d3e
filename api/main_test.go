package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
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

	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// childEnv makes the test binary a client of its own: it waits for a line on
// stdin, makes the request that the variable names, and writes the answer.
const childEnv = "RGA_CHILD_REQUEST"

func TestMain(m *testing.M) {
	lab.MaybeChild()
	if path := os.Getenv(squatEnv); path != "" {
		squat(path)
		os.Exit(0)
	}
	if os.Getenv(moveEnv) != "" {
		fmt.Println("0", move())
		os.Exit(1)
	}
	if what, ok := os.LookupEnv(childEnv); ok {
		child(strings.Fields(what))
		os.Exit(0)
	}
	labtest.Main(m)
}

// moveEnv has the child make its socket first, and then go into a network namespace
// of its own; movedEnv has it use that socket.
const (
	moveEnv  = "RGA_CHILD_MOVE"
	movedEnv = "RGA_CHILD_SOCKET"
)

// squatEnv has the child serve a socket and hold its lock until stdin ends.
const squatEnv = "RGA_CHILD_SQUATS"

func squat(path string) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		_, err = net.Listen("unix", path)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// move begins the program anew in another network namespace. It waits for the line
// on stdin, and returns only if it fails.
func move() error {
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	runtime.LockOSThread()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Unshare(unix.CLONE_NEWNET)
	}
	if err != nil {
		return err
	}
	os.Unsetenv(moveEnv)
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), movedEnv+"="+strconv.Itoa(fd)))
}

// child makes a request: method, socket, path, and a body perhaps.
func child(words []string) {
	if os.Getenv(movedEnv) == "" {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	}
	body := ""
	if len(words) > 3 {
		body = words[3]
	}
	req, err := http.NewRequest(words[0], "http://redisguard"+words[2], strings.NewReader(body))
	if err != nil {
		fmt.Println("0", err)
		return
	}
	res, err := dialer(words[1]).Do(req)
	if err != nil {
		fmt.Println("0", err)
		return
	}
	fmt.Println(res.StatusCode)
	_, _ = io.Copy(os.Stdout, io.LimitReader(res.Body, 1<<20))
}

func dialer(path string) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if s, ok := os.LookupEnv(movedEnv); ok {
				fd, err := strconv.Atoi(s)
				if err == nil {
					err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
				}
				if err != nil {
					return nil, err
				}
				return net.FileConn(os.NewFile(uintptr(fd), "socket"))
			}
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}

// fake is a guard that knows what a test tells it.
type fake struct {
	woken sync.Map // targets
	mu    sync.Mutex
	node  view.Node
	asked []view.Reap
	modes []string
	peers []event.Peer
	hang  bool
	bad   error
}

func (f *fake) View(ctx context.Context) (*view.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hang {
		return nil, context.DeadlineExceeded
	}
	n := f.node
	n.At = time.Now()
	return &n, nil
}

func (f *fake) Wake(target string) { f.woken.Store(target, true) }

func (f *fake) Info() v1.Status {
	return v1.Status{Version: "test", Jobs: []v1.Job{{Name: "watch", Mode: v1.ModeObserve}}, Ports: []int{6379}, Counters: &v1.Counters{}}
}

func (f *fake) Reap(_ context.Context, r view.Reap) ([]view.Reaped, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
	var list []view.Reaped
	for _, c := range f.node.Connections {
		if c.Key == r.Connection || c.TCP.Remote == r.Endpoint {
			list = append(list, view.Reaped{Key: c.Key, Local: c.TCP.Local, Remote: c.TCP.Remote, Outcome: verdict.ReapDone})
		}
	}
	return list, nil
}

func (f *fake) SetMode(_ context.Context, m string, p event.Peer) (event.Mode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.modes = append(f.modes, m)
	f.peers = append(f.peers, p)
	return event.Mode{Configured: "enforce", Override: m, Effective: m}, nil
}

func (f *fake) Reload(context.Context, event.Peer) (string, []string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "/etc/x", nil, f.bad
}

// world is a served API over a fake guard.
type world struct {
	*Server
	t           *testing.T
	guard       *fake
	hub         *event.Hub
	read, admin string // paths
}

var testEndpoint = netip.MustParseAddrPort("10.0.0.9:6379")

// serve starts a server; change may change what is served.
func serve(t *testing.T, change func(*Options), more ...func(*Server)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, guard: &fake{}, hub: event.NewHub(4096), read: filepath.Join(dir, "r", "s"), admin: filepath.Join(dir, "a", "s")}
	labtest.Must(t, os.Chmod(filepath.Dir(dir), 0o755))
	labtest.Must(t, os.Chmod(dir, 0o755))
	opt := Options{
		Source: w.guard, Actor: w.guard, Hub: w.hub, Log: slog.New(slog.DiscardHandler),
		Socket: w.read, AdminSocket: w.admin, Group: -1,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up 1") }),
	}
	if change != nil {
		change(&opt)
	}
	s, err := New(opt)
	labtest.Must(t, err)
	for _, m := range more {
		m(s)
	}
	w.Server = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("the server did not end within 5 s")
		}
	})
	return w
}

// get asks, and gives status and body.
func (w *world) get(path string) (int, string) { return w.do("GET", w.read, path, "") }

func (w *world) do(method, socket, path, body string, headers ...string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequest(method, "http://redisguard"+path, strings.NewReader(body))
	labtest.Must(w.t, err)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := dialer(socket).Do(req)
	labtest.Must(w.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	labtest.Must(w.t, err)
	return res.StatusCode, string(b)
}

// into decodes JSON.
func into[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// node is a view with a connection of the host, one of a pod in a namespace of its
// own, and one of a pod in the host's network.
func node() view.Node {
	conn := func(ns verdict.NS, space int, cookie uint64, remote string, w proc.Workload) view.Connection {
		return view.Connection{
			Key: verdict.ConnKey{NS: ns, Cookie: cookie}, Space: space, Seen: time.Now(),
			TCP: tcpstate.Connection{
				ID:    tcpstate.ID{Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort(remote), Cookie: cookie},
				State: tcpstate.Established, HasInfo: true, Inode: 1, Info: tcpstate.Info{BytesReceived: 7},
			},
			Owner: &proc.Owner{Process: proc.Process{PID: 100 + int(cookie), Comm: "app"}, Workload: w},
		}
	}
	return view.Node{
		Looked: true,
		Spaces: []view.Space{{NS: 1, Name: "host", Host: true}, {NS: 77, Name: "cni-a"}},
		Connections: []view.Connection{
			conn(1, 0, 1, "10.0.0.9:6379", proc.Workload{Unit: "app.service"}),
			conn(77, 1, 2, "10.0.0.9:6379", proc.Workload{PodUID: podA}),
			conn(1, 0, 3, "10.0.0.8:6379", proc.Workload{PodUID: podB}),
		},
	}
}

const (
	podA = "0a0a0a0a-0000-4000-8000-00000000000a"
	podB = "0b0b0b0b-0000-4000-8000-00000000000b"
)

// podCgroup makes a cgroup as a kubelet would, and returns where to write the
// process that is to be in it.
func podCgroup(t *testing.T, pod string) string {
	t.Helper()
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(dir + "/cgroup.procs"); err == nil {
			root = dir
			break
		}
	}
	if root == "" {
		t.Fatal("no cgroup hierarchy is mounted")
	}
	dir := filepath.Join(root, "kubepods", "pod"+pod, strings.Repeat("c", 64))
	labtest.Must(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() {
		for d := dir; d != root; d = filepath.Dir(d) {
			for range 50 { // the process is still leaving
				if err := os.Remove(d); err == nil || os.IsNotExist(err) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
	return filepath.Join(dir, "cgroup.procs")
}

// as makes a request from a process of its own: in a pod's cgroup, a network
// namespace of its own, as another user with other groups, if those are given.
type as struct {
	cgroup string
	netns  bool
	userns bool
	pidns  bool
	moves  bool // into a network namespace of its own once it has a socket
	uid    uint32
	gid    uint32
	groups []uint32
}

func (w *world) from(who as, method, socket, path, body string) (int, string) {
	w.t.Helper()
	exe := "/proc/self/exe"
	if who.uid != 0 {
		exe = filepath.Join(filepath.Dir(filepath.Dir(w.read)), "child")
		if _, err := os.Stat(exe); err != nil {
			b, err := os.ReadFile("/proc/self/exe")
			labtest.Must(w.t, err)
			labtest.Must(w.t, os.WriteFile(exe, b, 0o755))
		}
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{method, socket, path, body}, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if who.moves {
		cmd.Env = append(cmd.Env, moveEnv+"=1")
	}
	if who.pidns {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID
	}
	if who.netns {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	if who.userns {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	}
	if who.uid != 0 || who.gid != 0 || who.groups != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups}
	}
	in, err := cmd.StdinPipe()
	labtest.Must(w.t, err)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	labtest.Must(w.t, cmd.Start())
	if who.cgroup != "" {
		labtest.Must(w.t, os.WriteFile(who.cgroup, []byte(fmt.Sprint(cmd.Process.Pid)), 0))
	}
	fmt.Fprintln(in, "go")
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("%v: %s", err, out.String())
	}
	first, rest, _ := strings.Cut(out.String(), "\n")
	status := 0
	if _, err := fmt.Sscan(first, &status); err != nil || status == 0 {
		w.t.Fatalf("the child says %s", out.String())
	}
	return status, rest
}
