package resp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// ErrProtocol says that what came is not RESP.
var ErrProtocol = errors.New("this is not RESP")

// ErrLimit says that a reply is larger than the Limits: what it says is not known.
var ErrLimit = errors.New("more than is accepted")

// Reader reads values from a stream. It reads ahead: the stream belongs to it. It is
// for one goroutine at a time.
type Reader struct {
	in     *bufio.Reader
	limits Limits
	left   int // of limits.Total, for the value that is being read
	line   []byte
	failed error // the place in the stream is lost
}

// NewReader reads from r, at most limits at a time.
func NewReader(r io.Reader, limits Limits) *Reader {
	return &Reader{in: bufio.NewReader(r), limits: limits.withDefaults()}
}

// Read reads the next value: a reply or, with RESP3, an unrequested Push.
// Errors are described in the package comment. An error of the stream before the
// first byte of a value, such as a deadline, is returned as it is, and Read may be
// called again.
func (r *Reader) Read() (Value, error) {
	if r.failed != nil {
		return Value{}, r.failed
	}
	if _, err := r.in.Peek(1); err != nil {
		return Value{}, err
	}
	r.left = r.limits.Total
	v, err := r.value(1)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		r.failed = fmt.Errorf("cannot read a reply: %w", err)
		return Value{}, r.failed
	}
	return v, nil
}

// value reads one value that is depth deep. It recurs at most limits.Depth times.
func (r *Reader) value(depth int) (Value, error) {
	if depth > r.limits.Depth {
		return Value{}, fmt.Errorf("values within each other are %d deep, at most %d: %w", depth, r.limits.Depth, ErrLimit)
	}
	var attributes []Value
	for {
		kind, text, err := r.header()
		if err != nil {
			return Value{}, err
		}
		if kind == attribute {
			// Attributes come before the value that they are about, any number of times.
			more, err := r.elements(kind, text, depth)
			if err != nil {
				return Value{}, err
			}
			attributes = append(attributes, more...)
			continue
		}
		if kind == Push && depth > 1 {
			return Value{}, fmt.Errorf("a push within another value: %w", ErrProtocol)
		}
		v, err := r.body(kind, text, depth)
		v.Attributes = attributes
		return v, err
	}
}

// header reads the first line of a value. text is valid until the next call.
func (r *Reader) header() (kind Kind, text []byte, err error) {
	// The first byte alone: what is not RESP need not have an end of line.
	first, err := r.in.Peek(1)
	if err != nil {
		return 0, nil, err
	}
	kind = Kind(first[0])
	if _, ok := kindNames[kind]; !ok {
		return 0, nil, fmt.Errorf("a value begins with %q: %w", first[0], ErrProtocol)
	}
	r.line = r.line[:0]
	for {
		part, err := r.in.ReadSlice('\n')
		if len(r.line)+len(part) > r.limits.Line {
			return 0, nil, fmt.Errorf("a line of more than %d bytes: %w", r.limits.Line, ErrLimit)
		}
		r.line = append(r.line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return 0, nil, err
		}
	}
	n := len(r.line) - 2
	if n < 1 || r.line[n] != '\r' {
		return 0, nil, fmt.Errorf("a line ends without CR: %w", ErrProtocol)
	}
	for _, c := range r.line[:n] {
		if c == '\r' {
			return 0, nil, fmt.Errorf("CR within a line: %w", ErrProtocol)
		}
	}
	return kind, r.line[1:n], r.charge(len(r.line)+ValueSize, "")
}

// charge counts n bytes of memory.
func (r *Reader) charge(n int, what string) error {
	if n > r.left {
		return fmt.Errorf("%sa reply of more than %d bytes in all: %w", what, r.limits.Total, ErrLimit)
	}
	r.left -= n
	return nil
}

// body reads the rest of a value whose first line, after its kind, is text.
func (r *Reader) body(kind Kind, text []byte, depth int) (v Value, err error) {
	v.Kind = kind
	bad := func() (Value, error) {
		return Value{}, fmt.Errorf("%q is no %v: %w", clip(text), kind, ErrProtocol)
	}
	switch kind {
	case Simple, Error:
		v.Str = string(text)
	case Integer:
		if v.Int, err = strconv.ParseInt(string(text), 10, 64); err != nil {
			return bad()
		}
	case Null:
		if len(text) > 0 {
			return bad()
		}
	case Bool:
		if s := string(text); s == "t" {
			v.Int = 1
		} else if s != "f" {
			return bad()
		}
	case Double:
		if v.Str = string(text); !isDouble(v.Str) {
			return bad()
		}
	case BigNumber:
		if v.Str = string(text); !isBigNumber(v.Str) {
			return bad()
		}
	case Bulk, BulkError, Verbatim:
		if kind == Bulk && string(text) == "-1" {
			return Value{Kind: Null}, nil
		}
		n, err := length(kind, text, r.limits.Bulk)
		if err != nil {
			return Value{}, err
		}
		if v.Str, err = r.bulk(n); err != nil {
			return Value{}, err
		}
		if kind == Verbatim && (n < verbatimFormat || v.Str[verbatimFormat-1] != ':') {
			return Value{}, fmt.Errorf("a verbatim string without its format: %w", ErrProtocol)
		}
	case Array, Set, Push, Map:
		if kind == Array && string(text) == "-1" {
			return Value{Kind: Null}, nil
		}
		if v.Elems, err = r.elements(kind, text, depth); err != nil {
			return Value{}, err
		}
	}
	return v, nil
}

// length reads the length of a string or the number of elements.
func length(kind Kind, text []byte, most int) (int, error) {
	if string(text) == "?" {
		return 0, fmt.Errorf("%v of unknown length, which nobody sends unasked: %w", kind, ErrProtocol)
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	switch {
	case isRange(err) && n > 0, err == nil && n > int64(most):
		return 0, fmt.Errorf("%v of length %s, at most %d: %w", kind, clip(text), most, ErrLimit)
	case err != nil, n < 0:
		return 0, fmt.Errorf("%v of length %q: %w", kind, clip(text), ErrProtocol)
	}
	return int(n), nil
}

// elements reads the elements of an aggregate, keys and values in turn where they
// are pairs.
func (r *Reader) elements(kind Kind, text []byte, depth int) ([]Value, error) {
	each := 1
	if kind == Map || kind == attribute {
		each = 2
	}
	n, err := length(kind, text, r.limits.Elements/each)
	if err != nil {
		return nil, err
	}
	n *= each
	// The smallest value is a line of three bytes. So a reply that would end at the
	// limit ends now, before its bytes have come.
	if n > r.left/(3+ValueSize) {
		return nil, r.charge(r.left+1, fmt.Sprintf("%v of length %d: ", kind, n/each))
	}
	var list []Value // grows as values arrive, not because they were announced
	for range n {
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// bulk reads n bytes and the end of line after them.
func (r *Reader) bulk(n int) (string, error) {
	if err := r.charge(n+2, ""); err != nil {
		return "", err
	}
	const chunk = 4096
	b := make([]byte, 0, min(n+2, chunk))
	for len(b) < n+2 {
		if len(b) == cap(b) {
			b = append(b, make([]byte, min(n+2-len(b), len(b)))...)[:len(b)] // twice what has come
		}
		k, err := io.ReadFull(r.in, b[len(b):min(cap(b), n+2)])
		b = b[:len(b)+k]
		if err != nil {
			return "", err
		}
	}
	if string(b[n:]) != "\r\n" {
		return "", fmt.Errorf("a string goes on after its %d bytes: %w", n, ErrProtocol)
	}
	return string(b[:n]), nil
}

func isRange(err error) bool { return errors.Is(err, strconv.ErrRange) }

// clip shortens what is quoted in an error.
func clip(text []byte) []byte { return text[:min(len(text), 40)] }
