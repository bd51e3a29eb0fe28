package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"bj/builtins"
)

var update = flag.Bool("update", false, "write the files that are made from the program: help texts, the reference, what scripts compare")

// The test binary is bj when it is called so.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bj": main})
}

// goFolders are the variables by which a bj that runs go, in a home of its own,
// finds what was built and fetched already.
var goFolders = sync.OnceValue(func() []string {
	out, err := exec.Command("go", "env", "GOCACHE", "GOMODCACHE").Output()
	folders := strings.Fields(string(out))
	if err != nil || len(folders) != 2 {
		panic(fmt.Sprintf("go env: %v: %s", err, out))
	}
	return []string{"GOCACHE=" + folders[0], "GOMODCACHE=" + folders[1], "GOFLAGS=-modcacherw"}
})

// TestScripts runs the scripts of testdata/script, one for each behaviour.
func TestScripts(t *testing.T) {
	cache := t.TempDir() // the static agent is built once for all
	repo, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			env.Setenv("BJ_CACHE", cache)
			env.Setenv("REPO", repo) // for scripts about the demonstration fleet
			env.Vars = append(env.Vars, goFolders()...)
			env.Setenv("GIT_CONFIG_NOSYSTEM", "1")
			env.Setenv("GIT_CONFIG_COUNT", "2")
			env.Setenv("GIT_CONFIG_KEY_0", "user.name")
			env.Setenv("GIT_CONFIG_VALUE_0", "t")
			env.Setenv("GIT_CONFIG_KEY_1", "user.email")
			env.Setenv("GIT_CONFIG_VALUE_1", "t@example.com")
			return os.MkdirAll(filepath.Join(env.WorkDir, "home"), 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exitsWith},
	})
}

// exitsWith runs a command and checks its exit code: exits 2 bj tset.
func exitsWith(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// TestReference compares docs/reference.md with the program.
func TestReference(t *testing.T) {
	var b bytes.Buffer
	if err := writeReference(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("..", "..", "docs", "reference.md"), b.Bytes())
}

// TestMeanings holds that the reference explains every builtin and parameter
// that there is, and no other.
func TestMeanings(t *testing.T) {
	words := meanings()
	for _, b := range builtins.Reference() {
		m := words[b.Name]
		delete(words, b.Name)
		if m.doc == "" {
			t.Errorf("%s has no words", b.Name)
		}
		said := map[string]bool{}
		for _, p := range m.params {
			said[p[0]] = true
		}
		names := []string{b.Rest}
		for _, p := range b.Params {
			names = append(names, p.Name)
		}
		for _, name := range names {
			if name != "" && !said[name] {
				t.Errorf("%s has no words for its parameter %s", b.Name, name)
			}
			delete(said, name)
		}
		for name := range said {
			t.Errorf("%s has words for %s, which is no parameter", b.Name, name)
		}
	}
	for name := range words {
		t.Errorf("there are words for %s, which is no builtin", name)
	}
}

// TestHelp compares the help of every command with testdata/help.
func TestHelp(t *testing.T) {
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
	}
	for _, name := range append(names, "help") {
		var b bytes.Buffer
		e := newEnv()
		e.stdout = &pipe{w: &b}
		args := []string{"help", name}
		if name == "help" {
			args = args[:1]
		}
		if err := execute(t.Context(), e, args); err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join("testdata", "help", name+".txt"), b.Bytes())
	}
}

// golden compares got with the file, or writes it with -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v\nmake it: go test ./cmd/bj -update", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the program says; make it again: go test ./cmd/bj -update\ngot:\n%s", path, got)
	}
}

// TestReadme holds that README.md shows lines that its recipe has, in their
// order, and that its links lead somewhere.
func TestReadme(t *testing.T) {
	root := filepath.Join("..", "..")
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	readme := read("README.md")
	_, shown, _ := strings.Cut(readme, "```python\n")
	shown, _, ok := strings.Cut(shown, "```")
	if !ok {
		t.Fatal("README.md shows no recipe")
	}
	rest := read("recipes/coordination/coordination.star")
	for line := range strings.Lines(shown) {
		_, after, ok := strings.Cut(rest, line)
		if !ok {
			t.Errorf("recipes/coordination/coordination.star does not have, where README.md shows it:\n%s", line)
			continue
		}
		rest = after
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#]+)\)`).FindAllStringSubmatch(readme, -1) {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil && !strings.Contains(m[1], "://") {
			t.Errorf("README.md links to %s: %v", m[1], err)
		}
	}
}
