package lang

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"go.starlark.net/syntax"

	"bj/lang/diag"
)

// A sourceError is a text that is refused before it is parsed.
type sourceError struct {
	pos           diag.Pos
	message, hint string
}

func (e *sourceError) Error() string { return e.message }

// parse reads a file in bj's dialect. It refuses what could exhaust the stack
// of the recursive parser.
func parse(file string, src []byte) (*syntax.File, error) {
	if len(src) > maxSource {
		return nil, &sourceError{diag.Pos{File: file, Line: 1, Col: 1}, fmt.Sprintf("file is larger than %d KiB", maxSource>>10), "split it; load shares values between files"}
	}
	if bytes.HasPrefix(src, []byte("\uFEFF")) {
		return nil, &sourceError{diag.Pos{File: file, Line: 1, Col: 1}, "file begins with a byte order mark", "save it as UTF-8 without one"}
	}
	if !utf8.Valid(src) {
		line := 1 + bytes.Count(src[:invalidAt(src)], []byte{'\n'})
		return nil, &sourceError{diag.Pos{File: file, Line: line, Col: 1}, "file is not UTF-8", "save it as UTF-8"}
	}
	if pos, deep := nesting(src); deep {
		pos.File = file
		return nil, &sourceError{pos, fmt.Sprintf("nested more than %d levels deep", maxNesting), "name the inner parts"}
	}
	return fileOptions.Parse(file, src, 0)
}

func invalidAt(src []byte) int {
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(src)
}

// nesting finds the place where brackets, or chains of operators and keywords
// that the parser reads by recursion, are nested more deeply than maxNesting. Its
// reading of tokens is rough, and errs on the side of too few levels in
// ordinary files: strings and comments do not count.
func nesting(src []byte) (diag.Pos, bool) {
	// A cheap upper bound first: nearly every file ends here.
	if bytes.Count(src, []byte{'('})+bytes.Count(src, []byte{'['})+bytes.Count(src, []byte{'{'}) <= maxNesting && len(src) < 4096 {
		return diag.Pos{}, false
	}
	depth, chain, elifs := 0, 0, 0
	line, start := 1, 0
	at := func(i int) diag.Pos { return diag.Pos{Line: line, Col: utf8.RuneCount(src[start:i]) + 1} }
	for i := 0; i < len(src); {
		c := src[i]
		switch c {
		case '\n':
			i++
			line, start = line+1, i
			if depth == 0 && (i < 2 || src[i-2] != '\\') {
				chain = 0
			}
			continue
		case '#':
			for i < len(src) && src[i] != '\n' {
				i++
			}
			continue
		case '"', '\'':
			end := stringEnd(src, i)
			for ; i < end; i++ {
				if src[i] == '\n' {
					line, start = line+1, i+1
				}
			}
			continue
		case '(', '[', '{':
			if depth++; depth > maxNesting {
				return at(i), true
			}
		case ')', ']', '}':
			depth--
			chain = 0
		case ',', ':', '=', ';':
			if c != ':' {
				chain = 0
			}
		case '-', '+', '~', '*', '/', '%', '&', '|', '^', '<', '>', '.':
			chain++
		default:
			if isWord(c) {
				j := i
				for j < len(src) && isWord(src[j]) {
					j++
				}
				switch string(src[i:j]) {
				case "not", "lambda", "if", "else", "and", "or", "in":
					chain++
				case "elif": // the compiler is quadratic in their number
					if elifs++; elifs > 10*maxNesting {
						return at(i), true
					}
				}
				i = j
				continue
			}
		}
		if chain > 50*maxNesting {
			return at(i), true
		}
		i++
	}
	return diag.Pos{}, false
}

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c >= 0x80
}

// stringEnd returns the index after the string literal that begins at i.
func stringEnd(src []byte, i int) int {
	quote := src[i]
	raw := i > 0 && (src[i-1] == 'r' || src[i-1] == 'R')
	triple := bytes.HasPrefix(src[i:], []byte{quote, quote, quote})
	j := i + 1
	if triple {
		j = i + 3
	}
	for j < len(src) {
		switch {
		case src[j] == '\\':
			_ = raw // a backslash hides a quote in raw strings too
			j += 2
			continue
		case triple && bytes.HasPrefix(src[j:], []byte{quote, quote, quote}):
			return j + 3
		case !triple && src[j] == quote:
			return j + 1
		case !triple && src[j] == '\n':
			return j
		}
		j++
	}
	return len(src)
}

// A Source is the text of a file, to find the place of an argument in it. The
// interpreter keeps the places of calls but not of their arguments, so on a
// mistake the file is parsed again.
type Source struct {
	File  string
	lines []string
	calls map[diag.Pos]*syntax.CallExpr // by the place of the parenthesis
}

// NewSource reads the text of a file; one that does not parse has lines but no
// calls.
func NewSource(file string, text []byte) *Source {
	s := &Source{File: file, lines: strings.Split(string(text), "\n"), calls: make(map[diag.Pos]*syntax.CallExpr)}
	f, err := parse(file, text)
	if err != nil {
		return s
	}
	syntax.Walk(f, func(n syntax.Node) bool {
		if c, ok := n.(*syntax.CallExpr); ok {
			s.calls[posOf(c.Lparen)] = c
		}
		return true
	})
	return s
}

// Line returns the text of a line, counted from 1, without its end.
func (s *Source) Line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	return strings.TrimSuffix(s.lines[n-1], "\r")
}

// An Arg says which part of a call is meant: the argument of that name, or,
// where it was not given by name, the Index'th positional one (from 0, -1 for
// none); and within it the elements of list and dict literals.
type Arg struct {
	Name    string
	Index   int
	Keyword bool  // the name itself, not the value
	Path    []any // int for the element of a list, string for the value of a key
}

// ArgPos returns the place of an argument of the call whose parenthesis is at
// pos, or pos if the call or its argument is not found there.
func (s *Source) ArgPos(pos diag.Pos, arg Arg) diag.Pos {
	call := s.calls[pos]
	if call == nil {
		return pos
	}
	positional := 0
	for _, a := range call.Args {
		b, named := a.(*syntax.BinaryExpr)
		if named && b.Op == syntax.EQ {
			if id, ok := b.X.(*syntax.Ident); ok && id.Name == arg.Name {
				if arg.Keyword {
					return posOf(id.NamePos)
				}
				return exprPos(b.Y, arg.Path)
			}
			continue
		}
		if u, ok := a.(*syntax.UnaryExpr); ok && (u.Op == syntax.STAR || u.Op == syntax.STARSTAR) {
			positional = -1 << 30 // not known from here on
			continue
		}
		if positional == arg.Index {
			return exprPos(a, arg.Path)
		}
		positional++
	}
	return s.CallPos(pos)
}

// CallPos returns where the call begins whose parenthesis is at pos.
func (s *Source) CallPos(pos diag.Pos) diag.Pos {
	if call := s.calls[pos]; call != nil {
		return posOf(syntax.Start(call))
	}
	return pos
}

// exprPos descends into literals.
func exprPos(e syntax.Expr, path []any) diag.Pos {
	for _, step := range path {
		for {
			p, ok := e.(*syntax.ParenExpr)
			if !ok {
				break
			}
			e = p.X
		}
		next := syntax.Expr(nil)
		switch step := step.(type) {
		case int:
			switch l := e.(type) {
			case *syntax.ListExpr:
				if step < len(l.List) {
					next = l.List[step]
				}
			case *syntax.TupleExpr:
				if step < len(l.List) {
					next = l.List[step]
				}
			}
		case string:
			if d, ok := e.(*syntax.DictExpr); ok {
				for _, x := range d.List {
					entry := x.(*syntax.DictEntry)
					if lit, ok := entry.Key.(*syntax.Literal); ok && lit.Value == step {
						next = entry.Value
					}
				}
			}
		}
		if next == nil {
			break
		}
		e = next
	}
	return posOf(syntax.Start(e))
}
