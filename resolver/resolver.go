package resolver

import (
	"context"
	crypto "crypto/rand"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// Config says how a Resolver works. The zero value works like the C library.
type Config struct {
	ResolvConf string // "" is /etc/resolv.conf
	Limits     Limits
	// Changed is called for each change, in order, from the goroutine of Run, which waits
	// for it: it may call the Resolver, and must not wait. Nil: Snapshot tells.
	Changed func(Change)
}

// confInterval is how often resolv.conf is read, which takes some 20 us. Comparing what
// it says needs no guess from times and sizes.
const confInterval = 10 * time.Second

// Resolver keeps the addresses of names up to date while Run runs. Its methods may
// be called from any goroutine.
type Resolver struct {
	config   Config
	hostname string
	wanted   chan struct{} // something is new for Run

	mu      sync.Mutex // the fields below; held for microseconds, never while waiting
	table   *Table
	conf    ResolvConf
	confErr error
}

// New makes a Resolver that wants no names yet, and asks nothing until Run.
func New(config Config) *Resolver {
	if config.ResolvConf == "" {
		config.ResolvConf = "/etc/resolv.conf"
	}
	var seed [32]byte
	crypto.Read(seed[:])         // never fails, or ends the process
	hostname, _ := os.Hostname() // without one there is no domain to search
	return &Resolver{
		config: config, hostname: hostname, wanted: make(chan struct{}, 1),
		table: NewTable(config.Limits, rand.New(rand.NewChaCha8(seed))),
	}
}

// Want says which names are to be resolved from now on, see Table.Want.
func (r *Resolver) Want(names []string) error {
	r.mu.Lock()
	err := r.table.Want(time.Now(), names)
	r.mu.Unlock()
	select {
	case r.wanted <- struct{}{}:
	default: // Run will look anyway
	}
	return err
}

// Snapshot is what is known of all names that are wanted, in their order. The slices in it
// are the caller's.
func (r *Resolver) Snapshot() []State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table.Snapshot()
}

// Stats are counters since New.
func (r *Resolver) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table.Stats()
}

// Conf is what of resolv.conf is in use, and why it could not be read when last tried: then
// what was read before stays in use. The zero value: nothing was read yet.
func (r *Resolver) Conf() (ResolvConf, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conf, r.confErr
}

// Run resolves until ctx ends. It is called once. When it returns, nothing of it is left.
func (r *Resolver) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	// Nobody waits to send: there are never more than this many at a time.
	answers := make(chan Answer, r.config.Limits.withDefaults().Asking)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var read time.Time // when resolv.conf is due
	for {
		now := time.Now()
		if !now.Before(read) {
			r.reread(now)
			read = now.Add(confInterval)
		}
		questions, wake := r.next(now)
		for _, q := range questions {
			asking.Go(func() { answers <- exchange(ctx, q) })
		}
		if wake.IsZero() || wake.After(read) {
			wake = read
		}
		timer.Reset(wake.Sub(now))
		select {
		case <-ctx.Done():
			return
		case a := <-answers:
			r.observe(a)
		case <-r.wanted:
		case <-timer.C:
		}
	}
}

func (r *Resolver) reread(now time.Time) {
	conf, err := readResolvConf(r.config.ResolvConf, r.hostname)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confErr = err
	if err == nil && !conf.equal(r.conf) {
		r.conf = conf
		r.table.Configure(now, conf)
	}
}

func (r *Resolver) next(now time.Time) (list []Question, wake time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		q, ok := r.table.Next(now)
		if !ok {
			return list, r.table.Wake(now)
		}
		list = append(list, q)
	}
}

func (r *Resolver) observe(a Answer) {
	r.mu.Lock()
	change, ok := r.table.Observe(time.Now(), a)
	r.mu.Unlock()
	if ok && r.config.Changed != nil {
		r.config.Changed(change)
	}
}
