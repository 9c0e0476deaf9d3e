package probe

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redisguard/redisguard/lab/labtest"
)

// identify asks a server that answers with reply, and ends then if end is set.
func identify(t *testing.T, reply string, end bool) (Answer, Identity) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	labtest.Must(t, err)
	defer l.Close()
	done := make(chan struct{})
	asked := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 64)
		n, _ := c.Read(buf)
		asked <- string(buf[:n])
		_, _ = io.WriteString(c, reply)
		if !end {
			<-done
		}
	}()
	defer close(done)
	s, err := Open(l.Addr().(*net.TCPAddr).AddrPort(), Config{Timeout: 300 * time.Millisecond})
	labtest.Must(t, err)
	a, x := s.Identify(t.Context())
	if got := <-asked; got != question {
		t.Errorf("asked %q", got)
	}
	return a, x
}

func TestIdentify(t *testing.T) {
	info := "# Server\r\nredis_version:7.0.15\r\nprocess_id:17\r\nexecutable:/opt/my-store\r\nuptime_in_seconds:0\r\nconfig_file:\r\n"
	for _, tt := range []struct {
		name, reply string
		end         bool
		want        Answer
		id          Identity
	}{
		{"Redis", "$" + itoa(len(info)) + "\r\n" + info + "\r\n", false, Told, Identity{"/opt/my-store", 17, 1}},
		{"Redis that says nothing of itself", "$3\r\nabc\r\n", false, Told, Identity{}},
		{"more than is read", "$99999999\r\n", false, Told, Identity{}},
		{"a password", "-NOAUTH Authentication required.\r\n", false, Withheld, Identity{}},
		{"a web server", "HTTP/1.1 400 Bad Request\r\n\r\n", true, OtherSpeech, Identity{}},
		{"a greeting", "+OK ready\r\n", false, OtherSpeech, Identity{}},
		{"TLS", "\x15\x03\x01\x00\x02\x02\x46", false, HungUp, Identity{}},
		{"an end", "", true, HungUp, Identity{}},
		{"silence", "", false, Unanswered, Identity{}},
		{"half an answer", "$100\r\nredis", false, Unanswered, Identity{}},
	} {
		if a, id := identify(t, tt.reply, tt.end); a != tt.want || id != tt.id {
			t.Errorf("%s: %v %+v, want %v %+v", tt.name, a, id, tt.want, tt.id)
		}
	}
	// Nobody listens; and we have no time.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	labtest.Must(t, err)
	at := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	s, err := Open(at, Config{Timeout: time.Second})
	labtest.Must(t, err)
	if a, _ := s.Identify(t.Context()); a != Unanswered {
		t.Errorf("nobody: %v", a)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err = Open(at, Config{Timeout: time.Second}); err == nil {
		if a, _ := s.Identify(ctx); a != NotAsked {
			t.Errorf("no time: %v", a)
		}
	}
}

// A real server says who it is, under whatever name it runs.
func TestIdentifyRealServer(t *testing.T) {
	path, err := exec.LookPath("redis-server")
	labtest.Must(t, err)
	path, err = filepath.EvalSymlinks(path)
	labtest.Must(t, err)
	dir := t.TempDir()
	program := filepath.Join(dir, "my-store")
	b, err := os.ReadFile(path)
	labtest.Must(t, err)
	labtest.Must(t, os.WriteFile(program, b, 0o755))
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	labtest.Must(t, err)
	at := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	cmd := exec.Command(program, "--port", itoa(int(at.Port())), "--bind", "127.0.0.1", "--save", "", "--dir", dir)
	labtest.Must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	}()
	var a Answer
	var x Identity
	labtest.Eventually(t, "that it answers", func() bool {
		s, err := Open(at, Config{Timeout: time.Second})
		labtest.Must(t, err)
		a, x = s.Identify(t.Context())
		return a != Unanswered
	})
	if a != Told || x.PID != cmd.Process.Pid || x.Executable != program || x.Uptime == 0 || x.Uptime > time.Minute {
		t.Errorf("%v %+v", a, x)
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("# Server\r\nprocess_id:1\r\nexecutable:/x\r\nuptime_in_seconds:99\r\n")
	f.Add("process_id:-1\nuptime_in_seconds:99999999999999999999\nexecutable")
	f.Fuzz(func(t *testing.T, s string) {
		x := parseIdentity(s)
		if x.PID < 0 || x.Uptime < 0 || len(x.Executable) > maxWord || !strings.Contains(s, x.Executable) {
			t.Errorf("%q: %+v", s, x)
		}
	})
}

func itoa(n int) string { return strconv.Itoa(n) }
