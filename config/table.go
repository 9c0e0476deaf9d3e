package config

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// A table says what one table of the file may hold: the whole file, or one
// element of an array of tables. The tables within it are not listed: they are
// the first parts of the names in it.
type table struct {
	keys   []key   // "mode", "reap.rate"; in an element of an array "name", "tls.ca"
	arrays []array // [[target]]
}

// An array is an array of tables. Its elements are told apart by their key
// "name" and not by their order, which has no meaning. So a setting in
// one has the path target[orders].tls.ca; where there is no usable name it is
// the number, from 1: target[#2].tls.ca.
type array struct {
	name  string // "target", with the tables around it if there are any
	most  int    // elements: a limit that catches generated nonsense
	count func() int
	grow  func(n int)        // makes n elements with their defaults, in place of what was there
	at    func(i int) table  // what element i holds; its first key is "name"
	title func(i int) string // the name of element i, whatever it is
}

// arrayKey is an array whose elements live in field. fresh makes an element with
// its defaults, title is where its name lives, and keys are its settings but for
// the name.
func arrayKey[E any](name string, most int, field *[]E, fresh func() E, title func(*E) *string, settings func(*E) table) array {
	a := array{
		name:  name,
		most:  most,
		count: func() int { return len(*field) },
		grow: func(n int) {
			*field = make([]E, n)
			for i := range *field {
				(*field)[i] = fresh()
			}
		},
		title: func(i int) string { return *title(&(*field)[i]) },
	}
	a.at = func(i int) table {
		e := &(*field)[i]
		t := settings(e)
		t.keys = slices.Insert(t.keys, 0, nameKey(a, i, title(e)))
		return t
	}
	return a
}

// maxName is the longest name of an element, as that of a DNS label: names go
// into metrics and paths of the API.
const maxName = 63

// nameKey is the name of element i of a.
func nameKey(a array, i int, field *string) key {
	k := wordKey("name", fmt.Sprintf(`a name of its own, of 1 to %d letters, digits, "-", "_" and "." that begins with a letter or a digit`, maxName), field, nil)
	k.check = func() string {
		switch {
		case *field == "":
			return "is missing"
		case !isName(*field):
			return clip(*field) + " is no name"
		}
		for j := range i {
			if a.title(j) == *field {
				return fmt.Sprintf("%s is the name of %s[#%d] already", clip(*field), a.name, j+1)
			}
		}
		return ""
	}
	return k
}

func isName(s string) bool {
	for i, r := range s {
		if r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && (i == 0 || !strings.ContainsRune("-_.", r)) {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// labels names each element as paths do: "orders", or "#2" where the name cannot
// be used because it is none or that of an element before.
func (a array) labels() []string {
	labels, taken := make([]string, a.count()), map[string]bool{}
	for i := range labels {
		name := a.title(i)
		if !isName(name) || taken[name] {
			name = fmt.Sprintf("#%d", i+1)
		}
		labels[i], taken[name] = name, true
	}
	return labels
}

// key is the setting of t with the given name.
func (t table) key(name string) (key, bool) {
	i := slices.IndexFunc(t.keys, func(k key) bool { return k.name == name })
	if i < 0 {
		return key{}, false
	}
	return t.keys[i], true
}

// array is the array of t with the given name.
func (t table) array(name string) (array, bool) {
	i := slices.IndexFunc(t.arrays, func(a array) bool { return a.name == name })
	if i < 0 {
		return array{}, false
	}
	return t.arrays[i], true
}

// has reports whether there is a table of the given name within t.
func (t table) has(name string) bool { return len(t.members(name+".")) > 0 }

// members lists what the table called within ("", "reap.") may hold.
func (t table) members(within string) (names []string) {
	add := func(name string) {
		if rest, ok := strings.CutPrefix(name, within); ok {
			if first, _, _ := strings.Cut(rest, "."); !slices.Contains(names, first) {
				names = append(names, first)
			}
		}
	}
	for _, k := range t.keys {
		add(k.name)
	}
	for _, a := range t.arrays {
		add(a.name)
	}
	return names
}

// each calls key for every setting and array for every array, in the order of
// the file, with the path of each below at, which is "" or ends with a dot.
func (t table) each(at string, key func(path string, k key), array func(path string, a array)) {
	for _, k := range t.keys {
		key(at+k.name, k)
	}
	for _, a := range t.arrays {
		array(at+a.name, a)
		for i, label := range a.labels() {
			a.at(i).each(at+a.name+"["+label+"].", key, array)
		}
	}
}

// check adds every setting that is impossible by itself.
func (t table) check(found *problems) {
	t.each("", func(path string, k key) {
		if problem := k.check(); problem != "" {
			found.add(&Error{Key: path, Problem: problem, Allowed: k.allowed})
		}
	}, func(path string, a array) {
		if n := a.count(); n > a.most {
			found.add(a.tooMany(path, n))
		}
	})
}

func (a array) tooMany(path string, n int) *Error {
	return &Error{Key: header(path, true), Problem: fmt.Sprintf("%d of them are too many", n), Allowed: fmt.Sprintf("at most %d", a.most)}
}

// diff lists in which settings b differs from a, a table of the same kind.
func diff(a, b table) []string { return a.diff("", b) }

func (t table) diff(at string, now table) (out []string) {
	for i, k := range t.keys {
		if was, is := k.show(), now.keys[i].show(); was != is {
			out = append(out, at+k.name+": "+was+" -> "+is)
		}
	}
	for i, a := range t.arrays {
		b := now.arrays[i]
		before, after := a.labels(), b.labels()
		for j, label := range after {
			path := at + a.name + "[" + label + "]"
			if was := slices.Index(before, label); was >= 0 {
				out = append(out, a.at(was).diff(path+".", b.at(j))...)
			} else {
				out = append(out, path+": added")
			}
		}
		for _, label := range before {
			if !slices.Contains(after, label) {
				out = append(out, at+a.name+"["+label+"]: removed")
			}
		}
	}
	return out
}

// header is how the head of a table is written in the file whose path is given:
// [reap], [[target]] for an element or, if it is asked for, for the array itself,
// [target.tls] for a table within an element.
func header(path string, array bool) string {
	var b strings.Builder
	depth := 0
	for _, r := range path {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case depth == 0:
			b.WriteRune(r)
		}
	}
	if array || strings.HasSuffix(path, "]") {
		return "[[" + b.String() + "]]"
	}
	return "[" + b.String() + "]"
}
