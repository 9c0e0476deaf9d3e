package config

import "strings"

// nearest is the setting, [table] or [[array]] of t that name was probably meant
// to be, or "" if none is like it. A setting in the wrong table is found by its
// last part. around is what stands before t's names in a path.
func nearest(name string, t table, around string) string {
	const long = 64 // no key of ours comes near; spares work on nonsense
	if len(name) > long {
		return ""
	}
	name = strings.ToLower(name)
	dot := strings.LastIndexByte(name, '.')
	within, last := name[:dot+1], name[dot+1:]
	best, bestDistance := "", len(last)/3+1
	try := func(candidate string, distance int) {
		if distance < bestDistance || distance == bestDistance && best == "" {
			best, bestDistance = candidate, distance
		}
	}
	for _, k := range t.keys {
		try(around+k.name, editDistance(name, k.name))
	}
	for _, member := range t.members(within) {
		whole := within + member
		_, isArray := t.array(whole)
		switch {
		case isArray:
			try(header(around+whole, true), editDistance(last, member))
		case t.has(whole):
			try(header(around+whole, false), editDistance(last, member))
		}
	}
	for _, k := range t.keys {
		// One more than the distance: the same table comes first.
		try(around+k.name, 1+editDistance(last, k.name[strings.LastIndexByte(k.name, '.')+1:]))
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
