package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenTracefs returns a descriptor of the root of tracefs: of where it is mounted,
// or, where it is not, of a detached mount of its own that no other process sees
// (fsopen, Linux 5.2; needs CAP_SYS_ADMIN).
func OpenTracefs() (*os.File, error) {
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if _, err := os.Stat(dir + "/events"); err == nil {
			return f, nil
		}
		f.Close()
	}
	fs, err := made(unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC))
	if err != nil {
		return nil, fmt.Errorf("cannot open tracefs: %w", err)
	}
	defer Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("cannot make a mount of tracefs: %w", err)
	}
	m, err := made(unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID))
	if err != nil {
		return nil, fmt.Errorf("cannot mount tracefs: %w", err)
	}
	return os.NewFile(uintptr(m), "tracefs"), nil
}

// ReadAt reads a small file below an open directory.
func ReadAt(dir *os.File, path string) ([]byte, error) {
	fd, err := Openat(int(dir.Fd()), path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer Close(fd)
	b := make([]byte, 16<<10)
	n := 0
	for n < len(b) {
		k, err := unix.Read(fd, b[n:])
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if k == 0 {
			return b[:n], nil
		}
		n += k
	}
	return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("larger than expected")}
}

// OnlineCPUs lists the CPUs that are online, from the kernel's list format
// ("0-3,8").
func OnlineCPUs() ([]int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, fmt.Errorf("cannot list CPUs: %w", err)
	}
	return parseCPUs(strings.TrimSpace(string(b)))
}

func parseCPUs(s string) ([]int, error) {
	const most = 1 << 13 // NR_CPUS of the largest kernels
	var cpus []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(to)
		}
		if err != nil || a < 0 || b < a || b >= most {
			return nil, fmt.Errorf("cannot list CPUs: %q is no list of CPUs", s)
		}
		for i := a; i <= b; i++ {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

// A TraceRing receives the records of one kernel tracepoint on one CPU. It is
// read by polling its shared memory, without a system call. It runs no program in
// the kernel: records are filtered by the kernel's own filter expressions.
type TraceRing struct {
	fd   int
	mem  []byte
	data []byte
	line []byte // a record that wraps around the end, in one piece
}

const (
	perfRecordLost   = 2
	perfRecordSample = 9
	perfHeadAt       = 1024 // data_head in struct perf_event_mmap_page
	perfTailAt       = 1032 // data_tail
)

// OpenTracepoint starts receiving the tracepoint with the given id (its file id
// in tracefs) on one CPU, from all processes, where the filter expression holds.
// pages must be a power of two. It needs CAP_PERFMON or CAP_SYS_ADMIN.
func OpenTracepoint(id uint64, cpu int, filter string, pages int) (*TraceRing, error) {
	attr := unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_TRACEPOINT,
		Size:        uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Config:      id,
		Sample:      1, // every record
		Sample_type: unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_TIME | unix.PERF_SAMPLE_RAW,
		Bits:        unix.PerfBitDisabled | unix.PerfBitUseClockID, // Linux 4.1
		Clockid:     unix.CLOCK_MONOTONIC,
	}
	fd, err := made(unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC))
	if err != nil {
		return nil, fmt.Errorf("cannot open tracepoint %d on CPU %d: %w", id, cpu, err)
	}
	fail := func(err error) (*TraceRing, error) {
		Close(fd)
		return nil, fmt.Errorf("cannot receive tracepoint %d on CPU %d: %w", id, cpu, err)
	}
	if filter != "" {
		expr, err := unix.BytePtrFromString(filter)
		if err != nil {
			return fail(err)
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(expr)))
		runtime.KeepAlive(expr)
		if errno != 0 {
			return fail(fmt.Errorf("filter %q: %w", filter, errno))
		}
	}
	page := os.Getpagesize()
	mem, err := unix.Mmap(fd, 0, (pages+1)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fail(err)
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		unix.Munmap(mem)
		return fail(err)
	}
	return &TraceRing{fd: fd, mem: mem, data: mem[page:]}, nil
}

// Close stops receiving.
func (r *TraceRing) Close() {
	unix.Munmap(r.mem)
	Close(r.fd)
}

// Count is how many times the tracepoint was hit on this CPU and passed the filter since it
// was opened, delivered or not. It interrupts the CPU (22 us; the own one 0.4 us).
func (r *TraceRing) Count() (uint64, error) {
	var n [8]byte
	if k, err := unix.Read(r.fd, n[:]); err != nil || k != len(n) {
		return 0, fmt.Errorf("cannot read the count of a perf event: %d bytes, %w", k, err)
	}
	return binary.NativeEndian.Uint64(n[:]), nil
}

// Sample is a record: the process and the thread that were running, when that was, by the
// clock of Monotonic, and the raw data of the tracepoint.
type Sample struct {
	PID, TID int
	At       time.Duration
	Raw      []byte
}

// Read calls fn for every record that has come since; its Raw is valid during the call. A
// record may have waited for long: from a CPU that is idle they are not delivered. It returns
// how many records were lost for want of room.
func (r *TraceRing) Read(fn func(*Sample)) (lost uint64) {
	head := atomic.LoadUint64((*uint64)(unsafe.Pointer(&r.mem[perfHeadAt])))
	tail := (*uint64)(unsafe.Pointer(&r.mem[perfTailAt]))
	at := atomic.LoadUint64(tail)
	for at < head {
		rec, ok := r.record(at, head)
		if !ok {
			at = head // cannot be, but must not loop or read wild
			lost++
			break
		}
		switch binary.NativeEndian.Uint32(rec) {
		case perfRecordSample:
			if s, ok := parseSample(rec[8:]); ok {
				fn(&s)
			}
		case perfRecordLost:
			if len(rec) >= 24 {
				lost += binary.NativeEndian.Uint64(rec[16:])
			}
		}
		at += uint64(len(rec))
	}
	atomic.StoreUint64(tail, at)
	return lost
}

// record returns the record at position at, header included.
func (r *TraceRing) record(at, head uint64) ([]byte, bool) {
	size := uint64(len(r.data))
	off := at % size
	if size-off < 8 || head-at < 8 {
		return nil, false // records are multiples of 8 bytes, so a header never wraps
	}
	n := uint64(binary.NativeEndian.Uint16(r.data[off+6:]))
	if n < 8 || n > head-at {
		return nil, false
	}
	if off+n <= size {
		return r.data[off : off+n], true
	}
	r.line = append(append(r.line[:0], r.data[off:]...), r.data[:off+n-size]...)
	return r.line, true
}

// parseSample reads pid, tid and time, then the size of the raw data and the data.
func parseSample(b []byte) (s Sample, ok bool) {
	const head = 20
	if len(b) < head {
		return s, false
	}
	ne := binary.NativeEndian
	n := int(ne.Uint32(b[16:]))
	if n < 0 || n > len(b)-head {
		return s, false
	}
	return Sample{int(int32(ne.Uint32(b))), int(int32(ne.Uint32(b[4:]))), time.Duration(ne.Uint64(b[8:])), b[head : head+n]}, true
}
