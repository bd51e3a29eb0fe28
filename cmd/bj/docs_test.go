package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
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
