package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Bounds of a reply. A lab's servers are its own, but a test may put anything
// behind an address.
const (
	maxBulk     = 1 << 20
	maxElements = 1 << 14
	maxDepth    = 8
)

// replyError is an error reply of the server, such as "READONLY You can't ...".
type replyError string

func (e replyError) Error() string { return string(e) }

var errProtocol = errors.New("the reply is not in Redis's protocol, or too large")

// command encodes a request.
func command(args ...string) []byte {
	b := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b
}

// readReply reads a RESP2 reply: a string, an int64, a []any, a replyError
// within an array, or nil. An error reply by itself is returned as the error.
func readReply(r *bufio.Reader) (any, error) {
	v, err := readValue(r, 0)
	if e, ok := v.(replyError); ok {
		return nil, e
	}
	return v, err
}

func readValue(r *bufio.Reader, depth int) (any, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errProtocol
	}
	if err != nil {
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, errProtocol
	}
	kind, text := line[0], string(line[1:len(line)-2])
	switch kind {
	case '+':
		return text, nil
	case '-':
		return replyError(text), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return nil, errProtocol
	case kind == ':':
		return n, nil
	case n == -1 && (kind == '$' || kind == '*'):
		return nil, nil
	case kind == '$' && n >= 0 && n <= maxBulk:
		b := make([]byte, n+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if string(b[n:]) != "\r\n" {
			return nil, errProtocol
		}
		return string(b[:n]), nil
	case kind == '*' && n >= 0 && n <= maxElements && depth < maxDepth:
		var values []any
		for range n {
			v, err := readValue(r, depth+1)
			if err != nil {
				return nil, err
			}
			values = append(values, v)
		}
		return values, nil
	}
	return nil, errProtocol
}
