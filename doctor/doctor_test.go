package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/view"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// root makes a tree of files to look at.
func root(t *testing.T, files map[string]string) *node {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &node{root: dir}
}

func TestChecksOnFixtures(t *testing.T) {
	const (
		osrelease = "proc/sys/kernel/osrelease"
		fdinfo    = "proc/self/fdinfo/0"
		status    = "proc/self/status"
		yama      = "proc/sys/kernel/yama/ptrace_scope"
		mounts    = "proc/self/mounts"
		ipv4      = "proc/sys/net/ipv4/"
	)
	type files = map[string]string
	for _, tt := range []struct {
		name   string
		check  func(context.Context, *node) Finding
		files  files
		want   Status
		says   string // in the evidence
		remedy string
	}{
		{"kernel of today", checkKernel, files{osrelease: "6.18.44-fc-v769\n"}, OK, "Linux 6.18.44", ""},
		{"kernel without netns cookies", checkKernel, files{osrelease: "5.10.0-30-amd64\n"}, Warn, "SO_NETNS_COOKIE) needs 5.14", "newer kernel"},
		{"kernel without destroy", checkKernel, files{osrelease: "4.4.0\n"}, Fail, "SOCK_DESTROY) needs 4.9", "newer kernel"},
		{"kernel with an odd name", checkKernel, files{osrelease: "mine\n"}, CouldNotTell, `"mine"`, ""},
		{"no /proc", checkKernel, nil, CouldNotTell, "no such file", ""},

		{"root", checkCapabilities, files{status: "Name:\tx\nCapEff:\t000001ffffffffff\n"}, OK, "CAP_SYS_PTRACE", ""},
		{"the three", checkCapabilities, files{status: "CapEff:\t0000000000281000\n", fdinfo: "pos:\t0\nflags:\t02\nmnt_id:\t9\nino:\t7\n"}, OK, "CAP_SYS_PTRACE", ""},
		{"the three before Linux 5.14", checkCapabilities, files{status: "CapEff:\t0000000000281000\n", fdinfo: "pos:\t0\nflags:\t02\nmnt_id:\t9\n"}, Warn, "without CAP_DAC_READ_SEARCH", "CAP_DAC_READ_SEARCH"},
		{"nobody", checkCapabilities, files{status: "CapEff:\t0000000000000000\n"}, Fail, "connections are only observed, none can be ended", "CAP_NET_ADMIN, CAP_SYS_ADMIN"},
		{"capabilities that are no number", checkCapabilities, files{status: "CapEff:\tlots\n"}, CouldNotTell, "lots", ""},
		{"capabilities that are missing", checkCapabilities, files{status: "Name:\tx\n"}, CouldNotTell, "no line CapEff", ""},

		{"no Yama", checkYama, nil, OK, "not active", ""},
		{"Yama 1", checkYama, files{yama: "1\n"}, OK, "is 1", ""},
		{"Yama 3", checkYama, files{yama: "3\n"}, Warn, "is 3", "at boot"},
		{"Yama of tomorrow", checkYama, files{yama: "7\n"}, CouldNotTell, `"7"`, ""},

		{"no filter", checkSeccomp, files{status: "Seccomp:\t0\n"}, OK, "no seccomp filter", ""},
		{"a filter", checkSeccomp, files{status: "Seccomp:\t2\n"}, OK, "a seccomp filter", ""},

		{"open /proc", checkHidepid, files{mounts: "proc /proc proc rw,nosuid 0 0\n"}, OK, "all processes", ""},
		{"hidepid", checkHidepid, files{mounts: "proc /proc proc rw,hidepid=invisible 0 0\n", status: "CapEff:\t0\n"}, Warn, "hidepid=invisible", "CAP_SYS_PTRACE"},
		{"hidepid passed", checkHidepid, files{mounts: "proc /proc proc rw,hidepid=2 0 0\n", status: "CapEff:\t80000\n"}, OK, "passes", ""},
		{"hidepid mounted over", checkHidepid, files{mounts: "proc /proc proc rw,hidepid=2 0 0\nproc /proc proc rw 0 0\n"}, OK, "all processes", ""},

		{"tracepoint", checkConnectEvents, files{"sys/kernel/debug/tracing/events/sock/inet_sock_set_state/id": "1234\n"}, OK, "tracepoint 1234", ""},
		{"no tracepoint", checkConnectEvents, nil, Warn, "by looking only", "CONFIG_FTRACE"},

		{"cgroup v2", checkCgroups, files{"sys/fs/cgroup/cgroup.controllers": "cpu"}, OK, "cgroup v2", ""},
		{"cgroup v1", checkCgroups, files{"sys/fs/cgroup/memory/tasks": ""}, OK, "cgroup v1", ""},
		{"cgroup hybrid", checkCgroups, files{"sys/fs/cgroup/memory/tasks": "", "sys/fs/cgroup/unified/cgroup.procs": ""}, OK, "hybrid", ""},
		{"no cgroup", checkCgroups, nil, Warn, "no cgroups", "mount"},

		{"retries2 as it comes", checkRetries2, files{ipv4 + "tcp_retries2": "15\n"}, OK, "about 16 min", ""},
		{"retries2 tuned", checkRetries2, files{ipv4 + "tcp_retries2": "5\n"}, OK, "about 13.4 s", ""},
		{"retries2 broken", checkRetries2, files{ipv4 + "tcp_retries2": "many\n"}, CouldNotTell, "tcp_retries2", ""},
		{"keepalive", checkKeepalive, files{ipv4 + "tcp_keepalive_time": "7200", ipv4 + "tcp_keepalive_intvl": "75", ipv4 + "tcp_keepalive_probes": "9"},
			OK, "after 2 h 11 min", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.check(t.Context(), root(t, tt.files))
			if f.Status != tt.want || !strings.Contains(f.Evidence, tt.says) || !strings.Contains(f.Remedy, tt.remedy) {
				t.Errorf("got %v, %q, %q; want %v with %q and %q", f.Status, f.Evidence, f.Remedy, tt.want, tt.says, tt.remedy)
			}
			if tt.remedy == "" && f.Remedy != "" {
				t.Errorf("an unasked remedy: %q", f.Remedy)
			}
		})
	}
}

func TestChecksOfAnswers(t *testing.T) {
	for _, tt := range []struct {
		name string
		got  Finding
		want Status
	}{
		{"dump", sockDiag(tcpstate.Capability{Support: tcpstate.Supported}), OK},
		{"no dump", sockDiag(tcpstate.Capability{Support: tcpstate.NotSupported, Err: tcpstate.ErrNotSupported}), Fail},
		{"dump unknown", sockDiag(tcpstate.Capability{Err: errors.New("x")}), CouldNotTell},
		{"destroy", sockDestroy(tcpstate.Capability{Support: tcpstate.Supported}), OK},
		{"destroy not permitted", sockDestroy(tcpstate.Capability{Support: tcpstate.NotSupported, Err: tcpstate.ErrNotPermitted}), Fail},
		{"destroy not built in", sockDestroy(tcpstate.Capability{Support: tcpstate.NotSupported, Err: tcpstate.ErrNotSupported}), Warn},
		{"destroy unknown", sockDestroy(tcpstate.Capability{Err: errors.New("x")}), CouldNotTell},
		{"never suspended", suspended(time.Millisecond), OK},
		{"suspended", suspended(time.Hour), Warn},
		{"synchronised", clockSync(unix.TIME_OK, 0), OK},
		{"not synchronised", clockSync(unix.TIME_ERROR, unix.STA_UNSYNC), Warn},
	} {
		if tt.got.Status != tt.want || tt.got.Evidence == "" {
			t.Errorf("%s: %+v, want %v", tt.name, tt.got, tt.want)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	n := root(t, map[string]string{
		"good.toml": "[watch]\nmode = \"enforce\"\n",
		"bad.toml":  "mode = \"enforce\"\n\n[reap]\nrat = 5\n",
	})
	for file, want := range map[string]struct {
		status Status
		says   string
	}{
		"good.toml": {OK, "mode enforce"},
		"bad.toml":  {Fail, "bad.toml:4: reap.rat: unknown key"},
		"none.toml": {Fail, "no such file"},
	} {
		f := checkConfig(t.Context(), &node{file: filepath.Join(n.root, file)})
		if f.Status != want.status || !strings.Contains(f.Evidence, want.says) || strings.Contains(f.Evidence, "\n") {
			t.Errorf("%s: %+v", file, f)
		}
	}
}

// TestRun has all checks look at this machine, as root: what they cannot tell
// here they could tell nowhere.
func TestRun(t *testing.T) {
	findings := Run(t.Context(), Config{Survey: surveyed(1, false), Arming: func(context.Context, config.Config, proc.FS, []string) (Arming, error) { return Arming{}, nil }})
	if len(findings) != len(checks()) {
		t.Fatalf("%d findings of %d checks", len(findings), len(checks()))
	}
	names := map[string]bool{}
	for i, f := range findings {
		if f.Check != checks()[i].name || names[f.Check] {
			t.Errorf("finding %d is called %q", i, f.Check)
		}
		names[f.Check] = true
		if f.Evidence == "" || strings.Contains(f.Evidence+f.Remedy, "\n") {
			t.Errorf("%s: %+v", f.Check, f)
		}
		if f.Status == Fail || f.Status == CouldNotTell {
			t.Errorf("as root: %+v", f)
		}
		if (f.Status == Warn || f.Status == Fail) != (f.Remedy != "") {
			t.Errorf("%s: a %v with remedy %q", f.Check, f.Status, f.Remedy)
		}
	}
}

func TestOneCheckHidesNoOther(t *testing.T) {
	release := make(chan struct{})
	ended := make(chan struct{})
	list := []check{
		{name: "panics", run: func(context.Context, *node) Finding { panic("boom") }},
		{name: "hangs", run: func(context.Context, *node) Finding {
			defer close(ended)
			<-release
			return Finding{Status: OK}
		}},
		{name: "works", run: func(context.Context, *node) Finding { return Finding{Status: OK, Evidence: "fine"} }},
	}
	got := run(t.Context(), &node{}, 20*time.Millisecond, list)
	close(release)
	<-ended
	for i, want := range []struct {
		check  string
		status Status
		says   string
	}{{"panics", CouldNotTell, "boom"}, {"hangs", CouldNotTell, "20ms"}, {"works", OK, "fine"}} {
		if f := got[i]; f.Check != want.check || f.Status != want.status || !strings.Contains(f.Evidence, want.says) {
			t.Errorf("got %+v, want %+v", f, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("6.18.44-fc-v769")
	f.Add("proc /proc proc rw,hidepid=2 0 0\n")
	f.Fuzz(func(t *testing.T, s string) {
		parseRelease(s)
		parseHidepid(s)
	})
}

// surveyed is a survey of looked namespaces, in the last of which are these connections.
func surveyed(looked int, mptcp ...bool) func(context.Context, config.Config, netns.Finder, func(netns.Namespace, *tcpstate.Connection)) (int, error) {
	return func(_ context.Context, _ config.Config, _ netns.Finder, each func(netns.Namespace, *tcpstate.Connection)) (int, error) {
		for _, m := range mptcp {
			each(netns.Namespace{Name: "web"}, &tcpstate.Connection{MPTCP: m})
		}
		return looked, nil
	}
}

func TestMPTCP(t *testing.T) {
	for _, c := range []struct {
		n      node
		status Status
		says   string
	}{
		{node{}, CouldNotTell, "not looked at"},
		{node{survey: surveyed(0)}, CouldNotTell, "no network namespace"},
		{node{survey: surveyed(3)}, OK, "none of 0"},
		{node{survey: surveyed(3, false, false)}, OK, "none of 2"},
		{node{survey: surveyed(3, false, true)}, Warn, "1 of 2 connections to watched ports are MPTCP, as in namespace web"},
	} {
		if f := checkMPTCP(t.Context(), &c.n); f.Status != c.status || !strings.Contains(f.Evidence, c.says) {
			t.Errorf("%+v, want %v and %q", f, c.status, c.says)
		}
	}
}

func TestArming(t *testing.T) {
	for _, tt := range []struct {
		a      Arming
		status Status
		says   string
	}{
		{Arming{}, OK, "no connection"},
		{Arming{States: map[view.ArmState]int{view.ArmDone: 2, view.ArmExempt: 1}}, OK, "3 connections to watched ports: 2 armed, 0 would be"},
		{Arming{States: map[view.ArmState]int{view.ArmPlanned: 2}, Never: 1}, OK, "1 would never notice"},
		{Arming{States: map[view.ArmState]int{view.ArmFailed: 2}}, Warn, "2 cannot be reached"},
	} {
		if f := armFinding(&tt.a); f.Status != tt.status || !strings.Contains(f.Evidence, tt.says) || (f.Remedy != "") != (tt.status == Warn) {
			t.Errorf("%+v: %+v", tt.a, f)
		}
	}
}
