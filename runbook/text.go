package runbook

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"bj/fleet"
)

const (
	maskText   = "***"
	minMasked  = 4   // bytes; a shorter value would mask half of every page
	maxLine    = 240 // runes of a line of output
	maxLines   = 30  // of output
	hiddenText = "(output not shown: the step is masked)"
)

// secrets are the values that no page may have.
type secrets struct {
	long   *strings.Replacer // the longest first
	short  []*regexp.Regexp  // of those that are hidden only where they are words of their own
	broken map[string]error  // label → why a secret of it is not known
}

// newSecrets collects those of the whole fleet: what a supplier hands out is as
// secret elsewhere.
func newSecrets(f *fleet.Fleet, read func(path string) ([]byte, error)) *secrets {
	x := &secrets{broken: map[string]error{}}
	var long, short []string
	add := func(s string) {
		switch {
		case strings.Contains(maskText, s):
		case len(s) < minMasked:
			short = append(short, s)
		default:
			long = append(long, s)
		}
	}
	for _, r := range f.Recipes {
		for _, s := range r.Secrets {
			value := s.Value
			if s.Source != "" {
				data, err := read(s.Source)
				if err != nil {
					x.broken[r.Label] = fmt.Errorf("reading the secret %s of %s: %w", s.Name, r.Label, err)
					continue
				}
				value = string(data)
			}
			add(value)
			add(strings.TrimRight(value, "\r\n"))
			if lines := strings.Split(value, "\n"); len(lines) > 1 {
				for _, line := range lines {
					if line = strings.TrimSpace(line); len(line) >= minMasked {
						add(line)
					}
				}
			}
		}
	}
	slices.SortFunc(long, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs []string
	for _, s := range slices.Compact(long) {
		pairs = append(pairs, s, maskText)
	}
	x.long = strings.NewReplacer(pairs...)
	slices.Sort(short)
	for _, s := range slices.Compact(short) {
		x.short = append(x.short, regexp.MustCompile(`(^|[^0-9A-Za-z])`+regexp.QuoteMeta(strings.ToValidUTF8(s, "\uFFFD"))+`($|[^0-9A-Za-z])`))
	}
	return x
}

// hide returns s without secrets.
func (x *secrets) hide(s string) string {
	s = x.long.Replace(s)
	for _, w := range x.short {
		for w.MatchString(s) { // matches share the character between them
			s = w.ReplaceAllString(s, "${1}"+maskText+"${2}")
		}
	}
	return s
}

// ink is what all text of others passes before it is written.
type ink struct {
	secrets  *secrets // nil: there are none
	machines *renaming
}

// newInk returns the ink of a recipe.
func (b *Book) newInk(r *fleet.Recipe) (*ink, error) {
	if err := b.secrets.broken[r.Label]; err != nil {
		return nil, err
	}
	names, err := b.Machines.renaming(b.Fleet, r)
	if err != nil {
		return nil, err
	}
	return &ink{b.secrets, names}, nil
}

func (k *ink) mask(s string) string {
	if k.secrets == nil {
		return s
	}
	return k.secrets.hide(s)
}

// verbatim is for what is pasted: nothing but secrets and names changes.
func (k *ink) verbatim(s string) string { return k.machines.text(k.mask(s)) }

// shown is for what is read.
func (k *ink) shown(s string) string { return k.mask(clean(k.verbatim(s))) }

// line is shown, in one line.
func (k *ink) line(s string) string { return k.mask(strings.Join(strings.Fields(k.shown(s)), " ")) }

// escapes are sequences that terminals take as commands.
var escapes = regexp.MustCompile("\x1b\\[[0-9;:?<=>]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|\x1b[PX^_][^\x1b]*\x1b\\\\")

// clean makes text harmless to read: escape sequences are taken out, other
// control characters and invisible ones become visible. Newlines and tabs stay.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.ReplaceAll(escapes.ReplaceAllString(s, ""), "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == '\r':
			return '\n' // a line that was written over
		case r < 0x20:
			return 0x2400 + r
		case r == 0x7f:
			return 0x2421
		case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r), r == 0x2028, r == 0x2029, r == 0x115F, r == 0x1160, r == 0x3164, r == 0xFFA0:
			return '\uFFFD'
		}
		return r
	}, s)
}

// pasteable reports whether text survives a terminal and an editor as it is.
func pasteable(s string) bool {
	if !utf8.ValidString(s) || strings.ContainsRune(s, '\uFFFD') || clean(s) != s {
		return false
	}
	for line := range strings.Lines(s) {
		if len(line) > 1000 { // terminals cut lines at some 4000 bytes
			return false
		}
	}
	return true
}

// output is what was printed, short enough for a page: the end of it.
func (k *ink) output(s string) string {
	lines := strings.Split(strings.TrimRight(k.shown(s), "\n \t"), "\n")
	if n := len(lines) - maxLines; n > 0 {
		lines = append([]string{fmt.Sprintf("… (%d lines before)", n)}, lines[n:]...)
	}
	for i, line := range lines {
		if n := utf8.RuneCountInString(line); n > maxLine {
			lines[i] = fmt.Sprintf("%s… (%d more characters)", string([]rune(line)[:maxLine]), n-maxLine)
		}
	}
	return strings.Join(lines, "\n")
}

// special are the places at which Markdown would read words as markup.
var special = strings.NewReplacer(`\`, `\\`, "`", "\\`", "*", `\*`, "[", `\[`, "]", `\]`, "<", `\<`, ">", `\>`, "&", `\&`, "|", `\|`, "~", `\~`, "!", `\!`, "$", `\$`)

// lineStart is what begins a block.
var lineStart = regexp.MustCompile(`^(\s*)([-+=#:]|\d+[.)])`)

// underscore is one that is not inside a word.
var underscore = regexp.MustCompile(`(^|\W)_|_(\W|$)|__`)

// escape writes one line of plain text as Markdown.
func escape(s string) string {
	s = special.Replace(s)
	if underscore.MatchString(s) {
		s = strings.ReplaceAll(s, "_", `\_`)
	}
	if m := lineStart.FindStringSubmatchIndex(s); m != nil {
		s = s[:m[5]-1] + `\` + s[m[5]-1:]
	}
	return s
}

// Words writes text of others as one line of Markdown that says it and does
// nothing else, also in a table.
func Words(s string) string { return escape(strings.Join(strings.Fields(clean(s)), " ")) }

// inline writes one line of words, in which `this` is code, as docstrings have it.
func inline(s string) string {
	parts := strings.Split(s, "`")
	if len(parts)%2 == 0 || strings.Contains(s, "``") {
		return escape(s)
	}
	var b strings.Builder
	for i, p := range parts {
		switch {
		case i%2 == 1:
			b.WriteString(code(p))
		case i == 0:
			b.WriteString(escape(p))
		default:
			t := escape("x" + p) // not the beginning of a line
			b.WriteString(t[1:])
		}
	}
	return b.String()
}

// code writes a code span; s has no newline.
func code(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\t' }), " ")
	if s == "" {
		return "(empty)"
	}
	tick := strings.Repeat("`", longest(s, '`')+1)
	if strings.HasPrefix(s, "`") || strings.HasSuffix(s, "`") || strings.HasPrefix(s, " ") && strings.HasSuffix(s, " ") && strings.Trim(s, " ") != "" {
		s = " " + s + " "
	}
	return tick + s + tick
}

// cell is Markdown in a table, where a bar that no backslash escapes would end
// the cell, in code, too.
func cell(markdown string) string {
	var b strings.Builder
	escaped := false
	for _, r := range markdown {
		if r == '|' && !escaped {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
		escaped = r == '\\' && !escaped
	}
	return b.String()
}

// fence writes a block of code.
func fence(language, s string) string {
	marks := strings.Repeat("`", max(3, longest(s, '`')+1))
	return marks + language + "\n" + strings.TrimSuffix(s, "\n") + "\n" + marks + "\n"
}

// longest is the length of the longest run of c in s.
func longest(s string, c rune) int {
	most, n := 0, 0
	for _, r := range s {
		if n++; r != c {
			n = 0
		}
		most = max(most, n)
	}
	return most
}

// prose writes a docstring: paragraphs, and lists whose items begin with "- ".
func (k *ink) prose(s string) string {
	var b strings.Builder
	for _, paragraph := range regexp.MustCompile(`\n[ \t]*\n`).Split(strings.TrimSpace(k.shown(s)), -1) {
		// Each is words, which may go on in the next line, as may a code span.
		var parts []string
		list := false
		for line := range strings.Lines(paragraph) {
			line = strings.TrimSpace(line)
			item, begins := strings.CutPrefix(line, "- ")
			switch {
			case line == "":
			case begins || len(parts) == 0:
				if begins && !list && len(parts) > 0 {
					b.WriteString(wrap(inline(k.line(parts[0])), 88) + "\n\n") // what introduces the list
					parts = nil
				}
				list = list || begins
				parts = append(parts, item)
			default:
				parts[len(parts)-1] += " " + line
			}
		}
		for i, part := range parts {
			text := inline(k.line(part))
			if !list {
				text = wrap(text, 88)
			} else {
				text = "- " + text
			}
			b.WriteString(text + "\n")
			if i == len(parts)-1 {
				b.WriteString("\n")
			}
		}
	}
	return b.String()
}

// wrap breaks words into lines of at most width bytes. A line that would begin
// like a block stays with the one before.
func wrap(s string, width int) string {
	var b strings.Builder
	n := 0
	inCode := false
	for i, word := range strings.Split(s, " ") {
		switch {
		case i == 0:
		case n+1+len(word) > width && !inCode && !lineStart.MatchString(word) && !strings.HasPrefix(word, ">"):
			b.WriteByte('\n')
			n = 0
		default:
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += len(word)
		if strings.Count(strings.ReplaceAll(word, "\\`", ""), "`")%2 == 1 {
			inCode = !inCode
		}
	}
	return b.String()
}
