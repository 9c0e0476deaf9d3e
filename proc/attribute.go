package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
)

// Owner is one holder of a socket.
type Owner struct {
	Process      Process
	Workload     Workload
	PodNamespace string // "" where the pod's name is not known
	PodName      string
	FD           int // a descriptor of Process for the socket
	// Holders counts the processes that were seen holding it: more than one after
	// a fork, or where it was sent through a Unix socket.
	Holders int
	// Others are further processes that hold it, one of each kind: a hundred workers of
	// one name, program, user and cgroup are one of them. They have neither FD nor Others.
	Others []*Owner
	// Complete says that every process was asked that may be, and that Others has room
	// for all kinds: nobody else held it during that pass.
	Complete bool
}

// maxOthers bounds Owner.Others. A master and its workers are two kinds.
const maxOthers = 16

// kind is what a decision about a process rests on.
type kind struct {
	comm, exe, server, cgroup string
	uid                       uint32
}

func (p *Process) kind() kind { return kind{p.Comm, p.Exe, p.ServerName(), p.Cgroup, p.UID} }

// addOther notes a further holder, which has the socket as fd. The oldest of them is the
// one that the others are others of: after a fork that is the process that connected, and it
// is the same at each search, in whatever order they are found.
func (o *Owner) addOther(x *Owner, fd int) {
	holders, complete, others := o.Holders+1, o.Complete, o.Others
	if x.Process.StartTime < o.Process.StartTime {
		first := *o
		first.FD, first.Others, first.Complete = 0, nil, false
		*o, x = *x, &first
		o.FD = fd
	}
	o.Holders, o.Complete, o.Others = holders, complete, others
	k, mine := x.Process.kind(), o.Process.kind()
	same := func(y *Owner) bool { return y.Process.kind() == k }
	o.Others = slices.DeleteFunc(o.Others, func(y *Owner) bool { return y.Process.kind() == mine })
	switch {
	case k == mine || slices.ContainsFunc(o.Others, same):
	case len(o.Others) >= maxOthers:
		o.Complete = false
	default:
		o.Others = append(o.Others, x)
	}
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
	Denied    int // processes whose descriptors or namespace we may not see, or that keep us waiting
	// Err is why the search ended before every process was asked: the context's
	// error, that /proc cannot be listed, or that too many processes keep us waiting.
	// What was found until then is right.
	Err error
}

// Attributor finds the holders of sockets. It remembers who had some before, so
// that asking for a known process's new connections costs a look at that
// process only. It keeps no descriptor and is not safe for concurrent use.
type Attributor struct {
	fs     FS
	pods   PodNames
	hints  map[int]netns.Key // who held a wanted socket, and of which namespace that was
	reader *reader           // kept between calls for its memory only
}

// maxHints bounds the memory; a node has some thousand processes.
const maxHints = 10_000

// NewAttributor returns an Attributor that reads fs.
func NewAttributor(fs FS) *Attributor {
	if fs.Stuck == nil {
		fs.Stuck = &Stuck{}
	}
	return &Attributor{fs: fs, pods: PodNames{FS: fs}, hints: map[int]netns.Key{}, reader: newReader(fs)}
}

// search is one Resolve under way.
type search struct {
	ctx     context.Context
	all     bool                 // every process is asked, though all sockets have a holder
	wanted  map[uint64]netns.Key // by inode
	found   map[uint64]Owner
	pending int // wanted and not found
	stats   Stats
}

func (s *search) over() bool {
	if s.stats.Err == nil {
		s.stats.Err = s.ctx.Err()
	}
	return s.pending == 0 && !s.all || len(s.wanted) == 0 || s.stats.Err != nil
}

// Resolve looks for a holder of each of the sockets with the given inodes (as
// sock_diag and /proc/<pid>/fd have them), all in one pass. It asks processes that
// had such sockets before, then those whose main thread is in one of the
// namespaces, and, for what is left, all others: a socket may come from another
// namespace than its holder is in. It stops when every socket has a holder, and when
// ctx ends. A socket that no process holds (an orphan, or one on its way through
// another socket) is not in the result and costs the whole pass: do not ask for it at
// every turn.
func (a *Attributor) Resolve(ctx context.Context, want map[netns.Key][]uint64) (map[uint64]Owner, Stats) {
	return a.resolve(ctx, want, false)
}

// ResolveAll looks for all holders of the sockets, and so asks every process of the
// node, some 3 us for each of their descriptors: the kernel does not tell how many
// processes hold a socket. See Owner.Complete for whether it came to its end.
func (a *Attributor) ResolveAll(ctx context.Context, want map[netns.Key][]uint64) (map[uint64]Owner, Stats) {
	found, stats := a.resolve(ctx, want, true)
	if stats.Err != nil {
		for ino, o := range found {
			o.Complete = false
			found[ino] = o
		}
	}
	return found, stats
}

func (a *Attributor) resolve(ctx context.Context, want map[netns.Key][]uint64, all bool) (map[uint64]Owner, Stats) {
	s := &search{ctx: ctx, all: all, wanted: map[uint64]netns.Key{}, found: map[uint64]Owner{}}
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

	a.reader.start(s)
	// Ourselves last: for microseconds we hold duplicates of what is others'.
	self := os.Getpid()
	var hinted []int
	asked := map[int]bool{}
	for pid, ns := range a.hints {
		if _, ok := want[ns]; ok && pid != self {
			hinted = append(hinted, pid)
			asked[pid] = true
		}
	}
	a.scan(s, hinted)
	if s.over() {
		return s.found, s.stats
	}

	var same, others, last []int
	walk, err := a.fs.walk(ctx, func(pid int, ns netns.Key) {
		switch {
		case asked[pid]:
			return
		case pid == self:
			last = append(last, pid)
			return
		}
		if _, ok := want[ns]; ok {
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
	a.scan(s, slices.Concat(same, others))
	// Only what nobody else has is ours.
	if s.all = false; !s.over() {
		a.scan(s, last)
	}
	return s.found, s.stats
}

// scan reads the descriptors of processes until nothing is pending.
func (a *Attributor) scan(s *search, pids []int) {
	for i := 0; i < len(pids) && !s.over(); i++ {
		ctx, r, rest, theirs, all := s.ctx, a.reader, pids[i:], make([]holding, len(pids)-i), s.all
		done, err := a.fs.query(ctx, rest, func(dir, i int, alive func()) {
			if (r.missing > 0 || all) && ctx.Err() == nil {
				theirs[i] = r.read(ctx, dir, rest[i], alive)
			}
		})
		for n := range done {
			a.merge(s, rest[n], &theirs[n])
		}
		if err != nil {
			s.stats.Err = err
			return
		}
		if i += done; i < len(pids) {
			s.met(errStuck)
			delete(a.hints, pids[i])
			a.reader = newReader(a.fs) // the other one is stuck, too
			a.reader.start(s)
		}
	}
}

// merge adds what a process was seen holding to what is found.
func (a *Attributor) merge(s *search, pid int, h *holding) {
	if h.read {
		s.stats.Scanned++
	}
	s.stats.FDs += h.fds
	var owner *Owner // shared by all sockets that have it among their others
	for _, hit := range h.hits {
		if owner == nil {
			owner = &Owner{Process: *h.process, Workload: ParseWorkload(h.process.Cgroup), Holders: 1}
			owner.PodNamespace, owner.PodName, _ = a.pods.Lookup(owner.Workload.PodUID, time.Now())
		}
		a.remember(pid, s.wanted[hit.inode])
		if known, ok := s.found[hit.inode]; ok {
			if pid == os.Getpid() {
				known.Holders++ // by a duplicate perhaps, which makes us no holder
			} else {
				known.addOther(owner, hit.fd)
			}
			s.found[hit.inode] = known
			continue
		}
		first := *owner
		first.FD, first.Complete = hit.fd, s.all
		s.found[hit.inode] = first
		s.stats.Found++
		s.pending--
	}
	if h.err != nil {
		s.met(h.err)
		delete(a.hints, pid)
	}
}

// holding is what a process was seen holding.
type holding struct {
	read    bool // its descriptors, wholly or in part
	fds     int
	hits    []hit    // wanted sockets, each once
	process *Process // if there is a hit
	err     error
}

type hit struct {
	inode uint64
	fd    int
}

// reader reads the descriptors of processes, on a goroutine that a process may
// hold: then it must not be used elsewhere any more.
type reader struct {
	fs      FS
	wanted  map[uint64]netns.Key // shared, and not changed any more
	seenBy  map[uint64]int       // inode to the process that was last seen holding it
	missing int                  // wanted and not seen

	direntBuf []byte
	linkBuf   []byte
	name      []byte

	sockets uint64 // the mount that all sockets are on; 0 if not asked yet
}

func newReader(fs FS) *reader {
	return &reader{
		fs:        fs,
		direntBuf: make([]byte, direntBuffer),
		// "socket:[4294967295]"; longer links are no sockets. The first four lines
		// of an fdinfo have at most 80 bytes.
		linkBuf: make([]byte, 128),
		name:    make([]byte, 0, 32),
	}
}

// start makes r look for what s has not found.
func (r *reader) start(s *search) {
	r.wanted, r.seenBy, r.missing = s.wanted, map[uint64]int{}, s.pending
	for ino, o := range s.found {
		r.seenBy[ino] = o.Process.PID
	}
}

// read reads the descriptors of one process.
func (r *reader) read(ctx context.Context, proc, pid int, alive func()) (h holding) {
	inode := r.linkInode
	dir, err := r.openBelow(proc, pid, "/fd")
	if denied(err) {
		// It belongs to its user alone, and CAP_DAC_READ_SEARCH opens more than
		// we should want. CAP_SYS_PTRACE opens the next one, since Linux 5.14.
		inode = r.infoInode
		dir, err = r.openBelow(proc, pid, "/fdinfo")
	}
	if err != nil {
		h.err = err
		return h
	}
	defer sys.Close(dir)
	h.read = true
	err = eachNumber(dir, r.direntBuf, func(fd int) bool {
		h.fds++
		if h.fds%1024 == 0 {
			alive() // there are processes with a million
			if ctx.Err() != nil {
				return false
			}
		}
		ino, ok, err := inode(dir, fd)
		if err != nil {
			h.err = err
			return false
		}
		if !ok {
			return true
		}
		if _, ok := r.wanted[ino]; !ok {
			return true
		}
		last, seen := r.seenBy[ino]
		if seen && last == pid {
			return true // a second descriptor of the same process
		}
		if h.process == nil { // read below dir: of this very process
			p, err := processBeside(dir, pid)
			if err != nil {
				h.err = err
				return false
			}
			h.process = &p
		}
		if !seen {
			r.missing--
		}
		r.seenBy[ino] = pid
		h.hits = append(h.hits, hit{ino, fd})
		return true
	})
	if err != nil {
		h.err = err
	}
	return h
}

// openBelow opens a directory of a process.
func (r *reader) openBelow(proc, pid int, name string) (int, error) {
	r.name = append(strconv.AppendInt(r.name[:0], int64(pid), 10), name...)
	return sys.Openat(proc, string(r.name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// linkInode is the inode of the socket that a descriptor is, by the link in the
// process's fd directory. Closed meanwhile is none.
func (r *reader) linkInode(dir, fd int) (ino uint64, ok bool, err error) {
	r.name = strconv.AppendInt(r.name[:0], int64(fd), 10)
	n, err := unix.Readlinkat(dir, string(r.name), r.linkBuf)
	if err != nil {
		return 0, false, nil
	}
	ino, ok = parseSocketLink(r.linkBuf[:n])
	return ino, ok, nil
}

// infoInode is the same by the process's fdinfo directory, which costs three calls
// instead of one.
func (r *reader) infoInode(dir, fd int) (ino uint64, ok bool, err error) {
	if r.sockets == 0 {
		if r.sockets, err = r.fs.socketMount(); err != nil {
			return 0, false, err
		}
	}
	r.name = strconv.AppendInt(r.name[:0], int64(fd), 10)
	f, err := sys.Openat(dir, string(r.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if denied(err) {
			return 0, false, err
		}
		return 0, false, nil // closed meanwhile
	}
	defer sys.Close(f)
	n, err := unix.Read(f, r.linkBuf[:cap(r.linkBuf)])
	if denied(err) {
		return 0, false, err
	}
	mount, ino := parseFDInfo(r.linkBuf[:max(n, 0)])
	return ino, ino != 0 && mount == r.sockets, nil
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
	dir, err := sys.Openat(fds, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Process{}, err
	}
	defer sys.Close(dir)
	return readProcess(dir, pid)
}

func (a *Attributor) remember(pid int, ns netns.Key) {
	if len(a.hints) >= maxHints {
		clear(a.hints) // only speed is lost
	}
	a.hints[pid] = ns
}

// socketMount is the id of the kernel's own mount on which all sockets are. Other
// files have inode numbers, too, some of them those of sockets.
func (f FS) socketMount() (uint64, error) {
	fd, err := sys.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot make a socket: %w", err)
	}
	defer sys.Close(fd)
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
