package lang

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"bj/lang/diag"
)

func TestFormat(t *testing.T) {
	src := "load(\":b.star\",'x')\nservice( name='a',owner = \"o\" )\nrecipe(\n  name = \"r\",\n\n  service = \"a\", hardware = [h])\n"
	want := "load(\":b.star\", \"x\")\n\nservice(name = \"a\", owner = \"o\")\n\nrecipe(\n    name = \"r\",\n    service = \"a\",\n    hardware = [h],\n)\n"
	got, err := Format("p/x.star", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Format("p/x.star", got)
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("formatted twice:\n%s\n%v", again, err)
	}
	if !strings.Contains(string(got), `service(name = "a", owner = "o")`) {
		t.Errorf("got:\n%s\nlike:\n%s", got, want)
	}
	_, err = Format("p/x.star", []byte("x: int = 5\n"))
	var list diag.List
	if !errors.As(err, &list) || list[0].Pos.String() != "p/x.star:1:3" || list[0].Source == "" {
		t.Error(err)
	}
}

// TestFormatLikeBuildifier holds what has no place in a person's hands: blanks for
// tabs, and loads in buildifier's order, each comment kept.
func TestFormatLikeBuildifier(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"def f(a):\n\tif a:\n\t\treturn [\n\t\t1]\n\treturn \"\"\"\n\t\"\"\"\n", "def f(a):\n    if a:\n        return [\n            1,\n        ]\n    return \"\"\"\n\t\"\"\"\n"},
		{"def f(a):\n        if a:\n        \treturn 1\n\treturn 2\n", "def f(a):\n    if a:\n        return 1\n    return 2\n"},
		{"x = 1\nload(\":b.star\", \"b\", \"a\")\nload(\"//c:c.star\", \"c\")\n", "load(\"//c:c.star\", \"c\")\nload(\":b.star\", \"a\", \"b\")\n\nx = 1\n"},
		{"load(\":a.star\", \"a\")\nload(\":a.star\", \"b\")\n", "load(\":a.star\", \"a\", \"b\")\n"},
		{"load(\":a.star\", \"a\")\n\n# why\nload(\":a.star\", \"b\")\n", "load(\":a.star\", \"a\")\n\n# why\nload(\":a.star\", \"b\")\n"},
	} {
		got, err := Format("x.star", []byte(c.in))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.out {
			t.Errorf("%q is laid out as\n%s\nwant\n%s", c.in, got, c.out)
		}
		checkFormat(t, "x.star", []byte(c.in))
	}
	_, err := Format("x.star", []byte("x = b\"\"\n"))
	if list := (diag.List)(nil); !errors.As(err, &list) || !strings.Contains(list[0].Message, "bj reads this") {
		t.Error(err)
	}
}

func FuzzFormat(f *testing.F) {
	f.Add([]byte("x = [1,\n2]\ndef f(a, *b):\n  return a # c\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		out, err := Format("x.star", src)
		if err != nil {
			return
		}
		if _, err := parse("x.star", out); err != nil {
			t.Errorf("%q formats as %q, which does not parse: %v", src, out, err)
		}
	})
}

func TestLint(t *testing.T) {
	src := `load(":a.star", "used", "unused", other = "third")
load(":b.star", "quiet") # buildifier: disable=unused-load
def f():
    x = used
    _y = 1
    z = x
    return z
def g():
    w = f.other
def h(a):
    if a:
        b = f(z = a)
    for c, d in a:
        e = c
        e = d
    x, y = a
    a[0] = 1
    q = 1
    q += 1
    r = 1
    return [i for i in a] + (lambda r: r)(a)
`
	var got []string
	for _, d := range Lint("p/x.star", []byte(src), Rules()) {
		if d.Severity != diag.Warning || d.Source == "" {
			t.Errorf("%+v", d)
		}
		got = append(got, d.Pos.String()+" "+d.Rule+" "+d.Message)
	}
	want := `p/x.star:1:1 file-doc the file has no docstring
p/x.star:1:26 unused-load loaded name unused is not used
p/x.star:1:35 unused-load loaded name other is not used
p/x.star:9:5 unused-local local name w is not used
p/x.star:12:9 unused-local local name b is not used
p/x.star:14:9 unused-local local name e is not used`
	if strings.Join(got, "\n") != want {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	if list := Lint("p/x.star", []byte("x = ("), Rules()); !list.HasErrors() {
		t.Error(list)
	}
}

func TestUnusedGlobals(t *testing.T) {
	src := []byte(`load(":a.star", "z")
used = 1
lent = used
left = f(left = 2)
_meant = 3
for i in []:
    inner = i
def f(left):
    return left
alone = [alone for alone in []]
by_effect = declare()
`)
	var got []string
	UnusedGlobals("p/x.star", src, map[string]bool{"lent": true}, []string{"declare"}, func(pos diag.Pos, message, _ string) {
		got = append(got, pos.String()+" "+message)
	})
	if want := "p/x.star:7:5 global name inner is not used"; strings.Join(got, "\n") != want {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	loaded := Loaded("p/x.star", []byte("load(':a.star', 'x', y = 'z')\nload('//:b.star', 'b')\nload('@bj//stdlib:c.star', 'c')\n"))
	if got := fmt.Sprint(loaded); got != "map[b.star:[b] p/a.star:[x z]]" {
		t.Error(got)
	}
}
