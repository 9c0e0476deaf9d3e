// Package resolver keeps the addresses of host names up to date from DNS, for a
// daemon that runs on thousands of nodes, and says what has changed.
//
// Table is the state machine. It is pure: time and randomness are arguments, queries
// that it wants go out (Next), what came of them goes in (Observe), and changes
// come out. Resolver drives a Table: it reads resolv.conf, sends the queries and
// calls back. It works in the network namespace of its process. IP literals are not
// names and are refused, and which addresses may be used is the caller's affair: an
// answer is what somebody said on the network.
//
// # What a name stands for
//
// A and AAAA records of the name, after the CNAMEs within the same answer (at most
// 16). Both families are one set; the order within an answer means nothing.
//
// An address is added by the first answer that has it. It is withdrawn after it was
// missing from three answers in a row, which are at least 10 s apart: for a name with a
// short TTL, 20 to 40 s after it was taken away. Some servers show a part of a large set
// each time, in turns or at random; there an address that is missing comes back. Where
// one has come back after n answers without it, 2n+1 answers are needed from then on, at
// most 32, until none has come back in 32 answers. Where each answer shows half of the
// set at random, n is 4 after a few answers, and an address is missed 9 times in a row
// with probability 1/512, 17 times with 1/131072 (n has then grown again). Where each
// shows a fifth of 40 addresses, one is withdrawn wrongly about every 160 answers, and
// comes back (TestPartialAnswers). What follows from a withdrawal has to bear that.
//
// An answer that the name does not exist (NXDOMAIN) or has no address (NODATA), a
// failure (SERVFAIL, REFUSED, nonsense) and silence withdraw nothing, for however
// long they last. The set is then Stale, since State.Confirmed, and State.Err says
// why. If one family is answered and the other has no records, the other is empty;
// its addresses are withdrawn as above.
//
// # When a name is asked for
//
// When its TTL has run out, which is taken for 10 s if it is less and for 60 s if it
// is more, and up to a quarter later, at random. 10 s, because shorter ones are in use (5 s
// is the default of CoreDNS for a Kubernetes service) that a fleet must not follow. 60 s,
// because an address that was taken away is to be known within some minutes; a caching
// server on the way answers the same until its own copy has run out. After failures: 10,
// 20, 40, 60 s. The family without records is asked about every 60 s.
//
// The budget: a node sends at most 2 + 0.15 t queries in any t seconds, repetitions and
// TCP included, which makes 11 a minute. So 5,000 nodes send at most 917 a second as the
// mean of any minute, and 1,000 in any one second if nothing keeps them in step: when
// names are added, and at the start, what was saved up is dropped for a random part of
// one query, so that nodes which start in the same second or are given the same config
// spread what they ask evenly, 750 a second. (TestFleet has these cases, and that all
// servers fall silent.) The first address of one name is known 3.3 s after the start on
// average, that of the n-th 6.7 (n-1) s later. What is due for longest is asked for
// first; every second query goes to a name that was never asked for, if there is one. The
// budget is enough for one name with a TTL of 10 s, or five of 60 s; with more of them
// each is asked for less often, and withdrawn later.
//
// # As the C library does
//
// resolv.conf is read as glibc 2.36 does: nameserver (the first three), search and
// domain (the last one), options ndots, timeout, attempts, rotate, use-vc, no-aaaa,
// no-tld-query. Servers are asked in their order, with glibc's timeouts; a truncated
// answer is asked for again over TCP. SERVFAIL, REFUSED and silence lead to the next
// server. A name with a trailing dot is absolute. Others are tried as they are and
// with each search domain, in the order that ndots says, until one has an address or a
// CNAME. TestLikeGlibc compares with the C library itself.
//
// Differences, each to save queries: the absolute name that had addresses is asked
// for alone until it has none any more, and the whole list is searched only then, and
// every 10 minutes if others come before it; A is asked before AAAA, not beside it,
// and AAAA is left out where nobody answers A. There is no EDNS0: without it an answer of
// more than 512 bytes (some 28 addresses) costs one more query over TCP, and fragments,
// of which an attacker may forge the second, do not occur. Not read: /etc/hosts,
// nsswitch.conf, and LOCALDOMAIN and RES_OPTIONS in the environment, which belong to
// one process and not to the node.
//
// # Against forgery
//
// Each query has a random id and a socket of its own, hence a random port, connected
// to the server, so that the kernel drops what others send. An answer must repeat the
// id and the question. What does not is ignored and counted. All else (parsing,
// names, addresses) is bounded, see Limits.
package resolver
