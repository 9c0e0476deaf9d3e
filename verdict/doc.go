// Package verdict decides which connections are half-dead and which endpoints
// are down, and nothing else.
//
// It is pure: no clock, no socket, no goroutine. Observations and the time come
// in through [Core.Step]; events and actions go out. The same observations give
// the same decisions, so a recorded stream can be run again under other settings
// (`redisguard replay`), and the tests are scripts.
//
// # What counts as evidence
//
// A connection is *heard* when it makes progress: bytes were received or acknowledged, or
// an empty segment was answered (see [Counters]); never when its peer only repeats what it
// has sent. It is *waiting* while something that it sent, or was *asked*, is unanswered;
// each transmission really made (never a mere timeout) and not answered counts. To ask is
// to have its kernel send one empty segment at once ([Output].Ask), which the peer's kernel
// answers. A *probe* is a fresh connection to the same endpoint with a PING. All
// connections of one network namespace to one endpoint form a *path*.
//
// New connections (probes, and connects of applications) say something about new
// connections, established ones about themselves. "Nothing heard" where nobody was asked is
// no evidence. One that its peer has not accepted yet counts as a connect.
//
// # The rules
//
// A silence is judged by how improbable it is on a path with the loss that is
// seen now: with p the share of transmissions lost lately and b the probability
// that a loss follows a loss (bursts), n transmissions in a row are lost with
// probability p*b^(n-1). A success in between, of a probe for instance, ends a
// burst: what is lost after it costs another p. See [loss].
//
//   - flow: a connection's transmissions stay unanswered before and after a probe
//     that succeeded, so its own flow is broken and a new connection will work.
//     Reaped when the likelihood is below one in ten million, and after
//     MinSilence at the earliest.
//   - connecting: a connect hangs while others work.
//   - down: established connections are unanswered, in flight or asked, probes get no
//     answer either, nothing is heard on the path, and a transmission made at the *end* of
//     DownAfter is unanswered as well. (A pause shorter than DownAfter therefore never
//     counts, however unlucky the moments of transmission.) Those connections of the path
//     are reaped that have something of their own unanswered; the others are asked.
//   - unresponsive: probes connect but get no reply, where they had one before, and no
//     connection receives data. The process is frozen or busy; by default this is only
//     signalled.
//
// Where the successor of a connection that was reaped by flow or connecting dies in the same
// way, reaping does not help, and the pause before the next grows.
//
// # The rules about topology
//
// A cluster view says facts about endpoints ([EndpointFact]); it and probes tell which
// process stands behind an address, and in which role. What to do is a policy, of the
// endpoint or of the settings, by default to signal.
//
//   - failed: the view says that the node has failed, and nothing of it was heard since
//     then, by any connection or probe of this node, for MinSilence.
//   - removed: the view says that the node was taken out of its deployment. Connections
//     that are opened after that are only signalled.
//   - demoted: the node is a replica now, and the connection is known to have been
//     opened while it was the primary.
//   - replaced: another process has been met behind the address, and the connection is
//     known to lead to the one before.
//
// Each connection is judged once for a fact, and all is taken back when the fact does
// not hold any more.
//
// # What is never reaped
//
// A connection that makes progress is never reaped by flow, connecting, down, unresponsive,
// connecting-to-down or failed, whatever the policies, and none by these (but failed) that
// has nothing of its own unanswered: to be heard after the verdict saves it, and by down
// all that were condemned with it. For unresponsive progress is a reply. The rules removed, demoted and replaced are about connections that make
// progress, to a node that is not the right one any more: where the policy is to reap
// they are ended all the same ([Reap].Live).
//
// # Fences
//
// Output.Fence lists the paths on which new connections should be refused now, so that
// a client that is let go does not hang in its next connect: those that are down, and
// those to nodes that the view calls failed, removed, or demoted with a successor, where
// the policy is to reap. It is complete in each step. A reap waits for the fence of its
// path, for fenceWait at most.
//
// *Doubt* holds the reaping: our link is down, the gateway does not answer,
// connections that have nothing to do with Redis stall as well, or our own loop
// is late.
package verdict
