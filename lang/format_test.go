package lang

import (
	"bytes"
	"errors"
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
p/x.star:9:5 unused-local local name w is not used`
	if strings.Join(got, "\n") != want {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	if list := Lint("p/x.star", []byte("x = ("), Rules()); !list.HasErrors() {
		t.Error(list)
	}
}
