package api

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/verdict"
)

// peer is the process at the other end of a connection, as it was when it
// connected.
type peer struct {
	scope v1.Scope
	admin bool // it may act
	pid   int
	uid   uint32
	comm  string // its own word, escaped
	cgrp  string
	// pod and container are its cgroup's, space its network namespace if that is
	// not the host's: what makes a connection its own.
	pod, container string
	space          verdict.NS
	// podNamespace, podName and unit are what a config may call it, "" where it has none.
	podNamespace, podName, unit string
	// guest is whose account it is on: the pod, the container, or the user.
	guest string
	why   string // why its scope is not the host, for the log
}

// podNames is for all connections.
type podNames struct {
	sync.Mutex
	proc.PodNames
}

// event is the peer in an event.
func (p *peer) event() event.Peer {
	return event.Peer{PID: p.pid, UID: p.uid, Comm: p.comm, Cgroup: p.cgrp}
}

// identifier finds out the processes and pods of peers.
type identifier struct {
	fs    proc.FS
	pods  *podNames
	group int
	host  netns.Key
	mine  netns.Key // our own network namespace, the host's but in some containers
	// user and pid are the inodes of our own namespaces of these kinds.
	user, pid uint64
	// self is our own container, "" on the host: a shell in it is the
	// operator's.
	self string
}

func newIdentifier(fs proc.FS, group int) (identifier, error) {
	id := identifier{fs: fs, group: group, pods: &podNames{PodNames: proc.PodNames{FS: fs}}}
	me, err := fs.Process(os.Getpid())
	if err != nil {
		return id, fmt.Errorf("cannot tell peers apart: %w", err)
	}
	if id.host, err = fs.NetNS(1); err != nil {
		// As netns.Finder does it: right for a service on the host.
		id.host = me.NetNS
	}
	w := proc.ParseWorkload(me.Cgroup)
	id.mine, id.self = me.NetNS, w.ContainerID
	if id.user, id.pid, err = id.spaces(os.Getpid()); err != nil {
		return id, fmt.Errorf("cannot tell peers apart: %w", err)
	}
	return id, nil
}

// spaces are the inodes of a process's user and process namespaces.
func (id *identifier) spaces(pid int) (user, process uint64, err error) {
	dir := cmp.Or(id.fs.Proc, "/proc") + "/" + strconv.Itoa(pid) + "/ns/"
	var st unix.Stat_t
	if err := unix.Stat(dir+"user", &st); err != nil {
		return 0, 0, err
	}
	user = st.Ino
	if err := unix.Stat(dir+"pid", &st); err != nil {
		return 0, 0, err
	}
	return user, st.Ino, nil
}

// identify finds out what is at the other end. Whatever cannot be found out makes
// the peer see less.
func (id *identifier) identify(c *net.UnixConn) *peer {
	p := &peer{scope: v1.ScopeMinimal, guest: "nobody"}
	raw, err := c.SyscallConn()
	if err != nil {
		p.why = err.Error()
		return p
	}
	if err := raw.Control(func(fd uintptr) { err = id.inspect(p, int(fd)) }); err != nil {
		p.why = err.Error()
	}
	if err != nil {
		p.why = err.Error()
		p.scope, p.admin = v1.ScopeMinimal, false
	}
	return p
}

var errRaced = errors.New("it has ended")

func (id *identifier) inspect(p *peer, fd int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	p.pid, p.uid = int(cred.Pid), cred.Uid
	p.guest = "uid " + strconv.FormatUint(uint64(p.uid), 10)
	if p.pid <= 0 {
		return errors.New("it is in a process namespace that we cannot see into")
	}
	// The descriptor stands for the process that connected. As long as that is
	// there, its number means no other process.
	pidfd, err := sys.PeerPidfd(fd)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 6.5
		pidfd, err = sys.PidfdOpen(p.pid, 0)
	}
	if err != nil {
		return err
	}
	defer sys.Close(pidfd)
	who, err := id.fs.Process(p.pid)
	if err != nil {
		return err
	}
	user, process, spacesErr := id.spaces(p.pid)
	if again, err := id.fs.Process(p.pid); err != nil || again.StartTime != who.StartTime {
		return errRaced
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return errRaced
	}
	p.comm, p.cgrp = proc.Safe(who.Comm), proc.Safe(who.Cgroup)
	if who.NetNS == (netns.Key{}) || who.Cgroup == "" || spacesErr != nil {
		return errors.New("its namespaces or its cgroup are hidden from us")
	}
	w := proc.ParseWorkload(who.Cgroup)
	if w.PodUID == "" {
		p.unit = w.Unit // of a pod it is the runtime's
	} else {
		id.pods.Lock()
		p.podNamespace, p.podName, _ = id.pods.Lookup(w.PodUID, time.Now())
		id.pods.Unlock()
	}
	if who.NetNS != id.host {
		p.space = verdict.NS(who.NetNS.Inode)
		// The cookie is of the socket. Who makes one in the host's namespace, which
		// a pod may be in, and then goes into a new one must not get all that is the
		// host's.
		if space, err := socketSpace(fd); err == nil && space != who.NetNS {
			return errors.New("its socket is of another network namespace than it is in")
		} else if cookie, cookieErr := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil && cookieErr == nil {
			p.space = verdict.NS(cookie)
		}
	}
	// Containers within ours (a node that is one) have namespaces of their own.
	own := id.self != "" && w.ContainerID == id.self && who.NetNS == id.mine && process == id.pid
	switch {
	case own:
		p.scope, p.space = v1.ScopeHost, 0
	case w.PodUID != "":
		p.scope, p.pod, p.why = v1.ScopePod, w.PodUID, "it is in pod "+w.PodUID
		p.guest = "pod " + w.PodUID
	case w.ContainerID != "":
		p.scope, p.container, p.why = v1.ScopePod, w.ContainerID, "it is in container "+w.ContainerID
		p.guest = "container " + w.ContainerID
	case p.space != 0:
		p.scope, p.why = v1.ScopePod, "it is in a network namespace that is not the host's"
		p.guest = "namespace " + strconv.FormatUint(uint64(p.space), 10)
	case user != id.user:
		p.scope, p.why = v1.ScopePod, "it is in a user namespace that is not ours"
	case process != id.pid:
		// A container in the host's network whose cgroup does not show it.
		p.scope, p.why = v1.ScopePod, "it is in a process namespace that is not ours"
	default:
		p.scope = v1.ScopeHost
	}
	if p.scope == v1.ScopeHost && user == id.user {
		p.admin = p.uid == 0 || id.group >= 0 && id.member(fd, cred)
	}
	return nil
}

// socketSpace is the network namespace of the peer's socket, whose that of the
// connection is. It takes CAP_NET_ADMIN.
func socketSpace(fd int) (netns.Key, error) {
	ns, err := sys.SocketNetNS(fd)
	if err != nil {
		return netns.Key{}, err
	}
	defer sys.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return netns.Key{}, err
	}
	return netns.Key{Dev: st.Dev, Inode: st.Ino}, nil
}

// member says whether the peer is in the group that may act.
func (id *identifier) member(fd int, cred *unix.Ucred) bool {
	if int64(cred.Gid) == int64(id.group) {
		return true
	}
	groups, err := sys.PeerGroups(fd)
	return err == nil && slices.Contains(groups, uint32(id.group))
}
