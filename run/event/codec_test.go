package event

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func ptr[T any](v T) *T { return &v }

// samples has one event of each name, and what it is written as.
func samples() []struct {
	e    Event
	line string
} {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8e6, time.FixedZone("", 3600))
	in := Event{Time: at.UTC(), Recipe: "//p:r"}
	with := func(name string, set func(*Event)) Event {
		e := in
		e.Event = name
		if set != nil {
			set(&e)
		}
		return e
	}
	head := func(name string) string {
		return `{"event":"` + name + `","time":"2026-03-04T04:06:07.008Z","recipe":"//p:r"`
	}
	return []struct {
		e    Event
		line string
	}{
		{Event{Event: Start, Schema: Schema, Version: "0.1"}, `{"event":"start","schema":"bj.events/1","version":"0.1"}`},
		{with(Note, func(e *Event) { e.Text = "a <b> & c" }), head(Note) + `,"text":"a <b> & c"}`},
		{with(Build, func(e *Event) { e.Text = "building x" }), head(Build) + `,"text":"building x"}`},
		{with(Lease, func(e *Event) { e.Text = "bj-1" }), head(Lease) + `,"text":"bj-1"}`},
		{with(Sealed, func(e *Event) { e.Seconds = ptr(0.5) }), head(Sealed) + `,"seconds":0.5}`},
		{with(CanaryTried, func(e *Event) { e.Machine, e.Held, e.Probe = "zk-0", ptr(false), "arp" }), head(CanaryTried) + `,"machine":"zk-0","held":false,"probe":"arp"}`},
		{with(StepStarted, func(e *Event) { e.Step = "s" }), head(StepStarted) + `,"step":"s"}`},
		{with(OutputWritten, func(e *Event) { e.Stream = "stdout" }), head(OutputWritten) + `,"stream":"stdout","text":""}`},
		{with(StepFinished, nil), head(StepFinished) + `,"exit":null}`},
		{with(StepFinished, func(e *Event) { e.Exit = ptr(0) }), head(StepFinished) + `,"exit":0}`},
		{with(FaultDone, func(e *Event) { e.Step = "f" }), head(FaultDone) + `,"step":"f"}`},
		{with(ValidationStarted, func(e *Event) { e.Phase = PhaseEmpty }), head(ValidationStarted) + `,"phase":"empty"}`},
		{with(ValidationFinished, func(e *Event) { e.Phase, e.Held = PhaseFinal, ptr(true) }), head(ValidationFinished) + `,"phase":"final","held":true}`},
		{with(BlockedSeen, func(e *Event) {
			e.Blocked = &Blocked{Protocol: "tcp", Destination: Destination{Address: "10.0.0.1", Port: 443}, Allow: `allow("x")`, Count: 3}
		}), head(BlockedSeen) + `,"process":null,"protocol":"tcp","destination":{"address":"10.0.0.1","port":443,"name":null},"service":null,"allow":"allow(\"x\")","closes_cycle":null,"mattered":null,"count":3}`},
		{with(UsedCounted, func(e *Event) { e.Used = &Used{Allow: `allow("x")`, File: "a.star", Line: 3} }), head(UsedCounted) + `,"allow":"allow(\"x\")","file":"a.star","line":3,"count":0,"bytes":0}`},
		{with(Released, nil), head(Released) + `}`},
		{with(VerdictGiven, func(e *Event) { e.Supplier = "//q:s"; e.Verdict = &Verdict{Verdict: Recovered, Root: "host"} }),
			head(VerdictGiven) + `,"supplier":"//q:s","verdict":"recovered","code":null,"reason":"","root":"host","failed":null}`},
		{with(VerdictGiven, func(e *Event) {
			e.Verdict = &Verdict{Verdict: Errored, Code: ptr("leak"), Failed: &Failed{Kind: "step", Title: "t", Machine: "m"}}
		}), head(VerdictGiven) + `,"verdict":"error","code":"leak","reason":"","root":"","failed":{"kind":"step","title":"t","machine":"m"}}`},
		{Event{Event: End, Time: at.UTC(), Exit: ptr(1), Totals: &Totals{Recovered: 2, NotRecovered: 1}},
			`{"event":"end","time":"2026-03-04T04:06:07.008Z","exit":1,"recovered":2,"not_recovered":1,"errors":0}`},
	}
}

func TestCodec(t *testing.T) {
	var stream bytes.Buffer
	for _, c := range samples() {
		got, err := Marshal(c.e)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.line {
			t.Errorf("%s is written as\n%s, want\n%s", c.e.Event, got, c.line)
		}
		stream.Write(append(got, '\n'))
	}
	d := NewDecoder(&stream)
	for _, c := range samples() {
		e, err := d.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(e, c.e) {
			t.Errorf("%s is read back as %+v", c.line, e)
		}
	}
	if _, err := d.Next(); err != io.EOF {
		t.Errorf("after end: %v", err)
	}
}

func TestDecoderRefuses(t *testing.T) {
	const start = `{"event":"start","schema":"bj.events/1","version":"x"}` + "\n"
	for name, c := range map[string]struct{ in, want string }{
		"nothing":       {"", "cut off"},
		"no end":        {start + `{"event":"note","text":"x"}` + "\n", "cut off"},
		"half a line":   {start + `{"event":"end","exit":0}`, "cut off"},
		"newer":         {`{"event":"start","schema":"bj.events/2"}` + "\n", "newer bj"},
		"other":         {`{"event":"start","schema":"x/1"}` + "\n", "not bj.events/1"},
		"no schema":     {`{"event":"start"}` + "\n", "not bj.events/1"},
		"not a start":   {`{"event":"note"}` + "\n", "not a stream"},
		"no name":       {start + "{}\n", "without a name"},
		"not json":      {start + "oops\n", "line 2"},
		"two starts":    {start + start, "second start"},
		"after the end": {start + `{"event":"end","exit":0}` + "\n" + start, "follows the end"},
	} {
		d := NewDecoder(strings.NewReader(c.in))
		var err error
		for err == nil {
			_, err = d.Next()
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if c.want == "cut off" && !errors.Is(err, ErrCut) {
			t.Errorf("%s: %v is not ErrCut", name, err)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	for _, c := range samples() {
		f.Add([]byte(c.line))
	}
	f.Add([]byte(`{"event":"blocked","time":"0001-01-01T00:00:00Z","count":1e400}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var e Event
		if e.UnmarshalJSON(line) != nil {
			return
		}
		out, err := Marshal(e)
		if err != nil {
			t.Fatalf("%q was read as %+v, which cannot be written: %v", line, e, err)
		}
		var back Event
		if err := back.UnmarshalJSON(out); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		again, err := Marshal(back)
		if err != nil || !bytes.Equal(out, again) {
			t.Fatalf("%q is written as\n%s and then as\n%s (%v)", line, out, again, err)
		}
	})
}
