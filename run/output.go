package run

import (
	"bytes"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"bj/sandbox"
)

const (
	maskText      = "***"
	maxText       = 32 << 10 // bytes of text in one output event
	maxTail       = 64 << 10 // bytes kept of the end of a command's output
	maxCapture    = 64 << 10 // bytes that a step may capture
	minMaskedLine = 4        // a shorter line of a secret would mask half of everything
)

// mask is the set of values that nobody may see. Values can be added while
// text is being masked.
type mask struct {
	mu     sync.RWMutex
	values [][]byte // longest first
	first  [256]bool
}

// add hides value, and each of its lines if it has several.
func (m *mask) add(value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	hide := []string{value, strings.TrimRight(value, "\r\n")}
	if lines := strings.Split(value, "\n"); len(lines) > 1 {
		for _, line := range lines {
			if line = strings.TrimSpace(line); len(line) >= minMaskedLine {
				hide = append(hide, line)
			}
		}
	}
	for _, h := range hide {
		if h == "" || slices.ContainsFunc(m.values, func(v []byte) bool { return string(v) == h }) {
			continue
		}
		m.values = append(m.values, []byte(h))
		m.first[h[0]] = true
	}
	slices.SortStableFunc(m.values, func(a, b []byte) int { return len(b) - len(a) })
}

// text returns s with every value masked.
func (m *mask) text(s string) string {
	var k masker
	return string(append(k.write(m, []byte(s)), k.flush(m)...))
}

// masker masks a stream that comes in pieces, also where a value is split
// between them: it holds back what may be the beginning of one.
type masker struct{ held []byte }

// write returns what can be shown after p has come.
func (k *masker) write(m *mask, p []byte) []byte { return k.scan(m, p, false) }

// flush returns what was held back.
func (k *masker) flush(m *mask) []byte { return k.scan(m, nil, true) }

func (k *masker) scan(m *mask, p []byte, end bool) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.values) == 0 && len(k.held) == 0 {
		return p
	}
	text := append(k.held, p...)
	k.held = nil
	out := make([]byte, 0, len(text))
next:
	for i := 0; i < len(text); {
		if !m.first[text[i]] {
			out = append(out, text[i])
			i++
			continue
		}
		for _, v := range m.values { // longest first
			if bytes.HasPrefix(text[i:], v) {
				out = append(out, maskText...)
				i += len(v)
				continue next
			}
			if !end && len(v) > len(text)-i && bytes.HasPrefix(v, text[i:]) {
				k.held = bytes.Clone(text[i:])
				return out
			}
		}
		out = append(out, text[i])
		i++
	}
	return out
}

// decoder makes UTF-8 of a stream that comes in pieces: U+FFFD for what is not,
// runes that are split between pieces whole.
type decoder struct{ held []byte }

func (d *decoder) write(p []byte) string {
	text := append(d.held, p...)
	d.held = nil
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if b := text[len(text)-n]; utf8.RuneStart(b) {
			if !utf8.FullRune(text[len(text)-n:]) {
				d.held = bytes.Clone(text[len(text)-n:])
				text = text[:len(text)-n]
			}
			break
		}
	}
	return strings.ToValidUTF8(string(text), "\uFFFD")
}

func (d *decoder) flush() string {
	text := d.held
	d.held = nil
	return strings.ToValidUTF8(string(text), "\uFFFD")
}

// matcher tells whether a text that comes in pieces matches an expression. It
// looks at all of a text of up to 2*maxMatched bytes; of a longer one at pieces
// of that size, each of which begins with the second half of the one before. A
// final newline may be seen or not, so that "ok$" matches what echo prints.
type matcher struct {
	re         *regexp.Regexp
	max        int    // maxMatched
	begin, end bool   // it asks for the beginning, or the end, of the text
	head       []byte // the beginning of a text that is too long; nil of another
	tail       []byte // the rest, or all of it
	found      bool   // in what was thrown away
	recent     []byte // what sofar looks at
	cut        bool   // recent is not all
}

const (
	maxMatched = 4 << 20  // bytes
	maxRecent  = 16 << 10 // bytes of a text that sofar looks at whole
	minRecent  = 4 << 10  // bytes before a piece that it looks at in a longer one
)

func newMatcher(re *regexp.Regexp) *matcher {
	return &matcher{re: re, max: maxMatched, begin: asks(re, syntax.OpBeginText), end: asks(re, syntax.OpEndText)}
}

// write takes the next piece of the text.
func (m *matcher) write(p []byte) {
	m.tail = append(m.tail, p...)
	if m.head == nil && len(m.tail) > 2*m.max {
		m.head = bytes.Clone(m.tail[:m.max])
	}
	if m.head != nil && len(m.tail) > 2*m.max {
		m.found = m.found || !m.begin && !m.end && m.re.Match(m.tail)
		m.tail = append(m.tail[:0], m.tail[len(m.tail)-m.max:]...)
	}
}

// matched answers for the text as it is at its end.
func (m *matcher) matched() bool {
	switch {
	case m.found:
		return true
	case m.head == nil:
		return m.look(m.tail)
	case !m.end && m.re.Match(m.head):
		return true
	}
	return !m.begin && m.look(m.tail)
}

// sofar takes the next piece of the text, and reports whether what was written
// last matches. Of a long text it looks at the piece and a little before it.
func (m *matcher) sofar(p []byte) bool {
	m.recent = append(m.recent, p...)
	if (!m.cut || !m.begin) && m.look(m.recent) {
		return true
	}
	if len(m.recent) > maxRecent || m.cut {
		m.cut = true
		keep := m.recent[max(0, len(m.recent)-minRecent):]
		if _, lines, ok := bytes.Cut(keep, []byte("\n")); ok && len(keep) < len(m.recent) {
			keep = lines // whole ones, for (?m)^
		}
		m.recent = bytes.Clone(keep)
	}
	return false
}

func (m *matcher) look(text []byte) bool {
	return m.re.Match(text) || (m.end && m.re.Match(bytes.TrimSuffix(text, []byte("\n"))))
}

// asks reports whether op is part of re.
func asks(re *regexp.Regexp, op syntax.Op) bool {
	tree, err := syntax.Parse(re.String(), syntax.Perl)
	if err != nil {
		return true
	}
	var walk func(*syntax.Regexp) bool
	walk = func(x *syntax.Regexp) bool { return x.Op == op || slices.ContainsFunc(x.Sub, walk) }
	return walk(tree)
}

// output takes what one command writes: it shows it, masked and as text, keeps
// its end, captures it and looks for what is expected.
type output struct {
	mu     sync.Mutex
	mask   *mask
	show   func(sandbox.Stream, string) // nil: nothing is shown as it comes
	parts  [2]part                      // stdout, stderr
	tail   []byte                       // the end of both, masked
	hidden bool                         // nothing of it may be seen at all

	waiting bool // somebody waits for a match while the command runs

	capture  []byte // stdout, if captures
	captures bool

	found chan struct{} // closed when either stream matches
}

// part is one stream of an output.
type part struct {
	masker  masker
	decoder decoder
	matcher *matcher // nil: nothing is expected, or its answer was given
}

// outputOptions says what an output does beside keeping its end.
type outputOptions struct {
	show    func(sandbox.Stream, string)
	expect  *regexp.Regexp
	waiting bool
	capture bool
	hidden  bool
}

func newOutput(m *mask, o outputOptions) *output {
	out := &output{mask: m, show: o.show, waiting: o.waiting, captures: o.capture, hidden: o.hidden, found: make(chan struct{})}
	if o.expect != nil {
		for i := range out.parts {
			out.parts[i].matcher = newMatcher(o.expect)
		}
	}
	return out
}

// write takes a piece of a stream.
func (o *output) write(s sandbox.Stream, p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := &o.parts[0]
	if s == sandbox.Stderr {
		k = &o.parts[1]
	}
	if k.matcher != nil && !o.matched() {
		if !o.waiting {
			k.matcher.write(p)
		} else if k.matcher.sofar(p) {
			close(o.found)
		}
	}
	if o.captures && s == sandbox.Stdout && len(o.capture) <= maxCapture {
		o.capture = append(o.capture, p[:min(len(p), maxCapture+1-len(o.capture))]...)
	}
	o.say(s, k.decoder.write(k.masker.write(o.mask, p)))
}

// finish shows what was held back, and ends what is looked for. What children
// of the command write later is still shown.
func (o *output) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, s := range []sandbox.Stream{sandbox.Stdout, sandbox.Stderr} {
		k := &o.parts[i]
		o.say(s, k.decoder.write(k.masker.flush(o.mask))+k.decoder.flush())
		if k.matcher != nil && !o.waiting && !o.matched() && k.matcher.matched() {
			close(o.found)
		}
		k.matcher = nil
	}
}

// matched reports whether either stream matched so far.
func (o *output) matched() bool {
	select {
	case <-o.found:
		return true
	default:
		return false
	}
}

// say keeps and shows text; o.mu is held.
func (o *output) say(s sandbox.Stream, text string) {
	if o.hidden || text == "" {
		return
	}
	o.tail = append(o.tail, text...)
	if len(o.tail) > 2*maxTail {
		o.tail = append(o.tail[:0], o.tail[len(o.tail)-maxTail:]...)
	}
	for o.show != nil && text != "" {
		n := len(text)
		if n > maxText {
			for n = maxText; !utf8.RuneStart(text[n]); n-- {
			}
		}
		o.show(s, text[:n])
		text = text[n:]
	}
}

// end returns the end of what was written: at most maxTail bytes, whole runes.
func (o *output) end() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hidden {
		return "(masked)\n"
	}
	t := o.tail
	if len(t) > maxTail {
		t = t[len(t)-maxTail:]
	}
	for len(t) > 0 && !utf8.RuneStart(t[0]) {
		t = t[1:]
	}
	return string(t)
}

// lastLines returns at most n lines and size bytes of the end of s.
func lastLines(s string, n, size int) string {
	s = strings.TrimRight(s, "\n")
	if s == "" {
		return ""
	}
	cut := false
	if len(s) > size {
		s, cut = strings.ToValidUTF8(s[len(s)-size:], ""), true
		if _, rest, ok := strings.Cut(s, "\n"); ok {
			s = rest
		}
	}
	lines := strings.Split(s, "\n")
	if len(lines) > n {
		lines, cut = lines[len(lines)-n:], true
	}
	if cut {
		lines = append([]string{"..."}, lines...)
	}
	return strings.Join(lines, "\n")
}
