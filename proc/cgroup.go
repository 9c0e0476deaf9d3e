package proc

import (
	"bytes"
	"errors"
	"strings"
)

// ParseCgroup takes one path from /proc/<pid>/cgroup: where the process stands,
// in the words of the hierarchy that says most. That is systemd's own (v1 and
// hybrid layouts), else the unified one (v2), else one that container runtimes
// always fill, else any. Systemd's comes first since on a hybrid host a runtime
// may leave its containers' unified path at that of its own service.
//
// The path is relative to the reader's cgroup namespace: from inside a container
// it may begin with "/..".
func ParseCgroup(data []byte) (string, error) {
	const nothing = 100
	best, rank := "", nothing
	for line := range bytes.Lines(data) {
		_, rest, ok1 := bytes.Cut(bytes.TrimRight(line, "\n"), []byte(":"))
		controllers, path, ok2 := bytes.Cut(rest, []byte(":"))
		if !ok1 || !ok2 || len(path) == 0 || path[0] != '/' {
			continue
		}
		r := 1 // v2
		if len(controllers) > 0 {
			r = 4
			for c := range bytes.SplitSeq(controllers, []byte(",")) {
				switch string(c) {
				case "name=systemd":
					r = min(r, 0)
				case "memory":
					r = min(r, 2)
				case "pids", "cpu", "devices":
					r = min(r, 3)
				}
			}
		}
		if len(path) == 1 {
			r += nothing / 2 // the root says nothing, but is better than no path
		}
		if r < rank {
			// A zombie's cgroup may have been removed under it.
			best, rank = strings.TrimSuffix(string(path), " (deleted)"), r
		}
	}
	if rank == nothing {
		return "", errors.New("cannot parse cgroup: no line with a path")
	}
	return best, nil
}

// Kind is what a cgroup belongs to.
type Kind int

// The kinds. A pod's container is a KindPod with its ContainerID set; a
// KindContainer is one whose pod is not known or that has none.
const (
	KindNone Kind = iota
	KindUnit
	KindPod
	KindContainer
	KindSession
)

func (k Kind) String() string {
	switch k {
	case KindUnit:
		return "unit"
	case KindPod:
		return "pod"
	case KindContainer:
		return "container"
	case KindSession:
		return "session"
	default:
		return "none"
	}
}

// Workload is what a cgroup path says about its processes.
type Workload struct {
	Kind        Kind
	Unit        string // systemd unit or session scope, as systemd spells it (escaped)
	UserManager string // "user@1000.service" where Unit is one of a user's own units
	PodUID      string // with dashes, as the API has it
	ContainerID string // 64 hexadecimal digits
	Runtime     string // containerd, cri-o, docker, podman; "" if the path does not say
}

// ParseWorkload reads a cgroup path (of ParseCgroup). It goes from the root down
// and believes what it meets first: the upper levels are the system's, while
// the owner of a delegated cgroup may choose the names below it, "pod"
// included. Below a user's own systemd no pod is believed at all.
func ParseWorkload(path string) Workload {
	var w Workload
	relative, kubepods, docker := false, false, false
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "":
			continue
		case "..":
			relative = true // levels are missing; those below are still the system's
			continue
		}
		if w.PodUID != "" { // the level below the pod's is the container's
			w.ContainerID, w.Runtime = parseContainer(part)
			if isContainerID(part) {
				w.ContainerID = part
			}
			return w
		}
		if id, runtime := parseContainer(part); id != "" {
			return Workload{Kind: KindContainer, ContainerID: id, Runtime: runtime}
		}
		if isContainerID(part) {
			if docker { // /docker/<id>, the cgroupfs driver
				return Workload{Kind: KindContainer, ContainerID: part, Runtime: "docker"}
			}
			if relative && w == (Workload{}) { // /../<id>, a container beside ours
				return Workload{Kind: KindContainer, ContainerID: part}
			}
		}
		if w.UserManager == "" {
			if uid, rest := parsePod(part, kubepods || relative); uid != "" {
				w = Workload{Kind: KindPod, PodUID: uid}
				if rest != "" { // "...pod<uid>.slice:cri-containerd:<id>", all in one level
					w.ContainerID, w.Runtime = parseContainer(strings.ReplaceAll(rest, ":", "-"))
					return w
				}
				continue
			}
		}
		kubepods = kubepods || part == "kubepods"
		docker = part == "docker"
		w.addUnit(part)
	}
	if w.Unit == "" && w.UserManager != "" { // the user's systemd itself
		w.Kind, w.Unit, w.UserManager = KindUnit, w.UserManager, ""
	}
	return w
}

// addUnit takes in one level of the path if it is a unit's.
func (w *Workload) addUnit(part string) {
	if w.Unit != "" {
		return // below a unit come its own subdivisions
	}
	// systemd puts a "_" before names that the cgroup file system uses itself.
	unit := strings.TrimPrefix(part, "_")
	if !isUnit(unit) {
		return
	}
	switch {
	case strings.HasPrefix(unit, "user@") && strings.HasSuffix(unit, ".service") && w.UserManager == "":
		w.UserManager = unit // a systemd of its own, with units below
	case w.UserManager != "" && unit == "init.scope": // that systemd's own process
	case strings.HasPrefix(unit, "session-") && strings.HasSuffix(unit, ".scope") && w.UserManager == "":
		w.Kind, w.Unit = KindSession, unit
	default:
		w.Kind, w.Unit = KindUnit, unit
	}
}

// parsePod takes the pod's uid from one level, and what follows after a colon.
//
//	pod<uid>                                   cgroupfs driver, below kubepods
//	kubepods-burstable-pod<uid with _>.slice   systemd driver
//	kubelet-kubepods-pod<uid with _>.slice     the same below a kubelet.slice
func parsePod(part string, bare bool) (uid, rest string) {
	if raw, ok := strings.CutPrefix(part, "pod"); ok && bare {
		if isPodUID(raw) {
			return raw, ""
		}
		return "", ""
	}
	part, rest, _ = strings.Cut(part, ":")
	slice, ok := strings.CutSuffix(part, ".slice")
	if !ok || !strings.HasPrefix(slice, "kubepods-") && !strings.Contains(slice, "-kubepods-") {
		return "", ""
	}
	at := strings.LastIndex(slice, "-pod")
	if at < 0 {
		return "", ""
	}
	uid = strings.ReplaceAll(slice[at+len("-pod"):], "_", "-")
	if !isPodUID(uid) {
		return "", ""
	}
	return uid, rest
}

// parseContainer reads one level that names its runtime: docker-<id>.scope, or
// crio-<id> without the suffix under the cgroupfs driver. The monitors beside the
// containers (crio-conmon-<id>.scope) are none.
func parseContainer(part string) (id, runtime string) {
	name := strings.TrimSuffix(part, ".scope")
	at := strings.LastIndexByte(name, '-')
	if at < 0 || !isContainerID(name[at+1:]) {
		return "", ""
	}
	switch name[:at] {
	case "cri-containerd", "nerdctl":
		runtime = "containerd"
	case "crio":
		runtime = "cri-o"
	case "docker":
		runtime = "docker"
	case "libpod":
		runtime = "podman"
	default:
		return "", ""
	}
	return name[at+1:], runtime
}

func isContainerID(s string) bool { return len(s) == 64 && isHex(s) }

// isPodUID accepts a UUID, and the 32 digits that the kubelet gives to static
// pods.
func isPodUID(s string) bool {
	if len(s) == 32 {
		return isHex(s)
	}
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return false
	}
	return isHex(s[:8]) && isHex(s[9:13]) && isHex(s[14:18]) && isHex(s[19:23]) && isHex(s[24:])
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// isUnit reports whether s is a systemd unit's name of a kind that has processes.
func isUnit(s string) bool {
	dot := strings.LastIndexByte(s, '.')
	if dot < 1 || len(s) > 255 {
		return false
	}
	switch s[dot:] {
	case ".service", ".scope", ".socket", ".mount", ".swap":
	default:
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && strings.IndexByte(`:-_.\@`, c) < 0 {
			return false
		}
	}
	return true
}
