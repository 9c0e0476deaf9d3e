// Package v1 holds what travels over redisguard's Unix sockets: the JSON of
// requests, answers and events. docs/openapi.yaml describes the same for other
// languages, and a test holds the two against each other.
//
// The rules of this version: fields are only ever added, so a decoder must
// ignore unknown ones; words from a closed list are strings, and a list
// may grow; times are RFC 3339 in UTC; durations and ages are integers with the
// unit in their name; what does not apply is left out. An answer is the thing
// itself, without a wrapping; an error is an [ErrorBody] with a fitting status.
//
// # Identifiers
//
// A namespace id is a decimal number, a connection id "<namespace id>-<cookie in
// hexadecimal>", a finding id "f<seq>" after the event that opened it, and a cursor
// "<epoch>-<seq>", where the epoch is new for each run of the daemon. Treat all of
// them as opaque.
package v1
