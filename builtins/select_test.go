package builtins

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"bj/lang"
	"bj/lang/diag"
)

// recipeText is a recipe in as few words as can be.
func recipeText(name, service, more string) string {
	return fmt.Sprintf("recipe(name = %q, service = %q, hardware = [hardware(\"h\")], strategy = [step(\"a\", run = \"x\")], validation = [validate(\"v\", run = \"x\")], %s)\n", name, service, more)
}

func selectable(t testing.TB) *Result {
	return load(t, workspaceOf(t, map[string]string{
		"a/a.star":         "service(name = \"a\", owner = \"o\")\n" + recipeText("a", "a", "") + recipeText("other", "a", "conditions = [allow(\"b\")]"),
		"a/b/b.star":       "service(name = \"b\", owner = \"o\")\n" + recipeText("cold", "b", "") + recipeText("slow", "b", "tags = [\"manual\"]"),
		"m/m.star":         recipeText("m", "b", "tags = [\"manual\"]"),
		"bad/x.star":       "service(name = \"bad\", owner = \"o\", kind = \"oops\")\n" + recipeText("r", "bad", ""),
		"bad/good/x.star":  recipeText("good", "b", ""),
		"needs/bad.star":   recipeText("n", "a", "conditions = [allow(\"bad\")]"),
		"cut/x.star":       "load(\"//cut/lib:l.star\", \"x\")\n" + recipeText("c", "a", ""),
		"cut/lib/l.star":   "x = 1 // 0\n",
		"halfway/x.star":   recipeText("h", "a", "conditions = [allow(\"late\")]"),
		"halfway/lib.star": "fail(\"stop\")\nservice(name = \"late\", owner = \"o\")\n",
	}), Options{})
}

func TestSelect(t *testing.T) {
	r := selectable(t)
	for _, c := range []struct {
		patterns, cwd, want string
		errors              string // files with errors inside the selection
	}{
		{"//a:a", "", "//a:a", ""},
		{"//a", "", "//a:a", ""},
		{"//a:all", "", "//a:a //a:other", ""},
		{"//a/...", "", "//a/b:cold //a:a //a:other", ""},
		{"//a/b", "", "//a/b:cold", ""},
		{"//a/b:slow", "", "//a/b:slow", ""},
		{"//a/... //a/b:slow", "", "//a/b:cold //a/b:slow //a:a //a:other", ""},
		{"//a/... -//a/b/...", "", "//a:a //a:other", ""},
		{"//a/... -//a:other //a:other", "", "//a/b:cold //a:a //a:other", ""},
		{":cold", "a/b", "//a/b:cold", ""},
		{"...", "a", "//a/b:cold //a:a //a:other", ""},
		{"//bad/good:good", "", "//bad/good:good", ""},
		{"//bad/...", "", "//bad/good:good", "bad/x.star"},
		{"//bad:r", "", "", "bad/x.star"},
		{"//needs:n", "", "", "bad/x.star"},
		{"//halfway:h", "", "", "halfway/lib.star"},
		{"//cut:all //a:a", "", "//a:a", "cut/lib/l.star"},
	} {
		recipes, diags, err := r.Select(strings.Fields(c.patterns), c.cwd)
		var labels []string
		for _, x := range recipes {
			labels = append(labels, x.Label)
		}
		var noMatch *NoMatchError
		if err != nil && (!errors.As(err, &noMatch) || c.errors == "") {
			t.Errorf("%s: %v", c.patterns, err)
		}
		if got := strings.Join(labels, " "); got != c.want {
			t.Errorf("%s selects %s, want %s", c.patterns, got, c.want)
		}
		wrong := map[string]bool{}
		for _, d := range diags {
			if d.Severity == diag.Error {
				wrong[d.Pos.File] = true
			}
		}
		if fmt.Sprint(wrong) != fmt.Sprint(map[string]bool{c.errors: true}) && (c.errors != "" || len(wrong) > 0) {
			t.Errorf("%s: errors in %v, want %q", c.patterns, wrong, c.errors)
		}
		if len(diags) != len(r.Diagnostics) {
			t.Errorf("%s: %d mistakes of %d", c.patterns, len(diags), len(r.Diagnostics))
		}
	}
}

func TestSelectNothing(t *testing.T) {
	r := selectable(t)
	for _, c := range []struct{ patterns, message, hint string }{
		{"//nowhere/...", "pattern //nowhere/... matches no recipe", "bj list"},
		{"//a/b:cole", "pattern //a/b:cole matches no recipe", "did you mean //a/b:cold?"},
		{"//m/...", "pattern //m/... names only manual recipes", "//m:m"},
		{"//a:a -//a/...", "the patterns leave no recipe", ""},
		{"-//a/...", "the patterns leave no recipe", ""},
	} {
		recipes, _, err := r.Select(strings.Fields(c.patterns), "")
		var noMatch *NoMatchError
		if !errors.As(err, &noMatch) || err.Error() != c.message || !strings.Contains(noMatch.Hint, c.hint) || len(recipes) > 0 {
			t.Errorf("%s: %v, %v (%+v)", c.patterns, recipes, err, noMatch)
		}
	}
	_, _, err := r.Select([]string{"//a:b:c"}, "")
	var le *lang.LabelError
	if !errors.As(err, &le) {
		t.Errorf("%v", err)
	}
	if recipes, _, err := r.SelectAll([]string{"//m/..."}, ""); err != nil || len(recipes) != 1 {
		t.Errorf("%v, %v", recipes, err)
	}
}

// TestDeterministic loads a workspace with mistakes again and again, by
// different numbers of hands.
func TestDeterministic(t *testing.T) {
	files := map[string]string{"lib/others.star": others, "lib/m.star": "def make(n):\n    service(name = n, owner = \"o\", kind = \"x\" if n == \"s7\" else \"tool\")\n    if n == \"s9\":\n        fail(n)\n"}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		text := zookeeperNamed(i)
		if i%5 == 0 {
			text = strings.Replace(text, "names", "nmaes", 1)
		}
		files[fmt.Sprintf("p%d/x%d.star", r.IntN(20), i)] = text + "load(\"//lib:m.star\", \"make\")\nmake(\"s" + fmt.Sprint(i%50) + "\")\n"
	}
	ws := workspaceOf(t, files)
	want := ""
	for i := range 12 {
		got := fleetText(t, load(t, ws, Options{Jobs: 1 + i%4}))
		if want == "" {
			want = got
		}
		if got != want {
			t.Fatalf("another fleet:\n%s\n%s", got, want)
		}
	}
	if !strings.Contains(want, "did you mean names") || !strings.Contains(want, "called from") {
		t.Error("the mistakes are not there")
	}
}

// TestManySmall loads more files than their memory limit would hold together.
func TestManySmall(t *testing.T) {
	files := map[string]string{"lib/others.star": others}
	for i := range 2000 {
		files[fmt.Sprintf("r%d/zk.star", i)] = zookeeperNamed(i)
	}
	r := load(t, workspaceOf(t, files), Options{Limits: lang.Limits{Memory: 1 << 20}})
	if len(r.Diagnostics) > 0 || len(r.Fleet.Recipes) != 2000 {
		t.Error(len(r.Fleet.Recipes), r.Diagnostics)
	}
}

// FuzzLoad evaluates any source: it must end, and every mistake must have a
// place in a file.
func FuzzLoad(f *testing.F) {
	f.Add(zookeeper)
	f.Add(others)
	seeds, err := filepath.Glob("testdata/[!b]*.star")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range seeds {
		if strings.Contains(s, "limits") {
			continue
		}
		text, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		for chunk := range strings.SplitSeq(string(text), "\n---\n") {
			f.Add(chunk)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := load(t, workspaceOf(t, map[string]string{"p/x.star": text}), Options{
			Limits: lang.Limits{Steps: 100_000, Time: 5 * time.Second},
			Stdlib: fstest.MapFS{"container.star": {Data: []byte("x = 1\n")}},
		})
		for _, d := range r.Diagnostics {
			checkDiagnostic(t, d)
			if d.Rule == "internal" || strings.Contains(d.Message, "internal error") {
				t.Error(d)
			}
		}
		if _, diags, err := r.Select([]string{"//..."}, ""); err == nil && len(r.Fleet.Recipes) == 0 && !diags.HasErrors() {
			t.Error("selected nothing without an error")
		}
	})
}
