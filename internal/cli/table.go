package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/internal/show"
)

// table is rows of cells for eyes; the first row is the header.
type table struct {
	rows [][]string
	// cut are the columns that may be shortened, in the middle, until a line fits
	// a terminal. A file or a pipe gets them whole.
	cut []int
	// end says that the last column is a sentence: it is cut at its end first.
	end bool
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// optional leaves a column out in which nothing stands.
func (t *table) optional(column int) {
	for _, row := range t.rows[1:] {
		if row[column] != "" {
			return
		}
	}
	for i := range t.rows {
		t.rows[i] = slices.Delete(t.rows[i], column, column+1)
	}
}

// write writes the table, or a line that says that it is empty.
func (t *table) write(w io.Writer) {
	if width := terminalWidth(w); width > 0 {
		if t.end {
			fitEnd(t.rows, width)
		}
		fit(t.rows, width, t.cut)
	}
	writeTable(w, t.rows, paint(w))
	if len(t.rows) == 1 {
		fmt.Fprintln(w, "(none)")
	}
}

// paint paints on terminals, unless NO_COLOR is set (https://no-color.org).
func paint(w io.Writer) show.Paint {
	return show.Paint(terminalWidth(w) > 0 && os.Getenv("NO_COLOR") == "")
}

const gap = "  "

func writeTable(w io.Writer, rows [][]string, p show.Paint) {
	widths := columnWidths(rows)
	var line strings.Builder
	for _, row := range rows {
		line.Reset()
		for i, cell := range row {
			line.WriteString(p.Word(cell))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)) + gap)
			}
		}
		fmt.Fprintln(w, line.String())
	}
}

func columnWidths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

// shortest is what a column is never cut below: enough to tell two names apart.
const shortest = 12

// fit cuts the columns that may be cut, always the widest of them, until the
// table is at most width wide or nothing is left to cut.
func fit(rows [][]string, width int, columns []int) {
	widths := columnWidths(rows)
	total := len(gap) * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > width; total-- {
		widest := columns[0]
		for _, c := range columns {
			if widths[c] > widths[widest] {
				widest = c
			}
		}
		if widths[widest] <= shortest {
			break
		}
		widths[widest]--
	}
	for _, row := range rows {
		for _, c := range columns {
			row[c] = show.CutMiddle(row[c], widths[c])
		}
	}
}

// fitEnd cuts the last column where the others leave it at least minSentence.
func fitEnd(rows [][]string, width int) {
	widths := columnWidths(rows)
	last := len(widths) - 1
	room := width - len(gap)*last
	for _, w := range widths[:last] {
		room -= w
	}
	for _, row := range rows {
		row[last] = show.CutEnd(row[last], max(room, minSentence))
	}
}

// minSentence is what is left of a sentence at least.
const minSentence = 24

// terminalWidth is the width of the terminal that w is, or 0 if it is none.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if size.Col == 0 {
		return 80 // a terminal that does not know, as on a serial line
	}
	return int(size.Col)
}

// oneLine joins the lines of a text that comes from several errors.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}
