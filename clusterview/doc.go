// Package clusterview knows a Redis deployment by what its nodes and Sentinels say: who is
// there, at which addresses, in which role, with which slots, and how well. It is pure: no
// socket, no goroutine, no clock. A View says what it wants to be asked (Wants,
// Subscriptions); whoever dials gives it the replies (Answer, Unanswered, Message), and takes
// from it an immutable Topology, the Changes with their evidence, and the Facts from which the
// decision core judges connections:
//
//	v := clusterview.New(clusterview.Config{Name: "orders", Allow: allow, Random: random})
//	v.SetSeeds(now, seeds)
//	v.SetLocal(now, 12)
//	for {
//		wants, again, more := v.Wants(now)
//		// for each: dial, send its Commands, read as many replies, close; then
//		v.Answer(now, want, sent, replies)
//	}
//
// What the replies mean is in package reply.
//
// # What is believed
//
// One node's view is one node's opinion: it may be cut off from the others, or lie. A view counts
// for what the last agreed topology makes of its node, not for what it says of itself.
//
//   - Redis Cluster: the views of the primaries that have slots are merged. A majority of those
//     that can be reached decides about fail, and with it addresses and names; pfail is an
//     opinion until most of them share it and we get no answer either. A slot's new owner and a new
//     role must be confirmed by the node itself or by a majority of all, and a lower config epoch
//     never wins. Views that have lost against a new owner are not counted against it again. Only
//     a majority of all, for 5 s, removes a node. Where there is no majority, what held before
//     holds. Addresses are voted on by family and by TLS, as nodes may name others to others.
//   - Sentinel: a majority of those that were reached and are not in TILT names the primary, or
//     the highest config epoch or a message of a Sentinel does, if it names a known replica and the
//     primary before does not answer as one; and in any case the new primary must say so itself (ROLE).
//   - Replication: each node speaks for itself. Two primaries are a split brain: told, and nothing
//     follows.
//   - A virtual address: another process there proves nothing. That the one before was succeeded
//     is proven by lineage only: the same process became a replica, or a primary answers whose
//     master_replid2 is the master_replid of the primary before. Where processes alternate, nothing
//     is ever stale.
//
// A failover is slots of a primary at a node that was its replica, is a primary now, and has a
// higher config epoch. Slots that go to a node which was a primary before, all or in part, are a
// change of slots, whatever the epochs.
//
// # What is bounded
//
// Addresses outside Config.Allow are never asked and never become endpoints; they are counted
// and told as a Problem. So is what exceeds a bound: nodes (2,000), addresses of a node (8),
// Sentinels (15), views that are merged (31). An answer of another cluster is not merged.
//
// # When is asked
//
// Nothing is, while this node has no connection to the target and nobody asks (Wake). Else each
// server is asked in an interval, and for some seconds much more often on a hint: an observation
// of our own (Suspect), a message of a Sentinel, a view that differs, a server that does not
// answer. How often at most is in schedule.go: a daemon takes the share of a server's budget that
// its node has of the server's connections, so that all daemons together keep it without knowing of
// each other.
package clusterview
