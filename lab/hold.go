package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HoldLock has the kernel take the lock of a TCP socket of this process, as a send does
// whose memory cannot be read just now: from a file on a server that is gone, say. The
// lock is held until release is called. It needs CAP_SYS_PTRACE.
func HoldLock(fd int) (release func() error, err error) {
	// The constants are those of include/uapi/linux/userfaultfd.h.
	const (
		api         = 0xc018aa3f // UFFDIO_API
		register    = 0xc020aa00 // UFFDIO_REGISTER
		version     = 0xaa       // UFFD_API
		modeMissing = 1          // UFFDIO_REGISTER_MODE_MISSING
	)
	uffd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("cannot open userfaultfd: %w", errno)
	}
	faults := os.NewFile(uffd, "userfaultfd")
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot map memory: %w", err), faults.Close())
	}
	give := func(err error) error { return errors.Join(err, faults.Close(), unix.Munmap(memory)) }
	hello := [3]uint64{version}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uffd, api, uintptr(unsafe.Pointer(&hello))); errno != 0 {
		return nil, give(fmt.Errorf("cannot use userfaultfd: %w", errno))
	}
	span := [4]uint64{uint64(uintptr(unsafe.Pointer(unsafe.SliceData(memory)))), uint64(len(memory)), modeMissing}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uffd, register, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return nil, give(fmt.Errorf("cannot watch memory: %w", errno))
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// Whatever becomes of it: the memory is there again once the watch ends.
		_, _ = unix.Write(fd, memory[:1])
	}()
	// The fault is told when the lock is held.
	var told [32]byte
	if _, err := faults.Read(told[:]); err != nil {
		return nil, give(fmt.Errorf("cannot wait for the fault: %w", err))
	}
	runtime.KeepAlive(memory)
	return func() error {
		err := faults.Close() // lets the send go on
		<-sent
		return errors.Join(err, unix.Munmap(memory))
	}, nil
}
