package tui

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
	"github.com/redisguard/redisguard/internal/show"
)

// pane is a part of the screen that can be gone through.
type pane int

const (
	endpointsPane pane = iota
	connectionsPane
	eventsPane
	panes
)

const (
	// keepEvents is how many events can be scrolled back to.
	keepEvents = 500
	// beats are the columns of the history, each beat long.
	beats = 60
	beat  = 2 * time.Second
)

// The orders of the panes; the first is the one to begin with.
var orders = [panes][]string{
	endpointsPane:   {"health", "connections", "name"},
	connectionsPane: {"stalled", "process", "endpoint"},
	eventsPane:      {"time"},
}

// drill narrows the connections down. The zero value is the stalled ones of the
// whole node.
type drill struct {
	query client.ConnectionQuery
	title string
}

// messages

// lookMsg says that it is time for the next look. Looks belong to a turn, which
// ends with each drill, so that there is only one chain of them.
type lookMsg struct{ turn int }

// polledMsg is what a look at the daemon has shown.
type polledMsg struct {
	at          time.Time
	turn        int
	status      v1.Status
	targets     []v1.Target
	endpoints   []v1.Endpoint
	connections []v1.Connection
	err         error
}

type eventMsg struct {
	event v1.Event
	err   error
}

type storyMsg struct {
	id    string
	story v1.Explanation
	err   error
}

// model is the screen.
type model struct {
	ctx           context.Context // ends with the program; commands ask the daemon under it
	conf          Config
	width, height int
	once          bool // no keys, no cursor, all lines

	now         time.Time
	status      v1.Status
	targets     []v1.Target
	endpoints   []v1.Endpoint
	connections []v1.Connection
	events      []v1.Event // oldest first
	trouble     string     // why the screen is not fresh
	lost        string     // why there are no events

	beatAt           time.Time // end of the last column
	reaps, comebacks [beats]int
	reapsOf, backsOf map[string]int // by endpoint

	focus     pane
	at        [panes]int
	order     [panes]int
	drill     drill
	turn      int // of the drill
	filter    string
	typing    bool // the filter
	help      bool
	story     *storyMsg // being read; nil is the main screen
	storyFrom int
}

func newModel(ctx context.Context, c Config) *model {
	c.Every = cmp.Or(c.Every, time.Second)
	return &model{ctx: ctx, conf: c, width: 80, height: 24, reapsOf: map[string]int{}, backsOf: map[string]int{}}
}

// first looks before there is a screen, so that a daemon that is not there is an
// ordinary error.
func (m *model) first() error {
	l := m.poll(drill{}, 0)
	if l.err != nil {
		return l.err
	}
	m.applyPoll(l)
	return nil
}

// Init begins to look.
func (m *model) Init() tea.Cmd { return m.pollLater() }

func (m *model) pollLater() tea.Cmd {
	turn := m.turn
	return tea.Tick(m.conf.Every, func(time.Time) tea.Msg { return lookMsg{turn} })
}

// pollNow has the daemon asked with what is looked at now.
func (m *model) pollNow() tea.Cmd {
	d, turn := m.drill, m.turn
	return func() tea.Msg { return m.poll(d, turn) }
}

// poll asks the daemon. It may run beside Update, so it only reads what stays.
func (m *model) poll(d drill, turn int) (l polledMsg) {
	l.turn = turn
	q := d.query
	if d == (drill{}) {
		q.Stalled = true
	}
	src := m.conf.Source
	if l.status, l.err = src.Status(m.ctx); l.err == nil {
		l.targets, l.err = src.Targets(m.ctx)
	}
	if l.err == nil {
		l.endpoints, l.err = src.Endpoints(m.ctx)
	}
	if l.err == nil {
		l.connections, l.err = src.Connections(m.ctx, q)
	}
	l.at = time.Now()
	return l
}

// Update takes one message in.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case lookMsg:
		if msg.turn == m.turn {
			return m, m.pollNow()
		}
	case polledMsg:
		m.applyPoll(msg)
		if msg.turn == m.turn {
			return m, m.pollLater()
		}
	case eventMsg:
		if msg.err != nil {
			m.lost = "no events: " + show.Plain(msg.err.Error())
			break
		}
		m.lost = ""
		m.applyEvent(msg.event)
	case storyMsg:
		if m.story != nil && m.story.id == msg.id {
			m.story = &msg
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

func (m *model) applyPoll(l polledMsg) {
	m.advance(l.at)
	if l.err != nil {
		m.trouble = "not fresh: " + show.Plain(l.err.Error())
		return
	}
	m.trouble = ""
	m.status, m.targets, m.endpoints = l.status, l.targets, l.endpoints
	if l.turn == m.turn {
		m.connections = l.connections
	}
}

// advance moves the history on to now.
func (m *model) advance(now time.Time) {
	if now.Before(m.now) {
		return
	}
	m.now = now
	if m.beatAt.IsZero() {
		m.beatAt = now.Truncate(beat).Add(beat)
	}
	for i := 0; !now.Before(m.beatAt); i++ {
		if i >= beats { // a long pause, as of a sleeping laptop
			m.beatAt = now.Truncate(beat).Add(beat)
			break
		}
		copy(m.reaps[:], m.reaps[1:])
		copy(m.comebacks[:], m.comebacks[1:])
		m.reaps[beats-1], m.comebacks[beats-1] = 0, 0
		m.beatAt = m.beatAt.Add(beat)
	}
}

func (m *model) applyEvent(e v1.Event) {
	switch e.Type {
	case v1.Synced:
		return
	case v1.EventConnectionReaped:
		if e.Outcome == v1.OutcomeReaped {
			m.count(&m.reaps, m.reapsOf, &e)
		}
	case v1.EventConnectionRecovered:
		m.count(&m.comebacks, m.backsOf, &e)
	}
	following := m.at[eventsPane] >= len(m.visibleEvents())-1
	m.events = append(m.events, e)
	if n := len(m.events) - keepEvents; n > 0 {
		m.events = slices.Delete(m.events, 0, n)
		m.at[eventsPane] = max(0, m.at[eventsPane]-n)
	}
	if following {
		m.at[eventsPane] = max(0, len(m.visibleEvents())-1)
	}
}

// count puts an event into the column of its time.
func (m *model) count(columns *[beats]int, of map[string]int, e *v1.Event) {
	m.advance(e.Time)
	if i := beats - 1 - int(m.beatAt.Sub(e.Time)/beat); i >= 0 && i < beats {
		columns[i]++
	}
	if len(of) < 10_000 {
		of[e.Endpoint]++
	}
}

// rank of healths, the worst first.
var rank = map[string]int{
	string(v1.EndpointDown): 0, string(v1.EndpointSuspect): 1, string(v1.EndpointNotAccepting): 2,
	string(v1.HealthHalfDead): 0, string(v1.HealthStalled): 1, string(v1.HealthWaiting): 2,
}

func rankOf[T ~string](health T) int {
	if r, ok := rank[string(health)]; ok {
		return r
	}
	return 3
}

// passes reports whether the filter lets a line through. Ask only if there is one:
// the words cost more than everything else on a node with many connections.
func (m *model) passes(words ...string) bool {
	return strings.Contains(strings.ToLower(strings.Join(words, " ")), strings.ToLower(m.filter))
}

func (m *model) visibleEndpoints() []v1.Endpoint {
	var list []v1.Endpoint
	for _, e := range m.endpoints {
		if m.filter == "" || m.passes(e.Endpoint, string(e.Health)) {
			list = append(list, e)
		}
	}
	order := orders[endpointsPane][m.order[endpointsPane]]
	slices.SortStableFunc(list, func(a, b v1.Endpoint) int {
		byName := cmp.Compare(a.Endpoint, b.Endpoint)
		switch order {
		case "health":
			return cmp.Or(cmp.Compare(rankOf(a.Health), rankOf(b.Health)), cmp.Compare(b.Stalled, a.Stalled), cmp.Compare(b.Connections, a.Connections), byName)
		case "connections":
			return cmp.Or(cmp.Compare(b.Connections, a.Connections), byName)
		}
		return byName
	})
	return list
}

func (m *model) visibleConnections() []v1.Connection {
	var list []v1.Connection
	for _, k := range m.connections {
		if m.filter == "" || m.passes(k.ID, k.Endpoint, k.Local, k.Namespace, show.State(&k), show.Process(k.Process), show.Workload(k.Process)) {
			list = append(list, k)
		}
	}
	order := orders[connectionsPane][m.order[connectionsPane]]
	slices.SortStableFunc(list, func(a, b v1.Connection) int {
		byID := cmp.Compare(a.ID, b.ID)
		switch order {
		case "stalled":
			return cmp.Or(cmp.Compare(rankOf(a.Health), rankOf(b.Health)), cmp.Compare(b.StalledMs, a.StalledMs), byID)
		case "process":
			return cmp.Or(cmp.Compare(show.Process(a.Process), show.Process(b.Process)), byID)
		}
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), byID)
	})
	return list
}

func (m *model) visibleEvents() []v1.Event {
	if m.filter == "" {
		return m.events
	}
	var list []v1.Event
	for _, e := range m.events {
		if m.passes(show.Event(&e, false)) {
			list = append(list, e)
		}
	}
	return list
}

// count of the lines of a pane.
func (m *model) rows(p pane) int {
	switch p {
	case endpointsPane:
		return len(m.visibleEndpoints())
	case connectionsPane:
		return len(m.visibleConnections())
	}
	return len(m.visibleEvents())
}

// key does what a key asks for.
func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	if name == "ctrl+c" {
		return tea.Quit
	}
	switch {
	case m.typing:
		switch name {
		case "enter":
			m.typing = false
		case "esc":
			m.typing, m.filter = false, ""
		case "backspace":
			if r := []rune(m.filter); len(r) > 0 {
				m.filter = string(r[:len(r)-1])
			}
		default:
			m.filter += k.Text
		}
		return nil
	case m.help:
		m.help = false
		return nil
	case m.story != nil:
		switch name {
		case "esc", "q", "enter", "left", "backspace":
			m.story = nil
		case "down", "j":
			m.storyFrom++
		case "up", "k":
			m.storyFrom--
		case "pgdown", "space":
			m.storyFrom += m.height - 2
		case "pgup":
			m.storyFrom -= m.height - 2
		}
		return nil
	}
	move := func(n int) { m.at[m.focus] = min(max(0, m.at[m.focus]+n), max(0, m.rows(m.focus)-1)) }
	switch name {
	case "q":
		return tea.Quit
	case "?", "h":
		m.help = true
	case "tab":
		m.focus = (m.focus + 1) % panes
	case "shift+tab":
		m.focus = (m.focus + panes - 1) % panes
	case "down", "j":
		move(1)
	case "up", "k":
		move(-1)
	case "pgdown", "space":
		move(10)
	case "pgup":
		move(-10)
	case "home", "g":
		move(-keepEvents * 1000)
	case "end", "G":
		move(keepEvents * 1000)
	case "s":
		m.order[m.focus] = (m.order[m.focus] + 1) % len(orders[m.focus])
	case "/":
		m.typing, m.filter = true, ""
	case "esc", "backspace", "left":
		if m.filter != "" {
			m.filter = ""
			return nil
		}
		return m.into(drill{})
	case "enter", "right":
		return m.enter()
	case "x":
		return m.explain()
	case "p":
		return m.pod()
	}
	return nil
}

// selected returns the line that the cursor is on.
func selected[T any](m *model, p pane, list []T) (v T, ok bool) {
	if len(list) == 0 {
		return v, false
	}
	return list[min(m.at[p], len(list)-1)], true
}

// into shows other connections.
func (m *model) into(d drill) tea.Cmd {
	if d == m.drill {
		return nil
	}
	m.drill, m.connections, m.at[connectionsPane] = d, nil, 0
	m.turn++
	if d != (drill{}) {
		m.focus = connectionsPane
	} else {
		m.focus = endpointsPane
	}
	return m.pollNow()
}

// enter goes deeper: from an endpoint to its connections, from the others to
// their stories.
func (m *model) enter() tea.Cmd {
	if m.focus != endpointsPane {
		return m.explain()
	}
	e, ok := selected(m, endpointsPane, m.visibleEndpoints())
	if !ok {
		return nil
	}
	return m.into(drill{query: client.ConnectionQuery{Endpoint: e.Endpoint}, title: "to " + show.Plain(e.Endpoint)})
}

// pod shows the connections of the pod that the line is about, or, where there is
// none, of its network namespace.
func (m *model) pod() tea.Cmd {
	var p *v1.Process
	var id, namespace string
	switch m.focus {
	case connectionsPane:
		if k, ok := selected(m, connectionsPane, m.visibleConnections()); ok {
			p, id, namespace = k.Process, k.NamespaceID, k.Namespace
		}
	case eventsPane:
		if e, ok := selected(m, eventsPane, m.visibleEvents()); ok {
			id, namespace = e.NamespaceID, e.Namespace
			if e.Connection != nil {
				p = e.Connection.Process
			}
		}
	}
	switch {
	case p != nil && p.PodUID != "":
		return m.into(drill{query: client.ConnectionQuery{Pod: p.PodUID}, title: "of " + show.Workload(p)})
	case id != "":
		return m.into(drill{query: client.ConnectionQuery{Namespace: id}, title: "in " + show.Plain(namespace)})
	}
	return nil
}

// explain tells the story of the line.
func (m *model) explain() tea.Cmd {
	id := ""
	switch m.focus {
	case endpointsPane:
		if e, ok := selected(m, endpointsPane, m.visibleEndpoints()); ok {
			for _, p := range e.Paths {
				id = cmp.Or(id, p.Finding)
			}
			if id == "" {
				m.story = &storyMsg{id: e.Endpoint, story: v1.Explanation{Kind: "endpoint", ID: e.Endpoint, Summary: "nothing is wrong with it"}}
				m.storyFrom = 0
				return nil
			}
		}
	case connectionsPane:
		if k, ok := selected(m, connectionsPane, m.visibleConnections()); ok {
			id = k.ID
		}
	case eventsPane:
		if e, ok := selected(m, eventsPane, m.visibleEvents()); ok {
			switch {
			case e.Finding != nil:
				id = e.Finding.ID
			case e.Connection != nil:
				id = e.Connection.ID
			default:
				id = e.Cursor
			}
		}
	}
	if id == "" {
		return nil
	}
	m.story, m.storyFrom = &storyMsg{id: id, story: v1.Explanation{Kind: "looking for", ID: id}}, 0
	return func() tea.Msg {
		x, err := m.conf.Source.Explain(m.ctx, id)
		return storyMsg{id: id, story: x, err: err}
	}
}
