package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/internal/patient"
	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/probe"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
	"github.com/redisguard/redisguard/verdict"
)

// reap ends the condemned connections: per namespace one visit, in which each is
// looked at once more and then destroyed.
func (w *watcher) reap(list []verdict.Reap) error {
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].Key.NS == list[0].Key.NS {
			n++
		}
		if err := w.reapIn(w.byKey[list[0].Key.NS], list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (w *watcher) reapIn(sp *space, list []verdict.Reap) error {
	outcome := make([]verdict.ReapOutcome, len(list))
	why := make([]error, len(list))
	fail := func(err error) {
		for i := range outcome {
			if outcome[i] == "" {
				outcome[i], why[i] = verdict.ReapFailed, err
			}
		}
	}
	switch {
	case w.s.disabled():
		fail(errors.New("redisguard was switched off"))
	case sp == nil:
		fail(netns.ErrGone)
	default:
		err := w.lookAndDestroy(sp, reapIDs(list), lastLooks(list), outcome, why)
		if errors.Is(err, netns.ErrStranded) {
			return err
		}
		if errors.Is(err, netns.ErrGone) {
			sp.lost = true
			w.s.askRefresh()
		}
		if err != nil {
			fail(err)
		}
	}
	now := monotonic()
	for i := range list {
		if outcome[i] == verdict.ReapFailed && errors.Is(why[i], tcpstate.ErrNotSupported) {
			outcome[i], why[i] = w.shutdown(&list[i])
		}
		w.report(&list[i], outcome[i], why[i])
		w.in.Reaped = append(w.in.Reaped, verdict.ReapResult{Key: list[i].Key, At: now, Outcome: outcome[i]})
		if t := w.conns[list[i].Key]; t != nil && (outcome[i] == verdict.ReapDone || outcome[i] == verdict.ReapGone) {
			w.drop(t)
		}
	}
	if sp != nil {
		w.s.lookSoon(sp.ns.ID)
	}
	return nil
}

func reapIDs(list []verdict.Reap) []tcpstate.ID {
	ids := make([]tcpstate.ID, len(list))
	for i, r := range list {
		ids[i] = tcpstate.ID{Local: r.Local, Remote: r.Remote, Cookie: r.Key.Cookie}
	}
	return ids
}

// decide says by the last look at the i-th connection what becomes of it. An empty
// outcome lets it be destroyed.
type decide func(i int, now *tcpstate.Result) (verdict.ReapOutcome, error)

// lookAndDestroy looks at each of the connections of a namespace once more and destroys
// those for which there is no outcome. Between the look and the destroy lie some ten
// microseconds each. Those are calls of their own: none is made after one that does not
// return, whatever was decided.
func (w *watcher) lookAndDestroy(sp *space, ids []tcpstate.ID, decide decide, outcome []verdict.ReapOutcome, why []error) error {
	looks := make([]tcpstate.Result, len(ids))
	stops := []stop{{ns: sp.ns, do: func(s *tcpstate.Socket) error { return s.Get(ids, looks) }}}
	if _, free := w.travellers.away(stops); free != nil {
		w.heldUpAt(sp, ids, free)
		return errHeld
	}
	if stops[0].err != nil {
		return stops[0].err
	}
	var at []int
	stops = stops[:0]
	for i := range looks {
		if outcome[i], why[i] = decide(i, &looks[i]); outcome[i] == "" {
			at = append(at, i)
			stops = append(stops, stop{ns: sp.ns, do: func(s *tcpstate.Socket) error {
				err := [1]error{}
				if serr := s.Destroy(ids[i:i+1], err[:]); serr != nil {
					return serr
				}
				return err[0]
			}})
		}
	}
	var stranded error
	done, free := w.travellers.away(stops)
	for j, i := range at {
		switch {
		case j >= done:
			outcome[i], why[i] = verdict.ReapFailed, errHeld
		case stops[j].err == nil:
			outcome[i] = verdict.ReapDone
		case errors.Is(stops[j].err, tcpstate.ErrGone):
			outcome[i] = verdict.ReapGone
		default:
			outcome[i], why[i] = verdict.ReapFailed, stops[j].err
			if errors.Is(why[i], netns.ErrStranded) {
				stranded = why[i]
			}
		}
	}
	if free != nil {
		w.heldUpAt(sp, ids[at[done]:at[done]+1], free)
	}
	return stranded
}

// heldUpAt is heldUp for those of the connections that are known.
func (w *watcher) heldUpAt(sp *space, ids []tcpstate.ID, free <-chan struct{}) {
	var conns []*tracked
	for _, id := range ids {
		if t := sp.conns[id.Cookie]; t != nil {
			conns = append(conns, t)
		}
	}
	if len(conns) > 0 {
		w.heldUp(sp, conns, free)
	}
}

// lastLooks decide by a look right before the reap.
func lastLooks(list []verdict.Reap) decide {
	return func(i int, now *tcpstate.Result) (verdict.ReapOutcome, error) { return lastLook(now, list[i].SegsIn) }
}

// lastLook decides by a look right before the reap. An empty outcome lets it
// happen.
func lastLook(now *tcpstate.Result, heard uint32) (verdict.ReapOutcome, error) {
	if outcome, why := lastState(now); outcome != "" {
		return outcome, why
	}
	if now.Info.SegsIn != heard {
		return verdict.ReapSpared, errors.New("its peer was heard since the verdict")
	}
	return "", nil
}

// lastState is what of the last look holds for every reap.
func lastState(now *tcpstate.Result) (verdict.ReapOutcome, error) {
	switch {
	case errors.Is(now.Err, tcpstate.ErrGone):
		return verdict.ReapGone, nil
	case now.Err != nil:
		return verdict.ReapFailed, now.Err
	case !now.HasInfo:
		return verdict.ReapFailed, errors.New("the kernel tells too little about it")
	case now.State != tcpstate.Established && now.State != tcpstate.SynSent:
		return verdict.ReapSpared, fmt.Errorf("it is in state %v", now.State)
	case now.Inode == 0:
		return verdict.ReapSpared, errors.New("no application holds it any more")
	case now.MPTCP:
		return verdict.ReapSpared, errors.New("it is an MPTCP subflow")
	}
	return "", nil
}

// shutdown is the way out where the kernel has no SOCK_DESTROY.
func (w *watcher) shutdown(r *verdict.Reap) (verdict.ReapOutcome, error) {
	t := w.conns[r.Key]
	if t == nil || t.own.owner == nil {
		return verdict.ReapFailed, fmt.Errorf("%w, and its process is not known", tcpstate.ErrNotSupported)
	}
	var err error
	socket := t.socket()
	socket.Remote = netip.AddrPort{} // the last look was by it
	call := patient.New(1, func(int) { err = keepalive.Shutdown(socket) })
	go call.Do()
	if call.Await(context.Background(), awayPatience) == 0 {
		return verdict.ReapFailed, errHeld // err is the call's
	}
	if err != nil {
		return verdict.ReapFailed, err
	}
	return verdict.ReapDone, nil
}

// report leaves the audit record of a reap.
func (w *watcher) report(r *verdict.Reap, outcome verdict.ReapOutcome, why error) {
	w.s.figures.reaped(r, outcome, monotonic())
	w.s.stats.count(outcome)
	if outcome == verdict.ReapGone {
		return // nothing was done and nothing is wrong
	}
	text := r.Evidence.String()
	if why != nil {
		text = why.Error() + "; the verdict was: " + text
	}
	ev := r.Evidence
	w.send(event.Event{
		Type: verdict.ConnectionReaped, Text: text, Outcome: string(outcome), Evidence: &ev, Endpoint: r.Remote,
		TookMs: (monotonic() - ev.Since).Milliseconds(),
	}, r.Key)
}

// publish passes an event of the core on.
func (w *watcher) publish(e *verdict.Event) {
	w.send(event.Event{Type: e.Type, Text: e.Text, Endpoint: e.Path.Endpoint, Evidence: e.Evidence, TookMs: e.Took.Milliseconds()},
		verdict.ConnKey{NS: e.Path.NS, Cookie: e.Key.Cookie})
}

// announce tells of something about the daemon itself.
func (w *watcher) announce(text string) {
	m := w.mode()
	w.told = m
	w.send(event.Event{Type: event.ModeChanged, Text: text, Mode: &m, Peer: w.askedBy}, verdict.ConnKey{})
}

// send completes an event with names, and gives it to the hub, the audit file and
// the log.
func (w *watcher) send(e event.Event, key verdict.ConnKey) {
	e.Time = time.Now().UTC()
	e.NS, e.Cookie = key.NS, key.Cookie
	if sp := w.byKey[key.NS]; sp != nil {
		e.Namespace = sp.ns.String()
	}
	if t := cmp.Or(w.conns[key], w.left[key]); t != nil {
		e.Connection = describe(t)
		if e.Namespace == "" { // it has gone together with the connection
			e.Namespace = t.space.ns.String()
		}
	}
	e.Seq = w.s.opt.Hub.Publish(e)
	w.s.figures.published(&e)
	w.s.audit.add(e)
	level := slog.LevelInfo
	switch e.Type {
	case verdict.ConnectionStalled, verdict.EndpointSuspect:
		level = slog.LevelDebug
	case verdict.ConnectionReaped:
		level = slog.LevelWarn
	case verdict.EndpointDown, verdict.GuardDoubt, verdict.GuardBreaker, verdict.ClientNotBack, event.ArmFailed:
		level = slog.LevelWarn
	}
	if e.Connection != nil && e.Evidence != nil && e.Evidence.Rule == verdict.RuleSyn {
		// During an outage clients keep connecting; what becomes of it fills
		// the audit file, not everybody's log.
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{slog.Uint64("seq", e.Seq)}
	if e.Endpoint.IsValid() {
		attrs = append(attrs, slog.String("endpoint", e.Endpoint.String()))
	}
	if e.Namespace != "" {
		attrs = append(attrs, slog.String("namespace", e.Namespace))
	}
	if e.Outcome != "" {
		attrs = append(attrs, slog.String("outcome", e.Outcome))
	}
	if c := e.Connection; c != nil {
		attrs = append(attrs, slog.Any("connection", c))
	}
	if e.Evidence != nil {
		attrs = append(attrs, slog.Any("evidence", e.Evidence))
	}
	if e.TookMs != 0 {
		attrs = append(attrs, slog.Int64("took_ms", e.TookMs))
	}
	if e.Peer != nil {
		attrs = append(attrs, slog.Any("peer", e.Peer))
	}
	attrs = append(attrs, slog.String("text", e.Text))
	w.s.log.LogAttrs(context.Background(), level, string(e.Type), attrs...)
}

// describe names a connection and whose it is.
func describe(t *tracked) *event.Connection {
	c := &event.Connection{Local: t.conn.Local, Remote: t.conn.Remote, Cookie: t.conn.Cookie, UID: t.conn.UID}
	if o := t.own.owner; o != nil {
		c.PID, c.Comm = o.Process.PID, proc.Safe(o.Process.Comm)
		c.Unit, c.PodUID, c.ContainerID = proc.Safe(o.Workload.Unit), o.Workload.PodUID, o.Workload.ContainerID
		c.PodName, c.PodNamespace = o.PodName, o.PodNamespace
	}
	return c
}

// lookSoon has the discoverer look at a namespace at its next turns.
func (s *Supervisor) lookSoon(id netns.ID) {
	select {
	case s.hot <- id:
	default: // it looks at all of them every second anyway
	}
}

// deliver brings a result to the watcher.
func (s *Supervisor) deliver(ctx context.Context, r result) {
	select {
	case s.results <- r:
	case <-ctx.Done():
	}
}

// probe starts a probe of an endpoint from a namespace.
func (w *watcher) probe(ctx context.Context, p verdict.PathKey) {
	w.probeID++
	pr := verdict.Probe{ID: w.probeID, Path: p, Started: monotonic(), Outcome: verdict.CouldNotTell}
	sp := w.byKey[p.NS]
	if sp == nil {
		return
	}
	if !w.s.errands.take() {
		w.s.stats.skippedErrands.Add(1)
		pr.Ended, pr.Detail = monotonic(), "too many probes are under way"
		w.s.figures.probed(pr.Outcome)
		w.in.Probes = append(w.in.Probes, pr)
		return
	}
	c := w.s.config()
	sock, err := probe.In(w.thread, sp.ns, p.Endpoint, probe.Config{Timeout: c.Probe.Timeout, Mark: c.Probe.Mark})
	if err != nil {
		w.s.errands.give()
		pr.Ended, pr.Detail = monotonic(), err.Error()
		w.s.figures.probed(pr.Outcome)
		w.in.Probes = append(w.in.Probes, pr)
		return
	}
	w.s.stats.probes.Add(1)
	pr.Outcome = verdict.Pending
	w.in.Probes = append(w.in.Probes, pr)
	w.s.errands.start(ctx, func(ctx context.Context) {
		done := pr
		took, failed := sock.Connect(ctx)
		r := probe.Result{}
		if failed != nil {
			r = *failed
		} else {
			half := pr
			half.Outcome, half.Connected = verdict.Pending, took
			w.s.deliver(ctx, result{probe: &half})
			r = sock.Ask(ctx, took)
		}
		done.Connected = r.Connected
		done.Ended, done.Detail, done.Outcome = monotonic(), r.Detail, outcomes[r.Outcome]
		w.s.figures.probed(done.Outcome)
		w.s.log.Debug("probe", "endpoint", p.Endpoint, "namespace", sp.ns.Name, "outcome", r.Outcome.String(), "detail", r.Detail, "took", done.Ended-done.Started)
		w.s.deliver(ctx, result{probe: &done})
	})
}

// outcomes are the probe's in the core's words.
var outcomes = map[probe.Outcome]verdict.Outcome{
	probe.Alive: verdict.Alive, probe.Dead: verdict.Dead, probe.Refused: verdict.Refused,
	probe.Unresponsive: verdict.Unresponsive, probe.CouldNotTell: verdict.CouldNotTell,
}

// nextHop looks at the way out of a namespace.
func (w *watcher) nextHop(ctx context.Context, p verdict.PathKey) {
	sp := w.byKey[p.NS]
	if sp == nil {
		return
	}
	ns, host := sp.ns, sp.key == w.hostNS
	if !w.s.looks.run(ctx, func(ctx context.Context) {
		hop := verdict.NextHop{Path: p, At: monotonic(), Gateway: verdict.NeighbourUnknown}
		err := netns.Do(ns, func() error {
			look := probe.Way
			if host {
				// The host is judged by its own way out, not by the way to an
				// endpoint that anybody may have chosen.
				look = probe.Uplink
			}
			way, err := look(ctx, p.Endpoint.Addr())
			if err != nil {
				return err
			}
			hop.LinkDown, hop.Detail = way.LinkDown, way.Detail
			hop.Gateway, hop.Endpoint = neighbours[way.Gateway], neighbours[way.Endpoint]
			return nil
		})
		if err != nil {
			hop.Detail = err.Error()
		}
		w.s.deliver(ctx, result{hop: &hop})
	}) {
		w.s.stats.skippedErrands.Add(1)
	}
}

var neighbours = map[probe.Neighbour]verdict.Neighbour{
	probe.NoNeighbour: verdict.NotOnLink, probe.Reachable: verdict.Reachable, probe.Silent: verdict.Silent, probe.Unknown: verdict.NeighbourUnknown,
}

// sameTime is how much earlier a connection elsewhere may have fallen silent to
// be taken for a sign of the same trouble.
const sameTime = time.Second

// others looks how connections fare that are not toward Redis.
func (w *watcher) others(ctx context.Context, o verdict.OthersWanted) {
	sp := w.byKey[o.Path.NS]
	if sp == nil || sp.othersAway.Load() {
		// The last look has not returned: somebody in there holds a socket's lock.
		return
	}
	ns, ports, away := sp.ns, w.s.config().Watch.Ports, &sp.othersAway
	away.Store(true)
	if !w.s.looks.run(ctx, func(ctx context.Context) {
		defer away.Store(false)
		window := monotonic() - o.Since
		res := verdict.Others{NS: o.Path.NS, At: monotonic(), Window: window}
		err := netns.Do(ns, func() error {
			var s tcpstate.Socket
			if err := s.Open(); err != nil {
				return err
			}
			defer s.Close()
			return s.Dump(tcpstate.Filter{States: tcpstate.Mask(tcpstate.Established), Info: true}, func(k *tcpstate.Connection) error {
				if k.Remote.Addr().IsLoopback() || k.Remote.Addr() == o.Path.Endpoint.Addr() || contains(ports, k.Remote.Port()) || contains(ports, k.Local.Port()) {
					return nil
				}
				heard := min(k.Info.LastAckRecv, k.Info.LastDataRecv)
				switch {
				case heard < window:
					res.Heard++
				case heard < window+sameTime && k.Timer == tcpstate.TimerRetransmit && k.Info.Unacked > 0:
					res.Stalled++
				}
				return nil
			})
		})
		if err == nil {
			w.s.deliver(ctx, result{others: &res})
		}
	}) {
		away.Store(false)
		w.s.stats.skippedErrands.Add(1)
	}
}

func contains(ports []uint16, p uint16) bool {
	for _, q := range ports {
		if p == q {
			return true
		}
	}
	return false
}
