package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"bj/run/event"
)

// TestHostileText has every command that shows recipes and runs show some whose
// every word wants to be more than that. Nothing that a terminal, a page or a
// workflow's runner would obey is in what is written.
func TestHostileText(t *testing.T) {
	dir := t.TempDir()
	const words = `x\u202ey\u2066 \x1b[31m \x1b]0;t\x07 \x00\x7f \u009b31m \u2028 </script><b>&amp;|` + "`" + ` ##[error]x`
	text := fmt.Sprintf(`"""%[1]s

::error::%[1]s"""
BAD = "%[1]s"
SCRIPT = "echo " + BAD.replace("\x00", "")
LONG = BAD + "\n::error::" + "long " * 20000
service(name = "other", owner = BAD, doc = LONG, endpoints = {"default": ["tcp://192.0.2.1:1"]})
service(name = "hostile", owner = BAD, doc = LONG, listens = [1])
m = hardware("m", doc = BAD)
recipe(
    name = "r", service = "hostile", doc = LONG, hardware = [m],
    tooling = [tool("t", path = "/bin/true", kept = BAD), secret("S", test = "hush", where = BAD), file("/f", content = LONG)],
    conditions = [allow("other", why = LONG)],
    strategy = [
        step(BAD, run = SCRIPT, doc = LONG, if_fails = BAD, danger = BAD, env = {"A": SCRIPT}),
        step("by hand " + BAD),
        fault(BAD, on = m, crash = True),
    ],
    validation = [validate(BAD, run = SCRIPT, expect = "a", doc = LONG)],
)
`, words)
	if err := os.WriteFile(filepath.Join(dir, "bj.star"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "h.star"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	const label = "//:r"
	bad := "x\u202ey\u2066 \x1b[31m \x1b]0;t\a \x00\x7f \u009b31m \u2028 \xff </script><b>&amp;|` ##[error]x\r\n::error::y\n"
	results, out := t.TempDir(), t.TempDir()
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	summary := filepath.Join(out, "summary.md")
	open := func() (*env, *bytes.Buffer, *bytes.Buffer) {
		var stdout, stderr bytes.Buffer
		e := newEnv()
		e.dir, e.stdout, e.stderr = dir, &pipe{w: &stdout, workflow: true}, &stderr
		e.getenv = func(name string) string {
			return map[string]string{"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": summary, "HOME": os.Getenv("HOME"), "BJ_CACHE": filepath.Join(out, "cache")}[name]
		}
		return e, &stdout, &stderr
	}
	harmless := func(what, text string) {
		t.Helper()
		for i, r := range text {
			if event.Harmful(r) || unicode.Is(unicode.Bidi_Control, r) {
				t.Errorf("%s has %q: %q", what, r, text[max(0, i-60):i+10])
				return
			}
		}
		for line := range strings.Lines(text) {
			if line = strings.TrimLeft(line, " \t"); strings.HasPrefix(what, "/") || strings.HasPrefix(line, "::error file=h.star,line=") {
				continue // a file, which no runner reads; an annotation
			}
			if strings.HasPrefix(line, "::") || strings.Contains(line, "##[") {
				t.Errorf("%s has a command: %.100q", what, line)
				return
			}
		}
	}

	// What bj test writes of a run, without the run.
	for _, asJSON := range []bool{false, true} {
		e, stdout, stderr := open()
		l, err := loadFleet(t.Context(), e, []string{label}, true)
		if err != nil {
			t.Fatal(err)
		}
		f := testFlags{json: asJSON, junit: filepath.Join(out, "junit.xml"), report: filepath.Join(out, fmt.Sprint("report-", asJSON)), runbooks: filepath.Join(out, "pages")}
		o, err := f.outputs(t.Context(), e, l, results, bad, nil)
		if err != nil {
			t.Fatal(err)
		}
		title, exit := l.recipes[0].Strategy[0].Step.Title, 1
		b := event.Blocked{Protocol: "tcp", Destination: event.Destination{Address: "192.0.2.9", Port: 1, Name: &bad}, Process: &event.Process{Exe: bad, Argv: []string{bad}, Unit: bad}, Service: &bad, Count: 1}
		for i, x := range []event.Event{
			{Event: event.Start, Schema: event.Schema, Version: version, Recipes: []string{label}}, {Event: event.Build, Text: bad}, {Event: event.Lease, Text: bad}, {Event: event.Sealed},
			{Event: event.StepStarted, Machine: "m", Step: title}, {Event: event.OutputWritten, Machine: "m", Step: title, Stream: "stdout", Text: bad + strings.Repeat("long ", 20000)},
			{Event: event.BlockedSeen, Machine: "m", Step: title, Blocked: &b}, {Event: event.StepFinished, Machine: "m", Step: title, Exit: &exit}, {Event: event.Note, Text: bad},
			{Event: event.UsedCounted, Used: &event.Used{Allow: bad, File: bad}},
			{Event: event.VerdictGiven, Verdict: &event.Verdict{Verdict: event.NotRecovered, Reason: bad + "  " + bad, Hint: bad, Root: bad, Free: []string{bad}, Failed: &event.Failed{Kind: "step", Title: title, Machine: "m"}}},
			{Event: event.End, Exit: &exit, Totals: &event.Totals{NotRecovered: 1}},
		} {
			x.Time = start.Add(time.Duration(i) * time.Second)
			if x.Event != event.Start && x.Event != event.End {
				x.Recipe = label
			}
			o.sink(x)
		}
		if err := o.close(); err != nil {
			t.Fatal(err)
		}
		harmless("bj test", stdout.String())
		harmless("what bj test says", stderr.String())
		if asJSON {
			var texts []string
			for d := json.NewDecoder(stdout); ; {
				var x event.Event
				if err := d.Decode(&x); err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				texts = append(texts, x.Text)
			}
			if !slices.Contains(texts, strings.ToValidUTF8(bad, "\uFFFD")) {
				t.Error("the text did not come back as it was")
			}
		}
	}
	for _, args := range [][]string{
		{"list"}, {"show", label}, {"history", label, "--results", results}, {"runbook", label, "--results", results}, {"lint", "//..."}, {"graph"}, {"graph", "--stats"}, {"graph", "--why", "hostile", "other"},
		{"graph", "--format", "dot"}, {"graph", "--format", "mermaid"}, {"graph", "--format", "svg"}, {"graph", "--format", "html"}, {"report", "merge", filepath.Join(out, "report-true"), filepath.Join(out, "report-false"), "--junit", filepath.Join(out, "merged.xml")},
		{"show", label, "--json"}, {"history", label, "--results", results, "--json"}, {"lint", "//...", "--format", "json"}, {"lint", "//...", "--format", "sarif"}, {"graph", "--format", "json"}, {"graph", "--cycles", "--format", "sarif"},
		{"test", "//...", "--tool", bad}, {"list", "//" + bad}, {"graph", "--why", bad, "other"},
	} {
		e, stdout, stderr := open()
		err := execute(t.Context(), e, args)
		var f *failure
		if err != nil && !errors.As(err, &f) {
			t.Errorf("bj %q: %v", args, err)
		}
		if code := e.report(err); code == exitError {
			t.Errorf("bj %q: exit %d", args, code)
		}
		harmless(fmt.Sprintf("bj %q", args), stdout.String())
		harmless(fmt.Sprintf("what bj %q says", args), stderr.String())
		if args[len(args)-1] == "--json" || slices.Contains(args, "json") || slices.Contains(args, "sarif") {
			if !json.Valid(stdout.Bytes()) {
				t.Errorf("bj %q is no JSON: %.200s", args, stdout)
			}
		}
	}
	files := 0
	err := filepath.WalkDir(out, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, "/cache/") || strings.Contains(path, "/logs/") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		switch filepath.Ext(path) {
		case ".xml":
			if err := xml.Unmarshal(data, new(struct{})); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			harmless(path, string(data))
		case ".html", ".md", ".svg", ".jsonl":
			harmless(path, string(data))
		}
		return nil
	})
	if err != nil || files < 10 {
		t.Errorf("%d files: %v", files, err)
	}
	if data, err := os.ReadFile(summary); err != nil || bytes.Count(data, []byte("\n")) != 2*3 {
		t.Errorf("summary: %q (%v)", data, err)
	}
}
