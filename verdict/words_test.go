package verdict

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// TestLists holds the lists of words against the constants: metrics begin with a
// zero for each of them.
func TestLists(t *testing.T) {
	have := map[string][]string{"Rule": words(append(Rules(), RuleManual)), "EventType": words(EventTypes()), "ReapOutcome": words(ReapOutcomes())}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 {
				return true
			}
			kind, _ := v.Type.(*ast.Ident)
			lit, _ := v.Values[0].(*ast.BasicLit)
			if kind == nil || lit == nil || have[kind.Name] == nil {
				return true
			}
			word, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			found++
			if !slices.Contains(have[kind.Name], word) {
				t.Errorf("%s %q is not in its list", kind.Name, word)
			}
			return true
		})
	}
	if all := len(have["Rule"]) + len(have["EventType"]) + len(have["ReapOutcome"]); found != all {
		t.Errorf("%d constants, %d words in the lists", found, all)
	}
}

func words[T ~string](list []T) (w []string) {
	for _, x := range list {
		w = append(w, string(x))
	}
	return w
}
