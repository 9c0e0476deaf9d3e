package cli

import (
	"fmt"
	"io"
)

// problems collects what could not be done, one line for each kind: a node has
// hundreds of namespaces, and the reason is the same for most.
type problems struct {
	kinds  []problem
	byText map[string]int // remedy to index in kinds
}

type problem struct {
	first  error
	more   int // of the same kind
	remedy string
}

// add counts err. Errors with the same remedy are of one kind; one without a
// remedy is a kind of its own.
func (p *problems) add(remedy string, err error) {
	if i, ok := p.byText[remedy]; ok && remedy != "" {
		p.kinds[i].more++
		return
	}
	if p.byText == nil {
		p.byText = map[string]int{}
	}
	p.byText[remedy] = len(p.kinds)
	p.kinds = append(p.kinds, problem{first: err, remedy: remedy})
}

// print writes the problems for people.
func (f *searched) print(w io.Writer) {
	for _, p := range f.problems.kinds {
		fmt.Fprintf(w, "redisguard: %s", oneLine(p.first.Error()))
		if p.more > 0 {
			fmt.Fprintf(w, " (and %d more like it)", p.more)
		}
		if p.remedy != "" {
			fmt.Fprintf(w, "; %s", p.remedy)
		}
		fmt.Fprintln(w)
	}
}
