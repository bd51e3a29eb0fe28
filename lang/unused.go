package lang

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"go.starlark.net/syntax"

	"bj/lang/diag"
)

func unusedLoad(f *syntax.File, report func(syntax.Position, string, string)) {
	used := reads(f)
	for _, s := range f.Stmts {
		load, ok := s.(*syntax.LoadStmt)
		if !ok {
			continue
		}
		for _, to := range load.To {
			if !used[to.Name] {
				report(to.NamePos, fmt.Sprintf("loaded name %s is not used", to.Name), "leave it out")
			}
		}
	}
}

func unusedLocal(f *syntax.File, report func(syntax.Position, string, string)) {
	syntax.Walk(f, func(n syntax.Node) bool {
		if def, ok := n.(*syntax.DefStmt); ok {
			unused(def.Body, reads(def), "local", report)
		}
		return true
	})
}

// UnusedGlobals reports the names that a file binds with =, and that neither it
// nor another file uses: loaded are the names that others load from it. What
// calls of the functions in declare give counts as used. A finding's rule is the
// caller's to name.
func UnusedGlobals(file string, src []byte, loaded map[string]bool, declare []string, report func(pos diag.Pos, message, hint string)) {
	f, err := parse(file, src)
	if err != nil {
		return
	}
	used := reads(f)
	for name := range loaded {
		used[name] = true
	}
	syntax.Walk(f, func(n syntax.Node) bool {
		if a, ok := n.(*syntax.AssignStmt); ok {
			id, ok := a.LHS.(*syntax.Ident)
			call, isCall := a.RHS.(*syntax.CallExpr)
			if !ok || !isCall {
				return true
			}
			if fn, ok := call.Fn.(*syntax.Ident); ok && slices.Contains(declare, fn.Name) {
				used[id.Name] = true
			}
		}
		return true
	})
	unused(f.Stmts, used, "global", func(pos syntax.Position, message, hint string) { report(posOf(pos), message, hint) })
}

// unused reports the names that statements bind with =, also where they are
// nested, and that are not used: each once.
func unused(body []syntax.Stmt, used map[string]bool, kind string, report func(syntax.Position, string, string)) {
	seen := map[string]bool{}
	var visit func(body []syntax.Stmt)
	visit = func(body []syntax.Stmt) {
		for _, s := range body {
			switch s := s.(type) {
			case *syntax.IfStmt:
				visit(s.True)
				visit(s.False)
			case *syntax.ForStmt:
				visit(s.Body)
			case *syntax.AssignStmt:
				id, ok := s.LHS.(*syntax.Ident)
				if ok && s.Op == syntax.EQ && !used[id.Name] && !seen[id.Name] && !strings.HasPrefix(id.Name, "_") {
					seen[id.Name] = true
					report(id.NamePos, fmt.Sprintf("%s name %s is not used", kind, id.Name), "leave it out, or begin it with _")
				}
			}
		}
	}
	visit(body)
}

// reads returns the names that are read anywhere in a tree, whatever they are
// bound to: more than are used in one scope, and never fewer.
func reads(n syntax.Node) map[string]bool {
	read := map[string]bool{}
	var visit func(n syntax.Node) bool
	walk := func(n syntax.Node) { syntax.Walk(n, visit) }
	var target func(e syntax.Expr) // of an assignment
	target = func(e syntax.Expr) {
		switch e := e.(type) {
		case *syntax.Ident:
		case *syntax.ParenExpr:
			target(e.X)
		case *syntax.TupleExpr:
			for _, x := range e.List {
				target(x)
			}
		case *syntax.ListExpr:
			for _, x := range e.List {
				target(x)
			}
		default: // x[i] and x.y read x
			walk(e)
		}
	}
	defaults := func(params []syntax.Expr) {
		for _, p := range params {
			if p, ok := p.(*syntax.BinaryExpr); ok {
				walk(p.Y)
			}
		}
	}
	visit = func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Ident:
			read[n.Name] = true
		case *syntax.LoadStmt:
			return false
		case *syntax.DotExpr:
			walk(n.X)
			return false
		case *syntax.BinaryExpr:
			if n.Op == syntax.EQ { // a named argument
				walk(n.Y)
				return false
			}
		case *syntax.AssignStmt:
			if n.Op == syntax.EQ {
				target(n.LHS)
				walk(n.RHS)
				return false
			}
		case *syntax.DefStmt:
			defaults(n.Params)
			for _, s := range n.Body {
				walk(s)
			}
			return false
		case *syntax.LambdaExpr:
			defaults(n.Params)
			walk(n.Body)
			return false
		case *syntax.ForStmt:
			target(n.Vars)
			walk(n.X)
			for _, s := range n.Body {
				walk(s)
			}
			return false
		case *syntax.ForClause:
			target(n.Vars)
			walk(n.X)
			return false
		}
		return true
	}
	walk(n)
	return read
}

// Loaded returns the names that a file loads from others, by their file, which
// is relative to the workspace. What is no file of it is left out.
func Loaded(file string, src []byte) map[string][]string {
	f, err := parse(file, src)
	if err != nil {
		return nil
	}
	loaded := map[string][]string{}
	for _, s := range f.Stmts {
		load, ok := s.(*syntax.LoadStmt)
		if !ok {
			continue
		}
		label, err := ParseLabel(load.ModuleName(), strings.TrimPrefix(path.Dir(file), "."))
		if err != nil || label.Repo != "" {
			continue
		}
		from := path.Join(label.Package, label.Name)
		for _, id := range load.From {
			loaded[from] = append(loaded[from], id.Name)
		}
	}
	return loaded
}
