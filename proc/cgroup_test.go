package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	id1  = "5f2c1b7a9e0d4c3b8a6f5e4d3c2b1a09f8e7d6c5b4a392817060504030201000"
	id2  = "0011223344556677889900aabbccddeeff0011223344556677889900aabbccdd"
	uid1 = "8f6a3c1e-2b4d-4e5f-9a0b-1c2d3e4f5a6b"
	uid2 = "0f1e2d3c4b5a69788796a5b4c3d2e1f0" // of a static pod
)

// Each fixture is a /proc/<pid>/cgroup; the first line of the .want file beside
// it is the path, the second the workload.
func TestCgroupFixtures(t *testing.T) {
	files, err := filepath.Glob("testdata/cgroup/*.txt")
	if err != nil || len(files) < 15 {
		t.Fatalf("fixtures are missing: %d, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(strings.TrimSuffix(file, ".txt") + ".want")
			if err != nil {
				t.Fatal(err)
			}
			path, err := ParseCgroup(data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), path+"\n"+describe(ParseWorkload(path))+"\n"); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// describe lists what is set.
func describe(w Workload) string {
	out := []string{w.Kind.String()}
	for _, f := range []struct{ name, value string }{
		{"unit", w.Unit}, {"manager", w.UserManager}, {"pod", w.PodUID}, {"container", w.ContainerID}, {"runtime", w.Runtime},
	} {
		if f.value != "" {
			out = append(out, f.name+"="+f.value)
		}
	}
	return strings.Join(out, " ")
}

func TestParseWorkload(t *testing.T) {
	pod, static := strings.ReplaceAll(uid1, "-", "_"), uid2
	for _, test := range []struct{ name, path, want string }{
		{"root", "/", "none"},
		{"empty", "", "none"},
		{"slice only", "/system.slice", "none"},
		{"no systemd", "/process_api/bf57e0b39c20", "none"},

		{"unit", "/system.slice/redis-server.service", "unit unit=redis-server.service"},
		{"subdivided unit", "/system.slice/foo.service/workers/a.service", "unit unit=foo.service"},
		{"template", `/system.slice/system-redis.slice/redis@cache\x2da.service`, `unit unit=redis@cache\x2da.service`},
		{"escaped by systemd", "/system.slice/_cgroup.x.service", "unit unit=cgroup.x.service"},
		{"mount", `/system.slice/dev-hugepages.mount`, "unit unit=dev-hugepages.mount"},
		{"nspawn", "/machine.slice/systemd-nspawn@box.service/payload/system.slice/x.service", "unit unit=systemd-nspawn@box.service"},
		{"init", "/init.scope", "unit unit=init.scope"},
		{"odd characters", "/system.slice/a b.service", "none"},
		{"only a suffix", "/system.slice/.service", "none"},
		{"session", "/user.slice/user-1000.slice/session-3.scope", "session unit=session-3.scope"},
		{"unit of a user", "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "unit unit=foo.service manager=user@1000.service"},
		{"desktop application", `/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal-12.scope`, "unit unit=app-org.gnome.Terminal-12.scope manager=user@1000.service"},
		{"a user's systemd", "/user.slice/user-1000.slice/user@1000.service/init.scope", "unit unit=user@1000.service"},

		{"containerd, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + pod + ".slice/cri-containerd-" + id1 + ".scope",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=containerd"},
		{"containerd, guaranteed", "/kubepods.slice/kubepods-pod" + pod + ".slice/cri-containerd-" + id1 + ".scope",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=containerd"},
		{"containerd, kubelet.slice", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + pod + ".slice/cri-containerd-" + id1 + ".scope",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=containerd"},
		{"containerd, cgroupfs", "/kubepods/burstable/pod" + uid1 + "/" + id1, "pod pod=" + uid1 + " container=" + id1},
		{"guaranteed, cgroupfs", "/kubepods/pod" + uid1 + "/" + id1, "pod pod=" + uid1 + " container=" + id1},
		{"containerd, drivers mixed up", "/system.slice/containerd.service/kubepods-burstable-pod" + pod + ".slice:cri-containerd:" + id1,
			"pod pod=" + uid1 + " container=" + id1 + " runtime=containerd"},
		{"static pod", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + static + ".slice/cri-containerd-" + id1 + ".scope",
			"pod pod=" + static + " container=" + id1 + " runtime=containerd"},
		{"pod without container", "/kubepods/besteffort/pod" + uid1, "pod pod=" + uid1},
		{"CRI-O", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + pod + ".slice/crio-" + id1 + ".scope",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=cri-o"},
		{"CRI-O, nested", "/kubepods.slice/kubepods-pod" + pod + ".slice/crio-" + id1 + ".scope/container",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=cri-o"},
		{"CRI-O, cgroupfs", "/kubepods/burstable/pod" + uid1 + "/crio-" + id1, "pod pod=" + uid1 + " container=" + id1 + " runtime=cri-o"},
		{"CRI-O's monitor", "/kubepods.slice/kubepods-pod" + pod + ".slice/crio-conmon-" + id1 + ".scope", "pod pod=" + uid1},
		{"Docker in Kubernetes", "/kubepods.slice/kubepods-pod" + pod + ".slice/docker-" + id1 + ".scope",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=docker"},
		{"systemd in a pod", "/kubepods.slice/kubepods-pod" + pod + ".slice/cri-containerd-" + id1 + ".scope/system.slice/redis.service",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=containerd"},

		{"Docker, systemd", "/system.slice/docker-" + id1 + ".scope", "container container=" + id1 + " runtime=docker"},
		{"Docker, cgroupfs", "/docker/" + id1, "container container=" + id1 + " runtime=docker"},
		{"Docker, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id1 + ".scope", "container container=" + id1 + " runtime=docker"},
		{"kind, from its host", "/docker/" + id1 + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + pod + ".slice/cri-containerd-" + id2 + ".scope",
			"container container=" + id1 + " runtime=docker"},
		{"podman", "/machine.slice/libpod-" + id1 + ".scope/container", "container container=" + id1 + " runtime=podman"},
		{"podman, a pod of its own", "/machine.slice/machine-libpod_pod_" + id2 + ".slice/libpod-" + id1 + ".scope", "container container=" + id1 + " runtime=podman"},
		{"podman, cgroupfs", "/libpod_parent/libpod-" + id1, "container container=" + id1 + " runtime=podman"},
		{"podman, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id1 + ".scope", "container container=" + id1 + " runtime=podman"},
		{"podman's monitor", "/machine.slice/libpod-conmon-" + id1 + ".scope", "unit unit=libpod-conmon-" + id1 + ".scope"},
		{"Docker's daemon", "/system.slice/docker.service", "unit unit=docker.service"},

		{"seen from a container, another pod", "/../../kubepods-besteffort-pod" + pod + ".slice/cri-containerd-" + id1 + ".scope",
			"pod pod=" + uid1 + " container=" + id1 + " runtime=containerd"},
		{"seen from a container, cgroupfs", "/../../pod" + uid1 + "/" + id1, "pod pod=" + uid1 + " container=" + id1},
		{"seen from a container, a sibling", "/../cri-containerd-" + id1 + ".scope", "container container=" + id1 + " runtime=containerd"},
		{"seen from a container, a bare sibling", "/../" + id1, "container container=" + id1},
		{"seen from a container, the host", "/../../../../system.slice/redis-server.service", "unit unit=redis-server.service"},

		// What a workload may write below its own level.
		{"forged pod below a container", "/kubepods/pod" + uid1 + "/" + id1 + "/kubepods/pod" + uid2 + "/" + id2, "pod pod=" + uid1 + " container=" + id1},
		{"forged pod of a user", "/user.slice/user-1000.slice/user@1000.service/kubepods/pod" + uid1 + "/" + id1, "unit unit=user@1000.service"},
		{"forged slice of a user", "/user.slice/user-1000.slice/user@1000.service/kubepods-pod" + pod + ".slice/x.service", "unit unit=x.service manager=user@1000.service"},
		{"pod without kubepods", "/pod" + uid1 + "/" + id1, "none"},
		{"no uid", "/kubepods/burstable/podcast/" + id1, "none"},
		{"short id", "/kubepods/pod" + uid1 + "/abc", "pod pod=" + uid1},
		{"upper case id", "/docker/" + strings.ToUpper(id1), "none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := describe(ParseWorkload(test.path)); got != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.path, got, test.want)
			}
		})
	}
}

func TestParseCgroupChoice(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"v2", "0::/a\n", "/a"},
		{"hybrid", "2:memory:/m\n1:name=systemd:/s\n0::/u\n", "/s"},
		{"hybrid, systemd unused", "2:memory:/m\n1:name=systemd:/\n0::/u\n", "/u"},
		{"hybrid, v2 unused", "2:memory:/m\n1:name=systemd:/s\n0::/\n", "/s"},
		{"systemd unused", "5:foo:/f\n3:cpu,cpuacct:/c\n2:memory:/m\n1:name=systemd:/\n0::/\n", "/m"},
		{"any", "5:foo:/f\n0::/\n", "/f"},
		{"all at the root", "2:memory:/\n0::/\n", "/"},
		{"colons in the path", "0::/a.slice:cri-containerd:x\n", "/a.slice:cri-containerd:x"},
		{"removed under a zombie", "0::/system.slice/a.service (deleted)\n", "/system.slice/a.service"},
		{"no newline at the end", "0::/a", "/a"},
		{"junk between", "junk\n:\n0::\n0::relative\n0::/a\n", "/a"},
	} {
		if got, err := ParseCgroup([]byte(test.text)); err != nil || got != test.want {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
	}
	for _, text := range []string{"", "\n", "0:", "a\nb", "0::relative"} {
		if got, err := ParseCgroup([]byte(text)); err == nil {
			t.Errorf("%q: accepted as %q", text, got)
		}
	}
}

func FuzzParseCgroup(f *testing.F) {
	for _, seed := range []string{"0::/\n", "12:pids:/docker/" + id1 + "\n1:name=systemd:/x\n", "0::/a (deleted)"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path, err := ParseCgroup(data)
		if (err == nil) != strings.HasPrefix(path, "/") || strings.Contains(path, "\n") {
			t.Fatalf("%q, %v", path, err)
		}
	})
}

func FuzzParseWorkload(f *testing.F) {
	for _, seed := range []string{"/", "/../../kubepods/pod" + uid1 + "/" + id1, "/system.slice/a@b.service", "/user.slice/user@1.service/x.scope", "/k-kubepods-pod" + uid2 + ".slice:crio:" + id2} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		w := ParseWorkload(path)
		if w.PodUID != "" && !isPodUID(w.PodUID) || w.ContainerID != "" && !isContainerID(w.ContainerID) ||
			w.Unit != "" && !isUnit(w.Unit) || w.UserManager != "" && !isUnit(w.UserManager) {
			t.Fatalf("unfit for output: %+v", w)
		}
		if (w.PodUID != "") != (w.Kind == KindPod) || (w.Kind == KindContainer) && w.ContainerID == "" ||
			(w.Unit != "") != (w.Kind == KindUnit || w.Kind == KindSession) || (w.Kind == KindNone) != (w == Workload{}) {
			t.Fatalf("contradicts itself: %+v", w)
		}
	})
}
