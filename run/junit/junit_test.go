package junit

import (
	"bytes"
	"encoding/xml"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"bj/run/event"
)

var update = flag.Bool("update", false, "write golden files")

func ptr[T any](v T) *T { return &v }

func TestReport(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := &Report{File: func(label string) string {
		return strings.TrimPrefix(strings.SplitN(label, ":", 2)[0], "//") + "/recovery.star"
	}}
	tell := func(e event.Event) {
		at = at.Add(500 * time.Millisecond)
		e.Time = at
		r.Event(e)
	}
	verdict := func(recipe string, v event.Verdict) {
		tell(event.Event{Event: event.VerdictGiven, Recipe: recipe, Verdict: &v})
	}
	const a, b, c = "//svc/etcd:cold", "//dns:up", "//pkgs:up"
	r.Event(event.Event{Event: event.Start})
	tell(event.Event{Event: event.Build, Recipe: c, Text: "building"})
	tell(event.Event{Event: event.Lease, Recipe: a})
	tell(event.Event{Event: event.Lease, Recipe: b})
	tell(event.Event{Event: event.StepStarted, Recipe: a, Machine: "m", Step: "go <&>"})
	tell(event.Event{Event: event.OutputWritten, Recipe: a, Machine: "m", Step: "go", Text: "\x1b[31mred\x00 ]]> <b> \u202e\u009b31m\xff\ufffe no newline"})
	tell(event.Event{Event: event.StepStarted, Recipe: a, Machine: "m", Step: "serve", Supplier: b})
	tell(event.Event{Event: event.Note, Recipe: a, Text: "by hand"})
	tell(event.Event{Event: event.FaultDone, Recipe: a, Machine: "m", Step: "loss"})
	tell(event.Event{Event: event.ValidationStarted, Recipe: a, Step: "ok", Phase: event.PhaseFinal})
	verdict(a, event.Verdict{Verdict: event.Recovered})
	tell(event.Event{Event: event.Released, Recipe: a})
	verdict(b, event.Verdict{Verdict: event.Errored, Code: ptr("leak"), Reason: "it leaks\nbadly", Hint: "stop"})
	tell(event.Event{Event: event.Lease, Recipe: a})
	verdict(a, event.Verdict{Verdict: event.NotRecovered, Reason: "step failed\n  \"why\"", Failed: &event.Failed{Kind: "step"}})
	tell(event.Event{Event: event.Note, Recipe: a, Text: "the environment is kept"})
	tell(event.Event{Event: event.Lease, Recipe: c})
	tell(event.Event{Event: event.End, Exit: ptr(1)})

	var out bytes.Buffer
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	const path = "testdata/report.xml"
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("the report differs:\n%s", out.String())
	}
	var back suites
	if err := xml.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(out.String(), event.Harmful); i >= 0 {
		t.Errorf("the report has %q", out.String()[i:i+1])
	}
	names := map[string]bool{}
	for _, c := range back.Suite.Cases {
		if names[c.Class+c.Name] {
			t.Errorf("two cases are called %s %s", c.Class, c.Name)
		}
		names[c.Class+c.Name] = true
	}
	if back.Tests != 4 || back.Failures != 1 || back.Errors != 2 {
		t.Errorf("%+v", back)
	}
}

func TestOutputIsBounded(t *testing.T) {
	r := &Report{}
	for range 1000 {
		r.Event(event.Event{Event: event.OutputWritten, Recipe: "//p:r", Text: strings.Repeat("x", 1000)})
	}
	r.Event(event.Event{Event: event.VerdictGiven, Recipe: "//p:r", Verdict: &event.Verdict{Verdict: event.Recovered}})
	var out bytes.Buffer
	if err := r.Write(&out); err != nil || out.Len() > maxOutput+4096 {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\x00\x1b\ufffe\xff<&>]]>")
	f.Fuzz(func(t *testing.T, s string) {
		data, err := xml.Marshal(text{printable(s)})
		if err != nil {
			t.Fatal(err)
		}
		var back text
		if err := xml.Unmarshal(data, &back); err != nil {
			t.Errorf("%q is written as %q: %v", s, data, err)
		}
	})
}
