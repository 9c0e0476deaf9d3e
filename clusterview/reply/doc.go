// Package reply says what the replies of Redis nodes and Sentinels mean: a resp.Value, or
// the text of a message, goes in, a plain value comes out. It reads both forms of a reply
// (RESP2 has flat arrays where RESP3 has maps) from Redis 6.2 to 8 and Valkey up to 9. What
// newer servers add (keys of a map, flags, auxiliary fields) is passed over.
//
// A reply is hostile until it has been read. Nothing here panics; numbers, names and ids are
// checked before they are kept; and what a reply can make us hold is bounded by MaxNodes and
// MaxRanges. A reply that is not understood is an error as a whole and never a shorter list: a node
// that is left out would look as if it were gone. For the same reason a list that was cut
// says so (Dropped), and nothing may be concluded from what is not in it.
//
// # Where a node is
//
// A node is told of by an Address. Redis has three ways to leave it open, and they mean
// different things: an empty or null endpoint is "where you have reached me", "?" is "I do
// not know", and the flag noaddr is "nobody knows".
package reply
