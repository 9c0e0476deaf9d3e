package supervisor

import (
	"context"
	"errors"
	"time"

	"github.com/redisguard/redisguard/internal/patient"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/tcpstate"
)

const (
	// awayPatience is how long one namespace may take, before the traveller is given
	// up (up to half as long again). 20,000 looks take 60 ms.
	awayPatience = 300 * time.Millisecond
	// heldFor is how long a connection is not looked at after a traveller that it has
	// held is free again.
	heldFor = 30 * time.Second
	// maxHeldPerSpace is how many connections of a namespace may hold travellers. One
	// that has more is not looked at until there are fewer: it costs the others no
	// more time.
	maxHeldPerSpace = 3
)

// errHeld: somebody does not let us at the socket.
var errHeld = errors.New("its process does not let the socket be reached")

// stop is what is to be done in a namespace.
type stop struct {
	ns  netns.Namespace
	do  func(*tcpstate.Socket) error
	err error
}

// traveller goes into namespaces for the watcher, and waits there, in its place, for
// the locks of sockets; see tcpstate.Socket.Get.
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
// until then, what that stop was given to write to belongs to it.
func (w *watcher) away(stops []stop) (done int, free <-chan struct{}) {
	if len(stops) == 0 {
		return 0, nil
	}
	if w.traveller == nil {
		w.traveller = newTraveller()
	}
	t := w.traveller
	r := patient.New(len(stops), func(i int) { t.visit(&stops[i]) })
	t.runs <- r
	if done = r.Await(context.Background(), awayPatience); done < len(stops) {
		w.traveller = nil
		return done, r.Ended()
	}
	return done, nil
}

// hold is why a connection is not looked at.
type hold struct {
	free  <-chan struct{}
	until time.Duration // once it is free
}

// heldUp notes that looking at these connections of a namespace did not return. Of
// several, each is looked at alone until it is known which one it was; it is then as
// good as gone for the core, so that the others can be judged without it.
func (w *watcher) heldUp(sp *space, conns []*tracked, free <-chan struct{}) {
	if len(conns) > 1 {
		sp.careful = true
		for _, t := range conns {
			t.alone = true
		}
		return
	}
	t := conns[0]
	t.hold = &hold{free: free}
	sp.held++
	w.held = append(w.held, t)
	w.in.Gone = append(w.in.Gone, t.key)
	if t.arm.canary {
		w.nextArm = 0
	}
	w.s.log.Warn("a process holds the lock of its connection, which cannot be looked at", "namespace", sp.ns, "connection", describe(t))
}

// letGo looks which of those that were held up can be looked at again.
func (w *watcher) letGo(now time.Duration) {
	kept := w.held[:0]
	for _, t := range w.held {
		h := t.hold
		if h.until == 0 {
			select {
			case <-h.free:
				h.until = now + heldFor
			default:
			}
		}
		if h.until == 0 || now < h.until {
			kept = append(kept, t)
			continue
		}
		t.hold = nil
		t.space.held--
		if !t.forgotten {
			w.tell(t)
		}
	}
	clear(w.held[len(kept):])
	w.held = kept
}
