package sys

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"
)

func TestParseCPUs(t *testing.T) {
	for text, want := range map[string][]int{"0": {0}, "0-3": {0, 1, 2, 3}, "0-1,8": {0, 1, 8}} {
		if got, err := parseCPUs(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "x", "3-1", "-1", "0-99999999", "0,,1"} {
		if got, err := parseCPUs(bad); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}

// sampleRecord is a PERF_RECORD_SAMPLE of thread tid with n bytes of raw data.
func sampleRecord(tid, n int) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, perfRecordSample)
	b = ne.AppendUint16(b, 0)
	b = ne.AppendUint16(b, uint16(8+20+n))
	b = ne.AppendUint32(b, 41)
	b = ne.AppendUint32(b, uint32(tid))
	b = ne.AppendUint64(b, 43)
	b = ne.AppendUint32(b, uint32(n))
	return append(b, make([]byte, n)...)
}

// ring is a TraceRing over memory of the test's, as the kernel would have filled
// it from position tail on.
func ring(tail uint64, data []byte) *TraceRing {
	page := os.Getpagesize()
	r := &TraceRing{mem: make([]byte, 2*page)}
	r.data = r.mem[page:]
	for i, b := range data {
		r.data[(tail+uint64(i))%uint64(len(r.data))] = b
	}
	binary.NativeEndian.PutUint64(r.mem[perfHeadAt:], tail+uint64(len(data)))
	binary.NativeEndian.PutUint64(r.mem[perfTailAt:], tail)
	return r
}

func TestTraceRingWrapsAround(t *testing.T) {
	size := uint64(os.Getpagesize())
	for _, tail := range []uint64{0, size - 8, size - 24, 5*size - 16} {
		rec := sampleRecord(42, 20) // 48 bytes: a multiple of 8, as the kernel's are
		r := ring(tail, append(slices.Clone(rec), rec...))
		n := 0
		if lost := r.Read(func(s *Sample) {
			if s.PID != 41 || s.TID != 42 || s.At != 43 || len(s.Raw) != 20 {
				t.Errorf("tail %d: %+v", tail, s)
			}
			n++
		}); lost != 0 || n != 2 {
			t.Errorf("tail %d: %d records, %d lost", tail, n, lost)
		}
	}
}

func FuzzTraceRing(f *testing.F) {
	f.Add(uint64(0), sampleRecord(42, 20))
	f.Add(uint64(4088), sampleRecord(42, 20))
	f.Add(uint64(8), make([]byte, 16))
	f.Fuzz(func(t *testing.T, tail uint64, data []byte) {
		if tail > 1<<40 || len(data) > os.Getpagesize() {
			return
		}
		ring(tail&^7, data).Read(func(*Sample) {})
	})
}
