package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParsePodDir(t *testing.T) {
	for dir, want := range map[string]podName{
		"kube-system_etcd-a.example_" + uid2: {"kube-system", "etcd-a.example"},
		"shop_cart-0_" + uid1:                {"shop", "cart-0"},
	} {
		if uid, pod, ok := parsePodDir(dir); !ok || pod != want || !strings.HasSuffix(dir, uid) {
			t.Errorf("%s: %v %v", dir, pod, ok)
		}
	}
	for _, dir := range []string{
		"", "_", "__", "a_b", "a_b_c", "_b_" + uid1, "a__" + uid1, "a_b_c_" + uid1, "A_b_" + uid1, "a.b_c_" + uid1,
		"a_b\n_" + uid1, "a_\x1b[2J_" + uid1, "a_-b_" + uid1, "a_b-_" + uid1, "a_b_" + strings.ToUpper(uid1),
		"a_b_" + uid1 + "x", strings.Repeat("a", 64) + "_b_" + uid1, "a_" + strings.Repeat("b", 254) + "_" + uid1,
	} {
		if uid, pod, ok := parsePodDir(dir); ok {
			t.Errorf("%q: taken for %v %s", dir, pod, uid)
		}
	}
}

func FuzzParsePodDir(f *testing.F) {
	f.Add("shop_cart-0_" + uid1)
	f.Add("__")
	f.Fuzz(func(t *testing.T, s string) {
		if uid, pod, ok := parsePodDir(s); ok && pod.namespace+"_"+pod.name+"_"+uid != s {
			t.Fatalf("%q: %v %s", s, pod, uid)
		}
	})
}

func TestPodNames(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "pods")
	names := PodNames{FS: FS{PodLogs: logs}}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	expect := func(at time.Duration, uid, want string) {
		t.Helper()
		namespace, name, ok := names.Lookup(uid, now.Add(at))
		if got := namespace + "/" + name; ok != (want != "/") || got != want {
			t.Errorf("after %v: %s %v, want %s", at, got, ok, want)
		}
	}
	mkdir := func(name string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(logs, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	expect(0, uid1, "/") // no Kubernetes
	expect(0, "", "/")
	mkdir("shop_cart-0_" + uid1)
	expect(podRefresh-1, uid1, "/") // looked a moment ago
	expect(podRefresh, uid1, "shop/cart-0")
	mkdir("shop_web_" + uid2)
	expect(podRefresh+1, uid1, "shop/cart-0")
	expect(2*podRefresh, uid2, "shop/web")
	expect(0, strings.Repeat("0", 32), "/") // the clock went back: it looks
	expect(1, uid2, "shop/web")
	mkdir("other_name_" + uid2) // two names for one uid
	expect(3*podRefresh, strings.Repeat("0", 32), "/")
	expect(3*podRefresh, uid2, "/")
	expect(3*podRefresh, uid1, "shop/cart-0")
}
