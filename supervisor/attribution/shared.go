package attribution

import (
	"time"

	"github.com/redisguard/redisguard/verdict"
)

const (
	// refreshEvery is how often the holders of all connections are looked for anew while
	// [exclude] names anything: a process forks, or sends a socket to another, when it
	// likes, and the kernel tells nobody.
	refreshEvery = 15 * time.Second
	// maxShared bounds what waits for that; the rest keeps the answers it has.
	maxShared = 100_000
)

// shared are the connections of which it is to be found out who else has them. It is
// pure.
type shared struct {
	// open are those of which not every process was asked, and known those of which all
	// were, to be asked again; since refreshed.
	open, known map[verdict.ConnKey]*Subject
	refreshed   time.Duration
}

// due adds to a batch, for which every process will be asked, what else is due for that.
// What is gone by now is not worth more than a look (see inspect), and comes back no more.
func (s *shared) due(batch []*Subject, now time.Duration) []*Subject {
	for _, sub := range batch {
		delete(s.open, sub.Key)
		delete(s.known, sub.Key)
	}
	for _, sub := range s.open {
		batch = append(batch, sub)
	}
	clear(s.open)
	if len(s.known) > 0 && now-s.refreshed >= refreshEvery {
		s.refreshed = now
		for _, sub := range s.known {
			batch = append(batch, sub)
		}
		clear(s.known)
	}
	return batch
}

// note takes in what a pass has found. excludes says that [exclude] names anything.
func (s *shared) note(list []Answer, excludes bool, now time.Duration) {
	if s.open == nil {
		s.open, s.known, s.refreshed = map[verdict.ConnKey]*Subject{}, map[verdict.ConnKey]*Subject{}, now
	}
	if !excludes {
		clear(s.known)
	}
	for i := range list {
		a := &list[i]
		o := a.Holder.Owner
		if o == nil || len(s.open)+len(s.known) >= maxShared {
			continue // who has no holder is asked for again by the watcher
		}
		delete(s.open, a.Key)
		delete(s.known, a.Key)
		switch {
		case !o.Complete:
			s.open[a.Key] = a.subject
		case excludes:
			s.known[a.Key] = a.subject
		}
	}
}

// next is when a pass is due that asks every process, if any is.
func (s *shared) next() (time.Duration, bool) {
	if len(s.open) > 0 {
		return 0, true
	}
	return s.refreshed + refreshEvery, len(s.known) > 0
}
