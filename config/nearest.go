package config

import (
	"strconv"
	"strings"
)

// nearest is the known key or [table] that name was probably meant to be, or ""
// if none is like it. A key in the wrong table is found by its last part.
func nearest(name string, keys []string, tables map[string]bool) string {
	const long = 64 // no key of ours comes near; spares work on nonsense
	if len(name) > long {
		return ""
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	best, bestDistance := "", len(last)/3+1
	try := func(candidate string, distance int) {
		if distance < bestDistance || distance == bestDistance && best == "" {
			best, bestDistance = candidate, distance
		}
	}
	for _, k := range keys {
		try(k, editDistance(strings.ToLower(name), k))
	}
	if !strings.Contains(name, ".") {
		for _, k := range keys {
			if t, _, ok := strings.Cut(k, "."); ok && tables[t] {
				try("["+t+"]", editDistance(strings.ToLower(name), t))
			}
		}
	}
	for _, k := range keys {
		// One more than the distance: the same table comes first.
		try(k, 1+editDistance(strings.ToLower(last), k[strings.LastIndexByte(k, '.')+1:]))
	}
	return best
}

// editDistance counts the bytes to insert, remove or replace, and neighbours to
// swap, to make b of a.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}

// clean makes a key of the file fit for a message.
func clean(name string) string {
	if q := strconv.Quote(name); len(name) > 80 || q != `"`+name+`"` {
		return clip(name)
	}
	return name
}
