package report

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bj/run/event"
)

func ptr[T any](v T) *T { return &v }

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestReport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	r, err := New(dir, event.Origin{Digest: func(label string) string { return "digest of " + label }})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tell := func(e event.Event) {
		at = at.Add(time.Second)
		if e.Event != event.Start {
			e.Time = at
		}
		r.Event(e)
	}
	run := func(recipe, verdict string) {
		tell(event.Event{Event: event.Sealed, Recipe: recipe, Rules: "table x"})
		tell(event.Event{Event: event.Sealed, Recipe: recipe, Supplier: "//dns:up", Rules: "table dns"})
		tell(event.Event{Event: event.StepStarted, Recipe: recipe, Supplier: "//dns:up", Machine: "dns", Step: "Serve names!"})
		tell(event.Event{Event: event.OutputWritten, Recipe: recipe, Supplier: "//dns:up", Machine: "dns", Step: "Serve names!", Stream: "stdout", Text: "serving"})
		tell(event.Event{Event: event.StepStarted, Recipe: recipe, Machine: "../m", Step: "../../etc: Größe"})
		tell(event.Event{Event: event.StepStarted, Recipe: recipe, Machine: "m", Step: "next"})
		tell(event.Event{Event: event.OutputWritten, Recipe: recipe, Machine: "m", Step: "next", Stream: "stdout", Text: "one "})
		tell(event.Event{Event: event.OutputWritten, Recipe: recipe, Machine: "../m", Step: "../../etc: Größe", Stream: "stderr", Text: "x"})
		tell(event.Event{Event: event.OutputWritten, Recipe: recipe, Machine: "m", Step: "next", Stream: "stdout", Text: "two"})
		tell(event.Event{Event: event.StepFinished, Recipe: recipe, Machine: "m", Step: "next", Seconds: ptr(1.5), Exit: ptr(0)})
		tell(event.Event{Event: event.VerdictGiven, Recipe: recipe, Verdict: &event.Verdict{Verdict: verdict, Reason: "why", Root: "host"}})
		tell(event.Event{Event: event.Released, Recipe: recipe})
	}
	tell(event.Event{Event: event.Start, Schema: event.Schema, Version: "0.1"})
	run("//p/q:r", event.Recovered)
	run("//p/q:r", event.NotRecovered)
	tell(event.Event{Event: event.Lease, Recipe: "//p:cut"})
	tell(event.Event{Event: event.End, Exit: ptr(1), Totals: &event.Totals{}})
	if got := r.Path("//p/q:r"); got != filepath.Join(dir, "p+q=r~2") {
		t.Errorf("path: %s", got)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, run := range []string{"p+q=r", "p+q=r~2"} {
		for _, f := range []string{"events.jsonl", "logs/%2E.+m/01-etc-gr-e.log", "logs/m/02-next.log", "result.json", "rules.nft", "suppliers/dns=up/logs/dns/01-serve-names.log", "suppliers/dns=up/rules.nft"} {
			want = append(want, run+"/"+f)
		}
	}
	want = append(want, "events.jsonl", "p=cut/events.jsonl")
	slices.Sort(want)
	slices.Sort(files)
	if !slices.Equal(files, want) {
		t.Errorf("files:\n%s\nwant\n%s", strings.Join(files, "\n"), strings.Join(want, "\n"))
	}
	if got := read(t, filepath.Join(dir, "p+q=r/logs/m/02-next.log")); got != "one two" {
		t.Errorf("log: %q", got)
	}
	if got := read(t, filepath.Join(dir, "p+q=r/rules.nft")); got != "table x" {
		t.Errorf("rules: %q", got)
	}
	x, err := event.ParseRecord([]byte(read(t, filepath.Join(dir, "p+q=r~2/result.json"))))
	if err != nil || x.Recipe != "//p/q:r" || x.Verdict.Verdict != event.NotRecovered || x.Digest != "digest of //p/q:r" || x.Version != "0.1" || len(x.Steps) != 2 {
		t.Errorf("result: %+v, %v", x, err)
	}
	for path, end := range map[string]error{"events.jsonl": io.EOF, "p+q=r/events.jsonl": io.EOF, "p=cut/events.jsonl": event.ErrCut} {
		d := event.NewDecoder(strings.NewReader(read(t, filepath.Join(dir, path))))
		var err error
		for err == nil {
			_, err = d.Next()
		}
		if !errors.Is(err, end) {
			t.Errorf("%s ends with %v", path, err)
		}
	}
}

func TestReportReplacesAnOlderOne(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"first", "second"} {
		r, err := New(dir, event.Origin{})
		if err != nil {
			t.Fatal(err)
		}
		r.Event(event.Event{Event: event.Start, Schema: event.Schema})
		r.Event(event.Event{Event: event.OutputWritten, Recipe: "//p:r", Machine: "m", Step: text, Text: text})
		r.Event(event.Event{Event: event.VerdictGiven, Recipe: "//p:r", Verdict: &event.Verdict{Verdict: event.Recovered}})
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	logs, err := os.ReadDir(filepath.Join(dir, "p=r/logs/m"))
	if err != nil || len(logs) != 1 || logs[0].Name() != "01-second.log" {
		t.Errorf("%v, %v", logs, err)
	}
}

func TestErrorsAreReturned(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(filepath.Join(dir, "file"), event.Origin{}); err == nil {
		t.Error("a report in a file")
	}
	r, err := New(filepath.Join(dir, "out"), event.Origin{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "out"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.Event(event.Event{Event: event.Lease, Recipe: "//p:r"})
	if err := r.Close(); err == nil {
		t.Error("the folder is gone, and nobody says so")
	}
}
