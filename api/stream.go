package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/sys"
)

const (
	heartbeatEvery = 15 * time.Second
	// silentFor is how long a reader may take nothing while there is something
	// for him.
	silentFor = time.Minute
	// chunk is how much is written to a stream before others have their turn.
	chunk = 32 << 10
	// sendBuffer is asked of the kernel for each stream, which takes twice as
	// much: what a reader that does not read costs there, beside its place in
	// the ring.
	sendBuffer = 8 << 10
	// sweep is the pause between two looks at all streams for heartbeats and
	// those that are silent.
	sweep = time.Second
	// longestRest bounds the pause after a round of writing. Rounds and rests
	// together stay well below what a subscriber should ever wait.
	longestRest = 20 * time.Millisecond
)

// position is how far a stream has come.
type position struct {
	stage stage
	found int    // findings of the snapshot that were written
	after uint64 // the last event that was looked at
}

type stage uint8

const (
	atHello stage = iota
	atMode
	atFindings
	atEvents // and, where syncAt is reached, synced
	atSynced // events that follow
)

// stream is one subscriber: a descriptor and a place.
type stream struct {
	fd     int
	tag    int32 // tells it from others that had the descriptor before
	peer   *peer
	see    *sight
	filter filter
	sse    bool
	snap   *event.Snapshot // until it is written
	syncAt uint64
	position

	rest    []byte    // of a line that was written in part
	stuck   bool      // the kernel takes no more for now
	since   time.Time // since when it is stuck
	written time.Time // when something was written last
}

// shard is one writer with its streams. All but in, poked and the two
// descriptors belongs to the goroutine that runs it.
type shard struct {
	server *Server
	poll   *os.File // epoll
	wake   *os.File // eventfd, in poll
	poked  atomic.Bool

	mu   sync.Mutex
	in   []*stream // new ones
	over bool      // the client has gone

	open    atomic.Int64    // streams, see published
	pods    atomic.Int64    // of them those of pods, see lookForPods
	reach   *reach          // that the streams of pods were brought up to date with
	streams map[int]*stream // by descriptor
	tags    int32
	cache   []*event.Record // read last, so that streams side by side read once
	buf     []byte
	marks   []mark
}

// mark says where a stream stands once the buffer is written up to end.
type mark struct {
	end int
	at  position
}

func newShard(s *Server) (*shard, error) {
	ep, err := sys.EpollCreate(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a writer of streams: %w", err)
	}
	// So that the runtime waits for it as for any other descriptor, without
	// keeping a thread.
	if err := unix.SetNonblock(ep, true); err != nil {
		sys.Close(ep)
		return nil, fmt.Errorf("cannot make a writer of streams: %w", err)
	}
	ev, err := sys.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		sys.Close(ep)
		return nil, fmt.Errorf("cannot make a writer of streams: %w", err)
	}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, ev, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(ev)}); err != nil {
		sys.Close(ep)
		sys.Close(ev)
		return nil, fmt.Errorf("cannot make a writer of streams: %w", err)
	}
	sh := &shard{
		server: s, poll: os.NewFile(uintptr(ep), "epoll"), wake: os.NewFile(uintptr(ev), "eventfd"),
		streams: map[int]*stream{}, buf: make([]byte, 0, 2*chunk),
	}
	return sh, nil
}

// close lets go of a shard that does not run.
func (sh *shard) close() {
	sh.poll.Close()
	sh.wake.Close()
}

// poke has the writer look for news. It never blocks: an eventfd takes as many
// as will ever be.
func (sh *shard) poke() {
	if sh.poked.CompareAndSwap(false, true) {
		_, _ = sh.wake.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// add hands a stream over; false says that the writer has ended.
func (sh *shard) add(st *stream) bool {
	sh.mu.Lock()
	if sh.over {
		sh.mu.Unlock()
		return false
	}
	sh.in = append(sh.in, st)
	sh.mu.Unlock()
	sh.poke()
	return true
}

// run writes streams until ctx ends.
func (sh *shard) run(ctx context.Context) {
	defer sh.close()
	defer context.AfterFunc(ctx, sh.poke)()
	hub := sh.server.opt.Hub
	var head uint64 // of the last round
	var next time.Time
	nextSweep := time.Now().Add(sweep)
	events := make([]unix.EpollEvent, 128)
	for ctx.Err() == nil {
		now := time.Now()
		if now.After(nextSweep) {
			nextSweep = now.Add(sweep)
			sh.sweep(now)
		}
		sh.admit()
		until := nextSweep
		if h := hub.Head(); h != head {
			if now.Before(next) {
				until = next
			} else {
				head = h
				for _, st := range sh.streams {
					if !st.stuck {
						sh.write(st, head, now)
					}
				}
				// A rest after each round lets events gather that come in
				// quick succession: with many streams each write costs more
				// than the line that it carries.
				took := time.Since(now)
				next = now.Add(took + min(2*took, longestRest))
			}
		}
		n := sh.wait(events, until)
		for _, e := range events[:n] {
			sh.happened(&e, hub.Head())
		}
	}
	sh.mu.Lock()
	sh.over = true
	sh.mu.Unlock()
	sh.admit()
	for _, st := range sh.streams {
		sh.bye(st, "redisguard is stopping")
	}
}

// wait waits for something to happen, until then at the latest.
func (sh *shard) wait(events []unix.EpollEvent, until time.Time) (n int) {
	if err := sh.poll.SetReadDeadline(until); err != nil {
		return 0
	}
	raw, err := sh.poll.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Read(func(fd uintptr) bool {
		n, err = unix.EpollWait(int(fd), events, 0)
		return n != 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	return max(n, 0)
}

// happened takes in what epoll tells of a stream, or of the wake-up.
func (sh *shard) happened(e *unix.EpollEvent, head uint64) {
	st := sh.streams[int(e.Fd)]
	if st == nil || st.tag != e.Pad {
		if e.Pad == 0 {
			// In this order: a poke that comes in between is not written, but
			// what it is about is there before the next look.
			if raw, err := sh.wake.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) { _, _ = unix.Read(int(fd), make([]byte, 8)) })
			}
			sh.poked.Store(false)
		}
		return
	}
	if e.Events&(unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) != 0 {
		sh.server.counts.lost.Add(1)
		sh.end(st)
		return
	}
	if e.Events&unix.EPOLLIN != 0 {
		// A subscriber has nothing to say.
		sh.server.counts.garbage.Add(1)
		sh.bye(st, "something was sent on an event stream")
		return
	}
	if e.Events&unix.EPOLLOUT != 0 && st.stuck {
		st.stuck = false
		sh.write(st, head, time.Now())
	}
}

// admit takes in the new streams.
func (sh *shard) admit() {
	sh.mu.Lock()
	in := sh.in
	sh.in = nil
	sh.mu.Unlock()
	now := time.Now()
	for _, st := range in {
		sh.tags++
		if sh.tags <= 0 {
			sh.tags = 1 // 0 is the wake-up's
		}
		st.tag = sh.tags
		sh.streams[st.fd] = st
		sh.open.Store(int64(len(sh.streams)))
		if !st.see.all {
			sh.pods.Add(1)
		}
		raw, err := sh.poll.SyscallConn()
		if err == nil {
			cerr := raw.Control(func(ep uintptr) {
				err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_ADD, st.fd, &unix.EpollEvent{
					Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(st.fd), Pad: st.tag,
				})
			})
			err = errors.Join(err, cerr)
		}
		if err != nil {
			sh.server.opt.Log.Warn("cannot serve an event stream", "error", err)
			sh.end(st)
			continue
		}
		sh.write(st, sh.server.opt.Hub.Head(), now)
	}
}

// sweep sends heartbeats, ends streams whose readers do not read, and takes in what pods may
// see by now.
func (sh *shard) sweep(now time.Time) {
	head := sh.server.opt.Hub.Head()
	r := sh.server.reach.Load()
	news := r != sh.reach
	sh.reach = r
	for _, st := range sh.streams {
		if news && !st.see.all {
			st.see.look(st.peer, r)
		}
		switch {
		case st.stuck && now.Sub(st.since) > silentFor:
			sh.server.counts.silent.Add(1)
			sh.bye(st, "nothing was read for "+silentFor.String())
		case st.stuck:
			// A reader that has fallen out of the ring is told when it reads again, but
			// need not be kept until then.
			if _, err := sh.server.opt.Hub.Read(st.after, 0, nil); err != nil {
				sh.server.counts.slow.Add(1)
				sh.bye(st, tooSlow)
			}
		case now.Sub(st.written) >= sh.server.heartbeat:
			sh.write(st, head, now)
		}
	}
}

const tooSlow = "too slow: what follows is no longer there, begin again with a snapshot"

// write writes what a stream has not got yet, as much as its turn allows.
func (sh *shard) write(st *stream, head uint64, now time.Time) {
	for {
		gone := sh.fill(st, head, now)
		if len(sh.buf) == 0 {
			if gone {
				sh.server.counts.slow.Add(1)
				sh.bye(st, tooSlow)
			}
			return
		}
		n, err := unix.SendmsgN(st.fd, sh.buf, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != nil {
			n = 0
		}
		st.took(sh.buf, sh.marks, n)
		if st.stage > atFindings {
			st.snap = nil
		}
		if n > 0 {
			st.written, st.since = now, now
			sh.server.counts.bytes.Add(int64(n))
			sh.server.counts.lines.Add(int64(len(sh.marks)))
		}
		switch {
		case err == nil && n == len(sh.buf):
		case err == nil || errors.Is(err, unix.EAGAIN):
			if !st.stuck {
				st.stuck = true
				if n == 0 {
					st.since = now
				}
			}
			return
		case errors.Is(err, unix.EINTR):
		default:
			sh.server.counts.lost.Add(1)
			sh.end(st)
			return
		}
	}
}

// took moves a stream to where it stands after n bytes of buf.
func (st *stream) took(buf []byte, marks []mark, n int) {
	if n == 0 {
		return
	}
	begin := 0
	for _, m := range marks {
		if n < m.end {
			if n > begin {
				// This line has begun, so it will be ended: its rest is kept,
				// which is all that is ever kept for a stream.
				st.rest = append([]byte(nil), buf[n:m.end]...)
				st.position = m.at
			}
			return
		}
		st.position, st.rest = m.at, nil
		begin = m.end
	}
}

// fill puts the next lines of a stream into the buffer. It says whether the ring
// has gone round before all was written.
func (sh *shard) fill(st *stream, head uint64, now time.Time) (gone bool) {
	sh.buf, sh.marks = sh.buf[:0], sh.marks[:0]
	at := st.position
	add := func(t string, cursor string, json []byte) {
		if st.sse {
			if cursor != "" {
				sh.buf = append(append(append(sh.buf, "id: "...), cursor...), '\n')
			}
			sh.buf = append(append(append(sh.buf, "event: "...), t...), "\ndata: "...)
			sh.buf = append(append(sh.buf, json...), "\n\n"...)
		} else {
			sh.buf = append(append(sh.buf, json...), '\n')
		}
	}
	done := func() { sh.marks = append(sh.marks, mark{len(sh.buf), at}) }
	if len(st.rest) > 0 {
		sh.buf = append(sh.buf, st.rest...)
		done()
	}
	hub := sh.server.opt.Hub
	cursor := func() string { return event.Cursor{Epoch: hub.Epoch(), Seq: at.after}.String() }
	for len(sh.buf) < chunk {
		switch at.stage {
		case atHello:
			at.stage = atMode
			scope := v1.ScopeHost
			if !st.see.all {
				scope = v1.ScopePod
			}
			add("hello", "", line(v1.Event{
				Type: v1.Hello, Time: wireTime(now), Version: sh.server.version, Scope: scope,
				HeartbeatMs: sh.server.heartbeat.Milliseconds(),
			}))
		case atMode:
			at.stage = atFindings
			if st.snap == nil || st.snap.Mode == nil || !st.filter.wants(event.ModeChanged, st.filter.endpoint) {
				continue
			}
			add("snapshot", "", line(v1.Event{Type: v1.Snapshot, Time: wireTime(now), Mode: wireMode(st.snap.Mode)}))
		case atFindings:
			if st.snap == nil || at.found >= len(st.snap.Open) {
				at.stage = atEvents
				continue
			}
			f := st.snap.Open[at.found]
			at.found++
			if !st.filter.wants(f.Code, f.Opened.Endpoint) || !st.see.finding(f) {
				continue
			}
			form := st.see.form()
			add("snapshot", "", f.Wire(form, func(f *event.Finding) []byte {
				w := wireFinding(f, form)
				return line(v1.Event{Type: v1.Snapshot, Time: w.Since, Finding: &w})
			}))
		case atEvents:
			if at.after >= st.syncAt {
				at.stage = atSynced
				c := cursor()
				add("synced", c, line(v1.Event{Type: v1.Synced, Time: wireTime(now), Cursor: c}))
				break
			}
			fallthrough
		default:
			if at.after >= head {
				if len(sh.buf) == 0 && now.Sub(st.written) >= sh.server.heartbeat {
					c := cursor()
					add("heartbeat", c, line(v1.Event{Type: v1.Heartbeat, Time: wireTime(now), Cursor: c}))
					done()
				}
				if len(sh.marks) == 0 {
					st.position = at // what it does not want to see is behind it
				}
				return false
			}
			r, err := sh.after(at.after)
			if err != nil {
				return true
			}
			at.after++
			if !st.filter.wants(r.Type, r.Endpoint) || !st.see.event(&r.Event) {
				continue
			}
			form := st.see.form()
			add(string(r.Type), cursorFor(st, hub, r.Seq), r.Wire(form, func(e *event.Event) []byte { return line(wireEvent(e, hub.Epoch(), form)) }))
		}
		done()
	}
	return false
}

// cursorFor is what SSE writes beside the line.
func cursorFor(st *stream, hub *event.Hub, seq uint64) string {
	if !st.sse {
		return ""
	}
	return event.Cursor{Epoch: hub.Epoch(), Seq: seq}.String()
}

// after is the event after a number, from the cache if possible: streams go side by
// side.
func (sh *shard) after(after uint64) (*event.Record, error) {
	if n := len(sh.cache); n > 0 && after >= sh.cache[0].Seq-1 && after < sh.cache[n-1].Seq {
		return sh.cache[after+1-sh.cache[0].Seq], nil
	}
	clear(sh.cache)
	var err error
	if sh.cache, err = sh.server.opt.Hub.Read(after, 256, sh.cache[:0]); err != nil || len(sh.cache) == 0 {
		return nil, event.ErrGone
	}
	return sh.cache[0], nil
}

// bye ends a stream with a last word, if it can still be said.
func (sh *shard) bye(st *stream, why string) {
	b := line(v1.Event{Type: v1.Bye, Time: wireTime(time.Now()), Text: why})
	if st.sse {
		b = slices.Concat([]byte("event: bye\ndata: "), b, []byte("\n\n"))
	} else {
		b = append(b, '\n')
	}
	_, _ = unix.SendmsgN(st.fd, append(slices.Clone(st.rest), b...), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	sh.end(st)
}

// end closes a stream.
func (sh *shard) end(st *stream) {
	delete(sh.streams, st.fd)
	sh.open.Store(int64(len(sh.streams)))
	if !st.see.all {
		sh.pods.Add(-1)
	}
	sys.Close(st.fd)
	sh.server.guests.unsubscribe(st.peer)
}
