package lang

import (
	"slices"
	"strings"

	"github.com/bazelbuild/buildtools/build"
)

// Fix returns the text of a file with all done that rules can mend without a
// change of what the file means, in the one layout. It leaves a file as it is
// where nothing is to mend. A rule that any line of the file silences mends
// nothing in it.
func Fix(file string, src []byte, rules []Rule) ([]byte, error) {
	if _, err := Format(file, src); err != nil {
		return nil, err
	}
	f, err := layout(file, src)
	if err != nil {
		return nil, err
	}
	changed := false
	for _, r := range rules {
		if r.Fix == nil || strings.Contains(string(src), "buildifier: disable="+r.Name) {
			continue
		}
		if r.Fix(f) {
			changed = true
		}
	}
	if !changed {
		return src, nil
	}
	return Format(file, build.FormatWithoutRewriting(f))
}

// fixUnusedLoad takes out the names of loads that the file does not have a
// second time. A load with a comment stays.
func fixUnusedLoad(f *build.File) bool {
	used := map[string]bool{}
	for _, s := range f.Stmt {
		if _, ok := s.(*build.LoadStmt); ok {
			continue
		}
		build.Walk(s, func(x build.Expr, _ []build.Expr) {
			if id, ok := x.(*build.Ident); ok {
				used[id.Name] = true
			}
		})
	}
	changed := false
	f.Stmt = slices.DeleteFunc(f.Stmt, func(s build.Expr) bool {
		load, ok := s.(*build.LoadStmt)
		if !ok || commented(load) {
			return false
		}
		var from, to []*build.Ident
		for i := range load.To {
			if used[load.To[i].Name] {
				from, to = append(from, load.From[i]), append(to, load.To[i])
			}
		}
		if len(to) == len(load.To) {
			return false
		}
		changed = true
		load.From, load.To = from, to
		return len(to) == 0
	})
	return changed
}

// commented reports whether a person wrote something beside x.
func commented(x build.Expr) bool {
	found := false
	build.Walk(x, func(x build.Expr, _ []build.Expr) {
		c := x.Comment()
		found = found || len(c.Before)+len(c.Suffix)+len(c.After) > 0
	})
	return found
}

// Order is the order in which the named arguments of functions are written, by
// function. Pure names functions whose calls may change places: they declare
// nothing.
type Order struct {
	Arguments map[string][]string
	Pure      []string
}

// Rule makes the lint rule of an order: it finds calls whose arguments can be
// put into it without a change of meaning, and mends them.
func (o Order) Rule(name, doc string) Rule {
	return Rule{Name: name, Doc: doc,
		Find: func(f *build.File, report func(line, column int, message, hint string)) {
			o.each(f, func(call *build.CallExpr, sorted []build.Expr) {
				start, _ := call.Span()
				var names []string
				for _, a := range sorted {
					if a, ok := a.(*build.AssignExpr); ok {
						names = append(names, a.LHS.(*build.Ident).Name)
					}
				}
				report(start.Line, start.LineRune, "the arguments are in another order than elsewhere", "write "+strings.Join(names, ", ")+"; bj lint --fix does")
			})
		},
		Fix: func(f *build.File) bool {
			changed := false
			o.each(f, func(call *build.CallExpr, sorted []build.Expr) {
				call.List, changed = sorted, true
			})
			return changed
		},
	}
}

// each calls do with the calls that are in another order, and their arguments
// in this one.
func (o Order) each(f *build.File, do func(call *build.CallExpr, sorted []build.Expr)) {
	own := boundNames(f)
	build.Walk(f, func(x build.Expr, _ []build.Expr) {
		call, ok := x.(*build.CallExpr)
		if !ok {
			return
		}
		id, ok := call.X.(*build.Ident)
		if !ok || own[id.Name] || o.Arguments[id.Name] == nil {
			return
		}
		order := o.Arguments[id.Name]
		sorted := slices.Clone(call.List)
		first := slices.IndexFunc(sorted, func(a build.Expr) bool { return named(a) != "" })
		if first < 0 {
			return
		}
		for _, a := range sorted[first:] {
			if !slices.Contains(order, named(a)) || !o.still(a, own) {
				return
			}
		}
		slices.SortStableFunc(sorted[first:], func(a, b build.Expr) int { return slices.Index(order, named(a)) - slices.Index(order, named(b)) })
		if !slices.Equal(sorted, call.List) {
			do(call, sorted)
		}
	})
}

// named is the name of a named argument, "" of others.
func named(x build.Expr) string {
	if a, ok := x.(*build.AssignExpr); ok && a.Op == "=" {
		if id, ok := a.LHS.(*build.Ident); ok {
			return id.Name
		}
	}
	return ""
}

// still reports whether evaluating x does nothing that others could see.
func (o Order) still(x build.Expr, own map[string]bool) bool {
	ok := true
	build.Walk(x, func(x build.Expr, _ []build.Expr) {
		call, is := x.(*build.CallExpr)
		if !is {
			return
		}
		switch fn := call.X.(type) {
		case *build.Ident:
			ok = ok && slices.Contains(o.Pure, fn.Name) && !own[fn.Name]
		case *build.DotExpr:
			ok = ok && (fn.Name == "format" || fn.Name == "join" || fn.Name == "tcp" || fn.Name == "udp")
		default:
			ok = false
		}
	})
	return ok
}

// boundNames are the names that the file itself binds anywhere.
func boundNames(f *build.File) map[string]bool {
	own := map[string]bool{}
	build.Walk(f, func(x build.Expr, _ []build.Expr) {
		switch x := x.(type) {
		case *build.DefStmt:
			own[x.Name] = true
		case *build.LoadStmt:
			for _, id := range x.To {
				own[id.Name] = true
			}
		}
	})
	for _, s := range f.Stmt {
		if a, ok := s.(*build.AssignExpr); ok {
			if id, ok := a.LHS.(*build.Ident); ok {
				own[id.Name] = true
			}
		}
	}
	return own
}
