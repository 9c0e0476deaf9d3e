package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/redisguard/redisguard/internal/patient"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

const (
	// awayPatience is how long one namespace may take, before the traveller is given
	// up (up to half as long again). 20,000 looks take 60 ms.
	awayPatience = 200 * time.Millisecond
	// A connection that has held a traveller is not looked at for twice as long as it
	// did, within these bounds: a machine that was busy for a moment is forgiven soon.
	heldLeast = time.Second
	heldMost  = 30 * time.Second
	// maxHeldPerSpace is how many connections of a namespace may hold travellers. One
	// that has more is not looked at until there are fewer: it costs the others no
	// more time. Where maxHeld are held on the node, one is enough.
	maxHeldPerSpace = 3
	maxHeld         = 32
)

// errHeld: somebody does not let us at the socket.
var errHeld = errors.New("its process does not let the socket be reached")

// stop is what is to be done in a namespace.
type stop struct {
	ns  netns.Namespace
	do  func(*tcpstate.Socket) error
	err error
}

// travellers go into namespaces for somebody, one at a time, and wait there, in his
// place, for the locks of sockets; see tcpstate.Socket.Get.
type travellers struct{ now *traveller }

type traveller struct {
	runs   chan *patient.Run
	thread *netns.Thread
	socket tcpstate.Socket
	err    error // it has no thread
}

func newTraveller() *traveller {
	t := &traveller{runs: make(chan *patient.Run)}
	go func() {
		if t.thread, t.err = netns.NewThread(); t.err == nil {
			defer t.thread.Close()
		}
		for r := range t.runs {
			if !r.Do() {
				return // given up: there is another one by now
			}
		}
	}()
	return t
}

func (t *traveller) visit(s *stop) {
	if t.err != nil {
		s.err = t.err
		return
	}
	s.err = t.thread.Visit(s.ns, func() error {
		if err := t.socket.Open(); err != nil {
			return err
		}
		defer t.socket.Close()
		return s.do(&t.socket)
	})
}

// away does what is to be done at the stops, in their order. If it is held at one of
// them it returns how many are done, and a channel that is closed when it is free:
// until then, what that stop was given to write to belongs to it. None after it is
// done.
func (v *travellers) away(stops []stop) (done int, free <-chan struct{}) {
	if len(stops) == 0 {
		return 0, nil
	}
	if v.now == nil {
		v.now = newTraveller()
	}
	t := v.now
	r := patient.New(len(stops), func(i int) { t.visit(&stops[i]) })
	t.runs <- r
	if done = r.Await(context.Background(), awayPatience); done < len(stops) {
		v.now = nil
		return done, r.Ended()
	}
	if t.err != nil { // the next one may find a thread
		v.end()
	}
	return done, nil
}

func (v *travellers) end() {
	if v.now != nil {
		close(v.now.runs)
		v.now = nil
	}
}

// hold is why a connection is not looked at.
type hold struct {
	free  <-chan struct{}
	since time.Duration
	until time.Duration // once it is free
}

// heldUp notes that looking at these connections of a namespace did not return. At
// first each of them is looked at alone, until it is known which one it was, and that
// it was no accident; then the core is told to judge the others without it.
func (w *watcher) heldUp(sp *space, conns []*tracked, free <-chan struct{}) {
	if len(conns) > 1 || !conns[0].alone {
		sp.careful = true
		for _, t := range conns {
			t.alone = true
		}
		return
	}
	t := conns[0]
	if t.hold != nil {
		return
	}
	t.hold = &hold{free: free, since: monotonic()}
	sp.held++
	w.held = append(w.held, t)
	if t.arm.canary {
		w.nextArm = 0
	}
	w.s.log.Warn("a process holds the lock of its connection, which cannot be looked at", "namespace", sp.ns, "connection", describe(t))
	w.leaveOut(sp, t)
}

// leaveOut tells the core which connections of a namespace cannot be looked at, after
// something has changed about t.
func (w *watcher) leaveOut(sp *space, t *tracked) {
	most := maxHeldPerSpace
	if len(w.held) >= maxHeld {
		most = 1
	}
	if closed := sp.held >= most; closed != sp.closed {
		sp.closed = closed
		if closed {
			w.s.log.Warn("too many connections of a namespace cannot be looked at: none of it is for now", "namespace", sp.ns, "held", sp.held)
		}
		for _, x := range sp.conns {
			w.in.Held = append(w.in.Held, verdict.Held{Key: x.key, On: closed || x.hold != nil})
		}
		return
	}
	w.in.Held = append(w.in.Held, verdict.Held{Key: t.key, On: sp.closed || t.hold != nil})
}

// letGo looks which of those that were held up can be looked at again.
func (w *watcher) letGo(now time.Duration) {
	for i := 0; i < len(w.held); {
		t := w.held[i]
		h := t.hold
		if h.until == 0 {
			select {
			case <-h.free:
				h.until = now + min(max(heldLeast, 2*(now-h.since)), heldMost)
			default:
			}
		}
		if h.until == 0 || now < h.until {
			i++
			continue
		}
		w.held[i] = w.held[len(w.held)-1]
		w.held[len(w.held)-1] = nil
		w.held = w.held[:len(w.held)-1]
		t.hold = nil
		t.space.held--
		w.leaveOut(t.space, t)
	}
}
