package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.starlark.net/syntax"

	"bj/lang"
	"bj/lang/diag"
)

func lintCommand() *command {
	var rules strings.Builder
	for _, r := range lintRules() {
		fmt.Fprintf(&rules, "\n  %-18s %s", r.Name, lowerFirst(r.Doc))
	}
	return &command{
		name:  "lint",
		args:  "[FILE|FOLDER|PATTERN...]",
		short: "says what is legal and yet not as it should be",
		long: `without arguments: everything below the current folder. exit 1 if something was
found; mistakes come first, with exit 2. a comment "# buildifier: disable=RULE"
on its line or the one before silences a finding. rules:
` + rules.String(),
		run: runLint,
	}
}

func runLint(ctx context.Context, e *env, args []string) error {
	ws, result, err := e.loadWorkspace(ctx)
	if err != nil {
		return err
	}
	files, err := starFiles(e, ws, args)
	if err != nil {
		return err
	}
	mistakes := slices.DeleteFunc(slices.Clone(result.Diagnostics), func(d diag.Diagnostic) bool { return !slices.Contains(files, d.Pos.File) })
	if err := mistakes.Err(); err != nil {
		return err
	}
	rules := lintRules()
	var found diag.List
	for _, file := range files {
		src, err := os.ReadFile(ws.Path(file))
		if err != nil {
			return fmt.Errorf("reading: %w", err)
		}
		found = append(found, lang.Lint(file, src, rules)...)
	}
	found = found.Sort()
	if err := found.Err(); err != nil { // in a file that is no part of a package
		return err
	}
	for _, d := range found {
		d.Message += " [" + d.Rule + "]"
		fmt.Fprintln(e.stdout, d)
	}
	if len(found) > 0 {
		return &failure{code: exitNotRecovered, err: fmt.Errorf("lint found %s", plural(len(found), "thing"))}
	}
	return nil
}

// lintRules are lang's rules and those of the vocabulary.
func lintRules() []lang.Rule {
	return append(lang.Rules(),
		lang.Rule{Name: "allow-everything", Doc: "A recipe with allow(\"*\") proves no way back.", Check: onCalls("allow", func(c *syntax.CallExpr, report reporter) {
			if len(c.Args) == 0 {
				return
			}
			if l, ok := c.Args[0].(*syntax.Literal); ok && l.Value == "*" {
				report(syntax.Start(c), `allow("*") opens everything in production: the recipe proves no way back`, "name what it needs; bj test lists what was used")
			}
		})},
		lang.Rule{Name: "allow-why", Doc: "A condition says why it is needed.", Check: onCalls("allow", func(c *syntax.CallExpr, report reporter) {
			if !hasArgument(c, "why") {
				report(syntax.Start(c), "the condition does not say why it is needed", `allow(..., why = "members find each other by name")`)
			}
		})},
	)
}

type reporter = func(pos syntax.Position, message, hint string)

// onCalls makes a check of each call of a function by its name. Where a tool is
// kept needs no reason of its own, so kept = allow(...) is left out.
func onCalls(name string, check func(*syntax.CallExpr, reporter)) func(*syntax.File, reporter) {
	return func(f *syntax.File, report reporter) {
		syntax.Walk(f, func(n syntax.Node) bool {
			switch n := n.(type) {
			case *syntax.BinaryExpr:
				if id, ok := n.X.(*syntax.Ident); ok && n.Op == syntax.EQ && id.Name == "kept" {
					return false
				}
			case *syntax.CallExpr:
				if id, ok := n.Fn.(*syntax.Ident); ok && id.Name == name {
					check(n, report)
				}
			}
			return true
		})
	}
}

// hasArgument reports whether a call names an argument, or may by **.
func hasArgument(c *syntax.CallExpr, name string) bool {
	for _, arg := range c.Args {
		switch arg := arg.(type) {
		case *syntax.BinaryExpr:
			if id, ok := arg.X.(*syntax.Ident); ok && arg.Op == syntax.EQ && id.Name == name {
				return true
			}
		case *syntax.UnaryExpr:
			if arg.Op == syntax.STARSTAR {
				return true
			}
		}
	}
	return false
}

// lowerFirst writes a sentence as help does.
func lowerFirst(s string) string {
	return strings.ToLower(s[:1]) + strings.TrimSuffix(s[1:], ".")
}
