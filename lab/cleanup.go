package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// journalDir holds, per lab, <prefix>.json (the journal) and <prefix>/ (the
// files of its servers).
const journalDir = "/run/redisguard-lab"

// owner identifies the process a lab belongs to. Pids are used again, and /run
// may survive a reboot: only the three together say that it is still the same
// process.
type owner struct {
	Boot  string `json:"boot"`
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/<pid>/stat
}

// entry is one line of a journal: exactly one of its fields is set. The first
// line of a journal is the owner. The kernel's identity of a thing stands in
// the journal before the thing gets a name, so whatever a crash leaves can be
// recognised, and nothing else is taken for it.
type entry struct {
	Owner   *owner        `json:"owner,omitempty"`
	Netns   *netnsEntry   `json:"netns,omitempty"`
	Process *processEntry `json:"process,omitempty"`
}

type netnsEntry struct {
	Name string `json:"name"`
	identity
}

type processEntry struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// journal appends what the lab makes. Lines are never taken back: an entry of
// something already removed matches nothing when it is cleaned up.
type journal struct {
	path string
	file *os.File
}

// openJournal cleans up after dead labs and then takes the prefix. A lock makes
// this one step: two processes cannot both find a prefix free.
func openJournal(prefix string) (*journal, error) {
	if err := os.MkdirAll(journalDir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make %s: %w", journalDir, err)
	}
	lock, err := os.OpenFile(filepath.Join(journalDir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lab lock: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("cannot take the lab lock: %w", err)
	}
	if err := cleanUpDead(); err != nil {
		return nil, err
	}
	me, err := self()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(journalDir, prefix+".json")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot make lab %s: a living process owns that prefix (see %s)", prefix, path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the lab's journal: %w", err)
	}
	j := &journal{path: path, file: f}
	if err := j.add(entry{Owner: &me}); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return j, nil
}

// add writes one entry with a single write, so that a crash leaves at most one
// torn last line, which stands for something not made yet.
func (j *journal) add(e entry) error {
	line, err := json.Marshal(e)
	if err == nil {
		_, err = j.file.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("cannot write the lab's journal: %w", err)
	}
	return nil
}

// remove ends the journal, once everything in it is gone.
func (j *journal) remove() error {
	return errors.Join(j.file.Close(), os.Remove(j.path))
}

// cleanUpDead removes what labs of dead owners have left, of any prefix. A
// journal goes last: if something in it cannot be removed, the next lab tries
// again.
func cleanUpDead() error {
	paths, err := filepath.Glob(filepath.Join(journalDir, "*.json"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // a lab beside this one was closed since the listing
		}
		if err != nil {
			return fmt.Errorf("cannot read the journal of a lab: %w", err)
		}
		entries := readJournal(bufio.NewScanner(f))
		f.Close()
		if len(entries) > 0 && entries[0].Owner != nil && entries[0].Owner.alive() {
			continue
		}
		if err := cleanUp(path, entries); err != nil {
			return fmt.Errorf("cannot clean up after the dead lab of %s: %w", path, err)
		}
	}
	return nil
}

func cleanUp(path string, entries []entry) error {
	sameBoot := len(entries) > 0 && entries[0].Owner != nil && entries[0].Owner.Boot == bootID()
	// Processes first: they keep their namespaces alive.
	for _, e := range entries {
		if e.Process != nil && sameBoot {
			if err := killIdentified(*e.Process); err != nil {
				return err
			}
		}
	}
	// A name may have been used more than once by that lab (a host removed and
	// made again): any of the recorded identities will do.
	byName := make(map[string][]identity)
	for _, e := range entries {
		if e.Netns != nil {
			byName[e.Netns.Name] = append(byName[e.Netns.Name], e.Netns.identity)
		}
	}
	for name, ids := range byName {
		if !validName(name) {
			return fmt.Errorf("the journal names %q, which is no name a lab gives", name)
		}
		err := removeName(filepath.Join(netnsDir, name), ids...)
		if err != nil && !errors.Is(err, errForeign) {
			return err
		}
	}
	if err := os.RemoveAll(strings.TrimSuffix(path, ".json")); err != nil {
		return err
	}
	return os.Remove(path)
}

// readJournal reads the entries up to the first line that is not one.
func readJournal(lines *bufio.Scanner) []entry {
	var entries []entry
	for lines.Scan() {
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			break
		}
		entries = append(entries, e)
	}
	return entries
}

// killIdentified ends a process if it still is the recorded one. The pidfd is
// taken before the look: it cannot come to mean another process afterwards.
func killIdentified(p processEntry) error {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot open process %d: %w", p.Pid, err)
	}
	defer unix.Close(fd)
	if now, err := readStat(p.Pid); err != nil || now.start != p.Start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot kill process %d: %w", p.Pid, err)
	}
	// Readable once it has ended.
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func self() (owner, error) {
	st, err := readStat(os.Getpid())
	if err != nil {
		return owner{}, err
	}
	return owner{Boot: bootID(), Pid: os.Getpid(), Start: st.start}, nil
}

// alive is false for a zombie too: it does nothing any more.
func (o owner) alive() bool {
	st, err := readStat(o.Pid)
	return err == nil && st.start == o.Start && st.state != 'Z' && st.state != 'X' && o.Boot == bootID()
}

// bootID is "" where the kernel does not tell, which then matches itself.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// procStat is what the lab needs of /proc/<pid>/stat.
type procStat struct {
	state byte
	start uint64 // clock ticks since boot
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	st, err := parseStat(string(b))
	if err != nil {
		return procStat{}, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	return st, nil
}

// parseStat reads fields 3 and 22. The command in field 2 may hold spaces and
// parentheses; only the last ")" ends it.
func parseStat(stat string) (procStat, error) {
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(fields) < 20 {
		return procStat{}, errors.New("its stat line is too short")
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return procStat{state: fields[0][0], start: start}, err
}
