package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.starlark.net/syntax"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
)

func lintCommand() *command {
	var rules strings.Builder
	for _, r := range lintRules() {
		fix := ""
		if r.Fix != nil {
			fix = " (--fix)"
		}
		fmt.Fprintf(&rules, "\n  %-18s %s%s", r.Name, lowerFirst(r.Doc), fix)
	}
	var f lintFlags
	return &command{
		name:  "lint",
		args:  "[FILE|FOLDER|PATTERN...]",
		short: "says what is legal and yet not as it should be",
		long: `without arguments: everything below the current folder. exit 1 if something was
found; mistakes come first, with exit 2. a comment "# buildifier: disable=RULE"
on its line or the one before silences a finding. --fix mends what can be mended
without a change of meaning, and says what is left. rules:
` + rules.String(),
		example: `  bj lint --fix
  bj lint //recipes/... --format sarif > lint.sarif`,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&f.fix, "fix", false, "mend what can be mended without a change of meaning")
			fs.StringVar(&f.format, "format", "text", "print as `text|json|sarif`")
		},
		run: func(ctx context.Context, e *env, args []string) error { return f.run(ctx, e, args) },
	}
}

// lintFlags are the flags of bj lint.
type lintFlags struct {
	fix    bool
	format string
}

func (f *lintFlags) run(ctx context.Context, e *env, args []string) error {
	formats := []string{"text", "json", "sarif"}
	if !slices.Contains(formats, f.format) {
		return usage(lang.DidYouMean(f.format, formats, ""), "--format is %s, not %q", strings.Join(formats, ", "), f.format)
	}
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
	mended := 0
	var found diag.List
	sources := map[string]*lang.Source{}
	for _, file := range files {
		src, err := os.ReadFile(ws.Path(file))
		if err != nil {
			return fmt.Errorf("reading: %w", err)
		}
		if f.fix {
			out, err := lang.Fix(file, src, rules)
			if err != nil {
				return err
			}
			if !bytes.Equal(out, src) {
				if err := os.WriteFile(ws.Path(file), out, 0o644); err != nil { // which keeps the mode that it has
					return fmt.Errorf("mending: %w", err)
				}
				fmt.Fprintf(e.stderr, "bj: mended %s\n", file)
				src, mended = out, mended+1
			}
		}
		sources[file] = lang.NewSource(file, src)
		found = append(found, lang.Lint(file, src, rules)...)
	}
	if mended > 0 { // places have moved
		if _, result, err = e.loadWorkspace(ctx); err != nil {
			return err
		}
	}
	globals, err := unusedGlobals(ws, result.Fleet, files)
	if err != nil {
		return err
	}
	for _, d := range append(lintFleet(result.Fleet), globals...) {
		if source := sources[d.Pos.File]; source != nil && !lang.Silenced(source, d.Pos.Line, d.Rule) {
			d.Source = source.Line(d.Pos.Line)
			found = append(found, d)
		}
	}
	found = found.Sort()
	if err := found.Err(); err != nil { // in a file that is no part of a package
		return err
	}
	if err := writeFindings(e.stdout, f.format, found, rules, func(file string) string { return e.inRepository(ws.Root, file) }); err != nil {
		return err
	}
	if len(found) > 0 {
		hint := ""
		if !f.fix && slices.ContainsFunc(found, func(d diag.Diagnostic) bool {
			return slices.ContainsFunc(rules, func(r lang.Rule) bool { return r.Name == d.Rule && r.Fix != nil })
		}) {
			hint = "bj lint --fix mends some of it"
		}
		return &failure{code: exitNotRecovered, err: fmt.Errorf("lint found %s", plural(len(found), "thing")), hint: hint}
	}
	if mended > 0 {
		fmt.Fprintln(e.stderr, "bj: nothing is left; now run: bj test //...")
	}
	return nil
}

// unusedGlobals finds names that no file of the workspace uses, in files that
// declare something: others are there to be loaded one day.
func unusedGlobals(ws *lang.Workspace, f *fleet.Fleet, files []string) (diag.List, error) {
	declares := map[string]bool{}
	for _, s := range f.Services {
		declares[s.Pos.File] = s.Known == ""
	}
	for _, r := range f.Recipes {
		declares[r.Pos.File] = true
	}
	all, err := walkStar(ws.Root)
	if err != nil {
		return nil, err
	}
	sources := map[string][]byte{}
	loaded := map[string]map[string]bool{}
	for _, file := range all {
		src, err := os.ReadFile(ws.Path(file))
		if err != nil {
			return nil, fmt.Errorf("reading: %w", err)
		}
		sources[file] = src
		for from, names := range lang.Loaded(file, src) {
			if loaded[from] == nil {
				loaded[from] = map[string]bool{}
			}
			for _, name := range names {
				loaded[from][name] = true
			}
		}
	}
	var found diag.List
	for _, file := range files {
		if !declares[file] {
			continue
		}
		lang.UnusedGlobals(file, sources[file], loaded[file], []string{"service", "recipe"}, func(pos diag.Pos, message, hint string) {
			found = append(found, diag.Diagnostic{Pos: pos, Severity: diag.Warning, Rule: "unused-global", Message: message, Hint: hint})
		})
	}
	return found, nil
}

// writeFindings prints what was found. To code scanning a file goes by the name
// that uri gives it.
func writeFindings(w io.Writer, format string, found diag.List, rules []lang.Rule, uri func(file string) string) error {
	var value any
	switch format {
	case "json":
		value = struct {
			Schema   string    `json:"schema"`
			Findings diag.List `json:"findings"`
		}{"bj.lint/1", append(diag.List{}, found...)}
	case "sarif":
		value = lintSARIF(found, rules, uri)
	default:
		for _, d := range found {
			d.Message += " [" + d.Rule + "]"
			if _, err := fmt.Fprintln(w, d); err != nil {
				return err
			}
		}
		return nil
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}

// lintSARIF is a log of SARIF 2.1.0, as code scanning wants it: rules with
// stable ids, relative paths, and fingerprints that survive a move of the line.
func lintSARIF(found diag.List, rules []lang.Rule, uri func(file string) string) any {
	type object = map[string]any
	list, results := []object{}, []object{}
	for _, r := range rules {
		list = append(list, object{"id": r.Name, "shortDescription": object{"text": r.Doc}, "defaultConfiguration": object{"level": "warning"}})
	}
	seen := map[string]int{}
	for _, d := range found {
		text := d.Message
		if d.Hint != "" {
			text += ": " + d.Hint
		}
		key := d.Rule + "\x00" + d.Pos.File + "\x00" + d.Message + "\x00" + strings.TrimSpace(d.Source)
		seen[key]++
		print := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", key, seen[key]))
		results = append(results, object{
			"ruleId": d.Rule, "level": "warning", "message": object{"text": text},
			"partialFingerprints": object{"bj/v1": hex.EncodeToString(print[:16])},
			"locations": []object{{"physicalLocation": object{
				"artifactLocation": object{"uri": (&url.URL{Path: uri(d.Pos.File)}).String()},
				"region":           object{"startLine": max(1, d.Pos.Line), "startColumn": max(1, d.Pos.Col)},
			}}},
		})
	}
	return object{
		"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0",
		"runs": []object{{"tool": object{"driver": object{"name": "bj lint", "version": version, "rules": list}}, "results": results}},
	}
}

// lintRules are lang's rules and those of the vocabulary.
func lintRules() []lang.Rule {
	return append(lang.Rules(),
		lang.Rule{Name: "unused-global", Doc: "A file with recipes binds a name that no file uses; names that begin with _ are meant so."},
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
		lang.Rule{Name: "validate-expect", Doc: "A validation says what it expects to see, or how its script exits.", Check: onCalls("validate", func(c *syntax.CallExpr, report reporter) {
			if !hasArgument(c, "expect") && !hasArgument(c, "exit") {
				report(syntax.Start(c), "the validation does not say what it expects: any output will do", `expect = "...", or exit = 0 where the exit code says all`)
			}
		})},
		lang.Rule{Name: "tool-kept", Doc: "A tool says where an operator finds it in an outage.", Check: onCalls("tool", func(c *syntax.CallExpr, report reporter) {
			if !hasArgument(c, "kept") {
				report(syntax.Start(c), "the tool does not say where it is kept", `kept = "on the recovery stick", or kept = allow(...)`)
			}
		})},
		lang.Rule{Name: "recipe-owner", Doc: "Whoever is asked in an outage has a name."},
		lang.Rule{Name: "endpoint-owned", Doc: "A condition names the service that owns an endpoint, not the endpoint."},
		lang.Rule{Name: "script-negation", Doc: "A command behind a ! is the last of its script, or the condition of an if: sh -e passes over all others."},
		lang.Rule{Name: "step-tooling", Doc: "What a step runs is brought by tooling, or part of every Debian machine."},
		lang.Order{
			Arguments: map[string][]string{
				"recipe":  {"name", "service", "restores", "doc", "tags", "within", "estimate", "hardware", "tooling", "conditions", "strategy", "validation"},
				"service": {"name", "doc", "owner", "kind", "listens", "endpoints"},
			},
			Pure: []string{"allow", "endpoint", "fault", "file", "len", "range", "secret", "step", "str", "tool", "validate"},
		}.Rule("argument-order", "A service and a recipe have their arguments in the order in which they are read."),
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
