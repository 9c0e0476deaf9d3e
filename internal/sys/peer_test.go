package sys

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPeerGroups(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	got, err := PeerGroups(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	mine, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range mine {
		if !slices.Contains(got, uint32(g)) {
			t.Errorf("group %d of %v is not in %v", g, mine, got)
		}
	}
	if len(got) != len(mine) {
		t.Errorf("got %v, want %v", got, mine)
	}
	if _, err := PeerGroups(-1); err == nil {
		t.Error("no error for a descriptor that is none")
	}
}
