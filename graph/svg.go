package graph

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// WriteSVG writes the picture as one SVG file without script and without any
// request to elsewhere. Title is its heading. Components with several services
// are drawn as one box, and by themselves below.
func (p *Picture) WriteSVG(w io.Writer, title string) error {
	s := svg{Writer: bufio.NewWriter(w), p: p}
	s.write(title)
	return s.Flush()
}

// svg writes one picture.
type svg struct {
	*bufio.Writer
	p *Picture
}

const (
	svgMargin = 20.0
	svgHead   = 96.0 // title, legend and headings of the columns
	svgLine   = 18.0
	aside     = 7.0 // below the middle of a box, where lines end that run backwards
)

const svgStyle = `
svg { background: #fbfbf9; font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color-scheme: light dark }
text { fill: #1c2024 } .h { font-size: 17px; font-weight: 600 } .m { font-size: 12px; fill: #5a6068 } .l { font-size: 12px }
.n { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace } .o { font-size: 10.5px; fill: #5a6068 }
.z { fill: #f2f2ee } .b { fill: #fff; stroke: #b9bec6 } .e { fill: none; stroke: #7d8794; stroke-opacity: .55 } .u { stroke: #b3261e; stroke-dasharray: 5 3 }
.unproven .b, .unowned .b { stroke-dasharray: 3 3; fill: none } .unpared .b { stroke-dasharray: 7 3 }
.cyclic .b { fill: #fdf3dd; stroke: #96690a } .blocking .b { fill: #fdeceb; stroke: #b3261e; stroke-width: 1.6 }
.g { fill: #1a7f4b } .c { fill: none; stroke: #4a6fa5; stroke-width: 2 } .w { fill: none; stroke: #8a9099; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
svg { background: #16181b } text { fill: #e6e8ea } .m, .o { fill: #a3abb5 } .z { fill: #1c1f23 } .b { fill: #24282d; stroke: #565d66 } .e { stroke: #8e98a5 } .u { stroke: #ff8a80 }
.cyclic .b { fill: #3a2f14; stroke: #d9a93a } .blocking .b { fill: #401d1b; stroke: #ff8a80 } .g { fill: #5cc98f } .c { stroke: #8fb3e8 } .w { stroke: #8a9099 }
}
`

func (s *svg) write(title string) {
	p := s.p
	at := p.outer.points()
	width, height := max(at.width, 640), at.height
	type panel struct {
		box int
		at  points
		y   float64
	}
	var panels []panel
	for i := range p.boxes {
		if b := &p.boxes[i]; b.inner != nil {
			n := panel{box: i, at: b.inner.points(), y: height + 2*svgLine}
			width = max(width, n.at.width)
			height = n.y + svgLine + n.at.height
			panels = append(panels, n)
		}
	}
	about := wrap(p.shown(), int(width/6.2))
	head := svgHead + svgLine*float64(len(about)-1)
	full, high := width+2*svgMargin, head+height+svgMargin
	fmt.Fprintf(s, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %g %g" role="img" aria-labelledby="t d">`+"\n", full, high, full, high)
	fmt.Fprintf(s, "<title id=\"t\">%s</title>\n<desc id=\"d\">%s What is needed lies left of what needs it.</desc>\n<style>%s</style>\n", text(title), text(p.shown()), svgStyle)
	fmt.Fprintf(s, "<text class=\"h\" x=\"%g\" y=\"30\">%s</text>\n", svgMargin, text(title))
	for i, line := range about {
		fmt.Fprintf(s, "<text class=\"m\" x=\"%g\" y=\"%g\">%s</text>\n", svgMargin, 49+svgLine*float64(i), text(line))
	}
	s.legend(svgMargin, head-30)
	fmt.Fprintf(s, "<g transform=\"translate(%g %g)\">\n", svgMargin, head)
	s.bands(&at)
	s.edges(&p.outer, &at, p.edges)
	for i := range p.boxes {
		s.box(i, &at)
	}
	s.WriteString("</g>\n")
	for _, n := range panels {
		b := &p.boxes[n.box]
		fmt.Fprintf(s, "<text class=\"l\" x=\"%g\" y=\"%g\">Inside %s: %s</text>\n", svgMargin, head+n.y, text(p.name(n.box)), text(b.sort()))
		fmt.Fprintf(s, "<g transform=\"translate(%g %g)\">\n", svgMargin, head+n.y+svgLine/2)
		s.edges(b.inner, &n.at, b.edges)
		for m, service := range b.services {
			class := ""
			if slices.Contains(p.graph.Needs(service), service) {
				class = " cyclic"
			}
			s.service(&p.graph.services[service], class, b.inner, &n.at, m)
		}
		s.WriteString("</g>\n")
	}
	s.WriteString("</svg>\n")
}

// shown says how much of the graph the picture shows: all of it, some of it
// within components that are drawn as one.
func (p *Picture) shown() string {
	inside, closed, within, all := 0, 0, 0, 0
	for i := range p.boxes {
		if n := len(p.boxes[i].services); n > 1 {
			inside += n
			closed++
		}
	}
	for s, b := range p.boxOf {
		for _, n := range p.graph.Needs(s) {
			all++
			if p.boxOf[n] == b && len(p.boxes[b].services) > 1 {
				within++
			}
		}
	}
	out := fmt.Sprintf("Showing %s and %s.", plural(len(p.boxOf), "service"), plural(all, "need"))
	if closed > 0 {
		out += fmt.Sprintf(" %s and %s among them are drawn as %s, and by themselves below.", plural(inside, "service"), plural(within, "need"), plural(closed, "box"))
	}
	return out
}

func plural(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "x"):
		noun += "e"
	}
	return count(n) + " " + noun + "s"
}

func (s *svg) legend(x, y float64) {
	for _, item := range []struct {
		state State
		text  string
		width float64
	}{{Proven, "proven", 76}, {Claimed, "claimed: has a recipe", 160}, {Unpared, "unpared: allows everything", 196}, {Unproven, "assumed: no recipe, or not ours", 210}} {
		s.mark(item.state, x+6, y)
		fmt.Fprintf(s, "<text class=\"m\" x=\"%g\" y=\"%g\">%s</text>\n", x+16, y+4, item.text)
		x += item.width
	}
}

// bands tints every second layer and writes the headings.
func (s *svg) bands(at *points) {
	o := &s.p.outer
	counts := make([]int, len(o.bands))
	for i := range s.p.boxes {
		counts[s.p.boxes[i].layer] += len(s.p.boxes[i].services)
	}
	for l, band := range o.bands {
		first, last := band.first, band.first+band.count-1
		left := at.x[first] - o.gutter[first]/2
		right := at.x[last] + o.colWidth[last] + o.gutter[last+1]/2
		if l%2 == 0 {
			fmt.Fprintf(s, "<rect class=\"z\" x=\"%g\" y=\"-18\" width=\"%g\" height=\"%g\"/>\n", left, right-left, at.height+18)
		}
		fmt.Fprintf(s, "<text class=\"m\" x=\"%g\" y=\"-5\">Layer %d · %s</text>\n", at.x[first], l+1, count(counts[l]))
	}
}

// edges draws each trunk once, and each edge's way to it.
func (s *svg) edges(o *sheet, at *points, edges [][2]int32) {
	middle := func(b int32) float64 { return at.y[o.row[b]] + cellHeight/2 }
	left := func(c int32) float64 { return at.x[c] }
	right := func(c int32) float64 { return at.x[c] + o.colWidth[c] }
	curve := func(class string, x0, y0, x1, y1 float64) {
		m := (x0 + x1) / 2
		fmt.Fprintf(s, "<path class=\"%s\" d=\"M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f\"/>\n", class, x0, y0, m, y0, m, y1, x1, y1)
	}
	type reach struct{ left, right int32 }
	far := map[int32]reach{}
	for _, e := range edges {
		from, to := e[0], e[1]
		a, b := o.col[from], o.col[to]
		switch {
		case a == b+1:
			curve("e", left(a), middle(from), right(b), middle(to))
		case a > b:
			curve("e", left(a), middle(from), right(a-1), o.laneY(at, to))
		case a+1 == b:
			curve("e u", right(a), middle(from)+aside, left(b), middle(to)+aside)
		case a < b:
			curve("e u", right(a), middle(from)+aside, left(a+1), o.laneY(at, to))
		default:
			x := left(a) - o.gutter[a]/2
			fmt.Fprintf(s, "<path class=\"e u\" d=\"M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f\"/>\n", left(a), middle(from), x, middle(from), x, middle(to), left(b), middle(to))
		}
		r, ok := far[to]
		if !ok {
			r = reach{b, b}
		}
		far[to] = reach{min(r.left, a+1), max(r.right, a-1)}
	}
	for b := range int32(len(o.col)) {
		r, ok := far[b]
		if !ok {
			continue
		}
		c, y := o.col[b], o.laneY
		if r.right > c {
			curve("e", left(c+1), y(at, b), right(c), middle(b))
			fmt.Fprintf(s, "<path class=\"e\" d=\"M%.1f %.1fH%.1f\"/>\n", left(c+1), y(at, b), right(r.right))
		}
		if r.left < c {
			curve("e u", right(c-1), y(at, b), left(c), middle(b)+aside)
			fmt.Fprintf(s, "<path class=\"e u\" d=\"M%.1f %.1fH%.1f\"/>\n", right(c-1), y(at, b), left(r.left))
		}
	}
}

// box draws a component.
func (s *svg) box(i int, at *points) {
	o, b := &s.p.outer, &s.p.boxes[i]
	class := ""
	if b.cyclic {
		class = " cyclic"
	}
	if b.blocking {
		class += " blocking"
	}
	if len(b.services) == 1 {
		s.service(&s.p.graph.services[b.services[0]], class, o, at, i)
		return
	}
	var names []string
	for _, m := range b.services {
		names = append(names, s.p.graph.services[m].Name)
	}
	x, y, w := at.x[o.col[i]], at.y[o.row[i]], o.colWidth[o.col[i]]
	fmt.Fprintf(s, "<g class=\"many%s\"><title>%s</title>", class, text(b.sort()+": "+strings.Join(names, ", ")))
	fmt.Fprintf(s, `<rect class="b" x="%g" y="%g" width="%g" height="%g" rx="6"/>`, x+3, y+3, w, cellHeight)
	fmt.Fprintf(s, `<rect class="b" x="%g" y="%g" width="%g" height="%g" rx="6"/>`, x, y, w, cellHeight)
	fmt.Fprintf(s, `<text class="n" x="%g" y="%g">⟳</text>`, x+9, y+cellHeight/2+4)
	name, below := s.p.label(i)
	s.lines(name, below, x, y, w)
	s.WriteString("</g>\n")
}

// service draws a service as box i of a sheet.
func (s *svg) service(v *Service, class string, o *sheet, at *points, i int) {
	about := v.Name + ", " + stateWords(v)
	if v.Owner != "" {
		about += ", owned by " + v.Owner
	}
	if v.File != "" {
		about += ", " + v.File + ":" + strconv.Itoa(v.Line)
	}
	x, y, w := at.x[o.col[i]], at.y[o.row[i]], o.colWidth[o.col[i]]
	fmt.Fprintf(s, "<g class=\"%s%s\"><title>%s</title>", text(string(v.State)), class, text(about))
	fmt.Fprintf(s, `<rect class="b" x="%g" y="%g" width="%g" height="%g" rx="6"/>`, x, y, w, cellHeight)
	s.mark(v.State, x+14, y+cellHeight/2)
	below := v.Owner
	if class != "" {
		below = strings.TrimPrefix(below+" · needs itself", " · ")
	}
	s.lines(v.Name, below, x, y, w)
	s.WriteString("</g>\n")
}

// lines writes the two lines of a box.
func (s *svg) lines(name, below string, x, y, w float64) {
	fmt.Fprintf(s, "<text class=\"n\" x=\"%g\" y=\"%g\">%s</text>", x+28, y+15.5, text(fit(name, (w-cellInset)/nameWidth)))
	if below != "" {
		fmt.Fprintf(s, "<text class=\"o\" x=\"%g\" y=\"%g\">%s</text>", x+28, y+28.5, text(fit(below, (w-cellInset)/smallWidth)))
	}
}

// mark draws the sign of a state, which differs in shape and not only in colour.
func (s *svg) mark(state State, x, y float64) {
	switch state {
	case Proven:
		fmt.Fprintf(s, `<circle class="g" cx="%g" cy="%g" r="5"/>`, x, y)
	case Claimed:
		fmt.Fprintf(s, `<circle class="c" cx="%g" cy="%g" r="4.5"/>`, x, y)
	case Unpared:
		fmt.Fprintf(s, `<path class="c" d="M%g %gl5 5 5-5-5-5z"/>`, x-5, y)
	default:
		fmt.Fprintf(s, `<path class="w" d="M%g %gh8"/>`, x-4, y)
	}
}

func stateWords(s *Service) string {
	switch s.State {
	case Unpared:
		return "unpared: its recipe allows everything"
	case Unproven:
		return "unproven: without a recipe"
	case Unowned:
		return "unowned: declared by nobody"
	}
	return string(s.State)
}

// fit cuts a text to so many characters, visibly, and in its middle: names
// differ at their ends.
func fit(s string, width float64) string {
	n := max(int(width), 3)
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	runes := []rune(s)
	return string(runes[:n/2]) + "…" + string(runes[len(runes)-(n-1)/2:])
}

// wrap breaks a text into lines at blanks.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// text escapes what recipes say for HTML and XML, in elements and attributes.
// Characters that do not print, or that turn writing around, are replaced: they
// could make a name look like another one, and XML refuses some of them.
func text(s string) string { return html.EscapeString(plain(s)) }

// plain replaces what does not print.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r == utf8.RuneError, !unicode.IsGraphic(r), unicode.Is(unicode.Bidi_Control, r):
			return '\ufffd'
		}
		return r
	}, s)
}
