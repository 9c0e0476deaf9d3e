package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// zoo is a schema with everything that Config may come to have: an array of
// tables, a table in its elements and an array in them.
type zoo struct {
	Open  bool
	Cages []cage
}

type cage struct {
	Name  string
	Size  int
	Feed  struct{ Rate float64 }
	Beast []beast
}

type beast struct {
	Name string
	Legs int
}

func (z *zoo) table() table {
	return table{
		keys: []key{boolKey("open", &z.Open), boolKey("hours.sunday", new(bool))},
		arrays: []array{arrayKey("cage", 20, &z.Cages,
			func() cage { return cage{Size: 10} },
			func(c *cage) *string { return &c.Name },
			func(c *cage) table {
				return table{
					keys: []key{intKey("size", &c.Size, 1, 100), floatKey("feed.rate", &c.Feed.Rate, 0, 10), boolKey("feed.by_hand", new(bool))},
					arrays: []array{arrayKey("beast", 2, &c.Beast,
						func() beast { return beast{Legs: 4} },
						func(b *beast) *string { return &b.Name },
						func(b *beast) table { return table{keys: []key{intKey("legs", &b.Legs, 0, 8)}} })},
				}
			})},
	}
}

func parseZoo(text string) (z zoo, err error) {
	err = parse("f", []byte(text), z.table(), func(*problems) {})
	return z, err
}

func TestArraysOfTables(t *testing.T) {
	want := zoo{Open: true, Cages: []cage{{Name: "lions", Size: 10}, {Name: "ants.2", Size: 3}}}
	want.Cages[0].Feed.Rate = 2
	want.Cages[0].Beast = []beast{{Name: "leo", Legs: 3}, {Name: "lea", Legs: 4}}
	for _, text := range []string{`
open = true
[[cage]]
name = "lions"
[cage.feed]
rate = 2
[[cage.beast]]
name = "leo"
legs = 3
[[cage.beast]]
name = "lea"
[[cage]]
size = 3
name = "ants.2"
`, `
open = true
cage = [
  { name = "lions", feed.rate = 2, beast = [{ name = "leo", legs = 3 }, { name = "lea" }] },
  { name = "ants.2", size = 3 },
]
`} {
		got, err := parseZoo(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	if z, err := parseZoo("cage = []"); err != nil || len(z.Cages) != 0 {
		t.Errorf("no cage: %+v, %v", z, err)
	}
}

func TestArrayErrors(t *testing.T) {
	const name = `; allowed: a name of its own, of 1 to 63 letters, digits, "-", "_" and "." that begins with a letter or a digit`
	for what, test := range map[string]struct{ text, want string }{
		"in an element":         {"[[cage]]\nname = 'a'\n[[cage]]\nname = 'b'\nsize = 0\n[[cage]]\nname = 'c'", `f:5: cage[b].size: 0 is out of range; allowed: a whole number from 1 to 100`},
		"before its name":       {"[[cage]]\nsize = 0\nname = 'a'", `f:2: cage[a].size: 0 is out of range; allowed: a whole number from 1 to 100`},
		"wrong type":            {"[[cage]]\nname = 'a'\nsize = 'b'", `f:3: cage[a].size: the string "b" is of the wrong type; allowed: a whole number from 1 to 100`},
		"table of an element":   {"[[cage]]\nname = 'a'\n[cage.feed]\nrate = 1\n[[cage]]\nname = 'b'\n[cage.feed]\nrate = -1", `f:8: cage[b].feed.rate: -1 is out of range; allowed: a number from 0 to 10`},
		"array of an element":   {"[[cage]]\nname = 'a'\n[[cage.beast]]\nname = 'x'\n[[cage.beast]]\nname = 'y'\nlegs = 9", `f:7: cage[a].beast[y].legs: 9 is out of range; allowed: a whole number from 0 to 8`},
		"inline":                {"cage = [\n {name = 'a'},\n # the second\n {name = 'b',\n  feed = {rate = -1}}]", `f:5: cage[b].feed.rate: -1 is out of range; allowed: a number from 0 to 10`},
		"no name":               {"[[cage]]\nname = 'a'\n\n[[cage]]\nsize = 2", `f:4: cage[#2].name: is missing` + name},
		"no name, inline":       {"cage = [\n {name = 'a'},\n {size = 2}]", `f:3: cage[#2].name: is missing` + name},
		"no name and more":      {"[[cage]]\nsize = 0", "f:1: cage[#1].name: is missing" + name + "\nf:2: cage[#1].size: 0 is out of range; allowed: a whole number from 1 to 100"},
		"bad name":              {"[[cage]]\nname = 'a]'", `f:2: cage[#1].name: "a]" is no name` + name},
		"long name":             {"[[cage]]\nname = '" + strings.Repeat("a", 64) + "'", `f:2: cage[#1].name: "` + strings.Repeat("a", 64) + `" is no name` + name},
		"number for a name":     {"[[cage]]\nname = 7", `f:2: cage[#1].name: 7 is of the wrong type` + name},
		"name twice":            {"[[cage]]\nname = 'a'\n[[cage]]\nname = 'a'\nsize = 0", "f:4: cage[#2].name: \"a\" is the name of cage[#1] already" + name + "\nf:5: cage[#2].size: 0 is out of range; allowed: a whole number from 1 to 100"},
		"unknown":               {"[[cage]]\nname = 'a'\n[[cage]]\nname = 'b'\nsiez = 1", `f:5: cage[b].siez: unknown key, did you mean cage[b].size?; allowed: in [[cage]] name, size, feed, beast`},
		"unknown in a table":    {"[[cage]]\nname = 'b'\nfeed.rat = 1", `f:3: cage[b].feed.rat: unknown key, did you mean cage[b].feed.rate?; allowed: in [cage.feed] rate, by_hand`},
		"in the wrong table":    {"[[cage]]\nname = 'b'\nby_hand = true", `f:3: cage[b].by_hand: unknown key, did you mean cage[b].feed.by_hand?; allowed: in [[cage]] name, size, feed, beast`},
		"unknown table":         {"[[cage]]\nname = 'b'\n[cage.fed]\nrate = 1", `f:3: cage[b].fed: unknown key, did you mean [cage.feed]?; allowed: in [[cage]] name, size, feed, beast`},
		"unknown array":         {"[[caeg]]\nname = 'b'", `f:1: caeg: unknown key, did you mean [[cage]]?`},
		"unknown array within":  {"[[cage]]\nname = 'b'\n[[cage.beats]]", `f:3: cage[b].beats: unknown key, did you mean [[cage.beast]]?; allowed: in [[cage]] name, size, feed, beast`},
		"like a table":          {"hour.sunday = true", `f:1: hour: unknown key, did you mean [hours]?`},
		"unknown, without name": {"[[cage]]\nnaem = 'b'", "f:1: cage[#1].name: is missing" + name + "\nf:2: cage[#1].naem: unknown key, did you mean cage[#1].name?; allowed: in [[cage]] name, size, feed, beast"},
		"a path as a key":       {"[[cage]]\nname = 'a'\n'feed.rate' = 1", `f:3: cage[a]."feed.rate": unknown key, did you mean cage[a].feed.rate?; allowed: in [[cage]] name, size, feed, beast`},
		"table":                 {"\n[cage]\nname = 'a'", `f:2: [[cage]]: is no array of tables; allowed: tables that are each headed [[cage]]`},
		"list":                  {"cage = [1]", `f:1: [[cage]]: is no array of tables; allowed: tables that are each headed [[cage]]`},
		"table for an array":    {"[[cage]]\nname = 'a'\nbeast = 1", `f:3: [[cage.beast]]: is no array of tables; allowed: tables that are each headed [[cage.beast]]`},
		"array for a table":     {"[[cage]]\nname = 'a'\n[[cage.feed]]\nrate = 1", `f:3: [cage.feed]: is no table; allowed: one table headed [cage.feed]`},
		"too many":              {strings.Repeat("[[cage]]\n", 21), `f:1: [[cage]]: 21 of them are too many; allowed: at most 20`},
		"too many within":       {"[[cage]]\nname = 'a'\n[[cage.beast]]\n[[cage.beast]]\n[[cage.beast]]\n", `f:3: [[cage.beast]]: 3 of them are too many; allowed: at most 2`},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := parseZoo(test.text)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := err.Error(); got != test.want {
				t.Errorf("\ngot  %s\nwant %s", got, test.want)
			}
		})
	}
}

// A Config may be made without a file, so the checks must hold without one.
func TestArrayChecksWithoutFile(t *testing.T) {
	z := zoo{Cages: make([]cage, 21)}
	for i := range z.Cages {
		z.Cages[i] = cage{Name: fmt.Sprint("c", i), Size: 1}
	}
	z.Cages[2].Size = -1
	var found problems
	z.table().check(&found)
	var got []string
	for _, e := range found {
		got = append(got, e.Key+": "+e.Problem)
	}
	if diff := cmp.Diff([]string{"[[cage]]: 21 of them are too many", "cage[c2].size: -1 is out of range"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDiffByName(t *testing.T) {
	a := zoo{Cages: []cage{{Name: "lions", Size: 1}, {Name: "ants", Size: 2, Beast: []beast{{Name: "x"}}}, {Name: "bats", Size: 3}}}
	for what, test := range map[string]struct {
		b    zoo
		want []string
	}{
		"the same":      {a, nil},
		"another order": {zoo{Cages: []cage{a.Cages[2], a.Cages[0], a.Cages[1]}}, nil},
		"none":          {zoo{Open: true}, []string{"open: false -> true", "cage[lions]: removed", "cage[ants]: removed", "cage[bats]: removed"}},
		"another, in front of the others": {zoo{Cages: []cage{{Name: "new", Size: 7}, {Name: "bats", Size: 4}, {Name: "ants", Size: 2, Beast: []beast{{Name: "y"}}}}},
			[]string{"cage[new]: added", "cage[bats].size: 3 -> 4", "cage[ants].beast[y]: added", "cage[ants].beast[x]: removed", "cage[lions]: removed"}},
		"names that are none": {zoo{Cages: []cage{{Name: "lions", Size: 1}, {Name: "lions", Size: 2}, {}}},
			[]string{"cage[#2]: added", "cage[#3]: added", "cage[ants]: removed", "cage[bats]: removed"}},
	} {
		if diff := cmp.Diff(test.want, diff(a.table(), test.b.table())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}

func FuzzArrays(f *testing.F) {
	for _, seed := range []string{"[[cage]]\nname='a'\n[cage.feed]\nrate=1", "cage=[{name='a',beast=[{}]},{}]", "[[cage]]\n[[cage.beast]]\n[[cage]]\n", "[[cage]]\nname='a'\n[[cage]]\nname='a'\nx.y=1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		keyLines([]byte(text)) // of what is no TOML, too
		z, err := parseZoo(text)
		if err == nil {
			if d := diff(z.table(), z.table()); len(d) > 0 {
				t.Fatalf("differs from itself: %v", d)
			}
			if len(z.Cages) > 20 {
				t.Fatalf("%d cages", len(z.Cages))
			}
			return
		}
		all := []error{err}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			all = joined.Unwrap()
		}
		for _, e := range all {
			bad, ok := errors.AsType[*Error](e)
			if !ok || bad.Problem == "" || bad.Line < 0 || bad.Line > strings.Count(text, "\n")+1 {
				t.Fatalf("%#v", e)
			}
		}
	})
}

func TestKeyLines(t *testing.T) {
	text := strings.Join([]string{
		/* 1 */ "a = '''[[no]]",
		/* 2 */ "b = 1''''' # c = 1",
		/* 3 */ `"x.y".z = "\"" # "`,
		/* 4 */ "d = [ [1, # ]",
		/* 5 */ `  2], [ "]" ], {e = 1}]`,
		/* 6 */ "t = 1979-05-27 07:32:00",
		/* 7 */ "",
		/* 8 */ "[ o . 'p' ]",
		/* 9 */ "q = {r = 1, s = [",
		/* 10 */ "1]}",
		/* 11 */ "[[u.v]]",
		/* 12 */ "w=1",
		/* 13 */ "[u.v.n]",
		/* 14 */ "[[u.v]]",
		/* 15 */ "w=''",
		/* 16 */ "[u]",
		/* 17 */ "k=1",
	}, "\n")
	want := map[string]int{
		"a": 1, `"x.y"`: 3, `"x.y".z`: 3, "d": 4, "d[#1]": 4, "d[#1][#1]": 4, "d[#1][#2]": 5, "d[#2]": 5, "d[#2][#1]": 5, "d[#3]": 5, "d[#3].e": 5, "t": 6,
		"o": 8, "o.p": 8, "o.p.q": 9, "o.p.q.r": 9, "o.p.q.s": 9, "o.p.q.s[#1]": 10,
		"u": 11, "u.v": 11, "u.v[#1]": 11, "u.v[#1].w": 12, "u.v[#1].n": 13, "u.v[#2]": 14, "u.v[#2].w": 15, "u.k": 17,
	}
	if got := keyLines([]byte(text)); !reflect.DeepEqual(got, want) {
		t.Errorf("-want +got:\n%s", cmp.Diff(want, got))
	}
}
