package stdlib_test

import (
	"io/fs"
	"strings"
	"testing"

	"go.starlark.net/syntax"

	"bj/stdlib"
)

// Whoever loads a file must find in it what it is for, and of each function
// what it takes and returns.
func TestEveryFunctionIsDocumented(t *testing.T) {
	names, err := fs.Glob(stdlib.FS, "*.star")
	if err != nil || len(names) == 0 {
		t.Fatalf("the library is empty (%v)", err)
	}
	for _, name := range names {
		src, err := stdlib.FS.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := (&syntax.FileOptions{}).Parse(name, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		if docstring(f.Stmts) == "" {
			t.Errorf("%s: the file has no docstring", name)
		}
		for _, stmt := range f.Stmts {
			def, ok := stmt.(*syntax.DefStmt)
			if !ok || strings.HasPrefix(def.Name.Name, "_") {
				continue
			}
			doc := docstring(def.Body)
			if !strings.Contains(doc, "Returns:") {
				t.Errorf("%s: %s does not say what it returns", def.Def, def.Name.Name)
			}
			for _, p := range def.Params {
				if b, ok := p.(*syntax.BinaryExpr); ok {
					p = b.X
				}
				if id, ok := p.(*syntax.Ident); !ok || !strings.Contains(doc, "\n      "+id.Name+": ") {
					t.Errorf("%s: %s does not describe a parameter", def.Def, def.Name.Name)
				}
			}
		}
	}
}

func docstring(body []syntax.Stmt) string {
	if len(body) > 0 {
		if e, ok := body[0].(*syntax.ExprStmt); ok {
			if l, ok := e.X.(*syntax.Literal); ok {
				s, _ := l.Value.(string)
				return s
			}
		}
	}
	return ""
}
