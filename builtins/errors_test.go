package builtins

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"bj/lang/diag"
)

// expectation is a comment such as: ### "regexp of message and hint".
var expectation = regexp.MustCompile("### *(\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`)")

// TestErrors reads testdata/*.star. Each file holds cases between lines of
// ---; a case is the file p/x.star of a workspace, or several files, each
// after a line such as === lib/y.star. Every line with a comment
// ### "regexp" must have a mistake whose message and hint, joined by "; ",
// match; every mistake must be expected.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/[!b]*.star")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		line := 1
		for chunk := range strings.SplitSeq(string(text), "\n---\n") {
			t.Run(fmt.Sprintf("%s:%d", filepath.Base(f), line), func(t *testing.T) { checkCase(t, chunk) })
			line += strings.Count(chunk, "\n") + 2
		}
	}
}

func checkCase(t *testing.T, chunk string) {
	files := map[string]string{}
	name := "p/x.star"
	for l := range strings.Lines(chunk + "\n") {
		if n, ok := strings.CutPrefix(strings.TrimSpace(l), "=== "); ok {
			name = n
			continue
		}
		files[name] += l
	}
	files["base/base.star"] = others
	r := load(t, workspaceOf(t, files), Options{
		Version: "0.2.0",
		Stdlib:  fstest.MapFS{"container.star": {Data: []byte("def container(name):\n    return name\n")}},
	})
	type where struct {
		file string
		line int
	}
	wanted := map[where][]*regexp.Regexp{}
	for name, text := range files {
		for i, l := range strings.Split(text, "\n") {
			for _, m := range expectation.FindAllStringSubmatch(l, -1) {
				pattern, err := strconv.Unquote(m[1])
				if err != nil {
					t.Fatal(err)
				}
				w := where{name, i + 1}
				wanted[w] = append(wanted[w], regexp.MustCompile(pattern))
			}
		}
	}
	for _, d := range r.Diagnostics {
		checkDiagnostic(t, d)
		w := where{d.Pos.File, d.Pos.Line}
		text := d.Message + "; " + d.Hint
		found := false
		for i, re := range wanted[w] {
			if re.MatchString(text) {
				wanted[w] = append(wanted[w][:i:i], wanted[w][i+1:]...)
				found = true
				break
			}
		}
		if !found {
			t.Errorf("unexpected:\n%s", d)
		}
	}
	for w, list := range wanted {
		for _, re := range list {
			t.Errorf("%s:%d: no mistake matches %s", w.file, w.line, re)
		}
	}
}

// checkDiagnostic checks what every mistake must have.
func checkDiagnostic(t testing.TB, d diag.Diagnostic) {
	t.Helper()
	switch {
	case d.Pos.File == "" || d.Pos.Line < 1 || d.Pos.Col < 1:
		t.Errorf("no place: %s", d)
	case d.Severity != diag.Error || d.Rule == "":
		t.Errorf("no severity or rule: %+v", d)
	case d.Message == "" || strings.Contains(d.Message, "\n"):
		t.Errorf("message: %q", d.Message)
	case strings.Contains(d.Message, "«") || strings.Contains(d.Hint, "«"):
		t.Errorf("an inner name shows: %s", d)
	}
}
