// Package session holds one connection of our own to a Redis node or a Sentinel:
// commands go in, values of package resp come out. What they mean is no matter of
// this package.
//
//	conn, err := session.Dial(ctx, addr, session.Config{Timeout: time.Second})
//	replies, err := conn.Do(ctx, []string{"ROLE"}, []string{"INFO", "server"})
//
// The peer may be anything, as it is dialled because somebody has named its address.
// So each step has a deadline that no trickle of bytes moves, a reply is bounded by
// [resp.Limits], and messages that nobody asked for by a rate. A connection on which
// something failed is closed, and returns the same error from then on: what would be
// read next might belong to another command. No goroutine belongs to a connection.
//
// # Passwords
//
// A password leaves this process in one function (Conn.credentials), and in two cases
// only: the server has proven its name by a certificate, or the socket was made in the
// namespace that [Config.Home] names and [Config.MayAuthenticate] has nothing against
// the address. In a pod's namespace an address proves nothing, since whoever has
// CAP_NET_ADMIN there can lead it to a listener of their own. What was withheld, and
// why, [Conn.Withheld] tells; the connection goes on without it.
//
// A [Password] does not print. The text of an error reply to a command that had a
// password in it is dropped, because servers quote what they do not understand: Redis 5
// answers HELLO with the first of its arguments.
//
// # Namespaces
//
// A socket belongs to the namespace of the thread that makes it. [Open] or [In] make
// one, [Socket.Dial] waits for the network on any goroutine. Sockets have SO_LINGER
// {1, 0}: a close sends RST and leaves nothing, neither TIME_WAIT nor an unanswered FIN,
// that would keep a pod's namespace.
//
// # When a connection dies
//
// While a reply is awaited its deadline tells. Nothing is awaited in [Conn.Idle], so
// keepalive tells: after 3 s of silence the kernel asks five times, a second apart, and
// so gives up after 8 s. At a loss of 10 % each way that is wrong once in three hours
// (0.19^5 every 3 s), and costs a connect; at 1 % once in thirty years. TCP_USER_TIMEOUT
// is not set: the kernel would ignore the count for it, and what is unacknowledged has a
// deadline already.
// [Subscription.Receive] sends a PING into the silence, since a frozen server's kernel
// still answers keepalive.
package session
