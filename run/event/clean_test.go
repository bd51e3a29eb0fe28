package event

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// TestMarshalHarmless holds that what programs print is harmless in the stream
// of events, too, and comes back as it was.
func TestMarshalHarmless(t *testing.T) {
	const text = "\x1b[31m\x00\u202e\u2066\u009b31m\x7f\u2028\r\n\t<&>"
	line, err := Marshal(Event{Event: OutputWritten, Recipe: "//p:r", Step: "a\u202eb", Text: text})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range string(line) {
		if Harmful(r) {
			t.Errorf("the line has %q: %s", r, line)
		}
	}
	var back Event
	if err := json.Unmarshal(line, &back); err != nil || back.Text != text || back.Step != "a\u202eb" {
		t.Errorf("%q came back (%v)", back.Text, err)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[31m\u202e\xff\r\n\t\u2028\u009b")
	f.Fuzz(func(t *testing.T, s string) {
		c := Clean(s)
		if !utf8.ValidString(c) {
			t.Errorf("%q is no UTF-8", c)
		}
		for _, r := range c {
			if Harmful(r) {
				t.Errorf("%q is in what is left of %q", r, s)
			}
		}
		if Clean(c) != c {
			t.Errorf("%q is cleaned twice", s)
		}
		if data, err := json.Marshal(s); err != nil {
			t.Error(err)
		} else {
			var want, got string
			if json.Unmarshal(data, &want) != nil || json.Unmarshal([]byte(Clean(string(data))), &got) != nil || got != want {
				t.Errorf("%q is %q in JSON", want, got)
			}
		}
	})
}
