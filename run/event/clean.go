package event

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes text of others harmless to show: control characters other than
// newline and tab, and those that reorder text, are written as \u001b or
// \u202e, and what is not UTF-8 becomes U+FFFD. JSON means the same before and
// after.
func Clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\r\n", "\n")
	if !strings.ContainsFunc(s, Harmful) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if Harmful(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// Harmful reports whether a terminal or a page would do something else with r
// than show it.
func Harmful(r rune) bool {
	switch {
	case r < utf8.RuneSelf:
		return (r < 0x20 || r == 0x7f) && r != '\n' && r != '\t'
	case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == 0x2028, r == 0x2029:
		return true
	}
	return false
}
