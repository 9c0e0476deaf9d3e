// Package tcpstate tells what a TCP connection is doing, from the kernel's own
// tables, and ends one when asked to.
//
// It is a codec for inet_diag (linux/inet_diag.h) over raw sock_diag netlink
// sockets, with three operations on a [Socket]:
//
//   - [Socket.Dump] lists the connections of one network namespace, both address
//     families in one walk, remote ports filtered in the kernel.
//   - [Socket.Get] looks at exactly the connections named, some 2 us each.
//   - [Socket.Destroy] aborts exactly the connections named (SOCK_DESTROY).
//
// Connections are identified by [ID]: the 4-tuple and the socket's cookie. The
// cookie is what makes destroying safe: a successor on the same 4-tuple has
// another one, and the kernel then answers ENOENT instead of hitting it. A socket that is
// bound to an interface (a VRF, SO_BINDTODEVICE, a link-local peer) is found only with the
// index of that interface, which a dump tells and the kernel's tracepoints do not:
// [InterfacesFile] lists what may be tried.
//
// A v4 connection of a dual-stack socket appears as ::ffff:a.b.c.d in an
// AF_INET6 record. The codec turns it into plain v4, so that matching addresses
// needs no second thought, and remembers the family in [Connection.V6].
//
// A Socket works in the network namespace of the thread that opened it, and pins
// that namespace while it is open: open, use and close it within one visit. All
// its buffers are kept from visit to visit; in steady state nothing allocates.
//
// What a dump says is not the whole truth: the kernel's walk may miss or repeat
// a socket without any notice, so [Socket.Dump] repeats what it got, the caller
// drops what it has by cookie, and one dump is no proof that a
// connection is gone; [Socket.Get] answers that.
package tcpstate
