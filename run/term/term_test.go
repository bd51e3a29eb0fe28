package term

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"bj/run/event"
)

var update = flag.Bool("update", false, "write golden files")

func ptr[T any](v T) *T { return &v }

// story is a run of three recipes that overlap.
func story() []event.Event {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var es []event.Event
	tell := func(after time.Duration, e event.Event) {
		at = at.Add(after)
		e.Time = at
		es = append(es, e)
	}
	const a, b, c = "//etcd:cold", "//dns:up", "//pkgs:up"
	es = append(es, event.Event{Event: event.Start, Schema: event.Schema, Version: "0.1"})
	tell(0, event.Event{Event: event.Build, Recipe: a, Text: "building etcd"})
	tell(20*time.Second, event.Event{Event: event.Note, Recipe: a, Text: "production is contacted: tcp://10.0.0.1:53"})
	tell(0, event.Event{Event: event.Lease, Recipe: a, Seconds: ptr(0.012)})
	tell(0, event.Event{Event: event.Lease, Recipe: b, Seconds: ptr(0.5)})
	tell(time.Second, event.Event{Event: event.Sealed, Recipe: a, Seconds: ptr(1.0), Rules: "table"})
	tell(0, event.Event{Event: event.CanaryTried, Recipe: a, Machine: "etcd-0", Held: ptr(true), Probe: "arp"})
	tell(0, event.Event{Event: event.CanaryTried, Recipe: b, Machine: "dns", Held: ptr(false), Probe: "arp"})
	tell(0, event.Event{Event: event.VerdictGiven, Recipe: b, Verdict: &event.Verdict{Verdict: event.Errored, Code: ptr("leak"), Reason: "the seal leaks: on dns, arp was not held", Root: "host"}})
	tell(0, event.Event{Event: event.ValidationStarted, Recipe: a, Step: "quorum", Phase: event.PhaseEmpty})
	tell(0, event.Event{Event: event.ValidationFinished, Recipe: a, Step: "quorum", Phase: event.PhaseEmpty, Held: ptr(false), Seconds: ptr(1.0)})
	tell(0, event.Event{Event: event.StepStarted, Recipe: a, Machine: "etcd-0", Step: "start"})
	tell(0, event.Event{Event: event.StepStarted, Recipe: a, Machine: "etcd-1", Step: "start"})
	tell(0, event.Event{Event: event.OutputWritten, Recipe: a, Machine: "etcd-0", Step: "start", Stream: "stdout", Text: "\x1b]0;evil\a\x1b[2J"})
	tell(time.Second, event.Event{Event: event.StepFinished, Recipe: a, Machine: "etcd-0", Step: "start", Seconds: ptr(0.1)})
	tell(0, event.Event{Event: event.StepFinished, Recipe: a, Machine: "etcd-1", Step: "start", Seconds: ptr(0.1), Exit: ptr(2)})
	tell(0, event.Event{Event: event.BlockedSeen, Recipe: a, Machine: "etcd-0", Step: "start",
		Blocked: &event.Blocked{Protocol: "tcp", Destination: event.Destination{Address: "2001:db8::1", Port: 443}, Count: 3}})
	tell(0, event.Event{Event: event.FaultDone, Recipe: a, Machine: "etcd-1", Step: "one is lost"})
	tell(0, event.Event{Event: event.StepStarted, Recipe: c, Supplier: b, Machine: "dns", Step: "serve"})
	tell(61*time.Second, event.Event{Event: event.VerdictGiven, Recipe: c, Verdict: &event.Verdict{Verdict: event.NotRecovered, Root: "host", Hint: "look \x1b[31mthere",
		Reason: "step \"go\" failed on pkgs: it ended with exit code 1\n  command:\n    curl\n  end of its output:\n    \x1b[2Jred\x9b31m \u202eevil\r\n    next", Failed: &event.Failed{Kind: "step", Title: "go", Machine: "pkgs"}}})
	tell(0, event.Event{Event: event.Released, Recipe: c})
	tell(0, event.Event{Event: event.ValidationStarted, Recipe: a, Step: "quorum", Phase: event.PhaseFinal})
	tell(0, event.Event{Event: event.ValidationFinished, Recipe: a, Step: "quorum", Phase: event.PhaseFinal, Held: ptr(true), Seconds: ptr(3600.0)})
	tell(0, event.Event{Event: event.UsedCounted, Recipe: a, Used: &event.Used{Allow: `allow("x")`, File: "a.star", Line: 3}})
	tell(0, event.Event{Event: event.VerdictGiven, Recipe: a, Verdict: &event.Verdict{Verdict: event.Recovered, Root: "host Debian 12", Free: []string{"tool etcd", "clock"}}})
	tell(0, event.Event{Event: event.End, Exit: ptr(1), Totals: &event.Totals{Recovered: 1, NotRecovered: 1, Errors: 1}})
	return es
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", name, got)
	}
}

func TestPlain(t *testing.T) {
	var out, err bytes.Buffer
	term := New(Options{Out: &out, Err: &err})
	for _, e := range story() {
		term.Event(e)
	}
	term.Close()
	golden(t, "plain.out", out.String())
	golden(t, "plain.err", err.String())
	if s := out.String() + err.String(); strings.ContainsAny(s, "\x1b\a\r") || strings.ContainsRune(s, '\u202e') {
		t.Errorf("control characters reach the terminal: %q", s)
	}
}

// screen is what a terminal shows after text, of the sequences that Terminal writes.
func screen(text string) string {
	lines := []string{""}
	for text != "" {
		var n int
		switch {
		case strings.HasPrefix(text, "\x1b[J"):
			lines[len(lines)-1] = ""
			text = text[3:]
		case strings.HasPrefix(text, "\x1b["):
			end := strings.IndexAny(text, "Am")
			if text[end] == 'A' {
				for _, c := range text[2:end] {
					n = 10*n + int(c-'0')
				}
				lines = lines[:len(lines)-n]
			}
			text = text[end+1:]
		case text[0] == '\n':
			lines = append(lines, "")
			text = text[1:]
		case text[0] == '\r':
			text = text[1:]
		default:
			lines[len(lines)-1] += text[:1]
			text = text[1:]
		}
	}
	return strings.Join(lines, "\n")
}

func TestLive(t *testing.T) {
	var both bytes.Buffer // one terminal
	term := New(Options{Out: &both, Err: &both, Live: true, Color: true, Every: time.Hour, Width: func() int { return 60 },
		Steps: func(string) int { return 4 }})
	var frames strings.Builder
	for _, e := range story() {
		term.Event(e)
		term.redraw(nil, e.Time)
		if e.Event != event.OutputWritten && e.Event != event.CanaryTried {
			frames.WriteString("---- " + e.Event + "\n" + screen(both.String()))
		}
	}
	term.Close()
	golden(t, "live.screens", frames.String())
	if !strings.Contains(both.String(), "\x1b[32mrecovered\x1b[0m") {
		t.Error("no colour")
	}
	if s := screen(both.String()); !strings.HasSuffix(s, "1 recovered, 1 not recovered, 1 error\n") {
		t.Errorf("live lines are left:\n%s", s)
	}
}

func TestKeptIsNoRunningRecipe(t *testing.T) {
	var both bytes.Buffer
	term := New(Options{Out: &both, Err: &both, Live: true, Every: time.Hour})
	term.Event(event.Event{Event: event.VerdictGiven, Recipe: "//p:r", Verdict: &event.Verdict{Verdict: event.NotRecovered, Reason: "why"}})
	term.Event(event.Event{Event: event.Note, Recipe: "//p:r", Text: "kept until noon\nand more"})
	term.Event(event.Event{Event: event.Released, Recipe: "//p:r"})
	term.Close()
	if got, want := screen(both.String()), "not recovered  //p:r  0ms\n  why\n//p:r: kept until noon\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestSay holds that what is said meanwhile stands above the live lines, which
// once were drawn over it.
func TestSay(t *testing.T) {
	var both bytes.Buffer
	term := New(Options{Out: &both, Err: &both, Live: true, Every: time.Hour})
	term.Event(event.Event{Event: event.Build, Recipe: "//p:a", Text: "building x"})
	term.Event(event.Event{Event: event.Build, Recipe: "//p:b", Supplier: "//p:a", Text: "building y"})
	term.Say("bj: interrupted")
	if got := screen(both.String()); !strings.HasPrefix(got, "bj: interrupted\n//p:a  ") || !strings.HasSuffix(got, "  tools: building y\n") {
		t.Errorf("it shows\n%s", got)
	}
	term.Close()
	if got := screen(both.String()); got != "bj: interrupted\n" {
		t.Errorf("at last it shows\n%s", got)
	}
}

func TestManyLiveLines(t *testing.T) {
	var b bytes.Buffer
	term := New(Options{Out: &b, Err: &b, Live: true, Every: time.Hour})
	for i := range 40 {
		term.Event(event.Event{Event: event.Lease, Recipe: "//p:r" + string(rune('A'+i))})
	}
	term.redraw(nil, time.Time{})
	if s := screen(b.String()); strings.Count(s, "\n") != maxLive+1 || !strings.HasSuffix(s, "and 24 more\n") {
		t.Errorf("%s", s)
	}
	term.Close()
	if s := screen(b.String()); s != "" {
		t.Errorf("left: %q", s)
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[float64]string{0: "0ms", 0.0123: "12ms", 0.0996: "0.1s", 1: "1.0s", 59.96: "1m00s", 125: "2m05s", 3725: "1h02m05s"} {
		if got := Seconds(in); got != want {
			t.Errorf("%v: %s, want %s", in, got, want)
		}
	}
}
