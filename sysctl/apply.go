package sysctl

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redisguard/redisguard/internal/sys"
	"github.com/redisguard/redisguard/netns"
)

// Job is a namespace with its plan.
type Job struct {
	NS    netns.Namespace
	Items []Item
}

// In runs fn in a namespace, if that is the one that ns names and no later one
// with its inode; else it is netns.ErrGone.
func In(t *netns.Thread, ns netns.Namespace, fn func() error) error {
	return t.Visit(ns, func() error {
		if ns.ID.Cookie != 0 {
			c, ok, err := sys.NetNSCookie()
			if err != nil {
				return err
			}
			if ok && c != ns.ID.Cookie {
				return netns.ErrGone
			}
		}
		return fn()
	})
}

// ReadIn returns the values of a namespace.
func (f FS) ReadIn(t *netns.Thread, ns netns.Namespace) (v Values, err error) {
	err = In(t, ns, func() (err error) {
		v, err = f.Read()
		return err
	})
	return v, err
}

// Apply carries out the plans: of each namespace all writes or none. It writes
// down first what it is about to do, for all of them at once, and at the end what
// it has done. errs has an entry for each job; err says that the state cannot be
// kept, so that nothing, or nothing more, was done.
//
// netns.ErrGone says that a namespace is no more, ErrChanged that somebody has
// changed it since it was planned.
func (s Store) Apply(t *netns.Thread, fs FS, jobs []Job) (errs []error, err error) {
	errs = make([]error, len(jobs))
	err = s.locked(func(state *State) error {
		before := make([]*Record, len(jobs))
		after := make([]Record, len(jobs))
		for i, j := range jobs {
			if r := state.Of(j.NS.ID); r != nil {
				old := r.clone()
				before[i] = &old
			}
			var begun Record
			begun, after[i] = records(before[i], &j)
			state.set(begun)
		}
		if err := s.save(state); err != nil {
			return err
		}
		for i, j := range jobs {
			var undone bool
			undone, errs[i] = fs.applyIn(t, &j)
			switch {
			case errors.Is(errs[i], netns.ErrStranded):
				return errs[i]
			case errs[i] == nil:
				state.set(after[i])
			case undone && before[i] != nil:
				state.set(*before[i])
			case undone:
				state.set(Record{ID: j.NS.ID})
			}
			// Else it stays written down as begun.
		}
		return s.save(state)
	})
	return errs, err
}

// records are what is to be remembered of a namespace while a plan is carried
// out, and when it has been.
func records(old *Record, j *Job) (begun, done Record) {
	r := Record{ID: j.NS.ID}
	if old != nil {
		r = old.clone()
	}
	r.Name, r.At = j.NS.String(), time.Now()
	begun, done = r.clone(), r.clone()
	begun.Applying, done.Applying = true, false
	for _, it := range j.Items {
		switch it.Action {
		case Write:
			// A value that we find and that we may have written is not an original.
			b := begun.of(it.Key)
			if b == nil {
				begun.Values = append(begun.Values, Kept{Key: it.Key, Original: it.Have})
				b = &begun.Values[len(begun.Values)-1]
			}
			if len(b.Ours) >= maxOurs {
				b.Ours = b.Ours[1:]
			}
			b.Ours = append(b.Ours, it.Want)
			if it.Conflict {
				b.Conflicts++
			}
			kept := *b
			kept.Ours = []int{it.Want}
			done.Values = slices.DeleteFunc(done.Values, func(v Kept) bool { return v.Key == it.Key })
			done.Values = append(done.Values, kept)
		case Restore, Release:
			done.Values = slices.DeleteFunc(done.Values, func(v Kept) bool { return v.Key == it.Key })
		}
	}
	for i := range done.Values {
		v := &done.Values[i]
		v.Ours = v.Ours[len(v.Ours)-1:]
	}
	return begun, done
}

// ErrChanged says that somebody has written a value between look and write.
var ErrChanged = errors.New("it was changed meanwhile")

// applyIn writes all of a plan or none. undone says that after an error the
// namespace is as it was found.
func (f FS) applyIn(t *netns.Thread, j *Job) (undone bool, err error) {
	undone = true
	err = In(t, j.NS, func() error {
		for _, it := range j.Items {
			if !it.Action.Writes() {
				continue
			}
			have, err := f.read(it.Key)
			if err != nil {
				return err
			}
			if have != it.Have {
				return fmt.Errorf("cannot write %s: %w from %d to %d", it.Key, ErrChanged, it.Have, have)
			}
		}
		for i, it := range j.Items {
			if !it.Action.Writes() {
				continue
			}
			err := f.write(it.Key, it.Want)
			if err == nil {
				continue
			}
			// The one that failed as well: a value that the kernel has made
			// another one is there.
			for _, back := range slices.Backward(j.Items[:i+1]) {
				if back.Action.Writes() && f.write(back.Key, back.Have) != nil {
					undone = false
				}
			}
			return err
		}
		return nil
	})
	if errors.Is(err, netns.ErrGone) {
		undone = true // nothing is left that could be other than it was
	}
	return undone, err
}

// Outcome is what became of a namespace that was to be restored.
type Outcome string

// The outcomes.
const (
	Restored Outcome = "restored"
	Gone     Outcome = "gone"   // it is no more: nothing to restore
	Unknown  Outcome = "unseen" // it may be there, where we cannot look
	Failed   Outcome = "failed"
)

// Restoration is what was, or would be, done for one namespace.
type Restoration struct {
	Record  Record
	NS      netns.Namespace
	Items   []Item // of each key: Restore, Release if it is not ours any more
	Outcome Outcome
	Err     error
}

// Restore writes the originals back in all namespaces, or in those that only
// names, and forgets them. found are the namespaces of the node; all says that
// there are no others, so that who is not among them is gone. With dryRun nothing
// is written.
//
// A value that is neither ours nor the original any more is somebody else's, and
// is left.
func (s Store) Restore(t *netns.Thread, fs FS, found []netns.Namespace, all bool, only func(netns.ID) bool, dryRun bool) (list []Restoration, err error) {
	at := make(map[netns.ID]netns.Namespace, len(found))
	for _, ns := range found {
		at[ns.ID] = ns
	}
	work := func(state *State) error {
		var keep []Record
		for _, r := range state.Records {
			if only != nil && !only(r.ID) {
				keep = append(keep, r)
				continue
			}
			x := Restoration{Record: r, Outcome: Restored}
			ns, ok := at[r.ID]
			switch {
			case ok:
				x.NS = ns
				x.Items, x.Err = fs.restoreIn(t, ns, &r, dryRun)
			case all:
				x.Err = netns.ErrGone
			default:
				x.Outcome, x.Err = Unknown, errors.New("not all network namespaces of this node can be seen")
			}
			switch {
			case errors.Is(x.Err, netns.ErrStranded):
				return x.Err
			case errors.Is(x.Err, netns.ErrGone):
				x.Outcome, x.Err = Gone, nil
			case x.Err != nil:
				if ok {
					x.Outcome = Failed
				}
				keep = append(keep, r)
			}
			list = append(list, x)
		}
		if dryRun || len(keep) == len(state.Records) {
			return nil
		}
		state.Records = keep
		return s.save(state)
	}
	if !dryRun {
		err = s.locked(work)
		return list, err
	}
	state, err := s.Load()
	if err == nil {
		err = work(state)
	}
	return list, err
}

func (f FS) restoreIn(t *netns.Thread, ns netns.Namespace, r *Record, dryRun bool) (items []Item, err error) {
	err = In(t, ns, func() error {
		have, err := f.Read()
		if err != nil {
			return err
		}
		// Nothing wanted, and whatever may be ours taken for ours.
		begun := r.clone()
		begun.Applying = true
		items = Plan(have, &begun, nil, Policy{})
		var errs []error
		for _, it := range items {
			if it.Action == Restore && !dryRun {
				errs = append(errs, f.write(it.Key, it.Want))
			}
		}
		return errors.Join(errs...)
	})
	return items, err
}
