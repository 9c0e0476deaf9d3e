// Package resp speaks RESP, the protocol of Redis, with servers that need not be
// Redis. The daemon runs as root and dials addresses that it has learned, so a
// reply is hostile until it has been read: whatever comes, reading it is bounded in
// memory, in depth and in length, and memory is taken as bytes arrive and never
// because a length was announced.
//
// A command goes out as an array of bulk strings (AppendCommand) or, where one
// that any server takes for harmless is wanted, as a line of words (AppendInline).
// What comes back is read with a Reader, one Value at a time:
//
//	r := resp.NewReader(conn, resp.Limits{})
//	conn.Write(resp.AppendCommand(nil, "HELLO", "3"))
//	v, err := r.Read()
//
// A server that was asked for RESP3 (HELLO 3) may send unrequested messages
// for between two replies. Their Kind is Push, and no reply has it. With RESP2,
// messages of a subscription are arrays like any other, and only the caller can
// tell them.
//
// # The form of a value
//
// A value begins with a byte that says of what kind it is, and a line that ends
// with CR LF.
//
//	+OK                    a simple string
//	-ERR no such key       an error
//	:42                    a number; ,3.14 a double; (349... a big number
//	#t                     a boolean
//	_                      null; RESP2 has $-1 and *-1 for it
//	$5 CR LF hello         a bulk string: any bytes, after their number
//	!5 CR LF ERR x         an error in that form
//	=9 CR LF txt:hello     a verbatim string: three letters say how to show it
//	*2                     an array, followed by two values; ~2 a set, >2 a push
//	%1                     a map, followed by one key and one value
//	|1                     attributes of the value that comes next, as a map
//
// RESP3 also knows strings and arrays of unknown length ($?, *?). No server of
// today sends them unasked, and they are refused.
//
// # Errors
//
// Read has three kinds of failure, since what follows from them differs. ErrProtocol:
// this is not RESP, so it is no Redis, or nothing that can be talked to. ErrLimit: it
// may well be Redis, but the reply is more than we are ready to hold; what it says is
// not known. Any other error is the connection's: io.EOF between two values,
// io.ErrUnexpectedEOF within one, or a deadline. After an error within a value the
// place in the stream is lost, so Read returns the same error from then on: close
// the connection.
package resp
