package lang

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/bazelbuild/buildtools/build"
	"go.starlark.net/syntax"

	"bj/lang/diag"
)

// Format returns the text of a file in the one layout that all files have, which
// is buildifier's: with a person's line breaks kept, and loads first, sorted. The
// error is a diag.List if the text cannot be parsed: buildtools reads more than
// bj does, so bj's parser is asked first.
func Format(file string, src []byte) ([]byte, error) {
	if _, err := parse(file, src); err != nil {
		return nil, diag.List{syntaxDiagnostic(file, src, err)}
	}
	f, err := layout(file, src)
	if err != nil {
		return nil, err
	}
	out := build.FormatWithRewriter(&build.Rewriter{RewriteSet: rewrites(f)}, f)
	if _, err := parse(file, out); err != nil {
		// Its printer writes some escapes in a way that Starlark refuses.
		d := syntaxDiagnostic(file, out, err)
		return nil, diag.List{{Pos: diag.Pos{File: file, Line: 1, Col: 1}, Severity: diag.Error, Rule: "syntax",
			Message: "the file cannot be laid out without a change of what it means: " + d.Message, Hint: "write what it means without escapes"}}
	}
	return out, nil
}

// layout reads a file that bj's parser took, as text that can be laid out.
func layout(file string, src []byte) (*build.File, error) {
	f, err := build.ParseDefault(file, untab(src))
	var pe build.ParseError
	if errors.As(err, &pe) {
		pos := diag.Pos{File: file, Line: pe.Pos.Line, Col: pe.Pos.LineRune}
		return nil, diag.List{{Pos: pos, Severity: diag.Error, Rule: "syntax", Message: "bj reads this, and Bazel's formatter does not: " + pe.Message,
			Hint: "write it in another way", Source: NewSource(file, src).Line(pos.Line)}}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the layout of %s: %w", file, err)
	}
	return f, nil
}

// rewrites names what buildifier does to the loads of every file, but for what
// would lose a comment: it joins the loads of one file without those of the
// second.
func rewrites(f *build.File) []string {
	set := []string{"loadTop", "sortLoadStatements", "loadsort", "collapseEmpty"}
	seen := map[string]bool{}
	for _, s := range f.Stmt {
		if load, ok := s.(*build.LoadStmt); ok {
			if seen[load.Module.Value] && commented(load) {
				return set
			}
			seen[load.Module.Value] = true
		}
	}
	return append(set, "sameOriginLoad")
}

// untab indents the lines of statements by blanks, eight for a tab, as Starlark
// counts: buildtools does not see tabs.
func untab(src []byte) []byte {
	if !bytes.ContainsRune(src, '\t') {
		return src
	}
	var out []byte
	depth, fresh := 0, true
	for i := 0; i < len(src); {
		switch c := src[i]; {
		case c == '\t' && fresh && depth == 0:
			column := len(out) - 1 - bytes.LastIndexByte(out, '\n')
			out = append(out, strings.Repeat(" ", 8-column%8)...)
			i++
			continue
		case c == '#':
			n := bytes.IndexByte(src[i:], '\n')
			if n < 0 {
				n = len(src) - i
			}
			out = append(out, src[i:i+n]...)
			i += n
			continue
		case c == '"' || c == '\'':
			end := min(stringEnd(src, i), len(src))
			out = append(out, src[i:end]...)
			i, fresh = end, false
			continue
		case c == '(' || c == '[' || c == '{':
			depth++
		case c == ')' || c == ']' || c == '}':
			depth--
		}
		fresh = src[i] == '\n' || fresh && src[i] == ' '
		out = append(out, src[i])
		i++
	}
	return out
}

func syntaxDiagnostic(file string, src []byte, err error) diag.Diagnostic {
	d := diag.Diagnostic{Pos: diag.Pos{File: file, Line: 1, Col: 1}, Severity: diag.Error, Rule: "syntax", Message: err.Error()}
	var te *sourceError
	var se syntax.Error
	switch {
	case errors.As(err, &te):
		d.Pos, d.Message, d.Hint = te.pos, te.message, te.hint
	case errors.As(err, &se):
		d.Pos, d.Message = posOf(se.Pos), se.Msg
	}
	d.Source = NewSource(file, src).Line(d.Pos.Line)
	return d
}
