package resp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/alicebob/miniredis/v2/proto"
	"github.com/google/go-cmp/cmp"
)

func read(text string, limits Limits) (Value, error) {
	return NewReader(strings.NewReader(text), limits).Read()
}

func str(kind Kind, s string) Value { return Value{Kind: kind, Str: s} }
func num(n int64) Value             { return Value{Kind: Integer, Int: n} }
func list(kind Kind, v ...Value) Value {
	return Value{Kind: kind, Elems: v}
}

func TestRead(t *testing.T) {
	null := Value{Kind: Null}
	for text, want := range map[string]Value{
		"+OK\r\n":                     str(Simple, "OK"),
		"+\r\n":                       str(Simple, ""),
		"-ERR a b\r\n":                str(Error, "ERR a b"),
		":-42\r\n":                    num(-42),
		":+7\r\n":                     num(7),
		":9223372036854775807\r\n":    num(math.MaxInt64),
		"$5\r\nhe\r\no\r\n":           str(Bulk, "he\r\no"),
		"$0\r\n\r\n":                  str(Bulk, ""),
		"$-1\r\n":                     null,
		"*-1\r\n":                     null,
		"_\r\n":                       null,
		"*0\r\n":                      list(Array),
		"*2\r\n+a\r\n*1\r\n:1\r\n":    list(Array, str(Simple, "a"), list(Array, num(1))),
		"#t\r\n":                      {Kind: Bool, Int: 1},
		"#f\r\n":                      {Kind: Bool},
		",1.5e3\r\n":                  str(Double, "1.5e3"),
		",-inf\r\n":                   str(Double, "-inf"),
		",nan\r\n":                    str(Double, "nan"),
		"(-123456789012345678901\r\n": str(BigNumber, "-123456789012345678901"),
		"!5\r\nERR x\r\n":             str(BulkError, "ERR x"),
		"=6\r\ntxt:ab\r\n":            str(Verbatim, "txt:ab"),
		"=4\r\nmkd:\r\n":              str(Verbatim, "mkd:"),
		"%1\r\n+k\r\n_\r\n":           list(Map, str(Simple, "k"), null),
		"~1\r\n:1\r\n":                list(Set, num(1)),
		">2\r\n+invalidate\r\n_\r\n":  list(Push, str(Simple, "invalidate"), null),
		"|1\r\n+ttl\r\n:3\r\n|1\r\n+x\r\n#t\r\n$1\r\na\r\n": {Kind: Bulk, Str: "a", Attributes: []Value{str(Simple, "ttl"), num(3), str(Simple, "x"), {Kind: Bool, Int: 1}}},
		"*1\r\n|0\r\n|1\r\n+a\r\n:1\r\n:2\r\n":              list(Array, Value{Kind: Integer, Int: 2, Attributes: []Value{str(Simple, "a"), num(1)}}),
		"$5000\r\n" + strings.Repeat("x", 5000) + "\r\n":    str(Bulk, strings.Repeat("x", 5000)),
	} {
		for name, in := range map[string]io.Reader{"whole": strings.NewReader(text), "byte by byte": iotest.OneByteReader(strings.NewReader(text))} {
			r := NewReader(in, Limits{})
			got, err := r.Read()
			if err != nil {
				t.Errorf("%.40q, %s: %v", text, name, err)
				continue
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%.40q, %s (-want +got):\n%s", text, name, diff)
			}
			if _, err := r.Read(); err != io.EOF {
				t.Errorf("%.40q, %s: then %v, want the end", text, name, err)
			}
		}
	}
}

func TestAccessors(t *testing.T) {
	for _, v := range []Value{str(Simple, "a"), str(Bulk, "a"), str(Verbatim, "txt:a")} {
		if s, ok := v.Text(); s != "a" || !ok {
			t.Errorf("text of %v: %q, %v", v, s, ok)
		}
	}
	if s, ok := str(Error, "ERR").Text(); ok {
		t.Errorf("an error has the text %q", s)
	}
	for _, v := range []Value{str(Error, "ERR"), str(BulkError, "ERR")} {
		if !v.IsError() {
			t.Errorf("%v is no error", v)
		}
	}
	for text, want := range map[string]float64{",1.5": 1.5, ",inf": math.Inf(1), ",1e999": math.Inf(1), ":3": 3, ",.5": .5} {
		v, err := read(text+"\r\n", Limits{})
		if f, ok := v.Float(); err != nil || !ok || f != want {
			t.Errorf("%s: %v, %v, %v", text, f, ok, err)
		}
	}
	for _, text := range []string{",nan", ",-nan", "+1"} {
		v, err := read(text+"\r\n", Limits{})
		if f, ok := v.Float(); err != nil || ok != (text[0] == ',') || !math.IsNaN(f) {
			t.Errorf("%s: %v, %v, %v", text, f, ok, err)
		}
	}
	if s := Push.String() + " " + Kind('x').String(); s != "push kind 'x'" {
		t.Error(s)
	}
}

func TestErrors(t *testing.T) {
	small := Limits{Line: 30, Bulk: 10, Elements: 4, Depth: 3, Total: 1000}
	for text, want := range map[string]struct {
		err  error
		says string
	}{
		"HTTP/1.1 400 Bad Request\r\n": {ErrProtocol, `begins with 'H'`},
		"\x15\x03\x01":                 {ErrProtocol, `begins with '\x15'`},
		"\r\n":                         {ErrProtocol, `begins with '\r'`},
		"+OK\n":                        {ErrProtocol, "without CR"},
		"+\n":                          {ErrProtocol, "without CR"},
		"+a\rb\r\n":                    {ErrProtocol, "CR within a line"},
		":\r\n":                        {ErrProtocol, `"" is no integer`},
		":1.5\r\n":                     {ErrProtocol, `"1.5" is no integer`},
		":9223372036854775808\r\n":     {ErrProtocol, "is no integer"},
		"_x\r\n":                       {ErrProtocol, `"x" is no null`},
		"#1\r\n":                       {ErrProtocol, `"1" is no boolean`},
		",0x1p4\r\n":                   {ErrProtocol, "is no double"},
		",1_0\r\n":                     {ErrProtocol, "is no double"},
		",Inf\r\n":                     {ErrProtocol, "is no double"},
		",\r\n":                        {ErrProtocol, "is no double"},
		"(--1\r\n":                     {ErrProtocol, "is no big number"},
		"(-\r\n":                       {ErrProtocol, "is no big number"},
		"$-2\r\n":                      {ErrProtocol, `bulk string of length "-2"`},
		"$x\r\n":                       {ErrProtocol, `bulk string of length "x"`},
		"!-1\r\n":                      {ErrProtocol, `bulk error of length "-1"`},
		"%-1\r\n":                      {ErrProtocol, `map of length "-1"`},
		"$1\r\nab\r\n":                 {ErrProtocol, "goes on after its 1 bytes"},
		"$2\r\nab\n\n":                 {ErrProtocol, "goes on after its 2 bytes"},
		"=3\r\ntxt\r\n":                {ErrProtocol, "without its format"},
		"=5\r\ntxtab\r\n":              {ErrProtocol, "without its format"},
		"*1\r\n>1\r\n+a\r\n":           {ErrProtocol, "push within another value"},
		"$?\r\n;1\r\na\r\n;0\r\n":      {ErrProtocol, "bulk string of unknown length"},
		"*?\r\n.\r\n":                  {ErrProtocol, "array of unknown length"},
		"*1\r\n.\r\n":                  {ErrProtocol, `begins with '.'`},

		"+" + strings.Repeat("a", 28) + "\r\n": {ErrLimit, "a line of more than 30 bytes"},
		"+" + strings.Repeat("a", 9999):        {ErrLimit, "a line of more than 30 bytes"},
		"$11\r\n":                              {ErrLimit, "bulk string of length 11, at most 10"},
		"*5\r\n":                               {ErrLimit, "array of length 5, at most 4"},
		"%3\r\n":                               {ErrLimit, "map of length 3, at most 2"},
		"|3\r\n":                               {ErrLimit, "attributes of length 3, at most 2"},
		"*1\r\n*1\r\n*1\r\n*1\r\n":             {ErrLimit, "4 deep, at most 3"},
		"*4\r\n*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n*4\r\n": {ErrLimit, "more than 1000 bytes in all"},
		strings.Repeat("|0\r\n", 20):         {ErrLimit, "more than 1000 bytes in all"},
		"$99999999999999999999\r\n":          {ErrLimit, "of length 99999999999999999999"},
		"*4611686018427387904\r\n":           {ErrLimit, "array of length 4611686018427387904"},
		"%4611686018427387904\r\n":           {ErrLimit, "map of length 4611686018427387904"},
		"*2\r\n$10\r\n0123456789\r\n$11\r\n": {ErrLimit, "bulk string of length 11"},
		"+OK":                                {io.ErrUnexpectedEOF, "unexpected EOF"},
		"$5\r\nab":                           {io.ErrUnexpectedEOF, "unexpected EOF"},
		"*2\r\n:1\r\n":                       {io.ErrUnexpectedEOF, "unexpected EOF"},
		"|1\r\n:1\r\n:2\r\n":                 {io.ErrUnexpectedEOF, "unexpected EOF"},
		"":                                   {io.EOF, "EOF"},
	} {
		// What is too long ends the reader, whether or not more would come.
		in := strings.NewReader(text)
		r := NewReader(in, small)
		v, err := r.Read()
		if !errors.Is(err, want.err) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%.40q: %v, want %q", text, err, want.says)
		}
		if !reflect.DeepEqual(v, Value{}) {
			t.Errorf("%.40q: half a value came with the error", text)
		}
		if _, again := r.Read(); again != err && want.err != io.EOF {
			t.Errorf("%.40q: read again: %v", text, again)
		}
	}
}

// Between two values a deadline costs nothing, within one it costs the stream.
func TestDeadline(t *testing.T) {
	late := errors.New("late")
	feed := &script{"+a\r\n", late, "+b", late, "\r\n"}
	r := NewReader(feed, Limits{})
	if v, err := r.Read(); err != nil || v.Str != "a" {
		t.Fatal(v, err)
	}
	if _, err := r.Read(); err != late {
		t.Fatalf("between: %v", err)
	}
	for range 2 {
		if v, err := r.Read(); !errors.Is(err, late) || !strings.HasPrefix(err.Error(), "cannot read a reply") {
			t.Fatalf("within: %v, %v", v, err)
		}
	}
}

// script is a stream that gives strings and errors.
type script []any

func (s *script) Read(b []byte) (int, error) {
	if len(*s) == 0 {
		return 0, io.EOF
	}
	next := (*s)[0]
	*s = (*s)[1:]
	if err, ok := next.(error); ok {
		return 0, err
	}
	return copy(b, next.(string)), nil
}

// A length is no reason to take memory.
func TestNoMemoryBeforeBytes(t *testing.T) {
	big := Limits{Line: math.MaxInt, Bulk: math.MaxInt, Elements: math.MaxInt, Total: math.MaxInt}
	for _, limits := range []Limits{{}, big} {
		for _, text := range []string{
			"$4611686018427387904\r\n", "*1152921504606846976\r\n", "%4611686018427387904\r\n", "|1152921504606846976\r\n", "=9223372036854775807\r\nabc",
			"$1048576\r\nabc", "*32768\r\n:1\r\n", "$9223372036854775807\r\n", "*9223372036854775807\r\n", "*2\r\n*32768\r\n:1\r\n",
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := read(text, limits)
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Errorf("%q was accepted", text)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 64<<10 {
				t.Errorf("%q took %d bytes", text, took)
			}
		}
	}
}

// The worst that the limits let pass.
func TestTotalBoundsMemory(t *testing.T) {
	const elements = 32
	limits := Limits{Total: 1 << 20, Elements: elements}
	var nest func(depth int) string
	nest = func(depth int) string {
		if depth == 0 {
			return "_\r\n"
		}
		return fmt.Sprintf("*%d\r\n", elements) + strings.Repeat(nest(depth-1), elements)
	}
	text := nest(4)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := read(text, limits)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrLimit) {
		t.Fatal(err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
		t.Errorf("%d bytes on the wire took %d", len(text), took)
	}
}

func TestValueSize(t *testing.T) {
	if is := reflect.TypeFor[Value]().Size(); is != ValueSize {
		t.Errorf("a Value has %d bytes, not %d", is, ValueSize)
	}
}

// The largest replies that the comments of Limits promise to take.
func TestDefaultsLetClustersPass(t *testing.T) {
	var slots bytes.Buffer
	slots.WriteString("*4000\r\n")
	for i := range 4000 {
		fmt.Fprintf(&slots, "*5\r\n:%d\r\n:%d\r\n", 4*i, 4*i+3)
		for range 3 {
			fmt.Fprintf(&slots, "*4\r\n$12\r\n10.123.100.2\r\n:6379\r\n$40\r\n%040d\r\n*0\r\n", i)
		}
	}
	if _, err := NewReader(&slots, Limits{}).Read(); err != nil {
		t.Errorf("CLUSTER SLOTS: %v", err)
	}
	var nodes strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&nodes, "%040d 10.123.100.2:6379@16379,a-host-name.of-some-length.example.org master - 0 1731579263000 %d connected", i, i)
		for slot := i; slot < 16384; slot += 1000 {
			fmt.Fprintf(&nodes, " %d", slot)
		}
		nodes.WriteByte('\n')
	}
	if _, err := read(fmt.Sprintf("$%d\r\n%s\r\n", nodes.Len(), nodes.String()), Limits{}); err != nil {
		t.Errorf("CLUSTER NODES: %v", err)
	}
}

func TestCommands(t *testing.T) {
	if got, want := string(AppendCommand([]byte("x"), "SET", "", "a\r\nb")), "x*3\r\n$3\r\nSET\r\n$0\r\n\r\n$4\r\na\r\nb\r\n"; got != want {
		t.Errorf("got %q", got)
	}
	got, err := AppendInline(nil, "PING", "hello")
	if err != nil || string(got) != "PING hello\r\n" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range [][]string{{}, {""}, {"a b"}, {"a\r\nb"}, {`"a"`}, {"it's"}, {"\x00"}, {"é"}, {"*1"}} {
		if b, err := AppendInline(nil, bad...); err == nil || len(b) > 0 {
			t.Errorf("%q became %q", bad, b)
		}
	}
}

// encode writes a value as servers do.
func encode(b []byte, v Value) []byte {
	line := func(k Kind, s string) { b = append(append(append(b, byte(k)), s...), '\r', '\n') }
	if len(v.Attributes) > 0 {
		line(attribute, strconv.Itoa(len(v.Attributes)/2))
		for _, a := range v.Attributes {
			b = encode(b, a)
		}
	}
	switch v.Kind {
	case Integer:
		line(v.Kind, strconv.FormatInt(v.Int, 10))
	case Bool:
		line(v.Kind, string("ft"[v.Int]))
	case Null:
		line(v.Kind, "")
	case Bulk, BulkError, Verbatim:
		line(v.Kind, strconv.Itoa(len(v.Str)))
		b = append(append(b, v.Str...), '\r', '\n')
	case Array, Set, Push, Map:
		n := len(v.Elems)
		if v.Kind == Map {
			n /= 2
		}
		line(v.Kind, strconv.Itoa(n))
		for _, e := range v.Elems {
			b = encode(b, e)
		}
	default:
		line(v.Kind, v.Str)
	}
	return b
}

// memory is what Limits.Total counts of a value.
func memory(v Value) int {
	n := ValueSize + len(v.Str)
	for _, e := range append(v.Elems[:len(v.Elems):len(v.Elems)], v.Attributes...) {
		n += memory(e)
	}
	return n
}

func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"+OK\r\n", "-ERR x\r\n", ":1\r\n", "$3\r\nabc\r\n", "$-1\r\n", "*2\r\n:1\r\n_\r\n", "#t\r\n", ",1.5\r\n", "(12\r\n", "!1\r\na\r\n", "=5\r\ntxt:a\r\n",
		"%1\r\n+a\r\n:1\r\n", "~1\r\n:1\r\n", ">1\r\n+a\r\n", "|1\r\n+a\r\n:1\r\n:2\r\n", "*1152921504606846976\r\n", "$4611686018427387904\r\n", "*?\r\n", "HTTP",
		"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
	} {
		f.Add([]byte(seed))
	}
	limits := Limits{Line: 64, Bulk: 256, Elements: 16, Depth: 4, Total: 4096}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data), limits)
		for {
			v, err := r.Read()
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrLimit) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("an error of no kind: %v", err)
				}
				return
			}
			if n := memory(v); n > limits.Total {
				t.Fatalf("%d bytes of memory", n)
			}
			again, err := NewReader(bytes.NewReader(encode(nil, v)), Limits{}).Read()
			if err != nil || !reflect.DeepEqual(v, again) {
				t.Fatalf("%#v was written as %q and read as %#v, %v", v, encode(nil, v), again, err)
			}
			v.Text()
			v.Float()
		}
	})
}

func FuzzCommand(f *testing.F) {
	f.Add("SET", "a\r\n", "")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		v, err := NewReader(bytes.NewReader(AppendCommand(nil, a, b, c)), Limits{}).Read()
		if err != nil || !reflect.DeepEqual(v, list(Array, str(Bulk, a), str(Bulk, b), str(Bulk, c))) {
			t.Fatalf("%v, %v", v, err)
		}
		if line, err := AppendInline(nil, a, b); err == nil && (bytes.Count(line, []byte("\n")) != 1 || len(bytes.Fields(line)) != 2) {
			t.Fatalf("%q", line)
		}
	})
}

// TestAgainstAnother holds the reader against one written by others, on the kinds
// that it knows.
func TestAgainstAnother(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, rnd.IntN(12))
		for i := range b {
			b[i] = byte('a' + rnd.IntN(26))
		}
		return string(b)
	}
	var random func(depth int) Value
	random = func(depth int) Value {
		n := 5
		if depth > 0 {
			n = 7
		}
		switch rnd.IntN(n) {
		case 0:
			return str(Simple, "s"+word())
		case 1:
			return str(Error, "ERR "+word())
		case 2:
			return num(rnd.Int64() - 1<<62)
		case 3:
			return str(Bulk, word()+"\r\n\x00"+word())
		case 4:
			return str(Bulk, word())
		case 5:
			v := Value{Kind: Array}
			for range 1 + rnd.IntN(4) { // they know no empty array
				v.Elems = append(v.Elems, random(depth-1))
			}
			return v
		default:
			v := Value{Kind: Map}
			for i := range rnd.IntN(4) {
				v.Elems = append(v.Elems, num(int64(i)), random(depth-1))
			}
			return v
		}
	}
	for range 2000 {
		wire := string(encode(nil, random(4)))
		ours, err := read(wire, Limits{})
		if err != nil {
			t.Fatalf("%q: %v", wire, err)
		}
		theirs, err := proto.Parse(wire)
		if err != nil {
			t.Fatalf("%q: theirs: %v", wire, err)
		}
		if got := plain(ours); !reflect.DeepEqual(got, theirs) {
			t.Fatalf("%q\nours   %#v\ntheirs %#v", wire, got, theirs)
		}
	}
}

// plain is a value in the other's form.
func plain(v Value) any {
	switch v.Kind {
	case Error:
		return errors.New(v.Str)
	case Integer:
		return int(v.Int)
	case Array:
		var list []any
		for _, e := range v.Elems {
			list = append(list, plain(e))
		}
		return list
	case Map:
		m := map[any]any{}
		for i := 0; i < len(v.Elems); i += 2 {
			m[plain(v.Elems[i])] = plain(v.Elems[i+1])
		}
		return m
	}
	return v.Str
}
