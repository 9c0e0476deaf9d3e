package tcpstate

import (
	"time"

	"github.com/redisguard/redisguard/netns"
)

// Visit is what is to be done with a socket in a namespace.
type Visit struct {
	NS netns.Namespace
	// IDs are looked at, with TCP_INFO, into Results, which must be as long.
	IDs     []ID
	Results []Result
	// Do is done instead, if it is set.
	Do func(*Socket) error
	// Err is what came of it, beside the errors in Results.
	Err error
}

// Worker makes visits for a caller that must not wait for them for ever: TCP_INFO is read
// and connections are destroyed under the socket's lock, which an application can hold
// for as long as it likes; see netns.Worker. The zero value is ready. It is for one
// goroutine at a time, and must be closed.
type Worker struct {
	threads netns.Worker
	socket  *Socket
}

// Make makes the visits in their order, and returns how many are done. If one takes
// longer than patience (up to half as long again) it is abandoned: then done is its
// index, none after it is made, and free is closed when it returns after all. Until then
// its visit, and all that it was given to write to, belong to it.
func (w *Worker) Make(visits []Visit, patience time.Duration) (done int, free <-chan struct{}) {
	if w.socket == nil {
		w.socket = new(Socket)
	}
	s := w.socket
	done, free, err := w.threads.Make(len(visits), func(t *netns.Thread, i int) {
		v := &visits[i]
		v.Err = t.Visit(v.NS, func() error {
			if err := s.Open(); err != nil {
				return err
			}
			defer s.Close()
			if v.Do != nil {
				return v.Do(s)
			}
			return s.Get(v.IDs, v.Results)
		})
	}, patience)
	if free != nil {
		w.socket = nil // it is the abandoned one's
	}
	if err != nil {
		for i := range visits {
			visits[i].Err = err
		}
	}
	return done, free
}

// Close ends the worker's goroutine.
func (w *Worker) Close() { w.threads.Close() }
