package verdict

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestWorlds lets random faults loose on random nodes. The auditor behind the
// simulator holds every answer against the promises; here come those that need
// the whole run.
func TestWorlds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := profiles(rapid.SampledFrom([]string{"fast", "balanced", "calm"}).Draw(t, "profile"))
		set.OnUnresponsive = rapid.SampledFrom([]Policy{PolicyReap, PolicySignal, PolicyIgnore}).Draw(t, "on_unresponsive")
		set.Rate = rapid.SampledFrom([]float64{1, 20, 500}).Draw(t, "rate")
		set.Burst = rapid.SampledFrom([]int{1, 10, 200}).Draw(t, "burst")
		set.MaxShare = rapid.SampledFrom([]float64{0.1, 0.5, 1}).Draw(t, "max_share")
		set.Spread = rapid.SampledFrom([]time.Duration{0, time.Second, 10 * time.Second}).Draw(t, "spread")
		set.Baseline = rapid.SampledFrom([]time.Duration{5 * time.Second, 10 * time.Minute}).Draw(t, "baseline")
		var broken error
		w := newWorld(set, rapid.Uint64().Draw(t, "seed"), func(err error) {
			if broken == nil {
				broken = err
			}
		})
		w.record = true
		spaces := []NS{1, 10, 20}
		for i := range rapid.IntRange(1, 3).Draw(t, "endpoints") {
			w.eps = append(w.eps, &simEndpoint{
				name: string(rune('A' + i)), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}), 6379),
				rtt:    rapid.SampledFrom([]time.Duration{time.Millisecond / 2, 20 * time.Millisecond, 150 * time.Millisecond}).Draw(t, "rtt"),
				onLink: rapid.Bool().Draw(t, "on link"), loss: rapid.SampledFrom([]float64{0, 0, 0.01, 0.1, 0.3}).Draw(t, "loss"),
			})
		}
		kinds := []behaviour{busy, pipelined, idle, subscriber, blocking}
		for i := range rapid.IntRange(1, 5).Draw(t, "clients") {
			cl := &simClient{
				name: fmt.Sprint("c", i), ns: rapid.SampledFrom(spaces).Draw(t, "ns"), ep: rapid.SampledFrom(w.eps).Draw(t, "to"),
				kind: rapid.SampledFrom(kinds).Draw(t, "do"), every: time.Duration(rapid.IntRange(10, 400).Draw(t, "every")) * time.Millisecond,
				permit: rapid.SampledFrom([]Permit{MayReap, MayReap, MayReap, ObserveOnly}).Draw(t, "permit"),
				keep:   rapid.SampledFrom([]time.Duration{0, 2 * time.Second}).Draw(t, "keepalive"),
				stays:  rapid.Bool().Draw(t, "stays"), back: time.Duration(rapid.IntRange(0, 3000).Draw(t, "back")) * time.Millisecond, timeout: 3 * time.Second,
			}
			w.clients = append(w.clients, cl)
			for range rapid.IntRange(1, 15).Draw(t, "n") {
				w.connect(cl)
			}
		}
		for range rapid.IntRange(1, 8).Draw(t, "faults") {
			w.run(time.Duration(rapid.IntRange(50, 8000).Draw(t, "run"))*time.Millisecond, func() bool { return broken != nil })
			randomFault(t, w)
		}
		w.run(10*time.Second, func() bool { return broken != nil })
		if broken != nil {
			t.Fatal(broken)
		}
		if err := w.again(); err != nil {
			t.Fatal(err)
		}
		// All connections end; the core must not remember them for ever.
		w.record = false
		for _, c := range append([]*simConn(nil), w.conns...) {
			c.client.stays = true
			w.gone(c)
		}
		for _, cl := range w.clients {
			cl.stays = true
			cl.ep.vanished = true // who was about to come back does not
			cl.timeout = time.Second
		}
		w.run(time.Minute, nil)
		for _, c := range append([]*simConn(nil), w.conns...) {
			w.gone(c)
		}
		w.run(time.Minute, nil)
		if broken != nil {
			t.Fatal(broken)
		}
		if err := w.empty(); err != nil {
			t.Fatal(err)
		}
	})
}

func randomFault(t *rapid.T, w *world) {
	ep := rapid.SampledFrom(w.eps).Draw(t, "endpoint")
	sp := w.space(rapid.SampledFrom([]NS{1, 10, 20}).Draw(t, "space"))
	on := rapid.Bool().Draw(t, "on")
	switch rapid.SampledFrom([]string{"vanish", "vanish", "freeze", "refuse", "cut", "zero", "link", "gateway", "stall", "late", "bursts", "permit", "gone"}).Draw(t, "fault") {
	case "vanish":
		ep.vanished = on
	case "freeze":
		ep.frozen = on
	case "refuse":
		ep.refusing = on
	case "cut":
		for _, c := range w.conns {
			c.cut = on && w.rng.IntN(3) == 0
		}
	case "zero":
		for _, c := range w.conns {
			if c.zero = on && w.rng.IntN(3) == 0; !c.zero {
				c.probes = 0
			}
		}
	case "link":
		sp.linkDown = on
	case "gateway":
		sp.gatewaySilent = on
	case "stall":
		sp.others = 2
		if sp.othersDead = 0; on {
			sp.othersDead = w.clock
		}
	case "late":
		w.late = time.Duration(rapid.IntRange(0, 5000).Draw(t, "late")) * time.Millisecond
		w.asleepUntil = w.clock + w.late
	case "bursts":
		if w.burstShare == 0 {
			w.burstShare = 0.01
			w.burstLoop()
		}
	case "permit":
		// The mode is changed: everybody is introduced again.
		for _, c := range w.conns {
			if c.client.permit = ObserveOnly; on {
				c.client.permit = MayReap
			}
			if c.told {
				w.introduce(c)
			}
		}
	case "gone":
		for _, c := range append([]*simConn(nil), w.conns...) {
			if w.rng.IntN(3) == 0 {
				w.gone(c)
			}
		}
	}
}

// TestGarbage feeds what no kernel would say: times that go anywhere, probes that
// nobody asked for, connections gone twice and sampled after it. The core may
// judge what it likes, but never break a promise or panic.
func TestGarbage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := profiles(rapid.SampledFrom([]string{"fast", "balanced"}).Draw(t, "profile"))
		set.OnUnresponsive = rapid.SampledFrom([]Policy{PolicyReap, PolicySignal}).Draw(t, "on_unresponsive")
		a := newAuditor(set)
		a.record = true
		now := time.Duration(0)
		steps := rapid.SliceOfN(rapid.Custom(garbageInput), 1, 60).Draw(t, "inputs")
		for i := range steps {
			in := &steps[i]
			if rapid.Bool().Draw(t, "orderly") {
				now += time.Duration(rapid.IntRange(0, 1500).Draw(t, "pass")) * time.Millisecond
				in.Now = now
			}
			if _, err := a.step(in); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.again(); err != nil {
			t.Fatal(err)
		}
		var in Input
		for k := range a.known {
			in.Gone = append(in.Gone, k)
		}
		for range 3 {
			if in.Now = a.now + 40*time.Second; in.Now > endOfTime {
				return
			}
			if _, err := a.step(&in); err != nil {
				t.Fatal(err)
			}
			in.Reset()
		}
		if err := a.empty(); err != nil {
			t.Fatal(err)
		}
	})
}

var (
	anyTime = rapid.OneOf(
		rapid.Map(rapid.IntRange(0, 20000), func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }),
		rapid.Just[time.Duration](0),
		rapid.SampledFrom([]time.Duration{-time.Second, -time.Hour, 24 * 365 * time.Hour, math.MaxInt64, math.MinInt64}),
	)
	anyKey = rapid.Custom(func(t *rapid.T) ConnKey {
		return ConnKey{NS(rapid.IntRange(0, 3).Draw(t, "ns")), uint64(rapid.IntRange(0, 5).Draw(t, "cookie"))}
	})
	anyAddr = rapid.SampledFrom([]netip.AddrPort{
		{}, netip.MustParseAddrPort("10.9.0.1:6379"), netip.MustParseAddrPort("10.9.0.2:6379"), netip.MustParseAddrPort("[fd00::1]:6379"),
	})
	anyPath = rapid.Custom(func(t *rapid.T) PathKey {
		return PathKey{NS(rapid.IntRange(0, 3).Draw(t, "ns")), anyAddr.Draw(t, "endpoint")}
	})
	anyCount = rapid.OneOf(rapid.Uint32Range(0, 6), rapid.Uint32())
)

func garbageInput(t *rapid.T) Input {
	in := Input{Now: anyTime.Draw(t, "now")}
	if rapid.IntRange(0, 9).Draw(t, "late?") == 0 {
		in.Late = anyTime.Draw(t, "late")
	}
	few := func(name string) int { return rapid.IntRange(0, 4).Draw(t, name) }
	for range few("appeared") {
		in.Appeared = append(in.Appeared, Appeared{
			Key: anyKey.Draw(t, "key"), Remote: anyAddr.Draw(t, "remote"), Permit: Permit(rapid.IntRange(0, 2).Draw(t, "permit")),
			Owner: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "owner"),
		})
	}
	for range few("samples") {
		in.Samples = append(in.Samples, Sample{
			Key: anyKey.Draw(t, "key"), State: State(rapid.IntRange(0, 3).Draw(t, "state")), Timer: Timer(rapid.IntRange(0, 5).Draw(t, "timer")),
			Retrans: uint8(anyCount.Draw(t, "retrans")), Unacked: anyCount.Draw(t, "unacked"), RTT: anyTime.Draw(t, "rtt"),
			LastDataSent: anyTime.Draw(t, "sent"), LastDataRecv: anyTime.Draw(t, "recv"), LastAckRecv: anyTime.Draw(t, "ack"),
			SegsIn: anyCount.Draw(t, "in"), DataSegsOut: anyCount.Draw(t, "out"), TotalRetrans: anyCount.Draw(t, "total"),
			BytesReceived: uint64(anyCount.Draw(t, "bytes")),
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "gone") {
		in.Gone = append(in.Gone, anyKey.Draw(t, "key"))
	}
	for range few("probes") {
		in.Probes = append(in.Probes, Probe{
			ID: uint64(rapid.IntRange(0, 6).Draw(t, "id")), Path: anyPath.Draw(t, "path"), Started: anyTime.Draw(t, "started"),
			Ended: anyTime.Draw(t, "ended"), Outcome: Outcome(rapid.IntRange(0, 6).Draw(t, "outcome")), Connected: anyTime.Draw(t, "connected"),
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "hops") {
		in.NextHops = append(in.NextHops, NextHop{
			Path: anyPath.Draw(t, "path"), At: anyTime.Draw(t, "at"), LinkDown: rapid.IntRange(0, 5).Draw(t, "link") == 0,
			Gateway: Neighbour(rapid.IntRange(0, 4).Draw(t, "gateway")), Endpoint: Neighbour(rapid.IntRange(0, 4).Draw(t, "neighbour")),
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "others") {
		in.Others = append(in.Others, Others{
			NS: NS(rapid.IntRange(0, 3).Draw(t, "ns")), At: anyTime.Draw(t, "at"), Heard: rapid.IntRange(-1, 2).Draw(t, "heard"),
			Stalled: rapid.IntRange(-1, 2).Draw(t, "stalled"), Window: anyTime.Draw(t, "window"),
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "reaped") {
		in.Reaped = append(in.Reaped, ReapResult{
			Key: anyKey.Draw(t, "key"), At: anyTime.Draw(t, "at"),
			Outcome: rapid.SampledFrom([]ReapOutcome{ReapDone, ReapSpared, ReapGone, ReapFailed, ReapDryRun, "nonsense"}).Draw(t, "outcome"),
		})
	}
	return in
}
