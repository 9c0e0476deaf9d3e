package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"
)

// What a file may be. The parser's memory grows with the square of the nesting
// and its time with the number of mistakes times the size, so all are bounded;
// a real file has a few KiB, three levels and few mistakes.
const (
	maxConfig   = 64 << 10 // bytes
	maxNesting  = 8
	maxProblems = 100
)

// Error is one mistake in a config.
type Error struct {
	File    string // "" where the config came from no file
	Line    int    // from 1; 0 where it is not known
	Key     string // "reap.rate"; a table is "[reap]"; "" for the text as a whole
	Problem string // what is wrong, with the value
	Allowed string // what would be right; "" where there is nothing to say
}

// Error is "file:line: key: problem; allowed: words".
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d", e.Line)
		}
		b.WriteString(": ")
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Problem)
	if e.Allowed != "" {
		b.WriteString("; allowed: " + e.Allowed)
	}
	return b.String()
}

// Load reads and parses the file at path. Its errors are those of Parse, or one
// that says why the file cannot be read, which wraps the system's error (so
// errors.Is(err, fs.ErrNotExist) tells a missing file).
func Load(path string) (Config, error) {
	data, err := read(path)
	if err != nil {
		return Config{}, err
	}
	return Parse(path, data)
}

func read(path string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not hang a daemon at its start.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read config: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("cannot read config: %w", err)
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read config %s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read config: %w", err)
	}
	return data, nil
}

// Parse reads the text of a config file over Default. name stands in the errors
// for the file. The error joins one *Error for each mistake found; with an
// error the Config is the zero value, which does nothing.
func Parse(name string, data []byte) (Config, error) {
	if len(data) > maxConfig {
		return Config{}, &Error{File: name, Problem: "the file is too big", Allowed: fmt.Sprintf("at most %d bytes", maxConfig)}
	}
	if line := tooDeep(data); line > 0 {
		return Config{}, &Error{File: name, Line: line, Problem: "too deeply nested", Allowed: fmt.Sprintf("at most %d levels", maxNesting)}
	}
	// Tables are taken apart one by one, not decoded into Config: that would end
	// at the first mistake and take "Ports" for "ports".
	var top map[string]toml.Primitive
	md, err := toml.Decode(string(data), &top)
	if err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			return Config{}, &Error{File: name, Line: pe.Position.Line, Key: pe.LastKey, Problem: pe.Message}
		}
		return Config{}, &Error{File: name, Problem: err.Error()}
	}

	c := Default()
	d := decoder{md: &md, keys: map[string]key{}, tables: map[string]bool{}, lines: map[string]int{}}
	for _, k := range c.keys() {
		d.keys[k.name] = k
		d.names = append(d.names, k.name)
		if table, _, ok := strings.Cut(k.name, "."); ok {
			d.tables[table] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(top)) {
		switch p := top[name]; {
		case !d.tables[name]:
			d.setting(name, p)
		default:
			d.table(name, p)
		}
	}
	// Bounds are checked over the whole Config, not key by key, so that the rules
	// between keys see it complete; keys that could not be read keep defaults.
	if err := c.Validate(); err != nil {
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			bad := e.(*Error)
			if !d.failed(bad.Key) {
				d.add(bad)
			}
		}
	}
	for _, e := range d.problems {
		e.File = name
		if e.Line == 0 {
			e.Line = d.lines[e.Key]
		}
	}
	slices.SortStableFunc(d.problems, func(a, b *Error) int { return a.Line - b.Line })
	if d.more {
		d.add(&Error{File: name, Problem: fmt.Sprintf("there are more than these %d mistakes", maxProblems)})
	}
	if err := d.join(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// tooDeep is the line at which brackets or a dotted key go deeper than
// maxNesting, or 0. It knows strings and comments, nothing else: what is no TOML
// at all is left to the parser.
func tooDeep(data []byte) int {
	line, brackets, dots := 1, 0, 0
	for i := 0; i < len(data); i++ {
		switch c := data[i]; c {
		case '\n':
			line++
			dots = 0
		case '#':
			for i+1 < len(data) && data[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			end := stringEnd(data, i)
			line += bytes.Count(data[i:end], []byte{'\n'})
			i = end - 1
		case '[', '{':
			brackets++
			dots = 0
		case ']', '}':
			brackets = max(brackets-1, 0)
		case '=', ',':
			dots = 0
		case '.':
			dots++
		}
		if brackets > maxNesting || dots > maxNesting {
			return line
		}
	}
	return 0
}

// stringEnd is the index after the string that starts at i. One on a single
// line ends with the line at the latest.
func stringEnd(data []byte, i int) int {
	quote := data[i]
	triple := bytes.Repeat([]byte{quote}, 3)
	long := bytes.HasPrefix(data[i:], triple)
	if long {
		i += 2
	}
	for i++; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\\' && quote == '"':
			i++
		case long && bytes.HasPrefix(data[i:], triple):
			return i + 3
		case !long && c == '\n':
			return i // the caller counts it
		case !long && c == quote:
			return i + 1
		}
	}
	return len(data)
}

// problems collects the mistakes of one config.
type problems []*Error

func (p *problems) add(e *Error) { *p = append(*p, e) }

func (p *problems) join() error {
	errs := make([]error, 0, len(*p))
	for _, e := range *p {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

func (p *problems) failed(key string) bool {
	return slices.ContainsFunc(*p, func(e *Error) bool { return e.Key == key })
}

type decoder struct {
	problems
	md     *toml.MetaData
	keys   map[string]key
	names  []string // of keys, in the order of the file
	tables map[string]bool
	lines  map[string]int // where each key of the file stands
	more   bool           // there are more problems than are collected
}

// table reads one [table] that is known.
func (d *decoder) table(name string, p toml.Primitive) {
	var v any
	if err := d.md.PrimitiveDecode(p, &v); err != nil {
		v = nil
	}
	if _, ok := v.(map[string]any); !ok {
		d.add(&Error{Key: "[" + name + "]", Line: d.line(p), Problem: "is no table", Allowed: "one table headed [" + name + "]"})
		return
	}
	members := d.members(p)
	for _, member := range slices.Sorted(maps.Keys(members)) {
		d.setting(name+"."+member, members[member])
	}
}

// setting reads one key, known or not.
func (d *decoder) setting(name string, p toml.Primitive) {
	if len(d.problems) >= maxProblems {
		d.more = true
		return
	}
	line := d.line(p)
	k, ok := d.keys[name]
	if !ok {
		d.add(d.unknown(name, line))
		return
	}
	d.lines[name] = line
	var v any
	if err := d.md.PrimitiveDecode(p, &v); err != nil {
		d.add(&Error{Key: name, Line: line, Problem: "cannot be read", Allowed: k.allowed})
		return
	}
	if problem := k.decode(v); problem != "" {
		d.add(&Error{Key: name, Line: line, Problem: problem, Allowed: k.allowed})
	}
}

// unknown is the error for a key that is none of ours.
func (d *decoder) unknown(name string, line int) *Error {
	switch name {
	case "detour", "target":
		return &Error{Key: "[" + name + "]", Line: line,
			Problem: "this version of redisguard does not know it yet, so it would have no effect", Allowed: "take it out"}
	case "policy.on_demoted", "policy.on_removed", "policy.on_replaced", "policy.on_address_withdrawn":
		return &Error{Key: name, Line: line,
			Problem: "this version of redisguard does not know it yet, so it would have no effect", Allowed: "take it out"}
	}
	e := &Error{Key: clean(name), Line: line, Problem: "unknown key"}
	if near := nearest(name, d.names, d.tables); near != "" {
		e.Problem += ", did you mean " + near + "?"
	}
	table, _, _ := strings.Cut(name, ".")
	var here []string
	for _, n := range d.names {
		if t, key, ok := strings.Cut(n, "."); ok && t == table {
			here = append(here, key)
		}
	}
	if len(here) > 0 {
		e.Allowed = "in [" + table + "] " + strings.Join(here, ", ")
	}
	return e
}

// members are the keys of a table.
func (d *decoder) members(p toml.Primitive) map[string]toml.Primitive {
	var m map[string]toml.Primitive
	if err := d.md.PrimitiveDecode(p, &m); err != nil {
		return nil
	}
	return m
}

// line is where p stands, 0 if that cannot be told. The library keeps positions
// to itself but puts them into the error of a value that refuses to be decoded.
// A table that exists only through dotted keys has none: then it is where the
// first of them stands.
func (d *decoder) line(p toml.Primitive) int {
	err := d.md.PrimitiveDecode(p, refuse{})
	if pe, ok := errors.AsType[toml.ParseError](err); ok && pe.Position.Line > 0 {
		return pe.Position.Line
	}
	first := 0
	for _, m := range d.members(p) {
		if l := d.line(m); l > 0 && (first == 0 || l < first) {
			first = l
		}
	}
	return first
}

// refuse is a value that cannot be decoded.
type refuse struct{}

func (refuse) UnmarshalTOML(any) error { return errors.New("position asked for") }
