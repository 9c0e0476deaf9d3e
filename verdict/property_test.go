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
		for _, p := range []*Policy{&set.OnFailed, &set.OnRemoved, &set.OnDemoted, &set.OnReplaced} {
			*p = rapid.SampledFrom([]Policy{"", PolicyReap, PolicyReap, PolicyIgnore}).Draw(t, "topology policy")
		}
		set.Fence = rapid.Bool().Draw(t, "fence")
		var broken error
		w := newWorld(set, rapid.Uint64().Draw(t, "seed"), func(err error) {
			if broken == nil {
				broken = err
			}
		})
		w.record = true
		w.opens = rapid.Bool().Draw(t, "opens")
		w.fencing = rapid.SampledFrom([]string{"prompt", "refused", "never"}).Draw(t, "fencing")
		views := rapid.Bool().Draw(t, "cluster view")
		spaces := []NS{1, 10, 20}
		for i := range rapid.IntRange(1, 3).Draw(t, "endpoints") {
			w.eps = append(w.eps, &simEndpoint{
				name: string(rune('A' + i)), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}), 6379),
				rtt:    rapid.SampledFrom([]time.Duration{time.Millisecond / 2, 20 * time.Millisecond, 150 * time.Millisecond}).Draw(t, "rtt"),
				onLink: rapid.Bool().Draw(t, "on link"), loss: rapid.SampledFrom([]float64{0, 0, 0.01, 0.1, 0.3}).Draw(t, "loss"),
			})
		}
		for _, ep := range w.eps {
			if views {
				ep.run, ep.role = ep.name+"1", rapid.SampledFrom([]Role{RolePrimary, RoleReplica}).Draw(t, "role")
				w.say(ep, EndpointFact{State: StateOK})
			}
		}
		kinds := []behaviour{busy, pipelined, idle, subscriber, blocking}
		for i := range rapid.IntRange(1, 5).Draw(t, "clients") {
			cl := &simClient{
				name: fmt.Sprint("c", i), ns: rapid.SampledFrom(spaces).Draw(t, "ns"), ep: rapid.SampledFrom(w.eps).Draw(t, "to"),
				kind: rapid.SampledFrom(kinds).Draw(t, "do"), every: time.Duration(rapid.IntRange(10, 400).Draw(t, "every")) * time.Millisecond,
				permit: rapid.SampledFrom([]Permit{MayReap, MayReap, MayReap, ObserveOnly}).Draw(t, "permit"),
				keep:   rapid.SampledFrom([]time.Duration{0, 2 * time.Second}).Draw(t, "keepalive"),
				large:  rapid.Bool().Draw(t, "large"), noAsk: rapid.IntRange(0, 3).Draw(t, "no ask") == 0,
				stays: rapid.Bool().Draw(t, "stays"), back: time.Duration(rapid.IntRange(0, 3000).Draw(t, "back")) * time.Millisecond, timeout: 3 * time.Second,
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
		for _, ep := range w.eps {
			w.withdraw(ep)
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
	switch rapid.SampledFrom([]string{"vanish", "vanish", "freeze", "refuse", "cut", "zero", "link", "gateway", "stall", "late", "bursts", "permit", "gone", "say", "say", "withdraw", "replace", "demote", "oneway", "oneway flow", "syn", "queue", "hole", "mute", "no probe"}).Draw(t, "fault") {
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
	case "oneway":
		if ep.oneWay = on; on {
			for _, c := range w.conns {
				if c.ep == ep {
					w.repeatLoop(c, firstRTO)
				}
			}
		}
	case "oneway flow":
		for _, c := range w.conns {
			if c.oneWay = on && w.rng.IntN(3) == 0; c.oneWay {
				w.repeatLoop(c, firstRTO)
			}
		}
	case "syn":
		ep.synLost = on
	case "queue":
		if ep.full = on; !on {
			for _, c := range w.conns {
				c.pending = c.pending && c.ep != ep
			}
		}
	case "hole":
		ep.hole = on
	case "mute":
		ep.mute = on
	case "no probe":
		ep.noProbe = on
	case "zero":
		for _, c := range w.conns {
			if c.zero = on && w.rng.IntN(3) == 0; !c.zero {
				c.probes = 0
			}
		}
	case "say":
		f := EndpointFact{State: rapid.SampledFrom([]NodeState{StateOK, StateFailed, StateRemoved, StateDemoted, StateReplaced}).Draw(t, "state"), Target: "orders"}
		f.Policies.OnRemoved = rapid.SampledFrom([]Policy{"", PolicySignal, PolicyReap}).Draw(t, "on_removed")
		if f.Since = w.clock; f.State == StateDemoted {
			ep.role = RoleReplica // the view does not lie about that
		}
		if on {
			f.Successor = netip.MustParseAddrPort("10.9.0.9:6379")
		}
		w.say(ep, f)
	case "withdraw":
		w.withdraw(ep)
	case "replace":
		if ep.run != "" {
			ep.run += "+"
		}
	case "demote":
		if ep.role = RolePrimary; on {
			ep.role = RoleReplica
		}
	case "link":
		sp.linkDown = on
	case "gateway":
		sp.gatewaySilent = on
	case "stall":
		sp.unrelated = 2
		if sp.unrelatedDead = 0; on {
			sp.unrelatedDead = w.clock
		}
	case "late":
		w.late = time.Duration(rapid.IntRange(0, 5000).Draw(t, "late")) * time.Millisecond
		w.pausedUntil = w.clock + w.late
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
		set.OnRemoved = rapid.SampledFrom([]Policy{"", PolicyReap}).Draw(t, "on_removed")
		set.OnDemoted, set.OnReplaced, set.OnFailed, set.Fence = set.OnRemoved, PolicyReap, set.OnRemoved, rapid.Bool().Draw(t, "fence")
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
		for addr := range a.facts {
			in.Endpoints = append(in.Endpoints, EndpointFact{Endpoint: addr, Forget: true})
		}
		for range 3 {
			if in.Now = a.now + 40*time.Second; in.Now > endOfTime {
				return
			}
			if _, err := a.step(&in); err != nil {
				t.Fatal(err)
			}
			in.Clear()
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
	anyInterface = rapid.SampledFrom([]uint32{0, 0, 0, 2, 3})
	anyPath      = rapid.Custom(func(t *rapid.T) PathKey {
		return PathKey{NS(rapid.IntRange(0, 3).Draw(t, "ns")), anyAddr.Draw(t, "endpoint"), anyInterface.Draw(t, "interface")}
	})
	anyBackend = rapid.SampledFrom([]netip.AddrPort{{}, {}, netip.MustParseAddrPort("10.9.0.1:6379"), netip.MustParseAddrPort("10.9.0.3:6379")})
	anyRun     = rapid.SampledFrom([]string{"", "a", "b", "c", "d"})
	anyRole    = rapid.SampledFrom([]Role{"", RolePrimary, RoleReplica, RoleSentinel})
	anyCount   = rapid.OneOf(rapid.Uint32Range(0, 6), rapid.Uint32())
)

func garbageInput(t *rapid.T) Input {
	in := Input{Now: anyTime.Draw(t, "now")}
	if rapid.IntRange(0, 9).Draw(t, "late?") == 0 {
		in.Late = anyTime.Draw(t, "late")
	}
	few := func(name string) int { return rapid.IntRange(0, 4).Draw(t, name) }
	for range few("appeared") {
		in.Appeared = append(in.Appeared, Appeared{
			Key: anyKey.Draw(t, "key"), Remote: anyAddr.Draw(t, "remote"), Interface: anyInterface.Draw(t, "bound to"), Permit: Permit(rapid.IntRange(0, 2).Draw(t, "permit")),
			Owner:   rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "owner"),
			MayAsk:  rapid.Bool().Draw(t, "may ask"),
			Backend: anyBackend.Draw(t, "backend"), RunID: anyRun.Draw(t, "run"), Role: anyRole.Draw(t, "role"), Opened: anyTime.Draw(t, "opened"),
		})
	}
	for range rapid.IntRange(0, 2).Draw(t, "facts") {
		in.Endpoints = append(in.Endpoints, EndpointFact{
			Endpoint: anyAddr.Draw(t, "endpoint"), Forget: rapid.IntRange(0, 5).Draw(t, "forget") == 0, Backend: anyBackend.Draw(t, "backend"),
			State: rapid.SampledFrom([]NodeState{"", StateOK, StateFailed, StateRemoved, StateDemoted, StateReplaced, "nonsense"}).Draw(t, "node state"),
			Since: anyTime.Draw(t, "since"), RunID: anyRun.Draw(t, "run"), Role: anyRole.Draw(t, "role"), At: anyTime.Draw(t, "at"),
			Successor: anyBackend.Draw(t, "successor"), Policies: Policies{
				OnDown: rapid.SampledFrom([]Policy{"", "", PolicyIgnore}).Draw(t, "own on_down"), OnRemoved: rapid.SampledFrom([]Policy{"", PolicyReap, PolicySignal}).Draw(t, "own on_removed"),
			},
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "fenced") {
		in.Fenced = append(in.Fenced, FenceState{anyPath.Draw(t, "path"), rapid.SampledFrom([]FenceStanding{FenceStands, FenceRefused, FenceGone}).Draw(t, "standing")})
	}
	for range few("samples") {
		in.Samples = append(in.Samples, Sample{
			Key: anyKey.Draw(t, "key"), State: State(rapid.IntRange(0, 3).Draw(t, "state")), Timer: Timer(rapid.IntRange(0, 5).Draw(t, "timer")),
			Retrans: uint8(anyCount.Draw(t, "retrans")), Unacked: anyCount.Draw(t, "unacked"), RTT: anyTime.Draw(t, "rtt"),
			LastDataSent: anyTime.Draw(t, "sent"), LastDataRecv: anyTime.Draw(t, "recv"), LastAckRecv: anyTime.Draw(t, "ack"),
			DataSegsOut: anyCount.Draw(t, "out"), TotalRetrans: anyCount.Draw(t, "total"), RTO: anyTime.Draw(t, "rto"), At: anyTime.Draw(t, "at"),
			Counters: Counters{
				SegsIn: anyCount.Draw(t, "in"), DataSegsIn: anyCount.Draw(t, "data in"), Delivered: anyCount.Draw(t, "delivered"),
				BytesReceived: uint64(anyCount.Draw(t, "bytes")), BytesAcked: uint64(anyCount.Draw(t, "acked")),
			},
		})
	}
	for range few("asked") {
		in.Asked = append(in.Asked, Asked{Key: anyKey.Draw(t, "key"), At: anyTime.Draw(t, "at"), Unable: rapid.SampledFrom([]string{"", "", "no right"}).Draw(t, "unable")})
	}
	for range rapid.IntRange(0, 1).Draw(t, "gone") {
		in.Gone = append(in.Gone, anyKey.Draw(t, "key"))
	}
	for range few("probes") {
		in.Probes = append(in.Probes, Probe{
			ID: uint64(rapid.IntRange(0, 6).Draw(t, "id")), Path: anyPath.Draw(t, "path"), Started: anyTime.Draw(t, "started"),
			Ended: anyTime.Draw(t, "ended"), Outcome: Outcome(rapid.IntRange(0, 6).Draw(t, "outcome")), Connected: anyTime.Draw(t, "connected"),
			Backend: anyBackend.Draw(t, "backend"), RunID: anyRun.Draw(t, "run"), Role: anyRole.Draw(t, "role"),
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "hops") {
		in.NextHops = append(in.NextHops, NextHop{
			Path: anyPath.Draw(t, "path"), At: anyTime.Draw(t, "at"), LinkDown: rapid.IntRange(0, 5).Draw(t, "link") == 0,
			Gateway: Neighbour(rapid.IntRange(0, 4).Draw(t, "gateway")), Endpoint: Neighbour(rapid.IntRange(0, 4).Draw(t, "neighbour")),
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "unrelated") {
		in.Unrelated = append(in.Unrelated, Unrelated{
			NS: NS(rapid.IntRange(0, 3).Draw(t, "ns")), At: anyTime.Draw(t, "at"), Heard: rapid.IntRange(-1, 2).Draw(t, "heard"),
			Stalled: rapid.IntRange(-1, 2).Draw(t, "stalled"), Window: anyTime.Draw(t, "window"),
		})
	}
	for range rapid.IntRange(0, 1).Draw(t, "reaped") {
		in.Reaped = append(in.Reaped, ReapResult{
			Key: anyKey.Draw(t, "key"), At: anyTime.Draw(t, "at"),
			Outcome: rapid.SampledFrom([]ReapOutcome{ReapDone, ReapSpared, ReapGone, ReapFailed, ReapDryRun, "nonsense"}).Draw(t, "outcome"),
			Heard:   rapid.Bool().Draw(t, "heard"), Postponed: rapid.IntRange(0, 5).Draw(t, "postponed") == 0,
		})
	}
	return in
}
