// Package tasks bounds what is done beside a loop, each task on a goroutine of its own.
package tasks

import "sync"

// Group is a number of tasks at most. Make one with New.
type Group struct {
	wg    sync.WaitGroup
	slots chan struct{}
}

// New returns a group of at most so many at once.
func New(most int) *Group { return &Group{slots: make(chan struct{}, most)} }

// Run does fn; false says that there are too many.
func (t *Group) Run(fn func()) bool {
	select {
	case t.slots <- struct{}{}:
	default:
		return false
	}
	t.wg.Go(func() {
		defer func() { <-t.slots }()
		fn()
	})
	return true
}

// Wait waits for all of them.
func (t *Group) Wait() { t.wg.Wait() }
