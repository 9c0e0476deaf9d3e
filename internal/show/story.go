package show

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
)

// moods are the words in whose colour events are shown that are neither loud nor silent,
// or that are worse or better than loud.
var moods = map[v1.EventType]string{
	v1.EventEndpointDown: "down", v1.EventEndpointSuspect: "suspect", v1.EventEndpointUp: "up",
	v1.EventConnectionStalled: "stalled", v1.EventConnectionJudged: "half-dead", v1.EventConnectionRecovered: "up",
	v1.EventConfigRefused: "warning",
}

// mood is the word in whose colour an event of this type and level is shown, "" for none.
func mood(t v1.EventType, l v1.Level) string {
	if word := moods[t]; word != "" {
		return word
	}
	if l == v1.LevelWarn {
		return "warning"
	}
	return ""
}

// Arm is how it stands with the keepalive of a connection, in a word.
func Arm(a *v1.Arm) string {
	if a == nil {
		return "-"
	}
	return Plain(string(a.State))
}

// Event is one line of the event stream for eyes, "" for one that says nothing to
// them.
func Event(e *v1.Event, p Paint) string {
	at := e.Time.Local().Format("15:04:05.000")
	what, text, endpoint, namespace, k := e.Type, e.Text, e.Endpoint, e.Namespace, e.Connection
	switch {
	case e.Type == v1.Synced:
		return "" // what came up to here is now, what follows is news
	case e.Finding != nil:
		f := e.Finding
		at, what, text, endpoint, namespace, k = "now         ", v1.EventType(f.Code), f.Text, f.Endpoint, f.Namespace, f.Connection
	case e.Type == v1.Snapshot && e.Mode != nil:
		at, what, text = "now         ", "mode", string(e.Mode.Effective)+" ("+ModeReasons(e.Mode)+")"
	}
	var words []string
	if e.Outcome != "" {
		words = append(words, string(e.Outcome))
	}
	if e.TookMs > 0 {
		words = append(words, "after "+Millis(e.TookMs))
	}
	if a := About(endpoint, namespace, k); a != "-" {
		words = append(words, a)
	}
	if e.Peer != nil {
		words = append(words, fmt.Sprintf("(asked for by %s[%d], uid %d)", e.Peer.Command, e.Peer.PID, e.Peer.UID))
	}
	line := Plain(strings.Join(slices.DeleteFunc(words, func(s string) bool { return s == "" }), " "))
	if text != "" {
		line += ": " + Plain(text)
	}
	return fmt.Sprintf("%s  %s  %s", at, p.As(EventColour(e), fmt.Sprintf("%-20s", Plain(string(what)))), strings.TrimPrefix(line, ": "))
}

// parts are the parts of a story in our words.
var parts = map[v1.Part]string{v1.PartSeen: "seen", v1.PartJudged: "judged", v1.PartDone: "done", v1.PartAfter: "after"}

// Story writes an explanation: what it is about, and its steps by time.
func Story(w io.Writer, x *v1.Explanation, p Paint) {
	fmt.Fprintf(w, "%s %s: %s\n", Plain(x.Kind), Plain(x.ID), Plain(x.Summary))
	if f := x.Finding; f != nil {
		state := "open since " + f.Since.Local().Format(time.DateTime)
		if !f.Open && f.Ended != nil {
			state = fmt.Sprintf("ended after %s: %s", Age(f.Ended.Sub(f.Since)), Plain(f.EndedBy))
		}
		fmt.Fprintf(w, "  finding     %s, %s, %s\n", Plain(string(f.Code)), p.Word(string(f.Severity)), state)
		fmt.Fprintf(w, "  about       %s\n", About(f.Endpoint, f.Namespace, f.Connection))
	}
	if k := x.Connection; k != nil {
		fmt.Fprintf(w, "  connection  %s -> %s in %s, of %s (%s)\n", Plain(k.Local), Plain(k.Endpoint), Plain(k.Namespace), Process(k.Process), Workload(k.Process))
		fmt.Fprintf(w, "  now         %s", p.Word(State(k)))
		if k.State != v1.StateConnecting {
			fmt.Fprintf(w, ", heard %s before %s", Millis(min(k.LastAckMs, k.LastReceivedMs)), k.AsOf.Local().Format(time.TimeOnly))
		}
		if !k.Reapable && k.WhyNot != "" {
			fmt.Fprintf(w, "; may not be reaped: %s", Plain(k.WhyNot))
		}
		fmt.Fprintln(w)
	}
	if k := x.Connection; k != nil && k.Arm != nil {
		said := cmp.Or(k.Arm.Meaning, k.Arm.Why)
		fmt.Fprintf(w, "  keepalive   %s", Arm(k.Arm))
		if said != "" {
			fmt.Fprintf(w, ": %s", Plain(said))
		}
		fmt.Fprintln(w)
	}
	if x.Kernel != "" {
		fmt.Fprintf(w, "  kernel      left to it, %s\n", Plain(x.Kernel))
	}
	fmt.Fprintln(w)
	if x.Incomplete {
		fmt.Fprintln(w, "  (older events may belong to it, which the daemon no longer has)")
	}
	var before time.Time
	for i, s := range x.Story {
		after := ""
		if i > 0 {
			after = "+" + Age(s.Time.Sub(before))
		}
		before = s.Time
		part, known := parts[s.Part]
		if !known {
			part = Plain(string(s.Part))
		}
		fmt.Fprintf(w, "  %s  %7s  %-6s  %s", s.Time.Local().Format("15:04:05.000"), after, part,
			p.As(mood(s.Type, s.Level), Plain(string(s.Type))))
		if s.Outcome != "" {
			fmt.Fprintf(w, " (%s)", Plain(string(s.Outcome)))
		}
		fmt.Fprintln(w)
		indented(w, s.Text)
		if e := s.Evidence; e != nil {
			if e.Text != s.Text && !strings.Contains(s.Text, e.Text) {
				indented(w, e.Text)
			}
			indented(w, Evidence(e))
		}
	}
	if len(x.Story) == 0 {
		fmt.Fprintln(w, "  nothing has happened to it that the daemon remembers")
	}
}

// indented writes a sentence under its step, in lines of a width that reads well.
func indented(w io.Writer, text string) {
	const indent, width = "                                 ", 88
	line := ""
	for _, word := range strings.Fields(Plain(text)) {
		if line != "" && len(line)+1+len(word) > width {
			fmt.Fprintln(w, indent+line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	if line != "" {
		fmt.Fprintln(w, indent+line)
	}
}

// Evidence tells the numbers behind a judgement.
func Evidence(e *v1.Evidence) string {
	s := fmt.Sprintf("rule %s", e.Rule)
	if len(e.Kinds) > 0 {
		s += ", by " + strings.Join(e.Kinds, " and ")
	}
	s += fmt.Sprintf(": silent for %s, %d waiting, %d unanswered; probes: %d alive, %d unanswered", Millis(e.SilenceMs), e.Waiting, e.Unanswered, e.ProbesAlive, e.ProbesUnanswered)
	if e.LogLikelihood != 0 {
		s += fmt.Sprintf("; loss %.2g, in bursts %.2g: probability e^%.1f", e.Loss, e.Burst, e.LogLikelihood)
	}
	return s
}

// EventColour is the word in whose colour an event line may be shown.
func EventColour(e *v1.Event) string {
	if f := e.Finding; f != nil {
		level := v1.LevelWarn
		if f.Severity == v1.Info {
			level = v1.LevelInfo
		}
		return mood(v1.EventType(f.Code), level)
	}
	return mood(e.Type, e.Level)
}
