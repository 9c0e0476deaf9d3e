package tui

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/show"
)

// View draws the screen.
func (m *model) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "redisguard top"
	return v
}

// lines are those of the screen, none wider than it.
func (m *model) lines() []string {
	var s screen
	s.width, s.paint = max(m.width, 40), m.conf.Paint
	switch {
	case m.help:
		for _, line := range helpText {
			s.line(cell{line, "", 0})
		}
	case m.story != nil:
		m.drawStory(&s)
	default:
		m.drawMain(&s)
	}
	if !m.once && len(s.lines) > m.height {
		s.lines = s.lines[:m.height]
	}
	return s.lines
}

// screen collects lines.
type screen struct {
	width int
	paint show.Paint
	lines []string
}

// cell is a text in a column. As is a word whose colour it has; width 0 takes what
// the text needs, a negative one aligns right.
type cell struct {
	text  string
	as    string
	width int
}

const gap = 2

// line adds a line of cells, cut at the edge of the screen.
func (s *screen) line(cells ...cell) {
	var b strings.Builder
	left := s.width
	for i, c := range cells {
		text := c.text
		width := c.width
		if width < 0 {
			width = -width
			text = strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text))) + text
		}
		last := i == len(cells)-1
		if width > left && !last {
			break // columns that do not fit are left out
		}
		if width == 0 || last && width > left {
			width = left
			text = show.CutEnd(text, left)
		} else {
			text = show.CutMiddle(text, width)
		}
		n := utf8.RuneCountInString(text)
		if c.as != "" {
			b.WriteString(s.paint.As(c.as, text))
		} else {
			b.WriteString(text)
		}
		left -= n
		if pad := min(width+gap-n, left); !last && pad > 0 {
			b.WriteString(strings.Repeat(" ", pad))
			left -= pad
		}
		if left <= 0 {
			break
		}
	}
	s.lines = append(s.lines, strings.TrimRight(b.String(), " "))
}

// table adds lines of columns, each as wide as its widest cell but no wider than
// the widths of the header say; 0 is for no limit.
func (s *screen) table(rows [][]cell) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for i, c := range rows[0] {
		if c.width != 0 {
			widths[i] = min(widths[i], max(c.width, -c.width))
		}
		if c.width < 0 {
			widths[i] = -widths[i]
		}
	}
	for _, row := range rows {
		for i := range row {
			row[i].width = widths[i]
		}
		s.line(row...)
	}
}

// text adds a line of one text.
func (s *screen) text(format string, args ...any) { s.line(cell{fmt.Sprintf(format, args...), "", 0}) }

// mark is what stands before a line: the cursor is a sign, not a colour.
func mark(here bool) string {
	if here {
		return ">"
	}
	return " "
}

func (m *model) drawMain(s *screen) {
	m.drawHead(s)
	m.drawTargets(s)
	room := m.height - len(s.lines) - 1 // the foot
	if m.once {
		room = 1 << 20
	}
	// A third each, at least, of what is left; what one does not need the next
	// one gets. Each has a title and a header.
	need := [panes]int{m.rows(endpointsPane) + 2, m.rows(connectionsPane) + 2, m.rows(eventsPane) + 1}
	var have [panes]int
	for _, p := range []pane{connectionsPane, endpointsPane, eventsPane} {
		have[p] = min(max(need[p], 3), room/int(panes))
	}
	rest := room - have[0] - have[1] - have[2]
	for _, p := range []pane{endpointsPane, connectionsPane, eventsPane} {
		more := min(rest, max(0, need[p]-have[p]))
		have[p] += more
		rest -= more
	}
	if m.once {
		have = [panes]int{max(need[0], 3), max(need[1], 3), max(need[2], 2)}
	} else {
		have[eventsPane] += rest
	}
	m.drawEndpoints(s, have[endpointsPane])
	m.drawConnections(s, have[connectionsPane])
	m.drawEvents(s, have[eventsPane])
	if !m.once {
		m.drawFoot(s)
	}
}

// plural writes a number with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (m *model) drawHead(s *screen) {
	mode := "?"
	if m.status.Mode != nil {
		mode = string(m.status.Mode.Effective)
	}
	c := m.status.Counts
	if c == nil {
		c = &v1.Counts{}
	}
	ends := plural(c.Endpoints, "endpoint")
	bad := ""
	if c.EndpointsDown+c.EndpointsSuspect > 0 {
		ends += fmt.Sprintf(" (%d down, %d suspect)", c.EndpointsDown, c.EndpointsSuspect)
		bad = "suspect"
		if c.EndpointsDown > 0 {
			bad = "down"
		}
	}
	conns := plural(c.Connections, "connection")
	if c.Stalled+c.HalfDead > 0 {
		conns += fmt.Sprintf(" (%d stalled, %d half-dead)", c.Stalled, c.HalfDead)
	}
	fixed := func(t, as string) cell { return cell{t, as, utf8.RuneCountInString(t)} }
	s.line(fixed("redisguard", ""), fixed(mode, mode), fixed(ends, bad), fixed(conns, ""), fixed(plural(c.Findings, "finding"), ""), cell{m.now.Local().Format(time.TimeOnly), "", 0})
	for _, t := range []string{m.trouble, m.lost} {
		if t != "" {
			s.line(cell{t, "warning", 0})
		}
	}
	columns := min(beats, s.width-32)
	m.drawHistory(s, "reaped", &m.reaps, columns)
	m.drawHistory(s, "clients back", &m.comebacks, columns)
}

var bars = []rune(" ▁▂▃▄▅▆▇█")

// drawHistory draws the last minutes as bars, the highest of which is the scale.
func (m *model) drawHistory(s *screen, name string, columns *[beats]int, show int) {
	sum, most := 0, 0
	for _, n := range columns[beats-show:] {
		sum += n
		most = max(most, n)
	}
	var b strings.Builder
	for _, n := range columns[beats-show:] {
		i := 0
		if n > 0 {
			i = 1 + (n*(len(bars)-2))/max(most, 1)
		}
		b.WriteRune(bars[min(i, len(bars)-1)])
	}
	word := ""
	if sum > 0 && name == "reaped" {
		word = "warning"
	}
	s.line(cell{name, "", 12}, cell{b.String(), word, show}, cell{fmt.Sprintf("%d in %s", sum, (time.Duration(show) * beat).String()), "", 0})
}

// title heads a pane.
func (m *model) title(s *screen, p pane, name string, n int) {
	t := fmt.Sprintf("%s (%d)", name, n)
	if len(orders[p]) > 1 {
		t += ", by " + orders[p][m.order[p]]
	}
	here := m.focus == p && !m.once
	head := "-- "
	if here {
		head = "== "
	}
	s.rule(head, t)
}

// rule is a line with a title.
func (s *screen) rule(head, t string) {
	s.text("%s%s %s", head, t, strings.Repeat(head[:1], max(0, s.width-len(head)-utf8.RuneCountInString(t)-1)))
}

// window is which of n lines to show in room, around the one at the cursor.
func window(n, at, room int) (from, to int) {
	room = max(0, room)
	from = min(max(0, at-room/2), max(0, n-room))
	return from, min(n, from+room)
}

func (m *model) drawEndpoints(s *screen, room int) {
	list := m.visibleEndpoints()
	m.title(s, endpointsPane, "endpoints", len(list))
	rows := [][]cell{{{" ", "", 1}, {"ENDPOINT", "", 47}, {"HEALTH", "", 7}, {"FOR", "", -6}, {"CONNS", "", -6}, {"WAITING", "", -7}, {"STALLED", "", -7}, {"REAPED", "", -6}, {"BACK", "", -5}}}
	at := min(m.at[endpointsPane], max(0, len(list)-1))
	from, to := window(len(list), at, room-2)
	for i := from; i < to; i++ {
		e := &list[i]
		since := "-"
		if e.Since != nil {
			since = show.Age(m.now.Sub(*e.Since))
		}
		rows = append(rows, []cell{
			{text: m.mark(endpointsPane, i == at)}, {text: show.Plain(e.Endpoint)}, {text: show.Plain(string(e.Health)), as: string(e.Health)}, {text: since},
			{text: fmt.Sprint(e.Connections)}, {text: fmt.Sprint(e.Waiting)}, {text: fmt.Sprint(e.Stalled)},
			{text: fmt.Sprint(m.reapsOf[e.Endpoint])}, {text: fmt.Sprint(m.backsOf[e.Endpoint])},
		})
	}
	s.table(rows)
	if len(list) == 0 {
		s.text("  (none)")
	}
}

func (m *model) mark(p pane, here bool) string { return mark(here && m.focus == p && !m.once) }

func (m *model) drawConnections(s *screen, room int) {
	list := m.visibleConnections()
	name := "stalled connections"
	if m.drill != (drill{}) {
		name = "connections " + m.drill.title
	}
	m.title(s, connectionsPane, name, len(list))
	rows := [][]cell{{{" ", "", 1}, {"STATE", "", 11}, {"STALLED", "", -7}, {"HEARD", "", -6}, {"ENDPOINT", "", 24}, {"PROCESS", "", 20}, {"WORKLOAD", "", 30}, {"ID", "", 36}}}
	at := min(m.at[connectionsPane], max(0, len(list)-1))
	from, to := window(len(list), at, room-2)
	for i := from; i < to; i++ {
		k := &list[i]
		stalled, heard := "-", "-"
		if rankOf(k.Health) < rankOf(v1.HealthWaiting) {
			stalled = show.Millis(k.StalledMs)
		}
		if k.State != v1.StateConnecting {
			heard = show.Millis(min(k.LastAckMs, k.LastReceivedMs))
		}
		workload := show.Workload(k.Process)
		if workload == "-" {
			workload = show.Plain(k.Namespace)
		}
		rows = append(rows, []cell{
			{text: m.mark(connectionsPane, i == at)}, {text: show.State(k), as: show.State(k)}, {text: stalled}, {text: heard},
			{text: show.Plain(k.Endpoint)}, {text: show.Process(k.Process)}, {text: workload}, {text: show.Plain(k.ID)},
		})
	}
	s.table(rows)
	if len(list) == 0 {
		s.text("  (none)")
	}
}

func (m *model) drawEvents(s *screen, room int) {
	list := m.visibleEvents()
	m.title(s, eventsPane, "events", len(list))
	at := min(m.at[eventsPane], max(0, len(list)-1))
	if m.focus != eventsPane {
		at = len(list) - 1 // the tail
	}
	from, to := window(len(list), max(0, at), room-1)
	for i := from; i < to; i++ {
		e := &list[i]
		s.line(cell{m.mark(eventsPane, i == at), "", 1}, cell{show.Event(e, false), show.EventColour(e), 0})
	}
	if len(list) == 0 {
		s.text("  (none since top was started)")
	}
}

func (m *model) drawFoot(s *screen) {
	for len(s.lines) < m.height-1 {
		s.text("")
	}
	switch {
	case m.typing:
		s.text("filter: %s_  (enter: keep, esc: none)", show.Plain(m.filter))
	case m.filter != "":
		s.text("filter: %s (esc: none)  q quit  ? help", show.Plain(m.filter))
	default:
		s.text("tab pane  enter into  p pod  x explain  s sort  / filter  esc back  ? help  q quit")
	}
}

func (m *model) drawStory(s *screen) {
	var b bytes.Buffer
	switch {
	case m.story.err != nil:
		fmt.Fprintf(&b, "cannot explain %s: %s\n", show.Plain(m.story.id), show.Plain(m.story.err.Error()))
	default:
		show.Story(&b, &m.story.story, false)
	}
	all := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	room := max(1, m.height-2)
	m.storyFrom = min(max(0, m.storyFrom), max(0, len(all)-room))
	for _, line := range all[m.storyFrom:min(len(all), m.storyFrom+room)] {
		s.text("%s", line)
	}
	for len(s.lines) < m.height-1 {
		s.text("")
	}
	s.text("up/down scroll  esc back")
}

var helpText = []string{
	"redisguard top",
	"",
	"  tab, shift+tab  next, previous pane (the one with == in its title)",
	"  up, down, j, k  a line; page keys: ten; home, end: the first, the last",
	"  enter           an endpoint's connections; a connection's or event's story",
	"  p               the connections of the line's pod, or network namespace",
	"  x               explain the line: what was seen, judged, done, and after",
	"  s               another order",
	"  /               show only lines with these letters",
	"  esc             back: no filter, all stalled connections",
	"  q               quit",
	"",
	"REAPED and BACK count the reaps, and the clients that came back, since top was",
	"started; the bars above show the same for the last minutes, two seconds each.",
	"",
	"any key: back",
}
