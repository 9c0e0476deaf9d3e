package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/event"
	"github.com/redisguard/redisguard/lab/labtest"
	"github.com/redisguard/redisguard/verdict"
	"github.com/redisguard/redisguard/view"
)

// contract is docs/openapi.yaml.
type contract map[string]any

func openapi(t *testing.T) contract {
	t.Helper()
	b, err := os.ReadFile("../docs/openapi.yaml")
	labtest.Must(t, err)
	var c map[string]any
	labtest.Must(t, yaml.Unmarshal(b, &c))
	return c
}

// at follows keys, and references on the way.
func (c contract) at(keys ...string) map[string]any {
	m := map[string]any(c)
	for _, k := range keys {
		m, _ = m[k].(map[string]any)
		if ref, ok := m["$ref"].(string); ok {
			m = c.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
		}
	}
	return m
}

// schema is what an answer should look like, nil if it is not in the contract.
func (c contract) schema(method, path string, status int, kind string) map[string]any {
	content, _ := c.at("paths", path, strings.ToLower(method), "responses", fmt.Sprint(status))["content"].(map[string]any)
	media, _ := content[kind].(map[string]any)
	s, _ := media["schema"].(map[string]any)
	return s
}

// validate tells where a value is not as the schema has it. Properties that the
// schema does not have are mistakes here: the contract is to be complete.
func (c contract) validate(schema map[string]any, v any, where string) (wrong []string) {
	if ref, ok := schema["$ref"].(string); ok {
		return c.validate(c.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...), v, where)
	}
	bad := func(format string, args ...any) {
		wrong = append(wrong, where+": "+fmt.Sprintf(format, args...))
	}
	switch schema["type"] {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			bad("%v is no object", v)
			return wrong
		}
		props, _ := schema["properties"].(map[string]any)
		for name, x := range m {
			p, ok := props[name].(map[string]any)
			if !ok {
				bad("%s is not in the contract", name)
				continue
			}
			wrong = append(wrong, c.validate(p, x, where+"."+name)...)
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := m[name.(string)]; !ok {
				bad("%s is missing", name)
			}
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			bad("%v is no array", v)
		}
		items, _ := schema["items"].(map[string]any)
		for i, x := range list {
			wrong = append(wrong, c.validate(items, x, fmt.Sprintf("%s[%d]", where, i))...)
		}
	case "string":
		s, ok := v.(string)
		if !ok {
			bad("%v is no string", v)
		}
		if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, any(s)) {
			bad("%q is none of %v", s, enum)
		}
		if schema["format"] == "date-time" {
			if at, err := time.Parse(time.RFC3339Nano, s); err != nil || at.Location() != time.UTC {
				bad("%q is no time in UTC", s)
			}
		}
	case "integer":
		if f, ok := v.(float64); !ok || f != float64(int64(f)) {
			bad("%v is no integer", v)
		}
	case "number":
		if _, ok := v.(float64); !ok {
			bad("%v is no number", v)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			bad("%v is no boolean", v)
		}
	default:
		bad("the schema has type %v", schema["type"])
	}
	return wrong
}

func TestContractHasTheRoutes(t *testing.T) {
	c := openapi(t)
	words := map[access]string{forAll: "all", forMinimal: "minimal", forKnown: "known", forHost: "host", forAdmin: "admin"}
	have := map[string]bool{}
	for path := range c.at("paths") {
		for method := range c.at("paths", path) {
			have[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, rt := range routes() {
		name := rt.method + " " + rt.path
		if !have[name] {
			t.Errorf("%s is not in the contract", name)
			continue
		}
		delete(have, name)
		op := c.at("paths", rt.path, strings.ToLower(rt.method))
		if op["x-access"] != words[rt.access] {
			t.Errorf("%s is for %q, and the contract says %v", name, words[rt.access], op["x-access"])
		}
		var params []string
		list, _ := op["parameters"].([]any)
		for _, p := range list {
			if p := p.(map[string]any); p["in"] == "query" {
				params = append(params, p["name"].(string))
			}
		}
		slices.Sort(params)
		if !slices.Equal(params, slices.Sorted(slices.Values(rt.query))) {
			t.Errorf("%s takes %v, and the contract says %v", name, rt.query, params)
		}
	}
	for name := range have {
		t.Errorf("%s is in the contract, and there is no such route", name)
	}
}

// TestContractHasTheTypes holds the schemas against the Go types, both ways.
func TestContractHasTheTypes(t *testing.T) {
	c := openapi(t)
	seen := map[string]bool{}
	var look func(reflect.Type)
	look = func(ty reflect.Type) {
		for ty.Kind() == reflect.Pointer || ty.Kind() == reflect.Slice {
			ty = ty.Elem()
		}
		if ty.Kind() == reflect.String && ty.PkgPath() != "" {
			seen[ty.Name()] = true
		}
		if ty.Kind() != reflect.Struct || ty == reflect.TypeFor[time.Time]() || seen[ty.Name()] {
			return
		}
		seen[ty.Name()] = true
		schema := c.at("components", "schemas", ty.Name())
		props, _ := schema["properties"].(map[string]any)
		props = maps.Clone(props)
		required, _ := schema["required"].([]any)
		for i := range ty.NumField() {
			f := ty.Field(i)
			name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			if props[name] == nil {
				t.Errorf("%s.%s is not in the contract", ty.Name(), name)
			}
			delete(props, name)
			if rest == "" != slices.Contains(required, any(name)) && ty != reflect.TypeFor[v1.ReapRequest]() {
				t.Errorf("%s.%s: that it is always there is said in one place only", ty.Name(), name)
			}
			look(f.Type)
		}
		for name := range props {
			t.Errorf("%s.%s is in the contract only", ty.Name(), name)
		}
	}
	for _, v := range []any{
		v1.Status{}, v1.Connection{}, v1.Endpoint{}, v1.Namespace{}, v1.Finding{}, v1.Event{}, v1.Explanation{}, v1.Ready{},
		v1.SlotOwner{}, v1.ReapRequest{}, v1.ReapResponse{}, v1.ModeRequest{}, v1.ReloadResponse{}, v1.ErrorBody{},
	} {
		look(reflect.TypeOf(v))
	}
	for name := range c.at("components", "schemas") {
		if !seen[name] {
			t.Errorf("schema %s is not used", name)
		}
	}
}

// holds checks an answer against the contract.
func (c contract) holds(t *testing.T, method, path string, status int, kind, text string) {
	t.Helper()
	kind, _, _ = strings.Cut(kind, ";")
	s := c.schema(method, path, status, kind)
	if s == nil {
		t.Errorf("%s %s: an answer with status %d and type %s is not in the contract: %.200s", method, path, status, kind, text)
		return
	}
	if kind == "text/plain" {
		return
	}
	for line := range strings.Lines(text) {
		if kind != "application/x-ndjson" {
			line = text
		}
		var v any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Errorf("%s %s: %v in %.200s", method, path, err, line)
			return
		}
		for _, w := range c.validate(s, v, method+" "+path) {
			t.Error(w)
		}
		if kind != "application/x-ndjson" {
			return
		}
	}
}

// TestWords holds the closed lists of the inside against those of the wire.
func TestWords(t *testing.T) {
	c := openapi(t)
	enum := func(name string) map[string]bool {
		list, _ := c.at("components", "schemas", name)["enum"].([]any)
		m := map[string]bool{}
		for _, x := range list {
			m[x.(string)] = true
		}
		return m
	}
	types := enum("EventType")
	for _, w := range event.Types() {
		if !types[string(w)] {
			t.Errorf("event type %s is not in the contract", w)
		}
		delete(types, string(w))
	}
	if len(types) != 5 { // those of the stream itself
		t.Errorf("nothing ever is of types %v", types)
	}
	codes := enum("Code")
	for _, w := range v1.Codes() {
		if !codes[string(w)] || event.SeverityOf(verdict.EventType(w)) == "" {
			t.Errorf("code %s is not in the contract, or has no severity", w)
		}
		delete(codes, string(w))
	}
	if len(codes) != 0 || len(event.Codes()) != len(v1.Codes()) {
		t.Errorf("nothing ever has codes %v", codes)
	}
	outcomes := enum("ReapOutcome")
	for _, w := range append(verdict.ReapOutcomes(), view.Refused) {
		if !outcomes[string(w)] {
			t.Errorf("outcome %s is not in the contract", w)
		}
	}
}
