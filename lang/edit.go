package lang

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"github.com/bazelbuild/buildtools/build"

	"bj/lang/diag"
)

// A CallEdit replaces one call that is an element of a list.
type CallEdit struct {
	// Pos is where the call begins, or its parenthesis.
	Pos diag.Pos
	// With are the expressions that take its place; without any the element is
	// removed, and its comments with it.
	With []string
}

// EditCalls changes elements of lists in the text of a file, and nothing else:
// comments and layout stay as they are, but for tabs that indent, and what was
// formatted still is. Calls
// that are not written as elements of a list are missed, and returned. The error
// is a diag.List if the text cannot be parsed.
func EditCalls(file string, src []byte, edits []CallEdit) (out []byte, missed []diag.Pos, err error) {
	formatted, err := Format(file, src)
	if err != nil {
		return nil, nil, err
	}
	f, err := layout(file, src)
	if err != nil {
		return nil, nil, err
	}
	// Where a tab begins a statement's line, what is laid out stands further right.
	written, blanks := bytes.Split(src, []byte{'\n'}), bytes.Split(untab(src), []byte{'\n'})
	asked := edits
	edits = slices.Clone(edits)
	for i, e := range edits {
		if n := e.Pos.Line - 1; n >= 0 && n < len(written) {
			edits[i].Pos.Col += len(blanks[n]) - len(written[n])
		}
	}
	src = untab(src)
	type place struct {
		start, end int // of the call
		own        int // where its own comments begin, or start
		with       []string
	}
	var places []place
	found := make([]bool, len(edits))
	build.Walk(f, func(x build.Expr, _ []build.Expr) {
		list, ok := x.(*build.ListExpr)
		if !ok {
			return
		}
		for _, el := range list.List {
			call, ok := el.(*build.CallExpr)
			if !ok {
				continue
			}
			start, end := call.Span()
			i := slices.IndexFunc(edits, func(e CallEdit) bool {
				at := func(p build.Position) bool { return p.Line == e.Pos.Line && p.LineRune == e.Pos.Col }
				return at(start) || at(call.ListStart)
			})
			if i < 0 || found[i] {
				continue
			}
			found[i] = true
			p := place{start: start.Byte, end: end.Byte, own: start.Byte, with: edits[i].With}
			first := build.Expr(call)
			for first != nil { // comments belong to the leftmost leaf
				if before := first.Comment().Before; len(before) > 0 {
					p.own = min(p.own, before[0].Start.Byte)
				}
				c, ok := first.(*build.CallExpr)
				if !ok {
					break
				}
				first = c.X
			}
			places = append(places, p)
		}
	})
	for i, ok := range found {
		if !ok {
			missed = append(missed, asked[i].Pos)
		}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(b.start, a.start) })
	out = bytes.Clone(src)
	for _, p := range places {
		if len(p.with) > 0 {
			sep := ", "
			line := out[bytes.LastIndexByte(out[:p.start], '\n')+1 : p.start]
			text := strings.Join(p.with, sep)
			switch indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]; {
			case len(bytes.TrimSpace(line)) == 0:
				text = strings.Join(p.with, ",\n"+string(line))
			case len(p.with) > 1 && p.start > 0 && out[p.start-1] == '[' && p.end < len(out) && out[p.end] == ']': // the only one
				text = "\n" + string(indent) + "    " + strings.Join(p.with, ",\n"+string(indent)+"    ") + ",\n" + string(indent)
			}
			out = slices.Replace(out, p.start, p.end, []byte(text)...)
			continue
		}
		from, to := elementSpan(out, p.own, p.start, p.end)
		out = slices.Delete(out, from, to)
	}
	if bytes.Equal(formatted, src) {
		out, err = Format(file, out)
	} else {
		_, err = Format(file, out)
	}
	return out, missed, err
}

// elementSpan returns what goes with an element: its whole lines where it has
// them for itself, else the comma beside it.
func elementSpan(src []byte, own, start, end int) (from, to int) {
	blank := func(b byte) bool { return b == ' ' || b == '\t' }
	after := end
	skip := func() {
		for after < len(src) && blank(src[after]) {
			after++
		}
	}
	skip()
	if after < len(src) && src[after] == ',' {
		after++
		skip()
	}
	lineStart := bytes.LastIndexByte(src[:start], '\n') + 1
	if len(bytes.TrimSpace(src[lineStart:start])) == 0 {
		rest := after
		if rest < len(src) && src[rest] == '#' {
			for rest < len(src) && src[rest] != '\n' {
				rest++
			}
		}
		if rest < len(src) && src[rest] == '\n' {
			return bytes.LastIndexByte(src[:own], '\n') + 1, rest + 1
		}
	}
	if after < len(src) && src[after] == ']' { // the last one takes the comma before it
		before := start
		for before > 0 && (blank(src[before-1]) || src[before-1] == '\n') {
			before--
		}
		if before > 0 && src[before-1] == ',' {
			for before--; before > 0 && blank(src[before-1]); before-- {
			}
			return before, end
		}
		return start, end
	}
	if after < len(src) && src[after] == '\n' { // the last of its line
		for start > 0 && blank(src[start-1]) {
			start--
		}
	}
	return start, after
}
