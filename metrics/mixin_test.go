package metrics

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/verdict"
)

// alert is one rule of packaging/mixin/alerts.yaml.
type alert struct{ name, expr, runbook string }

// alerts reads the rules. They are written one key a line, so that no YAML reader
// is needed to hold them against the metrics.
func alerts(t *testing.T) (list []alert) {
	t.Helper()
	data, err := os.ReadFile("../packaging/mixin/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimLeft(strings.TrimSpace(line), "- "), ": ")
		value = strings.Trim(value, "'")
		switch key {
		case "alert":
			list = append(list, alert{name: value})
		case "expr":
			list[len(list)-1].expr = value
		case "runbook_url":
			list[len(list)-1].runbook = value
		}
	}
	if len(list) < 10 {
		t.Fatalf("only %d alerts: they are read in the wrong way", len(list))
	}
	return list
}

// expressions are those of alerts and dashboard, by where they stand.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	exprs := map[string]string{}
	for _, a := range alerts(t) {
		exprs["alert "+a.name] = a.expr
	}
	data, err := os.ReadFile("../packaging/mixin/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal(data, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			exprs["panel "+p.Title+" "+target.RefID] = target.Expr
		}
	}
	if len(exprs) < 30 {
		t.Fatalf("only %d expressions", len(exprs))
	}
	return exprs
}

// TestMixin: every metric that an alert or a panel names is there, with every label
// and value that it is asked for by.
func TestMixin(t *testing.T) {
	lines := strings.Split(scrape(t, testConfig()), "\n")
	selector := regexp.MustCompile(`\b((?:redisguard|process|go)_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher := regexp.MustCompile(`([a-z_]+)(=~|=)"([^"]*)"`)
	grouping := regexp.MustCompile(`\bby \(([^)]*)\)`)
	target := []string{"instance", "job"} // which Prometheus adds
	for where, expr := range expressions(t) {
		if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.Count(expr, "{") != strings.Count(expr, "}") {
			t.Errorf("%s: brackets: %s", where, expr)
		}
		var labels []string
		for _, s := range selector.FindAllStringSubmatch(expr, -1) {
			var series []string
			for _, line := range lines {
				if strings.HasPrefix(line, s[1]+"{") || strings.HasPrefix(line, s[1]+" ") {
					series = append(series, line)
				}
			}
			if len(series) == 0 {
				t.Errorf("%s: there is no metric %s", where, s[1])
				continue
			}
			for _, l := range matcher.FindAllStringSubmatch(series[0], -1) {
				labels = append(labels, l[1])
			}
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				values := []string{m[3]}
				if m[2] == "=~" {
					values = strings.Split(m[3], "|")
				}
				for _, v := range values {
					want := m[1] + `="` + v + `"`
					if !slices.Contains(target, m[1]) && !slices.ContainsFunc(series, func(line string) bool { return strings.Contains(line, want) }) {
						t.Errorf("%s: %s has no %s", where, s[1], want)
					}
				}
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
			for _, l := range strings.Split(g[1], ",") {
				if l = strings.TrimSpace(l); !slices.Contains(target, l) && !slices.Contains(labels, l) {
					t.Errorf("%s: grouped by %s, which none of its metrics has", where, l)
				}
			}
		}
	}
}

// TestRunbooks: each alert and each code of a finding has its page, and each page
// its alert or code.
func TestRunbooks(t *testing.T) {
	want := map[string]bool{}
	for _, a := range alerts(t) {
		want[a.name] = true
		if a.runbook != "https://github.com/redisguard/redisguard/blob/main/docs/runbooks/"+a.name+".md" {
			t.Errorf("alert %s: its runbook is %q", a.name, a.runbook)
		}
	}
	for _, c := range v1.Codes() {
		want[string(c)] = true
		if !slices.ContainsFunc(event.Codes(), func(k verdict.EventType) bool { return string(k) == string(c) }) {
			t.Errorf("%s is a code of the API, and no metric counts it", c)
		}
	}
	if a, b := len(v1.Codes()), len(event.Codes()); a != b {
		t.Errorf("%d codes in the API, %d in package event", a, b)
	}
	files, err := filepath.Glob("../docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)]+\.md)\)`)
	have := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		have[name] = true
		if !want[name] {
			t.Errorf("%s is of no alert and no code", file)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"# " + name + "\n", "\n## What it means\n", "\n## What to do\n\n1. "} {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s has no %q", file, part)
			}
		}
		for _, l := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join("../docs/runbooks", l[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		for _, m := range regexp.MustCompile(`redisguard_[a-z_]+`).FindAllString(string(text), -1) {
			if !strings.Contains(scrape(t, testConfig()), m) {
				t.Errorf("%s: there is no metric %s", file, m)
			}
		}
	}
	for name := range want {
		if !have[name] {
			t.Errorf("docs/runbooks/%s.md is missing", name)
		}
	}
}
