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
// A connection is *heard* when segments of its peer arrive (the kernel counts
// them per socket). It is *waiting* while something that it sent is unanswered;
// each transmission really made (never a mere timeout) and not answered counts.
// A *probe* is a fresh connection to the same endpoint with a PING. All
// connections of one network namespace to one endpoint form a *path*.
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
//   - down: nothing at all is heard on a path any more, probes get no answer
//     either, and a transmission made at the *end* of DownAfter is unanswered as
//     well. (A pause shorter than DownAfter therefore never counts, however
//     unlucky the moments of transmission.) All connections of the path are
//     reaped, the idle ones too.
//   - unresponsive: probes connect but get no reply, and no connection receives
//     data. The process is frozen or busy; by default this is only signalled.
//
// *Doubt* holds the reaping: our link is down, the gateway does not answer,
// connections that have nothing to do with Redis stall as well, or our own loop
// is late.
package verdict
