package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"bj/lang"
)

// workspaces are those of the tree, from here.
var workspaces = []string{"../..", "../../examples/bazel", "testdata/verdicts", "testdata/interrupted"}

// bj runs a command in a folder, with nothing of the user's.
func bj(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	var out, errs bytes.Buffer
	e := newEnv()
	e.dir, e.stdout, e.stderr = dir, &pipe{w: &out}, &errs
	e.getenv = func(name string) string {
		return map[string]string{"BJ_CACHE": state, "XDG_STATE_HOME": state}[name]
	}
	code = e.report(execute(t.Context(), e, args))
	return code, out.String(), errs.String()
}

// TestTree holds that what people are shown has the one layout, and that bj lint
// finds nothing in it.
func TestTree(t *testing.T) {
	for _, dir := range workspaces[:2] {
		if code, out, errs := bj(t, dir, "fmt", "--check"); code != exitOK {
			t.Errorf("%s: bj fmt --check exits with %d:\n%s%s", dir, code, out, errs)
		}
		if code, out, errs := bj(t, dir, "lint"); code != exitOK {
			t.Errorf("%s: bj lint exits with %d:\n%s%s", dir, code, out, errs)
		}
	}
}

// TestFormatMeaning holds, of every file of the tree, that its layout can be
// spoiled and made again, and that it means the same in all three.
func TestFormatMeaning(t *testing.T) {
	for _, dir := range workspaces {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			copied := t.TempDir()
			files := copyWorkspace(t, dir, copied)
			want := fleetText(t, copied)
			rewrite := func(do func(name string, src []byte) []byte) (changed int) {
				for _, name := range files {
					path := filepath.Join(copied, name)
					src, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					out := do(name, src)
					if !bytes.Equal(out, src) {
						changed++
					}
					if err := os.WriteFile(path, out, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				return changed
			}
			format := func(name string, src []byte) []byte {
				out, err := lang.Format(name, src)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			if n := rewrite(func(_ string, src []byte) []byte { return spoil(src) }); n == 0 {
				t.Fatal("no layout was spoiled")
			}
			if got := fleetText(t, copied); got != want {
				t.Fatalf("the test itself changes what the files mean:\n%s", firstDifference(want, got))
			}
			if n := rewrite(format); n == 0 {
				t.Error("bj fmt changed nothing that was spoiled")
			}
			if got := fleetText(t, copied); got != want {
				t.Errorf("bj fmt changes what the files mean:\n%s", firstDifference(want, got))
			}
			if n := rewrite(format); n != 0 {
				t.Errorf("bj fmt changes %d files for a second time", n)
			}
		})
	}
}

// copyWorkspace copies a workspace without those inside it, and returns its
// Starlark files.
func copyWorkspace(t *testing.T, from, to string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(name, lang.SettingsFile)); rel != "." && (err == nil || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "bazel-") || d.Name() == "testdata") {
				return fs.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() {
			return nil // links that lead nowhere until somebody builds
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, ".star") {
			files = append(files, rel)
		}
		return os.WriteFile(filepath.Join(to, rel), data, info.Mode().Perm()|0o200)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("%s has no Starlark files", from)
	}
	return files
}

// fleetText is the fleet of a workspace, without where things stand.
func fleetText(t *testing.T, dir string) string {
	t.Helper()
	e := newEnv()
	e.dir, e.stderr = dir, t.Output()
	e.getenv = func(string) string { return "" }
	_, result, err := e.loadWorkspace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if result.Diagnostics.HasErrors() {
		t.Fatal(result.Diagnostics)
	}
	if len(result.Fleet.Recipes) == 0 {
		t.Fatal("the workspace has no recipes")
	}
	data, err := json.Marshal(result.Fleet)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	var strip func(v any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if k == "pos" {
					delete(v, k)
					continue
				}
				strip(x)
			}
		case []any:
			for _, x := range v {
				strip(x)
			}
		}
	}
	strip(v)
	data, err = json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// firstDifference shows the first lines in which two texts differ.
func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			from := max(0, i-3)
			return strings.Join(x[from:min(len(x), i+3)], "\n") + "\n--\n" + strings.Join(y[from:min(len(y), i+3)], "\n")
		}
	}
	return "one is longer"
}

// spoil breaks lines and adds blanks where they mean nothing: in brackets,
// outside of strings and comments.
func spoil(src []byte) []byte {
	var out []byte
	depth := 0
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case c == '#':
			n := bytes.IndexByte(src[i:], '\n')
			if n < 0 {
				n = len(src) - i
			}
			out = append(out, src[i:i+n]...)
			i += n
			continue
		case c == '"' || c == '\'':
			quote := src[i : i+1]
			if bytes.HasPrefix(src[i:], bytes.Repeat(quote, 3)) {
				quote = src[i : i+3]
			}
			n := len(quote)
			for !bytes.HasPrefix(src[i+n:], quote) {
				if src[i+n] == '\\' { // which keeps the quote after it also in a raw string
					n++
				}
				n++
			}
			n += len(quote)
			out = append(out, src[i:i+n]...)
			i += n
			continue
		case slices.Contains([]byte("([{"), c):
			depth++
			out = append(out, c)
			out = append(out, "  \n\t "...)
			i++
			continue
		case slices.Contains([]byte(")]}"), c):
			depth--
		case depth > 0 && (c == ',' || c == ' '):
			out = append(out, c)
			out = append(out, "   "...)
			if c == ',' {
				out = append(out, '\n')
			}
			i++
			continue
		}
		out = append(out, c)
		i++
	}
	return out
}

// TestLintSARIF validates what bj lint writes for code scanning against the
// schema of SARIF 2.1.0, as OASIS published it: with findings, and without.
func TestLintSARIF(t *testing.T) {
	file, err := os.Open("../../graph/testdata/sarif-schema-2.1.0.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	schema, err := jsonschema.UnmarshalJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("sarif.json", schema); err != nil {
		t.Fatal(err)
	}
	valid, err := c.Compile("sarif.json")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"bj.star":   "",
		"fine.star": "\"\"\"Nothing to say.\"\"\"\n",
		// Names and texts are not always ASCII, and not always parts of URIs.
		"p/ü b%41.star": "c = [allow(\"*\"), allow(\"bad\")]\nü = validate(\"ü <b>\\n\", run = \"true\")\n",
		"p/bad.star": "service(name = \"bad\", owner = \"TODO\")\nx = [allow(\"bad\"), allow(\"bad\")]\n" +
			"validate(\"done\", run = \"true\"); tool(\"t\", path = \"/t\")\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		arg  string
		code int
	}{{"fine.star", exitOK}, {"p", exitNotRecovered}} {
		code, out, errs := bj(t, dir, "lint", x.arg, "--format", "sarif")
		if code != x.code {
			t.Fatalf("bj lint %s exits with %d:\n%s", x.arg, code, errs)
		}
		log, err := jsonschema.UnmarshalJSON(strings.NewReader(out))
		if err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		if err := valid.Validate(log); err != nil {
			t.Errorf("bj lint %s: %v\n%s", x.arg, err, out)
		}
	}
}
