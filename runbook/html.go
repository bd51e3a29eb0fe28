package runbook

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the parts of a page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/netip"
	"regexp"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	east "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
)

var (
	//go:embed page/page.css
	pageCSS string
	//go:embed page/copy.js
	copyJS string
	//go:embed page/search.js
	searchJS string
)

// markdown makes the HTML. It leaves raw HTML and dangerous links out, of which
// there are none.
func markdown() goldmark.Markdown {
	return goldmark.New(goldmark.WithExtensions(extension.NewTable(extension.WithTableCellAlignMethod(extension.TableCellAlignNone))), goldmark.WithParserOptions(parser.WithAutoHeadingID()))
}

// HTML makes one file of a page that requests nothing: its style and script are
// inside, and its Content-Security-Policy lets nothing else in. Without script
// it is whole.
func HTML(p Page) ([]byte, error) {
	body, err := render(p.Markdown)
	if err != nil {
		return nil, err
	}
	return document(p.Title, body, []string{pageCSS}, copyJS, ""), nil
}

// IndexHTML makes the HTML of the index, with a search and the picture of the
// recovery graph: an SVG of ours, which has one style.
func IndexHTML(p Page, entries []Entry, svg string) ([]byte, error) {
	body, err := render(p.Markdown)
	if err != nil {
		return nil, err
	}
	if entries == nil {
		entries = []Entry{}
	}
	data, err := json.Marshal(entries) // which escapes <, > and &
	if err != nil {
		return nil, fmt.Errorf("encoding the search: %w", err)
	}
	search := `<div id="search" class="search" hidden><label for="q">Search services, owners, machines, addresses, steps and tools</label>` +
		`<input id="q" type="search" autocomplete="off"><p id="found" role="status"></p><ul id="hits"></ul></div>` + "\n"
	if at := strings.Index(body, "<section>"); at >= 0 {
		body = body[:at] + search + body[at:]
	} else {
		body += search
	}
	styles := []string{pageCSS}
	if _, rest, ok := strings.Cut(svg, "<style>"); ok {
		if style, _, ok := strings.Cut(rest, "</style>"); ok {
			styles = append(styles, style)
		}
	}
	body += "<section>\n<h2 id=\"picture\">The recovery graph</h2>\n<div class=\"picture\" tabindex=\"0\" role=\"group\" aria-labelledby=\"picture\">" + svg + "</div>\n</section>\n"
	return document(p.Title, body, styles, searchJS, string(data)), nil
}

// document is a page around its body. Data is JSON for the script, or empty.
func document(title, body string, styles []string, script, data string) []byte {
	hash := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	var allowed []string
	for _, s := range styles {
		allowed = append(allowed, hash(s))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src %s; script-src %s; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>%s</title>
<style>%s</style>
</head>
<body>
<main>
%s</main>
`, strings.Join(allowed, " "), hash(script), html.EscapeString(title), pageCSS, body)
	if data != "" {
		fmt.Fprintf(&b, "<script type=\"application/json\" id=\"entries\">%s</script>\n", data)
	}
	fmt.Fprintf(&b, "<script>%s</script>\n</body>\n</html>\n", script)
	return b.Bytes()
}

// codeSpan is how goldmark writes one.
var codeSpan = regexp.MustCompile(`<code>([^<]*)</code>`)

// digest is a SHA-256.
var digest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// codeBlock is how goldmark writes a fence with a language.
var codeBlock = regexp.MustCompile(`<pre><code class="language-(sh|text)">`)

// render makes HTML of Markdown: a section for each heading, so that a step can
// stay on one printed page.
func render(source []byte) (string, error) {
	md := markdown()
	doc := md.Parser().Parse(text.NewReader(source))
	_ = ast.Walk(doc, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if l, ok := n.(*ast.Link); ok && entering && !bytes.Contains(l.Destination, []byte("/")) {
			if name, ok := bytes.CutSuffix(l.Destination, []byte(".md")); ok {
				l.Destination = append(bytes.Clone(name), ".html"...)
			}
		}
		return ast.WalkContinue, nil
	})
	var b strings.Builder
	var contents []string
	open := []int{}
	tables, blocks := 0, 0
	for n := doc.FirstChild(); n != nil; n = n.NextSibling() {
		if h, ok := n.(*ast.Heading); ok && h.Level > 1 {
			for len(open) > 0 && open[len(open)-1] >= h.Level {
				b.WriteString("</section>\n")
				open = open[:len(open)-1]
			}
			open = append(open, h.Level)
			if h.Level == 2 {
				contents = append(contents, entry(h, source))
			}
			if h.Level > 2 && leaf(h) {
				b.WriteString("<section class=\"step\">\n")
			} else {
				b.WriteString("<section>\n")
			}
		}
		var part bytes.Buffer
		if err := md.Renderer().Render(&part, source, n); err != nil {
			return "", fmt.Errorf("rendering a page: %w", err)
		}
		s := part.String()
		switch n := n.(type) {
		case *ast.Paragraph:
			if c := class(n, source); c != "" {
				s = strings.Replace(s, "<p>", `<p class="`+c+`">`, 1)
			}
		case *east.Table: // which may be wider than a phone
			tables++
			s = codeSpan.ReplaceAllStringFunc(s, func(m string) string {
				text := codeSpan.FindStringSubmatch(m)[1]
				if _, err := netip.ParseAddr(text); err == nil {
					return `<code class="address">` + text + "</code>"
				}
				if digest.MatchString(text) {
					return `<code class="digest">` + text + "</code>"
				}
				return m
			})
			s = labelled(s)
			s = fmt.Sprintf("<div class=\"table\" tabindex=\"0\" role=\"group\" aria-label=\"Table %d\">\n%s</div>\n", tables, s)
		case *ast.FencedCodeBlock:
			blocks++
			s = codeBlock.ReplaceAllStringFunc(s, func(m string) string {
				language := codeBlock.FindStringSubmatch(m)[1]
				name := map[string]string{"sh": "Command", "text": "Output"}[language]
				return fmt.Sprintf(`<pre class="%s" tabindex="0" role="group" aria-label="%s %d"><code>`, language, name, blocks)
			})
			s = lines(s)
		}
		b.WriteString(s)
	}
	for range open {
		b.WriteString("</section>\n")
	}
	body := b.String()
	if at := strings.Index(body, "<section>"); at >= 0 && len(contents) > 1 && len(contents) <= maxContents {
		body = body[:at] + "<nav aria-label=\"On this page\">\n<ul>\n" + strings.Join(contents, "") + "</ul>\n</nav>\n" + body[at:]
	}
	return body, nil
}

// tableCell is how goldmark writes the beginning of one.
var tableCell = regexp.MustCompile(`<th>(.*?)</th>|<td>`)

// labelled gives each cell of a table the words above its column: a phone shows
// a row as a list.
func labelled(table string) string {
	var heads []string
	n := 0
	return tableCell.ReplaceAllStringFunc(table, func(m string) string {
		if m != "<td>" {
			heads = append(heads, m[len("<th>"):len(m)-len("</th>")])
			return m
		}
		n++
		return fmt.Sprintf(`<td data-label="%s">`, heads[(n-1)%len(heads)])
	})
}

// option is one of a command, which nothing may break after its dashes.
var option = regexp.MustCompile(`(^|[ (\[])(--?[A-Za-z0-9][A-Za-z0-9-]{0,30})`)

// lines makes each line of a block of code an element, so that one that goes on
// below itself is told from two. The text stays what it is.
func lines(block string) string {
	before, rest, _ := strings.Cut(block, "<code>")
	text, after, _ := strings.Cut(rest, "</code>")
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("<span>" + option.ReplaceAllString(line, `$1<span>$2</span>`) + "</span>")
	}
	return before + "<code>" + b.String() + "</code>" + after
}

// maxContents is how many sections a page may have whose list stands on top of
// it: a page with more has a table there.
const maxContents = 12

// entry is a section in the list on top.
func entry(h *ast.Heading, source []byte) string {
	id, _ := h.AttributeString("id")
	name, _ := id.([]byte)
	return fmt.Sprintf("<li><a href=\"#%s\">%s</a></li>\n", html.EscapeString(string(name)), html.EscapeString(words(h, source)))
}

// words are the text of what is inside n.
func words(n ast.Node, source []byte) string {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		switch n := n.(type) {
		case *ast.Text:
			if entering {
				b.Write(util.UnescapePunctuations(n.Segment.Value(source)))
			}
		case *ast.String:
			if entering {
				b.Write(n.Value)
			}
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}

// class is that of a paragraph that has to catch the eye: a stamp, or a danger.
// Strong words are never a recipe's.
func class(p *ast.Paragraph, source []byte) string {
	var strong []string
	for n := p.FirstChild(); n != nil; n = n.NextSibling() {
		if e, ok := n.(*ast.Emphasis); ok && e.Level == 2 {
			strong = append(strong, words(e, source))
		}
	}
	if len(strong) == 0 || p.FirstChild().Kind() != ast.KindEmphasis {
		return ""
	}
	under := ""
	if h, ok := p.PreviousSibling().(*ast.Heading); ok {
		under = words(h, source)
	}
	switch first := strong[0]; {
	case strings.HasPrefix(first, "Danger: "):
		return "danger"
	case under != verdictTitle:
		return ""
	case strings.HasPrefix(first, "Not proven"):
		return "stamp failed"
	case strings.HasPrefix(first, "Proven") && len(strong) == 1:
		return "stamp proven"
	}
	return "stamp open"
}

// leaf reports whether no deeper heading follows before the next one like h.
func leaf(h *ast.Heading) bool {
	for n := h.NextSibling(); n != nil; n = n.NextSibling() {
		if next, ok := n.(*ast.Heading); ok {
			return next.Level <= h.Level
		}
	}
	return true
}
