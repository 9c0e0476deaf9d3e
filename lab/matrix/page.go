package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// words are rows whose attribute does not say enough by itself. The others are commands, with a
// bar where it has a space.
var words = map[string]string{
	"redis_version":  "what it calls itself in `redis_version`",
	"mode":           "the key of its mode in INFO",
	"master_replid2": "`master_replid2` in INFO",
	"migration":      "slots are handed over",
	"ipv6":           "address that it names to who asks by IPv6",
	"rights":         "the least rights for nodes, of [targets.md](targets.md)",
}

// row is a line of a table: one value for each server.
type row struct {
	title  string
	values []string
}

// same says that all servers are alike.
func (r row) same() bool { return len(slices.Compact(slices.Clone(r.values))) <= 1 }

const intro = `# Versions

With which servers redisguard was run, and what they can. ` + "`make matrix`" + ` fetches them from Debian's
suites and PyPI, runs the tests that speak with Redis against each, and writes this page from what
they did: it is not to be edited. What a server can is found by trial, here and by the daemon, and
never by its version.

`

// page is docs/versions.md.
func page(servers []*server, missing []string) []byte {
	var b bytes.Buffer
	b.WriteString(intro)
	var from row
	var heads []string
	for _, s := range servers {
		head := s.attrs["server"]
		if head == "" {
			head = s.name
		}
		heads = append(heads, head)
		from.values = append(from.values, s.from)
	}
	from.title = "from"
	if len(missing) > 0 {
		fmt.Fprintf(&b, "Not to be had when this was written: %s.\n\n", strings.Join(missing, ", "))
	}

	b.WriteString("## Tests\n\n")
	rows := []row{from}
	for _, t := range tests {
		r := row{title: t.shows}
		for _, s := range servers {
			result := map[string]string{"pass": "passed", "fail": "**failed**", "skip": "**skipped**", "": "**did not run**"}[s.results[t.name]]
			r.values = append(r.values, result)
		}
		rows = append(rows, r)
	}
	table(&b, heads, rows)

	b.WriteString("\n## What they know\n\n")
	rows = capabilities(servers)
	table(&b, heads, rows)

	b.WriteString("\n## What differs\n\n")
	for _, r := range rows {
		if !r.same() {
			fmt.Fprintf(&b, "- %s: %s.\n", r.title, groups(heads, r.values))
		}
	}
	return b.Bytes()
}

// capabilities are the rows of the attributes, in the order in which they came first; that of
// the tests' ends is not the same in each run, so those of TestCapabilities go first.
func capabilities(servers []*server) (rows []row) {
	var keys []string
	for _, s := range servers {
		for _, k := range s.order {
			if k != "server" && !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	last := []string{"migration", "ipv6", "rights"}
	slices.SortStableFunc(keys, func(a, b string) int { return slices.Index(last, a) - slices.Index(last, b) })
	for _, k := range keys {
		r := row{title: words[k]}
		if r.title == "" {
			r.title = "`" + strings.ReplaceAll(k, "|", " ") + "`"
		}
		for _, s := range servers {
			value := s.attrs[k]
			switch {
			case value == "":
				value = "?"
			case value != "yes" && value != "no":
				value = code(value)
			}
			r.values = append(r.values, value)
		}
		rows = append(rows, r)
	}
	return rows
}

// code marks what is a word of Redis within a value.
func code(s string) string {
	f := strings.Fields(s)
	for i, w := range f {
		if strings.ContainsAny(w, "+|_") {
			f[i] = "`" + w + "`"
		}
	}
	return strings.Join(f, " ")
}

// table writes Markdown.
func table(b *bytes.Buffer, heads []string, rows []row) {
	cell := func(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
	fmt.Fprintf(b, "| | %s |\n|---|%s\n", strings.Join(heads, " | "), strings.Repeat("---|", len(heads)))
	for _, r := range rows {
		fmt.Fprintf(b, "| %s", cell(r.title))
		for _, v := range r.values {
			fmt.Fprintf(b, " | %s", cell(v))
		}
		b.WriteString(" |\n")
	}
}

// groups says which servers have which value.
func groups(heads, values []string) string {
	var order []string
	by := map[string][]string{}
	for i, v := range values {
		if by[v] == nil {
			order = append(order, v)
		}
		by[v] = append(by[v], heads[i])
	}
	var parts []string
	for _, v := range order {
		parts = append(parts, fmt.Sprintf("%s with %s", v, strings.Join(by[v], ", ")))
	}
	return strings.Join(parts, "; ")
}
