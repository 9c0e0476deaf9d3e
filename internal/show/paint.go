package show

import "strings"

// Paint colours words that stand for something bad or good. It only repeats what
// the word says. The zero value does not.
type Paint bool

// The colours of words: 31 is red, 32 green, 33 yellow, 36 cyan.
var colours = map[string]string{
	"down": "31", "half-dead": "31", "critical": "31", "failed": "31", "fail": "31",
	"suspect": "33", "stalled": "33", "warning": "33", "warn": "33", "waiting": "36", "refused": "33", "off": "33",
	"up": "32", "ok": "32", "reaped": "32", "could not tell": "36",
}

// Word paints s by what it says.
func (p Paint) Word(s string) string { return p.As(strings.TrimSpace(s), s) }

// As paints s as if it were the word.
func (p Paint) As(word, s string) string {
	code := colours[word]
	if !bool(p) || code == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}
