package verdict

import "time"

// Policy says what to do about the connections to an endpoint in some state.
type Policy string

// The policies: end the connections, only tell, or not even that.
const (
	PolicyReap   Policy = "reap"
	PolicySignal Policy = "signal"
	PolicyIgnore Policy = "ignore"
)

// Settings are the numbers that decisions depend on. All must be set but those of the
// cluster view. They are comparable with ==.
type Settings struct {
	// HostNS is the host's namespace, through whose uplink the others reach the
	// world.
	HostNS NS
	// DownAfter is how long an endpoint must have been silent to be down.
	DownAfter time.Duration
	// MinSilence is how long a single flow must have been silent to be broken.
	MinSilence time.Duration
	// Rate is how many connections may be reaped per second, Burst how many at
	// once.
	Rate  float64
	Burst int
	// MaxShare is the share of the node's tracked connections that evidence of
	// one kind alone may reap in a minute, once there are more than
	// BreakerFloor of them.
	MaxShare float64
	// Spread is the widest window over which the reaps of one endpoint are
	// spread. It is used in full from SpreadFull connections on.
	Spread time.Duration
	// AcceptRate is how many connections a second the successor of an endpoint can bear: all nodes
	// judge in the same second, so the reaps are spread over the time that its clients need at
	// that rate (EndpointFact.Clients). 0 is off.
	AcceptRate float64 `json:",omitempty"`
	// ProbesPerSecond is the cap per endpoint, with a burst of probeBurst.
	ProbesPerSecond float64
	// Baseline is how often a path of a healthy endpoint is probed, so that a
	// later failure means something.
	Baseline time.Duration
	// Blind says that Output.Look is not answered, as in a replay: verdicts rest on
	// what has been seen then.
	Blind          bool `json:"-"`
	OnDown         Policy
	OnUnresponsive Policy
	// The policies about what a cluster view says; empty is PolicySignal. All of these
	// are the defaults for endpoints about which no EndpointFact names one.
	OnFailed   Policy `json:",omitempty"`
	OnRemoved  Policy `json:",omitempty"`
	OnDemoted  Policy `json:",omitempty"`
	OnReplaced Policy `json:",omitempty"`
	// Fence has Output.Fence computed, and reaps wait for the fences in it.
	Fence bool `json:",omitempty"`
}

// The constants behind the rules, each with its reason.
const (
	// BreakerFloor: with fewer connections a share means nothing (design.md,
	// safety promise 4).
	BreakerFloor = 20
	// SpreadFull: Redis accepts some 10,000 connections a second and core
	// without TLS; a tenth of that leaves it room to work.
	SpreadFull = 1000
	// acceptSpread is the widest window that AcceptRate makes: who waits for longer is better off
	// with the kernel's own timers (tcp_retries2 = 5: 13 s).
	acceptSpread = 10 * time.Second
	// breakerWindow is the minute of safety promise 4.
	breakerWindow = time.Minute
	// lateAnswer makes a connection suspect: an acknowledgement may be delayed
	// by up to 40 ms (TCP_DELACK_MIN; 200 ms is rare), a loss probe goes out
	// after some 220 ms (facts.md). Slower paths get four round trips more.
	lateAnswer = 150 * time.Millisecond
	// answerMin and answerMax bound the time that an answer is waited for
	// before a transmission counts as unanswered; in between it is four of the
	// probe's usual round trips.
	answerMin = 100 * time.Millisecond
	answerMax = time.Second
	// rtoMin is TCP_RTO_MIN, the least time between two retransmissions.
	rtoMin = 200 * time.Millisecond
	// probeBurst: a broken flow takes one probe before and one after each of its
	// first retransmissions; one more for the end of DownAfter is kept in
	// reserve.
	probeBurst = 6
	// probeGap is the least time between two probes of one endpoint.
	probeGap = 100 * time.Millisecond
	// maxPending bounds the probes under way per endpoint; one more may go where
	// a verdict waits for it.
	maxPending = 3
	// downProbeMax is the slowest pace of probing an endpoint that is down.
	downProbeMax = 5 * time.Second
	// riseProbes is how many probes in a row must succeed to bring an endpoint
	// up again when no connection is heard.
	riseProbes = 2
	// lateStep is how late our own loop may be before we doubt ourselves, and
	// lateGrace how long we then look before we judge again.
	lateStep  = 400 * time.Millisecond
	lateGrace = time.Second
	// nextHopFresh is how old a look at the next hop may be to serve as
	// evidence, nextHopWait how long a decision waits for one.
	nextHopFresh = time.Second
	nextHopWait  = 500 * time.Millisecond
	// nextHopRate is how many looks at next hops a node makes per second, and
	// nextHopBurst how many at once: each takes up to 2 ms of CPU. A namespace has one in
	// nextHopWait at most, whatever number of paths it has.
	nextHopRate  = 10
	nextHopBurst = 20
	// sharedFate is how many namespaces make one look at the way out serve all: what they
	// have in common is the host's way out and the endpoint.
	sharedFate = 3
	// lookFresh is how old the looks at the connections that a verdict is about
	// may be: a little more than the usual tick.
	lookFresh = 250 * time.Millisecond
	// unrelatedPause is the time between two looks at unrelated connections, in one
	// namespace and, after a burst, on the node: each is a dump, some 20 ms on a
	// crowded node.
	unrelatedPause = 5 * time.Second
	unrelatedBurst = 4
	// unrelatedAtMost is for how many times DownAfter unrelated connections hold a
	// verdict back.
	unrelatedAtMost = 10
	// unrelatedAfter is how long a silence lasts before unrelated connections are
	// looked at: by then theirs shows too. What they have heard within unrelatedSlack of its
	// beginning may have been on its way already.
	unrelatedAfter = 500 * time.Millisecond
	unrelatedSlack = 100 * time.Millisecond
	// suspectProbe is the pace of probes while a silence lasts; from four seconds
	// on it gets slower, down to suspectProbeMax.
	suspectProbe    = 500 * time.Millisecond
	suspectProbeMax = 10 * time.Second
	// wakePerSuspect and wakeMax keep steps apart when there are many suspects.
	wakePerSuspect = 800 * time.Microsecond
	wakeMax        = 100 * time.Millisecond
	// quietAfter is how long connections may wait for a reply that is not a
	// matter of TCP (a blocking command looks the same) before a probe asks.
	quietAfter = time.Second
	// quietMax bounds the growing pause between such probes.
	quietMax = 30 * time.Second
	// backWithin is how soon a client should be back after a reap.
	backWithin = 30 * time.Second
	// rememberDown is how long an endpoint is known to be down, or a fence for it kept,
	// after the last connection to it went; clients with a backoff return within this
	// time.
	rememberDown = time.Minute
	// fenceWait is how long a reap waits for the fence of its path. Setting one takes
	// some milliseconds (a netlink transaction, behind the kernel's commit mutex that all
	// of the node's nftables users share); a client that is let go without it hangs in
	// its next connect, which is worse than to be let go a fifth of a second later.
	fenceWait = 200 * time.Millisecond
	// endOfTime, some 36 years after boot, keeps sums of times from overflowing.
	endOfTime = 1 << 60
	// connectTries requests of a connect must be unanswered, and connectSilence have
	// passed, before it is found to hang: the third goes out after two seconds
	// (tcp_syn_linear_timeouts; three on kernels before 6.5).
	connectTries   = 3
	connectSilence = 2 * time.Second
	// downWitnesses is in how many namespaces an endpoint must be down to speak for it in
	// another one, whose own connections are unanswered as well.
	downWitnesses = 3
	// synTimeout is when a connection request is repeated first (TCP_TIMEOUT_INIT, RFC 6298).
	synTimeout = time.Second
	// idleDownAfter is how many times DownAfter fresh connections must be unanswered where
	// established ones cannot be asked: only what they are used for tells of them.
	idleDownAfter = 3
	// connectFor is for how long a connect that hangs is a reason to probe; by then it was
	// judged, or never will be.
	connectFor = 10 * time.Second
	// baselineGap keeps baselines apart: a hundred endpoints have theirs within 20 s.
	baselineGap = 200 * time.Millisecond
	// suspectFor ends a suspicion that nothing confirms.
	suspectFor = 5 * time.Second
	// maxFailures is how often a failing reap is tried, reapRetry the pause in
	// between.
	maxFailures = 3
	reapRetry   = time.Second
	// settledFor is how soon a node about which all is done is looked at again, beside when
	// something new is known of it: a removed one may stay so for days.
	settledFor = time.Second
	// postponed is the pause after a reap that was not tried since what may be done has
	// changed: by then the permits follow from the new policy.
	postponed = 200 * time.Millisecond
)
