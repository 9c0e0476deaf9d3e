package supervisor_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/lab"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
)

// wallClock is CLOCK_REALTIME as one process sees it. Setting the machine's would
// hit everything else that runs on it; so the function by which a process reads
// clocks, in its own copy of the kernel's vDSO, is replaced by one that adds an
// offset to this clock.
type wallClock struct {
	t      *testing.T
	mem    *os.File
	offset int64 // address of the offset in seconds
}

// readClock is clock_gettime(rdi, rsi) with the offset, which follows it.
var readClock = []byte{
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228 (SYS_clock_gettime)
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi (CLOCK_REALTIME is 0)
	0x75, 0x0a, // jnz to the ret
	0x48, 0x8b, 0x0d, 0x04, 0x00, 0x00, 0x00, // mov rcx, [the 8 bytes after the ret]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3, // ret
}

// takeClock gets hold of the clock of a process.
func takeClock(t *testing.T, pid int) *wallClock {
	t.Helper()
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	labtest.Must(t, err)
	t.Cleanup(func() { mem.Close() })
	base, size := vdso(t, pid)
	image := make([]byte, size)
	_, err = mem.ReadAt(image, base)
	labtest.Must(t, err)
	f, err := elf.NewFile(bytes.NewReader(image))
	labtest.Must(t, err)
	symbols, err := f.DynamicSymbols()
	labtest.Must(t, err)
	var at, length int64
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			at, length = base+int64(s.Value), int64(s.Size)
		}
	}
	code := append(bytes.Clone(readClock), 0, 0, 0, 0, 0, 0, 0, 0)
	if at == 0 || length < int64(len(code)) {
		t.Fatalf("the vDSO has no place for it: %#x, %d bytes", at, length)
	}
	// Not while a thread is inside.
	labtest.Must(t, unix.Kill(pid, unix.SIGSTOP))
	defer unix.Kill(pid, unix.SIGCONT)
	labtest.Within(t, 5*time.Second, "it stands still outside of the vDSO", func() bool {
		if still, inside := stands(t, pid, base, base+size); !still || inside {
			if inside {
				labtest.Must(t, unix.Kill(pid, unix.SIGCONT))
				labtest.Must(t, unix.Kill(pid, unix.SIGSTOP))
			}
			return false
		}
		return true
	})
	_, err = mem.WriteAt(code, at)
	labtest.Must(t, err)
	return &wallClock{t: t, mem: mem, offset: at + int64(len(readClock))}
}

// step sets the clock that far from the true time.
func (c *wallClock) step(d time.Duration) {
	c.t.Helper()
	_, err := c.mem.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(int64(d/time.Second))), c.offset)
	labtest.Must(c.t, err)
}

// vdso is where the vDSO of a process lies.
func vdso(t *testing.T, pid int) (base, size int64) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	labtest.Must(t, err)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil {
				return from, to - from
			}
		}
	}
	t.Fatal("the process has no vDSO")
	return 0, 0
}

// stands tells whether all threads are stopped, and any is in [from, to).
func stands(t *testing.T, pid int, from, to int64) (still, inside bool) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	labtest.Must(t, err)
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, task.Name()))
		labtest.Must(t, err)
		if strings.HasPrefix(string(b), "running") {
			return false, false
		}
		f := strings.Fields(string(b))
		pc, err := strconv.ParseInt(strings.TrimPrefix(f[len(f)-1], "0x"), 16, 64)
		labtest.Must(t, err)
		if pc >= from && pc < to {
			inside = true
		}
	}
	return true, inside
}

func TestTheClockSteps(t *testing.T) {
	w := newWorld(t)
	busy := w.run(w.client, lab.Writer, w.redis.Addr(), 3)
	d := startDaemon(t, daemonConfig{})
	clock := takeClock(t, d.process.Pid)
	d.probed(w.redis.Addr().String())
	steps := []time.Duration{time.Hour, -time.Hour, 0}

	for _, step := range steps {
		clock.step(step)
		pass(700 * time.Millisecond) // in which nothing may happen
	}
	if n := busy.Totals().Errors; len(n) > 0 {
		t.Errorf("the client had errors in quiet times: %v", n)
	}
	for _, step := range steps {
		clock.step(0)
		labtest.Must(t, w.server.Vanish())
		lost := time.Now()
		pass(300 * time.Millisecond)
		clock.step(step)
		e := w.failure(busy, lost)
		took := e.Time().Sub(lost)
		t.Logf("clock %+v in an outage: %s after %v", step, e.Errno, took)
		if e.Errno != "ECONNABORTED" || took < 600*time.Millisecond || took > 3*time.Second {
			t.Errorf("with the clock at %+v: got %s after %v", step, e.Errno, took)
		}
		// Did the daemon's clock really step?
		l := d.wait(time.Second, "connection.reaped", func(l *logLine) bool { return l.is(verdict.ConnectionReaped) && l.at.After(lost) })
		if at, err := time.Parse(time.RFC3339Nano, l.field("time")); err != nil || at.Sub(l.at.Add(step)).Abs() > 10*time.Second {
			t.Errorf("the daemon's clock shows %v, want one that is %+v off (%v)", at, step, err)
		}
		labtest.Must(t, w.server.Return())
		back := time.Now()
		d.wait(10*time.Second, "endpoint.up", func(l *logLine) bool { return l.is(verdict.EndpointUp) && l.at.After(back) })
		w.allAnswered(busy, 3, time.Now())
	}
	d.healthy(50)
	d.terminate()
}
