package lang

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

var testOrder = Order{Arguments: map[string][]string{"f": {"a", "b", "c"}}, Pure: []string{"len"}}.Rule("order", "")

func TestFix(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{`f(c = 1, a = 2)`, `f(a = 2, c = 1)`},
		{`f(1, c = 1, b = len("x"))`, `f(1, b = len("x"), c = 1)`},
		{`f(c = 1, **x)`, ``},                             // what x holds is not known
		{`f(c = g(), a = 2)`, ``},                         // g may declare something
		{`f(c = x.go(), a = 2)`, ``},                      // so may a method
		{`f(d = 1, a = 2)`, ``},                           // d is a mistake, and stays where it is
		{"def f(c, a):\n    pass\n\nf(c = 1, a = 2)", ``}, // another f
		{"load(\":x.star\", \"a\", \"b\")\n\nb", "load(\":x.star\", \"b\")\n\nb"},
		{"load(\":x.star\", \"a\")\n\nb", "b"},
		{"load(\":x.star\", y = \"a\")\n\ny", ""},
		{"load(\":x.star\", \"a\")  # for its effect\n\nb", ""},
		{"load(\":x.star\", \"a\")  # buildifier: disable=unused-load\n\nb", ""},
	} {
		got, err := Fix("x.star", []byte(c.in+"\n"), append(Rules(), testOrder))
		if err != nil {
			t.Fatal(err)
		}
		want := c.out
		if want == "" {
			want = c.in
		}
		if string(got) != want+"\n" {
			t.Errorf("mending\n%s\ngives\n%s\nwant\n%s", c.in, got, want)
		}
	}
}

// meaning is what a file means: its tree without places, and its comments left
// out.
func meaning(t *testing.T, src []byte) string {
	t.Helper()
	f, err := parse("x.star", src)
	if err != nil {
		t.Fatalf("%v\n%s", err, src)
	}
	// Loads may move: they bind the same names wherever they stand.
	var loads []string
	f.Stmts = slices.DeleteFunc(f.Stmts, func(s syntax.Stmt) bool {
		load, ok := s.(*syntax.LoadStmt)
		if !ok {
			return false
		}
		for i, from := range load.From {
			loads = append(loads, fmt.Sprintf("%q %s as %s;", load.ModuleName(), from.Name, load.To[i].Name))
		}
		return true
	})
	slices.Sort(loads)
	var b strings.Builder
	b.WriteString(strings.Join(loads, ""))
	var open []string // what closes each node
	syntax.Walk(f, func(n syntax.Node) bool {
		if n == nil {
			b.WriteString(open[len(open)-1])
			open = open[:len(open)-1]
			return true
		}
		if _, ok := n.(*syntax.ParenExpr); ok { // may come and go with the layout
			open = append(open, "")
			return true
		}
		open = append(open, ")")
		switch n := n.(type) {
		case *syntax.Ident:
			b.WriteString("(" + n.Name)
		case *syntax.Literal:
			b.WriteString("(" + starlark.String(literalText(n)).String())
		case *syntax.BinaryExpr:
			b.WriteString("(" + n.Op.String())
		case *syntax.UnaryExpr:
			b.WriteString("(" + n.Op.String())
		case *syntax.AssignStmt:
			b.WriteString("(" + n.Op.String())
		case *syntax.BranchStmt:
			b.WriteString("(" + n.Token.String())
		default:
			b.WriteString("(" + strings.TrimPrefix(strings.TrimPrefix(fmt.Sprintf("%T", n), "*"), "syntax."))
		}
		return true
	})
	return b.String()
}

func literalText(n *syntax.Literal) string {
	switch v := n.Value.(type) {
	case string:
		return "s" + v
	}
	return n.Raw
}

// checkFormat holds that formatting changes neither meaning nor what is
// formatted already.
func checkFormat(t *testing.T, file string, src []byte) {
	t.Helper()
	once, err := Format(file, src)
	if err != nil {
		return // no Starlark: nothing is changed
	}
	twice, err := Format(file, once)
	if err != nil {
		t.Fatalf("%s: formatting what was formatted: %v\n%s", file, err, once)
	}
	if !bytes.Equal(once, twice) {
		t.Errorf("%s: formatting twice differs:\n%s\n---\n%s", file, once, twice)
	}
	if a, b := meaning(t, src), meaning(t, once); a != b {
		t.Errorf("%s: formatting changed what it means:\n%s\n---\n%s\n%s\n%s", file, src, once, a, b)
	}
}

// TestFormatTree formats every Starlark file of the tree.
func TestFormatTree(t *testing.T) {
	n := 0
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".star" {
			return err
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		n++
		checkFormat(t, name, src)
		return nil
	})
	if err != nil || n < 10 {
		t.Fatalf("%d files, %v", n, err)
	}
}

func FuzzFormatMeaning(f *testing.F) {
	for _, s := range []string{
		"x=[1,\n 2]\n", "f(a=1,b=2,*c,**d)\n", "def f(a, b=1, *c, **d):\n  return a if b else (c, d)\n",
		"x = 'it''s' + \"a\\\"b\" + r'\\d' + b'\\x00'\n", "x = \"\"\"a\n  b\n\"\"\"\n", "load(':a.star','b',c='d')\n",
		"x = {1: 2, 'a': [i for i in range(3) if i not in (1,)]}\n", "x = 0o17 + 0x1F + 1e3 + .5 - -1 // 2 % 3\n",
		"def f(a):\n\tif a: # b\n\t\tfor b in a:\n            \tc = [a,\n\t1]\n  # d\n\treturn '''\n\t'''\n", "x = 1\nload(':b.star', 'z', 'a')\n# c\nload(':a.star', 'c')\nload(':b.star', 'd') # e\n",
		"if x: pass\nelif y:\n  for a, in b: break\nelse:\n  x += 1; y |= 2\n", "x = lambda a, *b: not a and b[1:2:-1].c(d)\n",
		"# a\n\n# b\nx = 1 # c\n\n\n\n# d\n", "f(\n  # in\n  a\n  # out\n)\n", "x = (yield_)\nx = ((1))\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) { checkFormat(t, "x.star", src) })
}
