package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// Key is one tunable of a network namespace.
type Key int

// The keys, in the order in which they are shown and written.
const (
	Retries2        Key = iota // retransmissions of data before a connection fails
	KeepaliveTime              // silence before the first keepalive probe
	KeepaliveIntvl             // between two keepalive probes
	KeepaliveProbes            // unanswered keepalive probes before a connection fails
	SynRetries                 // retransmissions of a SYN before a connect fails
	RTOMax                     // cap of the doubling of the retransmission timeout
	OrphanRetries              // as Retries2, for sockets that no process holds any more
	FinTimeout                 // how long an orphan waits for the peer's FIN

	// What the calculator needs to know, and redisguard never writes.
	SynLinear // retransmissions of a SYN before the timeout begins to double
	RTOMin    // least retransmission timeout
	keys
)

// Def describes a key.
type Def struct {
	// Name is as sysctl(8) writes it.
	Name string
	// Unit of the number, empty for a count.
	Unit string
	// Least and Most are what we write. For times they are those of the socket
	// options of the same meaning (MAX_TCP_KEEPIDLE and its like in
	// include/net/tcp.h), since the kernel itself takes nearly anything here.
	Least, Most int
	// Default is what a new network namespace has: compiled in, see
	// tcp_sk_init in net/ipv4/tcp_ipv4.c.
	Default int
	// ReadOnly says that it is only looked at.
	ReadOnly bool
	// Since is the kernel that brought it, empty for those all kernels have.
	Since string
}

var defs = [keys]Def{
	Retries2:        {Name: "net.ipv4.tcp_retries2", Least: 1, Most: 255, Default: 15},
	KeepaliveTime:   {Name: "net.ipv4.tcp_keepalive_time", Unit: "s", Least: 1, Most: 32767, Default: 7200},
	KeepaliveIntvl:  {Name: "net.ipv4.tcp_keepalive_intvl", Unit: "s", Least: 1, Most: 32767, Default: 75},
	KeepaliveProbes: {Name: "net.ipv4.tcp_keepalive_probes", Least: 1, Most: 127, Default: 9},
	SynRetries:      {Name: "net.ipv4.tcp_syn_retries", Least: 1, Most: 127, Default: 6},
	RTOMax:          {Name: "net.ipv4.tcp_rto_max_ms", Unit: "ms", Least: 1000, Most: 120_000, Default: 120_000, Since: "6.15"},
	OrphanRetries:   {Name: "net.ipv4.tcp_orphan_retries", Least: 0, Most: 255, Default: 0},
	FinTimeout:      {Name: "net.ipv4.tcp_fin_timeout", Unit: "s", Least: 1, Most: 32767, Default: 60},
	SynLinear:       {Name: "net.ipv4.tcp_syn_linear_timeouts", Default: 4, ReadOnly: true, Since: "6.5"},
	RTOMin:          {Name: "net.ipv4.tcp_rto_min_us", Unit: "us", Default: 200_000, ReadOnly: true, Since: "6.11"},
}

// Keys are those that can be written.
func Keys() []Key {
	list := make([]Key, 0, keys)
	for k := range keys {
		if !defs[k].ReadOnly {
			list = append(list, k)
		}
	}
	return list
}

// Def describes the key.
func (k Key) Def() Def {
	if k < 0 || k >= keys {
		return Def{Name: fmt.Sprintf("invalid(%d)", int(k)), ReadOnly: true}
	}
	return defs[k]
}

func (k Key) String() string { return k.Def().Name }

// Short is the name without what all names have in common.
func (k Key) Short() string { return strings.TrimPrefix(k.String(), "net.ipv4.") }

// ParseKey finds a key that can be written by its name.
func ParseKey(name string) (Key, error) {
	for k := range keys {
		if defs[k].Name == name && !defs[k].ReadOnly {
			return k, nil
		}
	}
	return 0, fmt.Errorf("%.64q is no sysctl of ours", name)
}

// Check tells why v cannot be written.
func (k Key) Check(v int) error {
	d := k.Def()
	switch {
	case d.ReadOnly:
		return fmt.Errorf("%s is only looked at", d.Name)
	case v < d.Least || v > d.Most:
		return fmt.Errorf("%s = %d is out of range, which is %d to %d %s", d.Name, v, d.Least, d.Most, d.Unit)
	}
	return nil
}

// Values of a namespace. A key that is missing is not there in this kernel, or
// not wanted.
type Values map[Key]int

// FS is where the sysctls are.
type FS struct {
	// Root is the directory of net.*, by default /proc/sys/net or, where that is
	// read-only as in a container that is not privileged, /host/proc/sys/net if
	// it is there. Whichever it is, the kernel shows the values of the network
	// namespace of the thread that looks.
	Root string
}

// hostRoot is where our container manifests mount the host's /proc/sys/net.
const hostRoot = "/host/proc/sys/net"

func (f FS) root() string {
	if f.Root != "" {
		return f.Root
	}
	const usual = "/proc/sys/net"
	var st unix.Statfs_t
	if err := unix.Statfs(usual, &st); err != nil || st.Flags&unix.ST_RDONLY != 0 {
		if unix.Statfs(hostRoot, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC {
			return hostRoot
		}
	}
	return usual
}

func (f FS) path(k Key) string {
	return filepath.Join(f.root(), strings.ReplaceAll(strings.TrimPrefix(k.Def().Name, "net."), ".", "/"))
}

// Read returns the values of the network namespace that the calling thread is in.
func (f FS) Read() (Values, error) {
	v := make(Values, keys)
	for k := range keys {
		n, err := f.read(k)
		switch {
		case errors.Is(err, fs.ErrNotExist) && defs[k].Since != "":
			continue
		case err != nil:
			return nil, err
		}
		v[k] = n
	}
	return v, nil
}

func (f FS) read(k Key) (int, error) {
	// Small and fixed, where os.ReadFile would ask for the size and allocate.
	fd, err := sys.Open(f.path(k), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot read %s: %w", k, err)
	}
	defer sys.Close(fd)
	var buf [32]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, fmt.Errorf("cannot read %s: %w", k, err)
	}
	v, err := parseValue(buf[:n])
	if err != nil {
		return 0, fmt.Errorf("cannot read %s: %w", k, err)
	}
	return v, nil
}

// parseValue reads what the kernel has written: one number, one line.
func parseValue(b []byte) (int, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%.32q is no number", b)
	}
	return int(n), nil
}

// write sets a value and reads it back.
func (f FS) write(k Key, v int) error {
	if v < 0 || v > math.MaxInt32 {
		return fmt.Errorf("cannot write %s: %d is no value of it", k, v)
	}
	fd, err := sys.Open(f.path(k), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", k, err)
	}
	_, err = unix.Write(fd, strconv.AppendInt(nil, int64(v), 10))
	sys.Close(fd)
	if err != nil {
		return fmt.Errorf("cannot write %s = %d: %w", k, v, err)
	}
	have, err := f.read(k)
	if err != nil {
		return err
	}
	if have != v {
		return fmt.Errorf("cannot write %s = %d: the kernel made it %d", k, v, have)
	}
	return nil
}

// Writable says why nothing can be written in the namespace of the calling thread.
// It opens a file for writing, which the kernel allows or not, and writes nothing.
func (f FS) Writable() error {
	fd, err := sys.Open(f.path(Retries2), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", Retries2, err)
	}
	return sys.Close(fd)
}
