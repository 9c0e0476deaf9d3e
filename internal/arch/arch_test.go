package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/redisguard/redisguard"

// root is the module's directory, seen from this package.
const root = "../.."

// pkg is what `go list -json` says about a package.
type pkg struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
}

// name is the path within the module: "verdict", "internal/cli"; ok is false for
// other modules and the standard library.
func name(importPath string) (rel string, ok bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// under reports whether the package rel is dir or below it.
func under(rel, dir string) bool { return rel == dir || strings.HasPrefix(rel, dir+"/") }

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,Deps,TestImports,XTestImports", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot list packages: %v\n%s", err, stderr.String())
	}
	var list []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rel, _ := name(p.ImportPath); under(rel, "out") {
			continue // scratch, which git ignores
		}
		list = append(list, p)
	}
	if len(list) < 10 {
		t.Fatalf("only %d packages: this test looks in the wrong place", len(list))
	}
	return list
}

// features each do one thing to the kernel or to Redis, and meet only in the
// packages that use them.
var features = []string{"tcpstate", "keepalive", "resolver", "clusterview", "sysctl", "detour", "probe"}

// values are the standard packages that verdict may import: they compute, and
// know neither time passing nor the world outside.
var values = []string{
	"bytes", "cmp", "container/heap", "errors", "fmt", "hash/fnv", "hash/maphash", "iter", "maps", "math", "math/bits", "math/rand/v2",
	"net/netip", "slices", "sort", "strconv", "strings", "time",
}

// words are the packages of values that everybody shares.
var words = []string{"policy", "event", "view", "verdict"}

// cores are the packages beside verdict that decide by values alone.
var cores = []string{"clusterview", "clusterview/reply"}

// system are the standard packages that reach into the operating system.
var system = []string{"os", "os/exec", "os/user", "os/signal", "syscall", "net", "net/http", "io/ioutil", "log"}

// standard reports whether a package is of Go's standard library.
func standard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

// rule forbids imports.
type rule struct {
	name   string
	reason string
	// forbids reports whether the package from, of this module, may not import
	// the package to.
	forbids func(from, to string) bool
}

var rules = []rule{
	{
		name:   "verdict imports only value types",
		reason: "it decides, and is tested and replayed by values alone: no clock, no socket, no other part of redisguard",
		forbids: func(from, to string) bool {
			return under(from, "verdict") && !slices.Contains(values, to)
		},
	},
	{
		name:   "features do not import each other",
		reason: "each is useful and testable alone; what needs two of them belongs into supervisor, or another package that uses both",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			if !ours {
				return false
			}
			for _, a := range features {
				for _, b := range features {
					if a != b && under(from, a) && under(rel, b) {
						return true
					}
				}
			}
			return false
		},
	},
	{
		name:   "nobody imports lab",
		reason: "it makes and breaks networks as root: the daemon must not even contain it",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return ours && under(rel, "lab") && !under(from, "lab")
		},
	},
	{
		name:   "nobody runs other programs",
		reason: "a root daemon that starts programs is at the mercy of PATH and of their output; lab and tests may",
		forbids: func(from, to string) bool {
			return to == "os/exec" && !under(from, "lab")
		},
	},
	{
		name:   "unsafe is in internal/sys and the lab only",
		reason: "one door to the kernel: whoever reviews memory safety reads one package",
		forbids: func(from, to string) bool {
			return to == "unsafe" && from != "internal/sys" && from != "lab" // of which nothing is in the daemon
		},
	},
	{
		name:   "client imports api/v1 only",
		reason: "programs link it: it must not bring the daemon along",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return under(from, "client") && (ours && !under(rel, "client") && !under(rel, "api/v1") || !ours && !standard(to))
		},
	},
	{
		name:   "api/v1 imports nothing of redisguard",
		reason: "wire types stay as they are when the insides change",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return under(from, "api/v1") && (ours && !under(rel, "api/v1") || !ours && !standard(to))
		},
	},
	{
		name:   "the API does not import the supervisor",
		reason: "it declares the little that it needs, in the words of view and event; whatever can answer that can be served",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return under(from, "api") && ours && (under(rel, "supervisor") || under(rel, "config"))
		},
	},
	{
		name:   "loops do not import each other",
		reason: "each is one loop or one outlet that can be read and tested alone; what one tells another goes through the watcher, in order",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return under(from, "supervisor") && from != "supervisor" && ours && under(rel, "supervisor") && rel != from
		},
	},
	{
		name:   "words touch no operating system",
		reason: "what is watched, permitted, known and has happened are values: whoever holds one needs no rights and no cleaning up",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return slices.Contains(words, from) && (slices.Contains(system, to) || strings.HasPrefix(to, "golang.org/x/sys/") || ours && (under(rel, "internal/sys") || under(rel, "internal/statefile") || under(rel, "internal/abandon")))
		},
	},
	{
		name:   "only the daemon knows the supervisor",
		reason: "metrics, doctor and the command line show what is in view, event and figures; internal/daemon puts the parts together",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return ours && under(rel, "supervisor") && !under(from, "supervisor") && !under(from, "internal/daemon")
		},
	},
	{
		name:   "the guard does not know of its API",
		reason: "it goes on without one, and whoever asks through one must not reach into it",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return (under(from, "supervisor") || under(from, "policy") || under(from, "event") || under(from, "view") || under(from, "verdict")) && ours &&
				(under(rel, "api") || under(rel, "client") || under(rel, "metrics"))
		},
	},
	{
		name:   "resp imports the standard library only",
		reason: "it reads bytes of strangers as root: whoever reviews that reads one package, and a feature may use it",
		forbids: func(from, to string) bool {
			return under(from, "resp") && !standard(to)
		},
	},
	{
		name:   "sessions know the wire only",
		reason: "commands go in and values come out: who reviews where a password goes reads one package, and what replies mean is decided without a socket",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return under(from, "clusterview/session") && ours && rel != "resp" && rel != "netns" && rel != "internal/sys"
		},
	},
	{
		name:   "the cluster view imports values only",
		reason: "what replies mean and how views are merged is tested by scripts, without a server; whoever dials is another package, and uses it",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return slices.Contains(cores, from) && (slices.Contains(system, to) || !ours && !standard(to) || ours && rel != "resp" && !slices.Contains(cores, rel))
		},
	},
	{
		name:   "top knows the API only",
		reason: "it is a client like any other: what it shows, every program can ask for",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return (under(from, "internal/tui") || under(from, "internal/show")) && ours &&
				!under(rel, "client") && !under(rel, "api/v1") && !under(rel, "internal/show")
		},
	},
	{
		name:   "Prometheus is known to metrics only",
		reason: "the parts that do the work count with plain numbers",
		forbids: func(from, to string) bool {
			return strings.HasPrefix(to, "github.com/prometheus/") && from != "metrics"
		},
	},
	{
		name:   "commands are imported by package main only",
		reason: "what the command line does for others to use belongs into a package of its own",
		forbids: func(from, to string) bool {
			rel, ours := name(to)
			return ours && under(rel, "internal/cli") && !under(from, "cmd") && !under(from, "internal/cli")
		},
	},
	{
		name:   "no cgo",
		reason: "the daemon is one static file, and libc knows nothing of threads in other namespaces",
		forbids: func(_, to string) bool {
			return to == "C"
		},
	},
}

// TestImports holds every import that is not a test's against the rules.
func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := name(p.ImportPath)
		if !ok {
			t.Fatalf("%s is not of this module", p.ImportPath)
		}
		for _, to := range p.Imports {
			for _, r := range rules {
				if r.forbids(from, to) {
					t.Errorf("%s imports %s, but %s: %s", from, to, r.name, r.reason)
				}
			}
		}
	}
}

// TestRules shows that each rule forbids something, and not too much.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		breaks   string // a rule's name, "" if allowed
	}{
		{"verdict", "net/netip", ""},
		{"verdict", "net", "verdict imports only value typeswords touch no operating system"},
		{"verdict", "os", "verdict imports only value typeswords touch no operating system"},
		{"verdict", module + "/tcpstate", "verdict imports only value types"},
		{"tcpstate", module + "/internal/sys", ""},
		{"probe", module + "/netns", ""},
		{"probe", module + "/tcpstate", "features do not import each other"},
		{"clusterview", module + "/clusterview/reply", ""},
		{"clusterview", module + "/resp", ""},
		{"clusterview", "net", "the cluster view imports values only"},
		{"clusterview/reply", module + "/netns", "the cluster view imports values only"},
		{"clusterview/session", "net", ""},
		{"clusterview/session", module + "/resp", ""},
		{"clusterview/session", module + "/netns", ""},
		{"clusterview/session", module + "/clusterview", "sessions know the wire only"},
		{"clusterview/session", module + "/resolver", "features do not import each othersessions know the wire only"},
		{"clusterview", module + "/clusterview/session", "the cluster view imports values only"},
		{"supervisor", module + "/clusterview/session", ""},
		{"supervisor", module + "/tcpstate", ""},
		{"supervisor", module + "/lab", "nobody imports lab"},
		{"lab/demo", module + "/lab", ""},
		{"supervisor", "os/exec", "nobody runs other programs"},
		{"lab", "os/exec", ""},
		{"internal/sys", "unsafe", ""},
		{"lab", "unsafe", ""},
		{"tcpstate", "unsafe", "unsafe is in internal/sys and the lab only"},
		{"probe", module + "/resp", ""},
		{"resp", "bufio", ""},
		{"resp", module + "/internal/sys", "resp imports the standard library only"},
		{"resp", "golang.org/x/sys/unix", "resp imports the standard library only"},
		{"client", module + "/api/v1", ""},
		{"client", module + "/event", "client imports api/v1 only"},
		{"client", "golang.org/x/sys/unix", "client imports api/v1 only"},
		{"client", "net/http", ""},
		{"client/example", module + "/client", ""},
		{"api/v1", module + "/verdict", "api/v1 imports nothing of redisguard"},
		{"api/v1", "golang.org/x/sys/unix", "api/v1 imports nothing of redisguard"},
		{"api", module + "/supervisor", "the API does not import the supervisoronly the daemon knows the supervisor"},
		{"api", module + "/view", ""},
		{"supervisor", module + "/api", "the guard does not know of its API"},
		{"supervisor", module + "/supervisor/tuner", ""},
		{"supervisor/tuner", module + "/supervisor/armer", "loops do not import each other"},
		{"supervisor/tuner", module + "/supervisor", "loops do not import each other"},
		{"supervisor/tuner", module + "/policy", ""},
		{"policy", module + "/proc", ""},
		{"policy", "os", "words touch no operating system"},
		{"view", module + "/internal/statefile", "words touch no operating system"},
		{"event", "golang.org/x/sys/unix", "words touch no operating system"},
		{"metrics", module + "/supervisor", "only the daemon knows the supervisor"},
		{"doctor", module + "/clusterview/session", ""},
		{"doctor", module + "/supervisor/armer", "only the daemon knows the supervisor"},
		{"internal/cli", module + "/supervisor/survey", "only the daemon knows the supervisor"},
		{"internal/cli", module + "/internal/daemon", ""},
		{"internal/daemon", module + "/supervisor/survey", ""},
		{"event", module + "/api/v1", "the guard does not know of its API"},
		{"internal/tui", module + "/client", ""},
		{"internal/tui", module + "/supervisor", "only the daemon knows the supervisortop knows the API only"},
		{"internal/show", module + "/api", "top knows the API only"},
		{"supervisor", "github.com/prometheus/client_golang/prometheus", "Prometheus is known to metrics only"},
		{"cmd/redisguard", module + "/internal/cli", ""},
		{"supervisor", module + "/internal/cli", "commands are imported by package main only"},
		{"proc", "C", "no cgo"},
	} {
		broken := ""
		for _, r := range rules {
			if r.forbids(tt.from, tt.to) {
				broken += r.name
			}
		}
		if broken != tt.breaks {
			t.Errorf("%s -> %s breaks %q, want %q", tt.from, tt.to, broken, tt.breaks)
		}
	}
}

// TestDaemon looks at everything that is linked into the daemon.
func TestDaemon(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"/cmd/redisguard" {
			continue
		}
		for _, dep := range p.Deps {
			if rel, ours := name(dep); ours && under(rel, "lab") {
				t.Errorf("the daemon contains %s: it makes and breaks networks as root", rel)
			}
			if dep == "testing" {
				t.Error("the daemon contains package testing: a test hook is in production code")
			}
		}
		return
	}
	t.Error("there is no cmd/redisguard")
}

// sources are the parsed files of a package, without its tests, each with its positions.
func sources(t *testing.T, p pkg) iter.Seq2[*token.FileSet, *ast.File] {
	return func(yield func(*token.FileSet, *ast.File) bool) {
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(fset, f) {
				return
			}
		}
	}
}

// pure are the packages that decide by values alone, each with those of its files that
// act.
var pure = map[string][]string{"verdict": nil, "clusterview": nil, "clusterview/reply": nil, "resolver": {"exchange.go", "resolver.go"}}

// TestPure looks for what the imports alone do not show.
func TestPure(t *testing.T) {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	global := []string{"Int", "IntN", "Int32", "Int32N", "Int64", "Int64N", "Uint32", "Uint64", "Float32", "Float64", "N", "Perm", "Shuffle", "ExpFloat64", "NormFloat64"}
	for _, p := range packages(t) {
		rel, _ := name(p.ImportPath)
		act, decides := pure[rel]
		if !decides {
			continue
		}
		for fset, f := range sources(t, p) {
			if slices.Contains(act, filepath.Base(fset.Position(f.Pos()).Filename)) {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%v: %s starts a goroutine: the same input must always lead to the same output", fset.Position(n.Pos()), rel)
				case *ast.SelectorExpr:
					x, ok := n.X.(*ast.Ident)
					if ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
						t.Errorf("%v: %s uses time.%s: time is an argument", fset.Position(n.Pos()), rel, n.Sel.Name)
					}
					if ok && x.Name == "rand" && slices.Contains(global, n.Sel.Name) {
						t.Errorf("%v: %s uses rand.%s: the seed is an argument", fset.Position(n.Pos()), rel, n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// makers are the functions of unix and syscall that make a descriptor or close one,
// and those that could do anything.
var makers = regexp.MustCompile(`^(Open|Openat|Openat2|Creat|OpenTree|OpenByHandleAt|Socket|Socketpair|Accept|Accept4|Dup|Dup2|Dup3|Pipe|Pipe2|PidfdOpen|PidfdGetfd|` +
	`EpollCreate|EpollCreate1|Eventfd|InotifyInit|InotifyInit1|FanotifyInit|TimerfdCreate|Signalfd|MemfdCreate|MemfdSecret|PerfEventOpen|` +
	`Fsopen|Fsmount|Fspick|FcntlInt|IoctlRetInt|Close|CloseRange|Syscall|Syscall6|RawSyscall|RawSyscall6)$`)

// TestDescriptorsAreMadeBySys looks for descriptors that are made or closed by
// number elsewhere.
func TestDescriptorsAreMadeBySys(t *testing.T) {
	for _, p := range packages(t) {
		if rel, _ := name(p.ImportPath); rel == "internal/sys" || under(rel, "lab") {
			continue
		}
		for fset, f := range sources(t, p) {
			for _, n := range madeElsewhere(f) {
				t.Errorf("%v: %s.%s is called outside internal/sys: what goes through there is told, with its stack, when a test leaves it open",
					fset.Position(n.Pos()), n.X.(*ast.Ident).Name, n.Sel.Name)
			}
		}
	}
}

func madeElsewhere(f *ast.File) (found []*ast.SelectorExpr) {
	ast.Inspect(f, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			x, ok := sel.X.(*ast.Ident)
			if ok && (x.Name == "unix" || x.Name == "syscall") && makers.MatchString(sel.Sel.Name) {
				found = append(found, sel)
			}
		}
		return true
	})
	return found
}

// TestMadeElsewhere shows that the search finds something, and not too much.
func TestMadeElsewhere(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
func f() { unix.Open("", 0, 0); syscall.Close(3); open := unix.Socket; sys.Open("", 0, 0); unix.Fstat(0, nil); os.Open(""); open(1, 2, 3) }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(madeElsewhere(f)); n != 3 {
		t.Errorf("%d calls found, want 3", n)
	}
}

// TestPackageComments: one file of each package says what it is for; two would
// be run together.
func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		var with []string
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc == nil {
				continue
			}
			with = append(with, file)
			want := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				want = "Command "
			}
			if !strings.HasPrefix(f.Doc.Text(), want) {
				t.Errorf("%s: the package comment of %s does not begin with %q", p.ImportPath, file, want)
			}
		}
		if len(with) != 1 {
			t.Errorf("%s has %d package comments %v, want one", p.ImportPath, len(with), with)
		}
	}
}

// TestNothingIsPutOff: what is left to do is an issue, not a remark in a file.
func TestNothingIsPutOff(t *testing.T) {
	// Put together, so that this file is not found itself.
	mark := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX|HA` + `CK)\b`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			// What fuzzers and property tests keep is random; git ignores the rest, which
			// is scratch, or what an example has fetched.
			if n := d.Name(); slices.Contains([]string{".git", "fuzz", "rapid", "out", "bin", "target", "node_modules", "venv"}, n) {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a test of another package may come and go beside us
		}
		if err != nil || info.Size() > 1<<20 {
			return err // nobody writes so much by hand
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if bytes.IndexByte(data, 0) >= 0 {
			return nil // not text
		}
		for i, line := range bytes.Split(data, []byte("\n")) {
			if mark.Match(line) {
				t.Errorf("%s:%d: %s: do it, or open an issue", path, i+1, bytes.TrimSpace(line))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWordsStartNoGoroutine looks for what the imports alone do not show.
func TestWordsStartNoGoroutine(t *testing.T) {
	for _, p := range packages(t) {
		rel, _ := name(p.ImportPath)
		if !slices.Contains(words, rel) {
			continue
		}
		for fset, f := range sources(t, p) {
			ast.Inspect(f, func(n ast.Node) bool {
				if g, ok := n.(*ast.GoStmt); ok {
					t.Errorf("%v: %s starts a goroutine, but it is a package of values, which none waits for", fset.Position(g.Pos()), rel)
				}
				return true
			})
		}
	}
}

const (
	// maxFile is how long a file of the daemon may be: one that is longer has two
	// subjects.
	maxFile = 600
	// maxSupervisor is how long the supervisor's own files may be together: what grows
	// beyond is a loop, and gets a package of its own.
	maxSupervisor = 2200
)

// TestNoRoomIsTooLarge counts lines, those of tests and of the wire types left out.
func TestNoRoomIsTooLarge(t *testing.T) {
	all := packages(t)
	i := slices.IndexFunc(all, func(p pkg) bool { return p.ImportPath == module+"/cmd/redisguard" })
	if i < 0 {
		t.Fatal("there is no cmd/redisguard")
	}
	inDaemon := append(slices.Clone(all[i].Deps), all[i].ImportPath)
	supervisor := 0
	for _, p := range all {
		rel, _ := name(p.ImportPath)
		if !slices.Contains(inDaemon, p.ImportPath) || under(rel, "api/v1") {
			continue
		}
		for _, file := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			n := bytes.Count(b, []byte("\n"))
			if n > maxFile {
				t.Errorf("%s/%s has %d lines, more than %d", rel, file, n, maxFile)
			}
			if rel == "supervisor" {
				supervisor += n
			}
		}
	}
	if supervisor == 0 || supervisor > maxSupervisor {
		t.Errorf("supervisor/*.go have %d lines, more than %d: what has a loop of its own belongs into a package of its own below", supervisor, maxSupervisor)
	}
}

// maxExample is how long a program of examples/ may be: it is to be read, and copied.
const maxExample = 60

func TestExamplesAreShort(t *testing.T) {
	programs := 0
	files, err := filepath.Glob(filepath.Join(root, "examples", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if !slices.Contains([]string{".go", ".java", ".js", ".py"}, filepath.Ext(path)) {
			continue
		}
		programs++
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(b, []byte("\n")); n > maxExample {
			t.Errorf("%s has %d lines, more than %d", path, n, maxExample)
		}
	}
	if programs != 5 {
		t.Errorf("there are %d programs in examples/, not 5", programs)
	}
}
