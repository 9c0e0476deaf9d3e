package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Owner is one holder of a socket.
type Owner struct {
	Process      Process
	Workload     Workload
	PodNamespace string // "" where the pod's name is not known
	PodName      string
	FD           int // a descriptor of Process for the socket
	// Holders counts the processes that were seen holding it: more than one after
	// a fork. The search ends when every socket has a holder, so there may be more.
	Holders int
}

// Stats says what Resolve did and met.
type Stats struct {
	Wanted    int // different inodes asked for
	Found     int
	Ambiguous int // asked for in two namespaces at once; not looked for
	Processes int // listed in /proc; 0 if those known from before had all sockets
	Scanned   int // whose descriptors were read, wholly or in part
	FDs       int // descriptors read
	Gone      int // processes that ended under our eyes, and zombies
	Denied    int // processes whose descriptors or namespace we may not see
	// Err is why the search ended before every process was asked: the context's
	// error, or that /proc cannot be listed. What was found until then is right.
	Err error
}

// Attributor finds the holders of sockets. It remembers who had some before, so
// that asking for a known process's new connections costs a look at that
// process only. It keeps no descriptor and is not safe for concurrent use.
type Attributor struct {
	fs    FS
	pods  PodNames
	hints map[int]NSKey // who held a wanted socket, and of which namespace that was

	// Kept between calls for their memory only.
	direntBuf []byte
	linkBuf   []byte
	name      []byte

	sockets uint64 // the mount that all sockets are on; 0 if not asked yet
}

// maxHints bounds the memory; a node has some thousand processes.
const maxHints = 10_000

// NewAttributor returns an Attributor that reads fs.
func NewAttributor(fs FS) *Attributor {
	return &Attributor{
		fs:        fs,
		pods:      PodNames{FS: fs},
		hints:     map[int]NSKey{},
		direntBuf: make([]byte, direntBuffer),
		// "socket:[4294967295]"; longer links are no sockets. The first four lines
		// of an fdinfo have at most 80 bytes.
		linkBuf: make([]byte, 128),
		name:    make([]byte, 0, 32),
	}
}

// search is one Resolve under way.
type search struct {
	ctx     context.Context
	wanted  map[uint64]NSKey // by inode
	found   map[uint64]Owner
	seenBy  map[uint64]int // inode to the process that was last seen holding it
	pending int            // wanted and not found
	stats   Stats
}

func (s *search) over() bool {
	if s.stats.Err == nil {
		s.stats.Err = s.ctx.Err()
	}
	return s.pending == 0 || s.stats.Err != nil
}

// Resolve looks for the holders of the sockets with the given inodes (as
// sock_diag and /proc/<pid>/fd have them), all in one pass. It asks processes that
// had such sockets before, then those whose main thread is in one of the
// namespaces, and, for what is left, all others: a socket may come from another
// namespace than its holder is in. It stops when ctx ends. A socket that no
// process holds (an orphan, or one on its way through another socket) is not in
// the result and costs the whole pass: do not ask for it at every turn.
func (a *Attributor) Resolve(ctx context.Context, want map[NSKey][]uint64) (map[uint64]Owner, Stats) {
	s := &search{ctx: ctx, wanted: map[uint64]NSKey{}, found: map[uint64]Owner{}, seenBy: map[uint64]int{}}
	ambiguous := map[uint64]bool{}
	for ns, inodes := range want {
		for _, ino := range inodes {
			// Inode 0 is the kernel's mark of an orphan.
			if ino == 0 {
				continue
			}
			if other, ok := s.wanted[ino]; ok && other != ns {
				ambiguous[ino] = true
			}
			s.wanted[ino] = ns
		}
	}
	s.stats.Wanted = len(s.wanted)
	for ino := range ambiguous {
		// The numbers of sockets are 32 bits wide and come round on a busy node.
		// /proc does not say which of two is meant, and a wrong owner is worse
		// than none.
		delete(s.wanted, ino)
		s.stats.Ambiguous++
	}
	s.pending = len(s.wanted)
	if s.over() {
		return s.found, s.stats
	}

	dir, err := a.fs.openProc()
	if err != nil {
		s.stats.Err = err
		return s.found, s.stats
	}
	defer unix.Close(dir)

	asked := map[int]bool{}
	for pid, ns := range a.hints {
		if s.over() {
			break
		}
		if _, ok := want[ns]; !ok {
			continue
		}
		// Those that have nothing new stay: they would be asked anyway.
		asked[pid] = true
		if !a.scan(s, dir, pid) {
			delete(a.hints, pid)
		}
	}
	if s.over() {
		return s.found, s.stats
	}

	var same, others []int
	walk, err := a.fs.walk(ctx, func(pid int, dev, ino uint64) {
		if asked[pid] {
			return
		}
		if _, ok := want[NSKey{Dev: dev, Ino: ino}]; ok {
			same = append(same, pid)
		} else {
			others = append(others, pid)
		}
	})
	s.stats.Processes = walk.processes
	s.stats.Gone += walk.gone
	s.stats.Denied += walk.denied
	if err != nil {
		s.stats.Err = err
		return s.found, s.stats
	}
	for _, pids := range [][]int{same, others} {
		for _, pid := range pids {
			if s.over() {
				return s.found, s.stats
			}
			a.scan(s, dir, pid)
		}
	}
	return s.found, s.stats
}

// scan reads the descriptors of one process and reports whether it could.
func (a *Attributor) scan(s *search, proc, pid int) bool {
	inode := a.linkInode
	dir, err := a.openBelow(proc, pid, "/fd")
	if denied(err) {
		// It belongs to its user alone, and CAP_DAC_READ_SEARCH opens more than
		// we should want. CAP_SYS_PTRACE opens the next one, since Linux 5.14.
		inode = a.infoInode
		dir, err = a.openBelow(proc, pid, "/fdinfo")
	}
	if err != nil {
		s.met(err)
		return false
	}
	defer unix.Close(dir)
	s.stats.Scanned++

	var owner Owner // read at the first hit, below dir: of this very process
	var gone error
	err = eachNumber(dir, a.direntBuf, func(fd int) bool {
		s.stats.FDs++
		if s.stats.FDs%1024 == 0 && s.ctx.Err() != nil {
			return false
		}
		ino, ok, err := inode(dir, fd)
		if err != nil {
			gone = err
			return false
		}
		if !ok {
			return true
		}
		ns, ok := s.wanted[ino]
		if !ok {
			return true
		}
		if s.seenBy[ino] == pid {
			return true // a second descriptor of the same process
		}
		s.seenBy[ino] = pid
		if known, ok := s.found[ino]; ok {
			known.Holders++
			s.found[ino] = known
			return true
		}
		if owner.Process.PID == 0 {
			p, err := processBeside(dir, pid)
			if err != nil {
				gone = err
				return false
			}
			owner.Process, owner.Workload = p, ParseWorkload(p.Cgroup)
			owner.PodNamespace, owner.PodName, _ = a.pods.Lookup(owner.Workload.PodUID, time.Now())
		}
		owner.FD, owner.Holders = fd, 1
		s.found[ino] = owner
		s.stats.Found++
		s.pending--
		a.remember(pid, ns)
		return true
	})
	if err == nil {
		err = gone
	}
	if err != nil {
		s.met(err)
	}
	return err == nil
}

// openBelow opens a directory of a process.
func (a *Attributor) openBelow(proc, pid int, name string) (int, error) {
	a.name = append(strconv.AppendInt(a.name[:0], int64(pid), 10), name...)
	return unix.Openat(proc, string(a.name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// linkInode is the inode of the socket that a descriptor is, by the link in the
// process's fd directory. Closed meanwhile is none.
func (a *Attributor) linkInode(dir, fd int) (ino uint64, ok bool, err error) {
	a.name = strconv.AppendInt(a.name[:0], int64(fd), 10)
	n, err := unix.Readlinkat(dir, string(a.name), a.linkBuf)
	if err != nil {
		return 0, false, nil
	}
	ino, ok = parseSocketLink(a.linkBuf[:n])
	return ino, ok, nil
}

// infoInode is the same by the process's fdinfo directory, which costs three calls
// instead of one.
func (a *Attributor) infoInode(dir, fd int) (ino uint64, ok bool, err error) {
	if a.sockets == 0 {
		if a.sockets, err = a.fs.socketMount(); err != nil {
			return 0, false, err
		}
	}
	a.name = strconv.AppendInt(a.name[:0], int64(fd), 10)
	f, err := unix.Openat(dir, string(a.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if denied(err) {
			return 0, false, err
		}
		return 0, false, nil // closed meanwhile
	}
	defer unix.Close(f)
	n, err := unix.Read(f, a.linkBuf[:cap(a.linkBuf)])
	if denied(err) {
		return 0, false, err
	}
	mount, ino := parseFDInfo(a.linkBuf[:max(n, 0)])
	return ino, ino != 0 && mount == a.sockets, nil
}

// met counts a process that could not be read.
func (s *search) met(err error) {
	if denied(err) {
		s.stats.Denied++
	} else {
		s.stats.Gone++
	}
}

// processBeside reads the process whose open fd directory is fds.
func processBeside(fds, pid int) (Process, error) {
	dir, err := unix.Openat(fds, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Process{}, err
	}
	defer unix.Close(dir)
	return readProcess(dir, pid)
}

func (a *Attributor) remember(pid int, ns NSKey) {
	if len(a.hints) >= maxHints {
		clear(a.hints) // only speed is lost
	}
	a.hints[pid] = ns
}

// socketMount is the id of the kernel's own mount on which all sockets are. Other
// files have inode numbers, too, some of them those of sockets.
func (f FS) socketMount() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot make a socket: %w", err)
	}
	defer unix.Close(fd)
	// The thread's own directory: a thread may be in another pid namespace's view
	// of us, but is always itself.
	path := fmt.Sprintf("%s/thread-self/fdinfo/%d", f.proc(), fd)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	mount, ino := parseFDInfo(b)
	if mount == 0 || ino == 0 {
		return 0, fmt.Errorf("cannot find a mount and an inode in %s, as Linux 5.14 has them: %w", path, unix.EACCES)
	}
	return mount, nil
}

// parseFDInfo finds mount and inode in the first lines of a /proc/<pid>/fdinfo/<n>;
// what is not there is 0.
func parseFDInfo(b []byte) (mount, ino uint64) {
	for line := range bytes.Lines(b) {
		name, value, ok := bytes.Cut(line, []byte(":\t"))
		// A line that was cut off may have lost digits.
		digits, whole := bytes.CutSuffix(value, []byte("\n"))
		if !ok || !whole {
			break
		}
		switch string(name) {
		case "mnt_id":
			mount, _ = strconv.ParseUint(string(digits), 10, 64)
		case "ino":
			ino, _ = strconv.ParseUint(string(digits), 10, 64)
			return mount, ino
		}
	}
	return mount, ino
}

// parseSocketLink reads "socket:[12345]".
func parseSocketLink(link []byte) (uint64, bool) {
	digits, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0, false
	}
	digits, ok = bytes.CutSuffix(digits, []byte("]"))
	if !ok || len(digits) == 0 || len(digits) > 20 {
		return 0, false
	}
	var n uint64
	for _, c := range digits {
		if c < '0' || c > '9' || n > (1<<64-10)/10 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}
