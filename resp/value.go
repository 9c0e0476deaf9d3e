package resp

import (
	"math"
	"strconv"
	"strings"
)

// Kind is the first byte of a value on the wire.
type Kind byte

// The kinds. The zero Kind is none.
const (
	Simple    Kind = '+'
	Error     Kind = '-'
	Integer   Kind = ':'
	Bulk      Kind = '$'
	Array     Kind = '*'
	Null      Kind = '_' // also $-1 and *-1 of RESP2, which mean the same to a reader
	Bool      Kind = '#'
	Double    Kind = ','
	BigNumber Kind = '('
	BulkError Kind = '!'
	Verbatim  Kind = '='
	Map       Kind = '%'
	Set       Kind = '~'
	Push      Kind = '>'

	attribute Kind = '|' // never of a Value: see Value.Attributes
)

var kindNames = map[Kind]string{
	Simple: "simple string", Error: "error", Integer: "integer", Bulk: "bulk string", Array: "array", Null: "null", Bool: "boolean",
	Double: "double", BigNumber: "big number", BulkError: "bulk error", Verbatim: "verbatim string", Map: "map", Set: "set", Push: "push",
	attribute: "attributes",
}

func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return "kind " + strconv.QuoteRune(rune(k))
}

// Value is one value, with everything in it. Its strings are whatever the server
// sent: escape them before showing them.
type Value struct {
	Kind Kind
	// Str holds the bytes of strings and errors, the digits of a Double and a
	// BigNumber as they were sent, and the format with a Verbatim ("txt:hello").
	Str string
	// Int is the value of an Integer; of a Bool it is 1 or 0.
	Int int64
	// Elems are the elements of an Array, Set and Push. Those of a Map are its keys
	// and values in turn, in the order of the server, who may repeat a key.
	Elems []Value
	// Attributes are keys and values in turn that the server sent about this
	// value. They can be ignored.
	Attributes []Value
}

// Text is the text of a string of any kind: without the format if it is a
// Verbatim. ok is false for everything else, errors included.
func (v Value) Text() (text string, ok bool) {
	switch v.Kind {
	case Simple, Bulk:
		return v.Str, true
	case Verbatim:
		return v.Str[verbatimFormat:], true
	}
	return "", false
}

// verbatimFormat is the length of "txt:".
const verbatimFormat = 4

// IsError reports whether the server answered with an error, whose text is Str:
// a word in capitals that says which, and an explanation.
func (v Value) IsError() bool { return v.Kind == Error || v.Kind == BulkError }

// Float is the number of a Double or an Integer. Out of the range of a float64 it
// is infinite. For everything else it is NaN and false.
func (v Value) Float() (f float64, ok bool) {
	switch v.Kind {
	case Integer:
		return float64(v.Int), true
	case Double:
		if v.Str == "-nan" {
			return math.NaN(), true
		}
		f, _ = strconv.ParseFloat(v.Str, 64)
		return f, true
	}
	return math.NaN(), false
}

// isDouble accepts what the specification does, which is less than Go: no hex, no
// underscores.
func isDouble(s string) bool {
	switch s {
	case "inf", "-inf", "nan", "-nan": // the last one by Redis up to 7.0
		return true
	}
	if strings.Trim(s, "0123456789+-.eE") != "" {
		return false
	}
	_, err := strconv.ParseFloat(s, 64)
	return err == nil || isRange(err)
}

func isBigNumber(s string) bool {
	digits := strings.TrimPrefix(strings.TrimPrefix(s, "-"), "+")
	return digits != "" && len(s)-len(digits) <= 1 && strings.Trim(digits, "0123456789") == ""
}
