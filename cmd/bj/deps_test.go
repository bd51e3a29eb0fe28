package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rule is a row of the import table.
type rule struct {
	folder string
	may    []string // packages of ours; "all" means any
	tests  []string // those that its tests may import beside that
	never  []string // prefixes of other imports that are refused
	why    string   // the reason that a refusal gives
}

// layout is the import table: every package that the module may have.
var layout = []rule{
	{folder: "cmd/bj", may: []string{"all"},
		why: "cmd/bj wires everything together"},
	{folder: "lang", may: nil, never: vocabularyBlind,
		why: "lang hosts Starlark and knows no recipe: what it needs of the vocabulary reaches it as values from cmd/bj"},
	{folder: "lang/diag", may: nil, never: pure,
		why: "anyone may import lang/diag, so it imports no one"},
	{folder: "lang/lsp", may: []string{"lang"},
		why: "an editor's server is a part of lang and knows no recipe"},
	{folder: "fleet", may: nil, never: pure,
		why: "fleet is the vocabulary as plain values, without behaviour"},
	{folder: "builtins", may: []string{"lang", "fleet"},
		why: "builtins turns Starlark's calls into a fleet, and runs nothing"},
	{folder: "graph", may: []string{"fleet", "run/event"}, never: pure,
		why: "graph is pure: a fleet in, answers out, no I/O"},
	{folder: "sandbox", may: []string{"fleet"}, never: []string{"os", "syscall", "golang.org/x/sys", "github.com"},
		why: "sandbox is the vocabulary of environments: it makes no system call"},
	{folder: "sandbox/seal", may: []string{"sandbox"},
		why: "the seal compiles a policy, and knows neither providers nor runs"},
	{folder: "sandbox/seal/sealtest", may: []string{"sandbox/seal"},
		why: "hubs for tests are made of bare namespaces, by no provider"},
	{folder: "sandbox/gate", may: []string{"sandbox"}, tests: []string{"sandbox/seal"},
		why: "the gate judges names and paths, and knows neither providers nor runs"},
	{folder: "sandbox/agent", may: []string{"sandbox", "sandbox/seal"},
		why: "the agent serves both providers, and knows neither"},
	{folder: "sandbox/image", may: []string{"sandbox"},
		why: "images are made for any provider"},
	{folder: "sandbox/hub", may: []string{"sandbox", "sandbox/seal", "sandbox/gate", "sandbox/agent"},
		why: "the hub that machines hang on is the same for both providers, and knows neither"},
	{folder: "sandbox/ns", may: []string{"sandbox", "sandbox/hub", "sandbox/seal", "sandbox/gate", "sandbox/agent", "sandbox/image"},
		why: "a provider leases what it is asked for, and knows no recipe"},
	{folder: "sandbox/libvirt", may: []string{"sandbox", "sandbox/hub", "sandbox/seal", "sandbox/gate", "sandbox/agent", "sandbox/image"}, tests: []string{"sandbox/pool"},
		why: "a provider leases what it is asked for, and knows no recipe"},
	{folder: "sandbox/pool", may: []string{"sandbox"},
		why: "the pool is a provider around any provider"},
	{folder: "sandbox/sandboxtest", may: []string{"sandbox"},
		why: "one conformance suite serves every provider"},
	{folder: "run", may: []string{"fleet", "graph", "sandbox", "run/event"},
		why: "run sees environments only through sandbox's vocabulary, so that any provider will do"},
	{folder: "run/pare", may: nil, never: pure,
		why: "pare searches among numbers: what a run with some of them says is an oracle's"},
	{folder: "run/event", may: []string{"fleet"},
		why: "events are values that graph and runbook read, too"},
	{folder: "run/term", may: []string{"run/event"},
		why: "the terminal is a fold over events, and sees nothing else of a run"},
	{folder: "run/junit", may: []string{"run/event"},
		why: "a JUnit report is a fold over events, and sees nothing else of a run"},
	{folder: "run/report", may: []string{"run/event"},
		why: "a report is a fold over events, and sees nothing else of a run"},
	{folder: "runbook", may: []string{"fleet", "graph", "run/event"},
		why: "a runbook is made from a recipe and its events, and runs nothing"},
	{folder: "stdlib", may: nil,
		why: "stdlib is Starlark, embedded"},
	{folder: "recipes", may: nil,
		why: "recipes are Starlark"},
	{folder: "recipes/tracing/cmd/hello", may: nil,
		why: "a program under test knows nothing of what tests it: there is none that is small enough and has this library, so it is part of the fleet"},
}

var (
	// pure packages have no I/O.
	pure = []string{"os", "os/exec", "net/http", "syscall", "golang.org/x/sys", "io/ioutil"}
	// vocabularyBlind packages know Starlark and no machine.
	vocabularyBlind = []string{"os/exec", "net", "golang.org/x/sys"}
)

// anyone names what every package may import, and anyTest what tests may beside
// that: the vocabulary's values, the conformance suite, and hubs of bare namespaces.
var (
	anyone  = []string{"lang/diag"}
	anyTest = []string{"fleet", "sandbox/sandboxtest", "sandbox/seal/sealtest"}
)

// goFile is a parsed file of the module.
type goFile struct {
	path   string // relative to the module, with slashes
	folder string
	test   bool
	ast    *ast.File
}

func (f goFile) place(fset *token.FileSet, p token.Pos) string {
	return f.path + ":" + strconv.Itoa(fset.Position(p).Line)
}

// goFiles parses all Go files of the module, whatever their build tags.
func goFiles(t *testing.T, fset *token.FileSet) []goFile {
	t.Helper()
	root := filepath.Join("..", "..")
	var files []goFile
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if rel != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		files = append(files, goFile{rel, path.Dir(rel), strings.HasSuffix(base, "_test.go"), parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go file was found")
	}
	return files
}

// TestImports holds the import table.
func TestImports(t *testing.T) {
	fset := token.NewFileSet()
	for _, f := range goFiles(t, fset) {
		row := slices.IndexFunc(layout, func(r rule) bool { return r.folder == f.folder })
		if row < 0 {
			t.Errorf("%s: no package is planned in %s: a newcomer finds the room of a line from the folder names, so put it where it belongs, or enter the folder into the table with its reason", f.path, f.folder)
			continue
		}
		rule := layout[row]
		for _, spec := range f.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			ours, isOurs := strings.CutPrefix(imported, "bj/")
			switch {
			case imported == "bj" || isOurs && ours == f.folder: // an external test of the package itself
			case isOurs && (slices.Contains(rule.may, "all") || slices.Contains(rule.may, ours) || slices.Contains(anyone, ours) || f.test && (slices.Contains(anyTest, ours) || slices.Contains(rule.tests, ours))):
			case isOurs:
				t.Errorf("%s: %s must not import %s: %s", f.place(fset, spec.Pos()), f.folder, ours, rule.why)
			case !f.test && slices.ContainsFunc(rule.never, func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") }):
				t.Errorf("%s: %s must not import %s: %s", f.place(fset, spec.Pos()), f.folder, imported, rule.why)
			}
		}
	}
}

// TestLangKnowsNoRecipe looks for the vocabulary in lang: in its names and its
// strings, where it would be knowledge. Comments may give examples.
func TestLangKnowsNoRecipe(t *testing.T) {
	vocabulary := regexp.MustCompile(`(?i)recipe|hardware|sandbox|validat(e|ion)\b|tooling|recovery`)
	label := regexp.MustCompile(`//recipes[/\w:.]*`) // an example of a label names a folder
	fset := token.NewFileSet()
	seen := false
	for _, f := range goFiles(t, fset) {
		if f.test || f.folder != "lang" && !strings.HasPrefix(f.folder, "lang/") {
			continue
		}
		seen = true
		ast.Inspect(f.ast, func(n ast.Node) bool {
			var text string
			switch n := n.(type) {
			case *ast.Ident:
				text = n.Name
			case *ast.BasicLit:
				text = n.Value
			default:
				return true
			}
			if word := vocabulary.FindString(label.ReplaceAllString(text, "")); word != "" {
				t.Errorf("%s: lang says %q in %s: lang knows no recipe; the vocabulary reaches it as values from cmd/bj", f.place(fset, n.Pos()), word, text)
			}
			return true
		})
	}
	if !seen {
		t.Fatal("lang has no file")
	}
}

// TestNoRegistration refuses init functions: what a package needs is given to
// it, and every process of a lease pays for what runs before main.
func TestNoRegistration(t *testing.T) {
	fset := token.NewFileSet()
	for _, f := range goFiles(t, fset) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !f.test {
				t.Errorf("%s: an init function: pass a value instead; every process that bj starts pays for it", f.place(fset, fn.Pos()))
			}
		}
	}
}

// TestFolders refuses folders at the top that the layout does not name.
func TestFolders(t *testing.T) {
	known := []string{"docs", "examples", ".ci", ".git", ".bj", "bin"}
	for _, r := range layout {
		top, _, _ := strings.Cut(r.folder, "/")
		known = append(known, top)
	}
	entries, err := os.ReadDir(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(known, e.Name()) && !strings.HasPrefix(e.Name(), "bazel-") {
			t.Errorf("the folder %s is not part of the layout: %v", e.Name(), known)
		}
	}
}

// TestDependencies compares docs/dependencies.md with what is imported, and
// with the versions of go.mod and of the Makefile.
func TestDependencies(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (v[^ ]+) \\| ")
	documented := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(read("docs/dependencies.md"), -1) {
		documented[m[1]] = m[2]
	}
	wanted := map[string]string{}
	required := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) (v\S+)`).FindAllStringSubmatch(read("go.mod"), -1) {
		required[m[1]] = m[2]
	}
	fset := token.NewFileSet()
	for _, f := range goFiles(t, fset) {
		for _, spec := range f.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			module := imported
			for module != "." && required[module] == "" {
				module = path.Dir(module)
			}
			if module != "." {
				wanted[module] = required[module]
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^[A-Z]+ +:= (\S+)@(v\S+)$`).FindAllStringSubmatch(read("Makefile"), -1) {
		wanted[m[1]] = m[2]
	}
	for module, version := range wanted {
		if documented[module] != version {
			t.Errorf("docs/dependencies.md does not say what %s %s is for", module, version)
		}
	}
	for module, version := range documented {
		if wanted[module] == "" {
			t.Errorf("docs/dependencies.md explains %s %s, which nothing uses", module, version)
		}
	}
}
