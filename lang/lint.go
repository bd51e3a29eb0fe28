package lang

import (
	"errors"
	"strings"

	"github.com/bazelbuild/buildtools/build"
	"go.starlark.net/syntax"

	"bj/lang/diag"
)

// A Rule is one thing that lint looks for. Rules for the vocabulary come from
// the caller, as this package does not know it.
type Rule struct {
	Name string // stable, such as "unused-load"
	Doc  string // one sentence
	// Check reports what it finds in a file. It must not change the file.
	Check func(f *syntax.File, report func(pos syntax.Position, message, hint string))
	// Find is another Check, for rules that look at the text as it is laid out.
	Find func(f *build.File, report func(line, column int, message, hint string))
	// Fix mends what it safely can, and reports whether that was anything.
	Fix func(f *build.File) bool
}

// Rules returns the rules that need no vocabulary.
func Rules() []Rule {
	return []Rule{
		{Name: "unused-load", Doc: "A load binds a name that the file does not use.", Check: unusedLoad, Fix: fixUnusedLoad},
		{Name: "unused-local", Doc: "A function binds a name that it does not use; names that begin with _ are meant so.", Check: unusedLocal},
		{Name: "file-doc", Doc: "A file begins with a docstring that says what it is about.", Check: fileDoc},
	}
}

// Lint returns what the rules find in a file, as warnings, sorted. A finding
// is silenced by a comment # buildifier: disable=RULE on its line or on the
// one before.
func Lint(file string, src []byte, rules []Rule) diag.List {
	f, err := parse(file, src)
	if err != nil {
		return diag.List{syntaxDiagnostic(file, src, err)}
	}
	laid, err := layout(file, src)
	if list := (diag.List)(nil); errors.As(err, &list) {
		return list
	} else if err != nil {
		return diag.List{syntaxDiagnostic(file, src, err)}
	}
	source := NewSource(file, src)
	var list diag.List
	for _, r := range rules {
		add := func(p diag.Pos, message, hint string) {
			if !Silenced(source, p.Line, r.Name) {
				list = append(list, diag.Diagnostic{Pos: p, Severity: diag.Warning, Rule: r.Name, Message: message, Hint: hint, Source: source.Line(p.Line)})
			}
		}
		if r.Check != nil {
			r.Check(f, func(pos syntax.Position, message, hint string) { add(posOf(pos), message, hint) })
		}
		if r.Find != nil {
			r.Find(laid, func(line, column int, message, hint string) {
				add(diag.Pos{File: file, Line: line, Col: column}, message, hint)
			})
		}
	}
	return list.Sort()
}

// Silenced reports whether a comment silences a rule on a line.
func Silenced(source *Source, line int, rule string) bool {
	mark := "buildifier: disable=" + rule
	return strings.Contains(source.Line(line), mark) || strings.Contains(source.Line(line-1), mark)
}

func fileDoc(f *syntax.File, report func(syntax.Position, string, string)) {
	if len(f.Stmts) > 0 && docstring(f) == "" {
		report(syntax.Start(f.Stmts[0]), "the file has no docstring", `say in a """...""" at its top when an operator needs it`)
	}
}
