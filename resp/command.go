package resp

import (
	"fmt"
	"strconv"
	"strings"
)

// AppendCommand appends a command to b as Redis takes it from clients: an array of
// bulk strings, which may hold any bytes.
func AppendCommand(b []byte, args ...string) []byte {
	b = append(b, byte(Array))
	b = strconv.AppendInt(b, int64(len(args)), 10)
	b = append(b, '\r', '\n')
	for _, a := range args {
		b = append(b, byte(Bulk))
		b = strconv.AppendInt(b, int64(len(a)), 10)
		b = append(b, '\r', '\n')
		b = append(b, a...)
		b = append(b, '\r', '\n')
	}
	return b
}

// AppendInline appends a command as a line of words, which every Redis since 1.0
// understands. Words are not quoted, so those that would have to be are refused, as
// is a command of no words, which Redis does not answer.
func AppendInline(b []byte, args ...string) ([]byte, error) {
	if len(args) == 0 {
		return b, fmt.Errorf("cannot write an inline command: it has no words")
	}
	for _, a := range args {
		plain := func(r rune) bool { return r > ' ' && r <= '~' && r != '"' && r != '\'' }
		// A line that begins as an array does would be taken for one.
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return !plain(r) }) || a[0] == byte(Array) {
			return b, fmt.Errorf("cannot write an inline command: %q is no plain word", a)
		}
	}
	return append(append(b, strings.Join(args, " ")...), '\r', '\n'), nil
}
