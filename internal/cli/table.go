package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/redisguard/redisguard/proc"
)

// writeConnections writes the table. On a terminal long names are cut in the
// middle until a line fits; a file or a pipe gets them whole.
func writeConnections(w io.Writer, list []connection) {
	rows := [][]string{{"NAMESPACE", "PROCESS", "WORKLOAD", "LOCAL", "REMOTE", "STATE", "HEARD", "STALLED", "RETRANS", "QUEUES"}}
	for i := range list {
		c := &list[i]
		heard, stalled, unanswered := "-", "-", "-"
		if ago, ok := c.Heard(); ok {
			heard = shortTime(ago)
		}
		if c.stalled {
			stalled, unanswered = shortTime(c.stalledFor), fmt.Sprint(c.unanswered)
		}
		state := c.State.String()
		if state == "ESTABLISHED" {
			state = "ESTAB" // as in ss; the column would be the widest of all
		}
		rows = append(rows, []string{proc.Safe(c.namespace.String()), c.process(), c.workload(), c.Local.String(), c.Remote.String(),
			state, heard, stalled, unanswered, fmt.Sprintf("%d/%d", c.WQueue, c.RQueue)})
	}
	if width := terminalWidth(w); width > 0 {
		fit(rows, width, []int{0, 1, 2})
	}
	writeTable(w, rows)
	if len(list) == 0 {
		fmt.Fprintln(w, "(none)")
	}
}

const gap = "  "

func writeTable(w io.Writer, rows [][]string) {
	widths := columnWidths(rows)
	var line strings.Builder
	for _, row := range rows {
		line.Reset()
		for i, cell := range row {
			line.WriteString(cell)
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
			row[c] = cutMiddle(row[c], widths[c])
		}
	}
}

// cutMiddle shortens s to width runes. Names differ at their beginnings (the
// application) and at their ends (the replica, the pid).
func cutMiddle(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	head := (width - 1) / 2
	tail := width - 1 - head
	return string(r[:head]) + "…" + string(r[len(r)-tail:])
}

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

// shortTime writes a duration in at most six characters: two digits or more, and
// one unit, or minutes beside hours.
func shortTime(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// oneLine joins the lines of a text that comes from several errors.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}
