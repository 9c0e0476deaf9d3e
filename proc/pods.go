package proc

import (
	"os"
	"strings"
	"time"
)

// PodNames knows the pods of this node by their uid, from the names of the
// kubelet's log directories, so without asking the API server. The zero value
// with FS set is ready. It is not safe for concurrent use.
type PodNames struct {
	FS FS

	pods   map[string]podName
	looked time.Time
}

type podName struct{ namespace, name string }

const (
	// podRefresh is the shortest pause between two looks at the directory: a uid
	// that is never found must not cost one each time.
	podRefresh = 3 * time.Second
	// maxPodDirs bounds the look; a node has some hundred pods.
	maxPodDirs = 20_000
)

// Lookup returns namespace and name of the pod with that uid. A uid that is not
// known yet makes it look at the directory again, if now is 3 s or more after the
// last look. It is not found where the kubelet's logs cannot be read, or are
// kept elsewhere.
func (p *PodNames) Lookup(uid string, now time.Time) (namespace, name string, ok bool) {
	if uid == "" {
		return "", "", false
	}
	pod, ok := p.pods[uid]
	// A clock that was set back must not end the looking.
	if age := now.Sub(p.looked); !ok && (p.looked.IsZero() || age >= podRefresh || age < 0) {
		p.looked = now
		p.pods = p.FS.podNames()
		pod, ok = p.pods[uid]
	}
	return pod.namespace, pod.name, ok
}

// podNames reads the directory. A uid that stands there under two names belongs
// to neither.
func (f FS) podNames() map[string]podName {
	pods := map[string]podName{}
	dir, err := os.Open(f.podLogs())
	if err != nil {
		return pods // no Kubernetes here
	}
	defer dir.Close()
	twice := map[string]bool{}
	for seen := 0; seen < maxPodDirs; {
		names, err := dir.Readdirnames(500)
		for _, n := range names {
			uid, pod, ok := parsePodDir(n)
			if !ok {
				continue
			}
			if other, known := pods[uid]; known && other != pod {
				twice[uid] = true
			}
			pods[uid] = pod
		}
		seen += len(names)
		if err != nil { // io.EOF at the end; what another error hides is looked for again
			break
		}
	}
	for uid := range twice {
		delete(pods, uid)
	}
	return pods
}

// parsePodDir reads "<namespace>_<name>_<uid>". None of the three can hold an
// underscore; characters that Kubernetes does not allow make it none of ours.
func parsePodDir(s string) (uid string, pod podName, ok bool) {
	namespace, rest, ok1 := strings.Cut(s, "_")
	name, uid, ok2 := strings.Cut(rest, "_")
	if !ok1 || !ok2 || !isPodUID(uid) || !isDNSName(namespace, 63, false) || !isDNSName(name, 253, true) {
		return "", podName{}, false
	}
	return uid, podName{namespace: namespace, name: name}, true
}

// isDNSName accepts what Kubernetes takes for a label or, with dots, a subdomain.
func isDNSName(s string, most int, dots bool) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		inner := i > 0 && i < len(s)-1 && (c == '-' || c == '.' && dots)
		if !letter && !inner {
			return false
		}
	}
	return true
}
