package config

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// keyLines tells in which line each key of a text first stands, by its place:
// "reap", "reap.rate", "target[#2]", "target[#2].tls.ca". The library keeps the
// lines to itself, and of an array of tables it knows the last element's only.
//
// The text must be one that the library has accepted, and no deeper than tooDeep
// allows: keyLines knows where keys and values begin and end, and nothing of what
// is allowed. Of another text it returns something.
func keyLines(data []byte) map[string]int {
	s := lineScanner{data: data, line: 1, lines: map[string]int{}, elements: map[string]int{}}
	in := ""
	for s.skip(betweenStatements); s.at < len(s.data); s.skip(betweenStatements) {
		if s.data[s.at] == '[' {
			in = s.header()
		} else {
			s.pair(in)
		}
	}
	return s.lines
}

type lineScanner struct {
	data     []byte
	at, line int
	lines    map[string]int
	elements map[string]int // how many each array has so far
}

// place is the place of the key part in the table at in.
func place(in, part string) string {
	if in != "" {
		in += "."
	}
	return in + quoted(part)
}

// quoted is a part of a key as it is written in messages: with quotes unless it
// is a bare key, so that "a.b" is not taken for b in a.
func quoted(part string) string {
	for _, r := range part {
		if r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' && r != '-' {
			return clip(part)
		}
	}
	if part == "" || len(part) > 80 {
		return clip(part)
	}
	return part
}

func element(in string, n int) string { return fmt.Sprintf("%s[#%d]", in, n) }

// note takes down the line of a key, for the first time it is met.
func (s *lineScanner) note(place string, line int) {
	if _, ok := s.lines[place]; !ok {
		s.lines[place] = line
	}
}

// What stands between statements, between the items of a list, and within a
// line. A bracket left over from a header or from what is no TOML counts as
// space, so that there is always a step ahead.
const (
	betweenStatements = " \t\r\n#=]},"
	betweenItems      = " \t\r\n#,"
	withinLine        = " \t"
)

// skip moves on to the next byte that is none of set; # stands for a comment.
func (s *lineScanner) skip(set string) {
	for ; s.at < len(s.data) && strings.IndexByte(set, s.data[s.at]) >= 0; s.at++ {
		switch s.data[s.at] {
		case '\n':
			s.line++
		case '#':
			for s.at+1 < len(s.data) && s.data[s.at+1] != '\n' {
				s.at++
			}
		}
	}
}

// header reads [a.b] or [[a.b]] and returns the place of the table it opens.
func (s *lineScanner) header() (in string) {
	line := s.line
	s.at++
	double := s.at < len(s.data) && s.data[s.at] == '['
	if double {
		s.at++
	}
	parts := s.key()
	for i, part := range parts {
		in = place(in, part)
		s.note(in, line)
		if double && i == len(parts)-1 {
			s.elements[in]++
		}
		if n := s.elements[in]; n > 0 { // the last element is the one that is meant
			in = element(in, n)
			s.note(in, line)
		}
	}
	return in
}

// key reads the parts of a dotted key.
func (s *lineScanner) key() (parts []string) {
	for {
		s.skip(withinLine)
		start := s.at
		if start == len(s.data) {
			return parts
		}
		if c := s.data[start]; c == '"' || c == '\'' {
			text := string(s.string())
			part := strings.Trim(text, string(c))
			if unquoted, err := strconv.Unquote(text); err == nil && c == '"' {
				part = unquoted
			}
			parts = append(parts, part)
		} else {
			for s.at < len(s.data) && strings.IndexByte(" \t\r\n.=[]{},#\"'", s.data[s.at]) < 0 {
				s.at++
			}
			parts = append(parts, string(s.data[start:s.at]))
		}
		s.skip(withinLine)
		if s.at == len(s.data) || s.data[s.at] != '.' {
			return parts
		}
		s.at++
	}
}

// string skips a string and returns it with its quotes.
func (s *lineScanner) string() []byte {
	text := s.data[s.at:stringEnd(s.data, s.at)]
	s.at += len(text)
	s.line += bytes.Count(text, []byte{'\n'})
	return text
}

// pair reads key = value in the table at in.
func (s *lineScanner) pair(in string) {
	line, start := s.line, s.at
	for _, part := range s.key() {
		in = place(in, part)
		s.note(in, line)
	}
	s.skip(withinLine)
	if s.at < len(s.data) && s.data[s.at] == '=' {
		s.at++
		s.skip(withinLine)
		s.value(in)
	} else if s.at == start {
		s.at++ // no TOML
	}
}

// value skips the value of the key at in, and takes down the keys in it.
func (s *lineScanner) value(in string) {
	if s.at == len(s.data) {
		return
	}
	switch c := s.data[s.at]; c {
	case '"', '\'':
		s.string()
	case '[', '{':
		end := c + 2 // of both pairs, in ASCII
		s.at++
		for n := 1; ; n++ {
			s.skip(betweenItems)
			if s.at == len(s.data) {
				return
			}
			if s.data[s.at] == end {
				s.at++
				return
			}
			before := s.at
			if c == '{' {
				s.pair(in)
			} else {
				s.note(element(in, n), s.line)
				s.value(element(in, n))
			}
			if s.at == before {
				s.at++ // no TOML
			}
		}
	default:
		for s.at < len(s.data) && strings.IndexByte(",]}\n#", s.data[s.at]) < 0 {
			s.at++
		}
	}
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
			i += 3
			for extra := 0; extra < 2 && i < len(data) && data[i] == quote; extra++ {
				i++ // the string itself may end with two
			}
			return i
		case !long && c == '\n':
			return i // the caller counts it
		case !long && c == quote:
			return i + 1
		}
	}
	return len(data)
}
