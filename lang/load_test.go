package lang

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"bj/lang/diag"
)

func workspaceOf(t testing.TB, files map[string]string) *Workspace {
	t.Helper()
	root := t.TempDir()
	if _, ok := files[SettingsFile]; !ok {
		writeFile(t, filepath.Join(root, SettingsFile), "")
	}
	for name, text := range files {
		writeFile(t, filepath.Join(root, filepath.FromSlash(name)), text)
	}
	return &Workspace{Root: root}
}

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func loadTree(t testing.TB, ws *Workspace, opts Options) (*Tree, diag.List) {
	t.Helper()
	tree, err := Load(context.Background(), ws, opts)
	if err != nil {
		t.Fatal(err)
	}
	var all diag.List
	for _, m := range tree.Modules {
		all = append(all, m.Diags...)
	}
	return tree, all.Sort()
}

func TestWorkspace(t *testing.T) {
	ws := workspaceOf(t, map[string]string{
		"top.star": "", "a/x.star": "", "a/x_test.star": "", "a/b/y.star": "", "a/readme.md": "",
		".hidden/x.star": "", "_private/x.star": "", "bazel-out/x.star": "", "nested/bj.star": "", "nested/x.star": "", "a/sub/bj.star": "", "a/sub/deep/x.star": "",
	})
	files, err := ws.Files()
	if want := []string{"a/b/y.star", "a/x.star", "top.star"}; err != nil || !reflect.DeepEqual(files, want) {
		t.Errorf("files %q, want %q (%v)", files, want, err)
	}
	found, err := FindWorkspace(filepath.Join(ws.Root, "a", "b"))
	if err != nil || found.Root != ws.Root {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err = FindWorkspace(filepath.Join(ws.Root, "nested")); err != nil || found.Root == ws.Root {
		t.Errorf("found %v, %v", found, err)
	}
	if _, err = FindWorkspace(filepath.Join(ws.Root, "gone")); err == nil {
		t.Error("found a workspace in a folder that is not there")
	}
	if pkg, err := ws.PackageOf(filepath.Join(ws.Root, "a", "b")); err != nil || pkg != "a/b" {
		t.Errorf("package %q, %v", pkg, err)
	}
	if _, err := ws.PackageOf(filepath.Dir(ws.Root)); err == nil {
		t.Error("the folder above is in the workspace")
	}
}

// TestDeep gives the parser, the resolver, the compiler and the interpreter
// what they could read only by deep recursion: the stack of a goroutine has an
// end, and reaching it ends the process.
func TestDeep(t *testing.T) {
	n := maxSource/2 - 100
	for name, text := range map[string]string{
		"parens":      strings.Repeat("(", n) + strings.Repeat(")", n),
		"open":        strings.Repeat("(", 2*n),
		"brackets":    "x = " + strings.Repeat("[", n-4) + strings.Repeat("]", n-4),
		"dicts":       "x = " + strings.Repeat("{1:", n/2) + strings.Repeat("}", n/2),
		"minus":       "x = " + strings.Repeat("-", 2*n) + "1",
		"tilde":       "x = " + strings.Repeat("~", 2*n) + "1",
		"not":         "x = " + strings.Repeat("not ", n/2) + "1",
		"plus":        "x = 1" + strings.Repeat("+1", n-10),
		"strings":     "x = \"\"" + strings.Repeat("+\"\"", n/2),
		"names":       "y = 1\nx = 1" + strings.Repeat("+y", n-10),
		"continued":   "x = 1" + strings.Repeat("+\\\n1", n/2),
		"dots":        "x = y" + strings.Repeat(".a", n-10),
		"calls":       "x = y" + strings.Repeat("()", n-10),
		"indexes":     "x = y" + strings.Repeat("[0]", n/2),
		"lambdas":     "x = " + strings.Repeat("lambda:", n/4) + "1",
		"conditions":  "x = " + strings.Repeat("1 if 1 else ", n/8) + "1",
		"or":          "x = 1" + strings.Repeat(" or 1", n/4),
		"elif":        "if 1:\n pass\n" + strings.Repeat("elif 1:\n pass\n", n/8),
		"else":        "x = [1" + strings.Repeat(" if 1 else 1", n/8) + "]",
		"list":        "x = [" + strings.Repeat("1,", n-10) + "]",
		"stars":       "x = f(" + strings.Repeat("*", n) + "a)",
		"comparisons": "x = 1" + strings.Repeat("<1", n-10),
		"targets":     strings.Repeat("(", 150) + "a" + strings.Repeat(")", 150) + " = 1",
		"comp":        "x = [1 " + strings.Repeat("for a in [] ", n/8) + "]",
		"assign":      strings.Repeat("a = ", n/4) + "1",
		"statements":  strings.Repeat("x0=1;", n/5),
		"prefixed":    "x = " + strings.Repeat("r'(' + ", 20000) + "1",
	} {
		t.Run(name, func(t *testing.T) {
			ws := workspaceOf(t, map[string]string{"p/x.star": text})
			_, diags := loadTree(t, ws, Options{})
			for _, d := range diags {
				if d.Pos.Line < 1 || d.Rule == "internal" {
					t.Error(d)
				}
			}
		})
	}
}

// TestDeepValues nests values as deeply as steps and memory allow, and walks
// them.
func TestDeepValues(t *testing.T) {
	for _, c := range []struct{ text, use string }{
		{"x = [x]", "x"},
		{"x = (lambda y: lambda: y)(x)", "str(x)"},
		{"x = (((((((((((((((((((((x,),),),),),),),),),),),),),),),),),),),),)", "{x: 1}"},
	} {
		t.Run(c.text, func(t *testing.T) {
			src := fmt.Sprintf("def f():\n    x = ()\n    for i in range(16000000):\n        %s\n        if i %% 1024 == 1023 and i > 3000000:\n            break\n    y = %s\n    return x\nz = f()\n", c.text, c.use)
			ws := workspaceOf(t, map[string]string{"p/x.star": src})
			_, diags := loadTree(t, ws, Options{})
			for _, d := range diags {
				if d.Pos.Line < 1 || d.Rule == "internal" {
					t.Error(d)
				}
			}
		})
	}
}

// TestAbandoned gives the interpreter one operation that does not end.
func TestAbandoned(t *testing.T) {
	ws := workspaceOf(t, map[string]string{
		"p/x.star": "def f():\n    x = [0] * 90\n    y = [0] * 90\n    for i in range(4):\n        x = [x] * 90\n        y = [y] * 90\n    return x == y\nz = f()\n",
		"p/y.star": "good = 1",
	})
	tree, diags := loadTree(t, ws, Options{Limits: Limits{Time: 500 * time.Millisecond}})
	if len(diags) != 1 || diags[0].Rule != "limit" || diags[0].Pos.Line != 7 {
		t.Error(diags)
	}
	if tree.Module("p/y.star").Broken {
		t.Error("the other file is broken")
	}
}

// TestInnocent runs a module that is slow beside one that takes too much
// memory: only one is to blame.
func TestInnocent(t *testing.T) {
	ws := workspaceOf(t, map[string]string{
		"p/greedy.star": "def f():\n    l = []\n    for i in range(4000000):\n        l.append([i])\nf()\n",
		"p/slow.star":   "def f():\n    for i in range(2000000):\n        pass\nf()\n",
	})
	tree, diags := loadTree(t, ws, Options{Jobs: 2, Limits: Limits{Memory: 32 << 20, Time: time.Minute}})
	if len(diags) != 1 || diags[0].Pos.File != "p/greedy.star" || diags[0].Pos.Line != 4 && diags[0].Pos.Line != 3 {
		t.Error(diags)
	}
	if tree.Module("p/slow.star").Broken {
		t.Error("the other file is broken")
	}
}

// TestSteps bounds the steps of each module, not of all together.
func TestSteps(t *testing.T) {
	files := map[string]string{"p/bad.star": "def f():\n    for i in range(10000):\n        pass\nf()\n"}
	for i := range 20 {
		files[fmt.Sprintf("p/good%d.star", i)] = "def f():\n    for i in range(100):\n        pass\nf()\n"
	}
	_, diags := loadTree(t, workspaceOf(t, files), Options{Limits: Limits{Steps: 1000}})
	if len(diags) != 1 || diags[0].Pos.File != "p/bad.star" || diags[0].Rule != "limit" || diags[0].Pos.Line < 2 {
		t.Error(diags)
	}
}

// TestOnce counts the evaluations of a module that many load.
func TestOnce(t *testing.T) {
	files := map[string]string{"lib/l.star": "load(\":m.star\", \"m\")\nl = m", "lib/m.star": "m = [1]\nprint(\"once\")"}
	for i := range 50 {
		files[fmt.Sprintf("p%d/x.star", i)] = "load(\"//lib:l.star\", \"l\")\nx = l[0]\n"
	}
	files["q/x.star"] = "load(\"//lib:l.star\", \"l\")\nl.append(1)\n"
	printed := make(chan diag.Pos, 100)
	tree, diags := loadTree(t, workspaceOf(t, files), Options{Jobs: 8, Print: func(pos diag.Pos, _ string) { printed <- pos }})
	if len(printed) != 1 || (<-printed).String() != "lib/m.star:2:6" {
		t.Errorf("printed %d times", len(printed)+1)
	}
	if len(diags) != 1 || !strings.Contains(diags[0].Message, "cannot append to frozen list") {
		t.Error(diags)
	}
	if got := tree.Closure("p7/x.star"); !reflect.DeepEqual(got, []string{"lib/l.star", "lib/m.star", "p7/x.star"}) {
		t.Error(got)
	}
}

// TestSame checks that guarding an operation does not change it.
func TestSame(t *testing.T) {
	src := `
a = [1] + [2] * 2
a += (3, 4)
a += [5]
b = "x" * 3 + "y"
b2 = 3 * "ab"
c = "%s %d %r" % ("a", 1, "b")
d = "%(k)s" % {"k": [1]}
e = "{} {0}".format if False else "{a}-{}".format(1, a = 2)
f = ",".join(["a", "b"]).replace("a", "bb")
g = 7 % 4 * 2
h = 2 * 2.5
i = (1, 2) + (3,)
j = {"x": 1}
j["x"] += 2
j["x"] *= 2
s = struct(join = 1, format = [2])
k = s.join + s.format[0]
l = b"ab" + b"c" * 2
m = [list(range(3)), str([1, "a"]), sorted([2, 1]), dict(a = 1), zip([1], [2]), int("7"), getattr("a", "join")(["b", "c"])]
n = "100%" + " sure"
o = "%d%%" % 5
p = []
p.extend(range(3))
`
	var got starlark.StringDict
	env := starlark.StringDict{"struct": starlark.NewBuiltin("struct", makeStruct)}
	ws := workspaceOf(t, map[string]string{"p/x.star": strings.ReplaceAll(src, "\na += (3, 4)\na += [5]\n", "\na.extend((3, 4))\na.extend([5])\n")})
	_, diags := loadTree(t, ws, Options{Predeclared: env, End: func(m *Module) string {
		got = m.globals
		return ""
	}})
	if len(diags) > 0 {
		t.Fatal(diags)
	}
	want, err := starlark.ExecFileOptions(fileOptions, new(starlark.Thread), "x.star", strings.ReplaceAll(src, "\na += (3, 4)\na += [5]\n", "\na.extend((3, 4))\na.extend([5])\n"), env)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range want {
		if got[name] == nil || name != "e" && got[name].String() != v.String() {
			t.Errorf("%s = %v, want %v", name, got[name], v)
		}
	}
	for _, bad := range []string{"1 + \"a\"", "\"a\" + 1", "[1] + (2,)", "\"a\" * \"b\"", "None % 2", "\"%d\" % \"a\"", "\"%s %s\" % 1", "\",\".join(1)", "\"a\".replace(1)", "\"{}\".format()", "(1).join", "[].format"} {
		ws := workspaceOf(t, map[string]string{"p/x.star": "x = " + bad})
		_, diags := loadTree(t, ws, Options{})
		_, err := starlark.ExecFileOptions(fileOptions, new(starlark.Thread), "x.star", "x = "+bad, nil)
		if err == nil || len(diags) != 1 || diags[0].Message != err.Error() {
			t.Errorf("%s: %v, want %v", bad, diags, err)
		}
	}
}

func makeStruct(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	return starlarkstruct.Make(thread, b, args, kwargs)
}
