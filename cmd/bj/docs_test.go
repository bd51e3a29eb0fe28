package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestEvents holds that the reference describes every event of the stream, and
// every exit code: the constants of their sources, whoever adds one.
func TestEvents(t *testing.T) {
	constants := func(file, first string) (values []string) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.FromSlash(file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			d, ok := n.(*ast.GenDecl)
			if !ok || d.Tok != token.CONST || d.Specs[0].(*ast.ValueSpec).Names[0].Name != first {
				return true
			}
			for _, s := range d.Specs {
				values = append(values, s.(*ast.ValueSpec).Values[0].(*ast.BasicLit).Value)
			}
			return false
		})
		if len(values) < 2 {
			t.Fatalf("%s has no constants that begin with %s", file, first)
		}
		return values
	}
	for _, v := range constants("../../run/event/event.go", "Start") {
		name, err := strconv.Unquote(v)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(events[:], func(x struct{ name, text string }) bool { return x.name == name && x.text != "" }) {
			t.Errorf("the reference does not describe the event %s", name)
		}
	}
	for _, v := range constants("errors.go", "exitOK") {
		code, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(exits[:], func(x struct {
			code int
			text string
		}) bool {
			return x.code == code && x.text != ""
		}) {
			t.Errorf("the reference does not describe the exit code %d", code)
		}
	}
}

// TestDocs reads the reference on a terminal, where it is laid out and goes
// through a pager, and in a pipe, where it is Markdown.
func TestDocs(t *testing.T) {
	s := newScreen(t)
	s.size(t, 25, 60)
	vars := map[string]string{"PAGER": "cat; echo the pager has ended", "TERM": "xterm"}
	e := newEnv()
	e.stdout, e.stderr = &pipe{w: s.slave}, t.Output()
	e.getenv = func(name string) string { return vars[name] }
	if err := execute(t.Context(), e, []string{"docs", "allow", "exit"}); err != nil {
		t.Fatal(err)
	}
	s.see(t, "the pager has ended", 1)
	shown := strings.ReplaceAll(s.out.String(), "\r\n", "\n")
	for _, want := range []string{"\x1b[1mallow\x1b[0m\n", "\x1b[1mExit codes\x1b[0m\n", "\n  `why`        what it is needed for\n", "\n  130   interrupted (Ctrl-C, SIGTERM); environments are torn\n        down first\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the terminal lacks %q:\n%s", want, shown)
		}
	}
	for _, mark := range []string{"###", "| ---", "```"} {
		if strings.Contains(shown, mark) {
			t.Errorf("the terminal shows %s:\n%s", mark, shown)
		}
	}
	// A pager that is not there is no reason to show nothing.
	vars["PAGER"] = "no-such-pager"
	if err := execute(t.Context(), e, []string{"docs", "allow"}); err != nil {
		t.Fatal(err)
	}
	s.see(t, "what it is needed for", 2)

	var piped bytes.Buffer
	e.stdout = &pipe{w: &piped}
	if err := execute(t.Context(), e, []string{"docs", "allow"}); err != nil {
		t.Fatal(err)
	}
	if text := piped.String(); !strings.HasPrefix(text, "### allow\n") || !strings.Contains(text, "| `why` | what it is needed for |") {
		t.Errorf("the pipe has:\n%s", text)
	}
	if err := execute(t.Context(), e, []string{"docs", "alow"}); exitCode(err) != exitUsage {
		t.Errorf("of what is not there: %v", err)
	}
}
