package config

import (
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
	c := Default()
	if err := parse(name, data, c.table(), func(p *problems) { p.cross(&c) }); err != nil {
		return Config{}, err
	}
	return c, nil
}

// parse reads a text into the places of t, and then has cross add what is wrong
// between settings.
func parse(name string, data []byte, t table, cross func(*problems)) error {
	if len(data) > maxConfig {
		return &Error{File: name, Problem: "the file is too big", Allowed: fmt.Sprintf("at most %d bytes", maxConfig)}
	}
	if line := tooDeep(data); line > 0 {
		return &Error{File: name, Line: line, Problem: "too deeply nested", Allowed: fmt.Sprintf("at most %d levels", maxNesting)}
	}
	// Tables are taken apart one by one, not decoded into Config: that would end
	// at the first mistake and take "Ports" for "ports".
	var top map[string]any
	if _, err := toml.Decode(string(data), &top); err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			return &Error{File: name, Line: pe.Position.Line, Key: pe.LastKey, Problem: pe.Message}
		}
		return &Error{File: name, Problem: err.Error()}
	}
	d := decoder{where: keyLines(data), lines: map[string]int{}}
	d.table(t, spot{}, "", top)
	// Bounds are checked over all of it, not key by key, so that the rules between
	// keys see it complete; keys that could not be read keep defaults.
	var found problems
	t.check(&found)
	cross(&found)
	for _, bad := range found {
		if d.full() {
			break
		}
		if !d.failed(bad.Key) {
			d.add(bad)
		}
	}
	for _, e := range d.problems {
		e.File = name
		if e.Line == 0 {
			e.Line = d.line(e.Key)
		}
	}
	slices.SortStableFunc(d.problems, func(a, b *Error) int { return a.Line - b.Line })
	if d.more {
		d.add(&Error{File: name, Problem: fmt.Sprintf("there are more than these %d mistakes", maxProblems)})
	}
	return d.join()
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

// A decoder reads what the TOML library has made of a text into a table.
type decoder struct {
	problems
	where map[string]int // lines by place; see keyLines
	lines map[string]int // lines by path, of what was found
	more  bool           // there are more problems than are collected
}

// full reports whether there are as many problems as a reader can want.
func (d *decoder) full() bool {
	d.more = d.more || len(d.problems) >= maxProblems
	return d.more
}

// A spot is where a table of the file stands: its path for messages,
// target[orders].tls, and its place in the text, target[#2].tls.
type spot struct{ path, place string }

// table reads the members of a table of the file into t. within is "" or, in a
// table within t, its name and a dot.
func (d *decoder) table(t table, at spot, within string, members map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if d.full() {
			return
		}
		v, rel := members[name], within+quoted(name)
		here := spot{path: place(at.path, name), place: place(at.place, name)}
		line := d.where[here.place]
		if k, ok := t.key(rel); ok {
			d.lines[here.path] = line
			if problem := k.decode(v); problem != "" {
				d.add(&Error{Key: here.path, Line: line, Problem: problem, Allowed: k.allowed})
			}
		} else if a, ok := t.array(rel); ok {
			d.array(a, here, v)
		} else if !t.has(rel) {
			d.add(unknown(t, at.path, within, name, line))
		} else if inner, ok := v.(map[string]any); ok {
			d.table(t, here, rel+".", inner)
		} else {
			head := header(here.path, false)
			d.add(&Error{Key: head, Line: line, Problem: "is no table", Allowed: "one table headed " + head})
		}
	}
}

// array reads the elements of an array of tables.
func (d *decoder) array(a array, at spot, v any) {
	head, line := header(at.path, true), d.where[at.place]
	elements, ok := tables(v)
	if !ok {
		d.add(&Error{Key: head, Line: line, Problem: "is no array of tables", Allowed: "tables that are each headed " + head})
		return
	}
	if n := len(elements); n > a.most {
		bad := a.tooMany(at.path, n)
		bad.Line = line
		d.add(bad)
		return
	}
	a.grow(len(elements))
	// The names come first, since the paths of everything else contain them.
	for i, e := range elements {
		if name, ok := e["name"].(string); ok {
			a.at(i).keys[0].decode(name)
		}
	}
	for i, label := range a.labels() {
		here := spot{path: at.path + "[" + label + "]", place: element(at.place, i+1)}
		d.lines[here.path] = d.where[here.place]
		d.table(a.at(i), here, "", elements[i])
	}
}

// tables are the elements of an array of tables, which the library gives in
// two forms: that of [[target]] and that of target = [{...}].
func tables(v any) (list []map[string]any, ok bool) {
	switch v := v.(type) {
	case []map[string]any:
		return v, true
	case []any:
		for _, e := range v {
			m, ok := e.(map[string]any)
			if !ok {
				return nil, false
			}
			list = append(list, m)
		}
		return list, true
	}
	return nil, false
}

// line is where the setting at path stands, or else the element of an array that
// ought to have it; 0 if neither is in the text.
func (d *decoder) line(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		end := strings.LastIndexByte(path, '.')
		if end < 0 {
			return 0
		}
		path = path[:end]
	}
}

// unknown is the error for a key that is none of ours: name in the table with
// the given path, which is the one called within in t.
func unknown(t table, path, within, name string, line int) *Error {
	key := place(path, name)
	switch key {
	case "detour":
		return &Error{Key: "[" + key + "]", Line: line,
			Problem: "this version of redisguard does not know it yet, so it would have no effect", Allowed: "take it out"}
	case "policy.on_address_withdrawn":
		return &Error{Key: key, Line: line,
			Problem: "this version of redisguard does not know it yet, so it would have no effect", Allowed: "take it out"}
	case "watch.births":
		return &Error{Key: key, Line: line, Problem: "is called watch.tracepoints now", Allowed: "watch.tracepoints with the same value"}
	}
	e := &Error{Key: key, Line: line, Problem: "unknown key"}
	// Of a table within an element only what comes after the element is t's.
	around := strings.TrimSuffix(path+".", within)
	if around == "." {
		around = ""
	}
	if near := nearest(within+name, t, around); near != "" {
		e.Problem += ", did you mean " + near + "?"
	}
	if here := t.members(within); path != "" && len(here) > 0 {
		e.Allowed = "in " + header(path, false) + " " + strings.Join(here, ", ")
	}
	return e
}
