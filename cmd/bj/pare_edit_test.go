package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bj/run/pare"
)

// shapes are ways in which people write conditions. What is removed are those
// of services that begin with "x"; those in want are what is left of the file,
// and hand what a person is told to do.
var shapes = []struct {
	name, src, want string
	hand            []string
}{
	{"variable", `
C = [
    # first
    allow("a"),  # keep

    # second
    allow("x1", why = "for ever"),
    allow("b"),
]

rec("r", C)
`, `
C = [
    # first
    allow("a"),  # keep
    allow("b"),
]

rec("r", C)
`, nil},
	{"concatenation", `
BASE = [allow("a"), allow("x1")]

rec("r", BASE + [allow("x2")] + [allow("b")])
`, `
BASE = [allow("a")]

rec("r", BASE + [] + [allow("b")])
`, nil},
	{"keywords", `
rec(**dict(name = "r", conditions = [allow("x1"), allow("a", "*")]))
`, `
rec(**dict(name = "r", conditions = [allow("a", "*")]))
`, nil},
	{"comprehension", `
rec("r", [allow(s) for s in ["a", "x1", "b"]])
`, "", []string{`:11: remove allow("x1"), which is made by the same line as allow("a"), which is kept`}},
	{"comprehension of what goes", `
rec("r", [allow(s) for s in ["x1", "x2"]] + [allow("a")])
`, "", []string{`:11: remove allow("x2"), which is not an element of a list as it is written`}},
	{"macro", `
def need(s):
    return [allow(s), allow("x1")]

rec("r", need("a") + need("x2"))
`, `
def need(s):
    return [allow(s)]

rec("r", need("a") + need("x2"))
`, []string{`remove allow("x2"), which is made by the same line as allow("a"), which is kept`}},
	{"loop", `
def all():
    out = []
    for s in ["x1", "x2"]:
        out += [allow(s)]
    return out

rec("r", all() + [allow("a")])
`, `
def all():
    out = []
    for s in ["x1", "x2"]:
        out += []
    return out

rec("r", all() + [allow("a")])
`, nil},
	{"twice", `
C = [allow("a"), allow("x1")]

rec("r", C + C)
`, `
C = [allow("a")]

rec("r", C + C)
`, nil},
	{"shared", `
C = [allow("a"), allow("x1")]

rec("r", C + [allow("x2")])
rec("other", C)
`, `
C = [allow("a"), allow("x1")]

rec("r", C + [])
rec("other", C)
`, []string{`remove allow("x1"), which is shared with //:other`}},
	{"a name of its own", `
X = allow("x1")

rec("r", [X, allow("a")])
`, "", []string{`:3:5: remove allow("x1"), which is not an element of a list as it is written`}},
	{"either", `
rec("r", [allow("x1") if True else allow("a"), allow("a")])
`, "", []string{`remove allow("x1"), which is not an element of a list as it is written`}},
	{"several on a line, over lines", `
rec("r", [
    allow("a"), allow("x1"),
    allow(
        "x2",
        why = "a \"]\" # in a string",
    ), allow("b"),
])
`, `
rec("r", [
    allow("a"),
    allow("b"),
])
`, nil},
}

// Conditions are written in many ways: what is removed is removed where that
// touches nothing else, and a person is told of the rest.
func TestPareShapes(t *testing.T) {
	for _, c := range shapes {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			const head = `load(":lib.star", "rec")
`
			write := func(name, text string) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			write("bj.star", "")
			write("lib.star", `m = hardware("m")

[service(name = s, owner = "o", endpoints = {"default": ["tcp://192.0.2.1:%d" % (100 + i)]}) for i, s in enumerate(["test", "a", "b", "x1", "x2"])]

def rec(name, conditions):
    recipe(name = name, service = "test", hardware = [m], conditions = conditions, strategy = [step("s", run = "true")], validation = [validate("v", run = "true")])
`)
			write("r.star", head+c.src)
			var out, errs bytes.Buffer
			e := newEnv()
			e.dir, e.stdout, e.stderr, e.noCache = dir, &pipe{w: &out}, &errs, true
			l, err := loadFleet(t.Context(), e, []string{"//:r"}, true)
			if err != nil {
				t.Fatal(err)
			}
			p := newParer(&workbench{loaded: l, recipe: l.recipes[0]}, e, &pareFlags{write: true})
			r := &pare.Result{}
			for i, x := range p.conditions {
				if strings.HasPrefix(x.Service, "x") {
					r.Removed = append(r.Removed, i)
				} else {
					r.Kept = append(r.Kept, pare.Kept{Index: i, Proven: true})
				}
			}
			if len(r.Removed) == 0 {
				t.Fatal("nothing is to be removed")
			}
			if err := p.change(r); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "r.star"))
			if err != nil {
				t.Fatal(err)
			}
			want := c.want
			if want == "" {
				want = c.src
			}
			if string(got) != head+want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			said := slices.DeleteFunc(strings.Split(errs.String(), "\n"), func(s string) bool { return !strings.Contains(s, "by hand") })
			if (len(said) > 0) != (len(c.hand) > 0) {
				t.Errorf("it says %q", said)
			}
			for _, h := range c.hand {
				if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, h) }) {
					t.Errorf("nothing of %s in %q", h, said)
				}
			}
			// A file that somebody has changed meanwhile is left alone.
			write("r.star", "# changed\n"+head+c.src)
			if err := p.change(r); want != c.src && (err == nil || !strings.Contains(err.Error(), "has changed")) {
				t.Errorf("changed meanwhile: %v", err)
			}
		})
	}
}
