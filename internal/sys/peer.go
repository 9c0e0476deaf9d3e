package sys

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PeerGroups are the supplementary groups of the process that connected a Unix
// socket, as they were then (SO_PEERGROUPS, Linux 4.13).
func PeerGroups(fd int) ([]uint32, error) {
	list := make([]uint32, 32)
	for {
		size := uint32(len(list) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return list[:min(int(size/4), len(list))], nil
		case errors.Is(errno, unix.ERANGE) && int(size/4) > len(list) && size < 1<<20:
			list = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
