package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRunbooks compares docs/runbooks with what the demonstration fleet gives,
// without recorded runs: those differ from machine to machine.
func TestRunbooks(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e := newEnv()
	e.dir = root
	if err := execute(t.Context(), e, []string{"runbook", "//...", "-o", dir, "--results", t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	read := func(dir string) map[string]string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatalf("%v\nmake them: make runbooks", err)
		}
		out := map[string]string{}
		for _, x := range entries {
			data, err := os.ReadFile(filepath.Join(dir, x.Name()))
			if err != nil {
				t.Fatal(err)
			}
			out[x.Name()] = string(data)
		}
		return out
	}
	want, got := read(dir), read(filepath.Join(root, "docs", "runbooks"))
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("docs/runbooks/%s is not what the recipes give: make runbooks", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("docs/runbooks/%s belongs to no recipe: make runbooks", name)
		}
	}
	if len(want) < 10 {
		t.Errorf("the fleet has only %d pages", len(want))
	}
}
