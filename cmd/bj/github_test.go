package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bj/run/event"
)

// TestInRepository holds that files of a workspace inside of a repository are
// called as the engine that checked it out calls them.
func TestInRepository(t *testing.T) {
	for _, c := range []struct{ github, gitlab, root, want string }{
		{"", "", "/w", "p/x.star"},
		{"/w", "", "/w", "p/x.star"},
		{"/w", "", "/w/infra/bj", "infra/bj/p/x.star"},
		{"", "/w", "/w/infra", "infra/p/x.star"},
		{"/w", "", "/elsewhere", "p/x.star"},
		{"/w/infra", "", "/w", "p/x.star"},
	} {
		e := newEnv()
		e.getenv = func(name string) string {
			return map[string]string{"GITHUB_WORKSPACE": c.github, "CI_PROJECT_DIR": c.gitlab}[name]
		}
		if got := e.inRepository(c.root, "p/x.star"); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// GitHub shows ten annotations of a step: nine recipes, and how many more.
func TestAnnotations(t *testing.T) {
	var out bytes.Buffer
	a := &annotations{out: &out, summary: filepath.Join(t.TempDir(), "summary"), place: func(string) (string, int) { return "a,b.star", 7 }}
	verdict := func(label, verdict, reason string) {
		a.Event(event.Event{Event: event.VerdictGiven, Recipe: label, Verdict: &event.Verdict{Verdict: verdict, Reason: reason}})
	}
	verdict("//a:fine", event.Recovered, "")
	for i := range 12 {
		verdict(fmt.Sprintf("//a:r%d", i), event.NotRecovered, "100% of\nit | that")
	}
	verdict("//a:hostile", event.NotRecovered, "![x](http://192.0.2.1/) | <b>\u202e\x1b[31m"+strings.Repeat("x", 5000))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 10 {
		t.Errorf("%d annotations, want 10:\n%s", len(lines), &out)
	}
	if want := "::error file=a%2Cb.star,line=7,title=not recovered //a%3Ar0::100%25 of%0Ait | that"; lines[0] != want {
		t.Errorf("got %s\nwant %s", lines[0], want)
	}
	if want := "::error title=bj::4 more did not recover: the log and the step's summary name them"; lines[9] != want {
		t.Errorf("got %s\nwant %s", lines[9], want)
	}
	text, err := os.ReadFile(a.summary)
	if err != nil || strings.Count(string(text), "\n") != 16 || !strings.Contains(string(text), "| recovered | `//a:fine` |  |") {
		t.Errorf("summary %v:\n%s", err, text)
	}
	if row := regexp.MustCompile("(?m)^.*hostile.*$").FindString(string(text)); len(row) > 700 || !strings.Contains(row, `\!\[x\](http://192.0.2.1/) \| \<b\>`) || strings.ContainsAny(row, "\u202e\x1b") {
		t.Errorf("summary: %q", row)
	}
}
