package run

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"bj/sandbox"
)

func TestMask(t *testing.T) {
	m := &mask{}
	for _, v := range []string{"abc", "abcdef", "x", "one\ntwo words\n}\n", ""} {
		m.add(v)
	}
	for in, want := range map[string]string{
		"abc":                 "***",
		"abcd":                "***d",
		"abcdef":              "***",
		"ababc":               "ab***",
		"ax":                  "a***",
		"one\ntwo words\n}\n": "***",
		"one\ntwo words\n}":   "***",
		"two words":           "***",
		"one }":               "one }",
		"":                    "",
	} {
		if got := m.text(in); got != want {
			t.Errorf("%q is masked as %q, want %q", in, got, want)
		}
	}
}

// However a stream is cut into pieces, it is masked as if it came whole.
func FuzzMasker(f *testing.F) {
	f.Add("abcabcdefx", "abc", "abcdef", uint8(2))
	f.Add("aaab", "aab", "aa", uint8(1))
	f.Fuzz(func(t *testing.T, text, one, two string, size uint8) {
		m := &mask{}
		m.add(one)
		m.add(two)
		var k masker
		var got []byte
		for rest := []byte(text); len(rest) > 0; {
			n := min(len(rest), int(size)%7+1)
			got = append(got, k.write(m, bytes.Clone(rest[:n]))...)
			rest = rest[n:]
		}
		got = append(got, k.flush(m)...)
		if whole := m.text(text); string(got) != whole {
			t.Errorf("%q in pieces is masked as %q, whole as %q", text, got, whole)
		}
	})
}

func FuzzDecoder(f *testing.F) {
	f.Add([]byte("caf\xc3\xa9 \xe2\x82\xac \xff\xf0\x9f"), uint8(1))
	f.Fuzz(func(t *testing.T, text []byte, size uint8) {
		var d decoder
		var got strings.Builder
		for rest := text; len(rest) > 0; {
			n := min(len(rest), int(size)%5+1)
			s := d.write(bytes.Clone(rest[:n]))
			if !utf8.ValidString(s) {
				t.Fatalf("%q is not UTF-8", s)
			}
			got.WriteString(s)
			rest = rest[n:]
		}
		got.WriteString(d.flush())
		if utf8.Valid(text) && got.String() != string(text) {
			t.Errorf("%q became %q", text, got.String())
		}
		if !utf8.ValidString(got.String()) {
			t.Errorf("%q is not UTF-8", got.String())
		}
	})
}

func TestMatcher(t *testing.T) {
	long := strings.Repeat("filler of a line\n", 5000)
	huge := strings.Repeat(long, 3)
	for _, c := range []struct {
		expect string
		writes []string
		live   bool // while the command runs
		atEnd  bool
	}{
		{"ready", []string{"ready\n"}, true, true},
		{"ready", []string{"rea", "dy"}, true, true},
		{"^ready$", []string{"rea", "dy\n"}, true, true},
		{"^ready$", []string{"not ready\n"}, false, false},
		{"(?m)^ready$", []string{"not ready\n", "ready\n"}, true, true},
		{"ready", []string{long, "ready\n"}, true, true},
		{"^ready", []string{long, "ready\n"}, false, false},
		{"(?m)^ready$", []string{long, "re", "ady\n"}, true, true},
		{"a\nready", []string{long, "a\n", "ready\n"}, true, true},
		{"^filler(?s:.*)ready$", []string{long, "ready\n"}, false, true},
		{"a\nb", []string{"a\n", "b\n"}, true, true},
		{"^$", []string{}, false, true},
		{"^\n$", []string{"\n"}, true, true},
		{"^ready", []string{"ready\n", huge}, true, true},
		{"ready$", []string{huge, "ready\n"}, true, true},
		{"^filler", []string{"ready\n", huge}, false, false},
		{"line$", []string{huge, "ready\n"}, true, false}, // it was so for a moment
		{"ready\nfil", []string{huge, "ready\n", "filler"}, true, true},
	} {
		for _, waiting := range []bool{true, false} {
			o := newOutput(&mask{}, outputOptions{expect: regexp.MustCompile(c.expect), waiting: waiting})
			for i := range o.parts {
				o.parts[i].matcher.max = len(long)
			}
			for _, w := range c.writes {
				o.write(sandbox.Stdout, []byte(w))
			}
			o.finish()
			if want := waiting && c.live || !waiting && c.atEnd; o.matched() != want {
				t.Errorf("%q over %.60q, waiting %t: matched %t", c.expect, c.writes, waiting, o.matched())
			}
		}
	}
}

func TestTailIsBounded(t *testing.T) {
	o := newOutput(&mask{}, outputOptions{})
	for range 1000 {
		o.write(sandbox.Stdout, bytes.Repeat([]byte("é"), 1000))
	}
	o.write(sandbox.Stderr, []byte("the end\n"))
	o.finish()
	if end := o.end(); len(end) > maxTail || !strings.HasSuffix(end, "éthe end\n") || !utf8.ValidString(end) {
		t.Errorf("the end has %d bytes", len(end))
	}
	if cap(o.tail) > 4*maxTail {
		t.Errorf("%d bytes are kept", cap(o.tail))
	}
}

func TestLastLines(t *testing.T) {
	for _, c := range []struct {
		in       string
		n, bytes int
		want     string
	}{
		{"", 3, 100, ""},
		{"a\nb\n", 3, 100, "a\nb"},
		{"a\nb\nc\nd\n", 2, 100, "...\nc\nd"},
		{"aaaa\nbbbb\n", 9, 6, "...\nbbbb"},
		{"ééééé", 9, 3, "...\né"},
	} {
		if got := lastLines(c.in, c.n, c.bytes); got != c.want {
			t.Errorf("last lines of %q: %q, want %q", c.in, got, c.want)
		}
	}
}
