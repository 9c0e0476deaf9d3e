package proc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
)

// FS is where the files are. The zero value is the running system.
type FS struct {
	Proc    string // mount of procfs; "" is /proc
	PodLogs string // the kubelet's directory of pod logs; "" is /var/log/pods
	// Stuck remembers which processes keep us waiting; all that ask in one daemon should share
	// one. Nil remembers for one call only: each may then leave a thread behind.
	Stuck *Stuck
}

func (f FS) proc() string {
	if f.Proc == "" {
		return "/proc"
	}
	return f.Proc
}

func (f FS) podLogs() string {
	if f.PodLogs == "" {
		return "/var/log/pods"
	}
	return f.PodLogs
}

// Process is one process, as it was when its files were read. PID and StartTime
// together name it for as long as the system runs.
type Process struct {
	PID       int
	StartTime uint64    // clock ticks since boot, /proc/<pid>/stat field 22
	Comm      string    // the process's own word; write it with Safe
	UID       uint32    // effective
	Cgroup    string    // see ParseCgroup; "" if it has none we understand
	NetNS     netns.Key // of the main thread; zero for a zombie or without the right to see it
	Exe       string    // path of its program as its mount namespace has it; "" if it may not be seen
	// Title is what of its command line may be that of a Redis server, see ParseTitle; ""
	// for most. It is the process's own word, too.
	Title string
	// Inner is its pid as its own pid namespace has it; 0 if that is not known.
	Inner int
}

// Gone reports whether err means that the process, or this file of it, is not
// there: it ended, or is a zombie. That is no failure.
func Gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// denied reports whether err means that we may not look.
func denied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

// Process reads the process pid.
func (f FS) Process(pid int) (Process, error) {
	var answer struct {
		Process
		err error
	}
	err := f.queryOne(pid, func(root int) {
		// Everything is read below one descriptor, which stands for this process
		// and not for another that may get its number meanwhile.
		dir, err := sys.Openat(root, strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			answer.err = err
			return
		}
		defer sys.Close(dir)
		answer.Process, answer.err = readProcess(dir, pid)
	})
	if err == nil {
		err = answer.err
	}
	if err != nil {
		return Process{}, fmt.Errorf("cannot read process %d: %w", pid, err)
	}
	return answer.Process, nil
}

// Finder looks for network namespaces by f's processes and by mounts; see netns.Finder
// for nil.
func (f FS) Finder(mounts []string) netns.Finder {
	finder := netns.Finder{MountDirs: mounts, Walk: f.WalkNetNS}
	if f.Proc != "" {
		finder.HostPath = f.Proc + "/1/ns/net"
	}
	return finder
}

// NetNS is the network namespace of pid's main thread.
func (f FS) NetNS(pid int) (netns.Key, error) {
	var answer space
	err := f.queryOne(pid, func(dir int) { answer = netNSBelow(dir, pid, nil) })
	if err == nil {
		err = answer.err
	}
	if err != nil {
		return netns.Key{}, fmt.Errorf("cannot identify network namespace of process %d: %w", pid, err)
	}
	return answer.key, nil
}

// Exe is the path of pid's program as its own mount namespace has it, without
// the mark of one that was deleted or replaced since.
func (f FS) Exe(pid int) (string, error) {
	var answer struct {
		exe string
		err error
	}
	err := f.queryOne(pid, func(dir int) {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, strconv.Itoa(pid)+"/exe", buf)
		answer.exe, answer.err = string(buf[:max(n, 0)]), err
	})
	if err == nil {
		err = answer.err
	}
	if err != nil {
		return "", fmt.Errorf("cannot read program of process %d: %w", pid, err)
	}
	return strings.TrimSuffix(answer.exe, " (deleted)"), nil
}

// readProcess reads the process whose directory in /proc is dir.
func readProcess(dir, pid int) (Process, error) {
	p := Process{PID: pid}
	buf := make([]byte, 4096)
	data, err := readAt(dir, "stat", buf)
	if err != nil {
		return Process{}, err
	}
	if p.Comm, p.StartTime, err = parseStat(data); err != nil {
		return Process{}, err
	}
	if data, err = readAt(dir, "status", buf); err != nil {
		return Process{}, err
	}
	if p.UID, err = parseUID(data); err != nil {
		return Process{}, err
	}
	p.Inner = parseInner(data)
	if data, err = readAt(dir, "cgroup", buf); err != nil {
		return Process{}, err
	}
	if path, err := ParseCgroup(data); err == nil {
		p.Cgroup = path
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, "ns/net", &st, 0); {
	case err == nil:
		p.NetNS = netns.Key{Dev: st.Dev, Inode: st.Ino}
	case Gone(err), denied(err): // stays zero
	default:
		return Process{}, err
	}
	p.readNames(dir, buf)
	return p, nil
}

// readNames reads what else a process says of its name. What may not be seen is left out.
func (p *Process) readNames(dir int, buf []byte) {
	if n, err := unix.Readlinkat(dir, "exe", buf); err == nil {
		p.Exe = strings.TrimSuffix(string(buf[:n]), " (deleted)")
	}
	fd, err := sys.Openat(dir, "cmdline", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer sys.Close(fd)
	if n, err := unix.Read(fd, buf); err == nil {
		p.Title = parseCmdline(buf[:n])
	}
}

// maxProcFile bounds what is read of one file, in bytes. /proc/<pid>/cgroup has a
// line for each v1 hierarchy and each line a path of at most 4 KiB.
const maxProcFile = 64 << 10

// readAt reads the file name below dir. The result may lie in buf.
func readAt(dir int, name string, buf []byte) ([]byte, error) {
	fd, err := sys.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer sys.Close(fd)
	n := 0
	for n < maxProcFile {
		if n == len(buf) {
			buf = append(buf, make([]byte, len(buf))...)
		}
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}

// parseStat takes comm and start time from /proc/<pid>/stat. The process chose
// comm and may have put brackets and spaces into it: it ends at the last one.
func parseStat(data []byte) (comm string, start uint64, err error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return "", 0, errors.New("stat has no command")
	}
	const startTime = 22 - 3 // field 22, of which the third comes first behind comm
	i := 0
	for field := range bytes.FieldsSeq(data[end+1:]) {
		if i == startTime {
			start, err = strconv.ParseUint(string(field), 10, 64)
			if err != nil {
				return "", 0, errors.New("stat has no start time")
			}
			return string(data[open+1 : end]), start, nil
		}
		i++
	}
	return "", 0, errors.New("stat is cut short")
}

// parseUID takes the effective uid from /proc/<pid>/status. The owner of the
// directory would be quicker, but is root for a process that may not be dumped.
func parseUID(data []byte) (uint32, error) {
	for line := range bytes.Lines(data) {
		rest, ok := bytes.CutPrefix(line, []byte("Uid:"))
		if !ok {
			continue
		}
		if fields := bytes.Fields(rest); len(fields) >= 2 {
			if uid, err := strconv.ParseUint(string(fields[1]), 10, 32); err == nil {
				return uint32(uid), nil
			}
		}
		break
	}
	return 0, errors.New("status has no uid")
}

// parseInner takes the last of the numbers of NSpid from /proc/<pid>/status.
func parseInner(data []byte) int {
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			fields := bytes.Fields(rest)
			if len(fields) == 0 {
				return 0
			}
			n, _ := parseNumber(fields[len(fields)-1])
			return n
		}
	}
	return 0
}

// WalkNetNS calls fn with device and inode of the network namespace of every
// process, in the order of pids. Zombies and processes that end meanwhile are
// left out. It ends early, with the context's error, when ctx does; and it ends
// with an error that wraps EACCES, after all others, if the namespaces of some may
// not be seen, for which CAP_SYS_PTRACE is needed, or are kept from us (see Stuck).
func (f FS) WalkNetNS(ctx context.Context, fn func(pid int, ns netns.Key)) error {
	w, err := f.walk(ctx, fn)
	if err == nil && w.denied > 0 {
		stuck := ""
		if w.stuck > 0 {
			stuck = fmt.Sprintf(" (%d stuck in execve)", w.stuck)
		}
		err = fmt.Errorf("cannot see the network namespace of %d of %d processes%s: %w", w.denied, w.processes, stuck, unix.EACCES)
	}
	return err
}

// walked counts what a walk over /proc met.
type walked struct {
	processes int // listed
	gone      int // ended or zombie when looked at
	denied    int // may not be looked at
	stuck     int // of these, those that keep us waiting
}

// space is what a process said when it was asked for its namespace.
type space struct {
	key netns.Key
	err error
}

func netNSBelow(dir, pid int, path []byte) space {
	var st unix.Stat_t
	path = append(strconv.AppendInt(path[:0], int64(pid), 10), "/ns/net"...)
	err := unix.Fstatat(dir, string(path), &st, 0)
	return space{netns.Key{Dev: st.Dev, Inode: st.Ino}, err}
}

func (f FS) walk(ctx context.Context, fn func(pid int, ns netns.Key)) (walked, error) {
	var w walked
	pids, err := f.list()
	answers := make([]space, len(pids))
	for i := 0; i < len(pids) && err == nil; i++ {
		rest, theirs, path := pids[i:], answers[i:], make([]byte, 0, 32)
		var done int
		done, err = f.query(ctx, rest, func(dir, i int, _ func()) {
			if theirs[i].err = ctx.Err(); theirs[i].err == nil {
				theirs[i] = netNSBelow(dir, rest[i], path)
			}
		})
		for n := 0; n < done && ctx.Err() == nil; n++ {
			w.processes++
			switch a := theirs[n]; {
			case a.err == nil:
				fn(rest[n], a.key)
			case denied(a.err):
				w.denied++
			default:
				w.gone++
			}
		}
		if err == nil {
			err = ctx.Err()
		}
		if i += done; i < len(pids) && err == nil {
			w.processes++
			w.denied++
			w.stuck++
		}
	}
	if err != nil {
		return w, fmt.Errorf("cannot walk %s: %w", f.proc(), err)
	}
	return w, nil
}

// list is the pids in /proc.
func (f FS) list() ([]int, error) {
	dir, err := f.openProc()
	if err != nil {
		return nil, err
	}
	defer sys.Close(dir)
	var pids []int
	err = eachNumber(dir, make([]byte, direntBuffer), func(pid int) bool {
		pids = append(pids, pid)
		return true
	})
	return pids, err
}

func (f FS) openProc() (int, error) {
	dir, err := sys.Open(f.proc(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot open %s: %w", f.proc(), err)
	}
	return dir, nil
}

// direntBuffer is the size of a buffer for directory entries, in bytes: about a
// thousand of them a call.
const direntBuffer = 32 << 10

// eachNumber calls fn for every entry of the directory dir whose name is a
// number, until fn returns false. It does without os.ReadDir, which would make a
// string and a value of every name: this runs over every descriptor of a node.
func eachNumber(dir int, buf []byte, fn func(n int) bool) error {
	for {
		n, err := unix.Getdents(dir, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		if !parseDirents(buf[:n], fn) {
			return nil
		}
	}
}

// parseDirents calls fn for the numeric names in the records of getdents64
// (struct linux_dirent64), until fn returns false, which it then returns too.
func parseDirents(data []byte, fn func(n int) bool) bool {
	const lengthAt, nameAt = 16, 19 // after d_ino and d_off; and after d_reclen and d_type
	for len(data) > nameAt {
		length := int(binary.NativeEndian.Uint16(data[lengthAt:]))
		if length <= nameAt || length > len(data) {
			return true // not a record: there is nothing after it to be found
		}
		name := data[nameAt:length]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		if n, ok := parseNumber(name); ok && !fn(n) {
			return false
		}
		data = data[length:]
	}
	return true
}

// parseNumber reads a pid or a descriptor number: digits only, within an int32.
func parseNumber(b []byte) (int, bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return int(n), n <= math.MaxInt32
}

// Safe makes a string of the workload's fit for a terminal, a log or a table:
// what does not print is escaped, the backslash too, and the end is cut off
// after 256 bytes.
func Safe(s string) string {
	const most = 256
	cut := ""
	if len(s) > most {
		s, cut = s[:most], "..."
	}
	// Quote knows what prints; the quotes themselves are the caller's choice.
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`) + cut
}
