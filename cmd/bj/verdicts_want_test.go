package main

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bj/run/event"
)

// want is what the comments say of one recipe.
type want struct {
	place   string // file:line
	verdict string
	code    string // of an error; "" for none
	kind    string // of what failed
	title   string
	in, out []string // substrings of reason and hint, and what they have not
	blocked []string // "tcp 192.0.2.11 7000"
	used    []usedWant
	says    []string
}

type usedWant struct {
	allow string
	some  bool
}

// wants are the wants of a workspace, by label.
type wants struct {
	root, user, machines map[string]*want
	hidden               []string
}

func (w *wants) of(label string, asRoot bool) *want {
	if u := w.user[label]; u != nil && !asRoot {
		return u
	}
	if m := w.machines[label]; m != nil && *inMachines {
		return m
	}
	return w.root[label]
}

var wantLine = regexp.MustCompile(`^# (want|blocked|used|says) ([a-z0-9_]+)( as user| in machines)?: (.*)$`)

// readWants reads the comments of all files of the workspace.
func readWants(t *testing.T, root string) *wants {
	t.Helper()
	w := &wants{root: map[string]*want{}, user: map[string]*want{}, machines: map[string]*want{}}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".star" || d.Name() == "bj.star" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			line = strings.TrimSpace(line)
			place := fmt.Sprintf("%s:%d", path, n)
			if rest, ok := strings.CutPrefix(line, "# hides "); ok {
				s, err := strconv.Unquote(rest)
				if err != nil {
					t.Fatalf("%s: %v", place, err)
				}
				w.hidden = append(w.hidden, s)
				continue
			}
			m := wantLine.FindStringSubmatch(line)
			if m == nil {
				if strings.HasPrefix(line, "# want") {
					t.Fatalf("%s: malformed: %s", place, line)
				}
				continue
			}
			label, into := "//"+filepath.ToSlash(dir)+":"+m[2], w.root
			switch m[3] {
			case " as user":
				into = w.user
			case " in machines":
				into = w.machines
			}
			if m[1] == "want" {
				if into[label] != nil {
					t.Fatalf("%s: %s is wanted twice", place, label)
				}
				into[label] = parseWant(t, place, m[4])
				continue
			}
			x := into[label]
			if x == nil {
				t.Fatalf("%s: say first what is wanted of %s", place, label)
			}
			switch m[1] {
			case "blocked":
				x.blocked = append(x.blocked, m[4])
			case "says":
				x.says = append(x.says, quoted(t, place, m[4])...)
			case "used":
				allow, err := strconv.QuotedPrefix(m[4])
				if err != nil {
					t.Fatalf("%s: %v", place, err)
				}
				some := strings.TrimSpace(m[4][len(allow):])
				if some != "some" && some != "none" {
					t.Fatalf("%s: used is some or none, not %q", place, some)
				}
				allow, _ = strconv.Unquote(allow)
				x.used = append(x.used, usedWant{allow, some == "some"})
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// parseWant parses what follows "# want NAME:".
func parseWant(t *testing.T, place, text string) *want {
	t.Helper()
	w := &want{place: place}
	word := func() (s string) { s, text, _ = strings.Cut(text, " "); return s }
	switch v := word(); v {
	case event.Recovered:
		w.verdict = v
	case "not":
		if word() != "recovered" {
			t.Fatalf("%s: want not recovered", place)
		}
		w.verdict, w.kind = event.NotRecovered, word()
		title, err := strconv.QuotedPrefix(text)
		if err != nil {
			t.Fatalf("%s: a title in quotes must follow the kind: %v", place, err)
		}
		text = strings.TrimPrefix(text, title)
		w.title, _ = strconv.Unquote(title)
	case event.Errored:
		w.verdict, w.code = v, strings.TrimPrefix(word(), "-")
	default:
		t.Fatalf("%s: unknown verdict %q", place, v)
	}
	for _, s := range quoted(t, place, text) {
		if rest, ok := strings.CutPrefix(s, "!"); ok {
			w.out = append(w.out, rest)
		} else {
			w.in = append(w.in, s)
		}
	}
	return w
}

// quoted parses strings in quotes; a ! before the quote stays before its string.
func quoted(t *testing.T, place, text string) (out []string) {
	t.Helper()
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		rest, not := strings.CutPrefix(text, "!")
		q, err := strconv.QuotedPrefix(rest)
		if err != nil {
			t.Fatalf("%s: %v: %s", place, err, text)
		}
		s, _ := strconv.Unquote(q)
		if not {
			s = "!" + s
		}
		out, text = append(out, s), rest[len(q):]
	}
	return out
}

func (w *want) check(t *testing.T, v *event.Verdict, events []event.Event) {
	if v.Verdict != w.verdict || code(v) != w.code {
		t.Errorf("want %q, code %q", w.verdict, w.code)
	}
	switch {
	case w.kind == "" && v.Failed != nil:
		t.Errorf("%+v failed, want nothing", v.Failed)
	case w.kind != "" && (v.Failed == nil || v.Failed.Kind != w.kind || v.Failed.Title != w.title):
		t.Errorf("want %s %q to have failed", w.kind, w.title)
	}
	text := v.Reason + "\n" + v.Hint
	for _, s := range w.in {
		if !strings.Contains(text, s) {
			t.Errorf("the reason has no %q", s)
		}
	}
	for _, s := range w.out {
		if strings.Contains(text, s) {
			t.Errorf("the reason has %q", s)
		}
	}
	var said strings.Builder
	blocked := map[string]bool{}
	used := map[string]int64{}
	for _, e := range events {
		switch {
		case e.Blocked != nil:
			blocked[fmt.Sprintf("%s %s %d", e.Blocked.Protocol, e.Blocked.Destination.Address, e.Blocked.Destination.Port)] = true
		case e.Used != nil:
			used[e.Used.Allow] = e.Used.Count
		case e.Event == event.OutputWritten || e.Event == event.Note:
			said.WriteString(e.Text)
		}
	}
	for _, b := range w.blocked {
		if !blocked[b] {
			t.Errorf("no blocked attempt %s, but %v", b, slices.Sorted(maps.Keys(blocked)))
		}
	}
	for _, u := range w.used {
		n, ok := int64(0), false
		for text, count := range used {
			if strings.Contains(text, u.allow) {
				n, ok = n+count, true
			}
		}
		if !ok || (n > 0) != u.some {
			t.Errorf("the condition %s: used %v, %d times", u.allow, ok, n)
		}
	}
	for _, s := range w.says {
		if !strings.Contains(said.String(), s) {
			t.Errorf("nothing says %q, but:\n%.4000s", s, said.String())
		}
	}
}
