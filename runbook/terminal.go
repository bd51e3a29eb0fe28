package runbook

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"
)

// unescape are backslashes of Markdown.
var unescape = regexp.MustCompile("\\\\([\\\\`*_\\[\\]<>&|~!$#+=:.)-])")

// Terminal writes a page's Markdown for reading on a terminal of that width:
// words wrapped, commands as they are, without the marks of Markdown. Colour
// makes headings bold.
func Terminal(w io.Writer, markdown []byte, width int, color bool) error {
	if width < 20 {
		width = 80
	}
	bold := func(s string) string {
		if color {
			return "\x1b[1m" + s + "\x1b[0m"
		}
		return s
	}
	var b strings.Builder
	fence := ""
	var paragraph []string
	flush := func() {
		if len(paragraph) == 0 {
			return
		}
		words := strings.Fields(plain(strings.Join(paragraph, " ")))
		indent, n := "", 0
		if strings.HasPrefix(strings.TrimLeft(paragraph[0], " "), "- ") {
			indent = strings.Repeat(" ", len(paragraph[0])-len(strings.TrimLeft(paragraph[0], " ")))
			b.WriteString(indent)
			n = len(indent)
			indent += "  "
		}
		for i, word := range words {
			size := utf8.RuneCountInString(word)
			switch {
			case i == 0:
			case n+1+size > width:
				b.WriteString("\n" + indent)
				n = len(indent)
			default:
				b.WriteByte(' ')
				n++
			}
			b.WriteString(word)
			n += size
		}
		b.WriteByte('\n')
		paragraph = nil
	}
	for line := range strings.Lines(string(markdown)) {
		line = strings.TrimSuffix(line, "\n")
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case fence != "":
			if line == fence {
				fence = ""
				continue
			}
			b.WriteString(line + "\n") // commands stay at the margin, to be copied
		case strings.HasPrefix(line, "```"):
			flush()
			fence = line[:len(line)-len(strings.TrimLeft(line, "`"))]
		case strings.HasPrefix(line, "#"):
			flush()
			b.WriteString(bold(plain(strings.TrimLeft(line, "# "))) + "\n")
		case strings.HasPrefix(line, "| ---"):
		case strings.HasPrefix(line, "|"):
			flush()
			cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "| "), `\|`, "\x00"), " | ")
			b.WriteString("  " + plain(strings.ReplaceAll(strings.Join(cells, "  "), "\x00", "|")) + "\n")
		case trimmed == "":
			flush()
			b.WriteByte('\n')
		case strings.HasPrefix(trimmed, "- "):
			flush()
			paragraph = []string{line}
		default:
			paragraph = append(paragraph, line)
		}
	}
	flush()
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing a runbook: %w", err)
	}
	return nil
}

// links are those between pages.
var links = regexp.MustCompile(`\[((?:\\.|[^\]\\])*)\]\([^)\s]*\)`)

// plain takes the marks of Markdown away.
func plain(s string) string {
	s = links.ReplaceAllString(s, "$1")
	s = strings.ReplaceAll(s, "**", "")
	return unescape.ReplaceAllString(s, "$1")
}
