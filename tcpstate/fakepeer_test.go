package tcpstate

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/sys"
)

// fakeKernel puts the other end of a socket pair where the kernel would be. What
// it says is queued before the question is asked, which is no difference to the
// client: it never waits.
func fakeKernel(t *testing.T, datagrams ...[]byte) *Socket {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range datagrams {
		if _, err := unix.Write(fds[1], d); err != nil {
			t.Fatal(err)
		}
	}
	s := &Socket{nl: sys.NetlinkFromFD(fds[0])}
	t.Cleanup(func() { s.Close(); unix.Close(fds[1]) })
	return s
}

// nlmsg builds a netlink message.
func nlmsg(typ uint16, seq uint32, body []byte) []byte {
	b := appendHeader(nil, typ, 0, seq)
	b = append(b, body...)
	ne.PutUint32(b, uint32(len(b)))
	return b
}

func nlerr(typ uint16, seq uint32, errno syscall.Errno) []byte {
	return nlmsg(typ, seq, ne.AppendUint32(nil, uint32(-int32(errno))))
}

// record builds an inet_diag_msg of 10.0.0.1:40000 -> 10.0.0.2:6379 with the
// given cookie and a tcp_info of infoLen bytes whose total_retrans is 7.
func record(cookie uint64, infoLen int) []byte {
	b := make([]byte, diagMsgLen)
	b[0], b[1], b[2], b[3] = familyInet, byte(Established), byte(TimerRetransmit), 3
	b[4], b[5], b[6], b[7] = 40000>>8, 40000&0xff, 6379>>8, 6379&0xff
	copy(b[8:], []byte{10, 0, 0, 1})
	copy(b[24:], []byte{10, 0, 0, 2})
	ne.PutUint32(b[44:], uint32(cookie))
	ne.PutUint32(b[48:], uint32(cookie>>32))
	ne.PutUint32(b[68:], 4711)
	if infoLen >= 0 {
		info := make([]byte, infoLen)
		if infoLen >= 104 {
			ne.PutUint32(info[100:], 7)
		}
		if infoLen >= 232 {
			ne.PutUint32(info[228:], 1234)
		}
		b = ne.AppendUint16(b, uint16(nlaHdrLen+infoLen))
		b = ne.AppendUint16(b, attrInfo)
		b = append(b, info...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

var someID = ID{
	Local:  netip.MustParseAddrPort("10.0.0.1:40000"),
	Remote: netip.MustParseAddrPort("10.0.0.2:6379"),
	Cookie: 0x1_0000_0005,
}

func TestDumpSurvivesWhatTheKernelMaySay(t *testing.T) {
	done := nlerr(nlmsgDone, 1, 0)
	rec := nlmsg(msgTCPDiag, 1, record(5, 280))
	for _, tc := range []struct {
		name  string
		in    [][]byte
		conns int
		err   string // "" is success
	}{
		{"records and done in one datagram", [][]byte{append(bytes.Clone(rec), done...)}, 1, ""},
		{"records over several datagrams, repeated", [][]byte{rec, rec, done}, 2, ""},
		{"noop in between", [][]byte{nlmsg(nlmsgNoop, 1, nil), rec, done}, 1, ""},
		{"error and never a done", [][]byte{nlerr(nlmsgError, 1, syscall.EBUSY)}, 0, "resource busy"},
		{"error in the middle", [][]byte{rec, nlerr(nlmsgError, 1, syscall.ENOMEM)}, 1, "cannot allocate"},
		{"done with an error", [][]byte{rec, nlerr(nlmsgDone, 1, syscall.EINVAL)}, 1, "invalid argument"},
		{"no diag in the kernel", [][]byte{nlerr(nlmsgError, 1, syscall.EOPNOTSUPP)}, 0, "not supported by this kernel"},
		{"not permitted", [][]byte{nlerr(nlmsgError, 1, syscall.EPERM)}, 0, "CAP_NET_ADMIN"},
		{"acknowledgement instead of a dump", [][]byte{nlerr(nlmsgError, 1, 0)}, 0, "acknowledgement"},
		{"no done", [][]byte{rec}, 1, "without its end"},
		{"nothing", nil, 0, "without its end"},
		{"answer to another request", [][]byte{nlmsg(msgTCPDiag, 9, record(5, 280))}, 0, "answer to request 9"},
		{"unknown type", [][]byte{nlmsg(99, 1, nil)}, 0, "unexpected type 99"},
		{"half a header", [][]byte{{1, 2, 3}}, 0, "shorter"},
		{"length below the header's", [][]byte{make([]byte, 16)}, 0, "shorter"},
		{"length past the datagram", [][]byte{rec[:len(rec)-8]}, 0, "shorter"},
		{"short record", [][]byte{nlmsg(msgTCPDiag, 1, make([]byte, diagMsgLen-1))}, 0, "71 bytes"},
		{"attribute past the end", [][]byte{nlmsg(msgTCPDiag, 1, append(record(5, -1), 200, 0, 2, 0))}, 0, "attribute"},
		{"attribute of length 0", [][]byte{nlmsg(msgTCPDiag, 1, append(record(5, -1), 0, 0, 2, 0))}, 0, "attribute"},
		{"unknown family", [][]byte{nlmsg(msgTCPDiag, 1, make([]byte, diagMsgLen))}, 0, "family 0"},
		{"error without its code", [][]byte{nlmsg(nlmsgError, 1, nil)}, 0, "without its code"},
		{"absurd error code", [][]byte{nlmsg(nlmsgError, 1, []byte{0, 0, 0, 0x80})}, 0, "no errno"},
		{"larger than the buffer", [][]byte{make([]byte, dumpBuffer+1)}, 0, "truncated"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fakeKernel(t, tc.in...)
			n := 0
			err := s.Dump(Filter{}, func(c *Connection) error { n++; return nil })
			if n != tc.conns {
				t.Errorf("%d connections, want %d", n, tc.conns)
			}
			if tc.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("got %v, want an error with %q", err, tc.err)
			}
			if s.nl.IsOpen() {
				t.Error("the socket stayed open after an error")
			}
		})
	}
}

// fields are all of Info that not every kernel has: how long they are, and their value.
var fields = map[Field]struct {
	size  int
	value func(*Info) uint64
}{
	FieldBytesAcked:    {8, func(i *Info) uint64 { return i.BytesAcked }},
	FieldBytesReceived: {8, func(i *Info) uint64 { return i.BytesReceived }},
	FieldSegsIn:        {4, func(i *Info) uint64 { return uint64(i.SegsIn) }},
	FieldNotSentBytes:  {4, func(i *Info) uint64 { return uint64(i.NotSentBytes) }},
	FieldDataSegsIn:    {4, func(i *Info) uint64 { return uint64(i.DataSegsIn) }},
	FieldDataSegsOut:   {4, func(i *Info) uint64 { return uint64(i.DataSegsOut) }},
	FieldDelivered:     {4, func(i *Info) uint64 { return uint64(i.Delivered) }},
	FieldSndWnd:        {4, func(i *Info) uint64 { return uint64(i.SndWnd) }},
}

// A structure of any length is read as far as it goes. What it lacks is not told, and
// what it has is read where the kernel puts it.
func TestInfoOfAnyLength(t *testing.T) {
	for n := range 300 {
		b := record(5, n)
		for i := range n {
			b[diagMsgLen+nlaHdrLen+i] = byte(i + 1)
		}
		info := b[diagMsgLen+nlaHdrLen:]
		var c Connection
		if err := parseConnection(b, &c); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		i := &c.Info
		if c.HasInfo != (n >= 104) || int(i.InfoLen) != n {
			t.Fatalf("%d bytes: %+v", n, c)
		}
		if c.HasInfo && (i.TotalRetrans != ne.Uint32(info[100:]) || i.Probes != 4 || i.Backoff != 5 ||
			i.RTO != time.Duration(ne.Uint32(info[8:]))*time.Microsecond || i.Unacked != ne.Uint32(info[24:])) {
			t.Errorf("%d bytes: %+v", n, i)
		}
		for f, field := range fields {
			if i.Has(f) != (n >= int(f)) {
				t.Errorf("%d bytes: has the field that ends at %d: %v", n, f, i.Has(f))
			}
			want := uint64(0)
			switch {
			case n < int(f):
			case field.size == 4:
				want = uint64(ne.Uint32(info[f-4:]))
			default:
				want = ne.Uint64(info[f-8:])
			}
			if got := field.value(i); got != want {
				t.Errorf("%d bytes: the field that ends at %d is %#x, want %#x", n, f, got, want)
			}
		}
	}
	b, c := record(5, 280), new(Connection)
	if n := testing.AllocsPerRun(100, func() { _ = parseConnection(b, c) }); n != 0 {
		t.Errorf("%v allocations for a record, want none", n)
	}
}

func TestGetSurvivesWhatTheKernelMaySay(t *testing.T) {
	two := []ID{someID, someID}
	answer := func(seq uint32) []byte { return nlmsg(msgSockDiag, seq, record(someID.Cookie, 280)) }
	for _, tc := range []struct {
		name string
		in   [][]byte
		err  string
		errs [2]error
	}{
		{"both, out of order", [][]byte{answer(2), answer(1)}, "", [2]error{nil, nil}},
		{"one gone", [][]byte{answer(1), nlerr(nlmsgError, 2, syscall.ENOENT)}, "", [2]error{nil, ErrGone}},
		{"another cookie in the answer", [][]byte{answer(1), nlmsg(msgSockDiag, 2, record(6, 280))}, "", [2]error{nil, ErrGone}},
		{"an answer is missing", [][]byte{answer(1)}, "answered 1 of 2", [2]error{nil, errNoAnswer}},
		{"no answer", nil, "answered 0 of 2", [2]error{errNoAnswer, errNoAnswer}},
		{"answer to nothing we asked", [][]byte{answer(3)}, "which was not asked", [2]error{errNoAnswer, errNoAnswer}},
		{"done instead of an answer", [][]byte{nlerr(nlmsgDone, 1, 0)}, "unexpected type 3", [2]error{errNoAnswer, errNoAnswer}},
		{"garbage", [][]byte{bytes.Repeat([]byte{0xff}, 64)}, "shorter", [2]error{errNoAnswer, errNoAnswer}},
		{"too long", [][]byte{make([]byte, 4096)}, "truncated", [2]error{errNoAnswer, errNoAnswer}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fakeKernel(t, tc.in...)
			out := make([]Result, 2)
			err := s.Get(two, out)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("got %v, want %q", err, tc.err)
			}
			for i, want := range tc.errs {
				if !errors.Is(out[i].Err, want) {
					t.Errorf("answer %d: %v, want %v", i, out[i].Err, want)
				}
			}
		})
	}
}

// A kernel without SOCK_DESTROY cannot be had here, so a fake one speaks.
func TestDestroyAnswers(t *testing.T) {
	for _, tc := range []struct {
		errno syscall.Errno
		want  error
	}{{0, nil}, {syscall.ENOENT, ErrGone}, {syscall.EOPNOTSUPP, ErrNotSupported}, {syscall.EPERM, ErrNotPermitted}} {
		s := fakeKernel(t, nlerr(nlmsgError, 1, tc.errno))
		errs := make([]error, 1)
		if err := s.Destroy([]ID{someID}, errs); err != nil || !errors.Is(errs[0], tc.want) {
			t.Errorf("errno %d: %v, %v, want %v", tc.errno, err, errs[0], tc.want)
		}
	}
}

func TestProbeJudgesTheKernel(t *testing.T) {
	for _, tc := range []struct {
		get, destroy          syscall.Errno
		wantDump, wantDestroy Support
	}{
		{syscall.ENOENT, syscall.ENOENT, Supported, Supported},
		{syscall.ENOENT, syscall.EOPNOTSUPP, Supported, NotSupported},
		{syscall.ENOENT, syscall.EPERM, Supported, NotSupported},
		{syscall.ENOENT, syscall.ENOMEM, Supported, CouldNotTell},
		{syscall.EOPNOTSUPP, syscall.EOPNOTSUPP, NotSupported, NotSupported},
	} {
		get, destroy := errorAnswer(tc.get), errorAnswer(tc.destroy)
		got := Capabilities{Dump: judge(exactError(get)), Destroy: judge(exactError(destroy))}
		if got.Dump.Support != tc.wantDump || got.Destroy.Support != tc.wantDestroy {
			t.Errorf("%v/%v: got %v, %v", tc.get, tc.destroy, got.Dump.Support, got.Destroy.Support)
		}
	}
}

func errorAnswer(errno syscall.Errno) message {
	return message{typ: nlmsgError, body: nlerr(nlmsgError, 1, errno)[nlmsgHdrLen:]}
}

func FuzzParseConnection(f *testing.F) {
	f.Add(record(5, 280))
	f.Add(record(5, -1))
	f.Add(record(5, 192))
	f.Add(record(5, 130)) // as no kernel has it
	f.Add(append(record(5, 100), 8, 0, attrULPInfo, 0, 9, 0, 1, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Connection
		if err := parseConnection(b, &c); err == nil && c.Remote.Addr().Is4In6() {
			t.Error("a v4-mapped address was not turned into v4")
		}
		for f, field := range fields {
			if v := field.value(&c.Info); v != 0 && (!c.HasInfo || !c.Info.Has(f)) {
				t.Errorf("the field that ends at %d is %d, and was not told", f, v)
			}
		}
	})
}

func FuzzDump(f *testing.F) {
	f.Add(append(nlmsg(msgTCPDiag, 1, record(5, 280)), nlerr(nlmsgDone, 1, 0)...))
	f.Add(nlerr(nlmsgError, 1, syscall.EBUSY))
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest := b; len(rest) > 0; {
			before := len(rest)
			m, r, err := nextMessage(rest)
			if err != nil {
				return
			}
			if len(r) >= before {
				t.Fatal("no progress: this would hang")
			}
			rest = r
			_ = m.errno()
			var c Connection
			_ = parseConnection(m.body, &c)
		}
	})
}
