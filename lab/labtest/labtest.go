// Package labtest is what the tests of many packages share: a Main that fails a test
// binary which leaves a goroutine or a descriptor behind, and a few helpers. It
// knows nothing of the lab, whose tests use it too.
package labtest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vishvananda/netlink"

	"github.com/redisguard/redisguard/internal/sys"
)

// Main is the body of a TestMain: it ends the process with what Run returns.
func Main(m *testing.M, options ...goleak.Option) { os.Exit(Run(m, options...)) }

// Run runs the tests and returns the exit code: 1 if a goroutine or a descriptor is
// left that was not there before, having said which and what stack made it. A daemon
// that runs for months has neither to lose, and a leaked descriptor may pin the
// network namespace of a pod.
//
// Descriptors are looked for without a garbage collection, which would hide an
// os.File that was not closed. Options are about goroutines.
func Run(m interface{ Run() int }, options ...goleak.Option) (code int) {
	// The runtime makes an epoll and an eventfd for the first file that can wait, and
	// keeps them.
	r, w, err := os.Pipe()
	if err == nil {
		r.Close()
		w.Close()
	}
	before, err := sys.OpenDescriptors()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	sys.TraceDescriptors()
	code = m.Run()
	if code != 0 || fuzzing() {
		return code // a test that failed may have been unable to clear up
	}
	if err := goleak.Find(options...); err != nil {
		fmt.Fprintf(os.Stderr, "goroutines are left: %v\n", err)
		code = 1
	}
	left, err := leftDescriptors(before)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if len(left) > 0 {
		tell(os.Stderr, left)
		code = 1
	}
	return code
}

// fuzzing reports whether this is a fuzzer, which keeps pipes and files of its own.
func fuzzing() bool {
	f := flag.Lookup("test.fuzz")
	return f != nil && f.Value.String() != ""
}

// patience is how long a descriptor may take to be closed by a goroutine that no test
// waits for, such as one of net/http.
const patience = time.Second

// leftDescriptors are those that were not open before.
func leftDescriptors(before []sys.Descriptor) (left []sys.Descriptor, err error) {
	type identity struct {
		fd   int
		what string
	}
	had := map[identity]bool{}
	for _, d := range before {
		had[identity{d.FD, d.What}] = true
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		now, err := sys.OpenDescriptors()
		if err != nil {
			return nil, err
		}
		left = left[:0]
		for _, d := range now {
			if !had[identity{d.FD, d.What}] {
				left = append(left, d)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
	}
}

func tell(w io.Writer, left []sys.Descriptor) {
	fmt.Fprintf(w, "descriptors are left: %d\n", len(left))
	for _, d := range left {
		if d.Stack == "" {
			fmt.Fprintf(w, "descriptor %d, %s, made by os, net or the tests, not through internal/sys\n", d.FD, d.What)
			continue
		}
		fmt.Fprintf(w, "descriptor %d, %s, made by\n\t%s\n", d.FD, d.What, strings.ReplaceAll(strings.TrimSpace(d.Stack), "\n", "\n\t"))
	}
}

// Must ends the test if a call failed.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Must2 ends the test if a call failed, and else hands on its result:
// Must2(call())(t).
func Must2[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		Must(t, err)
		return v
	}
}

// Soon is a context for what takes milliseconds unless it is broken.
func Soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Eventually waits for a condition that has no event, for 10 s at most.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Within(t, 10*time.Second, what, ok)
}

// Within waits for a condition that has no event, for as long as it says.
func Within(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// LinkOf is the index and the link-local address of an interface of a host of a lab.
func LinkOf(t *testing.T, host interface{ Do(func() error) error }, name string) (index uint32, local netip.Addr) {
	t.Helper()
	Must(t, host.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		index = uint32(l.Attrs().Index)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
		for _, a := range addrs {
			if ip, _ := netip.AddrFromSlice(a.IP); ip.IsLinkLocalUnicast() {
				local = ip
			}
		}
		return err
	}))
	return index, local
}
