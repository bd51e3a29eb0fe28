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
	var rows [][]string // of a table
	flush := func() {
		writeTable(&b, rows, width)
		rows = nil
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
			if len(paragraph) > 0 {
				flush()
			}
			rows = append(rows, cells(line))
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

// cells are those of a row of a table, which may hold \|.
func cells(line string) []string {
	line = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "|"), "|")
	row := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), "|")
	for i, c := range row {
		row[i] = plain(strings.ReplaceAll(strings.TrimSpace(c), "\x00", "|"))
	}
	return row
}

func sum(all []int) (n int) {
	for _, x := range all {
		n += x
	}
	return n
}

// writeTable writes rows with their columns below each other. The last cell of a
// row is wrapped where there is room for it to be read.
func writeTable(b *strings.Builder, rows [][]string, width int) {
	var columns []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(columns) {
				columns = append(columns, 0)
			}
			columns[i] = max(columns[i], utf8.RuneCountInString(c))
		}
	}
	if all := sum(columns[:max(0, len(columns)-1)]) + 2*len(columns); all > width-20 { // a row is then a list
		for _, row := range rows[min(1, len(rows)):] {
			for i, c := range row {
				mark := "  "
				if i == 0 {
					mark = "- "
				}
				if i < len(rows[0]) {
					b.WriteString(mark + rows[0][i] + ": " + c + "\n")
				}
			}
		}
		return
	}
	for _, row := range rows {
		line, n := "", 0
		for i, c := range row {
			line, n = line+"  "+c, n+2
			if i < len(row)-1 {
				line += strings.Repeat(" ", columns[i]-utf8.RuneCountInString(c))
				n += columns[i]
				continue
			}
			room := width - n
			if room < 20 {
				continue
			}
			line = strings.TrimSuffix(line, c)
			used := 0
			for _, word := range strings.Fields(c) {
				size := utf8.RuneCountInString(word)
				switch {
				case used == 0:
				case used+1+size > room:
					line, used = strings.TrimRight(line, " ")+"\n"+strings.Repeat(" ", n), 0
				default:
					line, used = line+" ", used+1
				}
				line, used = line+word, used+size
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// links are those between pages.
var links = regexp.MustCompile(`\[((?:\\.|[^\]\\])*)\]\([^)\s]*\)`)

// plain takes the marks of Markdown away.
func plain(s string) string {
	s = links.ReplaceAllString(s, "$1")
	s = strings.ReplaceAll(s, "**", "")
	return unescape.ReplaceAllString(s, "$1")
}
